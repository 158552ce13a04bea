"""Chooses parameters by k-fold cross-validation inside the training rows."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from multitask_recommender.data.digests import digest_arrays
from multitask_recommender.data.folds import Candidates, FoldPairs, SplitRule, fold_masks, fold_pairs
from multitask_recommender.data.interactions import FloatArray, Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.data.splits import candidate_items
from multitask_recommender.data.tasks import Task
from multitask_recommender.evaluation import metrics
from multitask_recommender.foundation.errors import StudyError, TrainingError
from multitask_recommender.foundation.jobs import call, run_jobs
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.foundation.resources import scores_at_once
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models import ranking
from multitask_recommender.models.recommender import ASKED_WITH, FittedPart, Recommender
from multitask_recommender.models.shared_parts import Wanted, fit_slow_parts
from multitask_recommender.models.variants import Variant, VariantParameters

logger = logging.getLogger(__name__)
_BLOCK = 1024
_CELLS = 2**62
"""Scores that are held at a time: bounded by the block alone, unless memory is limited."""
_K = 10
FIT_COLUMNS = ["candidate", "parameters", "fold", "task", "error"]
CV_COLUMNS = ["model", "split", *FIT_COLUMNS]
"""Columns of the tables of all fits of a cross-validation."""


class CrossValidationSettings(Settings):
    """How parameters are searched; the same budget for every model.

    Attributes:
        candidates: Most parameter combinations tried per model and split; a larger grid is sampled.
        workers: Processes that fit at the same time, each on one thread; null: as many as there are cores. The number
            changes no result.
    """

    without_effect = frozenset({"workers"})

    candidates: int = Field(ge=1, le=10_000)
    workers: int | None = Field(default=None, ge=1, le=1024)


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
    known: Interactions | None = None,
    ways: Sequence[Settings] | None = None,
) -> list[dict[str, float]]:
    """Measure a fitted model on held-out rows, one error per task, comparable between tasks.

    Regression: RMSE over the standard deviation of the training labels; binary: log loss over the entropy of the
    training base rate; retrieval, and every task of a model whose scores only order items: 1 - NDCG@10 of the held-out
    relevant pairs under full ranking of the candidates that the split declares, over the users who have any; none where
    nobody has, because lists leave out all that is relevant.

    Args:
        variant: The model.
        model: The same, fitted.
        train: The pairs that it was fitted on.
        held_out: The pairs to measure on.
        side: The side information.
        rule: Which items the split lets recommend.
        known: The pairs that users are asked with; None: ``train``.
        ways: Settings that it is asked with, one after the other; None: its own.

    Returns:
        Task to error, for every way.
    """
    histories = Histories(train if known is None else known, side.user_features)
    catalogue = candidate_items(rule, train.item, side.items)
    every_way = [None] if ways is None else list(ways)
    predicted: list[dict[str, FloatArray]] = [{} for _ in every_way]
    ndcg: list[dict[str, list[metrics.Values]]] = [{} for _ in every_way]
    size = int(np.clip(scores_at_once(_CELLS) // max(side.items * len(side.tasks), 1), 1, _BLOCK))
    # Users without a held-out row tell nothing: of a slice of time, these are most.
    asked = np.unique(held_out.user)
    for block in np.array_split(asked, math.ceil(len(asked) / size)) if len(asked) else []:
        rows = slice(*np.searchsorted(held_out.user, [block[0], block[-1] + 1]))
        place = np.searchsorted(block, held_out.user[rows])
        # All ways ask the same queries in turn, so that a model need not solve again what they share.
        queries = histories.of(block)
        for number, way in enumerate(every_way):
            if way is not None:
                model.ask_with(way)
            scores = model.score(queries)
            order = model.ranking_scores(scores)
            time = None if held_out.time is None else held_out.time[rows]
            pairs = model.predict(queries, scores, place, held_out.item[rows], time)
            for task, values in pairs.items():
                if side.tasks[task].kind != "retrieval" and variant.predicts(side.tasks[task]):
                    predicted[number].setdefault(task, np.empty(len(held_out), np.float32))[rows] = values
                    continue
                relevant = held_out.relevant[task][rows]
                own_place, item = place[relevant], held_out.item[rows][relevant]
                left_out = queries.left_out(task, side.tasks[task], side.items)
                wanted = metrics.outside(left_out, own_place, item)
                own_place, item = own_place[wanted], item[wanted]
                judged, positives = np.unique(own_place, return_counts=True)
                own, users = order[task][judged], block[judged]
                lists = ranking.top_items(own, left_out[judged], catalogue, _K, users, overwrite=True)
                hits = metrics.find_hits(lists, judged, own_place, item, side.items)
                ndcg[number].setdefault(task, []).append(metrics.ndcg(hits, positives))
    return [_errors(*found, train, held_out, side) for found in zip(predicted, ndcg, strict=True)]


def _errors(
    predicted: dict[str, FloatArray],
    ndcg: dict[str, list[metrics.Values]],
    train: Interactions,
    held_out: Interactions,
    side: SideInformation,
) -> dict[str, float]:
    """Return task to error, from predictions of the held-out rows and from NDCG@10 of users."""
    errors: dict[str, float] = {}
    for task in [*predicted, *ndcg]:
        if task in ndcg:
            found = np.concatenate(ndcg[task])
            if len(found):
                errors[task] = float(1.0 - found.mean())
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
        table: Every measurement: columns candidate, parameters (JSON), fold, task, error.
    """

    chosen: dict[str, Any]
    table: pd.DataFrame


