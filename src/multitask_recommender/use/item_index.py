"""Approximate lists for large catalogues: an index of the items' vectors, whose recall is measured and asked for."""

from __future__ import annotations

import importlib.util
from math import isqrt

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from multitask_recommender.data.interactions import BoolArray, FloatArray, IntArray
from multitask_recommender.foundation.errors import RequestError
from multitask_recommender.foundation.membership import among
from multitask_recommender.models import ranking

RECALL = 0.95
"""Mean share of the exact lists that an index has to find."""
SAMPLE = 1000
"""Most users on whom that is measured."""


class ItemIndex:
    """Items in cells around centres; a search looks into the cells whose centres have the largest inner products.

    The index of Johnson, Douze and Jegou, Billion-scale similarity search with GPUs, 2017, with the vectors as they are
    (``IndexIVFFlat`` of faiss).

    Args:
        vectors: (items, d).
        allowed: (items,), true for the items that may be recommended.
        seed: Seed of the centres.

    Attributes:
        recall: The recall that :meth:`tune` measured; 1 before, when all cells are searched.
        index: The index of faiss; its numbers are those of the items.
        items: (m,) the items that may be recommended.

    Raises:
        RequestError: If faiss is not installed.
    """

    def __init__(self, vectors: FloatArray, allowed: BoolArray, seed: int = 0) -> None:
        if importlib.util.find_spec("faiss") is None:
            raise RequestError(
                "An index of the items needs the package 'faiss', which is not installed.",
                "the setting 'index_above', or --index",
                "pip install 'multitask-recommender[ann]', or leave the setting out: lists are then exact.",
            )
        import faiss

        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._allowed, self.items = allowed, np.flatnonzero(allowed)
        own = np.ascontiguousarray(self._vectors[self.items])
        # A cell of fewer than 39 items is one that faiss warns of: its centre is hardly known.
        self.cells = max(min(4 * isqrt(len(own)), len(own) // 39), 1)
        quantiser = faiss.IndexFlatIP(own.shape[1])
        self.index = faiss.IndexIVFFlat(quantiser, own.shape[1], self.cells, faiss.METRIC_INNER_PRODUCT)
        self.index.cp.seed = seed
        self.index.train(own)
        self.index.add_with_ids(own, self.items)
        self.index.nprobe, self.recall = self.cells, 1.0

    def tune(self, users: FloatArray, known: sparse.csr_matrix, k: int, recall: float = RECALL) -> None:
        """Search as few cells as give a recall on some users; all of them give all.

        Args:
            users: (B, d) vectors of users.
            known: (B, items), nonzero at the items that their lists leave out.
            k: Length of the lists.
            recall: The mean share of the exact lists that has to be found.
        """
        exact = ranking.top_items_by_vectors(users, self._vectors, known, self._allowed, k, np.arange(len(users)))
        there = exact != ranking.PADDING
        keys = np.arange(len(users))[:, None] * len(self._vectors)
        self.index.nprobe = 1
        while True:
            found = self.search(users, known, k)[0]
            hit = among(keys + exact, (keys + found)[found != ranking.PADDING]) & there
            self.recall = float(hit.sum() / max(there.sum(), 1))
            if self.recall >= recall or self.index.nprobe >= self.cells:
                return
            self.index.nprobe = min(2 * self.index.nprobe, self.cells)

    def search(self, users: FloatArray, known: sparse.csr_matrix, k: int) -> tuple[IntArray, NDArray[np.float32]]:
        """Return lists.

        Args:
            users: (B, d) vectors of users.
            known: (B, items), nonzero at the items that their lists leave out.
            k: Length of the lists.

        Returns:
            (B, k) items, best first, ``ranking.PADDING`` in empty places, and their inner products.
        """
        if not len(users):
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        counts = np.diff(known.indptr)
        more = min(k + int(counts.max()), len(self.items))
        product, found = self.index.search(np.ascontiguousarray(users, dtype=np.float32), more)
        keys = np.arange(len(users)) * len(self._vectors)
        left_out = among(keys[:, None] + found, np.repeat(keys, counts) + known.indices)
        kept = (found >= 0) & ~left_out
        # What is kept comes first, in its order.
        first = np.argsort(~kept, axis=1, kind="stable")[:, :k]
        listed = np.take_along_axis(np.where(kept, found, ranking.PADDING), first, axis=1)
        result = np.full((len(users), k), ranking.PADDING, dtype=np.int64)
        score = np.full((len(users), k), -np.inf, dtype=np.float32)
        result[:, : first.shape[1]] = listed
        products = np.take_along_axis(product, first, axis=1)
        score[:, : first.shape[1]] = np.where(listed == ranking.PADDING, -np.inf, products)
        return result, score
