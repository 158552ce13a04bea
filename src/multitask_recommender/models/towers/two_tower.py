"""What all neural recommenders share: task scores are inner products of a user's and an item's vectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from multitask_recommender.data.interactions import FloatArray, Interactions, SideInformation, UserEncoder
from multitask_recommender.data.queries import Histories, Queries
from multitask_recommender.data.tasks import Task
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import (
    HistorySettings,
    InnerProducts,
    LearningCurve,
    Recommender,
    S,
    ShrunkSettings,
    cosines,
)
from multitask_recommender.models.state import State, array, branch
from multitask_recommender.models.training.division import BALANCED, DivisibleModule, Training, launcher_now
from multitask_recommender.models.training.loop import (
    TrainingSettings,
    UserBatch,
    UserRows,
    new_generator,
    train,
)
from multitask_recommender.models.training.losses import (
    RetrievalLoss,
    bpr_loss,
    cross_entropy,
    softmax_loss,
    squared_error,
    whole_data_squared_loss,
)
from multitask_recommender.models.training.sparse_products import DesignMatrix, gram, pair_scores

Vectors = dict[str, Tensor]
_BLOCK = 1024


class LabelScales:
    """Mean, standard deviation and range of every regression task's training labels.

    Models predict standardised labels, so that one penalty fits all scales; predictions are brought back and clipped
    to the range seen in training.

    Args:
        values: Task to the four numbers.
    """

    def __init__(self, values: dict[str, tuple[float, float, float, float]]) -> None:
        self.values = values

    @classmethod
    def of(cls, tasks: dict[str, Task], labels: dict[str, FloatArray]) -> LabelScales:
        """Compute the scales of training labels."""
        values: dict[str, tuple[float, float, float, float]] = {}
        for name, task in tasks.items():
            if task.kind == "regression":
                label = labels[name].astype(np.float64)
                spread = float(np.nanstd(label))
                values[name] = (
                    float(np.nanmean(label)),
                    spread if spread > 0 else 1.0,
                    float(np.nanmin(label)),
                    float(np.nanmax(label)),
                )
        return cls(values)

    @classmethod
    def restored(cls, state: State) -> LabelScales:
        """Take back what :meth:`state` gave."""
        return cls({task: tuple(array(state, task).tolist()) for task in state})

    def state(self) -> State:
        """Return the four numbers of every task as an array."""
        return {task: np.array(values) for task, values in self.values.items()}

    def standardise(self, task: str, label: Tensor) -> Tensor:
        """Return (label - mean) / standard deviation; labels of other tasks as they are."""
        if task not in self.values:
            return label
        mean, spread, _, _ = self.values[task]
        return (label - mean) / spread

    def to_label(self, task: str, score: FloatArray) -> FloatArray:
        """Turn standardised predictions into labels within the range seen in training."""
        mean, spread, low, high = self.values[task]
        return np.clip(mean + spread * score, low, high).astype(np.float32)


class TwoTowerModule(DivisibleModule):
    """A user tower and an item tower that give one vector per task.

    Attributes:
        tasks: The tasks that it is trained on.
    """

    tasks: dict[str, Task]

    @property
    def divisible(self) -> bool:
        """Whether its training can be divided among processes, with the same result up to the order of summation."""
        return False

    def start(self, rows: UserRows) -> None:
        """Set what is known of the training rows before the training."""

    def describe(self, rows: UserRows) -> None:
        """Compute what the module reads of every row beside its labels, and note it in the rows."""

    @abstractmethod
    def user_vectors(self, batch: UserBatch) -> Vectors:
        """Return task to (B, d) vectors of the users of a batch in training."""

    def query_vectors(self, batch: UserBatch, items: Vectors) -> Vectors:
        """Return task to (B, d) vectors of anybody, by what the batch holds of them.

        Args:
            batch: The histories and contexts; its users are no numbers of the training.
            items: Task to the items' vectors.
        """
        return self.user_vectors(batch)

    def finish(self, rows: UserRows) -> None:
        """Keep what stands in for users of whom nothing is known."""

    @abstractmethod
    def item_vectors(self) -> Vectors:
        """Return task to (items, d) vectors of all items."""

    def compared_vectors(self) -> Vectors:
        """Return task to (items, d) vectors whose directions say how alike items are: those of the items, no biases."""
        return self.item_vectors()

    def priors(self) -> Vectors:
        """Return task to the (items,) scores that stand in for a user without history; none where vectors say it."""
        return {}

    @abstractmethod
    def losses(self, batch: UserBatch) -> dict[str, Tensor]:
        """Return the named, weighted losses of a batch; those of tasks by the task's name."""

    def expert_utilisation(self, batch: UserBatch) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Return side to task to expert to mean and standard deviation of its gate weight; empty without gates."""
        return {}


class LossSum(NamedTuple):
    """A task's loss, summed over rows.

    Attributes:
        total: The sum.
        rows: What the sum is divided by in training.
        labelled: Whether it is a sum over the rows with a label, instead of over all rows.
    """

    total: Tensor
    rows: Tensor | int
    labelled: bool

    def mean(self, batch: UserBatch) -> Tensor:
        """Return the sum over the number of rows, which counts those of all processes that train together."""
        return self.total / at_least_one(batch.total(self.rows))


def at_least_one(count: Tensor | int) -> Tensor | int:
    """Return a number of rows to divide by."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def count_positives(rows: UserRows, tasks: Iterable[str], items: int) -> Tensor:
    """Return (tasks, items) in how many rows every item is a positive of a task."""
    return torch.stack([torch.bincount(rows.item[rows.labels[name] > 0], minlength=items) for name in tasks])


