"""What large data asks of nodes and models: blocks change no result."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.data.tasks import Task
from multitask_recommender.models.baselines import neighbours

USERS, ITEMS = 30, 25


def rows_and_side() -> tuple[Interactions, SideInformation]:
    random = np.random.default_rng(3)
    user, item = np.nonzero(random.random((USERS, ITEMS)) < 0.3)
    ones = np.ones(len(user))
    rows = Interactions(user, item, {"watch": ones.astype(np.float32)}, {"watch": ones.astype(bool)})
    features = sparse.random(ITEMS, 6, 0.5, format="csr", dtype=np.float32, random_state=1)
    nothing = sparse.csr_matrix((USERS, 0), dtype=np.float32)
    return rows, SideInformation({"watch": Task(kind="retrieval")}, USERS, ITEMS, nothing, features)


@pytest.mark.parametrize("items_at_a_time", [1, 4, 1000])
def test_blocks_of_similarities_change_no_score(items_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, side = rows_and_side()
    queries = Histories(rows, side.user_features).of(np.arange(USERS))
    history = queries.known(ITEMS).toarray()
    monkeypatch.setattr(neighbours, "_CELLS", items_at_a_time * ITEMS)
    for model in (
        neighbours.ItemKNN(neighbours.ItemKNNSettings(neighbours=ITEMS)),
        neighbours.ContentBased(neighbours.ContentBasedSettings(neighbours=ITEMS)),
    ):
        model.fit(rows, side, seed=0)
        if isinstance(model, neighbours.ItemKNN):
            counts = history.sum(0)
            similarity = history.T @ history / (counts[:, None] ** 0.6 * counts[None, :] ** 0.4)
        else:
            features = side.item_features.toarray()
            features = features * np.log(ITEMS / np.maximum((features > 0).sum(0), 1))
            length = np.linalg.norm(features, axis=1, keepdims=True)
            unit = features / np.where(length > 0, length, 1.0)
            similarity = unit @ unit.T
        np.fill_diagonal(similarity, 0.0)
        assert np.allclose(model.score(queries)["watch"], history @ similarity.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", ["item_knn", "shared_bottom"])
def test_the_benchmark_of_large_data_runs_on_small_data(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(__file__).parents[1] / "benchmarks" / "scale"
    monkeypatch.syspath_prepend(folder)
    benchmark = importlib.import_module("large_catalogue")
    benchmark.draw.write(tmp_path, 200, 150)
    benchmark.run_step("fit", model, tmp_path)
    seeds = 2 if model == "shared_bottom" else 1
    pairs = len(pd.read_parquet(tmp_path / "test_pairs.parquet"))
    figures = benchmark.run_step("predict", model, tmp_path)
    assert figures["written"] == {"predictions": 3 * seeds * pairs, "ranked_lists": 3 * seeds * 200 * 20}
    figures = benchmark.run_step("recommend", model, tmp_path)
    assert figures["written"] == {"recommendations": 3 * 200 * 10}
    assert figures["peak_mb"] >= figures["before_mb"]
