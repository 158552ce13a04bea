"""EASE with NumPy, asked with histories in which the latest items count more: a peer on what comes next."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from scipy import sparse

from peers.common import Predict, Scores, Settings, Training, main

WAYS = list(itertools.product([3.0, 10.0, 30.0, 100.0], [2.0, 5.0, 20.0]))
"""Weights and reaches of the latest items, which cost no fit."""
GRID: list[Settings] = [{"penalty": penalty} for penalty in (200.0, 300.0, 500.0, 700.0, 1000.0)]


def fit(training: Training, settings: Settings, seed: int) -> Iterator[tuple[Settings, Predict]]:
    """Solve on the training rows; an item of age a, in positions, weighs 1 + weight exp(-a / reach) in a history."""
    shape = (training.users, training.items)
    x = sparse.csr_matrix((np.ones(len(training.user)), (training.user, training.item)), shape=shape)
    inverse = np.linalg.inv((x.T @ x).toarray() + settings["penalty"] * np.eye(training.items))
    b = inverse / -np.diag(inverse)
    np.fill_diagonal(b, 0.0)
    names = [f"history_{name}" for name in ("user", "item", "time")]
    known = names[0] in training.arrays
    user, item, time = (
        [training.arrays[name] for name in names] if known else (training.user, training.item, training.time)
    )
    order = np.lexsort((np.arange(len(user)), time, user))
    user, item = user[order], item[order]
    counts = np.bincount(user, minlength=training.users)
    age = np.cumsum(counts)[user] - 1 - np.arange(len(user))
    ways = WAYS if "weight" not in settings else [(settings["weight"], settings["reach"])]
    for weight, reach in ways:
        history = sparse.csr_matrix((1.0 + weight * np.exp(-age / reach), (user, item)), shape=shape)

        def predict(
            user: np.ndarray, item: np.ndarray, time: np.ndarray, history: sparse.csr_matrix = history
        ) -> Scores:
            return {"matrix": np.asarray(history @ b)}

        yield {**settings, "weight": weight, "reach": reach}, predict


if __name__ == "__main__":
    main({"ease": (GRID, fit)})