def log_odds_of_positives(rows: UserRows, tasks: Iterable[str], items: int, negatives: int) -> Tensor:
    """Return (tasks, items) the scores of least loss that are the same for all users, where negatives are drawn.

    That is the logarithm of how often an item is a positive, and half a time more, over how often it is expected to be
    drawn: for cross-entropy, and for BPR, where a constant changes nothing.

    Args:
        rows: The training rows.
        tasks: Names of retrieval tasks.
        items: Number of items.
        negatives: Items drawn per positive, from all that have rows.
    """
    counts = count_positives(rows, tasks, items)
    drawn = negatives * counts.sum(1, keepdim=True).clamp(min=1) / max(len(rows.catalogue), 1)
    return torch.log((counts + 0.5) / drawn)


def own_share(rows: UserRows, settings: Settings) -> Tensor:
    """Return (B, 1) what a user's own score counts beside a prior: n / (n + ``prior_rows``) for n rows of history."""
    counts = rows.counts.to(torch.float32)[:, None]
    return counts / (counts + (settings.prior_rows if isinstance(settings, ShrunkSettings) else 0.0)).clamp(min=1e-9)


def task_loss(
    task: Task,
    user_vectors: Tensor,
    item_vectors: Tensor,
    batch: UserBatch,
    label: Tensor,
    positive_weight: float,
    retrieval_loss: RetrievalLoss = "squared",
    item_gram: Tensor | None = None,
) -> LossSum:
    """Loss of one task on one batch.

    Retrieval: the whole-data squared, softmax or BPR loss over the catalogue, to be divided by the number of rows, so
    that tasks with few positives weigh as their errors do; binary: cross-entropy; regression: squared error of the
    standardised label, both over the rows on which the task asks.

    Args:
        task: The task.
        user_vectors: (B, d).
        item_vectors: (items, d).
        batch: The batch.
        label: (n,) labels, standardised for a regression task; NaN on rows that do not count. The positives of a
            retrieval task are the rows with a label above 0.
        positive_weight: See :func:`losses.whole_data_squared_loss`.
        retrieval_loss: Which loss a retrieval task has.
        item_gram: (d, d) the Gram matrix of the catalogue's vectors, where it is known.
    """
    if task.kind == "retrieval":
        positive = label > 0
        own = batch if bool(positive.all()) else batch.part(positive)
        user, item = own.row_user, own.row_item
        if retrieval_loss == "softmax":
            total = softmax_loss(
                user_vectors, item_vectors, user, item, batch.catalogue, batch.sample_items, own.row_weight
            )
        elif retrieval_loss == "bpr":
            drawn = own.draw_items(1)
            # A drawn item that is a positive of the user is left out.
            other = ~own.observed(user, drawn)
            weight = None if own.row_weight is None else own.row_weight[other]
            total = bpr_loss(user_vectors, item_vectors, user[other], item[other], drawn[other], weight)
        else:
            if item_gram is None:
                item_gram = gram(batch.of_catalogue(item_vectors))
            scores = pair_scores(user_vectors, item_vectors, own.pairs)
            alpha = positive_weight if own.row_weight is None else positive_weight * own.row_weight
            total = whole_data_squared_loss(user_vectors, item_gram, scores, alpha, batch.share)
        return LossSum(total, len(label), labelled=False)
    scores = pair_scores(user_vectors, item_vectors, batch.pairs)
    pointwise = cross_entropy if task.kind == "binary" else squared_error
    total, count = pointwise(label, scores, batch.row_weight)
    return LossSum(total, count, labelled=True)


