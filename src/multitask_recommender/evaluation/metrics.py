"""Accuracy, recall, coverage and novelty: the arithmetic. What is done with each metric: ``metric_records.py``.

Ranking is full: every item of the catalogue minus the items that the user is known to have. Functions of lists return
one value a list, those of errors one value a row where the metric is a mean over rows, so that comparisons can be
paired by user.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from multitask_recommender.data.interactions import BoolArray, FloatArray, IntArray
from multitask_recommender.foundation.membership import among
from multitask_recommender.models.ranking import PADDING

Values = NDArray[np.float64]


def squared_errors(label: ArrayLike, prediction: ArrayLike) -> Values:
    """Squared error of every row, in squared units of the label."""
    return (np.asarray(label, np.float64) - np.asarray(prediction, np.float64)) ** 2


def rmse(label: ArrayLike, prediction: ArrayLike) -> float:
    """Root mean squared error over all rows, in units of the label."""
    return float(np.sqrt(np.mean(squared_errors(label, prediction))))


def absolute_errors(label: ArrayLike, prediction: ArrayLike) -> Values:
    """Absolute error of every row, in units of the label."""
    return np.abs(np.asarray(label, np.float64) - np.asarray(prediction, np.float64))


def mae(label: ArrayLike, prediction: ArrayLike) -> float:
    """Mean absolute error over all rows, in units of the label."""
    return float(np.mean(absolute_errors(label, prediction)))


def auc(label: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve over all rows: P(score of a positive > score of a negative), ties count half.

    Returns:
        The area, or NaN if one of the classes is empty.
    """
    positive = np.asarray(label) > 0
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return math.nan
    ranks = pd.Series(np.asarray(score)).rank().to_numpy()
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
    order = np.lexsort((np.asarray(score), user))
    own, value, positive = user[order], np.asarray(score)[order], (np.asarray(label) > 0)[order]
    first = np.append(True, own[1:] != own[:-1])[: len(own)]
    begins = np.flatnonzero(first)
    # Rows of one user and score share the mean of their places.
    tied = np.flatnonzero(first | np.append(True, value[1:] != value[:-1])[: len(own)])
    sizes = np.diff(np.append(tied, len(own)))
    place = np.repeat(tied + (sizes - 1) / 2, sizes)
    of_user = np.cumsum(first) - 1
    positives = np.bincount(of_user, positive, minlength=len(begins))
    negatives = np.bincount(of_user, ~positive, minlength=len(begins))
    ranks = np.bincount(of_user, np.where(positive, place - begins[of_user] + 1, 0.0), minlength=len(begins))
    both = (positives > 0) & (negatives > 0)
    users, positives, negatives, ranks = own[begins][both], positives[both], negatives[both], ranks[both]
    return users, (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def log_losses(label: ArrayLike, probability: ArrayLike) -> Values:
    """Negative log-likelihood of every row's 0/1 label in nats; probabilities are clipped to [1e-7, 1 - 1e-7]."""
    y = np.asarray(label, np.float64)
    p = np.clip(np.asarray(probability, np.float64), 1e-7, 1 - 1e-7)
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def log_loss(label: ArrayLike, probability: ArrayLike) -> float:
    """Mean of :func:`log_losses` over all rows, in nats."""
    return float(np.mean(log_losses(label, probability)))


def right_answers(label: ArrayLike, probability: ArrayLike) -> Values:
    """1 for every row whose 0/1 label equals (probability >= 0.5), else 0; accuracy is their mean."""
    return ((np.asarray(probability) >= 0.5) == (np.asarray(label) > 0)).astype(np.float64)


def expected_calibration_error(label: ArrayLike, probability: ArrayLike, bins: int = 15) -> float:
    """Mean over equal-width bins of |mean label - mean probability|, weighted by rows in the bin.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 5, for the positive class.
    """
    y, p = np.asarray(label, np.float64), np.asarray(probability, np.float64)
    place = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=y - p, minlength=bins)
    return float(np.abs(gap).sum() / len(y))


def outside(matrix: sparse.csr_matrix, row: IntArray, column: IntArray) -> BoolArray:
    """Return (n,) whether a matrix is 0 at the places (row, column), (n,) each."""
    if not len(row):
        return np.zeros(0, dtype=bool)
    return np.asarray(matrix[row, column]).ravel() == 0


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
    return among(keys, user * items + item) & (lists != PADDING)


