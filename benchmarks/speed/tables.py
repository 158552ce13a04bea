"""From the measurements of speed to ``results/speed.json`` and to the tables in the benchmarks' README."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed.json"
README = RESULTS.parents[1] / "README.md"
BEGIN, END = "<!-- speed: written by benchmarks/speed/tables.py -->", "<!-- end of speed -->"
TITLES = {
    "epoch": "One epoch over 80,000 ratings",
    "time_to_quality": "Time to quality",
    "evaluation": "Evaluation over the whole catalogue",
    "top20": "The 20 best items of 50,000 users among 20,000 items",
}
ORDER = list(TITLES)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text)
    os.replace(partial, path)


def part_of(name: str) -> str:
    """Return which part of the benchmark a record belongs to."""
    return next(part for part in ORDER if name.startswith(f"{part}_"))


def keep(part: str, records: list[dict[str, Any]]) -> None:
    """Replace the records of a part in the file of results."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    every = [one for one in before if part_of(one["name"]) != part] + records
    every.sort(key=lambda one: ORDER.index(part_of(one["name"])))
    write_whole(RESULTS, json.dumps(every, indent=1) + "\n")


def _seconds(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.3g}"


def write_table() -> None:
    """Write the tables between the markers of the README."""
    records = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    lines = [BEGIN, ""]
    for part, title in TITLES.items():
        own = [one for one in records if part_of(one["name"]) == part]
        if not own:
            continue
        lines += [f"#### {title}", "", "| what | peer | ours, s | peer, s | ratio |", "| --- | --- | --- | --- | --- |"]
        for one in own:
            name = one["name"].removeprefix(f"{part}_").replace("_", " ")
            ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
            cells = [name, one["peer_name"], _seconds(one["ours"]), _seconds(one["peer"]), ratio]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    text = README.read_text()
    head, rest = text.split(BEGIN, 1)
    write_whole(README, head + "\n".join([*lines, END]) + rest.split(END, 1)[1])


if __name__ == "__main__":
    write_table()
