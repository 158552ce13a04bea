"""Random, popularity and the means: the baselines without parameters to speak of."""

from __future__ import annotations

import hashlib
from abc import abstractmethod

import numpy as np
from pydantic import Field

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation
from multitask_recommender.data.queries import NEW_USER, Queries
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import HistorySettings, Knowledge, LearningCurve, Recommender
from multitask_recommender.models.state import State, array, branch
from multitask_recommender.models.towers.biases import solve_biases, solve_user_biases


class NoSettings(Settings):
    """A model without parameters."""


class RandomRecommender(Recommender[NoSettings]):
    """Scores every item by chance: the upper bound of coverage and the level of accuracy to be above."""

    stochastic = True
    knowledge = Knowledge(None, "chance", "chance")

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Remember the seed and the tasks."""
        self._items, self._tasks, self._seed = side.items, list(side.tasks), seed
        return LearningCurve()

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Draw scores that depend on seed, task and user; for a new user on the items of the history."""
        counts = np.bincount(queries.history.user, minlength=len(queries))
        histories = np.split(queries.history.item, np.cumsum(counts)[:-1])
        names = [
            str(user) if user != NEW_USER else hashlib.sha256(np.sort(items).tobytes()).hexdigest()
            for user, items in zip(queries.user.tolist(), histories, strict=True)
        ]
        return {
            task: np.stack(
                [
                    np.random.default_rng(derive_seed(self._seed, task, name)).random(self._items, np.float32)
                    for name in names
                ]
            )
            for task in self._tasks
        }

    def state(self) -> State:
        """Return the seed."""
        return {"seed": np.array([self._seed])}

    def restore(self, state: State, side: SideInformation) -> None:
        """Take the seed back."""
        self._items, self._tasks, self._seed = side.items, list(side.tasks), int(array(state, "seed")[0])

    def parameter_count(self) -> int:
        """Return 0: nothing is learnt."""
        return 0


class _ItemScores(Recommender[NoSettings]):
    """A recommender that gives every user the same score per item and task."""

    @abstractmethod
    def _item_scores(self, train: Interactions, side: SideInformation, task: str) -> FloatArray:
        """Return (items,) scores for one task."""

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Compute the scores of the items."""
        self._scores: State = {
            task: self._item_scores(train, side, task).astype(np.float32) for task in self.scored_tasks(side.tasks)
        }
        return LearningCurve()

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Repeat the items' scores for every query."""
        return {task: np.tile(array(self._scores, task), (len(queries), 1)) for task in self._scores}

    def state(self) -> State:
        """Return the items' scores."""
        return dict(self._scores)

    def restore(self, state: State, side: SideInformation) -> None:
        """Take the items' scores back."""
        self._scores = {task: state[task] for task in self.scored_tasks(side.tasks)}


class Popularity(_ItemScores):
    """Scores an item by how many training users found it relevant: the lower bound of coverage and novelty."""

    knowledge = Knowledge(None, "popularity", "0 users")

    def _item_scores(self, train: Interactions, side: SideInformation, task: str) -> FloatArray:
        return np.bincount(train.item[train.relevant[task]], minlength=side.items).astype(np.float32)


def _mean_by(key: IntArray, label: FloatArray, count: int, fallback: float) -> FloatArray:
    known = ~np.isnan(label)
    total = np.bincount(key[known], weights=label[known], minlength=count)
    rows = np.bincount(key[known], minlength=count)
    return np.where(rows > 0, total / np.maximum(rows, 1), fallback).astype(np.float32)


class GlobalMean(_ItemScores):
    """Predicts the mean training label."""

    predicts = frozenset({"binary", "regression"})
    ranks = predicts
    knowledge = Knowledge(None, "global mean", "global mean")

    def _item_scores(self, train: Interactions, side: SideInformation, task: str) -> FloatArray:
        return np.full(side.items, np.nanmean(train.labels[task]), dtype=np.float32)


class ItemMean(GlobalMean):
    """Predicts the item's mean training label; the global mean for an item without one."""

    knowledge = Knowledge(None, "item means", "global mean")

    def _item_scores(self, train: Interactions, side: SideInformation, task: str) -> FloatArray:
        label = train.labels[task]
        return _mean_by(train.item, label, side.items, float(np.nanmean(label)))


class UserMean(Recommender[NoSettings]):
    """Predicts the mean label of the user's history; the global mean for a user without one."""

    predicts = frozenset({"binary", "regression"})
    ranks = predicts
    knowledge = Knowledge("mean of its labels", "global mean", "user mean")

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Compute the global means."""
        means = {task: np.array([np.nanmean(train.labels[task])]) for task in self.scored_tasks(side.tasks)}
        self.restore(dict(means), side)
        return LearningCurve()

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Repeat the user's mean for every item."""
        history, scores = queries.history, {}
        for task in self._means:
            fallback = float(array(self._means, task)[0])
            means = _mean_by(history.user, history.labels[task], len(queries), fallback)
            scores[task] = np.repeat(means[:, None], self._items, 1)
        return scores

    def state(self) -> State:
        """Return the global means."""
        return dict(self._means)

    def restore(self, state: State, side: SideInformation) -> None:
        """Take the global means back."""
        self._items, self._means = side.items, {task: state[task] for task in self.scored_tasks(side.tasks)}


class BiasSettings(HistorySettings):
    """Parameters of the user + item bias baseline.

    Attributes:
        user_shrinkage: Pulls a user's bias to 0 as so many additional rows at the mean would.
        item_shrinkage: The same for items.
    """

    user_shrinkage: float = Field(default=15.0, ge=0, le=1e9)
    item_shrinkage: float = Field(default=10.0, ge=0, le=1e9)


class UserItemBias(Recommender[BiasSettings]):
    """Predicts global mean + user bias + item bias (see :func:`solve_biases`)."""

    predicts = frozenset({"binary", "regression"})
    ranks = predicts
    knowledge = Knowledge("user bias solved from its labels", "item biases", "user bias")

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Solve the biases of every task."""
        state: State = {}
        for task in self.scored_tasks(side.tasks):
            known = ~np.isnan(train.labels[task])
            label = train.labels[task][known]
            mean = float(label.mean())
            _, item_bias = solve_biases(
                train.user[known],
                train.item[known],
                label - mean,
                side.users,
                side.items,
                (self.settings.user_shrinkage, self.settings.item_shrinkage),
            )
            state[task] = {"mean": np.array([mean]), "item": item_bias}
        self.restore(state, side)
        return LearningCurve()

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Solve the users' biases and add those of the items."""
        scores, history = {}, queries.weighted(self.settings.recency).history
        for task, kind in self._kinds.items():
            mean, item_bias = (array(branch(self._state, task), name) for name in ("mean", "item"))
            known = ~np.isnan(history.labels[task])
            user_bias = solve_user_biases(
                history.user[known],
                history.item[known],
                history.labels[task][known] - mean[0],
                len(queries),
                item_bias,
                self.settings.user_shrinkage,
                None if history.weight is None else history.weight[known],
            )
            score = (mean + user_bias).astype(np.float32)[:, None] + item_bias[None, :]
            scores[task] = np.clip(score, 0, 1) if kind == "binary" else score
        return scores

    def state(self) -> State:
        """Return mean and item biases of every task."""
        return dict(self._state)

    def restore(self, state: State, side: SideInformation) -> None:
        """Take means and item biases back."""
        self._state = dict(state)
        self._kinds = {task: side.tasks[task].kind for task in self.scored_tasks(side.tasks)}
