"""The interface of everything that recommends: one for neural models and baselines alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation
from multitask_recommender.data.queries import Queries
from multitask_recommender.data.recency import Recency
from multitask_recommender.data.tasks import Task, TaskKind
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models import state as states
from multitask_recommender.models.state import State

S = TypeVar("S", bound=Settings)
ASKED_WITH = frozenset(
    {"recency", "prior_rows", "wide_weight", "wide_labels_share", "revisit_weight", "next_items_weight"}
)
"""Settings that are read when a model is asked, and not in its training."""


InnerProducts = dict[str, tuple[FloatArray, FloatArray]]
PENALTY, USER_EMBEDDING, CALIBRATOR = "(penalty)", "(user embedding)", "(calibrator)"
"""Names of losses beside those of tasks, which are never called something in parentheses."""


@dataclass
class LearningCurve:
    """Loss per epoch.

    Attributes:
        epochs: For every epoch, loss name to mean loss per row; what is in parentheses is no task.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Knowledge:
    """What a model's scores rest on. What it declares not to read changes no score.

    Attributes:
        history: How the history of a user, known from training or not, is read; None: not at all.
        cold_users: What stands in for a user of whom nothing is known.
        cold_items: What stands in for an item without training rows.
        user_features: Whether the context of a query is read.
        item_features: Whether the features of the items are read.
    """

    history: str | None
    cold_users: str
    cold_items: str
    user_features: bool = False
    item_features: bool = False


class TimeEffect(NamedTuple):
    """What the moment adds to predictions.

    Attributes:
        values: (n,) what it adds to n predictions.
        low: The smallest prediction.
        high: The largest prediction.
    """

    values: FloatArray
    low: float
    high: float


class Part(NamedTuple):
    """A recommender inside another one that is fitted apart from the rest.

    Attributes:
        recommender: It, not fitted.
        tasks: Names of the tasks whose rows it is fitted on.
    """

    recommender: Recommender
    tasks: list[str]


class FittedPart(NamedTuple):
    """What came of a part.

    Attributes:
        state: What it learnt.
        epochs: Its learning curve.
        seconds: CPU seconds of its fit.
        peak_mb: Largest resident memory of the process meanwhile, in MB.
    """

    state: State
    epochs: list[dict[str, float]]
    seconds: float
    peak_mb: float


class HistorySettings(Settings):
    """Parameters of a model that reads histories.

    Attributes:
        recency: How much more the latest rows of a history count when the model is asked.
    """

    recency: Recency = Recency()


class ShrunkSettings(HistorySettings):
    """Parameters of a model whose rankings rest on the history alone, and say little where it is short.

    Attributes:
        prior_rows: How many rows of a history popularity counts as much as, in a ranking; 0: it stands in where there
            is no history, and counts nothing elsewhere. Towers read it for retrieval tasks whose negatives are drawn:
            the biases of the others know what is popular.
    """

    prior_rows: float = Field(default=0.0, ge=0, le=1e9)


H = TypeVar("H", bound=HistorySettings)


