"""Accuracy, recall, coverage and novelty.

Ranking is full: every item of the catalogue minus the items that the user is known to have. Per-user functions
return one value a user, so that comparisons can be paired by user.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, stats

from multitask_recommender.data.interactions import BoolArray, FloatArray, IntArray

Values = NDArray[np.float64]
PADDING = -1
"""Stands in a list where the user has no candidate left."""


def rmse(label: ArrayLike, prediction: ArrayLike) -> float:
    """Root mean squared error over all rows, in units of the label."""
    difference = np.asarray(label, np.float64) - np.asarray(prediction, np.float64)
    return float(np.sqrt(np.mean(difference**2)))


def mae(label: ArrayLike, prediction: ArrayLike) -> float:
    """Mean absolute error over all rows, in units of the label."""
    return float(np.mean(np.abs(np.asarray(label, np.float64) - np.asarray(prediction, np.float64))))


def auc(label: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve over all rows: P(score of a positive > score of a negative), ties count half.

    Returns:
        The area, or NaN if one of the classes is empty.
    """
    positive = np.asarray(label, np.float64) > 0
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = stats.rankdata(np.asarray(score, np.float64))
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auc_by_user(label: ArrayLike, score: ArrayLike, user: IntArray) -> tuple[IntArray, Values]:
    """Compute :func:`auc` of every user's own rows.

    Args:
        label: (rows,) 0 or 1.
        score: (rows,).
        user: (rows,) number of each row's user.

    Returns:
        Users who have rows of both classes, ascending, and their areas.
    """
    rows = pd.DataFrame({"user": user, "positive": np.asarray(label, np.float64) > 0})
    rows["rank"] = pd.Series(np.asarray(score, np.float64)).groupby(user).rank()
    rows["positive_rank"] = rows["rank"].where(rows["positive"], 0.0)
    own = rows.groupby("user").agg(rows=("rank", "size"), positives=("positive", "sum"), ranks=("positive_rank", "sum"))
    negatives = own["rows"] - own["positives"]
    both = (own["positives"] > 0) & (negatives > 0)
    own, negatives = own[both], negatives[both]
    area = (own["ranks"] - own["positives"] * (own["positives"] + 1) / 2) / (own["positives"] * negatives)
    return own.index.to_numpy(np.int64), area.to_numpy(np.float64)


def log_loss(label: ArrayLike, probability: ArrayLike) -> float:
    """Mean negative log-likelihood of 0/1 labels in nats; probabilities are clipped to [1e-7, 1 - 1e-7]."""
    y = np.asarray(label, np.float64)
    p = np.clip(np.asarray(probability, np.float64), 1e-7, 1 - 1e-7)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))


def accuracy(label: ArrayLike, probability: ArrayLike) -> float:
    """Share of 0/1 labels equal to (probability >= 0.5)."""
    return float(np.mean((np.asarray(probability) >= 0.5) == (np.asarray(label) > 0)))


def expected_calibration_error(label: ArrayLike, probability: ArrayLike, bins: int = 15) -> float:
    """Mean over equal-width bins of |mean label - mean probability|, weighted by rows in the bin.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 5, for the positive class.
    """
    y, p = np.asarray(label, np.float64), np.asarray(probability, np.float64)
    place = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=y - p, minlength=bins)
    return float(np.abs(gap).sum() / len(y))


