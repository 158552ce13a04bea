"""Steps of the pipeline ``recommender``, the same for every model: tune, fit, predict, recommend."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import ibis.expr.types as ir
import numpy as np
import pandas as pd
from scipy import sparse

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.inputs import NO_FOLD, TrainingTables
from multitask_recommender.data.interactions import (
    BoolArray,
    FloatArray,
    IntArray,
    SideInformation,
    pair_matrix,
)
from multitask_recommender.data.splits import EVERYTHING
from multitask_recommender.evaluation import metrics
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings, cross_validate
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.errors import TrainingError
from multitask_recommender.foundation.jobs import run_jobs, single_threaded
from multitask_recommender.foundation.measuring import Cost, measured
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import Arrays, LearningCurve, Recommender
from multitask_recommender.models.variants import DerivedParameters, Variant, VariantParameters, with_values

logger = logging.getLogger(__name__)
_BLOCK = 512
CV_COLUMNS = ["model", "split", "candidate", "parameters", "fold", "task", "error"]
LIST_COLUMNS = ["split", "seed", "task", "user", "rank", "item", "score"]
PREDICTION_COLUMNS = ["split", "seed", "task", "user", "item", "score"]
CURVE_COLUMNS = ["split", "seed", "epoch", "loss", "value"]
UTILISATION_COLUMNS = ["model", "split", "seed", "side", "task", "expert", "weight", "collapsed"]
RECOMMENDATION_COLUMNS = ["user_id", "task", "rank", "item_id", "title", "score"]


def _side_without(side: SideInformation, vectors: list[FloatArray | None], fold: int) -> SideInformation:
    return replace(side, user_vectors=vectors[fold])


def tune(
    variant: Variant,
    parameters: VariantParameters,
    cross_validation: CrossValidationSettings,
    study: StudySettings,
    splits: SplitSettings,
    tables: TrainingTables,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Choose the model's parameters by cross-validation inside the training rows of every split.

    Returns:
        Table of all fits (model, split, candidate, parameters, fold, task, error); settings by split, and for a model
        per task by task.
    """
    results: list[pd.DataFrame] = []
    chosen: dict[str, Any] = {}
    for split in variant.runs_on(splits.names) if study.runs(variant, tables.dataset) else []:
        side = tables.side(split)
        choice = cross_validate(
            variant,
            parameters,
            tables.rows(split),
            partial(_side_without, side, [tables.vectors(split, fold) for fold in range(splits.folds)]),
            splits.folds,
            cross_validation,
            study.seed,
            split,
        )
        results.append(choice.table.assign(model=variant.name, split=split))
        if variant.per_task:
            chosen[split] = {
                task: parameters.with_values(values).model_dump() for task, values in choice.chosen.items()
            }
        else:
            chosen[split] = parameters.with_values(choice.chosen).model_dump()
    return (pd.concat(results) if results else pd.DataFrame(columns=CV_COLUMNS))[CV_COLUMNS], chosen


