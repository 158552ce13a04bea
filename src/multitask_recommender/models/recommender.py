"""The interface of everything that recommends: one for neural models and baselines alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import numpy as np

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation
from multitask_recommender.data.tasks import Task, TaskKind
from multitask_recommender.foundation.settings_base import Settings

S = TypeVar("S", bound=Settings)
Arrays = dict[str, np.ndarray]


@dataclass
class LearningCurve:
    """Loss per epoch.

    Attributes:
        epochs: For every epoch, loss name to mean loss per row.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)


class Recommender(ABC, Generic[S]):
    """A model that scores items for users, per task.

    Attributes:
        predicts: Kinds of tasks whose scores are predictions of the label (a number, a probability); scores of other
            tasks order items and mean nothing else.
        ranks: Kinds of tasks for which the model gives scores at all.
        stochastic: Whether the seed changes the result.
    """

    predicts: ClassVar[frozenset[TaskKind]] = frozenset()
    ranks: ClassVar[frozenset[TaskKind]] = frozenset({"retrieval", "binary", "regression"})
    stochastic: ClassVar[bool] = False

    def __init__(self, settings: S) -> None:
        self.settings = settings

    def scored_tasks(self, tasks: dict[str, Task]) -> list[str]:
        """Return the names of the tasks for which the model gives scores."""
        return [name for name, task in tasks.items() if task.kind in self.ranks]

    @abstractmethod
    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Learn from the training rows.

        Args:
            train: Training rows, sorted by user.
            side: Tasks, features and sizes.
            seed: Seed of everything random.

        Returns:
            The learning curve; without epochs for models in closed form.
        """

    @abstractmethod
    def score(self, users: IntArray) -> dict[str, FloatArray]:
        """Score all items for some users.

        Args:
            users: (B,) numbers of users.

        Returns:
            Task to (B, items) scores.
        """

    def ranking_scores(self, scores: dict[str, FloatArray]) -> dict[str, FloatArray]:
        """Turn the result of :meth:`score` into what orders the items; the same, unless a model says otherwise.

        They differ where a prediction is about the pairs on which a task asks, and the order about all items.
        """
        return scores

    @abstractmethod
    def state(self) -> Arrays:
        """Return the learnt arrays by name."""

    @abstractmethod
    def restore(self, state: Arrays, side: SideInformation) -> None:
        """Take learnt arrays back; afterwards ``score`` gives the same numbers.

        Args:
            state: Result of :meth:`state`.
            side: The side information that the model was fitted with.
        """

    def parameter_count(self) -> int:
        """Return how many numbers the model learnt."""
        return int(sum(array.size for array in self.state().values()))
