"""From measurements to comparisons and to the tables in the benchmarks' README."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from measure import Measured, Totals
from multitask_recommender.evaluation.metric_records import METRICS
from multitask_recommender.evaluation.statistics import compare_paired, holm
from multitask_recommender.foundation.randomness import derive_seed

OWN = "multitask-recommender"
"""The library name of this project's model."""
DATED = ", with dates"
"""How the name of a model ends that looks at the times of ratings."""
RESULTS = Path(__file__).resolve().parents[1] / "results"
README = RESULTS.parent / "README.md"
BEGIN, END = "<!-- results: written by benchmarks/quality/report.py -->", "<!-- end of results -->"
RESAMPLES = 9999
_SAME = 5e-4
"""Means over seeds that differ by less are the same figure: machines round otherwise, and training amplifies it."""
METRIC_OF = {
    "rmse": METRICS["rmse"],
    "mae": METRICS["mae"],
    "ndcg_10": METRICS["ndcg"],
    "recall_10": METRICS["recall"],
    "auc_like": METRICS["auc"],
    "user_auc_like": METRICS["auc"],
}
"""The study's record of each metric that has a direction."""
SHOWN = {
    "rmse": ("RMSE", 4),
    "mae": ("MAE", 4),
    "ndcg_10": ("NDCG@10", 4),
    "recall_10": ("recall@10", 4),
    "coverage_10": ("coverage@10", 3),
    "novelty_10": ("novelty@10, bits", 2),
    "auc_like": ("AUC of like", 4),
    "fit_seconds": ("fit, s", 1),
    "peak_mb": ("peak, MB", 0),
}
Record = dict[str, Any]
SPLITS = {
    "random": "MovieLens-100k, random split",
    "chronological": "MovieLens-100k, chronological split",
    "movielens_1m": "MovieLens-1M, published split",
}
"""Titles of the splits."""
COMPARED = {
    "rmse": "RMSE",
    "ndcg_10": "NDCG@10",
    "auc_like": "AUC of like",
    "user_auc_like": "AUC of like, mean of the users' own",
}


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text)
    os.replace(partial, path)


def _totals(fits: list[Measured], metric: str) -> Totals | None:
    """Users, their totals (seeds, users) and their counts."""
    if metric not in fits[0].totals:
        return None
    users, _, count = fits[0].totals[metric]
    return users, np.stack([fit.totals[metric][1] for fit in fits]), count


def compare(measured: dict[tuple[str, str], list[Measured]]) -> list[dict[str, Any]]:
    """Compare this project's model with every peer on the metrics of ``COMPARED``, paired over the users.

    Args:
        measured: (model, library) to the fits, one per seed.

    Returns:
        Records metric, peer, library, own, other (metrics over all seeds), difference (own minus other) with its 95 %
        BCa interval, p_value of the paired permutation test, p_holm (over all records) and ahead: yes, no or undecided
        at 5 %. ``auc_like`` is over all rows as in the records, ``user_auc_like`` the mean of the users' own.
    """
    of_own = {model.endswith(DATED): fits for (model, library), fits in measured.items() if library == OWN}
    records: list[dict[str, Any]] = []
    for (model, library), fits in measured.items():
        # Who looks at the dates is compared with who does.
        own = of_own.get(model.endswith(DATED))
        for metric in COMPARED if library != OWN and own is not None else ():
            assert own is not None
            mine, theirs = _totals(own, metric), _totals(fits, metric)
            if mine is None or theirs is None:
                continue
            rng = np.random.default_rng(derive_seed(0, "quality", model, library, metric))
            result = compare_paired(mine[1], theirs[1], mine[2], METRIC_OF[metric].root, RESAMPLES, rng)
            records.append(
                {
                    "metric": metric,
                    "peer": model,
                    "library": library,
                    "own": result.base + result.difference,
                    "other": result.base,
                    "difference": result.difference,
                    "ci_low": result.low,
                    "ci_high": result.high,
                    "p_value": result.p_value,
                }
            )
    return judged(records)


