"""Chooses parameters by k-fold cross-validation inside the training rows."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from multitask_recommender.data.description import Candidates
from multitask_recommender.data.interactions import FloatArray, Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.data.splits import candidate_items
from multitask_recommender.data.tasks import Task
from multitask_recommender.evaluation import metrics
from multitask_recommender.foundation.errors import StudyError, TrainingError
from multitask_recommender.foundation.jobs import run_jobs
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import Recommender
from multitask_recommender.models.variants import Variant, VariantParameters

logger = logging.getLogger(__name__)
_BLOCK = 1024
_K = 10


class CrossValidationSettings(Settings):
    """How parameters are searched; the same budget for every model.

    Attributes:
        candidates: Most parameter combinations tried per model and split; a larger grid is sampled.
        workers: Processes that fit at the same time, each on one thread. The number changes no result.
    """

    candidates: int = Field(ge=1)
    workers: int = Field(ge=1)


def candidates(search: dict[str, list[Any]], limit: int, seed: int) -> list[dict[str, Any]]:
    """Return the grid of the search space, or a Latin hypercube sample of it.

    Args:
        search: Parameter to values.
        limit: Most combinations returned.
        seed: Seed of the sample.

    Returns:
        Combinations without repetition. In a sample every value of a parameter stands about equally often, so that a
        small budget still sees all of them.
    """
    grid = [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]
    if len(grid) <= limit:
        return grid
    rng = np.random.default_rng(seed)
    chosen: list[dict[str, Any]] = []
    while len(chosen) < limit:
        places = [rng.permutation(np.resize(rng.permutation(len(values)), limit)) for values in search.values()]
        for point in zip(*places, strict=True):
            one = {name: values[int(at)] for (name, values), at in zip(search.items(), point, strict=True)}
            if one not in chosen and len(chosen) < limit:
                chosen.append(one)
    return chosen


def validation_errors(
    variant: Variant,
    model: Recommender,
    train: Interactions,
    held_out: Interactions,
    side: SideInformation,
    rule: Candidates = "trained",
) -> dict[str, float]:
    """Measure a fitted model on held-out rows, one error per task, comparable between tasks.

    Regression: RMSE over the standard deviation of the training labels; binary: log loss over the entropy of the
    training base rate; retrieval, and every task of a model whose scores only order items: 1 - NDCG@10 of the held-out
    relevant rows under full ranking of the candidates that the split declares, over the users who have any. The rows
    outside the fold are the histories that users are asked with.
    """
    histories = Histories(train, side.user_features)
    catalogue = candidate_items(rule, train.item, side.items)
    predicted: dict[str, FloatArray] = {}
    ndcg: dict[str, list[metrics.Values]] = {}
    for block in np.array_split(np.arange(side.users), math.ceil(side.users / _BLOCK)):
        rows = (held_out.user >= block[0]) & (held_out.user <= block[-1])
        queries = histories.of(block)
        scores = model.score(queries)
        order, known = model.ranking_scores(scores), queries.known(side.items)
        for task, values in scores.items():
            if side.tasks[task].kind != "retrieval" and variant.predicts(side.tasks[task]):
                predicted.setdefault(task, np.empty(len(held_out), np.float32))
                predicted[task][rows] = values[held_out.user[rows] - block[0], held_out.item[rows]]
                continue
            relevant = rows & held_out.relevant[task]
            user, item = held_out.user[relevant], held_out.item[relevant]
            judged, positives = np.unique(user, return_counts=True)
            lists = metrics.top_items(order[task][judged - block[0]], known[judged - block[0]], catalogue, _K, judged)
            hits = metrics.find_hits(lists, judged, user, item, side.items)
            ndcg.setdefault(task, []).append(metrics.ndcg(hits, positives))
    errors: dict[str, float] = {}
    for task in [*predicted, *ndcg]:
        if task in ndcg:
            errors[task] = float(1.0 - np.concatenate(ndcg[task]).mean())
            continue
        label, asked = held_out.labels[task], ~np.isnan(held_out.labels[task])
        label, prediction = label[asked], predicted[task][asked]
        if side.tasks[task].kind == "regression":
            spread = float(np.nanstd(train.labels[task])) or 1.0
            errors[task] = metrics.rmse(label, prediction) / spread
        else:
            rate = float(np.clip(np.nanmean(train.labels[task]), 1e-6, 1 - 1e-6))
            entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
            errors[task] = metrics.log_loss(label, prediction) / entropy
    return {task: errors[task] for task in side.tasks if task in errors}


@dataclass(frozen=True)
class Choice:
    """What cross-validation chose for one split.

    Attributes:
        chosen: Searched parameter to value; for a model per task, task to such a dictionary.
        table: Every fit: columns candidate, parameters (JSON), fold, task, error.
    """

    chosen: dict[str, Any]
    table: pd.DataFrame


def best_candidates(table: pd.DataFrame, number: int) -> list[int]:
    """Return the candidates with the smallest mean error over the tasks and folds they were measured on.

    Only candidates measured on the most folds compete; a tie goes to the one that stands first in the grid.
    """
    folds = table.groupby("candidate")["fold"].nunique()
    means = table.groupby("candidate")["error"].mean()[folds == folds.max()]
    return sorted(means.sort_values(kind="stable").index[:number].tolist())


def check_labels(train: Interactions, tasks: dict[str, Task], folds: int, model: str, split: str) -> None:
    """Refuse a task that can't be learnt, or can't be measured, in a fold.

    Args:
        train: Training rows with their folds.
        tasks: The tasks of the model.
        folds: Number of folds.
        model: Name of the model, for the message.
        split: Name of the split, for the message.

    Raises:
        StudyError: If the rows inside or outside a fold have no positive label (no label, for a regression task).
    """
    assert train.fold is not None
    for name, task in tasks.items():
        label = train.labels[name]
        useful = ~np.isnan(label) if task.kind == "regression" else label > 0
        inside = np.bincount(train.fold[useful], minlength=folds)
        for fold in range(folds):
            for count, place in ((inside[fold], "in"), (inside.sum() - inside[fold], "outside")):
                if count == 0:
                    what = "label" if task.kind == "regression" else "positive label"
                    raise StudyError(
                        f"Task '{name}' has no {what} among the training rows {place} fold {fold + 1} of {folds}.\n"
                        f"  where: model '{model}', {split} split, 'dataset.tasks.{name}'\n"
                        "  what to do: check the task's label expression, use fewer folds ('splits.folds'), or leave "
                        "the task out."
                    )


def cross_validate(
    variant: Variant,
    parameters: VariantParameters,
    train: Interactions,
    side_without: Callable[[int], SideInformation],
    folds: int,
    settings: CrossValidationSettings,
    seed: int,
    split: str,
    rule: Candidates = "trained",
) -> Choice:
    """Choose parameters by k-fold cross-validation with successive halving.

    Every candidate is fitted on the complement of the first fold and measured on it; the better half goes on to the
    next fold, and so on, until one is left (Jamieson and Talwalkar, AISTATS 2016, with folds as the resource) or the
    folds are used up, when the one with the smallest mean error is chosen. A model per task keeps, at every fold, the
    better half of each of its tasks.

    Args:
        variant: The model.
        parameters: Its settings and search space.
        train: Training rows with their folds.
        side_without: Fold to the side information of the rows outside it.
        folds: Number of folds.
        settings: Budget.
        seed: The study's seed; every fit derives its own.
        split: Name of the split, for seeds and messages.
        rule: Which items the split lets recommend.

    Returns:
        The choice.

    Raises:
        StudyError: If a task has no positive label in a fold.
        TrainingError: If every candidate diverges.
    """
    assert train.fold is not None
    check_labels(train, side_without(0).tasks, folds, variant.name, split)
    grid = candidates(parameters.search or {}, settings.candidates, derive_seed(seed, variant.name, "search"))
    tasks = variant.scored_tasks(side_without(0).tasks)
    # Each group of tasks shares one choice of parameters.
    groups = [[task] for task in tasks] if variant.per_task else [tasks]
    columns = ["candidate", "parameters", "fold", "task", "error"]
    table = pd.DataFrame(columns=columns)
    failure: TrainingError | None = None
    alive = {place: list(range(len(grid))) for place in range(len(groups))}
    for fold in range(folds):
        if max(map(len, alive.values())) == 1:
            break
        side = side_without(fold)
        inside, held_out = train.where(train.fold != fold), train.where(train.fold == fold)
        fit_seed = derive_seed(seed, variant.name, split, "fold", fold)

        def measure(
            job: tuple[int, list[str]],
            side: SideInformation = side,
            inside: Interactions = inside,
            held_out: Interactions = held_out,
            fit_seed: int = fit_seed,
        ) -> dict[str, float] | TrainingError:
            number, own = job
            some = side.with_tasks(own) if variant.per_task else side
            model = variant.make(parameters.with_values(grid[number]), some.tasks)
            try:
                model.fit(inside, some, fit_seed)
            except TrainingError as failed:
                return failed
            return validation_errors(variant, model, inside, held_out, some, rule)

        jobs = [
            (number, group) for place, group in enumerate(groups) if len(alive[place]) > 1 for number in alive[place]
        ]
        title = f"{variant.name}, {split}: cross-validation, fold {fold + 1} of {folds}"
        results = run_jobs(measure, jobs, settings.workers, title)
        rows = []
        for (number, group), result in zip(jobs, results, strict=True):
            if isinstance(result, TrainingError):
                failure = result.within(f"model '{variant.name}', {split} split, fold {fold + 1} of {folds}")
                result = dict.fromkeys(group, math.inf)
            rows += [(number, json.dumps(grid[number]), fold, task, value) for task, value in result.items()]
        new = pd.DataFrame(rows, columns=columns)
        table = new if table.empty else pd.concat([table, new], ignore_index=True)
        for place, group in enumerate(groups):
            kept = math.ceil(len(alive[place]) / 2)
            if len(alive[place]) > 1:
                alive[place] = best_candidates(table[table["task"].isin(group)], kept)
    best = [grid[0] for _ in groups]
    for place, group in enumerate(groups if len(table) else []):
        own = table[table["task"].isin(group)]
        number = best_candidates(own, 1)[0]
        if not np.isfinite(own.loc[own["candidate"] == number, "error"].mean()):
            assert failure is not None
            raise TrainingError(
                f"Every parameter combination of model '{variant.name}' diverged in cross-validation, for task "
                f"{', '.join(group)}. The last one: {failure.problem}",
                "add smaller learning rates to the model's search space.",
                failure.where,
            )
        best[place] = grid[number]
    chosen: dict[str, Any] = dict(zip(tasks, best, strict=True)) if variant.per_task else best[0]
    if len(table):
        logger.info("%s, %s: chose %s", variant.name, split, json.dumps(chosen))
    return Choice(chosen, table)
