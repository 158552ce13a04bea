"""iALS of implicit 0.7: a peer on ranking."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy import sparse

from peers.common import Predict, Scores, Settings, Training, main

GRID = [
    {"factors": factors, "alpha": alpha, "penalty": penalty, "iterations": 15}
    for factors, alpha, penalty in itertools.product([32, 64, 128], [1.0, 2.0, 3.0, 5.0], [10.0, 20.0, 30.0, 60.0])
]


def fit(training: Training, settings: Settings, seed: int) -> Iterator[tuple[Settings, Predict]]:
    """Fit on all training pairs; an observed pair weighs 1 + alpha, any other 1."""
    ones = np.ones(len(training.user), dtype=np.float32)
    pairs = sparse.csr_matrix((ones, (training.user, training.item)), shape=(training.users, training.items))
    model = AlternatingLeastSquares(
        factors=settings["factors"],
        regularization=settings["penalty"],
        alpha=1.0 + settings["alpha"],
        iterations=settings["iterations"],
        random_state=seed,
        num_threads=1,
    )
    model.fit(pairs, show_progress=False)

    def predict(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> Scores:
        users = model.user_factors
        if "history_user" in training.arrays:
            # Solved anew from what is known of the users now.
            own, other = training.arrays["history_user"], training.arrays["history_item"]
            ones = np.ones(len(own), dtype=np.float32)
            known = sparse.csr_matrix((ones, (own, other)), shape=pairs.shape)
            users = model.recalculate_user(np.arange(training.users), known)
        return {"matrix": users @ model.item_factors.T}

    yield settings, predict


if __name__ == "__main__":
    main({"ials": (GRID, fit)})