def judged(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adjust the p-values of all comparisons of a split, and say which are sure, see :func:`compare`."""
    adjusted = holm(np.array([record["p_value"] for record in records])) if records else np.array([])
    for record, p in zip(records, adjusted, strict=True):
        better = METRIC_OF[record["metric"]].sign * record["difference"] > 0
        sure = p < 0.05 and (record["ci_low"] > 0 or record["ci_high"] < 0)
        record |= {"p_holm": float(p), "ahead": ("yes" if better else "no") if sure else "undecided"}
    return records


class EarlierResultsError(Exception):
    """Earlier results would be lost."""


def beside_earlier(
    records: list[Record], comparisons: list[Record], before: list[Record], compared_before: list[Record]
) -> tuple[list[Record], list[Record]]:
    """Add earlier results of the peers of a split that were not measured now.

    Args:
        records: What was measured now.
        comparisons: What :func:`compare` found of it.
        before: Earlier records of the same split.
        compared_before: Earlier comparisons of the same split.

    Returns:
        Records and comparisons, adjusted over all of them.

    Raises:
        EarlierResultsError: If there are such peers, and they were compared with other figures of this project.
    """
    if not records:
        return before, compared_before
    now = {(one["model"], one["library"]) for one in records}
    kept = [one for one in before if (one["model"], one["library"]) not in now]

    def own(table: list[Record]) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], list[float]] = {}
        for one in table:
            for name in COMPARED if one["library"] == OWN else ():
                if one.get(name) is not None:
                    found.setdefault((one["model"], name), []).append(one[name])
        return {key: float(np.mean(values)) for key, values in found.items()}

    ours, earlier = own(records), own(before)
    both = {*ours, *earlier}
    moved = [key for key in sorted(both) if not abs(ours.get(key, np.nan) - earlier.get(key, np.nan)) < _SAME]
    if kept and moved:
        peers = ", ".join(dict.fromkeys(f"{one['model']} ({one['library']})" for one in kept))
        figures = ", ".join(f"{name} of {model}" for model, name in moved)
        raise EarlierResultsError(
            f"Nothing is written: this project's figures are not those of before ({figures}), and what was compared "
            f"with these would be lost, because its scores are not here: {peers}. Run all models of the split."
        )
    compared = [one for one in compared_before if (one["peer"], one["library"]) not in now]
    return [*records, *kept], judged([*comparisons, *compared])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _quality_table(records: pd.DataFrame) -> list[str]:
    means = records.groupby(["model", "library"], sort=False)[list(SHOWN)].mean()
    seeds = records.groupby(["model", "library"], sort=False).size()
    lines = [_row(["model (library)", "seeds", *[title for title, _ in SHOWN.values()]])]
    lines.append(_row(["---"] * (len(SHOWN) + 2)))
    best = {
        name: means[name].max() if METRIC_OF[name].sign > 0 else means[name].min()
        for name in METRIC_OF
        if name in SHOWN
    }
    for (model, library), values in means.iterrows():
        cells = []
        for name, (_, digits) in SHOWN.items():
            value = values[name]
            text = "" if np.isnan(value) else f"{value:.{digits}f}"
            cells.append(f"**{text}**" if name in best and value == best[name] else text)
        lines.append(_row([f"{model} ({library})", str(seeds[model, library]), *cells]))
    return lines


def _comparison_table(comparisons: pd.DataFrame) -> list[str]:
    lines = [_row(["metric", "peer", "own", "peer's", "difference", "95 % interval", "p, Holm", "ahead"])]
    lines.append(_row(["---"] * 8))
    for metric in COMPARED:
        table = comparisons[comparisons["metric"] == metric]
        for _, one in table.sort_values("other", ascending=METRIC_OF[metric].sign < 0).iterrows():
            interval = f"{one['ci_low']:+.4f} to {one['ci_high']:+.4f}"
            numbers = [f"{one['own']:.4f}", f"{one['other']:.4f}", f"{one['difference']:+.4f}", interval]
            name = f"{one['peer']} ({one['library']})"
            lines.append(_row([COMPARED[metric], name, *numbers, f"{one['p_holm']:.4f}", one["ahead"]]))
    return lines


def _fold_table(records: pd.DataFrame) -> list[str]:
    folds = sorted(records["fold"].unique())
    lines = [
        _row(["model (library)", *[f"fold {fold}" for fold in folds], "mean RMSE"]),
        _row(["---"] * (len(folds) + 2)),
    ]
    for (model, library), own in records.groupby(["model", "library"], sort=False):
        by_fold = own.groupby("fold")["rmse"].mean()
        cells = [f"{by_fold[fold]:.4f}" if fold in by_fold else "" for fold in folds]
        mean = f"{by_fold.mean():.4f}" if len(by_fold) == len(folds) else ""
        lines.append(_row([f"{model} ({library})", *cells, mean]))
    return lines


def _records(name: str) -> pd.DataFrame:
    path = RESULTS / f"{name}.json"
    return pd.DataFrame(json.loads(path.read_text())) if path.exists() else pd.DataFrame()


def write_table() -> None:
    """Write the tables between the markers of the README, from the JSON files."""
    lines = [BEGIN, ""]
    quality, comparisons, folds = (_records(name) for name in ("quality", "quality_comparisons", "five_fold"))
    for split, records in quality.groupby("split", sort=False) if len(quality) else ():
        lines += [f"#### {SPLITS[str(split)]}", "", "Means over the seeds; the best accuracy in bold.", ""]
        lines += [*_quality_table(records), ""]
        own = comparisons[comparisons["split"] == split] if len(comparisons) else comparisons
        if len(own):
            lines += [
                "This project's model against every peer, paired over the users, best peer of a metric first; intervals"
                " over users and seeds. RMSE is here that of the squared errors averaged over seeds. Holm's correction"
                " is over all rows of the table.",
                "",
                *_comparison_table(own),
                "",
            ]
        if split == "random" and len(folds):
            title = "Five folds: fold f is every fifth row of the same permutation, from row f on."
            lines += [title, "", *_fold_table(folds), ""]
    text = README.read_text()
    head, rest = text.split(BEGIN, 1)
    write_whole(README, head + "\n".join([*lines, END]) + rest.split(END, 1)[1])


if __name__ == "__main__":
    write_table()
