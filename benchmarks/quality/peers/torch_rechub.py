"""MMoE and PLE of torch-rechub 0.9: multi-task peers on ratings and likes. They score pairs and rank no catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.basic.initializers import RandomNormal
from torch_rechub.models.multi_task import MMOE, PLE
from torch_rechub.trainers import MTLTrainer

from peers.common import Predict, Scores, Settings, Training, checkpoints, main

TYPES = ["regression", "classification"]
# The library's own initial spread of the embeddings is 0.0001, its own weight decay is 0.00001.
GRID = [
    {
        "learning_rate": 0.002,
        "embedding": 16,
        "decay": decay,
        "init": init,
        "dropout": dropout,
        "batch": 1024,
        "epochs": epochs,
    }
    for decay, init, dropout, epochs in [
        (1e-5, 1e-4, 0.0, [2, 4, 6]),
        (1e-5, 0.05, 0.2, [2, 4, 6]),
        (3e-5, 0.05, 0.2, [3, 6, 9]),
        (1e-4, 0.05, 0.2, [3, 6, 9, 12]),
    ]
]


class Batches:
    """The training rows in shuffled batches, as the library's trainer takes them.

    The library's own loader collects rows one by one, which takes most of an epoch.
    """

    def __init__(self, features: dict[str, np.ndarray], labels: np.ndarray, size: int, seed: int) -> None:
        self._features = {name: torch.from_numpy(values) for name, values in features.items()}
        self._labels, self._size = torch.from_numpy(labels), size
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self._labels) // self._size)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        order = torch.randperm(len(self._labels), generator=self._generator)
        for rows in order.split(self._size):
            yield {name: values[rows] for name, values in self._features.items()}, self._labels[rows]


def _codes(training: Training) -> dict[str, tuple[np.ndarray, str]]:
    """Return feature to its codes and whether users or items have them."""
    codes = {name: (training.user_codes[name], "user") for name in training.user_codes}
    return codes | {name: (training.item_codes[name], "item") for name in training.item_codes}


def features_of(training: Training, dimension: int, spread: float) -> list[SparseFeature | SequenceFeature]:
    """Return the library's description of the features: vectors of a length with an initial spread."""
    start = RandomNormal(0, spread)
    codes = _codes(training)
    return [
        SparseFeature("user", training.users, dimension, initializer=start),
        SparseFeature("item", training.items, dimension, initializer=start),
        *[SparseFeature(name, int(code.max()) + 1, dimension, initializer=start) for name, (code, _) in codes.items()],
        SequenceFeature("genres", int(training.genres.max()) + 1, dimension, padding_idx=0, initializer=start),
    ]


def model_inputs(training: Training, user: np.ndarray, item: np.ndarray) -> dict[str, np.ndarray]:
    """Return feature to its codes for pairs."""
    given = {name: code[user if side == "user" else item] for name, (code, side) in _codes(training).items()}
    return {"user": user, "item": item, **given, "genres": training.genres[item]}


def _fit(
    make: Callable[[list[Any], Settings], torch.nn.Module], training: Training, settings: Settings, seed: int
) -> Iterator[tuple[Settings, Predict]]:
    torch.manual_seed(seed)
    features = features_of(training, settings["embedding"], settings["init"])
    mean = float(training.rating.mean())
    labels = np.stack([training.rating - mean, training.rating >= 4], axis=1).astype(np.float32)
    loader = Batches(model_inputs(training, training.user, training.item), labels, settings["batch"], seed)
    model = make(features, settings)
    trainer = MTLTrainer(
        model, TYPES, optimizer_params={"lr": settings["learning_rate"], "weight_decay": settings["decay"]}
    )

    def predict(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> Scores:
        model.eval()
        with torch.no_grad():
            scores = model(
                {name: torch.from_numpy(values) for name, values in model_inputs(training, user, item).items()}
            ).numpy()
        return {"rating": scores[:, 0] + mean, "like": scores[:, 1]}

    last, stops = checkpoints(settings)
    for epoch in range(1, last + 1):
        trainer.train_one_epoch(loader)
        if epoch in stops:
            yield {**settings, "epochs": epoch}, predict


def _towers(settings: Settings) -> dict[str, Any]:
    return {
        "expert_params": {"dims": [256, 128], "dropout": settings["dropout"]},
        "tower_params_list": [{"dims": [64], "dropout": settings["dropout"]} for _ in TYPES],
    }


def fit_mmoe(training: Training, settings: Settings, seed: int) -> Iterator[tuple[Settings, Predict]]:
    """Fit MMoE with 4 experts."""
    yield from _fit(lambda f, s: MMOE(f, TYPES, n_expert=4, **_towers(s)), training, settings, seed)


def fit_ple(training: Training, settings: Settings, seed: int) -> Iterator[tuple[Settings, Predict]]:
    """Fit PLE with one level, 2 shared experts and 2 own ones per task."""

    def make(features: list[Any], s: Settings) -> torch.nn.Module:
        return PLE(features, TYPES, n_level=1, n_expert_specific=2, n_expert_shared=2, **_towers(s))

    yield from _fit(make, training, settings, seed)


if __name__ == "__main__":
    main({"mmoe": (GRID, fit_mmoe), "ple": (GRID, fit_ple)})
