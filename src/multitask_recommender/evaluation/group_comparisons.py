"""Who gains, who pays: multi-task models against their controls, in thirds of the users by activity."""

from __future__ import annotations

from typing import Any, NamedTuple

import ibis.expr.types as ir
import numpy as np
import pandas as pd

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.data.events import as_pairs, pair_rules
from multitask_recommender.data.interactions import read_interactions
from multitask_recommender.evaluation.comparisons import Cell, comparable
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.groups import THIRDS, activity_thirds
from multitask_recommender.evaluation.metric_records import ListMetric, RowMetric, main_metric
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.evaluation.statistics import Comparison, Values, compare_paired
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.jobs import run_jobs
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.models.variants import VARIANTS

COLUMNS = ["dataset", "split", "model", "control", "task", "metric", "k", "group"]
COLUMNS += ["gain", "ci_low", "ci_high", "users"]


class _Job(NamedTuple):
    """A model, its control and a third of the users.

    Attributes:
        what: Split, model, control, task and group.
        metric: The main metric of the task.
        own: (seeds, users) totals of the model.
        other: (its seeds, users) totals of the control.
        counts: (users,).
    """

    what: tuple[str, str, str, str, str]
    metric: RowMetric | ListMetric
    own: Values
    other: Values
    counts: Values


def compare_groups(
    dataset: DatasetSettings,
    study: StudySettings,
    settings: EvaluationSettings,
    cross_validation: CrossValidationSettings,
    behaviour_sequences: ir.Table,
    user_totals: pd.DataFrame,
) -> pd.DataFrame:
    """Compare every core multi-task model with its single-task control in thirds of the users, by the main metrics.

    These are descriptions: no p-value is adjusted for so many groups, and none is given.

    Args:
        dataset: The tasks.
        study: The seed.
        settings: The headline k, and the number of resamples.
        cross_validation: How many processes to use.
        behaviour_sequences: Training rows, which say how active a user is.
        user_totals: Per-user totals of all models.

    Returns:
        Table with ``COLUMNS``. ``gain`` is the relative improvement over the control (positive is better), with its
        95 % interval over users and seeds.
    """
    mains = {name: main_metric(task.kind) for name, task in dataset.tasks.items()}
    tables = {str(name): table for name, table in user_totals.groupby("model", observed=True)}
    pairs = [
        (name, variant.own_control or "single_task")
        for name, variant in VARIANTS.items()
        if name in tables and variant.core and variant.kind == "multi_task"
    ]
    pairs = [(model, control) for model, control in pairs if control in tables]
    thirds: dict[str, Any] = {}
    jobs: list[_Job] = []
    for model, control in pairs:
        for split in tables[model]["split"].unique():
            if split not in thirds:
                events = read_interactions(behaviour_sequences, str(split), dataset.tasks)
                thirds[split] = as_pairs(events, pair_rules(dataset.tasks)).user
            for task, metric in mains.items():
                k = settings.headline_k if metric.of_lists else 0
                both = [_cell(tables[name], str(split), task, metric.name, k) for name in (model, control)]
                if not comparable(model, control, task, metric, dataset.tasks) or any(cell is None for cell in both):
                    continue
                own, other = both
                assert own is not None
                assert other is not None
                users, at, other_at = np.intersect1d(own.users, other.users, assume_unique=True, return_indices=True)
                groups = activity_thirds(thirds[split], users)
                for group in THIRDS:
                    inside = groups == group
                    if inside.any():
                        parts = own.totals[:, at[inside]], other.totals[:, other_at[inside]], own.counts[at[inside]]
                        jobs.append(_Job((str(split), model, control, task, group), metric, *parts))

    def compare(job: _Job) -> Comparison:
        rng = np.random.default_rng(derive_seed(study.seed, "groups", *job.what))
        return compare_paired(job.own, job.other, job.counts, job.metric.root, settings.resamples, rng)

    lines = []
    for job, found in zip(jobs, run_jobs(compare, jobs, cross_validation.workers, "comparing groups"), strict=True):
        *what, group = job.what
        sign, k = job.metric.sign, settings.headline_k if job.metric.of_lists else 0
        ends = sorted(sign * end / found.base if found.base else np.nan for end in (found.low, found.high))
        lines.append((dataset.name, *what, job.metric.name, k, group, sign * found.relative, *ends, len(job.counts)))
    return pd.DataFrame(lines, columns=COLUMNS)


def _cell(table: pd.DataFrame, split: str, task: str, metric: str, k: int) -> Cell | None:
    rows = table[(table["split"] == split) & (table["task"] == task) & (table["metric"] == metric) & (table["k"] == k)]
    return Cell.of(rows) if len(rows) else None
