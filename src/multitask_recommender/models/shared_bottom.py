"""Shared-bottom multi-task towers; with one task, the single-task control."""

from __future__ import annotations

from typing import ClassVar

from torch import Generator, Tensor, nn

from multitask_recommender.models.experts import Experts, identity_heads
from multitask_recommender.models.multi_task import MultiTaskRecommender, MultiTaskSettings, Tower
from multitask_recommender.models.two_tower import Vectors
from multitask_recommender.tasks import Task, TaskKind


class SharedBottomTower(Tower):
    """t_k = (x + x E) H_k: one map for all tasks, one head per task.

    Source: Caruana, Multitask Learning, Machine Learning 1997 (hard parameter sharing).

    Args:
        tasks: The tasks.
        dimension: D, length of the shared and of the task vectors.
        generator: Source of the initial weights.
    """

    def __init__(self, tasks: dict[str, Task], dimension: int, generator: Generator) -> None:
        super().__init__()
        self.width = dimension
        self.bottom = Experts(1, dimension, generator)
        self.heads = identity_heads(tasks, dimension)

    def forward(self, shared: Tensor) -> Vectors:
        """Map (n, D) shared vectors to task to (n, D)."""
        bottom = self.bottom(shared)[0]
        return {name: bottom @ head for name, head in self.heads.items()}

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return the bottom's map."""
        return list(self.bottom.parameters())


class SharedBottom(MultiTaskRecommender[MultiTaskSettings]):
    """Multi-task shared-bottom; the single-task control when it is given one task."""

    def tower(self, tasks: dict[str, Task], generator: Generator) -> Tower:
        """Make a tower."""
        return SharedBottomTower(tasks, self.settings.dimension, generator)


class PointwiseSharedBottom(SharedBottom):
    """The same for tasks with a label per pair alone: per task and without features it is a denoising SVD++.

    Its encoder is that of SVD++ (Koren, KDD 2008, equation 15) with the explicit part of the history as well, trained
    with a share of the history hidden.
    """

    ranks: ClassVar[frozenset[TaskKind]] = frozenset({"binary", "regression"})
