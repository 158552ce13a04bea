"""Losses of the tasks, over inner products of user and item vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from multitask_recommender.models.training.sparse_products import Pairs, gram, pair_scores

DENSE_CATALOGUE = 10_000
"""Most items that the softmax is taken over: beyond, its sum is estimated."""

RetrievalLoss = Literal["squared", "softmax", "bpr"]
"""How a retrieval task is trained: on the whole matrix, against all items, or against one drawn item."""


def whole_data_squared_loss(
    user_vectors: Tensor,
    item_gram: Tensor,
    positive_scores: Tensor,
    positive_weight: float | Tensor,
    share: float = 1.0,
) -> Tensor:
    """Sum over users and all items of w_ui (y_ui - s_ui)^2, with y = 1, w = 1 + positive_weight at positives.

    Everywhere else y = 0 and w = 1. The sum over all pairs is the inner product of the two Gram matrices,
    <U'U, V'V>, so the cost is linear in users, items and positives. Source: Hu, Koren and Volinsky, ICDM 2008,
    equation 3; Rendle et al., RecSys 2021, equation 4.

    Args:
        user_vectors: (B, d).
        item_gram: (d, d) V'V, the Gram matrix of the items' vectors.
        positive_scores: (p,) scores of the positive pairs of these users.
        positive_weight: alpha, the additional weight of a positive pair, or (p,) of each.
        share: What a user counts in the sum over all items.

    Returns:
        Scalar.
    """
    everywhere = share * (gram(user_vectors) * item_gram).sum()
    weight = 1.0 + positive_weight
    return everywhere + (weight * (1.0 - positive_scores) ** 2 - positive_scores**2).sum()


def softmax_loss(
    user_vectors: Tensor,
    item_vectors: Tensor,
    row_user: Tensor,
    row_item: Tensor,
    catalogue: Tensor,
    sample: Callable[[int], Tensor],
    weight: Tensor | None = None,
    sampled: int = 1000,
) -> Tensor:
    """Sum over the positives of -log softmax of the item's score among the catalogue, in nats.

    Where the catalogue is large, the sum over the catalogue is estimated from a uniform sample, each weighted
    by one over its expected number in the sample (logQ correction: Bengio and Senecal, 2008). The positive itself is
    always counted; that it can be among the sampled items as well is neglected.

    Args:
        user_vectors: (B, d).
        item_vectors: (items, d).
        row_user: (p,) places of the positives' users, ascending.
        row_item: (p,) the positives' items.
        catalogue: (m,) numbers of the items that compete.
        sample: Draws so many items of the catalogue.
        weight: (p,) what every positive counts; None: 1.
        sampled: Size of the sample.
    """
    items = len(catalogue)
    positive = pair_scores(user_vectors, item_vectors, Pairs.of(row_user, row_item, len(user_vectors)))
    if items <= DENSE_CATALOGUE:
        total = torch.logsumexp(user_vectors @ item_vectors[catalogue].T, dim=1)[row_user]
    else:
        some = sample(sampled)
        estimate = torch.logsumexp(user_vectors @ item_vectors[some].T, dim=1) + math.log(items / sampled)
        total = torch.logaddexp(positive, estimate[row_user])
    loss = total - positive
    return (loss if weight is None else weight * loss).sum()


def bpr_loss(
    user_vectors: Tensor,
    item_vectors: Tensor,
    row_user: Tensor,
    row_item: Tensor,
    drawn: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Sum over the positives of -log sigmoid(s_ui - s_uj), with one other item j drawn per positive, in nats.

    Source: Rendle et al., BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009, section 4.1.

    Args:
        user_vectors: (B, d).
        item_vectors: (items, d).
        row_user: (p,) places of the positives' users, ascending.
        row_item: (p,) the positives' items.
        drawn: (p,) the items j, uniform over those of the catalogue that are no positives of the user.
        weight: (p,) what every positive counts; None: 1.
    """
    above, below = (
        pair_scores(user_vectors, item_vectors, Pairs.of(row_user, item, len(user_vectors)))
        for item in (row_item, drawn)
    )
    loss = -functional.logsigmoid(above - below)
    return (loss if weight is None else weight * loss).sum()


def squared_error(label: Tensor, score: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum of (label - score)^2 over the rows with a label (NaN: none), and their number.

    Args:
        label: (n,).
        score: (n,).
        weight: (n,) what every row counts in the sum; None: 1.
    """
    asked = ~torch.isnan(label)
    squares = torch.where(asked, label - score, 0.0).square()
    return (squares if weight is None else weight * squares).sum(), asked.sum()


def cross_entropy(label: Tensor, score: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum of the binary cross-entropy of logits over the rows with a label (NaN: none), in nats, and their number.

    Args:
        label: (n,) 0 or 1.
        score: (n,) logits.
        weight: (n,) what every row counts in the sum; None: 1.
    """
    asked = ~torch.isnan(label)
    counted = asked.to(score.dtype) if weight is None else asked * weight
    total = functional.binary_cross_entropy_with_logits(score, label.nan_to_num(0.0), weight=counted, reduction="sum")
    return total, asked.sum()


class Curvature(NamedTuple):
    """A bound of the second derivatives of a loss in the users' vectors.

    The Hessian in the vector of a user is at most sum over the rows of c v_i v_i' plus, over the catalogue, f sum_i
    w_i v_i v_i', in the order of positive semidefinite matrices.

    Attributes:
        rows: (n,) c of every row.
        catalogue: (B,) f of every user.
        weights: (m,) w of every item of the catalogue; None: 1.
    """

    rows: Tensor
    catalogue: Tensor
    weights: Tensor | None = None


def retrieval_curvature(
    loss: RetrievalLoss,
    positive: Tensor,
    counts: Tensor,
    share: float,
    positive_weight: float,
    popularity: Tensor,
    weight: Tensor | None = None,
) -> Curvature:
    """Return the bound for a retrieval loss.

    Squared loss: exact. Softmax: the covariance of the items' vectors under the softmax, for which that under the
    items' popularity stands in. BPR: sigmoid' <= 1/4, and (v_i - v_j)(v_i - v_j)' <= 2 (v_i v_i' + v_j v_j').

    Args:
        loss: Which loss.
        positive: (n,) whether a row is a positive.
        counts: (B,) positives of every user, or the sum of their weights.
        share: What a user counts in sums over all items.
        positive_weight: See :func:`whole_data_squared_loss`.
        popularity: (m,) share of the training rows of every item of the catalogue.
        weight: (n,) what every row counts; None: 1.
    """
    own = positive.to(popularity.dtype) if weight is None else positive * weight
    number = counts.to(popularity.dtype)
    if loss == "softmax":
        return Curvature(torch.zeros_like(own), number, popularity)
    if loss == "bpr":
        return Curvature(0.5 * own, 0.5 * number / len(popularity))
    return Curvature(2.0 * positive_weight * own, torch.full_like(number, 2.0 * share))
