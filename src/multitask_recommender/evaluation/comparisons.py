"""Every multi-task model against its single-task control and every baseline, with inference over users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.interactions import BoolArray, IntArray
from multitask_recommender.data.tasks import Task
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.metric_records import (
    METRICS,
    ListMetric,
    RowMetric,
    compared_metrics,
    main_metric,
)
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.evaluation.statistics import (
    Comparison,
    compare_paired,
    holm,
    judge,
    permutation_p_value,
)
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.jobs import run_jobs
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.models.variants import AFFINITY_BASE, VARIANTS

_WORTH_MORE = 0.1
"""A p-value above it stays undecided whatever the number of permutations."""
COLUMNS = [
    "dataset",
    "split",
    "model",
    "control",
    "task",
    "metric",
    "k",
    "difference",
    "relative",
    "ci_low",
    "ci_high",
    "p_value",
    "p_holm",
    "verdict",
    "p_primary",
    "primary_verdict",
]


def is_control(model: str, control: str) -> bool:
    """Return whether the study compares the first model with the second.

    A tuned multi-task model is compared with the single-task control, with its own if it has one, and every baseline;
    one that is another model with something changed, with that model and the single-task control; and a model with its
    ablations. A control with equal inputs stands between: it is compared with the control that it changes (what more
    to read gives), and the joint models of its sort with it (what training together gives).
    """
    one, other = VARIANTS[model], VARIANTS[control]
    if one.equal_inputs:
        return control == one.equal_inputs_of
    if one.kind != "multi_task":
        return False
    if other.equal_inputs:
        return other.equal_inputs_of == (one.own_control or "single_task")
    if other.kind == "single_task":
        return control in ("single_task", one.own_control)
    if one.based_on is not None:
        return control == one.based_on
    return other.kind == "baseline" or (other.kind == "ablation" and other.based_on == model)


def comparable(model: str, control: str, task: str, metric: RowMetric | ListMetric, tasks: dict[str, Task]) -> bool:
    """Return whether a comparison says something: not that of lists where the control alone never learnt to rank."""
    one, other = VARIANTS[model], VARIANTS[control]
    return not metric.of_lists or other.trained_to_rank(task, tasks) or not one.trained_to_rank(task, tasks)


def left_out_of_comparisons(dataset: DatasetSettings, study: StudySettings) -> pd.DataFrame:
    """Say which comparisons the study does not make: table (what, reason)."""
    running = study.running(dataset)
    lines = []
    for model in running:
        variant = VARIANTS[model]
        if variant.kind == "multi_task":
            for control in ("single_task", variant.own_control):
                if control is not None and control not in running:
                    reason = "the study leaves this model out: 'study.models' can name it"
                    lines.append((f"comparison of {model} with its control {control}", reason))
        if variant.equal_inputs:
            same = set(dataset.tasks) - set(variant.scored_tasks(dataset.tasks))
            reason = f"histories carry its labels in any case: the control is {variant.equal_inputs_of}"
            lines += [(f"model {model} of task {name}", reason) for name in sorted(same)]
    if len(dataset.tasks) > 1 and AFFINITY_BASE not in running:
        lines.append(("affinity of the tasks", f"it is measured with {AFFINITY_BASE}, which the study leaves out"))
    for name, task in dataset.tasks.items():
        for metric in compared_metrics(task.kind):
            controls = {
                control: None
                for model in running
                for control in running
                if is_control(model, control) and not comparable(model, control, name, metric, dataset.tasks)
            }
            if controls:
                reason = "these models learn it from the rows with a label alone, and were never trained to rank"
                lines.append((f"comparisons by {metric.name} of task {name} with {', '.join(controls)}", reason))
    return pd.DataFrame(lines, columns=["what", "reason"])


def compare_models(
    dataset: DatasetSettings,
    study: StudySettings,
    splits: SplitSettings,
    settings: EvaluationSettings,
    cross_validation: CrossValidationSettings,
    *user_totals: pd.DataFrame,
) -> pd.DataFrame:
    """Compare the models on the users that both were measured on; seeds count as :func:`compare_paired` says.

    Metrics of lists are compared at the headline k, AUC as the mean of the users' own.

    Metrics of lists are not compared with a control that never learnt to rank (see :meth:`Variant.trained_to_rank`).

    For RMSE that is the mean of the squared errors over seeds, so the difference is not exactly that of the mean RMSEs.

    The Holm correction is over the tasks and metrics of one model and control on one split. The primary family of the
    study (:func:`primary`) is corrected as one as well, over all splits: ``p_primary`` and ``primary_verdict``, which
    the other rows do not have.

    Args:
        dataset: The tasks.
        study: The seed.
        splits: The splits.
        settings: Resamples and smallest effect of interest.
        cross_validation: How many processes to use.
        user_totals: Per-user totals of every model.

    Returns:
        Table with ``COLUMNS``; ``difference`` is model minus control, and the interval is of the difference.
    """
    if not any(map(len, user_totals)):
        return pd.DataFrame(columns=COLUMNS)
    keys = ["split", "task", "metric", "k", "model"]
    compared = {metric.name for task in dataset.tasks.values() for metric in compared_metrics(task.kind)}
    # Plain arrays, which are cheap to hand to other processes.
    cells: dict[Any, Cell] = {}
    for table in user_totals:
        if len(table):
            used = table[table["k"].isin([0, settings.headline_k]) & table["metric"].isin(compared)]
            cells |= {key: Cell.of(cell) for key, cell in used.groupby(keys, observed=True)}
    jobs: list[list[tuple[Any, ...]]] = []
    measured = {model for *_, model in cells}
    names = [name for name in VARIANTS if name in measured]
    for split in splits.names:
        for model in names:
            for control in (name for name in names if is_control(model, name)):
                job = []
                for task, kind in ((name, task.kind) for name, task in dataset.tasks.items()):
                    for metric in compared_metrics(kind):
                        k = settings.headline_k if metric.of_lists else 0
                        pair = [cells.get((split, task, metric.name, k, name)) for name in (model, control)]
                        counts = comparable(model, control, task, metric, dataset.tasks)
                        if counts and pair[0] is not None and pair[1] is not None:
                            job.append((split, model, control, task, metric.name, k, *pair))
                if job:
                    jobs.append(job)

    def compare_pair(job: list[tuple[Any, ...]]) -> list[Comparison]:
        return [compare(*one) for one in job]

    def compare(
        split: str, model: str, control: str, task: str, metric: str, k: int, own: Cell, other: Cell
    ) -> Comparison:
        rng = np.random.default_rng(derive_seed(study.seed, "comparison", split, model, control, task, metric))
        return compare_paired(*_paired(own, other), METRICS[metric].root, settings.resamples, rng)

    results = list(chain(*run_jobs(compare_pair, jobs, cross_validation.workers, "comparing models")))
    if not results:
        return pd.DataFrame(columns=COLUMNS)
    rows = list(chain(*jobs))
    chosen = primary(pd.DataFrame([row[:6] for row in rows], columns=COLUMNS[1:7]), [r.base for r in results], dataset)
    # So many permutations that the smallest p-value is small enough after the correction for the whole family.
    enough = max(settings.resamples, 100 * int(chosen.sum()))

    def compare_finely(row: tuple[Any, ...]) -> float:
        split, model, control, task, metric, _, own, other = row
        rng = np.random.default_rng(derive_seed(study.seed, "primary", split, model, control, task, metric))
        return permutation_p_value(*_paired(own, other)[:2], enough, rng)

    finely = [place for place in np.flatnonzero(chosen) if results[place].p_value <= _WORTH_MORE]
    p_values = run_jobs(compare_finely, [rows[place] for place in finely], cross_validation.workers, "primary family")
    for place, p_value in zip(finely, p_values, strict=True):
        results[place] = replace(results[place], p_value=p_value)
    table = pd.DataFrame(
        [
            (dataset.name, *job[:6], result.difference, result.relative, result.low, result.high, result.p_value)
            for job, result in zip(rows, results, strict=True)
        ],
        columns=COLUMNS[: COLUMNS.index("p_holm")],
    )
    family = ["split", "model", "control"]
    table["p_holm"] = table.groupby(family)["p_value"].transform(lambda p: holm(p.to_numpy()))
    table["verdict"] = [
        judge(result, p, METRICS[metric].sign > 0, settings.smallest_effect)
        for result, p, metric in zip(results, table["p_holm"], table["metric"], strict=True)
    ]
    table["p_primary"], table["primary_verdict"] = np.nan, None
    table.loc[chosen, "p_primary"] = holm(table.loc[chosen, "p_value"].to_numpy())
    for row in table.index[chosen]:
        better = METRICS[table.loc[row, "metric"]].sign > 0
        p = float(table.loc[row, "p_primary"])
        table.loc[row, "primary_verdict"] = judge(results[row], p, better, settings.smallest_effect)
    return table[COLUMNS]


def _paired(own: Cell, other: Cell) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return totals of both and counts of the users that both were measured on."""
    _, at, other_at = np.intersect1d(own.users, other.users, assume_unique=True, return_indices=True)
    return own.totals[:, at], other.totals[:, other_at], own.counts[at]


