"""Measures seconds and peak memory of every pipeline on simulated bookstores of growing size.

A size is a folder with a configuration of its own, made of ``conf/base`` and ``conf/bookstore``; every pipeline is a
``kedro run`` in a process of its own, and what it took is written beside it, so that an interrupted benchmark goes on
with the size at which it was.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
FIRST, SIZES = 10**5, (10**5, 10**6, 10**7, 3 * 10**7)
"""The smallest size, and all: numbers of interactions."""
MODEL = "shared_bottom"
MEMORY_GB = 6.0
"""What a run is told that it may take."""
PIPELINES = {
    "simulation": ["--pipelines", "simulation"],
    "data_engineering": ["--pipelines", "data_engineering"],
    "user_embedding": ["--pipelines", "user_embedding"],
    "recommender": ["--pipelines", "recommender", "--namespaces", f"recommender.multi_task.{MODEL}"],
    "evaluation": ["--pipelines", "evaluation"],
}
"""Pipeline to the options of ``kedro run``, in the order in which they need each other."""
PATH = ("data_engineering", "recommender")
"""What leads from the raw file to the lists of recommendations."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
Record = dict[str, Any]


def store(interactions: int) -> dict[str, int]:
    """Return the knobs of a store: users in proportion to the interactions, books to the root of them."""
    growth = interactions / FIRST
    books = round(1000 * growth**0.5)
    return {"users": interactions // 40, "books": books, "interactions": interactions}


def parameters(interactions: int) -> dict[str, Any]:
    """Return the parameters of a size: those of the bookstore, with settings of the models that do not follow the size.

    What is measured is how the work grows with the data, so the models stay as large as they are. Nothing is searched:
    the work of a search is that of a fit times the number of candidates and folds.
    """
    tree = yaml.safe_load((ROOT / "conf" / "bookstore" / "parameters.yml").read_text())
    tree["simulation"] |= store(interactions)
    tree["study"] = {"models": [MODEL], "repeats": 1, "memory_gb": MEMORY_GB}
    tree["cross_validation"] = {"candidates": 1, "workers": 1}
    # As many steps at every size: a step moves the vectors of all users, so that more of them would not be linear.
    training = {"epochs": 5, "batches": 40}
    model = {"dimension": 32, "training": training | {"learning_rate": 0.01}}
    # The blocks of conf/base are merged with these, so that what follows the size there has to be said not to.
    fixed = {name: {"rows": 0.0} for name in ("dimension", "retrieval_penalty")}
    tree["models"] = {MODEL: {"settings": model, "search": None, "by_size": fixed}}
    tree["user_embedding"] = {"settings": {"dimension": 32, "penalty": 0.5, "training": training}, "search": None}
    return tree


def configure(folder: Path, interactions: int) -> None:
    """Write the configuration of a size to ``folder / "conf"``."""
    source = folder / "conf" / "scale"
    source.mkdir(parents=True, exist_ok=True)
    base = folder / "conf" / "base"
    if not base.is_symlink():
        base.symlink_to(ROOT / "conf" / "base")
    (folder / "conf" / "local").mkdir(exist_ok=True)
    catalog = (ROOT / "conf" / "bookstore" / "catalog.yml").read_text()
    (source / "catalog.yml").write_text(catalog.replace("data/01_raw/bookstore", str(folder / "01_raw")))
    (source / "globals.yml").write_text(yaml.safe_dump({"folder": str(folder)}))
    (source / "parameters.yml").write_text(yaml.safe_dump(parameters(interactions), sort_keys=False))


def tree_mb(process: int) -> float:
    """Return the resident memory of a process and of those it started, in MB; pages that they share count once."""
    total = 0.0
    # A process may end while it is looked at.
    with suppress(OSError):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) * 1024 / 1e6
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            total += sum(tree_mb(int(child)) for child in children.read_text().split())
    return total


def measure(command: list[str], log: Path) -> Record:
    """Run a command; return its seconds, CPU seconds, and peak memory in MB with that of its workers.

    The peak is the larger of what the system noted for the process and of what was seen of all processes together, four
    times a second. Pages of mapped files count as far as they are resident.

    Raises:
        SystemExit: If the command fails.
    """
    environment = os.environ | {"KEDRO_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}
    begin = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment)
    peak = 0.0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, tree_mb(process.pid))
        time.sleep(0.25)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(max(peak, usage.ru_maxrss * 1024 / 1e6)),
    }


def seconds_per_node(folder: Path) -> dict[str, float]:
    """Return the seconds of the nodes of the last run, those above a second."""
    last = (folder / "08_reporting" / "runs.jsonl").read_text().splitlines()[-1]
    return {name: round(own, 1) for name, own in json.loads(last)["seconds_per_node"].items() if own >= 1}


