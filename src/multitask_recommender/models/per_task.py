"""One recommender made of an independent one per task."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation
from multitask_recommender.data.queries import Queries
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import (
    FittedPart,
    InnerProducts,
    LearningCurve,
    Part,
    Recommender,
    TimeEffect,
)
from multitask_recommender.models.state import State, branch


class PerTask(Recommender[Settings]):
    """Fits a recommender for every task apart, each with settings of its own: no task learns from another.

    Args:
        recommender: The class of the recommenders.
        settings: Settings by task.
        equal_inputs: Whether the histories carry the labels of all tasks, as those of a joint model do; what is learnt
            is one task all the same.
    """

    def __init__(
        self, recommender: type[Recommender], settings: dict[str, Settings], equal_inputs: bool = False
    ) -> None:
        self._equal_inputs = equal_inputs
        self.parts: dict[str, Recommender] = {task: recommender(own) for task, own in settings.items()}
        self.predicts, self.ranks = recommender.predicts, recommender.ranks
        self.stochastic, self.knowledge = recommender.stochastic, recommender.knowledge

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Fit every task's recommender to that task alone."""
        curve = LearningCurve()
        for task, part in self.parts.items():
            rows = train if self._equal_inputs else train.with_tasks([task])
            own = part.fit(rows, self._side_of(side, task), seed)
            for epoch, losses in enumerate(own.epochs):
                if epoch == len(curve.epochs):
                    curve.epochs.append({})
                curve.epochs[epoch] |= {
                    name if name in side.tasks else f"({name.strip('()')} of {task})": loss
                    for name, loss in losses.items()
                }
        return curve

    def slow_parts(self, side: SideInformation) -> dict[str, Part]:
        """Return those of every task's own recommender."""
        return {
            name: slow
            for task, part in self.parts.items()
            for name, slow in part.slow_parts(self._side_of(side, task)).items()
        }

    def take_parts(self, parts: Mapping[str, FittedPart]) -> None:
        """Hand them on."""
        for part in self.parts.values():
            part.take_parts(parts)

    def ask_with(self, settings: Settings) -> None:
        """Let every task's recommender be asked with the same settings."""
        for part in self.parts.values():
            part.ask_with(settings)

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Score every task by its own recommender, which sees that task's labels alone, or with equal inputs all."""
        return {
            name: score
            for task, part in self.parts.items()
            for name, score in part.score(self._queries_of(queries, task)).items()
        }

    def _side_of(self, side: SideInformation, task: str) -> SideInformation:
        return side.with_tasks([task], self._equal_inputs)

    def _queries_of(self, queries: Queries, task: str) -> Queries:
        return queries if self._equal_inputs else queries.with_tasks([task])

    def time_effects(
        self, queries: Queries, place: IntArray, item: IntArray, time: NDArray[np.float64]
    ) -> dict[str, TimeEffect]:
        """Return those of every task's own recommender."""
        return {
            name: effect
            for task, part in self.parts.items()
            for name, effect in part.time_effects(self._queries_of(queries, task), place, item, time).items()
        }

    def similarities(self, item: int, task: str) -> FloatArray | None:
        """Compare items by the task's own recommender."""
        return self.parts[task].similarities(item, task) if task in self.parts else None

    def inner_products(self, queries: Queries) -> InnerProducts:
        """Return those of every task's own recommender."""
        return {
            name: vectors
            for task, part in self.parts.items()
            for name, vectors in part.inner_products(self._queries_of(queries, task)).items()
        }

    def state(self) -> State:
        """Return the states of the tasks."""
        return {task: part.state() for task, part in self.parts.items()}

    def restore(self, state: State, side: SideInformation) -> None:
        """Take the states of the tasks back."""
        for task, part in self.parts.items():
            part.restore(branch(state, task), self._side_of(side, task))

    def parameter_count(self) -> int:
        """Return the sum over the tasks."""
        return sum(part.parameter_count() for part in self.parts.values())
