"""Mean RMSE over five folds, of this project's joint model and of SVD++, and writes results/five_fold.json.

``python benchmarks/quality/five_fold.py [--only NAME ...]``. Both models take the settings that ``run.py`` chose on the
validation rows of its split, so it has to run first; nothing is chosen here. One seed per fold. The random split's rows
are the folds' rows, so a tenth of all ratings has had a say in the choice between a few settings, for both alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import report
import split
from measure import measure
from run import BENCHES, RATING_AND_RANKING, WORK, Entry, PeerError, digest, load_split, read_scores, run_script

NAMES = ("own.wide_shared_bottom", "own.wide_shared_bottom_dates", "surprise.svd_plus_plus")


def fit_fold(entry: Entry, data: split.SplitData, folder: Path, fold: int) -> dict[str, Any]:
    """Fit the model on four folds and measure it on the fifth, unless that was done with the same settings and code.

    Raises:
        PeerError: If the model has no chosen settings yet, or fails.
    """
    finished = BENCHES[0].work / entry.name / "finished.json"
    if not finished.exists():
        raise PeerError(f"no settings of {entry.name}: run benchmarks/quality/run.py first")
    settings = json.loads(finished.read_text())["settings"]
    output, marker = folder / f"{entry.name}.npz", folder / f"{entry.name}.json"
    state = {"digest": digest(entry.script, folder / "training.npz"), "settings": settings}
    if marker.exists() and (before := json.loads(marker.read_text())) and before["state"] == state:
        return before["record"]
    arguments: list[str | Path] = ["fit", "--model", entry.key, "--training", folder / "training.npz"]
    arguments += ["--pairs", folder / "pairs.npz", "--settings", json.dumps(settings)]
    run_script(entry.script, arguments, output)
    ((_, scores),) = read_scores(output)
    pointwise = {name: values for name, values in scores.items() if name != "matrix"}
    values = measure(pointwise, data.test, [data.train], data).values
    record = {
        "model": entry.model,
        "library": entry.library,
        "fold": fold,
        "seed": 0,
        "rmse": round(float(values["rmse"] or np.nan), 5),
        "fit_seconds": round(float(scores["seconds"]), 2),
    }
    report.write_whole(marker, json.dumps({"state": state, "record": record}))
    return record


def main() -> None:
    """Fit and measure all folds; models that are not asked for keep their records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    asked = [entry for entry in RATING_AND_RANKING if entry.name in parser.parse_args().only]
    target = report.RESULTS / "five_fold.json"
    before = json.loads(target.read_text()) if target.exists() else []
    records: dict[str, list[dict[str, Any]]] = {
        entry.name: [one for one in before if (one["model"], one["library"]) == (entry.model, entry.library)]
        for entry in RATING_AND_RANKING
        if entry not in asked
    }
    for fold in range(split.FOLDS):
        folder = WORK / f"fold{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        data = load_split(split.fold_parts(split.ROWS, fold))
        split.write_arrays(folder / "training.npz", data.arrays())
        split.write_pairs(folder / "pairs.npz", data.test)
        for entry in asked:
            record = fit_fold(entry, data, folder, fold)
            print(f"{entry.name}, fold {fold}: RMSE {record['rmse']}", flush=True)
            records.setdefault(entry.name, []).append(record)
    everything = [one for entry in RATING_AND_RANKING for one in records.get(entry.name, [])]
    report.write_whole(target, json.dumps(everything, indent=1) + "\n")
    report.write_table()


if __name__ == "__main__":
    try:
        main()
    except PeerError as error:
        sys.exit(str(error))
