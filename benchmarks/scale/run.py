"""Measures how time and memory grow: pipelines by size of the data, and two nodes on a large catalogue.

``python benchmarks/scale/run.py [--sizes N ...] [--pipelines NAME ...] [--again] [--keep]`` measures the pipelines on
simulated bookstores (``sizes.py``), then the nodes ``predict`` and ``recommend`` on 200,000 users and 50,000 items
(``large_catalogue.py``). What has been measured is not measured again, unless ``--again`` says so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import large_catalogue
import results
import sizes


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(sizes.SIZES), metavar="N")
    parser.add_argument("--pipelines", nargs="+", choices=sizes.PIPELINES, default=list(sizes.PIPELINES))
    parser.add_argument("--again", action="store_true", help="measure once more what has been measured")
    parser.add_argument("--keep", action="store_true", help="keep the tables and models of the sizes")
    parser.add_argument("--only-sizes", action="store_true", help="leave out the nodes on a large catalogue")
    given = parser.parse_args()
    for size in given.sizes:
        folder = results.WORK / f"{size}"
        records = sizes.measure_size(folder, size, given.pipelines, given.again)
        results.add_sizes(records)
        if not given.keep:
            sizes.clear(folder)
    if not given.only_sizes:
        large_catalogue.run(large_catalogue.USERS, large_catalogue.ITEMS, list(large_catalogue.SETTINGS))


if __name__ == "__main__":
    main()
