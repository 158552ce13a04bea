"""Wide and deep: the scores of one recommender blended with those of others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation
from multitask_recommender.data.queries import Queries
from multitask_recommender.data.tasks import funnel_chain
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import (
    FittedPart,
    InnerProducts,
    LearningCurve,
    Part,
    Recommender,
    S,
    TimeEffect,
    part_key,
)
from multitask_recommender.models.state import State, branch


class WidePart(NamedTuple):
    """A recommender beside the deep one.

    Attributes:
        recommender: It.
        tasks: Names of the tasks that it learns from; it changes the scores of those that the deep one has.
        weight: What its scores are multiplied by.
        mixed: Whether they replace that share of the deep scores, instead of being added to them.
        slow: Whether its fit takes long and its state is small, so that it is worth being shared.
    """

    recommender: Recommender
    tasks: list[str]
    weight: float
    mixed: bool
    slow: bool = False

    @property
    def key(self) -> str:
        """See :func:`part_key`."""
        return part_key(self.recommender, self.tasks)


class _Asked(NamedTuple):
    """The last answer of a part.

    Attributes:
        queries: What was asked.
        settings: With which settings.
        scores: Task to (B, items).
    """

    queries: Queries
    settings: Settings
    scores: dict[str, FloatArray]


class Blend(Recommender[S]):
    """s = s_deep + w s_wide, or (1 - w) s_deep + w s_wide for predictions, with parts fitted apart from each other.

    The form of a wide and deep model (Cheng et al., DLRS 2016), with wide parts that are solved, not trained. Which
    recommenders are blended, subclasses say; any can be.

    Attributes:
        deep: The recommender whose scores are blended with others.
    """

    predicts = frozenset({"binary", "regression"})
    stochastic = True

    def __init__(self, settings: S) -> None:
        super().__init__(settings)
        self._asked: dict[str, _Asked] = {}
        self._taken: Mapping[str, FittedPart] = {}
        self._solve: Callable[[WidePart], None] | None = None

    @abstractmethod
    def make_deep(self) -> Recommender:
        """Make the deep recommender."""

    @abstractmethod
    def make_wide(self, side: SideInformation) -> dict[str, WidePart]:
        """Make the wide parts for the tasks of a study, by name."""

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Fit all parts; the learning curve is that of the deep one."""
        taken, self._taken = self._taken, {}

        def solve(part: WidePart) -> None:
            own = side.with_tasks(part.tasks)
            if part.slow and part.key in taken:
                part.recommender.restore(taken[part.key].state, own)
            else:
                part.recommender.fit(train.with_tasks(part.tasks), own, seed)

        self._begin(side)
        curve = self.deep.fit(train, side, seed)
        for part in self._wide.values():
            solve(part)
        self._solve = solve
        return curve

    def _begin(self, side: SideInformation) -> None:
        self.deep, self._side, self._wide, self._asked = self.make_deep(), side, self.make_wide(side), {}
        self._fitted = {part.key: part.recommender for part in self._wide.values()}

    def slow_parts(self, side: SideInformation) -> dict[str, Part]:
        """Return the slow ones of the wide parts."""
        return {part.key: Part(part.recommender, part.tasks) for part in self.make_wide(side).values() if part.slow}

    def take_parts(self, parts: Mapping[str, FittedPart]) -> None:
        """Keep them for the next fit."""
        self._taken = parts

    def ask_with(self, settings: S) -> None:
        """Let all parts be asked with their own settings; one that is solved otherwise with these is solved anew."""
        self.settings = settings
        self.deep.ask_with(self.make_deep().settings)
        for name, part in self.make_wide(self._side).items():
            if part.key not in self._fitted:
                assert self._solve is not None, "what was stored has no rows to learn from"
                self._solve(part)
                self._fitted[part.key] = part.recommender
            fitted = self._fitted[part.key]
            fitted.ask_with(part.recommender.settings)
            self._wide[name] = part._replace(recommender=fitted)

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Blend the scores."""
        return self._blended(queries, self._wide)

    def orders(self, queries: Queries, tasks: Sequence[str]) -> dict[str, FloatArray]:
        """Ask those parts alone that change the scores of the tasks, or of the steps that lead to them."""
        needed = {step for task in tasks for step in funnel_chain(self._side.tasks, task)}
        parts = {name: part for name, part in self._wide.items() if not needed.isdisjoint(part.tasks)}
        order = self.ranking_scores(self._blended(queries, parts))
        return {task: order[task] for task in tasks}

    def _blended(self, queries: Queries, parts: Mapping[str, WidePart]) -> dict[str, FloatArray]:
        scores = {task: own.copy() for task, own in self._scores("", self.deep, queries, None).items()}
        for name, part in parts.items():
            for task, wide in self._scores(name, part.recommender, queries, part.tasks).items():
                if task not in scores:
                    continue
                weight = np.float32(part.weight)
                if part.mixed:
                    scores[task] += weight * (wide - scores[task])
                else:
                    scores[task] += weight * wide
        return scores

    def _scores(
        self, name: str, recommender: Recommender, queries: Queries, tasks: list[str] | None
    ) -> dict[str, FloatArray]:
        """Ask a part, unless it was just asked the same, as when cross-validation changes weights of parts alone."""
        last = self._asked.get(name)
        if last is None or last.queries is not queries or last.settings != recommender.settings:
            found = recommender.score(queries if tasks is None else queries.with_tasks(tasks))
            last = self._asked[name] = _Asked(queries, recommender.settings, found)
        return last.scores

    def time_effects(
        self, queries: Queries, place: IntArray, item: IntArray, time: NDArray[np.float64]
    ) -> dict[str, TimeEffect]:
        """Return those of the parts, as far as their scores count."""
        found = self.deep.time_effects(queries, place, item, time)
        for part in self._wide.values():
            effects = part.recommender.time_effects(queries.with_tasks(part.tasks), place, item, time)
            for task, effect in effects.items():
                values = np.float32(part.weight) * effect.values
                if task in found:
                    kept = 1.0 - part.weight if part.mixed else 1.0
                    values = values + np.float32(kept) * found[task].values
                found[task] = effect._replace(values=values)
        return found

    def ranking_scores(self, scores: dict[str, FloatArray]) -> dict[str, FloatArray]:
        """Order the items as the deep recommender does."""
        return self.deep.ranking_scores(scores)

    def similarities(self, item: int, task: str) -> FloatArray | None:
        """Compare items as the deep recommender does."""
        return self.deep.similarities(item, task)

    def inner_products(self, queries: Queries) -> InnerProducts:
        """Return those of the deep recommender for the tasks that no part changes."""
        changed = {task for part in self._wide.values() for task in part.tasks}
        return {task: vectors for task, vectors in self.deep.inner_products(queries).items() if task not in changed}

    def state(self) -> State:
        """Return the states of all parts."""
        return {"deep": self.deep.state(), **{name: part.recommender.state() for name, part in self._wide.items()}}

    def restore(self, state: State, side: SideInformation) -> None:
        """Take the states of all parts back."""
        self._begin(side)
        self.deep.restore(branch(state, "deep"), side)
        for name, part in self._wide.items():
            part.recommender.restore(branch(state, name), side.with_tasks(part.tasks))

    def parameter_count(self) -> int:
        """Return the sum over the parts."""
        return self.deep.parameter_count() + sum(part.recommender.parameter_count() for part in self._wide.values())
