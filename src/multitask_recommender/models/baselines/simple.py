"""Random, popularity and the means: the baselines without parameters to speak of."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation
from multitask_recommender.data.tasks import TaskKind
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import Arrays, LearningCurve, Recommender


class NoSettings(Settings):
    """A model without parameters."""


class RandomRecommender(Recommender[NoSettings]):
    """Scores every item by chance: the upper bound of coverage and the level of accuracy to be above."""

    stochastic = True

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Remember the seed and the tasks."""
        self._items, self._tasks, self._seed = side.items, list(side.tasks), seed
        return LearningCurve()

    def score(self, users: IntArray) -> dict[str, FloatArray]:
        """Draw scores that depend on seed, task, user and item alone."""
        scores = {}
        for task in self._tasks:
            rows = [
                np.random.default_rng(derive_seed(self._seed, task, user)).random(self._items, np.float32)
                for user in users.tolist()
            ]
            scores[task] = np.stack(rows)
        return scores

    def state(self) -> Arrays:
        """Return the seed."""
        return {"seed": np.array([self._seed])}

    def restore(self, state: Arrays, side: SideInformation) -> None:
        """Take the seed back."""
        self._items, self._tasks, self._seed = side.items, list(side.tasks), int(state["seed"][0])

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
        self._scores = {
            task: self._item_scores(train, side, task).astype(np.float32) for task in self.scored_tasks(side.tasks)
        }
        return LearningCurve()

    def score(self, users: IntArray) -> dict[str, FloatArray]:
        """Repeat the items' scores for every user."""
        return {task: np.tile(scores, (len(users), 1)) for task, scores in self._scores.items()}

    def state(self) -> Arrays:
        """Return the items' scores."""
        return dict(self._scores)

    def restore(self, state: Arrays, side: SideInformation) -> None:
        """Take the items' scores back."""
        self._scores = dict(state)


class Popularity(_ItemScores):
    """Scores an item by how many training users found it relevant: the lower bound of coverage and novelty."""

    def _item_scores(self, train: Interactions, side: SideInformation, task: str) -> FloatArray:
        return np.bincount(train.item[train.relevant[task]], minlength=side.items).astype(np.float32)


def _mean_by(key: IntArray, label: FloatArray, count: int, fallback: float) -> FloatArray:
    known = ~np.isnan(label)
    total = np.bincount(key[known], weights=label[known], minlength=count)
    rows = np.bincount(key[known], minlength=count)
    return np.where(rows > 0, total / np.maximum(rows, 1), fallback).astype(np.float32)


class GlobalMean(_ItemScores):
    """Predicts the mean training label."""

    predicts: ClassVar[frozenset[TaskKind]] = frozenset({"binary", "regression"})
    ranks = predicts

    def _item_scores(self, train: Interactions, side: SideInformation, task: str) -> FloatArray:
        return np.full(side.items, np.nanmean(train.labels[task]), dtype=np.float32)


class ItemMean(GlobalMean):
    """Predicts the item's mean training label; the global mean for an item without one."""

    def _item_scores(self, train: Interactions, side: SideInformation, task: str) -> FloatArray:
        label = train.labels[task]
        return _mean_by(train.item, label, side.items, float(np.nanmean(label)))


class UserMean(Recommender[NoSettings]):
    """Predicts the user's mean training label; the global mean for a user without one."""

    predicts: ClassVar[frozenset[TaskKind]] = frozenset({"binary", "regression"})
    ranks = predicts

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Compute the means of the users."""
        self._items = side.items
        self._means = {
            task: _mean_by(train.user, train.labels[task], side.users, float(np.nanmean(train.labels[task])))
            for task in self.scored_tasks(side.tasks)
        }
        return LearningCurve()

    def score(self, users: IntArray) -> dict[str, FloatArray]:
        """Repeat the user's mean for every item."""
        return {task: np.repeat(means[users][:, None], self._items, 1) for task, means in self._means.items()}

    def state(self) -> Arrays:
        """Return the users' means."""
        return dict(self._means)

    def restore(self, state: Arrays, side: SideInformation) -> None:
        """Take the users' means back."""
        self._items, self._means = side.items, dict(state)


def solve_biases(
    user: IntArray,
    item: IntArray,
    residual: FloatArray,
    users: int,
    items: int,
    shrinkage: tuple[float, float],
) -> tuple[FloatArray, FloatArray]:
    """Fit user and item biases to residuals by alternating ridge regressions.

    b_u = sum_{i in R(u)} (r_ui - b_i) / (shrinkage_u + |R(u)|), and the same for items.
    Source: Koren, Factor in the Neighbors, TKDD 2010, section 2.1, alternated to convergence.

    Args:
        user: (rows,) users.
        item: (rows,) items.
        residual: (rows,) label minus global mean.
        users: Number of users.
        items: Number of items.
        shrinkage: Of the users and of the items, in rows.

    Returns:
        (users,) and (items,) biases.
    """
    user_bias, item_bias = np.zeros(users), np.zeros(items)
    user_rows, item_rows = np.bincount(user, minlength=users), np.bincount(item, minlength=items)
    for _ in range(10):
        item_bias = np.bincount(item, residual - user_bias[user], items) / (shrinkage[1] + item_rows)
        user_bias = np.bincount(user, residual - item_bias[item], users) / (shrinkage[0] + user_rows)
    return user_bias.astype(np.float32), item_bias.astype(np.float32)


class BiasSettings(Settings):
    """Parameters of the user + item bias baseline.

    Attributes:
        user_shrinkage: Pulls a user's bias to 0 as so many additional rows at the mean would.
        item_shrinkage: The same for items.
    """

    user_shrinkage: float = 15.0
    item_shrinkage: float = 10.0


class UserItemBias(Recommender[BiasSettings]):
    """Predicts global mean + user bias + item bias (see :func:`solve_biases`)."""

    predicts: ClassVar[frozenset[TaskKind]] = frozenset({"binary", "regression"})
    ranks = predicts

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Solve the biases of every task."""
        self._state: Arrays = {}
        for task in self.scored_tasks(side.tasks):
            known = ~np.isnan(train.labels[task])
            label = train.labels[task][known]
            mean = float(label.mean())
            user_bias, item_bias = solve_biases(
                train.user[known],
                train.item[known],
                label - mean,
                side.users,
                side.items,
                (self.settings.user_shrinkage, self.settings.item_shrinkage),
            )
            self._state |= {f"{task}.user": user_bias + mean, f"{task}.item": item_bias}
        self.restore(self._state, side)
        return LearningCurve()

    def score(self, users: IntArray) -> dict[str, FloatArray]:
        """Add the biases."""
        scores = {}
        for task, kind in self._kinds.items():
            score = self._state[f"{task}.user"][users][:, None] + self._state[f"{task}.item"][None, :]
            scores[task] = np.clip(score, 0, 1) if kind == "binary" else score
        return scores

    def state(self) -> Arrays:
        """Return the biases."""
        return dict(self._state)

    def restore(self, state: Arrays, side: SideInformation) -> None:
        """Take the biases back."""
        self._state = dict(state)
        self._kinds = {task: side.tasks[task].kind for task in self.scored_tasks(side.tasks)}
