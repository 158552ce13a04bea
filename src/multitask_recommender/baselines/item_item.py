"""Baselines that rank by a learnt item-item matrix or by factors of implicit feedback."""

from __future__ import annotations

from typing import ClassVar, TypeAlias

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from pydantic import Field
from scipy import linalg, sparse

from multitask_recommender.baselines.neighbours import ItemNeighbours, keep_largest
from multitask_recommender.interactions import FloatArray, IntArray, Interactions, SideInformation, pair_matrix
from multitask_recommender.recommender import Arrays, LearningCurve, Recommender
from multitask_recommender.settings_base import Settings

LARGEST_CATALOGUE = 30_000
"""Most items for a dense item-item matrix (3.6 GB in float32)."""
_BLOCK = 1024


class EaseSettings(Settings):
    """Parameters of EASE.

    Attributes:
        penalty: lambda, the L2 penalty of the item-item weights.
        feature_weight: Weight of the items' features in the Gram matrix; 0 leaves them out.
        neighbours: Weights kept per item, the largest in magnitude; null keeps all, which takes items x items numbers.
    """

    penalty: float = Field(default=300.0, gt=0)
    feature_weight: float = Field(default=0.0, ge=0)
    neighbours: int | None = Field(default=None, ge=1)


def ease_weights(
    history: sparse.csr_matrix, features: sparse.csr_matrix, penalty: float, feature_weight: float
) -> FloatArray:
    """Solve min ||X - X B||^2 + w ||F' - F' B||^2 + lambda ||B||^2 with a zero diagonal, in closed form.

    With P = (X'X + w F F' + lambda I)^-1 the solution is B_ij = -P_ij / P_jj off the diagonal.
    Source: Steck, Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019, equation 8; features as additional
    rows, as in Jeunen, Van Balen and Goethals, RecSys 2020.

    Args:
        history: (users, items) X, ones at the relevant pairs.
        features: (items, columns) F.
        penalty: lambda.
        feature_weight: w.

    Returns:
        (items, items) B.
    """
    if feature_weight == 0 or features.nnz == 0:
        # The weights of an item without history are zero: solve for the others alone.
        active = np.flatnonzero(np.diff(history.tocsc().indptr))
        if len(active) < history.shape[1]:
            weights = np.zeros((history.shape[1],) * 2, dtype=np.float32)
            weights[np.ix_(active, active)] = ease_weights(history[:, active], features[active], penalty, 0.0)
            return weights
    gram = (history.T @ history).astype(np.float32).toarray()
    if feature_weight > 0 and features.nnz > 0:
        for start in range(0, len(gram), _BLOCK):
            common = features[start : start + _BLOCK] @ features.T
            gram[start : start + _BLOCK] += feature_weight * common.toarray().astype(np.float32)
    gram[np.diag_indices_from(gram)] += penalty
    # Every step below works in the one matrix: catalogues of 10,000 items take 400 MB each time it is copied.
    factor = linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
    weights, _ = linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
    for start in range(0, len(weights), _BLOCK):
        own = slice(start, start + _BLOCK)
        weights[:start, own] = weights[own, :start].T
        weights[own, own] = np.tril(weights[own, own]) + np.tril(weights[own, own], -1).T
    weights = weights.T  # Symmetric so far, and from here on in the order of rows.
    weights /= -np.diag(weights)[None, :].copy()
    np.fill_diagonal(weights, 0.0)
    return weights.astype(np.float32, copy=False)


Weights: TypeAlias = FloatArray | sparse.csr_matrix


def keep_largest_weights(weights: FloatArray, neighbours: int | None) -> Weights:
    """Keep the weights to every item (column) that are largest in magnitude, as a sparse matrix; None: all."""
    if neighbours is None or neighbours >= len(weights):
        return weights
    blocks = []
    for start in range(0, len(weights), _BLOCK):
        block = np.ascontiguousarray(weights[:, start : start + _BLOCK].T)
        threshold = np.partition(np.abs(block), -neighbours, axis=1)[:, -neighbours, None]
        blocks.append(sparse.csr_matrix(np.where(np.abs(block) >= threshold, block, 0.0)))
    return sparse.vstack(blocks, format="csr").T.tocsr()


def store_weights(name: str, weights: Weights) -> Arrays:
    """Return item-item weights as named arrays."""
    if isinstance(weights, np.ndarray):
        return {name: weights}
    parts = {"data": weights.data, "indices": weights.indices.astype(np.int32), "indptr": weights.indptr}
    return {f"{name}.{part}": array for part, array in parts.items()}


def read_weights(name: str, state: Arrays, items: int) -> Weights | None:
    """Return the item-item weights that :func:`store_weights` stored under a name, or None."""
    if f"{name}.data" not in state:
        return state.get(name)
    parts = tuple(state[f"{name}.{part}"] for part in ("data", "indices", "indptr"))
    return sparse.csr_matrix(parts, shape=(items, items))


def multiply(history: sparse.csr_matrix, weights: Weights) -> FloatArray:
    """Return the dense product of histories (B, items) and item-item weights."""
    product = history @ weights
    return product.toarray() if sparse.issparse(product) else product