def precision(hits: BoolArray) -> Values:
    """Share of every list's k places that are hits: (lists, k) to (lists,)."""
    return hits.sum(axis=1) / hits.shape[1]


def recall(hits: BoolArray, positives: IntArray) -> Values:
    """Share of the relevant items that every list finds.

    Args:
        hits: (lists, k), whether the entry is relevant.
        positives: (lists,) number of relevant held-out items, at least 1; more than k of them count as well.
    """
    return hits.sum(axis=1) / positives


def ndcg(hits: BoolArray, positives: IntArray) -> Values:
    """Normalised discounted cumulative gain of every list, with binary gains.

    The ideal is that of min(k, positives) hits. Source: Järvelin and Kekäläinen, TOIS 2002, with the discount
    1 / log2(rank + 1).

    Args:
        hits: (lists, k), whether the entry is relevant.
        positives: (lists,) number of relevant held-out items, at least 1.
    """
    k = hits.shape[1]
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(positives, k) - 1]
    return (hits @ discount) / ideal


def hit_rate(hits: BoolArray) -> Values:
    """1 for every list with a hit, else 0: (lists, k) to (lists,)."""
    return (hits.sum(axis=1) > 0).astype(np.float64)


def catalogue_coverage(lists: IntArray, catalogue: BoolArray) -> float:
    """Share of the catalogue that stands in at least one list; NaN for an empty catalogue."""
    if not catalogue.any():
        return math.nan
    listed = np.zeros_like(catalogue)
    listed[lists[lists != PADDING]] = True
    return float(listed.sum() / catalogue.sum())


def gini(lists: IntArray, catalogue: BoolArray) -> float:
    """Gini coefficient of how often each item of the catalogue is recommended, zeros included.

    0: all items equally often; 1: one item alone; NaN if none is recommended. Source: the mean absolute difference form
    for ordered counts, sum_i (2 i - n - 1) x_i / (n sum x).
    """
    counts = np.sort(np.bincount(lists[lists != PADDING], minlength=len(catalogue))[catalogue])
    n = len(counts)
    if not counts.any():
        return math.nan
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
    return _mean_over_entries(lists, -np.log2(np.maximum(item_users, 1) / users))


def average_popularity(lists: IntArray, item_users: IntArray, users: int) -> Values:
    """Mean over each list of the share of training users who had the item; NaN for a list without entries.

    Source: Yin et al., Challenging the Long Tail Recommendation, VLDB 2012, "average recommendation popularity".

    Args:
        lists: (lists, k) recommended items.
        item_users: (items,) training users of each item.
        users: Number of training users.
    """
    return _mean_over_entries(lists, item_users / users)


def short_head(item_users: IntArray, share: float = 0.8) -> BoolArray:
    """Mark the fewest most popular items that together have a share of all training pairs; the others are the tail.

    Items as popular as the last of them are marked as well, so that no order among equals plays a part.

    Args:
        item_users: (items,) training users of each item.
        share: The share.
    """
    sizes = np.sort(item_users)[::-1]
    last = np.searchsorted(np.cumsum(sizes), share * sizes.sum())
    return item_users >= max(sizes[min(last, len(sizes) - 1)], 1)


def long_tail_share(lists: IntArray, item_users: IntArray) -> Values:
    """Share of each list's entries that lie outside the :func:`short_head`; NaN for a list without entries.

    Source: Abdollahpouri, Burke and Mobasher, Managing Popularity Bias in Recommender Systems with Personalized
    Re-ranking, FLAIRS 2019, "average percentage of long tail items"; the head holds 80 % of the training pairs.
    """
    return _mean_over_entries(lists, ~short_head(item_users))


def _mean_over_entries(lists: IntArray, value: NDArray[np.generic]) -> Values:
    """Return (lists,) the means of the items' values (items,) over the entries of lists (lists, k)."""
    valid = lists != PADDING
    total = np.where(valid, value[np.where(valid, lists, 0)], 0.0).sum(axis=1)
    length = valid.sum(axis=1)
    return np.divide(total, length, out=np.full(len(lists), np.nan), where=length > 0)


