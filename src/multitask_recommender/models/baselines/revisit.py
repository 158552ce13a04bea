"""Revisits: what was seen and not yet bought, by how often such a visit ends in a purchase."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy import sparse

from multitask_recommender.data.interactions import BoolArray, FloatArray, Interactions, SideInformation
from multitask_recommender.data.queries import Queries
from multitask_recommender.data.tasks import Task, funnel_chain
from multitask_recommender.models.recommender import (
    HistorySettings,
    Knowledge,
    LearningCurve,
    Recommender,
    popularity,
)
from multitask_recommender.models.state import State, array, branch


class RevisitSettings(HistorySettings):
    """Parameters of the revisit baseline.

    Attributes:
        item_smoothing: How many visits at the mean rate an item's own visits are joined by.
        user_smoothing: The same for a user's.
    """

    item_smoothing: float = Field(default=10.0, gt=0, le=1e9)
    user_smoothing: float = Field(default=20.0, gt=0, le=1e9)


def visits(rows: Interactions, tasks: dict[str, Task], name: str) -> tuple[FloatArray, BoolArray]:
    """Say how far the pairs got in the funnel of a task.

    Args:
        rows: Pairs.
        tasks: The tasks by name.
        name: The task.

    Returns:
        (rows,) number of the furthest step before the task that the pair is positive in, from 0; NaN for none. And
        (rows,), whether it is positive in the task itself.
    """
    reached = np.full(len(rows), np.nan, np.float32)
    for step, before in enumerate(funnel_chain(tasks, name)[:-1]):
        reached[rows.relevant[before]] = step
    return reached, rows.relevant[name]


class Revisit(Recommender[RevisitSettings]):
    """Ranks the items that a user has met in an earlier step of the funnel by the rate at which that ends in this one.

    r_i,k = (b_i,k + s r_k) / (n_i,k + s) for item i, where n counts the pairs that got as far as step k, b those of
    them that are positive in the task as well, r_k is the rate of step k over all items and s the smoothing; the user's
    rate r_u is that of the history over what the items would have it be, smoothed in the same way. An item that was met
    has the score 1 + w r_i,k r_u, with w the recency of the visit; behind them stand the other items by popularity,
    between 0 and 1. The rule is one of practice: in public shop logs most purchases are of items already viewed. Rates
    are smoothed as in empirical Bayes with a beta prior of the mean rate (Gelman et al., Bayesian Data Analysis, 2.4).

    A task without a step before it has no visits, and its items are ranked by popularity.
    """

    knowledge = Knowledge("visits in earlier steps of a funnel", "popularity", "the mean rate where met, else 0")

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Count visits and what became of them."""
        state: State = {}
        for name in self.scored_tasks(side.tasks):
            reached, positive = visits(train, side.tasks, name)
            steps = len(funnel_chain(side.tasks, name)) - 1
            rates = np.zeros((steps, side.items), np.float32)
            means = np.zeros(steps, np.float32)
            for step in range(steps):
                own = reached == step
                met = np.bincount(train.item[own], minlength=side.items)
                ended = np.bincount(train.item[own & positive], minlength=side.items)
                means[step] = ended.sum() / max(met.sum(), 1)
                smoothing = self.settings.item_smoothing
                rates[step] = (ended + smoothing * means[step]) / (met + smoothing)
            popular = popularity(train, name, side.items)
            state[name] = {"rates": rates, "means": means, "popularity": popular / max(float(popular.max()) * 2, 1e-12)}
        self.restore(state, side)
        return LearningCurve()

    def bonus(self, queries: Queries, name: str) -> sparse.csr_matrix:
        """Return (B, items) the rates of the items that were met and are not yet positives of a task; 0 elsewhere."""
        own = branch(self._state, name)
        rates, mean = array(own, "rates"), float(array(own, "means").mean()) if len(array(own, "means")) else 0.0
        history = queries.weighted(self.settings.recency).history
        reached, positive = visits(history, self._tasks, name)
        met = ~np.isnan(reached)
        user, item, positive = history.user[met], history.item[met], positive[met]
        rate = rates[reached[met].astype(np.int64), item] if met.any() else np.zeros(0, np.float32)
        # How much more of the user's visits end so than those items' visits do.
        smoothing = self.settings.user_smoothing * mean + 1e-12
        ended = np.bincount(user[positive], minlength=len(queries))
        expected = np.bincount(user, rate, len(queries))
        value = rate * ((ended + smoothing) / (expected + smoothing)).astype(np.float32)[user]
        if history.weight is not None:
            value *= history.weight[met]
        shape = (len(queries), rates.shape[1])
        return sparse.csr_matrix((value[~positive], (user[~positive], item[~positive])), shape=shape, dtype=np.float32)

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Rank what was met before, and then the popular items."""
        scores = {}
        for name in self.scored_tasks(self._tasks):
            bonus = self.bonus(queries, name)
            score = np.tile(array(branch(self._state, name), "popularity"), (len(queries), 1))
            place = np.repeat(np.arange(len(queries)), np.diff(bonus.indptr))
            score[place, bonus.indices] = 1.0 + bonus.data
            scores[name] = score
        return scores

    def state(self) -> State:
        """Return rates and popularity."""
        return dict(self._state)

    def restore(self, state: State, side: SideInformation) -> None:
        """Take rates and popularity back."""
        self._state, self._tasks = dict(state), side.tasks


class RevisitBonus(Revisit):
    """What a visit adds to the score of another model: log(1 + r / r_0), and nothing for the other items.

    r is the rate of :class:`Revisit`, r_0 the share of all pairs that are positive in the task, so that the sum with
    the logarithm of how much likelier than another an item is without the visit is that with it (as in naive Bayes).
    Tasks without a step before them, and those that do not rank the catalogue, get none.
    """

    def scored_tasks(self, tasks: dict[str, Task]) -> list[str]:
        """Return the retrieval tasks that come after another task."""
        return [name for name, task in tasks.items() if task.kind == "retrieval" and len(funnel_chain(tasks, name)) > 1]

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Count visits, what became of them, and positive pairs."""
        curve = super().fit(train, side, seed)
        for name in self._state:
            share = train.relevant[name].sum() / max(side.users * side.items, 1)
            branch(self._state, name)["share"] = np.array([max(share, 1e-12)], np.float32)
        return curve

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Return the bonus alone."""
        scores = {}
        for name in self.scored_tasks(self._tasks):
            bonus = self.bonus(queries, name)
            bonus.data = np.log1p(bonus.data / array(branch(self._state, name), "share")[0])
            scores[name] = bonus.toarray()
        return scores
