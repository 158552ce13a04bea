"""What every peer's script shares: how it is called, what it gets and what it gives. Needs NumPy alone.

A script is run in its library's own environment, as ``python -m peers.<script> search|fit ...``. It never sees a label
of the test rows, and in ``search`` not even their pairs. It computes no metric: the runner does, for all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Settings = dict[str, Any]
Scores = dict[str, np.ndarray]
"""Of ``rating`` (pairs,), ``like`` (pairs,) probabilities and ``matrix`` (users, items), what a model can give."""
Predict = Callable[[np.ndarray, np.ndarray, np.ndarray], Scores]
"""(pairs,) users, items and times of the ratings, which only models "with dates" look at, to scores."""


@dataclass(frozen=True)
class Training:
    """What a peer may learn from.

    Attributes:
        users: Number of users.
        items: Number of items.
        user: (rows,) users of the training rows.
        item: (rows,) items of the training rows.
        rating: (rows,) ratings, 1 to 5.
        time: (rows,) seconds.
        user_codes: Name of a feature with one value per user, to its (users,) codes from 0.
        item_codes: The same of the items.
        genres: (items, most genres of an item) codes from 1, filled up with 0.
        arrays: All arrays of the file.
    """

    users: int
    items: int
    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    time: np.ndarray
    user_codes: dict[str, np.ndarray]
    item_codes: dict[str, np.ndarray]
    genres: np.ndarray
    arrays: dict[str, np.ndarray]


Fit = Callable[[Training, Settings, int], Iterator[tuple[Settings, Predict]]]
"""Fits with settings and a seed. Gives the settings and the model at every number of epochs that ``epochs`` lists."""


def read_training(path: Path) -> Training:
    """Read the file that the runner wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}

    def codes(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    return Training(
        users=int(arrays["users"]),
        items=int(arrays["items"]),
        user=arrays["user"],
        item=arrays["item"],
        rating=arrays["rating"],
        time=arrays["time"],
        user_codes=codes("user_code."),
        item_codes=codes("item_code."),
        genres=arrays["genres"],
        arrays=arrays,
    )


def checkpoints(settings: Settings) -> tuple[int, list[int]]:
    """Return the number of epochs to train and the epochs at which the model is looked at."""
    epochs = settings["epochs"]
    stops = sorted(epochs) if isinstance(epochs, list) else [int(epochs)]
    return stops[-1], stops


def main(models: dict[str, tuple[list[Settings], Fit]]) -> None:
    """Run a script: search the grid, or fit one seed.

    ``search`` writes, for every settings of the grid, the scores of the validation pairs; ``fit`` writes the scores of
    the test pairs and the seconds of training.

    Args:
        models: Name of a model to its grid of settings and to what fits it.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["search", "fit"])
    parser.add_argument("--model", choices=list(models), required=True)
    parser.add_argument("--training", type=Path, required=True, help="npz of training rows and features")
    parser.add_argument("--pairs", type=Path, required=True, help="npz of the pairs to score: user, item, time")
    parser.add_argument("--settings", type=json.loads, help="JSON of the settings to fit with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="npz to write")
    arguments = parser.parse_args()
    training = read_training(arguments.training)
    with np.load(arguments.pairs) as file:
        user, item, times = file["user"], file["item"], file["time"]
    grid, fit = models[arguments.model]
    output: dict[str, Any] = {}
    settings_of: list[Settings] = []
    for settings in grid if arguments.mode == "search" else [arguments.settings]:
        begin = time.perf_counter()
        for reached, predict in fit(training, settings, arguments.seed):
            seconds = time.perf_counter() - begin
            number = len(settings_of)
            settings_of.append(reached)
            print(f"{reached}: {seconds:.1f} s", flush=True)
            for name, scores in predict(user, item, times).items():
                output[f"{number}.{name}"] = np.asarray(scores, dtype=np.float32)
            output[f"{number}.seconds"] = np.float64(seconds)
    output["settings"] = np.array(json.dumps(settings_of))
    partial = arguments.output.with_name(f"partial-{arguments.output.name}")
    np.savez(partial, **output)
    os.replace(partial, arguments.output)