def _sums_over_entries(lists: IntArray, features: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return (lists, columns) the sums of rows of (items, columns) features over the entries of lists (lists, k)."""
    valid = lists != PADDING
    entries, ends = lists[valid], np.append(0, np.cumsum(valid.sum(axis=1)))
    listed = sparse.csr_matrix((np.ones(len(entries)), entries, ends), shape=(len(lists), features.shape[0]))
    return (listed @ features).tocsr()


def _squared_lengths(matrix: sparse.csr_matrix) -> Values:
    """Return (rows,) the sums of the squares of each row."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    squares = np.square(matrix.data, dtype=np.float64)
    return np.bincount(row, squares, minlength=matrix.shape[0]).astype(np.float64)


def intra_list_diversity(lists: IntArray, features: sparse.csr_matrix) -> Values:
    """Mean over the pairs of items of each list of 1 - the cosine of their features.

    Items without features have cosine 0 with all others. Source: Ziegler et al., Improving Recommendation Lists through
    Topic Diversification, WWW 2005, section 3.3, as a distance: Vargas and Castells, RecSys 2011, section 5.2.

    Args:
        lists: (lists, k) recommended items.
        features: (items, columns) rows of length 1, or 0.

    Returns:
        (lists,) values; NaN for a list of fewer than two items.
    """
    # The sum of all cosines is the squared length of the sum of the rows.
    lengths = _squared_lengths(features)
    sums = _sums_over_entries(lists, features)
    length = (lists != PADDING).sum(axis=1)
    own = np.nan_to_num(_mean_over_entries(lists, lengths)) * length
    cosines = _squared_lengths(sums) - own
    pairs = length * (length - 1)
    return 1.0 - np.divide(cosines, pairs, out=np.full(len(lists), np.nan), where=pairs > 0)


def serendipity(lists: IntArray, hits: BoolArray, item_users: IntArray, catalogue: BoolArray) -> Values:
    """Mean over the k places of each list of hit x how much earlier the item stands than by popularity.

    An entry at rank r of N items counts as (r_popular - r) / N where that is above 0, with r_popular the rank of the
    item by training users (the mean rank of those with as many). Source: Zangerle and Bauer, Evaluating Recommender
    Systems: Survey and Framework, ACM Computing Surveys 2022, section 5.3.

    Args:
        lists: (lists, k) recommended items.
        hits: (lists, k), whether the entry is relevant.
        item_users: (items,) training users of each item.
        catalogue: (items,), true for the N items that may be recommended.
    """
    popular = np.zeros(len(catalogue))
    popular[catalogue] = pd.Series(-item_users[catalogue]).rank().to_numpy()
    rank = np.arange(1, lists.shape[1] + 1)
    gain = np.where(hits, popular[np.where(hits, lists, 0)] - rank, 0.0)
    return np.maximum(gain, 0.0).sum(axis=1) / (lists.shape[1] * max(int(catalogue.sum()), 1))


def miscalibration(lists: IntArray, categories: sparse.csr_matrix, tastes: FloatArray) -> Values:
    """Kullback-Leibler divergence, in nats, of the categories of each list from those of the user's known items.

    C = sum_g p(g|u) log(p(g|u) / ((1 - a) q(g|u) + a p(g|u))), a = 0.01, with q the mean over the list of the items'
    shares in category g. Source: Steck, Calibrated Recommendations, RecSys 2018, equations 2 to 5.

    Args:
        lists: (lists, k) recommended items.
        categories: (items, categories) shares p(g|i), which sum to 1, or 0 for an item without any.
        tastes: (lists, categories) p(g|u), which sum to 1, or 0 for a user of whom none is known.

    Returns:
        (lists,) values; NaN where p or q is not known.
    """
    found = _sums_over_entries(lists, categories).toarray()
    total = found.sum(axis=1, keepdims=True)
    q = np.divide(found, total, out=np.zeros_like(found), where=total > 0)
    mixed = 0.99 * q + 0.01 * tastes
    ratio = np.divide(tastes, mixed, out=np.ones_like(mixed), where=(tastes > 0) & (mixed > 0))
    known = (total[:, 0] > 0) & (tastes.sum(axis=1) > 0)
    return np.where(known, (tastes * np.log(ratio)).sum(axis=1), np.nan)
