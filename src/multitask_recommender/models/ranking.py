"""The best items of users: exact lists, from scores or from vectors, in blocks of bounded size.

All lists are made here, in the evaluation, in the recommendations and in use, so that the same scores give the same
list everywhere.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from multitask_recommender.data.interactions import BoolArray, FloatArray, IntArray
from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.foundation.randomness import scramble
from multitask_recommender.foundation.resources import scores_at_once

Codes = NDArray[np.uint64]
PADDING = -1
"""Stands in a list where the user has no candidate left."""
MEMORY_MB = 32
"""Scores that are held at a time, in units of 2^20 bytes."""
_MOST_USERS = 512
"""Of a block: more of them make no product of matrices faster."""
_MINUS_INFINITY = float("-inf")


def users_at_a_time(items: int, tasks: int = 1, memory_mb: float | None = None) -> int:
    """Return of how many users the scores for all items and tasks are held at a time, in single precision.

    Args:
        items: Number of items.
        tasks: Number of tasks.
        memory_mb: Most memory for the scores, in units of 2^20 bytes; None: ``MEMORY_MB``, less
            where the memory of the run is limited, or what one user needs.

    Raises:
        SettingsError: If the scores of one user need more than is allowed.
    """
    needed = 4 * max(items * tasks, 1)
    if memory_mb is not None and needed > memory_mb * 2**20:
        raise SettingsError(
            f"The scores of one user for {items} items and {tasks} tasks need {needed / 2**20:.1f} MB, and "
            f"{memory_mb:g} MB are allowed.\n  where: the memory limit of the lists\n"
            f"  what to do: allow at least {np.ceil(needed / 2**20):.0f} MB."
        )
    allowed = 4 * scores_at_once(MEMORY_MB * 2**18) if memory_mb is None else int(memory_mb * 2**20)
    return min(max(allowed // needed, 1), _MOST_USERS)


def top_items(
    score: FloatArray,
    excluded: sparse.csr_matrix,
    catalogue: BoolArray,
    k: int,
    users: IntArray,
    overwrite: bool = False,
) -> IntArray:
    """Rank the catalogue for a block of users.

    Items of equal score are in an order by a hash of user and item, another one for each user, so that a model that
    cannot tell items apart is at chance. It is seeded, because the numbers are (see ``data/numbering.py``).

    Args:
        score: (users, items) scores; higher is better.
        excluded: (users, items), nonzero at the items that the user is known to have.
        catalogue: (items,), true for the items that may be recommended.
        k: Length of the lists.
        users: (users,) numbers of the users, which break ties. Other users of the block change nothing.
        overwrite: Whether the scores may be changed, which saves a copy of them.

    Returns:
        (users, k) items, best first; ``PADDING`` at the end of the list of a user with fewer than k candidates.
    """
    own = np.ascontiguousarray(score) if overwrite else np.array(score, order="C")
    return _ranked(torch.from_numpy(own), excluded, catalogue, k, users)


def top_items_by_vectors(
    user_vectors: FloatArray,
    item_vectors: FloatArray,
    excluded: sparse.csr_matrix,
    catalogue: BoolArray,
    k: int,
    users: IntArray,
    memory_mb: float | None = None,
) -> IntArray:
    """Rank the catalogue by inner products, block by block; on as many threads as PyTorch may use.

    Args:
        user_vectors: (users, d), in single precision.
        item_vectors: (items, d), in single precision.
        excluded: See :func:`top_items`.
        catalogue: See :func:`top_items`.
        k: See :func:`top_items`.
        users: See :func:`top_items`.
        memory_mb: See :func:`users_at_a_time`.

    Returns:
        See :func:`top_items`.

    Raises:
        SettingsError: If the scores of one user need more memory than is allowed.
    """
    threads = torch.get_num_threads()
    size = max(users_at_a_time(len(item_vectors), 1, memory_mb) // threads, 1)
    result = np.full((len(user_vectors), k), PADDING, dtype=np.int64)
    own = torch.from_numpy(np.ascontiguousarray(user_vectors))
    others = torch.from_numpy(np.ascontiguousarray(item_vectors)).t()

    def rank(first: int) -> None:
        """Rank every so many blocks, from one on."""
        held = torch.empty((min(size, len(own)), len(item_vectors)))
        for begin in range(first, len(own), size * threads):
            block = slice(begin, min(begin + size, len(own)))
            score = torch.mm(own[block], others, out=held[: block.stop - begin])
            result[block] = _ranked(score, excluded[block], catalogue, k, users[block])

    if threads == 1:
        rank(0)
        return result
    # Threads that each do all steps of a block need not wait for each other after every step.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(rank, range(0, size * threads, size)))
    finally:
        torch.set_num_threads(threads)
    return result


def _ranked(
    score: torch.Tensor, excluded: sparse.csr_matrix, catalogue: BoolArray, k: int, users: IntArray
) -> IntArray:
    """Do the work of :func:`top_items` on scores that may be changed."""
    array = score.numpy()
    if not catalogue.all():
        array[:, ~catalogue] = _MINUS_INFINITY
    counts = np.diff(excluded.indptr)
    places = np.repeat(np.arange(len(array)) * array.shape[1], counts) + excluded.indices
    if not excluded.data.all():
        places = places[excluded.data != 0]
    array.reshape(-1)[places] = _MINUS_INFINITY
    best, place, others = _first(score, k)
    if torch.isnan(best[:, 0]).any():  # What is not a number comes first.
        torch.nan_to_num(score, nan=_MINUS_INFINITY, posinf=float("inf"), neginf=_MINUS_INFINITY, out=score)
        best, place, others = _first(score, k)
    length = min(k, score.shape[1])
    own, following = best[:, :length], torch.full_like(best[:, :length], _MINUS_INFINITY)
    following[:, : best.shape[1] - 1] = best[:, 1:]
    following[:, -1] = torch.maximum(following[:, -1], others)
    # Where two neighbours are equal, a hash decides; and what is infinite is no score.
    open_order = ((own == following) & (own > _MINUS_INFINITY)).any(1) | torch.isinf(own[:, 0]) & (own[:, 0] > 0)
    result = np.full((len(array), k), PADDING, dtype=np.int64)
    result[:, :length] = torch.where(own > _MINUS_INFINITY, place[:, :length], PADDING).numpy()
    rows = np.flatnonzero(open_order.numpy())
    if len(rows):
        result[rows] = _with_ties(array[rows], k, users[rows])
    return result


def _first(score: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the largest scores of every row.

    The items fall into groups. The k groups with the largest maxima hold the k largest scores, since k scores, one of
    each, are at least as large as all of the other groups. Only these groups are searched.

    Args:
        score: (B, items).
        k: How many are wanted.

    Returns:
        (B, min(k + 1, items)) the largest scores that were searched, in falling order, and their places; and (B,) a
        bound of the scores that were not.
    """
    items = score.shape[1]
    size = isqrt(items // (k + 1))
    if size < 2:
        best = score.topk(min(k + 1, items))
        return best.values, best.indices, torch.full_like(score[:, 0], _MINUS_INFINITY)
    groups = items // size
    # Group j holds the items j, j + groups, ...: maxima are then taken of whole stretches of memory at a time. The few
    # items that are left over are searched always.
    divided, rest = score[:, : size * groups], score[:, size * groups :]
    maxima = divided.unflatten(1, (size, groups)).amax(1).topk(k + 1)
    members = torch.arange(size) * groups
    searched = (maxima.indices[:, None, :k] + members[:, None]).flatten(1)
    values = score.gather(1, searched)
    best = (torch.cat([values, rest], 1) if items > size * groups else values).topk(k + 1)
    inside = searched.gather(1, best.indices.clamp(max=size * k - 1))
    place = torch.where(best.indices < size * k, inside, best.indices + (size * groups - size * k))
    return best.values, place, maxima.values[:, k]


def _tie_codes(users: IntArray, items: IntArray) -> tuple[Codes, Codes]:
    """Scramble the numbers of users and items; a user has another code than the item of the same number."""
    return scramble(~users.astype(np.uint64)), scramble(items.astype(np.uint64))


def _tie_order(user: Codes, item: Codes) -> Codes:
    """Return what orders equal scores: hashes of the codes of users and items, in the last steps of SplitMix64."""
    mixed = (user ^ item) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0x94D049BB133111EB)
    return mixed