class NeuralRecommender(Recommender[S]):
    """Trains a :class:`TwoTowerModule` and scores with its vectors.

    The items' vectors are computed once per task, those of the users from the histories that they are asked with, so
    that a list of recommendations is a maximum inner product search.

    Attributes:
        observe: Called in training on the first batch of every epoch with the module, the epoch and the losses.
    """

    predicts = frozenset({"binary", "regression"})
    stochastic = True
    effort = 1.0
    observe: Callable[[TwoTowerModule, int, Mapping[str, Tensor]], None] | None = None

    @abstractmethod
    def build(self, side: SideInformation, scales: LabelScales, generator: torch.Generator) -> TwoTowerModule:
        """Make the untrained module."""

    @abstractmethod
    def training_settings(self) -> TrainingSettings:
        """Return how the module is trained."""

    def fit(self, train_rows: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Train the module."""
        generator = new_generator(seed)
        scales = LabelScales.of(side.read_tasks, train_rows.labels)
        everyone = Histories(train_rows, side.user_features).of(np.arange(side.users))
        rows = as_rows(everyone, side.user_encoder)
        module = self.build(side, scales, generator)
        module.start(rows)
        module.describe(rows)
        before = [parameter.detach().clone() for parameter in module.expert_parameters()]
        observe = None if self.observe is None else partial(self.observe, module)
        name, settings, launcher = type(self).__name__, self.training_settings(), launcher_now()
        divisible = module.divisible and settings.balancing in BALANCED and observe is None
        if launcher is not None and divisible:
            curve = launcher(Training(name, module, rows, settings, generator, list(side.tasks)))
        else:
            curve = train(name, module, module.losses, rows, settings, generator, list(side.tasks), observe)
        with torch.no_grad():
            module.finish(rows)
            # A sample of the users tells how much each expert is used.
            used = module.expert_utilisation(next(rows.blocks(_BLOCK)))
        tables = module.user_tables()
        self._state: State = {
            "weights": {name: value.numpy() for name, value in module.state_dict().items() if name not in tables},
            "scales": scales.state(),
            "catalogue": rows.catalogue.numpy(),
            "parameters": np.array([sum(parameter.numel() for parameter in module.parameters())]),
            "experts_moved": np.array([distance_moved(module.expert_parameters(), before)], np.float32),
            "utilisation": {
                side: {
                    task: {expert: weights.numpy() for expert, weights in experts.items()}
                    for task, experts in tasks.items()
                }
                for side, tasks in used.items()
            },
        }
        self._settle(module, side, scales)
        return curve

    def _settle(self, module: TwoTowerModule, side: SideInformation, scales: LabelScales) -> None:
        """Freeze the module and compute the vectors of the items."""
        self._module = module.eval().requires_grad_(False)
        self._encoder, self._scales = side.user_encoder, scales
        self._kinds = {name: side.tasks[name].kind for name in self.scored_tasks(side.tasks)}
        self._catalogue = torch.from_numpy(array(self._state, "catalogue"))
        with torch.no_grad():
            self._items, self._priors = module.item_vectors(), module.priors()
            self._grams = {
                task: vectors[self._catalogue].T @ vectors[self._catalogue] for task, vectors in self._items.items()
            }
        last = {task: torch.cat([self._items[task], prior[:, None]], dim=1) for task, prior in self._priors.items()}
        self.item_vectors = {**self._items, **last}

    def user_vectors(self, queries: Queries) -> Vectors:
        """Return task to (B, d) vectors of the users of some queries.

        Where the module has priors, the score of a user with n rows of history is (n s + m p) / (n + m), for its own
        score s, the prior p and m ``prior_rows``: p has a coordinate of its own.
        """
        if isinstance(self.settings, HistorySettings):
            queries = queries.weighted(self.settings.recency)
        rows = as_rows(queries, self._encoder, self._catalogue)
        rows.grams = self._grams
        self._module.describe(rows)
        with torch.no_grad():
            vectors = self._module.query_vectors(rows.everyone(), self._items)
        own = own_share(rows, self.settings)
        last = {task: torch.cat([own * vectors[task], 1.0 - own], dim=1) for task in self._priors}
        return {**vectors, **last}

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Multiply vectors; probabilities for binary tasks, labels in their own units for regression tasks."""
        scores = {}
        vectors = self.user_vectors(queries)
        for task, kind in self._kinds.items():
            product = vectors[task].numpy() @ self.item_vectors[task].numpy().T
            if kind == "binary":
                product = expit(product)
            elif kind == "regression":
                product = self._scales.to_label(task, product)
            scores[task] = product
        return scores

    def similarities(self, item: int, task: str) -> FloatArray | None:
        """Return the cosines of the items' vectors."""
        with torch.no_grad():
            vectors = self._module.compared_vectors()
        return cosines(vectors[task].numpy(), item) if task in vectors else None

    def inner_products(self, queries: Queries) -> InnerProducts:
        """Return the vectors; their products are the scores before the link of a binary or regression task."""
        users = self.user_vectors(queries)
        return {name: (users[name].numpy(), self.item_vectors[name].numpy()) for name in self._kinds}

    @property
    def fitted_module(self) -> TwoTowerModule:
        """The fitted module, for whoever makes something else of its weights."""
        return self._module

    def state(self) -> State:
        """Return the module's weights without those that belong to users, the scales, and the use of experts."""
        return dict(self._state)

    def restore(self, state: State, side: SideInformation) -> None:
        """Take the weights back."""
        self._state = dict(state)
        scales = LabelScales.restored(branch(state, "scales"))
        module = self.build(side.without_users(), scales, new_generator(0))
        weights = {name: torch.from_numpy(array(branch(state, "weights"), name)) for name in branch(state, "weights")}
        empty = {name: value for name, value in module.state_dict().items() if name in module.user_tables()}
        module.load_state_dict(weights | empty)
        self._settle(module, side, scales)

    def parameter_count(self) -> int:
        """Return the number of trained weights, those of the users included."""
        return int(array(self._state, "parameters")[0])


def distance_moved(parameters: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """Return how far parameters are from what they were, over the length of that; 0 without parameters."""
    moved = sum(float((own.detach() - old).square().sum()) for own, old in zip(parameters, before, strict=True))
    return (moved / max(sum(float(old.square().sum()) for old in before), 1e-30)) ** 0.5


def as_rows(queries: Queries, encoder: UserEncoder | None, catalogue: Tensor | None = None) -> UserRows:
    """Return histories and contexts as what modules read.

    Args:
        queries: The queries, whose places become the numbers of the users.
        encoder: A user embedding model that is not trained any more, whose vectors the module reads, or None.
        catalogue: See :class:`UserRows`.
    """
    frozen = None if encoder is None else torch.from_numpy(encoder.encode(queries))
    return UserRows(queries.history, len(queries), DesignMatrix(queries.context), frozen, catalogue)
