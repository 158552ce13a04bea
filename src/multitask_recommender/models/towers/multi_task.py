"""The multi-task towers: shared representations of users and items, and what each task makes of them.

Users and items are first represented by vectors that all tasks share (the bottom). A tower per side turns them into
one vector per task; a task's score is the inner product of its two vectors plus biases. With one task alone the same
module is the single-task control.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from scipy.special import expit
from torch import Tensor, nn

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation
from multitask_recommender.data.tasks import Task
from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.baselines.item_item import EaseSettings, FirstStepEase
from multitask_recommender.models.baselines.item_ridge import ItemRidge, ItemRidgeSettings
from multitask_recommender.models.baselines.simple import solve_biases
from multitask_recommender.models.recommender import Arrays, LearningCurve, Recommender
from multitask_recommender.models.towers.history_encoders import EncoderName, make_history_encoder
from multitask_recommender.models.towers.sparse_features import FeatureTable
from multitask_recommender.models.towers.two_tower import (
    LabelScales,
    NeuralRecommender,
    TwoTowerModule,
    Vectors,
    task_loss,
)
from multitask_recommender.models.training.loop import TrainingSettings, UserBatch
from multitask_recommender.models.training.losses import RetrievalLoss
from multitask_recommender.models.training.sparse_products import weighted_sums


class MultiTaskSettings(Settings):
    """Parameters of the multi-task towers.

    Attributes:
        dimension: Length of the shared vectors and of every task's vectors.
        user_features: Whether the users' features are used.
        item_features: Whether the items' features are used.
        user_embedding: ``joint``: the history encoder is trained with the tasks; ``pretrained``: the frozen vectors of
            the user embedding model take its place; ``none``: a user has an identity vector and context alone.
        encoder: The history encoder where it is trained jointly (see ``history_encoders``).
        sequence_length: How many of the latest items the sequential encoder reads.
        history_exponent: The sum over a history of n items is divided by n to this power.
        history_dropout: Share of a user's rows hidden from the encoder in a step; the pointwise losses are taken on
            the hidden rows alone (a denoising encoder).
        item_dropout: Share of the items that show nothing but their features in a step, so that the features learn to
            stand for an item on their own, as they have to for a new one (DropoutNet: Volkovs et al., NeurIPS 2017).
        retrieval_loss: Loss of the retrieval tasks.
        positive_weight: Additional weight of an observed pair in the squared loss of a retrieval task.
        retrieval_penalty: Weight of the squared length of the identity vectors, per user or item, that a retrieval
            task asks for.
        penalty: The same per row of the user or item, that the other tasks ask for.
        penalise: Whether these penalties fall on the shared identity vectors themselves (``identity``) or on what the
            towers make of them for each task (``task_vectors``).
        bias_penalty: Weight of the squared biases, per row.
        encoder_penalty: Weight of the squared length of the history and feature vectors.
        wide: Parameters of the wide part of the retrieval tasks, an EASE; null: none.
        wide_weight: Factor on it in the score.
        wide_labels: Parameters of the wide part of the tasks with labels, an item ridge regression; null: none.
        wide_labels_share: Its share of the prediction, for items with training labels.
        retrieval_weight: Weight of the loss of a retrieval task.
        binary_weight: Weight of the loss of a binary task.
        regression_weight: Weight of the loss of a regression task.
        task_weights: Weights of single tasks by name, instead of those of their kind.
        training: Optimiser and schedule; ``encoder_rate`` also holds for the towers.
    """

    dimension: int = Field(default=64, ge=1)
    user_features: bool = True
    item_features: bool = True
    user_embedding: Literal["joint", "pretrained", "none"] = "joint"
    encoder: EncoderName = "linear"
    sequence_length: int = Field(default=32, ge=1)
    history_exponent: float = Field(default=0.75, ge=0, le=1)
    history_dropout: float = Field(default=0.5, ge=0, lt=1)
    item_dropout: float = Field(default=0.0, ge=0, lt=1)
    retrieval_loss: RetrievalLoss = "squared"
    positive_weight: float = Field(default=4.0, ge=0)
    retrieval_penalty: float = Field(default=30.0, ge=0)
    penalty: float = Field(default=0.12, ge=0)
    penalise: Literal["identity", "task_vectors"] = "identity"
    bias_penalty: float = Field(default=0.02, ge=0)
    encoder_penalty: float = Field(default=1.0, ge=0)
    wide: EaseSettings | None = None
    wide_weight: float = Field(default=1.0, gt=0)
    wide_labels: ItemRidgeSettings | None = None
    wide_labels_share: float = Field(default=0.25, gt=0, le=1)
    retrieval_weight: float = Field(default=1.0, gt=0)
    binary_weight: float = Field(default=0.5, gt=0)
    regression_weight: float = Field(default=1.25, gt=0)
    task_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    training: TrainingSettings = TrainingSettings(learning_rate=0.015, encoder_rate=0.1, epochs=25, batches=8)


M = TypeVar("M", bound=MultiTaskSettings)


class Tower(nn.Module, ABC):
    """Turns the shared vectors of one side into one vector per task; the last step of every tower is a matrix per task.

    Attributes:
        width: Length of the shared vectors that it takes.
    """

    width: int

    def forward(self, shared: Tensor) -> Vectors:
        """Map (n, width) shared vectors to task to (n, d)."""
        heads = self.head_maps()
        return {name: vector @ heads[name] for name, vector in self.before_heads(shared).items()}

    @abstractmethod
    def before_heads(self, shared: Tensor) -> Vectors:
        """Map (n, width) shared vectors to task to (n, d) vectors that only the task's matrix is still to be put on."""

    @abstractmethod
    def head_maps(self) -> Vectors:
        """Return task to its matrix (d, d), all that is linear at the end of the tower."""

    def gates(self, shared: Tensor) -> dict[str, Tensor]:
        """Return task to (n, experts) gate weights; empty for an architecture without gates."""
        return {}

    def expert_names(self, task: str) -> list[str]:
        """Return the names of the experts that a task's gate weighs, in order."""
        return []

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of experts and gates, which are trained slowest."""
        return []


def history_task(tasks: dict[str, Task]) -> str | None:
    """Return the task whose labels the history encoder sees: the first regression task, else binary, else none."""
    for kind in ("regression", "binary"):
        for name, task in tasks.items():
            if task.kind == kind:
                return name
    return None


class MultiTaskModule(TwoTowerModule):
    """Shared bottom, towers and biases.

    x_u = p_u + R(n_u^-c sum_{j in h_u} (a_j + e_uj b_j)) + C c_u              (users)
    y_i = q_i + phi(v_i)                                                       (items)
    s_t(u, i) = U_t(x_u) . V_t(y_i) + user bias + item bias + constant, per task t
              = (a_t A_t B_t') . b_t + biases, with U_t(x_u) = a_t A_t and V_t(y_i) = b_t B_t

    h_u is the user's history, n_u its length, e_uj how much the user's label of item j differs from what the biases
    predict (for the first regression or else binary task), R the history encoder (the identity for the linear one), c_u
    the context, v_i the item's features, U_t and V_t the towers, A_t and B_t their last matrices, multiplied on the
    side of the users because a batch has fewer of them. The linear encoder follows SVD++ (Koren, KDD 2008, equation
    15), with a share of the history hidden in every step as in a denoising autoencoder (Vincent et al., ICML
    2008). Only the identity vectors p and q carry a strong penalty: uniform for retrieval (Hu et al., ICDM 2008), per
    row for the pointwise tasks (Zhou et al., AAIM 2008).

    Args:
        rows: Training rows.
        side: Tasks, sizes and features.
        settings: Parameters.
        scales: Scales of the regression labels.
        towers: The towers of the users and of the items.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        rows: Interactions,
        side: SideInformation,
        settings: MultiTaskSettings,
        scales: LabelScales,
        towers: tuple[Tower, Tower],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.tasks, self.settings, self.scales = side.tasks, settings, scales
        self.weights = {
            name: settings.task_weights.get(name, getattr(settings, f"{task.kind}_weight"))
            for name, task in side.tasks.items()
        }
        dimension = towers[0].width
        retrieves = any(task.kind == "retrieval" for task in side.tasks.values())
        scale = 0.1 if retrieves else 0.03
        self.user = nn.Parameter(torch.randn(side.users, dimension, generator=generator) * scale)
        self.item = nn.Parameter(torch.randn(side.items, dimension, generator=generator) * scale)
        # An item without training rows has nothing but its features; no loss moves its vector away from 0.
        self.item.data[np.bincount(rows.item, minlength=side.items) == 0] = 0.0
        self._make_user_embedding(side, dimension, generator)
        self.context = FeatureTable(side.user_features, dimension) if settings.user_features else None
        # The additional columns are the feature part of the item biases, one per task.
        width = dimension + len(side.tasks)
        self.features = FeatureTable(side.item_features, width) if settings.item_features else None
        self.user_tower, self.item_tower = towers
        self.user_bias = nn.Parameter(torch.zeros(side.users, len(side.tasks)))
        self.item_bias = nn.Parameter(torch.zeros(side.items, len(side.tasks)))
        self.constant = nn.Parameter(torch.zeros(len(side.tasks)))
        self._start_at_biases(rows, side)

    def _make_user_embedding(self, side: SideInformation, dimension: int, generator: torch.Generator) -> None:
        """Make what turns histories into vectors."""
        settings = self.settings
        self.history_task = None
        self.history = self.label_history = self.projection = None
        if settings.user_embedding == "joint":
            self.history = nn.Parameter(torch.zeros(side.items, dimension))
            self.history_task = history_task(side.tasks)
            if self.history_task is not None:
                self.label_history = nn.Parameter(torch.zeros(side.items, dimension))
            self.encoder = make_history_encoder(settings.encoder, dimension, settings.sequence_length, generator)
        elif settings.user_embedding == "pretrained":
            if side.user_vectors is None:
                raise SettingsError("'user_embedding: pretrained' needs a variant that reads the user vectors.")
            vectors = torch.from_numpy(side.user_vectors)
            self._pretrained = vectors / vectors.square().mean().sqrt().clamp(min=1e-12)
            self.projection = nn.Parameter(torch.zeros(vectors.shape[1], dimension))

    def _start_at_biases(self, rows: Interactions, side: SideInformation) -> None:
        """Set the pointwise tasks' biases to their solution without factors, and keep what it leaves of the labels."""
        for place, (name, task) in enumerate(side.tasks.items()):
            if task.kind == "retrieval":
                continue
            everyone = rows.labels[name].astype(np.float64)
            asked = ~np.isnan(everyone)
            label = everyone[asked]
            if task.kind == "regression":
                mean, spread, _, _ = self.scales.values[name]
                constant, label = 0.0, (label - mean) / spread
            else:
                rate = float(np.clip(label.mean(), 1e-3, 1 - 1e-3))
                constant = float(np.log(rate / (1 - rate)))
                # One Newton step from the base rate turns differences of probability into differences of logits.
                label = (label - rate) / (rate * (1 - rate))
            bias = solve_biases(
                rows.user[asked],
                rows.item[asked],
                label.astype(np.float32),
                side.users,
                side.items,
                (15.0, 10.0),
            )
            self.user_bias.data[:, place] = torch.from_numpy(bias[0])
            self.item_bias.data[:, place] = torch.from_numpy(bias[1])
            self.constant.data[place] = constant
            if name == self.history_task:
                predicted = bias[0][rows.user] + bias[1][rows.item] + constant
                if task.kind == "regression":
                    everyone = (everyone - mean) / spread
                else:
                    predicted = expit(predicted)
                residual = np.nan_to_num(everyone - predicted, nan=0.0)
                self._residuals = torch.from_numpy(residual.astype(np.float32))

    def encode_users(self, batch: UserBatch, seen: UserBatch | None = None) -> Tensor:
        """Return the shared vectors x (B, D).

        Args:
            batch: Users with their rows.
            seen: The part of the batch that was drawn to be seen as their histories; None: all of it.
        """
        encoded = self.user[batch.users]
        if self.history is not None:
            encoded = encoded + self._encode_history(batch, seen, self.history)
        elif self.projection is not None:
            encoded = encoded + self._pretrained[batch.users] @ self.projection
        if self.context is not None:
            encoded = encoded + self.context(batch.users)
        return encoded

    def _encode_history(self, batch: UserBatch, seen: UserBatch | None, table: Tensor) -> Tensor:
        count = torch.bincount(batch.row_user, minlength=len(batch.users)).clamp(min=1)
        factor = count.to(table.dtype).pow(-self.settings.history_exponent)
        if seen is not None:
            factor = factor / (1.0 - self.settings.history_dropout)
        rows = batch if seen is None else seen
        value = factor.index_select(0, rows.row_user)
        summed = weighted_sums(rows.pairs, value, table)
        residual = None
        if self.label_history is not None:
            residual = self._residuals.index_select(0, rows.row)
            summed = summed + weighted_sums(rows.pairs, value * residual, self.label_history)

        def row_vectors(places: Tensor) -> Tensor:
            vectors = table[rows.row_item[places]]
            if self.label_history is None or residual is None:
                return vectors
            return vectors + residual[places, None] * self.label_history[rows.row_item[places]]

        return self.encoder(summed, rows.row_user, row_vectors)

    def encode_items(self, shown: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the shared vectors y (items, D) and the items' biases (items, tasks).

        Args:
            shown: (items, 1) 1 for an item that shows its identity, 0 for one that shows its features alone; None: all
                show it.
        """
        item: Tensor = self.item
        bias: Tensor = self.item_bias
        if shown is not None:
            item, bias = item * shown, bias * shown
        if self.features is None:
            return item, bias
        encoded = self.features()
        dimension = self.item.shape[1]
        return item + encoded[:, :dimension], bias + encoded[:, dimension:]

    def user_vectors(self, batch: UserBatch, seen: UserBatch | None = None) -> Vectors:
        """Return task to (B, d + 1 + tasks): a_t A_t B_t', the bias, and which item bias counts; ``seen`` as above."""
        own, other = self.user_tower.head_maps(), self.item_tower.head_maps()
        vectors = self.user_tower.before_heads(self.encode_users(batch, seen))
        bias, which = self.user_bias[batch.users] + self.constant, torch.eye(len(self.tasks))
        return {
            name: torch.cat(
                [vectors[name] @ (own[name] @ other[name].T), bias[:, [place]], which[place].expand(len(bias), -1)],
                dim=1,
            )
            for place, name in enumerate(self.tasks)
        }

    def item_vectors(self, shown: Tensor | None = None) -> Vectors:
        """Return task to (items, d + 1 + tasks): b_t, 1, and all item biases; ``shown`` as in :meth:`encode_items`."""
        shared, bias = self.encode_items(shown)
        vectors = self.item_tower.before_heads(shared)
        ends = torch.cat([torch.ones(len(bias), 1), bias], dim=1)
        # Tasks that read the same vectors share one table.
        tables = {id(vector): torch.cat([vector, ends], dim=1) for vector in vectors.values()}
        return {name: tables[id(vectors[name])] for name in self.tasks}

    def losses(self, batch: UserBatch) -> dict[str, Tensor]:
        """Return the tasks' losses on a batch with a part of the histories and identities hidden, and the penalties."""
        seen, asked = None, batch
        if self.settings.history_dropout > 0:
            hidden = torch.rand(len(batch.row_item), generator=batch.generator) < self.settings.history_dropout
            seen, asked = batch.part(~hidden), batch.part(hidden)
        shown = None
        if self.settings.item_dropout > 0 and self.features is not None:
            shown = (torch.rand(len(self.item), 1, generator=batch.generator) >= self.settings.item_dropout).float()
        result = self.task_losses(self.user_vectors(batch, seen), self.item_vectors(shown), batch, asked)
        result["penalty"] = self._penalty(batch, asked)
        return result

    def task_losses(self, users: Vectors, items: Vectors, batch: UserBatch, asked: UserBatch) -> dict[str, Tensor]:
        """Return the tasks' weighted losses.

        Args:
            users: Task to (B, d) vectors.
            items: Task to (items, d) vectors.
            batch: The batch.
            asked: The part of the batch that pointwise losses are taken on: what the history encoder did not see.
        """
        return {name: self.usual_loss(name, users, items, batch, asked) for name in self.tasks}

    def usual_loss(self, name: str, users: Vectors, items: Vectors, batch: UserBatch, asked: UserBatch) -> Tensor:
        """Return the weighted loss of one task by its kind; arguments as in :meth:`task_losses`."""
        task = self.tasks[name]
        rows = batch if task.kind == "retrieval" else asked
        label = rows.label(name)
        loss = task_loss(
            task,
            users[name],
            items[name],
            rows,
            self.scales.standardise(name, label) if task.kind == "regression" else label,
            self.settings.positive_weight,
            self.settings.retrieval_loss,
        )
        return self.weights[name] * loss

    def _penalty(self, batch: UserBatch, asked: UserBatch) -> Tensor:
        """Return the penalties of a batch; each part in the same unit as the loss it belongs to.

        A retrieval task asks for ``retrieval_penalty`` |p|^2 per user and item, over the number of rows; a pointwise
        task for ``penalty`` (|p_u|^2 + |q_i|^2) on average over the rows that its loss is taken on.
        """
        settings = self.settings
        share = len(batch.users) / len(self.user)
        rows = max(len(batch.row_item), 1)
        by_user = torch.bincount(asked.row_user, minlength=len(batch.users)).to(self.user.dtype)
        by_item = torch.bincount(asked.row_item, minlength=len(self.item)).to(self.item.dtype)
        asked_rows = max(len(asked.row_item), 1)

        def measure(user: Tensor, item: Tensor, uniform: list[float], per_row: list[float]) -> Tensor:
            """Weigh squared lengths (B, k) and (items, k): k weights hold for everyone, and k others per row."""
            everyone = user.sum(0) + share * item.sum(0)
            observed = by_user @ user + by_item @ item
            return everyone @ user.new_tensor(uniform) / rows + observed @ user.new_tensor(per_row) / asked_rows

        def lengths(vectors: Iterable[Tensor]) -> Tensor:
            return torch.stack([vector.square().sum(1) for vector in vectors], dim=1)

        # A retrieval task asks for everyone alike, a pointwise task per row.
        retrieval = [self.weights[name] * (task.kind == "retrieval") for name, task in self.tasks.items()]
        pointwise = [self.weights[name] * (task.kind != "retrieval") for name, task in self.tasks.items()]
        total = measure(
            self.user_bias[batch.users].square(),
            self.item_bias.square(),
            [0.1 * settings.retrieval_penalty * weight for weight in retrieval],
            [settings.bias_penalty * weight for weight in pointwise],
        )
        user, item = self.user[batch.users], self.item
        if settings.penalise == "task_vectors":
            own = lengths(self.user_tower(user).values()), lengths(self.item_tower(item).values())
        else:
            # The vectors are shared, so tasks of one sort ask for one penalty, not for one each.
            own = lengths([user]), lengths([item])
            retrieval, pointwise = [max(retrieval)], [max(pointwise)]
        total = total + measure(
            *own,
            [settings.retrieval_penalty * weight for weight in retrieval],
            [settings.penalty * weight for weight in pointwise],
        )
        tables = [table for table in (self.history, self.label_history, self.projection) if table is not None]
        tables += [table.vectors for table in (self.context, self.features) if table is not None]
        if not tables:
            return total
        encoder = torch.stack([table.square().sum() for table in tables]).sum()
        return total + settings.encoder_penalty * share * encoder / asked_rows

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the towers' experts and gates."""
        return [*self.user_tower.expert_parameters(), *self.item_tower.expert_parameters()]

    def slow_parameters(self) -> list[nn.Parameter]:
        """Return the encoder's and the heads' parameters."""
        others = {id(p) for p in (self.user, self.item, self.user_bias, self.item_bias, *self.expert_parameters())}
        return [p for p in self.parameters() if id(p) not in others]

    def expert_utilisation(self, batch: UserBatch) -> dict[str, Tensor]:
        """Return ``<side>/<task>/<expert>`` to its mean gate weight, over the batch's users or over all items."""
        result: dict[str, Tensor] = {}
        for side, tower, shared in (
            ("user", self.user_tower, self.encode_users(batch)),
            ("item", self.item_tower, self.encode_items()[0]),
        ):
            for task, weights in tower.gates(shared).items():
                for expert, mean in zip(tower.expert_names(task), weights.mean(0), strict=True):
                    result[f"{side}/{task}/{expert}"] = mean
        return result


class MultiTaskRecommender(NeuralRecommender[M]):
    """A multi-task architecture over shared representations: what its towers are, subclasses say.

    With wide parts it is a wide and deep model (Cheng et al., DLRS 2016), whose wide parts are item-item weights solved
    in closed form. ``wide`` adds those of EASE to the scores of the retrieval tasks (see :class:`FirstStepEase`: the
    steps of a funnel share the wide part of its first step, which has the most data); ``wide_labels`` mixes the
    predictions of :class:`ItemRidge` into those of the other tasks, where an item has training labels.
    """

    module: ClassVar[type[MultiTaskModule]] = MultiTaskModule

    @abstractmethod
    def tower(self, tasks: dict[str, Task], generator: torch.Generator) -> Tower:
        """Make a tower; called once for the users and once for the items."""

    def build(
        self, train_rows: Interactions, side: SideInformation, scales: LabelScales, generator: torch.Generator
    ) -> TwoTowerModule:
        """Make the untrained module."""
        towers = (self.tower(side.tasks, generator), self.tower(side.tasks, generator))
        return self.module(train_rows, side, self.settings, scales, towers, generator)

    def training_settings(self) -> TrainingSettings:
        """Return how the module is trained."""
        return self.settings.training

    def fit(self, train_rows: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Train the module, and solve the wide parts if there are any."""
        curve = super().fit(train_rows, side, seed)
        state = self.state()
        for name, (part, own) in self._untrained_wide_parts(side).items():
            part.fit(train_rows, own, seed)
            state |= {f"{name}.{key}": array for key, array in part.state().items()}
        self.restore(state, side)
        return curve

    def _untrained_wide_parts(self, side: SideInformation) -> dict[str, tuple[Recommender, SideInformation]]:
        """Return the wide parts by the name of their settings, and what each is to know: its tasks alone."""
        parts: dict[str, Recommender] = {}
        if self.settings.wide is not None:
            parts["wide"] = FirstStepEase(self.settings.wide)
        if self.settings.wide_labels is not None:
            parts["wide_labels"] = ItemRidge(self.settings.wide_labels)
        tasks = {
            name: [task for task, own in side.tasks.items() if (own.kind == "retrieval") == (name == "wide")]
            for name in parts
        }
        return {name: (part, side.with_tasks(tasks[name])) for name, part in parts.items() if tasks[name]}

    def restore(self, state: Arrays, side: SideInformation) -> None:
        """Take weights, vectors and the wide parts back."""
        super().restore(state, side)
        self._wide_parts: dict[str, Recommender] = {}
        for name, (part, own_side) in self._untrained_wide_parts(side).items():
            own = {key.removeprefix(f"{name}."): array for key, array in state.items() if key.startswith(f"{name}.")}
            if own:
                part.restore(own, own_side)
                self._wide_parts[name] = part

    def score(self, users: IntArray) -> dict[str, FloatArray]:
        """Score with the towers and the wide parts."""
        scores = super().score(users)
        for part in self._wide_parts.values():
            for task, wide in part.score(users).items():
                if isinstance(part, ItemRidge):
                    share, items = np.float32(self.settings.wide_labels_share), part.labelled_items(task)
                    scores[task][:, items] += share * (wide[:, items] - scores[task][:, items])
                else:
                    scores[task] += np.float32(self.settings.wide_weight) * wide
        return scores

    def parameter_count(self) -> int:
        """Return the number of trained weights and of wide weights."""
        return super().parameter_count() + sum(part.parameter_count() for part in self._wide_parts.values())
