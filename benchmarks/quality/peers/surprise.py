"""SVD++ of Surprise 1.1: the peer on ratings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from surprise import SVDpp
from surprise.trainset import Trainset

from peers.common import Predict, Scores, Settings, Training, main

GRID = [
    {"factors": 50, "learning_rate": rate, "penalty": penalty, "epochs": epochs}
    for rate, penalty, epochs in [
        (0.005, 0.08, 30),
        (0.01, 0.08, 30),
        (0.01, 0.1, 30),
        (0.01, 0.1, 45),
        (0.01, 0.12, 45),
        (0.01, 0.15, 45),
        (0.01, 0.12, 70),
        (0.01, 0.15, 70),
    ]
]


def fit(training: Training, settings: Settings, seed: int) -> Iterator[tuple[Settings, Predict]]:
    """Fit; Surprise clips predictions to 1 to 5 itself."""
    by_user: dict[int, list[tuple[int, float]]] = {}
    by_item: dict[int, list[tuple[int, float]]] = {}
    for user, item, rating in zip(
        training.user.tolist(), training.item.tolist(), training.rating.tolist(), strict=True
    ):
        by_user.setdefault(user, []).append((item, rating))
        by_item.setdefault(item, []).append((user, rating))
    # Users and items without training rows keep their numbers but are unknown to Surprise, which falls back on biases.
    rows = Trainset(
        {user: by_user.get(user, []) for user in range(training.users)},
        {item: by_item.get(item, []) for item in range(training.items)},
        training.users,
        training.items,
        len(training.rating),
        (1, 5),
        {user: user for user in by_user},
        {item: item for item in by_item},
    )
    model = SVDpp(
        n_factors=settings["factors"],
        n_epochs=settings["epochs"],
        lr_all=settings["learning_rate"],
        reg_all=settings["penalty"],
        random_state=seed,
        cache_ratings=True,
    )
    model.fit(rows)

    def predict(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> Scores:
        return {
            "rating": np.array([model.predict(u, i).est for u, i in zip(user.tolist(), item.tolist(), strict=True)])
        }

    yield settings, predict


if __name__ == "__main__":
    main({"svd_plus_plus": (GRID, fit)})
