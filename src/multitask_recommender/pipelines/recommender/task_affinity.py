"""How tasks get along in joint training: the cosines of their gradients, and what every pair of them gains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import ibis.expr.types as ir
import pandas as pd

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.folds import fold_pairs
from multitask_recommender.data.inputs import TrainingTables
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings, validation_errors
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.jobs import run_jobs
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.models.towers.task_affinity import GradientCosines
from multitask_recommender.models.towers.two_tower import NeuralRecommender
from multitask_recommender.models.variants import AFFINITY_BASE, VARIANTS

COSINE_COLUMNS = ["split", "fold", "epoch", "task", "other", "cosine"]
GAIN_COLUMNS = ["split", "fold", "task", "trained_with", "error", "error_alone", "gain"]
NOT_MEASURED = {
    "task_affinity": pd.DataFrame(columns=COSINE_COLUMNS),
    "task_pair_gains": pd.DataFrame(columns=GAIN_COLUMNS),
}
"""The two tables where the affinity has not been measured."""


def measure_task_affinity(
    chosen: dict[str, Any],
    cross_validation: CrossValidationSettings,
    study: StudySettings,
    splits: SplitSettings,
    dataset: DatasetSettings,
    training_data: Mapping[str, ir.Table],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every task alone, every pair of tasks and all together, and measure each on held-out folds.

    It takes the shared-bottom model with its chosen settings, on the first split, once per fold that is held out. No
    test row is read.

    Returns:
        Cosines of the tasks' gradients on shared parameters, per epoch of training all tasks (``COSINE_COLUMNS``); and
        per task and the tasks it was trained with the error on the fold, the error of the task trained alone, and the
        gain, the relative decrease of the error (``GAIN_COLUMNS``; errors as in ``validation_errors``).
    """
    variant, everything = VARIANTS[AFFINITY_BASE], TrainingTables.of(dataset, training_data)
    names = list(dataset.tasks)
    if not chosen or len(names) < 2:
        return pd.DataFrame(columns=COSINE_COLUMNS), pd.DataFrame(columns=GAIN_COLUMNS)
    split = splits.names[0]
    settings = variant.settings.model_validate(chosen[split])
    rows, side, rule = everything.events(split), everything.side(split), splits.rule(split)

    def measure(job: tuple[int, list[str]]) -> tuple[dict[str, float], list[tuple[int, str, str, float]]]:
        fold, tasks = job
        some, own = rows.with_tasks(tasks), side.with_tasks(tasks)
        parts = fold_pairs(rule, some, fold, own.tasks)
        model = variant.make(settings, own.tasks)
        cosines = GradientCosines()
        if tasks == names:
            assert isinstance(model, NeuralRecommender)
            model.observe = cosines
        model.fit(parts.train, own, derive_seed(study.seed, "task affinity", split, fold))
        (errors,) = validation_errors(variant, model, parts.train, parts.held_out, own, rule.candidates, parts.known)
        return errors, cosines.rows

    groups = [[name] for name in names]
    groups += [list(pair) for pair in combinations(names, 2) if len(names) > 2]
    jobs = [(fold, group) for fold in range(min(study.affinity_folds, splits.folds)) for group in [*groups, names]]
    results = run_jobs(measure, jobs, cross_validation.workers, "task affinity")
    cosines: list[tuple[Any, ...]] = []
    errors: dict[tuple[int, str, str], float] = {}
    for (fold, group), (measured, rows_of_cosines) in zip(jobs, results, strict=True):
        cosines += [(split, fold, *row) for row in rows_of_cosines]
        errors |= {(fold, task, " + ".join(t for t in group if t != task)): e for task, e in measured.items()}
    # Nothing is gained over a task that makes no error alone.
    gains = [
        (split, fold, task, others, error, alone := errors[fold, task, ""], 1.0 - error / alone if alone else math.nan)
        for (fold, task, others), error in errors.items()
        if others
    ]
    return pd.DataFrame(cosines, columns=COSINE_COLUMNS), pd.DataFrame(gains, columns=GAIN_COLUMNS)
