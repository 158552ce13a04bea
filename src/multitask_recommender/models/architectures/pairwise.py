"""MMoE and PLE in their published form: experts and gates read user and item together, pair by pair.

The other architectures are towers, whose experts see one side alone and whose score is an inner product. Here nothing
is an inner product, so that a list costs a pass through the network for every item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy.special import expit
from torch import Tensor, nn

from multitask_recommender.data.interactions import FloatArray, Interactions, SideInformation
from multitask_recommender.data.queries import Histories, Queries
from multitask_recommender.data.tasks import Task, retrieval_tasks
from multitask_recommender.models.recommender import PENALTY, Knowledge, LearningCurve, Recommender, ShrunkSettings
from multitask_recommender.models.state import State, array, branch
from multitask_recommender.models.towers.experts import PerTaskModules, mix
from multitask_recommender.models.towers.sparse_features import FeatureTable
from multitask_recommender.models.towers.two_tower import (
    LabelScales,
    as_rows,
    distance_moved,
    log_odds_of_positives,
    own_share,
)
from multitask_recommender.models.towers.user_side import HistoryResiduals, history_task, start_biases
from multitask_recommender.models.training.loop import (
    TrainableModule,
    TrainingSettings,
    UserBatch,
    UserRows,
    new_generator,
    train,
)
from multitask_recommender.models.training.losses import cross_entropy, squared_error
from multitask_recommender.models.training.sparse_products import DesignMatrix, weighted_sums

_NUMBERS = 2**24
"""Most numbers of hidden units x pairs that are held at a time when lists are made."""
_SCALE = 0.05
"""Standard deviation of the initial vectors."""
Layers = tuple[Annotated[int, Field(ge=1, le=65_536)], ...]


class PairwiseSettings(ShrunkSettings):
    """Parameters of the networks over pairs.

    Attributes:
        embedding: Length of the vectors of a history, a context, an item and its features.
        experts: Number of experts; of PLE for every task and shared, each.
        expert_layers: Widths of the layers of an expert.
        tower_layers: Widths of the hidden layers of a task's tower.
        levels: Levels of extraction of PLE.
        negatives: Items drawn at random per row, which a retrieval task takes as not chosen.
        history_exponent: The sum over a history of n items is divided by n to this power.
        history_dropout: Share of a user's rows hidden from the history in a step; the losses are taken on these alone.
        penalty: Weight of the mean squared length of the vectors of a pair.
        retrieval_weight: Weight of the loss of a retrieval task.
        binary_weight: Weight of the loss of a binary task.
        regression_weight: Weight of the loss of a regression task.
        training: Optimiser and schedule.
    """

    embedding: int = Field(default=16, ge=1, le=8192)
    experts: int = Field(default=3, ge=1, le=256)
    expert_layers: Layers = Field(default=(64, 32), min_length=1)
    tower_layers: Layers = (32,)
    levels: int = Field(default=1, ge=1, le=32)
    negatives: int = Field(default=2, ge=1, le=10_000)
    history_exponent: float = Field(default=0.5, ge=0, le=1)
    history_dropout: float = Field(default=0.5, gt=0, lt=1)
    penalty: float = Field(default=0.3, ge=0, le=1e9)
    retrieval_weight: float = Field(default=1.0, gt=0, le=1e9)
    binary_weight: float = Field(default=1.0, gt=0, le=1e9)
    regression_weight: float = Field(default=1.0, gt=0, le=1e9)
    training: TrainingSettings = TrainingSettings(
        optimiser="adam", learning_rate=0.005, expert_rate=1.0, epochs=25, batches=12
    )


class Part(NamedTuple):
    """A part of the input of many pairs.

    Attributes:
        vectors: (m, d) different vectors.
        place: (n,) which of them every pair has; None: the m vectors are those of the n pairs.
    """

    vectors: Tensor
    place: Tensor | None

    def times(self, weight: Tensor) -> Tensor:
        """Return (K, n, width) products with (K, d, width): once for every different vector."""
        product = self.vectors @ weight
        return product if self.place is None else product.index_select(1, self.place)


class Networks(nn.Module):
    """K networks of one shape with ReLU after every layer: h = relu(... relu(sum_p x_p A_p + a) ...).

    Args:
        number: K.
        inputs: Widths of the parts p of the input.
        layers: Widths of the layers.
        generator: Source of the initial weights, normal with standard deviation sqrt(2 / width of the layer's input).
    """

    def __init__(self, number: int, inputs: Sequence[int], layers: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()

        def weights(own: int, after: int, fan: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(number, own, after, generator=generator) * (2.0 / fan) ** 0.5)

        self.first = nn.ParameterList(weights(width, layers[0], sum(inputs)) for width in inputs)
        self.others = nn.ParameterList(weights(own, after, own) for own, after in pairwise(layers))
        self.biases = nn.ParameterList(torch.zeros(number, 1, width) for width in layers)

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Return (K, n, width of the last layer)."""
        hidden = torch.stack([part.times(own) for part, own in zip(parts, self.first, strict=True)]).sum(0)
        hidden = torch.relu(hidden + self.biases[0])
        for own, bias in zip(self.others, list(self.biases)[1:], strict=True):
            hidden = torch.relu(torch.baddbmm(bias, hidden, own))
        return hidden


class PairGate(nn.Module):
    """Softmax weights of K experts, which start equal: g = softmax(sum_p x_p W_p + b).

    Args:
        inputs: Widths of the parts of the input.
        experts: K.
    """

    def __init__(self, inputs: Sequence[int], experts: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(1, width, experts) for width in inputs)
        self.bias = nn.Parameter(torch.zeros(experts))

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Return (n, K) weights that sum to one."""
        seen = torch.stack([part.times(own)[0] for part, own in zip(parts, self.weights, strict=True)]).sum(0)
        return torch.softmax(seen + self.bias, dim=1)


class PairTower(nn.Module):
    """What a task makes of its mixture of experts: a network with hidden layers and one output.

    Args:
        width: Width of the mixture.
        layers: Widths of the hidden layers.
        generator: Source of the initial weights.
    """

    def __init__(self, width: int, layers: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = Networks(1, [width], layers, generator) if layers else None
        last = layers[-1] if layers else width
        self.weight = nn.Parameter(torch.randn(last, generator=generator) * last**-0.5 * 0.1)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, mixture: Tensor) -> Tensor:
        """Map (n, width) to (n,)."""
        hidden = mixture if self.hidden is None else self.hidden([Part(mixture, None)])[0]
        return hidden @ self.weight + self.bias


class Extraction(nn.Module):
    """One level of experts and gates.

    Without experts of the tasks it is MMoE (Ma et al., KDD 2018, equations 5 and 6): every task weighs all experts.
    With them it is the layer of PLE (Tang et al., RecSys 2020, equations 1 to 4): a task weighs its own experts and
    the shared ones, and where a level follows, the shared part weighs all of them.

    Args:
        tasks: Names of the tasks.
        inputs: Widths of the parts of the input.
        settings: Parameters.
        own: Whether tasks have experts of their own.
        last: Whether no level follows.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        inputs: Sequence[int],
        settings: PairwiseSettings,
        own: bool,
        last: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        number, self.number, self.own = len(tasks), settings.experts, own

        def experts() -> Networks:
            return Networks(settings.experts, inputs, settings.expert_layers, generator)

        self.shared = experts()
        self.specific = PerTaskModules({name: experts() for name in tasks} if own else {})
        seen = settings.experts * (2 if own else 1)
        self.gates = PerTaskModules({name: PairGate(inputs, seen) for name in tasks})
        self.shared_gate = None if last else PairGate(inputs, settings.experts * (1 + number * own))

    def forward(self, parts: Mapping[str, Sequence[Part]], shared: Sequence[Part]) -> tuple[dict[str, Tensor], Tensor]:
        """Mix the experts.

        Args:
            parts: Task to its input.
            shared: Input of the shared experts.

        Returns:
            Task to (n, width), and the shared part, empty at the last level.
        """
        common = list(self.shared(shared))
        specific = {name: list(own(parts[name])) for name, own in self.specific.items()}
        mixed = {name: mix(gate(parts[name]), [*specific.get(name, []), *common]) for name, gate in self.gates.items()}
        if self.shared_gate is None:
            return mixed, common[0].new_zeros(0)
        every = [output for outputs in (*specific.values(), common) for output in outputs]
        return mixed, mix(self.shared_gate(shared), every)

    def expert_names(self, task: str) -> list[str]:
        """Return the names of the experts that a task's gate weighs."""
        own = [f"{task} {number + 1}" for number in range(self.number)] if self.own else []
        return [*own, *(f"(shared) {number + 1}" for number in range(self.number))]


class PairwiseModule(TrainableModule):
    """s_t(u, i) = tower_t(mixture_t([r_u, c_u, q_i, f_i])) with history r_u, context c_u, item q_i and features f_i.

    r_u = n_u^-a sum_{j in h_u} (a_j + e_uj b_j) is what stands for the identifier of the user, who may be new: what is
    learnt of a user is in the history. e_uj is how much the user's label differs from what biases predict, as in
    :class:`MultiTaskModule`. In training a share of the history is hidden, and the losses are those of the hidden rows;
    a retrieval task has cross-entropy, with items drawn at random as what was not chosen.

    Args:
        side: Tasks, sizes and features.
        settings: Parameters.
        scales: Scales of the regression labels.
        own: Whether tasks have experts of their own.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        side: SideInformation,
        settings: PairwiseSettings,
        scales: LabelScales,
        own: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.tasks, self.settings, self.scales = side.tasks, settings, scales
        width = settings.embedding

        def table(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, width, generator=generator) * _SCALE)

        self.history, self.label_history, self.identity = (table(side.items) for _ in range(3))
        self.context = FeatureTable(side.user_features.shape[1], width, generator, _SCALE)
        self.features = FeatureTable(side.item_features.shape[1], width, generator, _SCALE)
        self.read = history_task(side.tasks)
        self.residuals = None
        if self.read is not None:
            self.residuals = HistoryResiduals(side.items, side.tasks[self.read].kind == "binary")
        self._item_features = DesignMatrix(side.item_features)
        names, inputs = list(side.tasks), [2 * width, 2 * width]
        self.levels = nn.ModuleList()
        for level in range(settings.levels):
            last = level == settings.levels - 1
            self.levels.append(Extraction(names, inputs, settings, own, last, generator))
            inputs = [settings.expert_layers[-1]]
        self.towers = PerTaskModules({name: PairTower(inputs[0], settings.tower_layers, generator) for name in names})

    def start(self, rows: UserRows) -> None:
        """Set the biases that labels in histories are compared with, and leave items without rows to their features."""
        for table in (self.history, self.label_history, self.identity):
            table.data[torch.bincount(rows.item, minlength=len(table)) == 0] = 0.0
        if self.read is None or self.residuals is None:
            return
        task, sizes = self.tasks[self.read], (len(rows.counts), len(self.identity))
        scale = self.scales.values[self.read][:2] if task.kind == "regression" else (0.0, 1.0)
        _, _, item, scale = start_biases(task, rows.labels[self.read].numpy(), rows, scale, sizes)
        self.residuals.item_bias = torch.from_numpy(item)
        self.residuals.scale = torch.tensor(scale)

    def describe(self, rows: UserRows) -> None:
        """Compute the residuals of the labels that the histories are read with."""
        if self.residuals is not None and self.read is not None:
            rows.residuals = self.residuals(rows, rows.labels[self.read])

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return experts and gates."""
        return list(self.levels.parameters())

    def users_of(self, batch: UserBatch) -> Tensor:
        """Return (B, 2 d) vectors of histories and contexts."""
        value = batch.counts.clamp(min=1).to(self.history.dtype).pow(-self.settings.history_exponent)[batch.row_user]
        if batch.row_weight is not None:
            value = value * batch.row_weight
        summed = weighted_sums(batch.pairs, value, self.history)
        if batch.source.residuals is not None:
            summed = summed + weighted_sums(batch.pairs, value * batch.source.residuals[batch.row], self.label_history)
        assert batch.source.context is not None
        return torch.cat([summed, self.context(batch.source.context, batch.users)], dim=1)

    def items_all(self) -> Tensor:
        """Return (items, 2 d) vectors of items and their features."""
        return torch.cat([self.identity, self.features(self._item_features)], dim=1)

    def logits(self, users: Tensor, items: Tensor, place: Tensor, item: Tensor) -> dict[str, Tensor]:
        """Score pairs.

        Args:
            users: (B, 2 d) vectors of users.
            items: (items, 2 d) vectors of items.
            place: (n,) place of each pair's user.
            item: (n,) its item.

        Returns:
            Task to (n,): a logit, or for a regression task a standardised label.
        """
        mixed = self.mixtures(users, items, place, item)
        return {name: tower(mixed[name]) for name, tower in self.towers.items()}

    def mixtures(self, users: Tensor, items: Tensor, place: Tensor, item: Tensor) -> dict[str, Tensor]:
        """Return task to (n, width) what the last level makes of pairs."""
        pair = [Part(users, place), Part(items, item)]
        parts: dict[str, Sequence[Part]] = dict.fromkeys(self.tasks, pair)
        shared: Sequence[Part] = pair
        mixed: dict[str, Tensor] = {}
        for level in self.levels:
            mixed, common = level(parts, shared)
            parts = {name: [Part(own, None)] for name, own in mixed.items()}
            shared = [Part(common, None)]
        return mixed

    def losses(self, batch: UserBatch) -> dict[str, Tensor]:
        """Return the tasks' losses on the hidden rows of a batch, and the penalty."""
        hidden = batch.random_per_row() < self.settings.history_dropout
        asked, seen = batch.part(hidden), batch.part(~hidden)
        users, items = self.users_of(seen), self.items_all()
        owner = asked.row_user.repeat_interleave(self.settings.negatives)
        drawn = asked.draw_items(self.settings.negatives)
        other = ~batch.observed(owner, drawn)
        retrieves = any(task.kind == "retrieval" for task in self.tasks.values())
        number = len(asked.row)
        place = torch.cat([asked.row_user, owner[other]]) if retrieves else asked.row_user
        item = torch.cat([asked.row_item, drawn[other]]) if retrieves else asked.row_item
        logits = self.logits(users, items, place, item)
        result: dict[str, Tensor] = {}
        for name, task in self.tasks.items():
            if task.kind == "retrieval":
                happened = (asked.label(name) > 0).to(users.dtype)
                label = torch.cat([happened, happened.new_zeros(len(place) - number)])
                # Per row, drawn items or not, as the other tasks.
                loss = cross_entropy(label, logits[name])[0] / max(number, 1)
            else:
                label = self.scales.standardise(name, asked.label(name))
                pointwise = cross_entropy if task.kind == "binary" else squared_error
                total, count = pointwise(label, logits[name][:number])
                loss = total / count.clamp(min=1)
            result[name] = getattr(self.settings, f"{task.kind}_weight") * loss
        lengths = users.square().sum(1)[asked.row_user] + items.square().sum(1)[asked.row_item]
        result[PENALTY] = self.settings.penalty * lengths.mean() if number else users.sum() * 0.0
        return result

    def utilisation(self, batch: UserBatch) -> dict[str, dict[str, Tensor]]:
        """Return task to expert to (2,) mean and standard deviation of its weight, over pairs, at the first level."""
        pair = [Part(self.users_of(batch), batch.row_user), Part(self.items_all(), batch.row_item)]
        level = self.levels[0]
        assert isinstance(level, Extraction)
        found = {}
        for name, gate in level.gates.items():
            weights = gate(pair)
            spread = torch.stack([weights.mean(0), weights.std(0, unbiased=False)], dim=1)
            found[name] = dict(zip(level.expert_names(name), spread, strict=True))
        return found


class PairwiseRecommender(Recommender[PairwiseSettings]):
    """A network over pairs; which experts it has, subclasses say.

    Attributes:
        own_experts: Whether tasks have experts of their own.
    """

    predicts = frozenset({"binary", "regression"})
    stochastic = True
    effort = 10.0
    knowledge = Knowledge(
        "encoded", "popularity, for labels what the network makes of no history", "features", True, True
    )
    own_experts = False

    def _build(self, side: SideInformation, scales: LabelScales, generator: torch.Generator) -> PairwiseModule:
        return PairwiseModule(side, self.settings, scales, self.own_experts, generator)

    def fit(self, train_rows: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Train the network."""
        generator, scales = new_generator(seed), LabelScales.of(side.tasks, train_rows.labels)
        rows = as_rows(Histories(train_rows, side.user_features).of(np.arange(side.users)), None)
        module = self._build(side, scales, generator)
        module.start(rows)
        module.describe(rows)
        before = [parameter.detach().clone() for parameter in module.expert_parameters()]
        name = type(self).__name__
        curve = train(name, module, module.losses, rows, self.settings.training, generator, list(side.tasks))
        with torch.no_grad():
            used = module.utilisation(next(rows.blocks(1024)))
        retrieved, odds = retrieval_tasks(side.tasks), torch.zeros(0)
        if retrieved:
            odds = log_odds_of_positives(rows, retrieved, side.items, self.settings.negatives)
        self._state: State = {
            "weights": {name: value.numpy() for name, value in module.state_dict().items()},
            "scales": scales.state(),
            "log_odds": dict(zip(retrieved, odds.numpy(), strict=True)),
            "experts_moved": np.array([distance_moved(module.expert_parameters(), before)], np.float32),
            "utilisation": {
                "pair": {
                    task: {expert: weights.numpy() for expert, weights in experts.items()}
                    for task, experts in used.items()
                }
            },
        }
        self._settle(module, side.tasks, scales)
        return curve

    def _settle(self, module: PairwiseModule, tasks: dict[str, Task], scales: LabelScales) -> None:
        self._module, self._tasks, self._scales = module.eval().requires_grad_(False), tasks, scales
        with torch.no_grad():
            self._items = module.items_all()

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Pass all pairs through the network; probabilities for binary tasks, labels in their units for regression."""
        rows = as_rows(queries.weighted(self.settings.recency), None)
        self._module.describe(rows)
        items, number = torch.arange(len(self._items)), len(queries)
        scores = {name: np.empty((number, len(items)), np.float32) for name in self._tasks}
        settings = self.settings
        groups = 1 + self.own_experts * len(self._tasks)
        width = groups * settings.experts * max(settings.expert_layers)
        size = max(_NUMBERS // max(width * len(items), 1), 1)
        with torch.no_grad():
            users = self._module.users_of(rows.everyone())
            for begin in range(0, number, size):
                own = users[begin : begin + size]
                place = torch.arange(len(own)).repeat_interleave(len(items))
                found = self._module.logits(own, self._items, place, items.repeat(len(own)))
                for name, values in found.items():
                    scores[name][begin : begin + size] = values.view(len(own), -1).numpy()
        share = own_share(rows, settings).numpy()
        for name, task in self._tasks.items():
            if task.kind == "retrieval":
                # Of a short history such a network makes little, and least of which items are popular.
                scores[name] *= share
                scores[name] += (1.0 - share) * array(branch(self._state, "log_odds"), name)
            elif task.kind == "binary":
                scores[name] = expit(scores[name])
            elif task.kind == "regression":
                scores[name] = self._scales.to_label(name, scores[name])
        return scores

    def state(self) -> State:
        """Return the weights, the scales, and the use of experts. Nothing of a user is among them."""
        return dict(self._state)

    def restore(self, state: State, side: SideInformation) -> None:
        """Take the weights back."""
        self._state = dict(state)
        scales = LabelScales.restored(branch(state, "scales"))
        module = self._build(side.without_users(), scales, new_generator(0))
        weights = branch(state, "weights")
        module.load_state_dict({name: torch.from_numpy(array(weights, name)) for name in weights})
        self._settle(module, side.tasks, scales)

    def parameter_count(self) -> int:
        """Return the number of trained weights."""
        return sum(parameter.numel() for parameter in self._module.parameters())


class PairwiseMMoE(PairwiseRecommender):
    """MMoE over pairs (Ma et al., Modeling Task Relationships in Multi-task Learning, KDD 2018)."""


class PairwisePLE(PairwiseRecommender):
    """PLE over pairs; with one level CGC (Tang et al., Progressive Layered Extraction, RecSys 2020)."""

    own_experts = True