def _by_error(table: pd.DataFrame) -> list[int]:
    """Return the candidates measured on the most folds by their mean error over tasks and folds, the smallest first."""
    folds = table.groupby("candidate")["fold"].nunique()
    means = table.groupby("candidate")["error"].mean()[folds == folds.max()]
    return means.sort_values(kind="stable").index.tolist()


def best_candidates(table: pd.DataFrame, number: int) -> list[int]:
    """Return the candidates with the smallest mean error over the tasks and folds they were measured on.

    Only candidates measured on the most folds compete; a tie goes to the one that stands first in the grid.
    """
    return sorted(_by_error(table)[:number])


def read_when_asked(path: str) -> bool:
    """Return whether a parameter (nested ones with dots) changes how a fitted model is asked, and not its training."""
    return not ASKED_WITH.isdisjoint(path.split("."))


@dataclass(frozen=True)
class Grid:
    """The parameter combinations that are tried: fits, each asked in several ways.

    Attributes:
        fits: Values of the parameters of the training.
        ways: Values of the parameters that a fitted model is asked with; every fit is measured with all of them, which
            costs no training.
    """

    fits: list[dict[str, Any]]
    ways: list[dict[str, Any]]

    @classmethod
    def of(cls, search: dict[str, list[Any]], limit: int, seed: int) -> Grid:
        """Make the grid of a search space, with at most ``limit`` fits."""
        asked = {path: values for path, values in search.items() if read_when_asked(path)}
        trained = {path: values for path, values in search.items() if path not in asked}
        ways = [dict(zip(asked, values, strict=True)) for values in itertools.product(*asked.values())]
        return cls(candidates(trained, limit, seed), _different(ways))

    def __len__(self) -> int:
        return len(self.fits) * len(self.ways)

    def __getitem__(self, candidate: int) -> dict[str, Any]:
        fit, way = divmod(candidate, len(self.ways))
        return {**self.fits[fit], **self.ways[way]}

    def trained_alike(self, fits: list[int], solved: frozenset[str]) -> list[list[int]]:
        """Divide some fits into those that differ in settings alone that are solved after a training."""
        found: dict[str, list[int]] = {}
        for number in fits:
            trained = {path: value for path, value in self.fits[number].items() if path.split(".")[0] not in solved}
            found.setdefault(json.dumps(trained), []).append(number)
        return list(found.values())

    def fits_of(self, candidates: list[int]) -> list[int]:
        """Return the fits of some candidates, in their order and each once."""
        return list(dict.fromkeys(candidate // len(self.ways) for candidate in candidates))


def _different(ways: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out ways that differ in nothing: where no row counts more, it does not matter how far that reaches."""
    seen: dict[str, dict[str, Any]] = {}
    for way in ways:
        off = [path.removesuffix(".weight") for path, value in way.items() if path.endswith(".weight") and value == 0]
        told = {path: value for path, value in way.items() if not path.startswith(tuple(f"{name}." for name in off))}
        seen.setdefault(json.dumps([told, sorted(off)]), way)
    return list(seen.values())


def usable_folds(train: Interactions, tasks: dict[str, Task], model: str, split: SplitRule) -> list[int]:
    """Return the folds in which every task can be learnt and measured.

    Random folds are alike, so that one without labels is a fault of the data; slices of time and groups of users may
    lack a rare label, and are passed over.

    Args:
        train: Training rows with their folds.
        tasks: The tasks of the model.
        model: Name of the model, for the message.
        split: The split.

    Raises:
        StudyError: If the rows inside or outside a random fold have no positive label (no label, for a regression
            task), or those of every other one.
    """
    assert train.fold is not None
    usable, problem = [], ""
    for fold in range(split.folds):
        inside, _, held_out = fold_masks(split.folding, train.fold, fold, split.folds)
        lacking = ""
        for name, task in tasks.items():
            label = train.labels[name]
            useful = ~np.isnan(label) if task.kind == "regression" else label > 0
            for rows, place in ((held_out, "in"), (inside, "outside")):
                if not lacking and not (rows & useful).any():
                    what = "label" if task.kind == "regression" else "positive label"
                    lacking = (
                        f"Task '{name}' has no {what} among the training rows {place} fold {fold + 1} of "
                        f"{split.folds}.\n"
                        f"  where: model '{model}', {split.name} split, 'dataset.tasks.{name}'\n"
                        "  what to do: check the task's label expression, use fewer folds ('splits.folds'), or leave "
                        "the task out."
                    )
        if lacking and split.folding == "random":
            raise StudyError(lacking)
        problem = problem or lacking
        if not lacking:
            usable.append(fold)
    if not usable:
        raise StudyError(problem)
    return usable


class Searched(NamedTuple):
    """A split whose training rows choose parameters.

    Attributes:
        split: The split.
        parameters: The model's settings and search space on it.
        train: Its training rows with their folds.
        side_without: Fold to the side information of the rows outside it.
    """

    split: SplitRule
    parameters: VariantParameters
    train: Interactions
    side_without: Callable[[int], SideInformation]


_Measured = list[dict[str, float]] | TrainingError
"""Errors by task for every way to ask every fit of a job, or why it could not be trained."""


class _Job(NamedTuple):
    """A training that is measured on a fold, for all fits that differ in nothing that is trained.

    Attributes:
        fits: Numbers of the fits.
        tasks: Names of the tasks that share a choice.
        wanted: The model, and what it is trained on.
        measure: Trains and measures it, given its slow parts.
    """

    fits: list[int]
    tasks: list[str]
    wanted: Wanted
    measure: Callable[[dict[str, FittedPart]], _Measured]


def cross_validate(
    variant: Variant, searches: Sequence[Searched], settings: CrossValidationSettings, seed: int
) -> list[Choice]:
    """Choose parameters by k-fold cross-validation with successive halving, on some splits at the same time.

    Every fit is made without the first fold (see ``folds.py``) and measured on it, in all ways that it can be asked;
    the better half of the fits goes on to the next fold, and so on, until one is left (Jamieson and Talwalkar, AISTATS
    2016, with folds as the resource) or the folds are used up, when the candidate with the smallest mean error is
    chosen. A model per task keeps, at every fold, the better half of each of its tasks.

    Args:
        variant: The model.
        searches: The splits.
        settings: Budget.
        seed: The study's seed; every fit derives its own.

    Returns:
        The choice for every split.

    Raises:
        StudyError: If a task has no positive label in a fold.
        TrainingError: If every candidate diverges.
    """
    choices: dict[int, Choice] = {}
    running = {place: _halving(variant, search, settings, seed) for place, search in enumerate(searches)}
    results: dict[int, list[_Measured]] = {}
    number = 0
    while True:
        number += 1
        asked: dict[int, list[_Job]] = {}
        for place, search in list(running.items()):
            try:
                asked[place] = search.send(results[place]) if results else next(search)
            except StopIteration as end:
                choices[place] = end.value
                del running[place]
        if not asked:
            return [choices[place] for place in range(len(searches))]
        # Those of all splits together, so that no process waits for the last one of a split.
        jobs = [(place, job) for place, own in asked.items() for job in own]
        title = f"{variant.name}: cross-validation, round {number}"
        parts = fit_slow_parts([job.wanted for _, job in jobs], settings.workers, title)
        calls = [partial(job.measure, own) for (_, job), own in zip(jobs, parts, strict=True)]
        measured = run_jobs(call, calls, settings.workers, title)
        results = {place: [] for place in asked}
        for (place, _), result in zip(jobs, measured, strict=True):
            results[place].append(result)


def _halving(
    variant: Variant, searched: Searched, settings: CrossValidationSettings, seed: int
) -> Generator[list[_Job], list[_Measured], Choice]:
    """Yield the jobs of every round on a split, take their results, and return the choice."""
    split, parameters, train, side_without = searched
    assert train.fold is not None
    folds = usable_folds(train, side_without(0).tasks, variant.name, split)
    grid = Grid.of(parameters.search or {}, settings.candidates, derive_seed(seed, variant.name, "search"))
    tasks = variant.scored_tasks(side_without(0).tasks)
    # Each group of tasks shares one choice of parameters.
    groups = [[task] for task in tasks] if variant.per_task else [tasks]
    twins = _twins(variant, tasks, side_without(0).tasks, train)
    table = pd.DataFrame(columns=FIT_COLUMNS)
    failure: TrainingError | None = None
    alive = {place: list(range(len(grid.fits))) for place in range(len(groups))}
    ways = len(grid.ways)
    for fold in folds:
        # One fit that can be asked in several ways is measured on one fold, as one of two fits would be.
        open_groups = [
            place
            for place, fits in alive.items()
            if place not in twins and (len(fits) > 1 or (ways > 1 and fold == folds[0]))
        ]
        if not open_groups:
            break
        side = side_without(fold)
        parts = fold_pairs(split, train, fold, side.tasks)
        own_seed, part_seed = (derive_seed(seed, who, split.name, "fold", fold) for who in (variant.name, "slow parts"))
        jobs = [
            _job(variant, parameters, grid, fits, groups[place], side, parts, split, (own_seed, part_seed))
            for place in open_groups
            for fits in grid.trained_alike(alive[place], variant.recommender.solved)
        ]
        results = yield jobs
        measured: list[tuple[int, int, dict[str, float]]] = []
        for job, result in zip(jobs, results, strict=True):
            numbers = [fit * ways + way for fit in job.fits for way in range(ways)]
            if isinstance(result, TrainingError):
                where = f"model '{variant.name}', {split.name} split, fold {fold + 1} of {split.folds}"
                failure = result.within(where)
                result = [dict.fromkeys(job.tasks, math.inf)] * len(numbers)
            place = groups.index(job.tasks)
            measured += [(place, candidate, errors) for candidate, errors in zip(numbers, result, strict=True)]
        for twin, place in twins.items():
            task, alike = groups[twin][0], groups[place][0]
            measured += [
                (twin, candidate, {task: errors[alike]} if alike in errors else {})
                for of, candidate, errors in measured
                if of == place
            ]
        # In the order of the candidates, however they were fitted.
        rows = [
            (candidate, json.dumps(grid[candidate]), fold, task, value)
            for _, candidate, errors in sorted(measured, key=lambda one: one[:2])
            for task, value in errors.items()
        ]
        new = pd.DataFrame(rows, columns=FIT_COLUMNS)
        table = new if table.empty else pd.concat([table, new], ignore_index=True)
        for place in open_groups:
            own = table[table["task"].isin(groups[place])]
            if len(alive[place]) > 1 and len(own):
                ranked = _by_error(own)
                kept = math.ceil(len(alive[place]) / 2)
                alive[place] = sorted(grid.fits_of(ranked)[:kept])
    best = [grid[0] for _ in groups]
    for place, group in enumerate(groups if len(table) else []):
        own = table[table["task"].isin(group)]
        if not len(own):
            continue  # Nothing says which is better.
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
        logger.debug("%s, %s: chose %s", variant.name, split.name, json.dumps(chosen))
    return Choice(chosen, table)


def _twins(variant: Variant, names: list[str], tasks: dict[str, Task], train: Interactions) -> dict[int, int]:
    """Return the tasks, by their places, that are the same as an earlier one to a model per task.

    They have the same relevant rows, also once events become pairs, and leave the same out of lists; and the model
    reads and predicts no labels.
    """
    found: dict[int, int] = {}
    if not (variant.per_task and variant.recommender.by_relevance):
        return found
    first: dict[tuple[str, str, str], int] = {}
    for place, name in enumerate(names):
        if not variant.predicts(tasks[name]):
            rows = digest_arrays([train.relevant[name], np.isnan(train.labels[name])])
            earlier = first.setdefault((rows, tasks[name].pair_rule, tasks[name].known), place)
            if earlier != place:
                found[place] = earlier
    return found


def _job(
    variant: Variant,
    parameters: VariantParameters,
    grid: Grid,
    fits: list[int],
    tasks: list[str],
    side: SideInformation,
    parts: FoldPairs,
    split: SplitRule,
    seeds: tuple[int, int],
) -> _Job:
    """Make a job; the seeds are those of the training and of its slow parts."""
    some = side.with_tasks(tasks, variant.equal_inputs) if variant.per_task else side
    each = [parameters.with_values({**grid.fits[fit], **way}) for fit in fits for way in grid.ways]

    def measure(fitted: dict[str, FittedPart]) -> _Measured:
        # Made here, so that no more than one fitted model is in memory.
        model = variant.make(each[0], some.tasks)
        model.take_parts(fitted)
        try:
            model.fit(parts.train, some, seeds[0])
        except TrainingError as failed:
            return failed
        return validation_errors(variant, model, parts.train, parts.held_out, some, split.candidates, parts.known, each)

    return _Job(fits, tasks, Wanted(variant.make(each[0], some.tasks), parts.train, some, seeds[1]), measure)