class Ease(Recommender[EaseSettings]):
    """EASE^R: score = x_u B, see :func:`ease_weights`."""

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Solve the item-item weights of every task from its relevant rows."""
        if side.items > LARGEST_CATALOGUE:
            raise ValueError(f"EASE needs a dense matrix of {side.items} x {side.items} items")
        state: Arrays = {}
        for task in self.scored_tasks(side.tasks):
            relevant = train.relevant[task]
            history = pair_matrix(train.user[relevant], train.item[relevant], (side.users, side.items))
            weights = ease_weights(history, side.item_features, self.settings.penalty, self.settings.feature_weight)
            state |= store_weights(f"{task}.weights", keep_largest_weights(weights, self.settings.neighbours))
            state |= {f"{task}.user": train.user[relevant], f"{task}.item": train.item[relevant]}
        self.restore(state, side)
        return LearningCurve()

    def score(self, users: IntArray) -> dict[str, FloatArray]:
        """Multiply histories with the weights."""
        return {task: multiply(history[users], weights) for task, (history, weights) in self._matrices.items()}

    def state(self) -> Arrays:
        """Return weights and histories."""
        return dict(self._state)

    def restore(self, state: Arrays, side: SideInformation) -> None:
        """Take weights and histories back."""
        self._state = dict(state)
        shape = (side.users, side.items)
        self._matrices: dict[str, tuple[sparse.csr_matrix, Weights]] = {}
        for task in self.scored_tasks(side.tasks):
            weights = read_weights(f"{task}.weights", state, side.items)
            assert weights is not None
            self._matrices[task] = (pair_matrix(state[f"{task}.user"], state[f"{task}.item"], shape), weights)

    def parameter_count(self) -> int:
        """Return the number of item-item weights."""
        return sum(weights.size for _, weights in self._matrices.values())


class ImplicitALSSettings(Settings):
    """Parameters of iALS.

    Attributes:
        dimension: Number of factors.
        positive_weight: alpha, the additional weight of an observed pair.
        penalty: L2 penalty of the factors.
        iterations: Alternations.
    """

    dimension: int = Field(default=128, ge=1)
    positive_weight: float = Field(default=5.0, gt=0)
    penalty: float = Field(default=30.0, gt=0)
    iterations: int = Field(default=15, ge=1)


class ImplicitALS(Recommender[ImplicitALSSettings]):
    """iALS of the library implicit: weighted factorisation of the whole user x item matrix.

    Source: Hu, Koren and Volinsky, Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008.
    """

    stochastic: ClassVar[bool] = True

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Factorise the relevant pairs of every task."""
        self._state: Arrays = {}
        for task in self.scored_tasks(side.tasks):
            relevant = train.relevant[task]
            history = pair_matrix(train.user[relevant], train.item[relevant], (side.users, side.items))
            model = AlternatingLeastSquares(
                factors=self.settings.dimension,
                regularization=self.settings.penalty,
                alpha=1.0 + self.settings.positive_weight,
                iterations=self.settings.iterations,
                num_threads=1,
                random_state=seed % 2**32,
            )
            model.fit(history, show_progress=False)
            self._state |= {f"{task}.user": model.user_factors, f"{task}.item": model.item_factors}
        return LearningCurve()

    def score(self, users: IntArray) -> dict[str, FloatArray]:
        """Multiply factors."""
        tasks = [name.removesuffix(".user") for name in self._state if name.endswith(".user")]
        return {task: self._state[f"{task}.user"][users] @ self._state[f"{task}.item"].T for task in tasks}

    def state(self) -> Arrays:
        """Return the factors."""
        return dict(self._state)

    def restore(self, state: Arrays, side: SideInformation) -> None:
        """Take the factors back."""
        self._state = dict(state)


class RandomWalkSettings(Settings):
    """Parameters of RP3beta.

    Attributes:
        alpha: Exponent of the transition probabilities.
        beta: Exponent of the popularity that similarities are divided by.
        neighbours: Neighbours kept per item.
    """

    alpha: float = Field(default=0.8, gt=0)
    beta: float = Field(default=0.4, ge=0)
    neighbours: int = Field(default=200, ge=1)


class RandomWalk(ItemNeighbours[RandomWalkSettings]):
    """RP3beta: three-step random walk user - item - user - item, discounted by popularity.

    s(j -> i) = sum_u p(u | j)^alpha p(i | u)^alpha / popularity_i^beta. Source: Paudel et al., Updatable, Accurate,
    Diverse, and Scalable Recommendations for Interactive Applications, ACM TiiS 2017.
    """

    def _similarities(self, train: Interactions, side: SideInformation, task: str) -> sparse.csr_matrix:
        relevant = train.relevant[task]
        pairs = pair_matrix(train.user[relevant], train.item[relevant], (side.users, side.items))
        items = np.maximum(np.asarray(pairs.sum(axis=0)).ravel(), 1.0)
        users = np.maximum(np.asarray(pairs.sum(axis=1)).ravel(), 1.0)
        to_item = sparse.diags(users**-self.settings.alpha) @ pairs
        from_item = sparse.diags(items**-self.settings.alpha) @ pairs.T
        # Row i: how strongly the walk comes to i from every j.
        reached = (to_item.T @ from_item.T).tocsr()
        blocks = []
        for start in range(0, side.items, 1024):
            block = reached[start : start + 1024].toarray()
            block /= items[start : start + 1024, None] ** self.settings.beta
            rows = np.arange(len(block))
            block[rows, start + rows] = 0.0
            blocks.append(keep_largest(block, self.settings.neighbours))
        return sparse.vstack(blocks, format="csr")
