"""Measures how much faster two processes train than one, on Spark with two threads of this machine.

``python benchmarks/spark/run.py [--rows N] [--users N] [--items N] [--repeats N]`` trains the shared-bottom towers on
made-up interactions by one and by two processes, in turns, each on one thread, and writes ``results/spark.json`` and
the table of ``docs/scale.md``: the seconds of the training itself, without the start of Spark and of Python, on the
clock and of CPU. On a machine that
others use as well the seconds of CPU say more: the ratio of those of one process to those of the slower of two is what
the clock would show with two cores for the two alone, as far as neither waits for the other.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.tasks import Task
from multitask_recommender.models.architectures.shared_bottom import SharedBottom, SharedBottomSettings
from multitask_recommender.models.training.division import trained_by
from multitask_recommender.models.training.loop import TrainingSettings
from multitask_recommender.spark.settings import SparkSettings
from multitask_recommender.spark.training import SparkLauncher

ROOT = Path(__file__).resolve().parents[2]
RESULTS, DOCS = ROOT / "benchmarks" / "results" / "spark.json", ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- spark: written by benchmarks/spark/run.py -->", "<!-- end of spark -->"
TASKS = {
    "watch": Task(kind="retrieval"),
    "like": Task(kind="binary", label="rating >= 4"),
    "rating": Task(kind="regression", label="rating", relevant="rating >= 4"),
}
_SAID = re.compile(r"trained by (\d+) process\(es\) in ([\d.]+) s \(([\d., ]+) s of CPU each\)")


def draw(rows: int, users: int, items: int) -> tuple[Interactions, SideInformation]:
    """Draw interactions: users alike, items by a power law, ratings by chance."""
    random = np.random.default_rng(0)
    user = np.sort(random.integers(0, users, rows))
    item = np.minimum((items * random.random(rows) ** 3).astype(np.int64), items - 1)
    rating = random.integers(1, 6, rows).astype(np.float32)
    labels = {"watch": np.ones(rows, np.float32), "like": (rating >= 4).astype(np.float32), "rating": rating}
    relevant = {"watch": np.ones(rows, bool), "like": rating >= 4, "rating": rating >= 4}
    features = [np.eye(20, dtype=np.float32)[random.integers(0, 20, number)] for number in (users, items)]
    user_features, item_features = (sparse.csr_matrix(own) for own in features)
    return Interactions(user, item, labels, relevant), SideInformation(
        TASKS, users, items, user_features, item_features
    )


class Listener(logging.Handler):
    """Takes the seconds out of what the launcher says."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, float, float]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Read a line."""
        said = _SAID.search(record.getMessage())
        if said is not None:
            self.found.append((int(said[1]), float(said[2]), max(map(float, said[3].split(", ")))))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("rows", 10_000_000),
        ("users", 250_000),
        ("items", 20_000),
        ("epochs", 2),
        ("repeats", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rows, side = draw(options.rows, options.users, options.items)
    settings = SharedBottomSettings(training=TrainingSettings(learning_rate=0.015, epochs=options.epochs, batches=8))
    listener, logger = Listener(), logging.getLogger("multitask_recommender.spark.training")
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    curves = {}
    for _ in range(options.repeats):
        for number in (1, 2):
            with trained_by(SparkLauncher(SparkSettings(master="local[2]", num_processes=number))):
                curves[number] = SharedBottom(settings).fit(rows, side, 0).epochs
            print(*listener.found[-1], flush=True)
    one, two = (np.array([[*epoch.values()] for epoch in curves[number]]) for number in (1, 2))
    seconds = {n: [own for number, own, _ in listener.found if number == n] for n in (1, 2)}
    cpu = {n: [own for number, _, own in listener.found if number == n] for n in (1, 2)}
    result = {
        "rows": options.rows,
        "users": options.users,
        "items": options.items,
        "dimension": settings.dimension,
        "epochs": options.epochs,
        "steps": 8 * options.epochs,
        "load": os.getloadavg()[0],
        "seconds": seconds,
        "cpu_seconds_of_the_slower": cpu,
        "ratio": statistics.median(seconds[1]) / statistics.median(seconds[2]),
        "cpu_ratio": statistics.median(cpu[1]) / statistics.median(cpu[2]),
        "largest_difference_of_losses": float(np.abs(one - two).max() / np.abs(one).max()),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    text = DOCS.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    DOCS.write_text(f"{before}\n\n{table(result)}\n\n{after}")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """Return the figures in words and as a table."""
    median = statistics.median
    rows = [
        (name, median(result[key][1]), median(result[key][2]), result[ratio])
        for name, key, ratio in (
            ("seconds on the clock", "seconds", "ratio"),
            ("seconds of CPU, of the slower process", "cpu_seconds_of_the_slower", "cpu_ratio"),
        )
    ]
    lines = [f"| {name} | {one:.1f} | {two:.1f} | {ratio:.2f} |" for name, one, two, ratio in rows]
    sizes = tuple(f"{result[name]:,}" for name in ("rows", "users", "items"))
    difference = f"{result['largest_difference_of_losses']:.0e}"
    return "\n".join(
        [
            "`make bench-spark`: {} interactions of {} users with {} items,".format(*sizes),
            f"vectors of {result['dimension']}, three tasks, {result['epochs']} epochs of 8 steps, on two cores with a",
            f"load of {result['load']:.0f} in all when it ended; medians of {len(result['seconds'][1])} in turns.",
            f"Losses differ by {difference} of the largest.",
            "",
            "| | one process | two processes | ratio |",
            "|---|---|---|---|",
            *lines,
        ]
    )


if __name__ == "__main__":
    main()
