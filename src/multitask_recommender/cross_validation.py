"""Chooses parameters by k-fold cross-validation inside the training rows."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from multitask_recommender import metrics
from multitask_recommender.errors import TrainingError
from multitask_recommender.interactions import FloatArray, Interactions, IntArray, SideInformation, pair_matrix
from multitask_recommender.randomness import derive_seed
from multitask_recommender.settings_base import Settings
from multitask_recommender.variants import Variant, VariantParameters

logger = logging.getLogger(__name__)
T, R = TypeVar("T"), TypeVar("R")
_BLOCK = 1024
_K = 10


class CrossValidationSettings(Settings):
    """How parameters are searched; the same budget for every model.

    Attributes:
        candidates: Most parameter combinations tried per model and split; a larger grid is sampled.
        workers: Fits that run at the same time, each on one thread. The number changes no result.
    """

    candidates: int = Field(ge=1)
    workers: int = Field(ge=1)


def single_threaded() -> AbstractContextManager[Any]:
    """Limit numerical libraries to one thread, so that sums are made in the same order on every machine."""
    torch.set_num_threads(1)
    return threadpool_limits(limits=1)


def run_jobs(function: Callable[[T], R], jobs: Sequence[T], workers: int, title: str) -> list[R]:
    """Run ``function`` on every job, some at a time, with a progress bar; results in the order of the jobs."""
    with (
        single_threaded(),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        results: Iterable[R] = pool.map(function, jobs)
        return list(tqdm(results, total=len(jobs), desc=title, leave=False, disable=None))


def candidates(search: dict[str, list[Any]], limit: int, seed: int) -> list[dict[str, Any]]:
    """Return the grid of the search space, or a random sample of it without repetition.

    Args:
        search: Parameter to values.
        limit: Most combinations returned.
        seed: Seed of the sample.

    Returns:
        Combinations in the order of the grid.
    """
    grid = [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]
    if len(grid) <= limit:
        return grid
    chosen = np.random.default_rng(seed).choice(len(grid), limit, replace=False)
    return [grid[place] for place in sorted(chosen)]


def ranking_error(score: Callable[[IntArray], FloatArray], train: Interactions, held_out: Interactions, task: str, shape: tuple[int, int]) -> float:
    """Return 1 - NDCG@10 of the held-out relevant rows under full ranking, over the users who have any.

    Args:
        score: (B,) users to (B, items) scores.
        train: Rows whose pairs are known.
        held_out: Rows to find.
        task: The task whose relevance counts.
        shape: Users, items.
    """
    known = pair_matrix(train.user, train.item, shape)
    catalogue = metrics.rankable_items(train.item, held_out.item, shape[1])
    relevant = held_out.relevant[task]
    user, item = held_out.user[relevant], held_out.item[relevant]
    positives = np.bincount(user, minlength=shape[0])
    values = []
    for block in np.array_split(np.nonzero(positives)[0], math.ceil((positives > 0).sum() / _BLOCK) or 1):
        lists = metrics.top_items(score(block), known[block], catalogue, _K)
        hits = metrics.find_hits(lists, block, user, item, shape[1])
        values.append(metrics.ranking_metrics(hits, positives[block])["ndcg"])
    return float(1.0 - np.concatenate(values).mean())


def validation_errors(
    variant: Variant,
    score: Callable[[IntArray], dict[str, FloatArray]],
    train: Interactions,
    held_out: Interactions,
    side: SideInformation,
) -> dict[str, float]:
    """Measure a fitted model on held-out rows, one error per task, comparable between tasks.

    Regression: RMSE over the standard deviation of the training labels; binary: log loss over the entropy of the
    training base rate; retrieval, and every task of a model whose scores only order items: 1 - NDCG@10.
    """
    errors: dict[str, float] = {}
    predicted: dict[str, FloatArray] = {}
    for block in np.array_split(np.arange(side.users), math.ceil(side.users / _BLOCK)):
        rows = (held_out.user >= block[0]) & (held_out.user <= block[-1])
        scores = score(block)
        for task, values in scores.items():
            predicted.setdefault(task, np.empty(len(held_out), np.float32))
            predicted[task][rows] = values[held_out.user[rows] - block[0], held_out.item[rows]]
    for task, prediction in predicted.items():
        kind = side.tasks[task].kind
        label, asked = held_out.labels[task], ~np.isnan(held_out.labels[task])
        if kind == "regression" and variant.predicts(side.tasks[task]):
            spread = float(np.nanstd(train.labels[task])) or 1.0
            errors[task] = metrics.rmse(label[asked], prediction[asked]) / spread
        elif kind == "binary" and variant.predicts(side.tasks[task]):
            rate = float(np.clip(np.nanmean(train.labels[task]), 1e-6, 1 - 1e-6))
            entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
            errors[task] = metrics.log_loss(label[asked], prediction[asked]) / entropy
        else:
            errors[task] = ranking_error(
                lambda users, task=task: score(users)[task], train, held_out, task, (side.users, side.items)
            )
    return errors


@dataclass(frozen=True)
class Choice:
    """What cross-validation chose for one split.

    Attributes:
        values: Searched parameter to value; for a model per task, task to such a dictionary.
        table: Every fit: columns candidate, parameters (JSON), fold, task, error.
    """

    values: dict[str, Any]
    table: pd.DataFrame


def choose(table: pd.DataFrame, grid: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the candidate with the smallest mean error over tasks and folds; the first one in a tie.

    Raises:
        TrainingError: If every candidate diverged.
    """
    mean = table.groupby("candidate")["error"].mean()
    if not np.isfinite(mean.min()):
        raise TrainingError(
            "Every parameter combination diverged in cross-validation.",
            "add smaller learning rates to the model's search space.",
        )
    return grid[int(mean.idxmin())]


