"""Item ridge regression: what a user will say of an item, from how the user's other labels differ from the biases."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field
from scipy import linalg, sparse

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation
from multitask_recommender.data.tasks import TaskKind
from multitask_recommender.models.baselines.item_item import (
    LARGEST_CATALOGUE,
    Weights,
    keep_largest_weights,
    multiply,
    read_weights,
    store_weights,
)
from multitask_recommender.models.baselines.simple import BiasSettings, solve_biases
from multitask_recommender.models.recommender import Arrays, LearningCurve, Recommender

_CERTAIN = 0.98
"""Largest probability that is predicted: the model is linear, and would reach 1."""


class ItemRidgeSettings(BiasSettings):
    """Parameters of item ridge regression.

    Attributes:
        penalty: lambda, the L2 penalty of the weights, for labels of variance 1.
        users_per_item: Most users that an item's weights are learnt from, those with the most rows; the work grows with
            the cube of this number.
        neighbours: Weights kept per item, the largest in magnitude; null keeps all, which takes items x items numbers.
    """

    penalty: float = Field(default=1.0, gt=0)
    users_per_item: int = Field(default=500, ge=1)
    neighbours: int | None = Field(default=None, ge=1)


def item_ridge_weights(profiles: sparse.csr_matrix, labels: sparse.csc_matrix, penalty: float, most: int) -> FloatArray:
    """Solve one ridge regression per item: its labels from the profiles of the users who gave them.

    min_w sum_{u in U_i} (e_ui - sum_{j != i} z_uj w_j)^2 + lambda ||w||^2 for every item i, in the dual form
    w = Z' (Z Z' + lambda I)^-1 e of ridge regression (Saunders, Gammerman and Vovk, ICML 1998), where Z has a row per
    user of U_i and its column i is 0. It is EASE's regression (Steck, WWW 2019) on the observed labels instead of all
    pairs; kernel ridge regression beside factors of ratings: Paterek, KDD Cup 2007.

    Args:
        profiles: (users, items) z.
        labels: (users, items) e, stored at the observed pairs.
        penalty: lambda.
        most: Most users per item, those with the longest profiles.

    Returns:
        (items, items) weights, those of item i in column i, with a zero diagonal.
    """
    lengths = np.diff(profiles.indptr)
    weights = np.zeros((labels.shape[1],) * 2, dtype=np.float32)
    for item in range(labels.shape[1]):
        entries = slice(labels.indptr[item], labels.indptr[item + 1])
        users, label = labels.indices[entries], labels.data[entries]
        if len(users) > most:
            chosen = np.sort(np.argsort(-lengths[users], kind="stable")[:most])
            users, label = users[chosen], label[chosen]
        if not len(users):
            continue
        own = profiles[users].toarray()
        own[:, item] = 0.0
        gram = own @ own.T
        gram[np.diag_indices_from(gram)] += penalty
        _, dual, _ = linalg.lapack.sposv(gram, label, overwrite_a=True)
        weights[:, item] = dual @ own
    return weights


class ItemRidge(Recommender[ItemRidgeSettings]):
    """Predicts bias + sum_j z_uj w_ji, with z_uj = e_uj / sqrt(n_u) and e what the user + item bias leaves of a label.

    Labels are standardised first, so that one penalty fits all of them; predictions stay within the labels seen in
    training. See :func:`item_ridge_weights`.
    """

    predicts: ClassVar[frozenset[TaskKind]] = frozenset({"binary", "regression"})
    ranks: ClassVar[frozenset[TaskKind]] = predicts

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Solve the biases and the weights of every task."""
        if side.items > LARGEST_CATALOGUE:
            raise ValueError(f"item ridge needs a dense matrix of {side.items} x {side.items} items")
        settings = self.settings
        shape = (side.users, side.items)
        state: Arrays = {}
        for task in self.scored_tasks(side.tasks):
            known = ~np.isnan(train.labels[task])
            user, item, label = train.user[known], train.item[known], train.labels[task][known].astype(np.float64)
            mean, spread = float(label.mean()), float(label.std()) or 1.0
            standard = ((label - mean) / spread).astype(np.float32)
            user_bias, item_bias = solve_biases(
                user, item, standard, *shape, (settings.user_shrinkage, settings.item_shrinkage)
            )
            residual = standard - user_bias[user] - item_bias[item]
            rows = np.maximum(np.bincount(user, minlength=side.users), 1)
            profile = residual / np.sqrt(rows).astype(np.float32)[user]
            weights = item_ridge_weights(
                sparse.csr_matrix((profile, (user, item)), shape=shape),
                sparse.csc_matrix((residual, (user, item)), shape=shape),
                settings.penalty,
                settings.users_per_item,
            )
            state |= store_weights(f"{task}.weights", keep_largest_weights(weights, settings.neighbours))
            state |= {
                f"{task}.user_bias": user_bias,
                f"{task}.item_bias": item_bias,
                f"{task}.scale": np.array([mean, spread, label.min(), label.max()]),
                f"{task}.user": user,
                f"{task}.item": item,
                f"{task}.profile": profile,
            }
        self.restore(state, side)
        return LearningCurve()

    def score(self, users: IntArray) -> dict[str, FloatArray]:
        """Add biases and weighted profiles."""
        scores = {}
        for task, (profiles, weights) in self._matrices.items():
            mean, spread, low, high = self._state[f"{task}.scale"].tolist()
            standard = multiply(profiles[users], weights)
            standard += self._state[f"{task}.user_bias"][users][:, None] + self._state[f"{task}.item_bias"]
            if self._kinds[task] == "binary":
                low, high = 1.0 - _CERTAIN, _CERTAIN
            scores[task] = np.clip(mean + spread * standard, low, high)
        return scores

    def labelled_items(self, task: str) -> IntArray:
        """Return the numbers of the items with training labels of a task."""
        return self._labelled[task]

    def state(self) -> Arrays:
        """Return biases, weights and profiles."""
        return dict(self._state)

    def restore(self, state: Arrays, side: SideInformation) -> None:
        """Take biases, weights and profiles back."""
        self._state = dict(state)
        self._kinds = {task: side.tasks[task].kind for task in self.scored_tasks(side.tasks)}
        self._labelled = {task: np.unique(state[f"{task}.item"]) for task in self._kinds}
        self._matrices: dict[str, tuple[sparse.csr_matrix, Weights]] = {}
        for task in self._kinds:
            weights = read_weights(f"{task}.weights", state, side.items)
            assert weights is not None
            entries = (state[f"{task}.profile"], (state[f"{task}.user"], state[f"{task}.item"]))
            self._matrices[task] = (sparse.csr_matrix(entries, shape=(side.users, side.items)), weights)

    def parameter_count(self) -> int:
        """Return the number of biases and weights."""
        biases = sum(len(a) for name, a in self._state.items() if name.endswith("_bias"))
        return biases + sum(weights.size for _, weights in self._matrices.values())
