"""One recommender made of an independent one per task."""

from __future__ import annotations

from collections.abc import Callable

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import Arrays, LearningCurve, Recommender


class PerTask(Recommender[Settings]):
    """Fits a recommender for every task apart, each with settings of its own: no task learns from another.

    Args:
        make: Makes the recommender from settings.
        settings: Settings by task.
    """

    def __init__(self, make: Callable[[Settings], Recommender], settings: dict[str, Settings]) -> None:
        self._parts: dict[str, Recommender] = {task: make(own) for task, own in settings.items()}

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Fit every task's recommender on that task's labels alone."""
        curve = LearningCurve()
        for task, part in self._parts.items():
            own = part.fit(train.with_tasks([task]), side.with_tasks([task]), seed)
            for epoch, losses in enumerate(own.epochs):
                if epoch == len(curve.epochs):
                    curve.epochs.append({})
                curve.epochs[epoch] |= {
                    name if name in side.tasks else f"{task}.{name}": loss for name, loss in losses.items()
                }
        return curve

    def score(self, users: IntArray) -> dict[str, FloatArray]:
        """Score every task by its own recommender."""
        return {name: score for part in self._parts.values() for name, score in part.score(users).items()}

    def state(self) -> Arrays:
        """Return all arrays, named by task."""
        return {f"{task}/{name}": array for task, part in self._parts.items() for name, array in part.state().items()}

    def restore(self, state: Arrays, side: SideInformation) -> None:
        """Take all arrays back."""
        for task, part in self._parts.items():
            prefix = f"{task}/"
            own = {name.removeprefix(prefix): a for name, a in state.items() if name.startswith(prefix)}
            part.restore(own, side.with_tasks([task]))

    def parameter_count(self) -> int:
        """Return the sum over the tasks."""
        return sum(part.parameter_count() for part in self._parts.values())
