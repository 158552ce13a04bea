"""Item ridge regression: what a user will say of an item, from how the user's other labels differ from the biases."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy import linalg, sparse

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation
from multitask_recommender.data.queries import Queries
from multitask_recommender.models.baselines.item_item import (
    KEPT_BEYOND,
    LARGEST_CATALOGUE,
    keep_largest_rows,
    multiply,
)
from multitask_recommender.models.baselines.simple import BiasSettings
from multitask_recommender.models.recommender import Knowledge, LearningCurve, Recommender
from multitask_recommender.models.state import Matrix, State, array, branch, read_matrix, store_matrix
from multitask_recommender.models.towers.biases import solve_biases, solve_user_biases

_BLOCK = 1024
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

    penalty: float = Field(default=1.0, gt=0, le=1e9)
    users_per_item: int = Field(default=500, ge=1, le=10**7)
    neighbours: int | None = Field(default=None, ge=1, le=10**7)


def item_ridge_weights(
    profiles: sparse.csr_matrix, labels: sparse.csc_matrix, penalty: float, most: int, neighbours: int | None = None
) -> Matrix:
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
        neighbours: Weights kept per item, the largest in magnitude; None: all, in a dense matrix.

    Returns:
        (items, items) weights, those of item i in column i, with a zero diagonal.
    """
    items = labels.shape[1]
    if neighbours is None or neighbours >= items:
        weights = np.zeros((items, items), dtype=np.float32)
        _solve_rows(profiles, labels, penalty, most, 0, weights.T)
        return weights
    blocks = []
    for start in range(0, items, _BLOCK):
        rows = np.zeros((min(_BLOCK, items - start), items), dtype=np.float32)
        _solve_rows(profiles, labels, penalty, most, start, rows)
        blocks.append(keep_largest_rows(rows, neighbours))
    return sparse.vstack(blocks, format="csr").T.tocsr()


def _solve_rows(
    profiles: sparse.csr_matrix, labels: sparse.csc_matrix, penalty: float, most: int, first: int, rows: FloatArray
) -> None:
    """Write the weights of the items from ``first`` on into rows (n, items), which are 0."""
    lengths = np.diff(profiles.indptr)
    for item, weights in enumerate(rows, start=first):
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
        weights[:] = dual @ own


class ItemRidge(Recommender[ItemRidgeSettings]):
    """Predicts bias + sum_j z_uj w_ji, with z_uj = e_uj / sqrt(n_u) and e what the user + item bias leaves of a label.

    Labels are standardised first, so that one penalty fits all of them; predictions stay within the labels seen in
    training. See :func:`item_ridge_weights`.
    """

    predicts = frozenset({"binary", "regression"})
    ranks = predicts
    knowledge = Knowledge("its labels", "item biases", "user bias")

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Solve the biases and the weights of every task."""
        settings, kept = self.settings, self.settings.neighbours
        if kept is None and side.items > LARGEST_CATALOGUE:
            kept = KEPT_BEYOND
        shape = (side.users, side.items)
        state: State = {}
        for task in self.scored_tasks(side.tasks):
            known = ~np.isnan(train.labels[task])
            user, item, label = train.user[known], train.item[known], train.labels[task][known].astype(np.float64)
            mean, spread = float(label.mean()), float(label.std()) or 1.0
            scale = np.array([mean, spread, label.min(), label.max()])
            standard = ((label - mean) / spread).astype(np.float32)
            user_bias, item_bias = solve_biases(
                user, item, standard, *shape, (settings.user_shrinkage, settings.item_shrinkage)
            )
            residual = standard - user_bias[user] - item_bias[item]
            weights = item_ridge_weights(
                _profiles(user, item, residual, shape),
                sparse.csc_matrix((residual, (user, item)), shape=shape),
                settings.penalty,
                settings.users_per_item,
                kept,
            )
            labelled = np.bincount(item, minlength=side.items) > 0
            state[task] = {
                "weights": store_matrix(weights),
                "item_bias": item_bias,
                "scale": scale,
                "labelled": labelled,
            }
        self.restore(state, side)
        return LearningCurve()

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Solve the users' biases, and add biases and weighted profiles."""
        scores, history = {}, queries.weighted(self.settings.recency).history
        for task, weights in self._weights.items():
            own = branch(self._state, task)
            item_bias, scale = array(own, "item_bias"), array(own, "scale")
            mean, spread, low, high = scale.tolist()
            known = ~np.isnan(history.labels[task])
            user, item = history.user[known], history.item[known]
            weight = None if history.weight is None else history.weight[known]
            label = ((history.labels[task][known].astype(np.float64) - mean) / spread).astype(np.float32)
            shrinkage = self.settings.user_shrinkage
            user_bias = solve_user_biases(user, item, label, len(queries), item_bias, shrinkage, weight)
            residual = label - user_bias[user] - item_bias[item]
            own_residual = residual if weight is None else weight * residual
            standard = multiply(_profiles(user, item, own_residual, (len(queries), len(item_bias))), weights)
            standard += user_bias[:, None] + item_bias
            if self._kinds[task] == "binary":
                low, high = 1.0 - _CERTAIN, _CERTAIN
            scores[task] = np.clip(mean + spread * standard, low, high).astype(np.float32)
        return scores

    def state(self) -> State:
        """Return item biases, weights and scales."""
        return dict(self._state)

    def restore(self, state: State, side: SideInformation) -> None:
        """Take item biases, weights and scales back."""
        self._state = dict(state)
        self._kinds = {task: side.tasks[task].kind for task in self.scored_tasks(side.tasks)}
        self._weights = {task: read_matrix(branch(branch(state, task), "weights")) for task in self._kinds}

    def parameter_count(self) -> int:
        """Return the number of item biases and weights."""
        return sum(weights.size + weights.shape[0] for weights in self._weights.values())


def _profiles(user: IntArray, item: IntArray, residual: FloatArray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return z (users, items), the residuals over the root of the number of the user's labels."""
    rows = np.maximum(np.bincount(user, minlength=shape[0]), 1)
    return sparse.csr_matrix((residual / np.sqrt(rows).astype(np.float32)[user], (user, item)), shape=shape)