def cross_validate(
    variant: Variant,
    parameters: VariantParameters,
    train: Interactions,
    side_without: Callable[[int], SideInformation],
    folds: int,
    settings: CrossValidationSettings,
    seed: int,
    split: str,
) -> Choice:
    """Fit every candidate on every fold's complement and choose.

    Args:
        variant: The model.
        parameters: Its settings and search space.
        train: Training rows with their folds.
        side_without: Fold to the side information of the rows outside it.
        folds: Number of folds.
        settings: Budget.
        seed: The study's seed; every fit derives its own.
        split: Name of the split, for seeds and messages.

    Returns:
        The choice.
    """
    assert train.fold is not None
    grid = candidates(parameters.search, settings.candidates, derive_seed(seed, variant.name, "search"))
    scored = variant.scored_tasks(side_without(0).tasks)
    if len(grid) == 1:
        # Nothing to choose: no fit is spent.
        values: dict[str, Any] = dict.fromkeys(scored, grid[0]) if variant.per_task else grid[0]
        return Choice(values, pd.DataFrame(columns=["candidate", "parameters", "fold", "task", "error"]))

    def measure(job: tuple[int, int]) -> dict[str, float]:
        number, fold = job
        side = side_without(fold)
        inside, held_out = train.where(train.fold != fold), train.where(train.fold == fold)
        model = variant.make(parameters.with_values(grid[number]), side.tasks)
        try:
            model.fit(inside, side, derive_seed(seed, variant.name, split, "fold", fold))
        except TrainingError:
            return dict.fromkeys(scored, math.inf)
        return validation_errors(variant, model.score, inside, held_out, side)

    jobs = [(number, fold) for number in range(len(grid)) for fold in range(folds)]
    results = run_jobs(measure, jobs, settings.workers, f"{variant.name}, {split}: cross-validation")
    table = pd.DataFrame(
        [
            (number, json.dumps(grid[number]), fold, task, error)
            for (number, fold), errors in zip(jobs, results, strict=True)
            for task, error in errors.items()
        ],
        columns=["candidate", "parameters", "fold", "task", "error"],
    )
    if variant.per_task:
        values = {task: choose(table[table["task"] == task], grid) for task in scored}
    else:
        values = choose(table, grid)
    logger.info("%s, %s: chose %s", variant.name, split, json.dumps(values))
    return Choice(values, table)
