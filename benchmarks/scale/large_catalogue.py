"""Measures memory and time of the nodes ``predict`` and ``recommend`` on a large made-up data set.

``python benchmarks/scale/large_catalogue.py [--users N] [--items N] [--only MODEL ...]``. At the full size it writes
``results/scale.json`` and the README's table. Every step is a process of its own, reads its inputs from files through
the data sets of the catalog, calls the node that ``kedro run`` calls, and writes the node's outputs the same way.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent))

import draw
import results

from multitask_recommender.data.description import SplitSettings
from multitask_recommender.data.inputs import TrainingTables
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.splits import EVERYTHING
from multitask_recommender.datasets import IbisTable, ModelFile, StreamedOutput
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.measuring import measured
from multitask_recommender.models.stored import flatten
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.pipelines.recommender import nodes

USERS, ITEMS = 200_000, 50_000
LIMIT_MB = 2000
STEPS = ("fit", "predict", "recommend")
# Settings that fit in minutes: what is measured here does not depend on how well a model has learnt.
SETTINGS: dict[str, dict[str, Any]] = {
    "item_knn": {task: {"neighbours": 100} for task in draw.DATASET.tasks},
    "shared_bottom": {"dimension": 32, "training": {"learning_rate": 0.02, "epochs": 2, "batches": 40}},
}
DATA = ["behaviour_sequences", "users", "items", "user_features", "item_features"]
SPLITS = SplitSettings(strategies=[draw.SPLIT], seed=0, folds=2)
STUDY = StudySettings(seed=0, repeats=2)
CROSS_VALIDATION = CrossValidationSettings(candidates=1, workers=1)
LIST_LENGTHS = [10, 20]
Figures = dict[str, Any]


def resident_mb() -> float:
    """Return the resident memory of this process now, in MB (10^6 bytes)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e6


class Samples:
    """Notes the resident memory of this process twenty times a second."""

    def __init__(self) -> None:
        self.values: list[float] = [resident_mb()]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._done.wait(0.05):
            self.values.append(resident_mb())

    def __enter__(self) -> Samples:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        """Median of the last quarter of the time less that of the second: what the number of blocks adds."""
        if len(self.values) < 4:
            return 0.0
        quarters = np.array_split(np.array(self.values), 4)
        return float(np.median(quarters[3]) - np.median(quarters[1]))


def read(folder: Path, name: str) -> Any:
    """Return a table as the catalog gives it to a node."""
    return IbisTable(filepath=str(folder / f"{name}.parquet"), file_format="parquet").load()


def rows_mb(rows: Interactions) -> float:
    """Return the size of rows as arrays."""
    arrays: list[np.ndarray] = [rows.user, rows.item, *rows.labels.values(), *rows.relevant.values()]
    return sum(array.nbytes for array in arrays) / 1e6


def features_mb(side: SideInformation) -> float:
    """Return the size of the features as arrays."""
    matrices = (side.user_features, side.item_features)
    parts = [np.asarray(part) for matrix in matrices for part in (matrix.data, matrix.indices, matrix.indptr)]
    return sum(part.nbytes for part in parts) / 1e6


def measure(step: Callable[[], Figures]) -> Figures:
    """Run a step and measure it."""
    before, begin = resident_mb(), time.perf_counter()
    with measured() as cost, Samples() as samples:
        found = step()
    # ``predict`` measures its own blocks, which forgets the peak before them: that one is known from the samples.
    peak = max([cost.peak_mb, *samples.values, *found.get("peaks_mb", [])])
    took = {"seconds": time.perf_counter() - begin, "cpu_seconds": cost.seconds}
    return found | took | {"before_mb": before, "peak_mb": peak, "growth_mb": samples.growth}


