"""Where the measurements go: ``results/scale.json``, the figure, and tables in the README and ``docs/scale.md``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sizes

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / ".work" / "scale"
RESULTS, FIGURE = HERE.parent / "results" / "scale.json", HERE.parent / "results" / "scale.png"
PICTURE = "![Seconds and peak memory against interactions](../benchmarks/results/scale.png)"
README, DOCUMENT = HERE.parent / "README.md", sizes.ROOT / "docs" / "scale.md"
Records = list[dict[str, Any]]


def read() -> dict[str, Any]:
    """Return the results: ``records`` of pipelines, their ``slopes``, and ``large_catalogue``, records of nodes."""
    empty: dict[str, Any] = {"records": [], "slopes": {}, "memory_slopes": {}, "large_catalogue": []}
    return empty | (json.loads(RESULTS.read_text()) if RESULTS.exists() else {})


def _write(found: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


def _put(document: Path, name: str, text: str) -> None:
    """Put a text between the marks of a document that bear a name."""
    begin, end = f"<!-- {name}: written by benchmarks/scale/run.py -->", f"<!-- end of {name} -->"
    start, rest = document.read_text().split(begin)
    document.write_text(f"{start}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")


def add_sizes(records: Records) -> None:
    """Put records of pipelines in the place of those of the same size, and write slopes, figure and table."""
    found = read()
    new = {(own["interactions"], own["pipeline"]) for own in records}
    kept = [own for own in found["records"] if (own["interactions"], own["pipeline"]) not in new]
    order = list(sizes.PIPELINES)
    together = sorted(kept + records, key=lambda own: (own["interactions"], order.index(own["pipeline"])))
    found |= {"records": together, "slopes": sizes.slopes(together)}
    found["memory_slopes"] = sizes.slopes(together, "peak_mb")
    _write(found)
    sizes.draw(together, FIGURE)
    _put(DOCUMENT, "measurements by size", f"{sizes.table(together)}\n\n{PICTURE}")


def add_large_catalogue(records: Records, table: str) -> None:
    """Put records of nodes in the place of those of the same models; ``table`` goes to the README."""
    found = read()
    found["large_catalogue"] = records
    _write(found)
    _put(README, "scale", table)
