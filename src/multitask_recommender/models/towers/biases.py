"""Biases of users and items: solved together from the training rows, and a user's alone from a history."""

from __future__ import annotations

import numpy as np

from multitask_recommender.data.interactions import FloatArray, IntArray


def solve_user_biases(
    user: IntArray,
    item: IntArray,
    residual: FloatArray,
    users: int,
    item_bias: FloatArray,
    shrinkage: float,
    weight: FloatArray | None = None,
) -> FloatArray:
    """Solve the users' biases, given those of the items: b_u = sum_i w_ui (r_ui - b_i) / (shrinkage + sum_i w_ui).

    Args:
        user: (rows,) users.
        item: (rows,) items.
        residual: (rows,) label minus mean.
        users: Number of users.
        item_bias: (items,) biases of the items.
        shrinkage: In rows.
        weight: (rows,) w; None: 1.

    Returns:
        (users,) biases; 0 for a user without rows.
    """
    left = residual.astype(np.float64) - item_bias[item]
    total = np.bincount(user, left if weight is None else weight * left, users)
    rows = np.bincount(user, weight, minlength=users)
    return np.divide(total, shrinkage + rows, out=np.zeros(users), where=rows > 0).astype(np.float32)


def solve_biases(
    user: IntArray,
    item: IntArray,
    residual: FloatArray,
    users: int,
    items: int,
    shrinkage: tuple[float, float],
) -> tuple[FloatArray, FloatArray]:
    """Fit user and item biases to residuals by alternating ridge regressions.

    Source: Koren, Factor in the Neighbors, TKDD 2010, section 2.1, alternated to convergence.

    Args:
        user: (rows,) users.
        item: (rows,) items.
        residual: (rows,) label minus global mean.
        users: Number of users.
        items: Number of items.
        shrinkage: Of the users and of the items, in rows.

    Returns:
        (users,) and (items,) biases. Those of the users are what :func:`solve_user_biases` gives.
    """
    user_bias, item_bias = np.zeros(users, np.float32), np.zeros(items, np.float32)
    item_rows = np.bincount(item, minlength=items)
    for _ in range(10):
        item_bias = (np.bincount(item, residual - user_bias[user], items) / (shrinkage[1] + item_rows)).astype(
            np.float32
        )
        user_bias = solve_user_biases(user, item, residual, users, item_bias, shrinkage[0])
    return user_bias, item_bias
