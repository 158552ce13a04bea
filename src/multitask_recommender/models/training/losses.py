"""Losses of the tasks, over inner products of user and item vectors."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from multitask_recommender.models.training.sparse_products import Pairs, pair_scores

DENSE_BLOCK = 4_000_000
"""Most scores of a block of users x items that the softmax is taken over: beyond, its sum is estimated."""

RetrievalLoss = Literal["squared", "softmax", "bpr"]
"""How a retrieval task is trained: on the whole matrix, against all items, or against one drawn item."""


def whole_data_squared_loss(
    user_vectors: Tensor, item_vectors: Tensor, positive_scores: Tensor, positive_weight: float
) -> Tensor:
    """Sum over users and all items of w_ui (y_ui - s_ui)^2, with y = 1, w = 1 + positive_weight at positives.

    Everywhere else y = 0 and w = 1. The sum over all pairs is the inner product of the two Gram matrices,
    <U'U, V'V>, so the cost is linear in users, items and positives. Source: Hu, Koren and Volinsky, ICDM 2008,
    equation 3; Rendle et al., RecSys 2021, equation 4.

    Args:
        user_vectors: (B, d).
        item_vectors: (items, d).
        positive_scores: (p,) scores of the positive pairs of these users.
        positive_weight: alpha, the additional weight of a positive pair.

    Returns:
        Scalar.
    """
    everywhere = ((user_vectors.T @ user_vectors) * (item_vectors.T @ item_vectors)).sum()
    weight = 1.0 + positive_weight
    return everywhere + (weight * (1.0 - positive_scores) ** 2 - positive_scores**2).sum()


def softmax_loss(
    user_vectors: Tensor,
    item_vectors: Tensor,
    row_user: Tensor,
    row_item: Tensor,
    catalogue: Tensor,
    generator: torch.Generator,
    sampled: int = 1000,
) -> Tensor:
    """Sum over the positives of -log softmax of the item's score among the catalogue, in nats.

    Where the block of all scores is large, the sum over the catalogue is estimated from a uniform sample, each weighted
    by one over its expected number in the sample (logQ correction: Bengio and Senecal, 2008). The positive itself is
    always counted; that it can be among the sampled items as well is neglected.

    Args:
        user_vectors: (B, d).
        item_vectors: (items, d).
        row_user: (p,) places of the positives' users, ascending.
        row_item: (p,) the positives' items.
        catalogue: (m,) numbers of the items that compete.
        generator: Source of the sample.
        sampled: Size of the sample.
    """
    items = len(catalogue)
    positive = pair_scores(user_vectors, item_vectors, Pairs.of(row_user, row_item, len(user_vectors)))
    if len(user_vectors) * items <= DENSE_BLOCK:
        total = torch.logsumexp(user_vectors @ item_vectors[catalogue].T, dim=1)[row_user]
    else:
        some = catalogue[torch.randint(items, (sampled,), generator=generator)]
        estimate = torch.logsumexp(user_vectors @ item_vectors[some].T, dim=1) + math.log(items / sampled)
        total = torch.logaddexp(positive, estimate[row_user])
    return (total - positive).sum()


def bpr_loss(
    user_vectors: Tensor,
    item_vectors: Tensor,
    row_user: Tensor,
    row_item: Tensor,
    catalogue: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Sum over the positives of -log sigmoid(s_ui - s_uj), with one item j drawn per positive, in nats.

    j is uniform over the catalogue; a draw that is a positive of the user is left out.
    Source: Rendle et al., BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009, section 4.1.

    Args:
        user_vectors: (B, d).
        item_vectors: (items, d).
        row_user: (p,) places of the positives' users, ascending.
        row_item: (p,) the positives' items.
        catalogue: (m,) numbers of the items that are drawn from.
        generator: Source of the drawn items.
    """
    items = len(item_vectors)
    drawn = catalogue[torch.randint(len(catalogue), (len(row_item),), generator=generator)]
    negative = ~torch.isin(row_user * items + drawn, row_user * items + row_item)
    above, below = (
        pair_scores(user_vectors, item_vectors, Pairs.of(row_user[negative], item[negative], len(user_vectors)))
        for item in (row_item, drawn)
    )
    return -functional.logsigmoid(above - below).sum()


def squared_error(label: Tensor, score: Tensor) -> Tensor:
    """Mean of (label - score)^2 over the rows with a label (NaN: none); 0 without any.

    Args:
        label: (n,).
        score: (n,).
    """
    asked = ~torch.isnan(label)
    return torch.where(asked, label - score, 0.0).square().sum() / asked.sum().clamp(min=1)


def cross_entropy(label: Tensor, score: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits over the rows with a label (NaN: none), in nats; 0 without any.

    Args:
        label: (n,) 0 or 1.
        score: (n,) logits.
    """
    asked = ~torch.isnan(label)
    total = functional.binary_cross_entropy_with_logits(
        score, label.nan_to_num(0.0), weight=asked.to(score.dtype), reduction="sum"
    )
    return total / asked.sum().clamp(min=1)