def run_step(step: str, name: str, folder: Path) -> Figures:
    """Run one node of one model in this process, its outputs included; return what it took."""
    variant, chosen = VARIANTS[name], {draw.SPLIT: SETTINGS[name]}
    weights = ModelFile(str(folder / f"{name}.weights.safetensors"))
    tables = TrainingTables(draw.DATASET, *(read(folder, table) for table in DATA))

    def save(**outputs: Any) -> Figures:
        paths = {output: folder / f"{name}.{output}.parquet" for output in outputs}
        for output, rows in outputs.items():
            StreamedOutput(filepath=str(paths[output])).save(rows)
        return {"written": {output: pq.read_metadata(path).num_rows for output, path in paths.items()}}

    def fit() -> Figures:
        weights.save(nodes.fit(variant, chosen, CROSS_VALIDATION, STUDY, SPLITS, tables, None)[0])
        return {}

    if step == "fit":
        return measure(fit)
    stored = weights.load()
    validation, pairs = read(folder, "validation_rows"), read(folder, "test_pairs")

    def predict() -> Figures:
        predictions, lists, costs = nodes.predict(
            variant, chosen, SPLITS, tables, stored, None, LIST_LENGTHS, validation, pairs
        )
        return save(predictions=predictions, ranked_lists=lists) | {"peaks_mb": costs[draw.SPLIT]["peak_mb"]}

    def recommend() -> Figures:
        return save(recommendations=nodes.recommend(variant, chosen, stored, None, STUDY, tables))

    figures = measure(predict if step == "predict" else recommend)
    # Only now, because it reads the tables: the arrays that the node needed of them.
    split = draw.SPLIT if step == "predict" else EVERYTHING
    own = rows_mb(tables.rows(split)) + features_mb(tables.side(split))
    if step == "predict":
        own += rows_mb(tables.known(split, validation, tables.side(split)).rows)
    figures |= {"tables_mb": own, "model_mb": sum(array.nbytes for array in flatten(stored.state).values()) / 1e6}
    # What was resident before the step holds the program and the model.
    return figures | {"beyond_mb": figures["peak_mb"] - figures["before_mb"] - own}


def run_apart(step: str, name: str, folder: Path) -> Figures:
    """Run one node of one model in a process of its own."""
    print(f"{name}: {step}", flush=True)
    where = folder / "figures.json"
    command = [sys.executable, __file__, "--step", step, "--only", name, "--folder", str(folder), "--to", str(where)]
    subprocess.run(command, check=True)
    return json.loads(where.read_text())


def record(users: int, items: int, name: str, folder: Path) -> list[Figures]:
    """Fit a model, let it predict and recommend; return a record per step."""
    repeats = STUDY.repeats if VARIANTS[name].recommender.stochastic else 1
    rows = pq.read_metadata(folder / "behaviour_sequences.parquet").num_rows
    records = []
    for step in STEPS:
        figures = run_apart(step, name, folder)
        seeds = 1 if step == "recommend" else repeats  # Recommendations are made with one seed.
        passes = {"predict": users * seeds, "recommend": users}.get(step)
        what = {"model": name, "step": step, "users": users, "items": items, "behaviour_rows": rows, "seeds": seeds}
        if passes is not None:
            what["users_per_second"] = passes / figures["cpu_seconds"]
        records.append(json.loads(json.dumps(what | figures), parse_float=lambda number: round(float(number), 1)))
        print(json.dumps(records[-1]), flush=True)
    return records


def table(records: list[Figures]) -> str:
    """Return the README's table."""
    memory = ["beyond", "of it grown", "tables", "model", "whole process"]
    columns = ["model", "step", "seeds", *(f"{name}, MB" for name in memory), "CPU, s", "users/s", "rows written"]
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for own in records:
        if own["step"] == "fit":
            continue
        keys = ["beyond_mb", "growth_mb", "tables_mb", "model_mb", "peak_mb", "cpu_seconds", "users_per_second"]
        numbers = [f"{own[key]:,.0f}" for key in keys] + [f"{sum(own['written'].values()):,}"]
        lines.append(f"| {' | '.join([own['model'], own['step'], str(own['seeds']), *numbers])} |")
    return "\n".join(lines)


def write_results(records: list[Figures]) -> None:
    """Put records in the place of those of the same models, in the file and in the README's table."""
    new = {own["model"] for own in records}
    together = [own for own in results.read()["large_catalogue"] if own["model"] not in new] + records
    together.sort(key=lambda own: list(SETTINGS).index(own["model"]))
    results.add_large_catalogue(together, table(together))


def run(users: int, items: int, models: list[str]) -> None:
    """Measure the nodes; the results of the full size are written.

    Raises:
        SystemExit: If a step needs too much memory.
    """
    folder = results.WORK / f"{users}x{items}"
    draw.write(folder, users, items)
    records = [own for name in models for own in record(users, items, name, folder)]
    print(table(records))
    if (users, items) == (USERS, ITEMS):
        write_results(records)
    over = [f"{own['model']}: {own['step']}" for own in records if own.get("beyond_mb", 0) > LIMIT_MB]
    if over:
        sys.exit(f"more than {LIMIT_MB} MB beyond the model and the tables: {', '.join(over)}")


def main() -> None:
    """Run the benchmark, or one step of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="MODEL")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step is not None:
        given.to.write_text(json.dumps(run_step(given.step, given.only[0], given.folder)))
        return
    run(given.users, given.items, given.only)


if __name__ == "__main__":
    main()