def measure_size(folder: Path, interactions: int, pipelines: list[str], again: bool = False) -> list[Record]:
    """Measure the pipelines on a store; what has been measured is read from its file.

    A store on which a measurement was interrupted is begun again: what its run had finished would be reused, and not be
    measured.

    Args:
        folder: Where the store and all outputs go.
        interactions: Size of the store.
        pipelines: Names of the pipelines.
        again: Whether to measure once more what has been measured.
    """
    interrupted = folder / "interrupted"
    if again or interrupted.exists():
        shutil.rmtree(folder, ignore_errors=True)
    configure(folder, interactions)
    found = []
    for name in pipelines:
        target = folder / f"measured_{name}.json"
        if not target.exists():
            print(f"{interactions:,} interactions: {name}", flush=True)
            options = ["--conf-source", str(folder / "conf"), "--env", "scale", *PIPELINES[name]]
            command = [sys.executable, "-m", "kedro", "run", *options]
            record = {"pipeline": name, **store(interactions)}
            interrupted.touch()
            record |= measure(command, folder / f"{name}.log")
            record["nodes"] = seconds_per_node(folder)
            target.write_text(json.dumps(record))
            interrupted.unlink()
            print(json.dumps(record), flush=True)
        found.append(json.loads(target.read_text()))
    return found


def slopes(records: list[Record], measure: str = "seconds") -> dict[str, float]:
    """Return pipeline to the slope of the logarithm of what it took against that of the interactions (least squares).

    A slope of 1 is linear growth.
    """
    result = {}
    for name in dict.fromkeys(own["pipeline"] for own in records):
        own = [record for record in records if record["pipeline"] == name]
        if len({record["interactions"] for record in own}) > 1:
            points = np.log([[record["interactions"], record[measure]] for record in own])
            result[name] = round(float(np.polyfit(points[:, 0], points[:, 1], 1)[0]), 3)
    return result


def draw(records: list[Record], target: Path) -> None:
    """Draw seconds and peak memory against the interactions, on logarithmic axes, beside lines of slope 1."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    names = list(dict.fromkeys(own["pipeline"] for own in records))
    for axis, key, title, unit in (
        (axes[0], "seconds", "Time of a pipeline", "seconds"),
        (axes[1], "peak_mb", "Peak memory of a pipeline", "MB, workers included"),
    ):
        steep = slopes(records, key)
        for name, colour, marker in zip(names, COLOURS, "osD^v", strict=False):
            own = sorted((r["interactions"], r[key]) for r in records if r["pipeline"] == name)
            label = f"{name} (slope {steep[name]:.2f})" if name in steep else name
            axis.plot(*zip(*own, strict=True), color=colour, marker=marker, label=label)
        sizes = np.array(sorted({own["interactions"] for own in records}))
        start = min(own[key] for own in records)
        axis.plot(sizes, start * sizes / sizes[0], color="#888888", linestyle=":", label="linear growth (slope 1)")
        axis.set(xscale="log", yscale="log", title=title, xlabel="interactions", ylabel=unit)
        axis.grid(which="major", color="#dddddd")
        axis.legend(fontsize=8)
    figure.savefig(target, dpi=120)
    plt.close(figure)


def table(records: list[Record]) -> str:
    """Return a table for a document: seconds and peak memory of every pipeline by size."""
    names = list(dict.fromkeys(own["pipeline"] for own in records))
    of = {(own["interactions"], own["pipeline"]): own for own in records}
    lines = [f"| interactions | users | books | {' | '.join(names)} | raw file to lists |"]
    lines.append("| --- " * (len(names) + 4) + "|")
    for size in sorted({own["interactions"] for own in records}):
        knobs = store(size)
        cells = [f"{size:,}", f"{knobs['users']:,}", f"{knobs['books']:,}"]
        for name in names:
            own = of.get((size, name))
            cells.append("" if own is None else f"{own['seconds']:,.0f} s, {own['peak_mb'] / 1000:.1f} GB")
        path = [of.get((size, name)) for name in PATH]
        whole = [own for own in path if own is not None]
        if len(whole) == len(PATH):
            seconds, peak = sum(own["seconds"] for own in whole), max(own["peak_mb"] for own in whole)
            cells.append(f"{seconds:,.0f} s, {peak / 1000:.1f} GB")
        else:
            cells.append("")
        lines.append(f"| {' | '.join(cells)} |")
    steep = slopes(records)
    lines.append(
        f"| slope of the seconds | | | {' | '.join(f'{steep[n]:.2f}' if n in steep else '' for n in names)} | |"
    )
    return "\n".join(lines)


def clear(folder: Path) -> None:
    """Remove what takes disk space of a size; what was measured stays."""
    for part in ("01_raw", "03_primary", "04_feature", "05_model_input", "06_models", "07_model_output"):
        shutil.rmtree(folder / part, ignore_errors=True)