class Cell(NamedTuple):
    """What was measured of one model by one metric.

    Attributes:
        users: (users,) numbers, ascending.
        totals: (seeds, users).
        counts: (users,).
    """

    users: IntArray
    totals: NDArray[np.float64]
    counts: NDArray[np.float64]

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Cell:
        """Read the rows (seed, user, total, count) of a model; users who are missing with a seed are left out."""
        seeds = rows["seed"].to_numpy()
        number = len(np.unique(seeds))
        if len(rows) % number == 0:
            shape = (number, len(rows) // number)
            parts = [rows[name].to_numpy().reshape(shape) for name in ("seed", "user", "total", "count")]
            by_seed, users, total, count = parts
            # As every seed's rows stand: the same users, ascending. Much faster than a pivot.
            if (by_seed == by_seed[:, :1]).all() and (users == users[:1]).all() and (np.diff(users[0]) > 0).all():
                return cls(users[0].astype(np.int64), total.astype(np.float64), count.mean(axis=0, dtype=np.float64))
        whole = rows.pivot_table(index="user", columns="seed", values=["total", "count"], observed=True).dropna()
        totals, counts = (whole[column].to_numpy(np.float64).T for column in ("total", "count"))
        return cls(whole.index.to_numpy(np.int64), totals, counts.mean(axis=0))


def primary(table: pd.DataFrame, base: Sequence[float], dataset: DatasetSettings) -> BoolArray:
    """Say which comparisons are the primary family of the study: few, and declared before anything is measured.

    They are those by the main metric of every task, on every split, of every core multi-task model with its own
    single-task control and with the baseline that is best by this metric (best in the test, which makes it harder).

    Args:
        table: The comparisons: split, model, control, task, metric.
        base: (rows,) the metric of the control.
        dataset: The tasks.

    Returns:
        (rows,).
    """
    main = {name: main_metric(task.kind).name for name, task in dataset.tasks.items()}
    core = table["model"].map(lambda name: VARIANTS[name].core and VARIANTS[name].kind == "multi_task")
    counted = core & (table["metric"] == table["task"].map(main))
    control = table["model"].map(lambda name: VARIANTS[name].own_control or "single_task")
    baseline = table["control"].map(lambda name: VARIANTS[name].kind == "baseline")
    merit = table["metric"].map(lambda name: METRICS[name].sign) * np.asarray(base)
    of_baselines = table[counted & baseline]
    best = merit[of_baselines.index].groupby([of_baselines[name] for name in ("split", "model", "task")]).idxmax()
    return (counted & ((table["control"] == control) | table.index.isin(best))).to_numpy(bool)
