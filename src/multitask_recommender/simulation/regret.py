"""How far a model's lists stay behind those of an oracle that knows the truth of the simulated bookstore."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from multitask_recommender.data.interactions import BoolArray, FloatArray, IntArray
from multitask_recommender.models import ranking
from multitask_recommender.simulation.bookstore import GroundTruth

_BLOCK = 512
Values = NDArray[np.float64]


def list_values(
    truth: GroundTruth,
    task: str,
    users: IntArray,
    lists: list[IntArray],
    known: sparse.csr_matrix,
    catalogue: BoolArray,
    k: int,
) -> tuple[Values, list[Values]]:
    """Return the mean true value of the oracle's lists and of the models' lists.

    The value of a book to a reader is the expected label: for ``rating`` the expected rating of a reader who reads it,
    for the other tasks the probability of the event (for ``click``, that of a reader to whom the book is shown).

    Args:
        truth: The ground truth.
        task: The task whose value counts.
        users: (n,) readers.
        lists: For every model (n, k) books, ``ranking.PADDING`` where a list is shorter.
        known: (users, books), nonzero at the books that a reader is known to have: the oracle does not recommend them.
        catalogue: (books,), true for the books that the oracle may recommend.
        k: Length of the lists.

    Returns:
        (n,) mean values of the oracle's k books, and (n,) of every model's. An empty place counts as 0.
    """
    best: list[Values] = []
    own: list[list[Values]] = [[] for _ in lists]
    for begin in range(0, len(users), _BLOCK):
        block = users[begin : begin + _BLOCK]
        value = truth.value(task, truth.utilities(task, block))
        oracle = ranking.top_items(value, known[block], catalogue, k, block)
        filled = np.maximum((oracle != ranking.PADDING).sum(axis=1), 1)

        def mean(items: IntArray, value: FloatArray = value, filled: NDArray[np.int64] = filled) -> Values:
            found = np.take_along_axis(value.astype(np.float64), np.where(items == ranking.PADDING, 0, items), axis=1)
            return np.where(items == ranking.PADDING, 0.0, found).sum(axis=1) / filled

        best.append(mean(oracle))
        for place, table in enumerate(lists):
            own[place].append(mean(table[begin : begin + _BLOCK, :k]))
    return np.concatenate(best), [np.concatenate(parts) for parts in own]
