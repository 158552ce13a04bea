"""The metrics with intervals: how well a mean over users and trainings is known."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.evaluation.comparisons import Cell
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.metric_records import METRICS
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.evaluation.statistics import Estimate, estimate_means
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.jobs import run_jobs
from multitask_recommender.foundation.randomness import derive_seed

COLUMNS = ["dataset", "split", "model", "task", "metric", "k", "value", "ci_low", "ci_high", "users", "seeds"]
_KEYS = ["split", "task", "metric", "k"]


def estimate_metrics(
    dataset: DatasetSettings,
    study: StudySettings,
    settings: EvaluationSettings,
    cross_validation: CrossValidationSettings,
    user_totals: pd.DataFrame,
) -> pd.DataFrame:
    """Estimate every metric that divides by user, with a 95 % interval over users and seeds.

    The values are those that the comparisons are made of: AUC is the mean of the users' own AUC, and RMSE the root of
    the mean squared error over all seeds. Metrics of lists are taken at the headline k.

    Args:
        dataset: The tasks.
        study: The seed.
        settings: The headline k, and the number of resamples.
        cross_validation: How many processes to use.
        user_totals: Per-user totals of all models.

    Returns:
        Table with ``COLUMNS``; models in the order in which they are given, metrics in that of their list.
    """
    cells: dict[Any, dict[str, Cell]] = defaultdict(dict)
    used = user_totals[user_totals["k"].isin([0, settings.headline_k])]
    for (split, task, metric, k, model), rows in used.groupby([*_KEYS, "model"], observed=True, sort=False):
        cells[split, task, metric, k][str(model)] = Cell.of(rows)

    def estimate(job: tuple[Any, dict[str, Cell]]) -> list[Estimate]:
        (split, task, metric, _), models = job
        users = np.unique(np.concatenate([cell.users for cell in models.values()]))
        totals, counts = [], []
        for cell in models.values():
            place = np.searchsorted(users, cell.users)
            total, count = np.zeros((len(cell.totals), len(users))), np.zeros(len(users))
            total[:, place], count[place] = cell.totals, cell.counts
            totals.append(total)
            counts.append(count)
        rng = np.random.default_rng(derive_seed(study.seed, "estimates", split, task, metric))
        return estimate_means(totals, counts, METRICS[metric].root, settings.resamples, rng)

    found = run_jobs(estimate, list(cells.items()), cross_validation.workers, "estimating metrics")
    lines = [
        (dataset.name, split, name, task, metric, k, one.value, one.low, one.high, len(cell.users), len(cell.totals))
        for ((split, task, metric, k), models), own in zip(cells.items(), found, strict=True)
        for (name, cell), one in zip(models.items(), own, strict=True)
    ]
    table = pd.DataFrame(lines, columns=COLUMNS)
    order = {name: place for place, name in enumerate(METRICS)}
    models_in_order = {str(name): place for place, name in enumerate(user_totals["model"].drop_duplicates())}
    tasks = {name: place for place, name in enumerate(dataset.tasks)}
    splits = {name: place for place, name in enumerate(table["split"].drop_duplicates())}
    places = {"split": splits, "model": models_in_order, "task": tasks, "metric": order}
    return table.sort_values(
        ["split", "model", "task", "metric"], key=lambda column: column.map(places[str(column.name)]), ignore_index=True
    )
