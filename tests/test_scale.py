"""What large data asks of nodes and models: blocks change no result."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.data.tasks import Task
from multitask_recommender.models.baselines import neighbours
from multitask_recommender.simulation.bookstore import BookstoreSettings

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


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark of the pipelines by size."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks" / "scale")
    return importlib.import_module("sizes")


def test_splits_that_train_one_after_the_other_become_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks" / "scale")
    benchmark = importlib.import_module("large_catalogue")
    benchmark.draw.write(tmp_path, 200, 150)
    weights = tmp_path / "shared_bottom.weights.safetensors"
    benchmark.run_step("fit", "shared_bottom", tmp_path)
    together = weights.read_bytes()
    weights.unlink()
    monkeypatch.setattr(benchmark.nodes, "_ROWS_TOGETHER", 0)
    held: list[int] = []
    run_jobs = benchmark.nodes.run_jobs

    def noted(function: Any, jobs: Any, *rest: Any) -> Any:
        held.append(len(jobs))
        return run_jobs(function, jobs, *rest)

    monkeypatch.setattr(benchmark.nodes, "run_jobs", noted)
    benchmark.run_step("fit", "shared_bottom", tmp_path)
    assert weights.read_bytes() == together
    assert held == [2, 1]  # Two seeds of the split, then the one of everything.


def test_slopes_are_those_of_logarithms(sizes: ModuleType) -> None:
    counts = (10**5, 10**6, 10**7)
    records = [
        {"pipeline": name, "interactions": count, "seconds": factor * count**power, "peak_mb": 7.0 * count**0.5}
        for name, factor, power in (("quick", 0.3, 0.8), ("square", 1e-6, 2.0))
        for count in counts
    ]
    records.append({"pipeline": "once", "interactions": 10**5, "seconds": 1.0, "peak_mb": 1.0})
    assert sizes.slopes(records) == {"quick": 0.8, "square": 2.0}
    assert sizes.slopes(records, "peak_mb") == {"quick": 0.5, "square": 0.5}


def test_what_was_measured_is_not_measured_again(
    sizes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def measure(command: list[str], *_: object) -> dict[str, float]:
        name = command[command.index("--pipelines") + 1]
        if name == "recommender" and ran.count(name) == 0:
            ran.append(name)
            raise SystemExit("killed")
        ran.append(name)
        return {"seconds": 1.0, "cpu_seconds": 1.0, "peak_mb": 1.0}

    monkeypatch.setattr(sizes, "measure", measure)
    monkeypatch.setattr(sizes, "seconds_per_node", lambda folder: {})
    names = ["simulation", "data_engineering", "recommender"]
    with pytest.raises(SystemExit):
        sizes.measure_size(tmp_path, 10**5, names)
    # What the run had finished would be reused, and not be measured: the store is begun again.
    records = sizes.measure_size(tmp_path, 10**5, names)
    assert ran == [*names, *names]
    assert sizes.measure_size(tmp_path, 10**5, [*names, "evaluation"])[:-1] == records
    assert ran == [*names, *names, "evaluation"]
    sizes.measure_size(tmp_path, 10**5, ["simulation"], again=True)
    assert ran[-1] == "simulation"
    assert [record["pipeline"] for record in records] == names
    assert records[0] | {"users": 2500, "books": 1000, "interactions": 100_000} == records[0]


def test_parameters_of_every_size_make_a_store_that_grows(sizes: ModuleType) -> None:
    stores = [BookstoreSettings.model_validate(sizes.parameters(size)["simulation"]) for size in sizes.SIZES]
    for smaller, larger in itertools.pairwise(stores):
        assert larger.users / smaller.users == pytest.approx(larger.interactions / smaller.interactions)
        assert larger.books > smaller.books


def test_the_memory_of_workers_counts(sizes: ModuleType, tmp_path: Path) -> None:
    worker = "held = bytearray(300_000_000); held[::4096] = b'x' * len(held[::4096]); import time; time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    found = sizes.measure([sys.executable, "-c", parent], tmp_path / "log")
    assert found["peak_mb"] > 300
    with pytest.raises(SystemExit, match="went wrong"):
        sizes.measure([sys.executable, "-c", "raise ValueError('went wrong')"], tmp_path / "log")


def test_the_figure_shows_every_pipeline(sizes: ModuleType, tmp_path: Path) -> None:
    records = [
        {"pipeline": name, "interactions": count, "seconds": 2.0 + count / 1e5, "peak_mb": 500 + count / 1e4}
        for name in sizes.PIPELINES
        for count in (10**5, 10**6)
    ]
    sizes.draw(records, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    table = sizes.table(records)
    assert all(name in table for name in sizes.PIPELINES)
    assert "| 100,000 | 2,500 | 1,000 | 3 s, 0.5 GB |" in table
