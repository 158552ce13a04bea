"""Folding in: the identity vector and the biases of anybody, solved from the history on the frozen item side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multitask_recommender.models.training.sparse_products import Pairs, pair_scores, weighted_sums

_LARGEST_NUMBER = 10


def division(hidden: float) -> tuple[int, int]:
    """Return into how many parts a history is divided, and how many of them are hidden at a time.

    The smallest number of parts of which a share near ``hidden`` can be hidden, so that every row is predicted from an
    encoding that has not seen it, as in training.
    """
    if hidden == 0:
        return 1, 0
    for parts in range(2, _LARGEST_NUMBER + 1):
        number = round(parts * hidden)
        if 0 < number < parts and abs(number / parts - hidden) < 0.01:
            return parts, number
    return _LARGEST_NUMBER, min(max(round(_LARGEST_NUMBER * hidden), 1), _LARGEST_NUMBER - 1)


def crossed(encode: Callable[[Tensor, float], Tensor], part: Tensor, parts: int, hidden: int) -> Tensor:
    """Encode histories so that each part is told from the others.

    Args:
        encode: From which rows (n,) are seen, and the share that is not, to (B, D).
        part: (n,) part of each row.
        parts: Number of parts.
        hidden: How many parts are hidden at a time.

    Returns:
        (B, parts, D): for every part the mean of the encodings from which it is hidden.
    """
    if parts == 1:
        return encode(torch.ones(len(part), dtype=torch.bool), 0.0)[:, None]
    encodings = [encode((part + turn) % parts >= hidden, hidden / parts) for turn in range(parts)]
    return torch.stack(
        [
            torch.stack([encodings[turn] for turn in range(parts) if (own + turn) % parts < hidden]).mean(0)
            for own in range(parts)
        ],
        dim=1,
    )


def factorise(matrices: Tensor) -> Tensor:
    """Return the Cholesky factors of positive definite matrices (..., k, k).

    Where rounding has made one indefinite, as little as helps is added to its diagonal, from a millionth of the largest
    entry of that on; the others stay as they are.

    Raises:
        RuntimeError: If a hundredth does not help either.
    """
    factors, failed = torch.linalg.cholesky_ex(matrices)
    share = 1e-6
    while share < 0.1 and bool(failed.any()):
        some = failed > 0
        largest = matrices[some].diagonal(dim1=-2, dim2=-1).amax(-1)
        raised = matrices[some] + share * torch.diag_embed(largest[:, None].expand(-1, matrices.shape[-1]))
        factors[some], failed[some] = torch.linalg.cholesky_ex(raised)
        share *= 10
    return torch.linalg.cholesky(matrices) if bool(failed.any()) else factors


def minimise(objective: Callable[[Tensor], Tensor], curvature: Tensor, steps: int) -> Tensor:
    """Minimise a sum of one function per row of a matrix, from 0, by steps with a bound of the second derivatives.

    q <- q - H^-1 gradient. Where H bounds the Hessian every step goes down, and where it is the Hessian of a quadratic
    function one step ends in the minimum. Source: Boehning and Lindsay, Monotonicity of Quadratic-approximation
    Algorithms, Ann. Inst. Statist. Math. 1988.

    Args:
        objective: (B, k) to a scalar, the sum over rows.
        curvature: (B, k, k) H, positive definite.
        steps: Number of steps.

    Returns:
        (B, k).
    """
    factor = factorise(curvature)
    point = curvature.new_zeros(curvature.shape[:2])
    for _ in range(steps):
        step = torch.cholesky_solve(gradient(objective, point)[:, :, None], factor)
        point = point - step[:, :, 0]
    return point


def gradient(objective: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """Return (B, k) the gradient of a function of (B, k) at a point."""
    with torch.enable_grad():
        here = point.detach().requires_grad_()
        (found,) = torch.autograd.grad(objective(here), here)
    return found


class LogisticRows(NamedTuple):
    """The rows of a logistic regression per user: the logit of a row is ``offset + design_i . q``, i the item.

    Attributes:
        pairs: The n rows as pairs (place of the user, item).
        design: (items, k).
        offset: (n,).
        label: (n,) 0 or 1.
        weight: What a row counts, or (n,) what each does.
    """

    pairs: Pairs
    design: Tensor
    offset: Tensor
    label: Tensor
    weight: float | Tensor


def minimise_logistic(
    start: Tensor, hessian: Tensor, curvature: Tensor, logistic: Sequence[LogisticRows], steps: int
) -> Tensor:
    """Minimise a quadratic function plus logistic losses as :func:`minimise` does, with the gradient in closed form.

    Args:
        start: (B, k) gradient of the quadratic function at 0.
        hessian: (B, k, k) its second derivatives.
        curvature: (B, k, k) a bound of the second derivatives of the whole.
        logistic: The rows of the logistic losses.
        steps: Number of steps; 1 ends in the minimum where there are none.

    Returns:
        (B, k).
    """
    factor = factorise(curvature)
    point = torch.zeros_like(start)
    for number in range(steps):
        slope = start if number == 0 else start + (hessian @ point[:, :, None])[:, :, 0]
        for rows in logistic:
            logit = rows.offset + pair_scores(point, rows.design, rows.pairs)
            error = rows.weight * (torch.sigmoid(logit) - rows.label)
            slope = slope + weighted_sums(rows.pairs, error, rows.design)
        point = point - torch.cholesky_solve(slope[:, :, None], factor)[:, :, 0]
    return point
