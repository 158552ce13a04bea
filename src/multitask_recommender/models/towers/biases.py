"""Biases of users and items: solved together from the training rows, and a user's alone from a history."""

from __future__ import annotations

import numpy as np

from multitask_recommender.data.interactions import FloatArray, IntArray


def solve_user_biases(
    user: IntArray, item: IntArray, residual: FloatArray, users: int, item_bias: FloatArray, shrinkage: float
) -> FloatArray:
    """Solve the users' biases, given those of the items: b_u = sum_i (r_ui - b_i) / (shrinkage + |R(u)|).

    Args:
        user: (rows,) users.
        item: (rows,) items.
        residual: (rows,) label minus mean.
        users: Number of users.
        item_bias: (items,) biases of the items.
        shrinkage: In rows.

    Returns:
        (users,) biases; 0 for a user without rows.
    """
    total = np.bincount(user, residual.astype(np.float64) - item_bias[item], users)
    rows = np.bincount(user, minlength=users)
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
