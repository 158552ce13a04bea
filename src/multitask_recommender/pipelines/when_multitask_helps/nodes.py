"""Steps of the pipeline ``when_multitask_helps``."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from multitask_recommender.evaluation.metric_records import METRICS
from multitask_recommender.evaluation.statistics import Comparison, compare_paired, holm, judge
from multitask_recommender.foundation.jobs import run_jobs
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.pipelines.when_multitask_helps.experiment import Cell, MetricTotals, Repeat, run_repeat
from multitask_recommender.pipelines.when_multitask_helps.parameters import SweepSettings

CELL = ["relatedness", "sparsity", "users"]
VERDICTS = ["helps", "harms", "equivalent", "undecided"]
REPEAT_COLUMNS = [
    *CELL,
    "task",
    "metric",
    "repeat",
    "labels",
    "control",
    "gain",
    "ci_low",
    "ci_high",
    "p_value",
    "p_holm",
    "verdict",
]
COLUMNS = [
    *CELL,
    "task",
    "metric",
    "labels",
    "control",
    "gain",
    "ci_low",
    "ci_high",
    "repeats",
    "repeats_low",
    "repeats_high",
    "p_value",
    "p_holm",
    "verdict",
    *VERDICTS,
]


def _compare(metric: str, model: MetricTotals, control: MetricTotals, resamples: int, seed: int) -> Comparison:
    """Compare on the users that both were measured on."""
    _, at, other_at = np.intersect1d(model[metric][0], control[metric][0], return_indices=True)
    total, count = model[metric][1][at], model[metric][2][at]
    rng = np.random.default_rng(seed)
    return compare_paired(total, control[metric][1][other_at], count, METRICS[metric].root, resamples, rng)


def _as_gain(comparison: Comparison, metric: str) -> dict[str, float]:
    """Relative improvement over the control with its interval; positive is better."""
    sign = METRICS[metric].sign
    low, high = sorted(sign * end / comparison.base for end in (comparison.low, comparison.high))
    return {
        "control": comparison.base,
        "gain": sign * comparison.relative,
        "ci_low": low,
        "ci_high": high,
        "p_value": comparison.p_value,
    }


def _pooled(repeats: list[MetricTotals], metric: str) -> MetricTotals:
    """Put the users of several repeats side by side: every bookstore has readers of its own."""
    users, totals, counts = zip(*(repeat[metric] for repeat in repeats), strict=True)
    apart = [own + (number << 32) for number, own in enumerate(users)]
    return {metric: (np.concatenate(apart), np.concatenate(totals), np.concatenate(counts))}


def run_sweep(settings: SweepSettings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulate, train and compare for every combination of relatedness, sparsity and size.

    A repeat is judged as a study of its own: users as unit, Holm over the metrics of the target task. A combination is
    judged over the users of all its repeats, Holm over the whole sweep; the spread over repeats, which also holds what
    differs between bookstores and trainings, has an interval by Student's t.

    Returns:
        sweep: one row a combination and metric (``COLUMNS``); ``gain`` is the relative improvement over the
        single-task control, positive is better. sweep_repeats: the same for every repeat (``REPEAT_COLUMNS``).
    """
    cells = [Cell(*values) for values in itertools.product(settings.relatedness, settings.sparsity, settings.users)]
    jobs = list(itertools.product(cells, range(settings.repeats)))
    found = run_jobs(lambda job: vars(run_repeat(settings, *job)), jobs, settings.workers, "sweep")
    results = [Repeat(**values) for values in found]
    # The smallest p-value of a permutation test is 2 / (resamples + 1); times the number of tests it has to stay small.
    resamples = max(settings.resamples, 100 * len(cells) * len(results[0].model))
    repeats: list[dict[str, Any]] = []
    pooled: list[dict[str, Any]] = []
    for cell in cells:
        own = [result for (of, _), result in zip(jobs, results, strict=True) if of == cell]
        repeats += [row for number, one in enumerate(own) for row in judge_repeat(settings, cell, number, one)]
        metrics = [metric for metric in own[0].model if all(metric in one.model for one in own)]
        for metric in metrics:
            models, controls = ([getattr(one, side) for one in own] for side in ("model", "control"))
            seed = derive_seed(settings.seed, "sweep comparison", *vars(cell).values(), metric)
            result = _compare(metric, _pooled(models, metric), _pooled(controls, metric), resamples, seed)
            row = {**vars(cell), "task": settings.target, "metric": metric, **_as_gain(result, metric)}
            pooled.append({**row, "comparison": result})
    each = pd.DataFrame(repeats, columns=REPEAT_COLUMNS)
    table = pd.DataFrame(pooled)
    table["p_holm"] = holm(table["p_value"].to_numpy())
    table["verdict"] = [
        judge(result, p, METRICS[metric].sign > 0, settings.smallest_effect)
        for result, p, metric in zip(table["comparison"], table["p_holm"], table["metric"], strict=True)
    ]
    groups = each.groupby([*CELL, "metric"], sort=False)
    spread = groups["gain"].agg(["mean", "sem", "count"])
    half = spread["sem"] * stdtrit(spread["count"] - 1, 0.975)
    summary = pd.DataFrame(
        {
            "labels": groups["labels"].mean(),
            "repeats": spread["count"],
            "repeats_low": spread["mean"] - half,
            "repeats_high": spread["mean"] + half,
        }
    )
    counts = pd.crosstab([each[name] for name in (*CELL, "metric")], each["verdict"])
    summary = summary.join(counts.reindex(columns=VERDICTS, fill_value=0))
    table = table.merge(summary.reset_index(), on=[*CELL, "metric"])
    return table[COLUMNS], each


def judge_repeat(settings: SweepSettings, cell: Cell, number: int, repeat: Repeat) -> list[dict[str, Any]]:
    """Judge one repeat: one row a metric, Holm over the metrics."""
    rows = []
    results = []
    for metric in repeat.model:
        if metric not in repeat.control:
            continue
        seed = derive_seed(settings.seed, "sweep repeat", *vars(cell).values(), number, metric)
        result = _compare(metric, repeat.model, repeat.control, settings.resamples, seed)
        own = {**vars(cell), "task": settings.target, "metric": metric, "repeat": number, "labels": repeat.labels}
        rows.append({**own, **_as_gain(result, metric)})
        results.append(result)
    adjusted = holm(np.array([result.p_value for result in results]))
    for row, result, p in zip(rows, results, adjusted, strict=True):
        row["p_holm"] = p
        row["verdict"] = judge(result, p, METRICS[row["metric"]].sign > 0, settings.smallest_effect)
    return rows