def top_items(score: FloatArray, excluded: sparse.csr_matrix, catalogue: BoolArray, k: int) -> IntArray:
    """Rank the catalogue for a block of users.

    Args:
        score: (users, items) scores; higher is better. Not changed.
        excluded: (users, items), nonzero at the items that the user is known to have.
        catalogue: (items,), true for the items that may be recommended.
        k: Length of the lists.

    Returns:
        (users, k) items, best first; equal scores in the order of the item numbers; ``PADDING`` at the end of the
        list of a user with fewer than k candidates.
    """
    lowest = score.dtype.type(-np.inf)
    masked = np.fmax(np.where(catalogue, score, lowest), lowest)  # Of NaN and a number, the number.
    masked[excluded.nonzero()] = lowest
    best, _ = torch.from_numpy(masked).topk(min(k, masked.shape[1]))
    threshold = best[:, -1:].numpy()
    result = np.full((len(masked), k), PADDING, dtype=np.int64)
    # All items at or above the k-th best score, so that ties at the end of the list break by item number.
    reached = masked >= threshold
    if np.count_nonzero(reached) > 2 * k * len(masked):
        # Many ties, as in the lists of a mean: those that cannot get into the list would only have to be sorted.
        tied = masked == threshold
        room = k - (reached & ~tied).sum(axis=1, keepdims=True)
        reached &= ~tied | (np.cumsum(tied, axis=1, dtype=np.int32) <= room)
    # In a large block NumPy finds places in one dimension much faster than in two.
    row, item = np.divmod(np.flatnonzero(reached), masked.shape[1])
    candidate = np.isfinite(masked[row, item])
    row, item = row[candidate], item[candidate]
    order = np.lexsort((item, -masked[row, item], row))
    row, item = row[order], item[order]
    starts = np.searchsorted(row, np.arange(len(masked)))
    rank = np.arange(len(row)) - starts[row]
    kept = rank < k
    result[row[kept], rank[kept]] = item[kept]
    return result


def find_hits(lists: IntArray, list_users: IntArray, user: IntArray, item: IntArray, items: int) -> BoolArray:
    """Mark the entries of the lists that are among the relevant pairs.

    Args:
        lists: (lists, k) recommended items.
        list_users: (lists,) whose list it is.
        user: (pairs,) users of the relevant pairs.
        item: (pairs,) items of the relevant pairs.
        items: Number of items.

    Returns:
        (lists, k), true at a hit.
    """
    keys = list_users[:, None] * items + lists
    return np.isin(keys, user * items + item) & (lists != PADDING)


def ranking_metrics(hits: BoolArray, positives: IntArray) -> dict[str, Values]:
    """Compute precision, recall, NDCG and hit rate of every list, at k = the width of ``hits``.

    Args:
        hits: (lists, k), whether the entry is relevant.
        positives: (lists,) number of relevant held-out items, at least 1.

    Returns:
        Metric to (lists,) values. NDCG has binary gains and the ideal DCG of min(k, positives) hits
        (Järvelin and Kekäläinen, TOIS 2002, with the discount 1 / log2(rank + 1)).
    """
    k = hits.shape[1]
    found = hits.sum(axis=1)
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(positives, k) - 1]
    return {
        "precision": found / k,
        "recall": found / positives,
        "ndcg": (hits @ discount) / ideal,
        "hit_rate": (found > 0).astype(np.float64),
    }


def catalogue_coverage(lists: IntArray, catalogue: BoolArray) -> float:
    """Share of the catalogue that stands in at least one list."""
    return float(len(np.unique(lists[lists != PADDING])) / catalogue.sum())


def gini(lists: IntArray, catalogue: BoolArray) -> float:
    """Gini coefficient of how often each item of the catalogue is recommended, zeros included.

    0: all items equally often; 1: one item alone. Source: the mean absolute difference form for ordered counts,
    sum_i (2 i - n - 1) x_i / (n sum x).
    """
    counts = np.sort(np.bincount(lists[lists != PADDING], minlength=len(catalogue))[catalogue])
    n = len(counts)
    return float(((2 * np.arange(1, n + 1) - n - 1) * counts).sum() / (n * counts.sum()))


def self_information(lists: IntArray, item_users: IntArray, users: int) -> Values:
    """Mean over each list of -log2(share of training users who had the item), in bits.

    Args:
        lists: (lists, k) recommended items.
        item_users: (items,) training users of each item; taken as at least 1.
        users: Number of training users.

    Returns:
        (lists,) values; NaN for a list without entries. Source: Zhou et al., PNAS 2010, "surprisal".
    """
    bits = -np.log2(np.maximum(item_users, 1) / users)
    valid = lists != PADDING
    total = np.where(valid, bits[np.where(valid, lists, 0)], 0.0).sum(axis=1)
    length = valid.sum(axis=1)
    return np.divide(total, length, out=np.full(len(lists), np.nan), where=length > 0)
