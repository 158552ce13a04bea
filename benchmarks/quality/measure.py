"""The metrics of all models of the benchmark, by the project's own functions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from multitask_recommender.data.interactions import Interactions, pair_matrix
from multitask_recommender.data.splits import candidate_items
from multitask_recommender.evaluation import metrics
from multitask_recommender.models import ranking

K = 10
VALUES = ("rmse", "mae", "ndcg_10", "recall_10", "coverage_10", "novelty_10", "auc_like")
Totals = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
"""(n,) users, their totals and their counts: see ``statistics.py``."""


class Rows(Protocol):
    """What is needed of a split."""

    train: Interactions
    validation: Interactions
    users: int
    items: int


@dataclass
class Measured:
    """What was measured of one fit.

    Attributes:
        values: Metric to value; None where the model cannot give it.
        totals: ``rmse``, ``ndcg_10``, ``auc_like`` (see :func:`auc_contributions`) and ``user_auc_like`` (the user's
            own AUC) per user, for paired comparisons.
    """

    values: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(VALUES))
    totals: dict[str, Totals] = field(default_factory=dict)


def auc_contributions(label: np.ndarray, score: np.ndarray, user: np.ndarray) -> Totals:
    """Divide the AUC over all rows among the users, so that models can be compared over users.

    With P positives, N negatives and U users, a user contributes
    U (sum of (V_i - A) / P over own positives + sum of (V_j - A) / N over own negatives) + A, where A is the AUC, V_i
    the share of all negatives that score below the positive i, and V_j the share of all positives that score above the
    negative j. Source: DeLong et al., Biometrics 1988, for clusters of rows: Obuchowski, Biometrics 1997.

    Args:
        label: (rows,) 0 or 1, both present.
        score: (rows,).
        user: (rows,).

    Returns:
        Users, contributions, whose mean is the AUC over all rows, and ones.
    """
    positive = label > 0
    ranks, own_ranks = stats.rankdata(score), np.empty(len(score))
    for side in (positive, ~positive):
        own_ranks[side] = stats.rankdata(score[side])
    positives, negatives = int(positive.sum()), int((~positive).sum())
    # The rank among all minus the rank among one's own kind counts the others below, ties half.
    others_below = ranks - own_ranks
    placement = np.where(positive, others_below / negatives, 1 - others_below / positives)
    area = metrics.auc(label, score)
    share = (placement - area) / np.where(positive, positives, negatives)
    users, place = np.unique(user, return_inverse=True)
    return users, len(users) * np.bincount(place, share) + area, np.ones(len(users))


def measure(scores: dict[str, np.ndarray], rows: Interactions, known: list[Interactions], split: Rows) -> Measured:
    """Measure a model on some rows.

    Args:
        scores: Of ``rating`` (rows,), ``like`` (rows,) and ``matrix`` (users, items), what the model gives. Ratings are
            clipped to 1 to 5. Where there is no ``like``, the rating orders the rows for the AUC.
        rows: The rows, of which every item is relevant.
        known: Rows whose items are not recommended to their users.
        split: The training rows, whose items are the catalogue, and the numbers of users and items.

    Returns:
        The metrics, ranking ones over the users with rows.

    Raises:
        ValueError: If scores are missing or not finite.
    """
    result = Measured()
    rating, like = rows.labels["rating"].astype(np.float64), rows.labels["like"]
    for name in ("rating", "like"):
        if name in scores and not (scores[name].shape == rating.shape and np.isfinite(scores[name]).all()):
            raise ValueError(f"the scores '{name}' are not one finite number per row")
    if "rating" in scores:
        predicted = np.clip(scores["rating"].astype(np.float64), 1, 5)
        result.values |= {"rmse": metrics.rmse(rating, predicted), "mae": metrics.mae(rating, predicted)}
        total = np.bincount(rows.user, (rating - predicted) ** 2, split.users)
        count = np.bincount(rows.user, minlength=split.users).astype(np.float64)
        users = np.nonzero(count)[0]
        result.totals["rmse"] = (users, total[users], count[users])
    order = scores.get("like", scores.get("rating"))
    if order is not None:
        result.values["auc_like"] = metrics.auc(like, order)
        users, own = metrics.auc_by_user(like, order, rows.user)
        result.totals["user_auc_like"] = (users, own, np.ones(len(users)))
        result.totals["auc_like"] = auc_contributions(like, order, rows.user)
    if "matrix" in scores:
        shape = (split.users, split.items)
        excluded = sparse.csr_matrix(shape, dtype=np.float32)
        for part in known:
            excluded = excluded + pair_matrix(part.user, part.item, shape)
        catalogue = candidate_items("trained", split.train.item, split.items)
        positives = np.bincount(rows.user, minlength=split.users)
        users = np.nonzero(positives)[0]
        lists = ranking.top_items(scores["matrix"][users], excluded[users], catalogue, K, users)
        hits = metrics.find_hits(lists, users, rows.user, rows.item, split.items)
        ndcg, recall = metrics.ndcg(hits, positives[users]), metrics.recall(hits, positives[users])
        item_users = np.bincount(split.train.item, minlength=split.items)
        novelty = metrics.self_information(lists, item_users, len(np.unique(split.train.user)))
        result.values |= {
            "ndcg_10": float(ndcg.mean()),
            "recall_10": float(recall.mean()),
            "coverage_10": metrics.catalogue_coverage(lists, catalogue),
            "novelty_10": float(np.nanmean(novelty)),
        }
        result.totals["ndcg_10"] = (users, ndcg, np.ones(len(users)))
    return result


def validation_error(scores: dict[str, np.ndarray], split: Rows) -> float:
    """Return what settings are chosen by: the mean error over what a model can do, as in the study's cross-validation.

    RMSE over the standard deviation of the training ratings, log loss of the likes over the entropy of their base rate,
    and 1 - NDCG@10. Infinite for a fit that diverged.
    """
    if not all(np.isfinite(scores[name]).all() for name in ("rating", "like") if name in scores):
        return math.inf
    measured = measure(scores, split.validation, [split.train], split).values
    errors = []
    if measured["rmse"] is not None:
        errors.append(measured["rmse"] / float(split.train.labels["rating"].std()))
    if "like" in scores:
        rate = float(split.train.labels["like"].mean())
        entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        errors.append(metrics.log_loss(split.validation.labels["like"], scores["like"]) / entropy)
    if measured["ndcg_10"] is not None:
        errors.append(1 - measured["ndcg_10"])
    return float(np.mean(errors))
