"""Who gains, who pays: multi-task models against their controls, in thirds of the users by activity."""

from __future__ import annotations

from typing import Any

import ibis.expr.types as ir
import numpy as np
import pandas as pd

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.data.events import as_pairs, pair_rules
from multitask_recommender.data.interactions import read_interactions
from multitask_recommender.evaluation.comparisons import Cell, comparable
from multitask_recommender.evaluation.groups import THIRDS, activity_thirds
from multitask_recommender.evaluation.metric_records import main_metric
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.evaluation.statistics import compare_paired
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.models.variants import VARIANTS

COLUMNS = ["dataset", "split", "model", "control", "task", "metric", "k", "group"]
COLUMNS += ["gain", "ci_low", "ci_high", "users"]


def compare_groups(
    dataset: DatasetSettings,
    study: StudySettings,
    settings: EvaluationSettings,
    behaviour_sequences: ir.Table,
    *user_totals: pd.DataFrame,
) -> pd.DataFrame:
    """Compare every core multi-task model with its single-task control in thirds of the users, by the main metrics.

    These are descriptions: no p-value is adjusted for so many groups, and none is given.

    Args:
        dataset: The tasks.
        study: The seed.
        settings: The headline k, and the number of resamples.
        behaviour_sequences: Training rows, which say how active a user is.
        user_totals: Per-user totals of every model.

    Returns:
        Table with ``COLUMNS``. ``gain`` is the relative improvement over the control (positive is better), with its
        95 % interval over users and seeds.
    """
    mains = {name: main_metric(task.kind) for name, task in dataset.tasks.items()}
    tables = {str(table["model"].iloc[0]): table for table in user_totals if len(table)}
    pairs = [
        (name, variant.own_control or "single_task")
        for name, variant in VARIANTS.items()
        if name in tables and variant.core and variant.kind == "multi_task"
    ]
    pairs = [(model, control) for model, control in pairs if control in tables]
    thirds: dict[str, Any] = {}
    lines = []
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
                    if not inside.any():
                        continue
                    rng = np.random.default_rng(derive_seed(study.seed, "groups", split, model, control, task, group))
                    totals = own.totals[:, at[inside]], other.totals[:, other_at[inside]]
                    found = compare_paired(*totals, own.counts[at[inside]], metric.root, settings.resamples, rng)
                    ends = sorted(
                        metric.sign * end / found.base if found.base else np.nan for end in (found.low, found.high)
                    )
                    what = (dataset.name, split, model, control, task, metric.name, k, group)
                    lines.append((*what, metric.sign * found.relative, *ends, int(inside.sum())))
    return pd.DataFrame(lines, columns=COLUMNS)


def _cell(table: pd.DataFrame, split: str, task: str, metric: str, k: int) -> Cell | None:
    rows = table[(table["split"] == split) & (table["task"] == task) & (table["metric"] == metric) & (table["k"] == k)]
    return Cell.of(rows) if len(rows) else None