class Recommender(ABC, Generic[S]):
    """A model that scores items for queries, per task.

    Attributes:
        predicts: Kinds of tasks whose scores are predictions of the label (a number, a probability); scores of other
            tasks order items and mean nothing else.
        ranks: Kinds of tasks for which the model gives scores at all.
        stochastic: Whether the seed changes the result.
        by_relevance: Whether a task is nothing to it but its relevant rows, so that tasks with the same ones are alike.
        solved: Names of settings that a fitted model can change without being trained again, see :meth:`ask_with`.
        effort: About how long a fit takes, next to one of the shared-bottom model. It tells a first run its time left,
            and which of several fits begin first.
        knowledge: What its scores rest on.
    """

    predicts: frozenset[TaskKind] = frozenset()
    ranks: frozenset[TaskKind] = frozenset({"retrieval", "binary", "regression"})
    stochastic: bool = False
    by_relevance: bool = False
    solved: frozenset[str] = frozenset()
    effort: float = 0.2
    knowledge: Knowledge

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

    def slow_parts(self, side: SideInformation) -> dict[str, Part]:
        """Return parts whose fit takes long and whose state is small, so that models that have it in common share it.

        Returns:
            By a name that is the same for parts that become the same from the same rows and seed.
        """
        return {}

    def take_parts(self, parts: Mapping[str, FittedPart]) -> None:
        """Take fitted parts by the names of :meth:`slow_parts`; the next fit makes the others itself."""
        return

    def ask_with(self, settings: S) -> None:
        """Take settings that differ from those of the training in those of ``ASKED_WITH`` or ``solved`` alone.

        What depends on the latter is solved anew, from the rows of the last :meth:`fit`.
        """
        self.settings = settings

    @abstractmethod
    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Score all items for some queries. The scores of a query depend on that query alone.

        Args:
            queries: B queries, with the labels of the model's tasks in their histories.

        Returns:
            Task to (B, items) scores.
        """

    def time_effects(
        self, queries: Queries, place: IntArray, item: IntArray, time: NDArray[np.float64]
    ) -> dict[str, TimeEffect]:
        """Say what the moment adds to the scores of pairs; nothing for a model that does not look at it.

        Args:
            queries: B queries.
            place: (n,) place of each pair's query.
            item: (n,) its item.
            time: (n,) seconds at which it is asked about.
        """
        return {}

    def predict(
        self,
        queries: Queries,
        scores: dict[str, FloatArray],
        place: IntArray,
        item: IntArray,
        time: NDArray[np.float64] | None,
    ) -> dict[str, FloatArray]:
        """Return the scores of pairs at their moment.

        Args:
            queries: B queries.
            scores: Result of :meth:`score`.
            place: (n,) place of each pair's query.
            item: (n,) its item.
            time: (n,) seconds at which it is asked about; None: not known.

        Returns:
            Task to (n,).
        """
        found = {task: values[place, item] for task, values in scores.items()}
        for task, effect in (self.time_effects(queries, place, item, time) if time is not None else {}).items():
            found[task] = np.clip(found[task] + effect.values, effect.low, effect.high)
        return found

    def ranking_scores(self, scores: dict[str, FloatArray]) -> dict[str, FloatArray]:
        """Turn the result of :meth:`score` into what orders the items; the same, unless a model says otherwise.

        They differ where a prediction is about the pairs on which a task asks, and the order about all items.
        """
        return scores

    def orders(self, queries: Queries, tasks: Sequence[str]) -> dict[str, FloatArray]:
        """Return what orders the items for some tasks alone; a model may leave out what that does not need.

        Returns:
            Task to (B, items), as :meth:`ranking_scores` gives them for these tasks.
        """
        order = self.ranking_scores(self.score(queries))
        return {task: order[task] for task in tasks}

    @abstractmethod
    def state(self) -> State:
        """Return what the model learnt. No history is part of it."""

    @abstractmethod
    def restore(self, state: State, side: SideInformation) -> None:
        """Take a state back; afterwards ``score`` gives the same numbers.

        Args:
            state: Result of :meth:`state`.
            side: The side information that the model was fitted with.
        """

    def similarities(self, item: int, task: str) -> FloatArray | None:
        """Return (items,) how alike items are to one, by what was learnt for a task; None: the model compares none."""
        return None

    def inner_products(self, queries: Queries) -> InnerProducts:
        """Return vectors whose inner products order the items as the scores do, for use in an index of vectors.

        Returns:
            Task to the (B, d) vectors of the queries and the (items, d) vectors of the items; without the tasks whose
            scores are no such products.
        """
        return {}

    def parameter_count(self) -> int:
        """Return how many numbers the model learnt."""
        return states.size(self.state())


def part_key(recommender: Recommender, tasks: list[str]) -> str:
    """Return a name that tells what a part becomes from given rows and a seed."""
    settings = recommender.settings.model_dump_json(exclude=set(ASKED_WITH))
    return f"{type(recommender).__name__} {settings} {tasks}"


def popularity(train: Interactions, task: str, items: int) -> FloatArray:
    """Return (items,) the share of the training rows' relevant pairs of a task that every item has."""
    counts = np.bincount(train.item[train.relevant[task]], minlength=items)
    return (counts / max(counts.sum(), 1)).astype(np.float32)


def cosines(vectors: FloatArray, item: int) -> FloatArray:
    """Return (items,) the cosines of (items, d) vectors with that of an item; 0 where one of the two is 0."""
    length = np.linalg.norm(vectors, axis=1)
    return (vectors @ vectors[item]) / np.where(length > 0, length * max(length[item], 1e-30), 1.0)


def or_popularity(scores: FloatArray, popularity: FloatArray) -> FloatArray:
    """Replace, in place, the rows of (B, items) scores that are 0 throughout: nothing that the model knows is known."""
    scores[~scores.any(axis=1)] = popularity
    return scores