def _drawn_ties(tied: BoolArray, room: IntArray, users: IntArray) -> BoolArray:
    """Mark so many of the tied items of every user that the ``room`` first of them by hash are among them.

    Args:
        tied: (users, items), the items of which some are to be drawn.
        room: (users,) how many of them are wanted.
        users: (users,) numbers of the users.

    Returns:
        (users, items), a little more than ``room`` of ``tied`` in each row, or all of them.
    """
    drawn = tied.copy()
    user, item = _tie_codes(users, np.arange(tied.shape[1]))
    count = tied.sum(axis=1)
    # Hashes are uniform: below the wanted share of them, with five standard deviations more, are enough.
    share = (room + 5 * np.sqrt(room) + 25) / np.maximum(count, 1)
    for row in np.flatnonzero(share < 1):
        below = tied[row] & (_tie_order(user[[row]], item) < np.uint64(share[row] * 2.0**64))
        if below.sum() >= room[row]:
            drawn[row] = below
    return drawn


def _with_ties(masked: FloatArray, k: int, users: IntArray) -> IntArray:
    """Rank rows of scores, -infinity for what is left out, with equal scores in the order of their hash."""
    best, _ = torch.from_numpy(masked).topk(min(k, masked.shape[1]))
    threshold = best[:, -1:].numpy()
    result = np.full((len(masked), k), PADDING, dtype=np.int64)
    # All items at or above the k-th best score, so that ties at the end of the list break as within it.
    reached = masked >= threshold
    if np.count_nonzero(reached) > 2 * k * len(masked):
        # Many ties, as in the lists of a mean: those that cannot get into the list would only have to be sorted.
        above = masked > threshold
        tied = reached & ~above & (threshold > _MINUS_INFINITY)
        reached = above | _drawn_ties(tied, k - above.sum(axis=1), users)
    # In a large block NumPy finds places in one dimension much faster than in two.
    row, item = np.divmod(np.flatnonzero(reached), masked.shape[1])
    candidate = np.isfinite(masked[row, item])
    row, item = row[candidate], item[candidate]
    user_codes, item_codes = _tie_codes(users, item)
    order = np.lexsort((_tie_order(user_codes[row], item_codes), -masked[row, item], row))
    row, item = row[order], item[order]
    starts = np.searchsorted(row, np.arange(len(masked)))
    rank = np.arange(len(row)) - starts[row]
    kept = rank < k
    result[row[kept], rank[kept]] = item[kept]
    return result
