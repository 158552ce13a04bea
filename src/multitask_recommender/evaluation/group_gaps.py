"""Whether a model serves declared groups of users alike: the gap of the main metric between them."""

from __future__ import annotations

from typing import Any, NamedTuple

import ibis.expr.types as ir
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.features import MISSING
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.metric_records import ListMetric, RowMetric, main_metric
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.jobs import run_jobs
from multitask_recommender.foundation.randomness import derive_seed

Values = NDArray[np.float64]
COLUMNS = [
    "dataset",
    "split",
    "model",
    "task",
    "metric",
    "k",
    "feature",
    "best",
    "worst",
    "best_value",
    "worst_value",
    "gap",
    "ci_low",
    "ci_high",
    "p_value",
    "users",
]
SMALLEST_GROUP = 10
"""Groups of fewer users with a value are left out: their mean says little."""


def users_of_groups(
    split: str, feature: str, user_features: ir.Table, user_vocabulary: ir.Table
) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Return the users of whom a feature is known, ascending, and its values (of a number, its bin)."""
    named = user_vocabulary.filter(
        (user_vocabulary.split == split) & (user_vocabulary.feature == feature) & (user_vocabulary.value != MISSING)
    ).select("column", "value")
    found = user_features.filter(user_features.split == split).inner_join(named, "column")
    table = found.select("user", "value").order_by("user").execute()
    return table["user"].to_numpy(np.int64), table["value"].to_numpy(str)


def measure_group_gaps(
    dataset: DatasetSettings,
    study: StudySettings,
    splits: SplitSettings,
    settings: EvaluationSettings,
    cross_validation: CrossValidationSettings,
    user_features: ir.Table,
    user_vocabulary: ir.Table,
    *user_totals: pd.DataFrame,
) -> pd.DataFrame:
    """Measure how far the main metrics of every model lie apart between the groups of ``dataset.users.groups``.

    Args:
        dataset: The groups and tasks.
        study: The seed.
        splits: The splits.
        settings: Length of the lists and number of resamples.
        cross_validation: How many processes to use.
        user_features: Design matrix of the users in long form.
        user_vocabulary: What its columns stand for.
        user_totals: Per-user totals of every model.

    Returns:
        Table with ``COLUMNS``. ``gap`` is the difference between the groups in which the metric is best and worst, its
        interval the 95 % percentile bootstrap one of the difference between these two, over users within groups. The
        p-value is that of a permutation test: how often users put into groups by chance lie as far apart, the best from
        the worst. Groups of fewer than ``SMALLEST_GROUP`` users are left out.
    """
    tables = [table for table in user_totals if len(table)]
    if not dataset.users.groups or not tables:
        return pd.DataFrame(columns=COLUMNS)
    mains = {name: main_metric(task.kind) for name, task in dataset.tasks.items()}
    keys = ["split", "task", "metric", "k", "model", "user"]
    used = pd.concat(table[table["metric"].isin({metric.name for metric in mains.values()})] for table in tables)
    means = used.groupby(keys, observed=True)[["total", "count"]].mean().reset_index()
    order = {name: place for place, name in enumerate(used["model"].unique())}
    jobs: list[_Job] = []
    for split in splits.names:
        for feature in dataset.users.groups:
            users, group = users_of_groups(split, feature, user_features, user_vocabulary)
            for task, metric in mains.items():
                k = settings.headline_k if metric.of_lists else 0
                inside = (means["split"] == split) & (means["task"] == task) & (means["metric"] == metric.name)
                own = means[inside & (means["k"] == k) & means["user"].isin(users)]
                if not len(own):
                    continue
                # Users whom every model was measured on.
                wide = own.pivot_table(index="user", columns="model", values=["total", "count"], observed=True).dropna()
                names = sorted(own["model"].unique(), key=lambda name: order[name])
                labels = group[np.searchsorted(users, wide.index.to_numpy())]
                total, count = (wide[part][names].to_numpy(np.float64).T for part in ("total", "count"))
                what = {"dataset": dataset.name, "split": split, "task": task, "metric": metric.name, "k": k}
                jobs.append(_Job({**what, "feature": feature}, names, total, count, labels, metric))

    def measure(job: _Job) -> list[dict[str, Any]]:
        seed = derive_seed(study.seed, "group gaps", *(job.what[key] for key in ("split", "feature", "task")))
        return _gaps(job.totals, job.counts, job.labels, job.metric, settings.resamples, np.random.default_rng(seed))

    found = run_jobs(measure, jobs, cross_validation.workers, "group gaps")
    rows = [
        {**job.what, "model": name, **gap}
        for job, gaps in zip(jobs, found, strict=True)
        for name, gap in zip(job.models, gaps, strict=False)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


class _Job(NamedTuple):
    """What the models did on a split for a task, by a feature of the users; arrays as in :func:`_gaps`."""

    what: dict[str, Any]
    models: list[str]
    totals: Values
    counts: Values
    labels: NDArray[np.str_]
    metric: RowMetric | ListMetric


def _gaps(
    total: Values,
    count: Values,
    labels: NDArray[np.str_],
    metric: RowMetric | ListMetric,
    resamples: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return the gap of every model; none if there are not two groups that are large enough.

    Args:
        total: (models, users) totals.
        count: (models, users) counts.
        labels: (users,) the users' groups.
        metric: The record of the metric.
        resamples: Permutations and bootstrap resamples.
        rng: Source of both; all models share the draws.
    """
    names, sizes = np.unique(labels, return_counts=True)
    names = names[sizes >= SMALLEST_GROUP]
    if len(names) < 2:
        return []
    kept = np.isin(labels, names)
    total, count, place = total[:, kept], count[:, kept], np.searchsorted(names, labels[kept])
    members = [np.flatnonzero(place == number) for number in range(len(names))]
    sign = metric.sign

    def values(of: list[NDArray[np.int64]]) -> Values:
        """(models, groups) the metric in groups of users."""
        means = np.stack([total[:, own].sum(1) / np.maximum(count[:, own].sum(1), 1e-12) for own in of], axis=1)
        return np.sqrt(means) if metric.root else means

    found = values(members)
    best, worst = (sign * found).argmax(1), (sign * found).argmin(1)
    models, gap = np.arange(len(found)), found.max(1) - found.min(1)
    ends = np.cumsum([len(own) for own in members])[:-1]
    as_far, differences = np.ones(len(found)), np.empty((resamples, len(found)))
    for number in range(resamples):
        by_chance = values(np.split(rng.permutation(len(place)), ends))
        as_far += by_chance.max(1) - by_chance.min(1) >= gap
        drawn = values([own[rng.integers(0, len(own), len(own))] for own in members])
        differences[number] = sign * (drawn[models, best] - drawn[models, worst])
    low, high = np.quantile(differences, [0.025, 0.975], axis=0)
    return [
        {
            "best": str(names[best[model]]),
            "worst": str(names[worst[model]]),
            "best_value": float(found[model, best[model]]),
            "worst_value": float(found[model, worst[model]]),
            "gap": float(gap[model]),
            "ci_low": float(low[model]),
            "ci_high": float(high[model]),
            "p_value": float(as_far[model] / (resamples + 1)),
            "users": len(place),
        }
        for model in models
    ]
