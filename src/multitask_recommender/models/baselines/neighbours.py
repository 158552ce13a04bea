"""Item kNN on interactions and content-based similarity on item features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
from pydantic import Field
from scipy import sparse

from multitask_recommender.data.interactions import FloatArray, Interactions, SideInformation, pair_matrix
from multitask_recommender.data.queries import Queries
from multitask_recommender.models.recommender import (
    H,
    HistorySettings,
    Knowledge,
    LearningCurve,
    Recommender,
    ShrunkSettings,
    or_popularity,
    popularity,
)
from multitask_recommender.models.state import State, array, branch, read_matrix, store_matrix

_CELLS = 2**22
"""Most similarities that are held at a time before the largest are kept."""
_FULL = 0.05
"""Share of the similarities that are kept from which products with all of them take less time."""


def item_blocks(items: int) -> Iterator[slice]:
    """Divide a catalogue so that a block's similarities to all items are of bounded size."""
    size = max(_CELLS // items, 1)
    return (slice(start, start + size) for start in range(0, items, size))


def keep_largest(similarity: np.ndarray, k: int) -> sparse.csr_matrix:
    """Keep the k largest positive entries of each row of a dense block."""
    if k < similarity.shape[1]:
        threshold = -np.partition(-similarity, k - 1, axis=1)[:, k - 1 : k]
        similarity = np.where(similarity >= threshold, similarity, 0.0)
    return sparse.csr_matrix(np.maximum(similarity, 0.0).astype(np.float32))


def _full(values: sparse.csr_matrix | FloatArray) -> FloatArray:
    return values if isinstance(values, np.ndarray) else values.toarray()


class ItemNeighbours(Recommender[H]):
    """score(u, i) = sum over the neighbours j of i that u found relevant of the similarity s(i, j).

    Where none of a user's items has a neighbour, popularity stands in.
    """

    by_relevance = True

    @abstractmethod
    def _similarities(self, train: Interactions, side: SideInformation, task: str) -> sparse.csr_matrix:
        """Return (items, items): row i holds the similarities of item i to its neighbours."""

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Compute the neighbours of every item, per task."""
        state: State = {
            task: {
                "similarity": store_matrix(self._similarities(train, side, task)),
                "popularity": popularity(train, task, side.items),
            }
            for task in self.scored_tasks(side.tasks)
        }
        self.restore(state, side)
        return LearningCurve()

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Sum the similarities to the relevant items of the histories."""
        queries = queries.weighted(self.settings.recency)
        return {
            task: or_popularity(_full(queries.relevant(task, len(popular)) @ similarity), popular)
            for task, (similarity, popular) in self._learnt.items()
        }

    def similarities(self, item: int, task: str) -> FloatArray | None:
        """Return how much an item of a history counts for others: 0 where it is not among their neighbours."""
        return _full(self._learnt[task][0][[item]]).ravel() if task in self._learnt else None

    def state(self) -> State:
        """Return similarities and popularity."""
        return dict(self._state)

    def restore(self, state: State, side: SideInformation) -> None:
        """Take similarities and popularity back."""
        self._state = dict(state)
        self._learnt: dict[str, tuple[sparse.csr_matrix | FloatArray, FloatArray]] = {}
        for task in self.scored_tasks(side.tasks):
            similarity = read_matrix(branch(branch(state, task), "similarity"))
            assert sparse.issparse(similarity)
            # By the item of the history: turned once, where every product would do it anew.
            turned = sparse.csr_matrix(similarity.T)
            full = _FULL * side.items**2 <= turned.nnz and side.items**2 <= _CELLS
            self._learnt[task] = (turned.toarray() if full else turned, array(branch(state, task), "popularity"))

    def parameter_count(self) -> int:
        """Return the number of similarities kept."""
        return sum(int((similarity != 0).sum()) for similarity, _ in self._learnt.values())


class ItemKNNSettings(HistorySettings):
    """Parameters of item kNN.

    Attributes:
        neighbours: Neighbours kept per item.
        shrinkage: Added to the denominator, so that similarities from few common users count less.
        normalisation: Exponent a of the popularity of the item that is scored; 0.5 is the cosine.
    """

    neighbours: int = Field(default=200, ge=1, le=10**7)
    shrinkage: float = Field(default=0.0, ge=0, le=1e9)
    normalisation: float = Field(default=0.4, ge=0, le=10)


class ItemKNN(ItemNeighbours[ItemKNNSettings]):
    """Item-based nearest neighbours: s(i, j) = n_ij / (n_i^(1 - a) n_j^a + shrinkage).

    n_ij counts the users of both items, n_i those of item i. Source: Sarwar et al., WWW 2001, with the asymmetric
    cosine of Aiolli, RecSys 2013, equation 5.
    """

    knowledge = Knowledge("its relevant items", "popularity", "0")

    def _similarities(self, train: Interactions, side: SideInformation, task: str) -> sparse.csr_matrix:
        relevant = train.relevant[task]
        pairs = pair_matrix(train.user[relevant], train.item[relevant], (side.users, side.items))
        counts = np.maximum(np.asarray(pairs.sum(axis=0)).ravel(), 1.0)
        transposed = pairs.T.tocsr()
        blocks = []
        for block in item_blocks(side.items):
            common = (transposed[block] @ pairs).toarray()
            own = counts[block, None] ** (1 - self.settings.normalisation)
            similarity = common / (own * counts[None, :] ** self.settings.normalisation + self.settings.shrinkage)
            rows = np.arange(len(similarity))
            similarity[rows, block.start + rows] = 0.0
            blocks.append(keep_largest(similarity, self.settings.neighbours))
        return sparse.vstack(blocks, format="csr")


class ContentBasedSettings(ShrunkSettings):
    """Parameters of content-based similarity.

    Attributes:
        neighbours: Neighbours kept per item.
    """

    neighbours: int = Field(default=200, ge=1, le=10**7)


class ContentBased(ItemNeighbours[ContentBasedSettings]):
    """Content-based similarity: the cosine of the items' features, each weighted by its inverse document frequency.

    The traditional method that the study's claim is measured against. Source: Lops et al., Content-based
    Recommender Systems, in Recommender Systems Handbook 2011, section 3.3.1. With ``prior_rows`` m, m p(i) is added to
    the score, where p is an item's popularity next to that of the most popular one.
    """

    knowledge = Knowledge("its relevant items", "popularity", "features", item_features=True)

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Add popularity to the sums of similarities."""
        scores = super().score(queries)
        if self.settings.prior_rows > 0:
            known = np.bincount(queries.history.user, minlength=len(queries)) > 0
            for task, own in scores.items():
                popular = self._learnt[task][1]
                own += known[:, None] * np.float32(self.settings.prior_rows / max(popular.max(), 1e-30)) * popular
        return scores

    def _similarities(self, train: Interactions, side: SideInformation, task: str) -> sparse.csr_matrix:
        features = side.item_features
        having = np.asarray((features > 0).sum(axis=0)).ravel()
        weighted = features @ sparse.diags(np.log(side.items / np.maximum(having, 1)))
        norm = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        unit = (sparse.diags(1.0 / np.where(norm > 0, norm, 1.0)) @ weighted).tocsr()
        blocks = []
        for block in item_blocks(side.items):
            similarity = (unit[block] @ unit.T).toarray()
            rows = np.arange(len(similarity))
            similarity[rows, block.start + rows] = 0.0
            blocks.append(keep_largest(similarity, self.settings.neighbours))
        return sparse.vstack(blocks, format="csr")