def derive(
    variant: Variant,
    parameters: DerivedParameters,
    base: dict[str, Any],
    study: StudySettings,
    splits: SplitSettings,
    dataset: DatasetSettings,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Take over what was chosen for another model, with a change: what the change does is all that differs.

    Returns:
        Table of no fits; settings by split.
    """
    chosen = {
        split: with_values(variant.settings.model_validate(base[split]), parameters.changes).model_dump()
        for split in variant.runs_on(splits.names)
        if split in base and study.runs(variant, dataset)
    }
    return pd.DataFrame(columns=CV_COLUMNS), chosen


def _settings(variant: Variant, chosen: dict[str, Any]) -> Settings | dict[str, Settings]:
    if variant.per_task:
        return {task: variant.settings.model_validate(values) for task, values in chosen.items()}
    return variant.settings.model_validate(chosen)


def _repeats(variant: Variant, study: StudySettings) -> range:
    return range(study.repeats if variant.recommender.stochastic else 1)


def fit(
    variant: Variant,
    chosen: dict[str, Any],
    cross_validation: CrossValidationSettings,
    study: StudySettings,
    splits: SplitSettings,
    tables: TrainingTables,
) -> tuple[Arrays, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Fit the model with its chosen parameters on the training rows of every split, once per seed number.

    The split ``everything``, from which recommendations are made, uses the parameters of the first split.

    Returns:
        weights, named ``<split>/<seed number>/<array>``; learning curves (split, seed, epoch, loss, value); the use of
        the experts (``UTILISATION_COLUMNS``); costs by split: parameters, seconds and peak memory per fit.
    """
    if not chosen:
        return {}, pd.DataFrame(columns=CURVE_COLUMNS), pd.DataFrame(columns=UTILISATION_COLUMNS), {}
    names = [*chosen, EVERYTHING] if variant.recommends else [*chosen]
    rows = {split: tables.rows(split) for split in names}
    sides = {split: replace(tables.side(split), user_vectors=tables.vectors(split, NO_FOLD)) for split in names}

    def fit_once(job: tuple[str, int]) -> tuple[Arrays, LearningCurve, int, Cost]:
        split, seed = job
        settings = _settings(variant, chosen[split if split in chosen else splits.names[0]])
        model = variant.make(settings, sides[split].tasks)
        with measured() as cost:
            try:
                curve = model.fit(rows[split], sides[split], derive_seed(study.seed, variant.name, split, seed))
            except TrainingError as error:
                raise error.within(f"model '{variant.name}', {split} split, seed number {seed}") from error
        return model.state(), curve, model.parameter_count(), cost

    jobs = [(split, seed) for split in chosen for seed in _repeats(variant, study)]
    jobs += [(split, 0) for split in names if split == EVERYTHING]
    workers = cross_validation.workers if variant.recommender.stochastic else 1
    results = run_jobs(fit_once, jobs, workers, f"{variant.name}: training")
    weights: Arrays = {}
    curves: list[dict[str, Any]] = []
    costs: dict[str, Any] = {}
    used: list[pd.DataFrame] = []
    for (split, seed), (state, curve, parameters, cost) in zip(jobs, results, strict=True):
        weights |= {f"{split}/{seed}/{name}": array for name, array in state.items()}
        curves += [
            {"split": split, "seed": seed, "epoch": number + 1, "loss": name, "value": value}
            for number, losses in enumerate(curve.epochs)
            for name, value in losses.items()
        ]
        used.append(expert_utilisation(state).assign(split=split, seed=seed))
        own = costs.setdefault(split, {"parameters": parameters, "seconds": [], "peak_mb": []})
        own["seconds"].append(cost.seconds)
        own["peak_mb"].append(cost.peak_mb)
    seconds = np.mean([cost.seconds for *_, cost in results])
    logger.info("%s: fitted %d times, %.2f s each", variant.name, len(jobs), seconds)
    utilisation = pd.concat(used, ignore_index=True).assign(model=variant.name)[UTILISATION_COLUMNS]
    collapsed = utilisation[utilisation["collapsed"].astype(bool)].drop_duplicates(["split", "side", "expert"])
    for row in collapsed.itertuples():
        logger.warning("%s, %s split: the %s expert '%s' has collapsed", variant.name, row.split, row.side, row.expert)
    return weights, pd.DataFrame(curves, columns=CURVE_COLUMNS), utilisation, costs


def expert_utilisation(state: Arrays) -> pd.DataFrame:
    """Return how much each task uses each expert of a fitted model.

    An expert has collapsed if no task that sees it gives it a tenth of an equal share of its gate's weight.

    Args:
        state: Arrays of the model, with ``utilisation/<side>/<task>/<expert>`` for a model with gates.

    Returns:
        Table (side, task, expert, weight, collapsed); weight is the mean gate weight over users or items.
    """
    rows = [(*name.split("/")[1:], float(weight)) for name, weight in state.items() if name.startswith("utilisation/")]
    table = pd.DataFrame(rows, columns=["side", "task", "expert", "weight"])
    equal_shares = table["weight"] * table.groupby(["side", "task"])["expert"].transform("count")
    most = equal_shares.groupby([table["side"], table["expert"]]).transform("max")
    return table.assign(collapsed=most < 0.1)


def _restored(
    variant: Variant,
    chosen: dict[str, Any],
    weights: Arrays,
    split: str,
    seed: int,
    side: SideInformation,
) -> Recommender:
    """Make the model that :func:`fit` fitted on a split with a seed number."""
    prefix = f"{split}/{seed}/"
    state = {name.removeprefix(prefix): a for name, a in weights.items() if name.startswith(prefix)}
    first = next(iter(chosen.values()))
    model = variant.make(_settings(variant, chosen.get(split, first)), side.tasks)
    model.restore(state, side)
    return model


def _known_pairs(tables: list[ir.Table], split: str, shape: tuple[int, int]) -> sparse.csr_matrix:
    known = sparse.csr_matrix(shape, dtype=np.float32)
    for table in tables:
        rows = table.filter(table.split == split).select("user", "item").to_pyarrow()
        known = known + pair_matrix(rows["user"].to_numpy(), rows["item"].to_numpy(), shape)
    return known


def _ranked(
    model: Recommender,
    users: IntArray,
    known: sparse.csr_matrix,
    catalogue: BoolArray,
    length: int,
) -> Iterator[tuple[IntArray, dict[str, FloatArray], dict[str, FloatArray], dict[str, IntArray]]]:
    """Score and rank the users block by block: users, scores, what orders the items, and lists by task."""
    for begin in range(0, len(users), _BLOCK):
        block = users[begin : begin + _BLOCK]
        scores = model.score(block)
        order = model.ranking_scores(scores)
        lists = {task: metrics.top_items(score, known[block], catalogue, length) for task, score in order.items()}
        yield block, scores, order, lists


def _list_rows(task: str, block: IntArray, score: FloatArray, lists: IntArray) -> pd.DataFrame:
    place, rank = np.nonzero(lists != metrics.PADDING)
    item = lists[place, rank]
    return pd.DataFrame(
        {
            "task": task,
            "user": block[place],
            "rank": rank + 1,
            "item": item,
            "score": score[place, item].astype(np.float32),
        }
    )


def predict(
    variant: Variant,
    chosen: dict[str, Any],
    study: StudySettings,
    splits: SplitSettings,
    tables: TrainingTables,
    weights: Arrays,
    evaluation: EvaluationSettings,
    validation_rows: ir.Table,
    test_pairs: ir.Table,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Score the test pairs and rank the whole catalogue for every test user. Test labels are not an input.

    Returns:
        predictions (split, seed, task, user, item, score); ranked_lists (split, seed, task, user, rank, item,
        score) without the items of the user's training and validation rows; costs by split.
    """
    if not chosen:
        return pd.DataFrame(columns=PREDICTION_COLUMNS), pd.DataFrame(columns=LIST_COLUMNS), {}
    predictions, ranked = [], []
    costs: dict[str, Any] = {}
    for split in chosen:
        side = tables.side(split)
        shape = (side.users, side.items)
        pairs = test_pairs.filter(test_pairs.split == split).order_by("user", "item").execute()
        user, item = pairs["user"].to_numpy(np.int64), pairs["item"].to_numpy(np.int64)
        known = _known_pairs([tables.behaviour_sequences, validation_rows], split, shape)
        catalogue = metrics.rankable_items(tables.rows(split).item, item, side.items)
        seconds, peaks = [], []
        for seed in _repeats(variant, study):
            model = _restored(variant, chosen, weights, split, seed, side)
            with single_threaded(), measured() as cost:
                blocks = list(_ranked(model, np.unique(user), known, catalogue, max(evaluation.ks)))
            for block, scores, order, lists in blocks:
                rows = slice(np.searchsorted(user, block[0]), np.searchsorted(user, block[-1], side="right"))
                place = np.searchsorted(block, user[rows])
                for task, score in scores.items():
                    part = {"user": user[rows], "item": item[rows], "score": score[place, item[rows]]}
                    predictions.append(pd.DataFrame({"split": split, "seed": seed, "task": task, **part}))
                    table = _list_rows(task, block, order[task], lists[task])
                    ranked.append(table.assign(split=split, seed=seed))
            seconds.append(cost.seconds)
            peaks.append(cost.peak_mb)
        costs[split] = {"seconds": seconds, "peak_mb": peaks}
    return (
        pd.concat(predictions, ignore_index=True),
        pd.concat(ranked, ignore_index=True)[LIST_COLUMNS],
        costs,
    )


def recommend(
    variant: Variant, chosen: dict[str, Any], weights: Arrays, study: StudySettings, tables: TrainingTables
) -> pd.DataFrame:
    """Recommend to every user with the model fitted on all interactions.

    Nothing of it is evaluated: it is what the study hands over for use.

    Returns:
        recommendations (user_id, task, rank, item_id, title, score) without the user's known items.
    """
    if not chosen:
        return pd.DataFrame(columns=RECOMMENDATION_COLUMNS)
    rows, side = tables.rows(EVERYTHING), tables.side(EVERYTHING)
    model = _restored(variant, chosen, weights, EVERYTHING, 0, side)
    known = pair_matrix(rows.user, rows.item, (side.users, side.items))
    trained = np.bincount(rows.item, minlength=side.items) > 0
    with single_threaded():
        parts = [
            _list_rows(task, block, order[task], lists[task])
            for block, _, order, lists in _ranked(model, np.arange(side.users), known, trained, study.recommendations)
            for task in order
        ]
    users = tables.users.select("user", "user_id").execute()
    items = tables.items.select("item", "item_id", "title").execute()
    table = pd.concat(parts).merge(users, on="user").merge(items, on="item")
    table = table.sort_values(["task", "user", "rank"], ignore_index=True)
    return table[RECOMMENDATION_COLUMNS]
