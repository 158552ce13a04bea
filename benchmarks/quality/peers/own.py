"""This project's joint model, by the rules of the peers; it runs in the project's own environment."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from kedro.config import OmegaConfigLoader
from scipy import sparse

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.interactions import FloatArray, Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.evaluation.cross_validation import Grid
from multitask_recommender.foundation.jobs import single_threaded
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.models.variants import VARIANTS, DataSize, VariantParameters
from peers.common import Predict, Scores, Settings, Training, main

ROOT = Path(__file__).resolve().parents[3]
CANDIDATES = 8
"""Combinations of the model's search space, of which the grid is a Latin hypercube sample."""
WIDE = VARIANTS["wide_shared_bottom"]

_parameters = OmegaConfigLoader(
    str(ROOT / "conf"), base_env="base", default_run_env="base", merge_strategy={"parameters": "soft"}
)["parameters"]


def block(training: Training, dated: bool, later: bool) -> VariantParameters:
    """Return the model's block of parameters as it holds for such rows.

    Args:
        training: The rows.
        dated: Whether it may look at the time of a rating.
        later: Whether the test is the future.
    """
    own = WIDE.parameters.model_validate(_parameters["models"][WIDE.name])
    if not dated:
        own = own.model_copy(update={"settings": own.with_values({"wide_labels.windows": ()})})
    split = SplitSettings.model_validate(_parameters["splits"]).rule("chronological" if later else "random")
    rows = len(training.user)
    return own.for_split(split).for_size(DataSize(rows, rows / max(len(np.unique(training.item)), 1)))


def _features(training: Training, side: str) -> sparse.csr_matrix:
    parts = [training.arrays[f"{side}_features.{name}"] for name in ("data", "indices", "indptr", "shape")]
    return sparse.csr_matrix(tuple(parts[:3]), shape=tuple(parts[3]))


def features_of_both(training: Training) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Return the features of users and of items."""
    return _features(training, "user"), _features(training, "item")


def interactions(user: np.ndarray, item: np.ndarray, rating: np.ndarray, time: np.ndarray) -> Interactions:
    """Return rows with the tasks of the study."""
    like = rating >= 4
    return Interactions(
        user,
        item,
        labels={"watch": np.ones(len(like), np.float32), "like": like.astype(np.float32), "rating": rating},
        relevant={"watch": np.ones(len(like), bool), "like": like, "rating": like},
        time=time if time.any() else None,
    )


def _fit(
    dated: bool, later: bool, training: Training, settings: Settings, seed: int
) -> Iterator[tuple[Settings, Predict]]:
    """Fit a candidate of the search, which is asked in several ways, or chosen settings."""
    if "candidate" in settings:
        own = block(training, dated, later)
        grid = Grid.of(own.search or {}, CANDIDATES, derive_seed(0, "benchmark", WIDE.name))
        if settings["candidate"] >= len(grid.fits):
            return
        each = [own.with_values({**grid.fits[settings["candidate"]], **way}) for way in grid.ways]
    else:
        each = [WIDE.settings.model_validate(settings)]
    tasks = DatasetSettings.model_validate(_parameters["dataset"]).tasks
    side = SideInformation(tasks, training.users, training.items, *features_of_both(training))
    rows = interactions(training.user, training.item, training.rating, training.time)
    known, names = rows, [f"history_{name}" for name in ("user", "item", "rating", "time")]
    if names[0] in training.arrays:
        known = interactions(*(training.arrays[name] for name in names))
    recommender = WIDE.make(each[0], tasks)
    with single_threaded():
        recommender.fit(rows, side, derive_seed(0, "benchmark", WIDE.name, seed))

    def predict(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> Scores:
        everyone = Histories(known, side.user_features).of(np.arange(training.users))
        scores: dict[str, FloatArray] = recommender.score(everyone)
        pairs = recommender.predict(everyone, scores, user, item, time if known.time is not None else None)
        return {"rating": pairs["rating"], "like": pairs["like"], "matrix": scores["watch"]}

    for way in each:
        recommender.ask_with(way)
        yield way.model_dump(), predict


if __name__ == "__main__":
    grid: list[Settings] = [{"candidate": number} for number in range(CANDIDATES)]
    main(
        {
            "wide_shared_bottom": (grid, partial(_fit, False, False)),
            "wide_shared_bottom_dates": (grid, partial(_fit, True, False)),
            "wide_shared_bottom_later": (grid, partial(_fit, True, True)),
        }
    )
