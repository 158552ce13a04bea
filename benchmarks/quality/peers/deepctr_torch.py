"""MMoE and PLE of DeepCTR-Torch 0.3: multi-task peers on ratings and likes. They score pairs and rank no catalogue."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch

# On import the library asks a package index for its newest version, by requests; an empty module keeps it from that.
sys.modules.setdefault("requests", ModuleType("requests"))

from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat  # noqa: E402
from deepctr_torch.models.multitask import MMOE, PLE  # noqa: E402

from peers.common import Predict, Scores, Settings, Training, checkpoints, main  # noqa: E402

# The library's own initial spread of the embeddings is 0.0001, its own l2 is 0.00001.
GRID = [
    {
        "learning_rate": 0.002,
        "embedding": 16,
        "l2": l2,
        "init": init,
        "dropout": dropout,
        "batch": 1024,
        "epochs": epochs,
    }
    for l2, init, dropout, epochs in [
        (1e-5, 1e-4, 0.0, [3, 6, 9]),
        (1e-5, 0.05, 0.0, [2, 3]),
        (0.1, 0.05, 0.0, [6, 9, 12]),
        (0.1, 0.05, 0.2, [9, 12, 15]),
        (0.3, 0.05, 0.2, [9, 12, 15]),
        (1.0, 0.05, 0.2, [9, 12, 15, 18]),
        (3.0, 0.05, 0.2, [9, 12, 15, 18]),
    ]
]


def _codes(training: Training) -> dict[str, tuple[np.ndarray, str]]:
    """Return feature to its codes and whether users or items have them."""
    codes = {name: (training.user_codes[name], "user") for name in training.user_codes}
    return codes | {name: (training.item_codes[name], "item") for name in training.item_codes}


def feature_columns(training: Training, dimension: int) -> list[SparseFeat | VarLenSparseFeat]:
    """Return the library's description of the features, with vectors of a length."""
    return [
        SparseFeat("user", training.users, embedding_dim=dimension),
        SparseFeat("item", training.items, embedding_dim=dimension),
        *[
            SparseFeat(name, int(code.max()) + 1, embedding_dim=dimension)
            for name, (code, _) in _codes(training).items()
        ],
        VarLenSparseFeat(
            SparseFeat("genres", int(training.genres.max()) + 1, embedding_dim=dimension),
            maxlen=training.genres.shape[1],
            combiner="mean",
        ),
    ]


def model_inputs(training: Training, user: np.ndarray, item: np.ndarray) -> dict[str, np.ndarray]:
    """Return feature to its codes for pairs."""
    given = {name: code[user if side == "user" else item] for name, (code, side) in _codes(training).items()}
    return {"user": user, "item": item, **given, "genres": training.genres[item]}


def _fit(model_class: type, training: Training, settings: Settings, seed: int) -> Iterator[tuple[Settings, Predict]]:
    model = model_class(
        feature_columns(training, settings["embedding"]),
        l2_reg_embedding=settings["l2"],
        init_std=settings["init"],
        dnn_dropout=settings["dropout"],
        seed=seed,
        task_types=("regression", "binary"),
        task_names=("rating", "like"),
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
    model.compile(optimiser, loss=["mse", "binary_crossentropy"], metrics=[])
    labels = np.stack([training.rating, training.rating >= 4], axis=1).astype(np.float32)
    # The library adds a constant only through its last layers, so the rating is learnt around its mean.
    mean = labels[:, 0].mean()
    labels[:, 0] -= mean

    def predict(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> Scores:
        scores = model.predict(model_inputs(training, user, item), batch_size=4096)
        return {"rating": scores[:, 0] + mean, "like": scores[:, 1]}

    done, (_, stops) = 0, checkpoints(settings)
    for stop in stops:
        model.fit(
            model_inputs(training, training.user, training.item),
            labels,
            batch_size=settings["batch"],
            initial_epoch=done,
            epochs=stop,
            verbose=0,
        )
        done = stop
        yield {**settings, "epochs": stop}, predict


def fit_mmoe(training: Training, settings: Settings, seed: int) -> Iterator[tuple[Settings, Predict]]:
    """Fit MMoE: 3 experts of 256 and 128 units, the library's own."""
    yield from _fit(MMOE, training, settings, seed)


def fit_ple(training: Training, settings: Settings, seed: int) -> Iterator[tuple[Settings, Predict]]:
    """Fit PLE: two levels, one shared and one own expert per task, the library's own."""
    yield from _fit(PLE, training, settings, seed)


if __name__ == "__main__":
    main({"mmoe": (GRID, fit_mmoe), "ple": (GRID, fit_ple)})
