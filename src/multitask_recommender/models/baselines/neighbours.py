"""Item kNN on interactions and content-based similarity on item features."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from scipy import sparse

from multitask_recommender.data.interactions import (
    FloatArray,
    IntArray,
    Interactions,
    SideInformation,
    pair_matrix,
)
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import Arrays, LearningCurve, Recommender, S

_BLOCK = 1024


def keep_largest(similarity: np.ndarray, k: int) -> sparse.csr_matrix:
    """Keep the k largest positive entries of each row of a dense block."""
    if k < similarity.shape[1]:
        threshold = -np.partition(-similarity, k - 1, axis=1)[:, k - 1 : k]
        similarity = np.where(similarity >= threshold, similarity, 0.0)
    return sparse.csr_matrix(np.maximum(similarity, 0.0).astype(np.float32))


class ItemNeighbours(Recommender[S]):
    """score(u, i) = sum over the neighbours j of i that u found relevant of the similarity s(i, j)."""

    @abstractmethod
    def _similarities(self, train: Interactions, side: SideInformation, task: str) -> sparse.csr_matrix:
        """Return (items, items): row i holds the similarities of item i to its neighbours."""

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Compute the neighbours of every item, per task."""
        state: Arrays = {}
        for task in self.scored_tasks(side.tasks):
            relevant = train.relevant[task]
            history = pair_matrix(train.user[relevant], train.item[relevant], (side.users, side.items))
            for name, matrix in (
                ("history", history),
                ("similarity", self._similarities(train, side, task)),
            ):
                state |= {
                    f"{task}.{name}.data": matrix.data.astype(np.float32),
                    f"{task}.{name}.indices": matrix.indices.astype(np.int64),
                    f"{task}.{name}.indptr": matrix.indptr.astype(np.int64),
                }
        self.restore(state, side)
        return LearningCurve()

    def score(self, users: IntArray) -> dict[str, FloatArray]:
        """Sum the similarities to the user's relevant items."""
        return {
            task: (history[users] @ similarity.T).toarray() for task, (history, similarity) in self._matrices.items()
        }

    def state(self) -> Arrays:
        """Return histories and similarities in compressed rows."""
        return dict(self._state)

    def restore(self, state: Arrays, side: SideInformation) -> None:
        """Take histories and similarities back."""
        self._state = dict(state)
        self._matrices = {}
        for task in self.scored_tasks(side.tasks):
            history, similarity = (
                sparse.csr_matrix(
                    tuple(state[f"{task}.{name}.{part}"] for part in ("data", "indices", "indptr")),
                    shape=(rows, side.items),
                )
                for name, rows in (("history", side.users), ("similarity", side.items))
            )
            self._matrices[task] = (history, similarity)

    def parameter_count(self) -> int:
        """Return the number of similarities kept."""
        return sum(similarity.nnz for _, similarity in self._matrices.values())


class ItemKNNSettings(Settings):
    """Parameters of item kNN.

    Attributes:
        neighbours: Neighbours kept per item.
        shrinkage: Added to the denominator, so that similarities from few common users count less.
        normalisation: Exponent a of the popularity of the item that is scored; 0.5 is the cosine.
    """

    neighbours: int = 200
    shrinkage: float = 0.0
    normalisation: float = 0.4


class ItemKNN(ItemNeighbours[ItemKNNSettings]):
    """Item-based nearest neighbours: s(i, j) = n_ij / (n_i^(1 - a) n_j^a + shrinkage).

    n_ij counts the users of both items, n_i those of item i. Source: Sarwar et al., WWW 2001, with the asymmetric
    cosine of Aiolli, RecSys 2013, equation 5.
    """

    def _similarities(self, train: Interactions, side: SideInformation, task: str) -> sparse.csr_matrix:
        relevant = train.relevant[task]
        pairs = pair_matrix(train.user[relevant], train.item[relevant], (side.users, side.items))
        counts = np.maximum(np.asarray(pairs.sum(axis=0)).ravel(), 1.0)
        transposed = pairs.T.tocsr()
        blocks = []
        for start in range(0, side.items, _BLOCK):
            common = (transposed[start : start + _BLOCK] @ pairs).toarray()
            own = counts[start : start + _BLOCK, None] ** (1 - self.settings.normalisation)
            similarity = common / (own * counts[None, :] ** self.settings.normalisation + self.settings.shrinkage)
            rows = np.arange(len(similarity))
            similarity[rows, start + rows] = 0.0
            blocks.append(keep_largest(similarity, self.settings.neighbours))
        return sparse.vstack(blocks, format="csr")


class ContentBasedSettings(Settings):
    """Parameters of content-based similarity.

    Attributes:
        neighbours: Neighbours kept per item.
    """

    neighbours: int = 200


class ContentBased(ItemNeighbours[ContentBasedSettings]):
    """Content-based similarity: the cosine of the items' features, each weighted by its inverse document frequency.

    The traditional method that the study's claim is measured against. Source: Lops et al., Content-based
    Recommender Systems, in Recommender Systems Handbook 2011, section 3.3.1.
    """

    def _similarities(self, train: Interactions, side: SideInformation, task: str) -> sparse.csr_matrix:
        features = side.item_features
        having = np.asarray((features > 0).sum(axis=0)).ravel()
        weighted = features @ sparse.diags(np.log(side.items / np.maximum(having, 1)))
        norm = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        unit = (sparse.diags(1.0 / np.where(norm > 0, norm, 1.0)) @ weighted).tocsr()
        blocks = []
        for start in range(0, side.items, _BLOCK):
            similarity = (unit[start : start + _BLOCK] @ unit.T).toarray()
            rows = np.arange(len(similarity))
            similarity[rows, start + rows] = 0.0
            blocks.append(keep_largest(similarity, self.settings.neighbours))
        return sparse.vstack(blocks, format="csr")
