"""This project's joint model, by the rules of the peers; it runs in the project's own environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from kedro.config import OmegaConfigLoader
from scipy import sparse

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.data.interactions import FloatArray, Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.evaluation.cross_validation import candidates
from multitask_recommender.foundation.jobs import single_threaded
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.models.variants import VARIANTS
from peers.common import Predict, Scores, Settings, Training, main

ROOT = Path(__file__).resolve().parents[3]
CANDIDATES = 8
"""Combinations of the model's search space, of which the grid is a Latin hypercube sample."""

_parameters = OmegaConfigLoader(
    str(ROOT / "conf"), base_env="base", default_run_env="base", merge_strategy={"parameters": "soft"}
)["parameters"]


def _grid(model: str, dated: bool) -> list[Settings]:
    own = VARIANTS[model].parameters.model_validate(_parameters["models"][model])
    if not dated:
        own = own.model_copy(update={"settings": own.with_values({"wide_labels.windows": ()})})
    points = candidates(own.search or {}, CANDIDATES, derive_seed(0, "benchmark", model))
    return [own.with_values(point).model_dump() for point in points]


def _features(training: Training, side: str) -> sparse.csr_matrix:
    parts = [training.arrays[f"{side}_features.{name}"] for name in ("data", "indices", "indptr", "shape")]
    return sparse.csr_matrix(tuple(parts[:3]), shape=tuple(parts[3]))


def _fit(model: str, training: Training, settings: Settings, seed: int) -> Iterator[tuple[Settings, Predict]]:
    tasks = DatasetSettings.model_validate(_parameters["dataset"]).tasks
    side = SideInformation(
        tasks, training.users, training.items, _features(training, "user"), _features(training, "item")
    )
    like = training.rating >= 4
    rows = Interactions(
        training.user,
        training.item,
        labels={"watch": np.ones(len(like), np.float32), "like": like.astype(np.float32), "rating": training.rating},
        relevant={"watch": np.ones(len(like), bool), "like": like, "rating": like},
        time=training.time,
    )
    recommender = VARIANTS[model].make(VARIANTS[model].settings.model_validate(settings), tasks)
    with single_threaded():
        recommender.fit(rows, side, derive_seed(0, "benchmark", model, seed))

    def predict(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> Scores:
        everyone = Histories(rows, side.user_features).of(np.arange(training.users))
        scores: dict[str, FloatArray] = recommender.score(everyone)
        pairs = recommender.predict(everyone, scores, user, item, time)
        return {"rating": pairs["rating"], "like": pairs["like"], "matrix": scores["watch"]}

    yield settings, predict


def _fits(model: str):  # noqa: ANN202
    def fit(training: Training, settings: Settings, seed: int) -> Iterator[tuple[Settings, Predict]]:
        yield from _fit(model, training, settings, seed)

    return fit


if __name__ == "__main__":
    wide = "wide_shared_bottom"
    main({wide: (_grid(wide, dated=False), _fits(wide)), f"{wide}_dates": (_grid(wide, dated=True), _fits(wide))})
