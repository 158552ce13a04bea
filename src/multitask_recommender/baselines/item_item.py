"""Baselines that rank by a learnt item-item matrix or by factors of implicit feedback."""

from __future__ import annotations

from typing import ClassVar

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


class EaseSettings(Settings):
    """Parameters of EASE.

    Attributes:
        penalty: lambda, the L2 penalty of the item-item weights.
        feature_weight: Weight of the items' features in the Gram matrix; 0 leaves them out.
    """

    penalty: float = Field(default=300.0, gt=0)
    feature_weight: float = Field(default=0.0, ge=0)


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
    gram = (history.T @ history).toarray().astype(np.float32)
    if feature_weight > 0:
        gram += feature_weight * (features @ features.T).toarray().astype(np.float32)
    gram[np.diag_indices_from(gram)] += penalty
    factor = linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
    inverse, _ = linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights = -inverse / np.diag(inverse)[None, :]
    np.fill_diagonal(weights, 0.0)
    return weights.astype(np.float32)


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
            state |= {
                f"{task}.weights": ease_weights(
                    history, side.item_features, self.settings.penalty, self.settings.feature_weight
                ),
                f"{task}.user": train.user[relevant],
                f"{task}.item": train.item[relevant],
            }
        self.restore(state, side)
        return LearningCurve()

    def score(self, users: IntArray) -> dict[str, FloatArray]:
        """Multiply histories with the weights."""
        return {task: history[users] @ weights for task, (history, weights) in self._matrices.items()}

    def state(self) -> Arrays:
        """Return weights and histories."""
        return dict(self._state)

    def restore(self, state: Arrays, side: SideInformation) -> None:
        """Take weights and histories back."""
        self._state = dict(state)
        shape = (side.users, side.items)
        self._matrices = {
            task: (pair_matrix(state[f"{task}.user"], state[f"{task}.item"], shape), state[f"{task}.weights"])
            for task in self.scored_tasks(side.tasks)
        }

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
