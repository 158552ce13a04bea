"""What all neural recommenders share: task scores are inner products of a user's and an item's vectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation
from multitask_recommender.data.tasks import Task, TaskKind
from multitask_recommender.models.recommender import Arrays, LearningCurve, Recommender, S
from multitask_recommender.models.training.loop import (
    TrainableModule,
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
from multitask_recommender.models.training.sparse_products import Pairs, pair_scores

Vectors = dict[str, Tensor]
_BLOCK = 1024


class LabelScales:
    """Mean, standard deviation and range of every regression task's training labels.

    Models predict standardised labels, so that one penalty fits all scales; predictions are brought back and clipped
    to the range seen in training.
    """

    def __init__(self, tasks: dict[str, Task], labels: dict[str, FloatArray]) -> None:
        self.values: dict[str, tuple[float, float, float, float]] = {}
        for name, task in tasks.items():
            if task.kind == "regression":
                label = labels[name].astype(np.float64)
                spread = float(np.nanstd(label))
                self.values[name] = (
                    float(np.nanmean(label)),
                    spread if spread > 0 else 1.0,
                    float(np.nanmin(label)),
                    float(np.nanmax(label)),
                )

    def standardise(self, task: str, label: Tensor) -> Tensor:
        """Return (label - mean) / standard deviation."""
        mean, spread, _, _ = self.values[task]
        return (label - mean) / spread


class TwoTowerModule(TrainableModule):
    """A user tower and an item tower that give one vector per task.

    Attributes:
        tasks: The tasks that it is trained on.
    """

    tasks: dict[str, Task]

    @abstractmethod
    def user_vectors(self, batch: UserBatch) -> Vectors:
        """Return task to (B, d) vectors of the batch's users."""

    @abstractmethod
    def item_vectors(self) -> Vectors:
        """Return task to (items, d) vectors of all items."""

    @abstractmethod
    def losses(self, batch: UserBatch) -> dict[str, Tensor]:
        """Return the named, weighted losses of a batch; those of tasks by the task's name."""

    def expert_utilisation(self, batch: UserBatch) -> dict[str, Tensor]:
        """Return ``<side>/<task>/<expert>`` to its mean gate weight; empty for a module without gates."""
        return {}


def task_loss(
    task: Task,
    user_vectors: Tensor,
    item_vectors: Tensor,
    batch: UserBatch,
    label: Tensor,
    positive_weight: float,
    retrieval_loss: RetrievalLoss = "squared",
) -> Tensor:
    """Loss of one task on one batch.

    Retrieval: the whole-data squared, softmax or BPR loss over the catalogue, divided by the number of rows, so that
    tasks with few positives weigh as their errors do; binary: mean cross-entropy; regression: mean squared error of
    the standardised label, both over the rows on which the task asks.

    Args:
        task: The task.
        user_vectors: (B, d).
        item_vectors: (items, d).
        batch: The batch.
        label: (n,) labels, standardised for a regression task; NaN on rows that do not count.
        positive_weight: See :func:`losses.whole_data_squared_loss`.
        retrieval_loss: Which loss a retrieval task has.
    """
    if task.kind == "retrieval":
        user, item = batch.row_user, batch.row_item
        positive = ~torch.isnan(label)
        every_row = bool(positive.all())
        if not every_row:
            user, item = user[positive], item[positive]
        if retrieval_loss == "softmax":
            total = softmax_loss(user_vectors, item_vectors, user, item, batch.catalogue, batch.generator)
        elif retrieval_loss == "bpr":
            total = bpr_loss(user_vectors, item_vectors, user, item, batch.catalogue, batch.generator)
        else:
            pairs = batch.pairs if every_row else Pairs.of(user, item, len(batch.users))
            scores = pair_scores(user_vectors, item_vectors, pairs)
            total = whole_data_squared_loss(user_vectors, batch.of_catalogue(item_vectors), scores, positive_weight)
        return total / max(len(label), 1)
    scores = pair_scores(user_vectors, item_vectors, batch.pairs)
    return cross_entropy(label, scores) if task.kind == "binary" else squared_error(label, scores)


class NeuralRecommender(Recommender[S]):
    """Trains a :class:`TwoTowerModule` and scores with its vectors.

    After training, the vectors of all users and items are computed once per task, so that scoring is one matrix
    product and a list of recommendations is a maximum inner product search.

    Attributes:
        observe: Called in training on the first batch of every epoch with the module, the epoch and the losses.
    """

    predicts: ClassVar[frozenset[TaskKind]] = frozenset({"binary", "regression"})
    stochastic: ClassVar[bool] = True
    observe: Callable[[TwoTowerModule, int, Mapping[str, Tensor]], None] | None = None

    @abstractmethod
    def build(
        self, train_rows: Interactions, side: SideInformation, scales: LabelScales, generator: torch.Generator
    ) -> TwoTowerModule:
        """Make the untrained module."""

    @abstractmethod
    def training_settings(self) -> TrainingSettings:
        """Return how the module is trained."""

    def fit(self, train_rows: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Train the module and compute the vectors of all users and items."""
        generator = new_generator(seed)
        scales = LabelScales(side.tasks, train_rows.labels)
        rows = UserRows(train_rows, side.users)
        module = self.build(train_rows, side, scales, generator)
        observe = None if self.observe is None else partial(self.observe, module)
        curve = train(
            type(self).__name__,
            module,
            module.losses,
            rows,
            self.training_settings(),
            generator,
            list(side.tasks),
            observe,
        )
        with torch.no_grad():
            items = module.item_vectors()
            blocks = [module.user_vectors(batch) for batch in rows.blocks(_BLOCK, generator)]
            # A sample of the users tells how much each expert is used.
            utilisation = module.expert_utilisation(next(iter(rows.blocks(_BLOCK, generator))))
        state: Arrays = {f"weights.{name}": value.numpy() for name, value in module.state_dict().items()}
        state |= {f"utilisation/{name}": mean.numpy() for name, mean in utilisation.items()}
        for task in side.tasks:
            state[f"user.{task}"] = torch.cat([block[task] for block in blocks]).numpy()
            state[f"item.{task}"] = items[task].numpy()
            if task in scales.values:
                state[f"scale.{task}"] = np.array(scales.values[task], dtype=np.float64)
        self.restore(state, side)
        return curve

    def score(self, users: IntArray) -> dict[str, FloatArray]:
        """Multiply vectors; probabilities for binary tasks, labels in their own units for regression tasks."""
        scores = {}
        for task, kind in self._kinds.items():
            product = self._state[f"user.{task}"][users] @ self._state[f"item.{task}"].T
            if kind == "binary":
                product = expit(product)
            elif kind == "regression":
                mean, spread, low, high = self._state[f"scale.{task}"]
                product = np.clip(mean + spread * product, low, high).astype(np.float32)
            scores[task] = product
        return scores

    def state(self) -> Arrays:
        """Return the module's weights, and the users' and items' vectors per task."""
        return dict(self._state)

    def restore(self, state: Arrays, side: SideInformation) -> None:
        """Take weights and vectors back."""
        self._state = dict(state)
        self._kinds = {name: task.kind for name, task in side.tasks.items()}

    def parameter_count(self) -> int:
        """Return the number of trained weights."""
        return int(sum(a.size for name, a in self._state.items() if name.startswith("weights.")))
