"""Steps of the pipeline ``recommender``, the same for every model: tune, fit, predict, recommend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.inputs import TrainingTables
from multitask_recommender.data.interactions import (
    EVERYTHING,
    NO_FOLD,
    BoolArray,
    FloatArray,
    IntArray,
    SideInformation,
)
from multitask_recommender.data.queries import Histories, Queries
from multitask_recommender.data.splits import candidate_items
from multitask_recommender.evaluation import metrics
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings, cross_validate
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.errors import TrainingError
from multitask_recommender.foundation.jobs import run_jobs, single_threaded
from multitask_recommender.foundation.measuring import Cost, measured
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.foundation.spool import Spool
from multitask_recommender.models.fitted import note_fit, restored, settings_for, start_record, with_encoder
from multitask_recommender.models.recommender import LearningCurve, Recommender
from multitask_recommender.models.state import State, array, branch
from multitask_recommender.models.stored import StoredModel
from multitask_recommender.models.variants import DataSize, DerivedParameters, Variant, VariantParameters, with_values
from multitask_recommender.pipelines.recommender.task_affinity import COSINE_COLUMNS, GAIN_COLUMNS

logger = logging.getLogger(__name__)
_BLOCK = 512
_CELLS = 2**23
"""Most scores, users x items x tasks, that are held at a time."""
_KEPT_ROWS = 1_000_000
"""Most rows of the lists of one fit that are kept until they are written."""
CV_COLUMNS = ["model", "split", "candidate", "parameters", "fold", "task", "error"]
_WHAT = [("split", pa.string()), ("seed", pa.int64()), ("task", pa.string()), ("user", pa.int64())]
PREDICTIONS = pa.schema([*_WHAT, ("item", pa.int64()), ("score", pa.float32())])
LISTS = pa.schema([*_WHAT, ("rank", pa.int64()), ("item", pa.int64()), ("score", pa.float32())])
CURVE_COLUMNS = ["split", "seed", "epoch", "loss", "value"]
UTILISATION_COLUMNS = ["model", "split", "seed", "side", "task", "expert", "weight", "spread", "collapsed", "moved"]
_EQUAL = 0.1
"""Gates are as equal as at their beginning where no weight differs from an equal share by more, as a part of it."""
RECOMMENDATIONS = pa.schema(
    [
        ("user_id", pa.string()),
        ("task", pa.string()),
        ("rank", pa.int64()),
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("score", pa.float32()),
    ]
)
_COLUMNS = {
    "predictions": PREDICTIONS.names,
    "ranked_lists": LISTS.names,
    "cv_results": CV_COLUMNS,
    "learning_curve": CURVE_COLUMNS,
    "expert_utilisation": UTILISATION_COLUMNS,
    "task_affinity": COSINE_COLUMNS,
    "task_pair_gains": GAIN_COLUMNS,
}
OF_NO_MODEL = frozenset({"task_affinity", "task_pair_gains", "user_embedding.cv_results"})
"""What else the evaluation reads of the training."""


def empty_output(name: str) -> Any:
    """Return what an output of the training holds where the study leaves its model out; None for other names."""
    kind = name.rpartition(".")[2]
    if kind in ("fit_costs", "predict_costs"):
        return {}
    return pd.DataFrame(columns=_COLUMNS[kind]) if kind in _COLUMNS else None


def tune(
    variant: Variant,
    parameters: VariantParameters,
    cross_validation: CrossValidationSettings,
    study: StudySettings,
    splits: SplitSettings,
    dataset: DatasetSettings,
    tables: TrainingTables,
    user_embedding: StoredModel | None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Choose the model's parameters by cross-validation inside the training rows of every split.

    Returns:
        Table of all fits (model, split, candidate, parameters, fold, task, error); settings by split, and for a model
        per task by task.
    """
    results: list[pd.DataFrame] = []
    chosen: dict[str, Any] = {}
    for split in splits.names if study.runs(variant, dataset) else []:
        side, rule = tables.side(split), splits.rule(split)
        own = parameters.for_split(rule).for_size(DataSize.of(tables.rows(split)))
        choice = cross_validate(
            variant,
            own,
            tables.events(split),
            partial(with_encoder, side, user_embedding, split),
            cross_validation,
            study.seed,
            rule,
        )
        results.append(choice.table.assign(model=variant.name, split=split))
        if variant.per_task:
            chosen[split] = {task: own.with_values(values).model_dump() for task, values in choice.chosen.items()}
        else:
            chosen[split] = own.with_values(choice.chosen).model_dump()
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
        for split in splits.names
        if split in base and study.runs(variant, dataset)
    }
    return pd.DataFrame(columns=CV_COLUMNS), chosen


def _record(tables: TrainingTables) -> dict[str, Any]:
    return start_record(tables.dataset.model_dump(mode="json"), *tables.identifiers)


def _repeats(variant: Variant, study: StudySettings) -> range:
    return range(study.repeats if variant.recommender.stochastic else 1)


def fit(
    variant: Variant,
    chosen: dict[str, Any],
    cross_validation: CrossValidationSettings,
    study: StudySettings,
    splits: SplitSettings,
    tables: TrainingTables,
    user_embedding: StoredModel | None,
) -> tuple[StoredModel, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Fit the model with its chosen parameters on the training rows of every split, once per seed number.

    The split ``everything``, from which recommendations are made, uses the parameters that :func:`settings_for` finds.

    Returns:
        The states by split and seed number, with what made them; learning curves (split, seed, epoch, loss, value); the
        use of the experts (``UTILISATION_COLUMNS``); costs by split: parameters, seconds and peak memory per fit.
    """
    if not chosen:
        return StoredModel({}), pd.DataFrame(columns=CURVE_COLUMNS), pd.DataFrame(columns=UTILISATION_COLUMNS), {}
    names = [*chosen, EVERYTHING] if variant.recommends else [*chosen]
    rows = {split: tables.rows(split) for split in names}
    sides = {split: with_encoder(tables.side(split), user_embedding, split, NO_FOLD) for split in names}
    settings = {split: settings_for(chosen, split) for split in names}
    made_from = _record(tables)
    for split in names:
        note_fit(made_from, split, settings[split], rows[split], sides[split])

    def fit_once(job: tuple[str, int]) -> tuple[State, LearningCurve, int, Cost]:
        split, seed = job
        model = variant.make(variant.read_settings(settings[split]), sides[split].tasks)
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
    states: State = {split: {} for split in names}
    curves: list[dict[str, Any]] = []
    costs: dict[str, Any] = {}
    used: list[pd.DataFrame] = []
    for (split, seed), (state, curve, parameters, cost) in zip(jobs, results, strict=True):
        branch(states, split)[str(seed)] = state
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
    for name, own in utilisation.groupby("split"):
        if _gates_are_equal(own):
            logger.warning("%s, %s split: the gates still weigh all experts alike", variant.name, name)
    return StoredModel(states, made_from), pd.DataFrame(curves, columns=CURVE_COLUMNS), utilisation, costs


def expert_utilisation(state: State) -> pd.DataFrame:
    """Return how much each task uses each expert of a fitted model.

    An expert has collapsed if no task that sees it gives it a tenth of an equal share of its gate's weight.

    Args:
        state: State of the model, with ``utilisation`` by side, task and expert for a model with gates.

    Returns:
        Table (side, task, expert, weight, spread, collapsed, moved); weight and spread are mean and standard deviation
        of the gate weight over users or items, moved is how far experts and gates together are from their beginning,
        over their length there.
    """
    used: Any = state.get("utilisation", {})
    rows = [
        (side, task, expert, float(weight[0]), float(weight[1]))
        for side, tasks in used.items()
        for task, experts in tasks.items()
        for expert, weight in experts.items()
    ]
    table = pd.DataFrame(rows, columns=["side", "task", "expert", "weight", "spread"])
    equal_shares = table["weight"] * table.groupby(["side", "task"])["expert"].transform("count")
    most = equal_shares.groupby([table["side"], table["expert"]]).transform("max")
    moved = float(array(state, "experts_moved")[0]) if len(table) else 0.0
    return table.assign(collapsed=most < 0.1, moved=moved)


def _gates_are_equal(utilisation: pd.DataFrame) -> bool:
    """Return whether all gates of some fits weigh their experts alike, for all users and items."""
    experts = utilisation.groupby(["seed", "side", "task"])["expert"].transform("count")
    differences = pd.concat([utilisation["weight"] * experts - 1.0, utilisation["spread"] * experts])
    return bool((differences.abs() < _EQUAL).all())


def _block_size(side: SideInformation) -> int:
    """Return how many users are scored at a time, so that their scores for all items and tasks are of bounded size."""
    return int(np.clip(_CELLS // max(side.items * len(side.tasks), 1), 1, _BLOCK))


class Ranked(NamedTuple):
    """A block of users with scores and lists.

    Attributes:
        users: (B,) their numbers.
        scores: Task to (B, items).
        order: Task to (B, items), what orders the items.
        lists: Task to (B, k) items, best first.
        queries: What the users were asked with.
    """

    users: IntArray
    scores: dict[str, FloatArray]
    order: dict[str, FloatArray]
    lists: dict[str, IntArray]
    queries: Queries


def _ranked(
    model: Recommender, side: SideInformation, histories: Histories, users: IntArray, catalogue: BoolArray, length: int
) -> Iterator[Ranked]:
    """Score and rank users block by block, by what is known of them; lists leave out what their task declares."""
    size = _block_size(side)
    for begin in range(0, len(users), size):
        block = users[begin : begin + size]
        queries = histories.of(block)
        scores = model.score(queries)
        order = model.ranking_scores(scores)
        left_out = {task: queries.left_out(task, side.tasks[task], side.items) for task in order}
        lists = {
            task: metrics.top_items(score, left_out[task], catalogue, length, block) for task, score in order.items()
        }
        yield Ranked(block, scores, order, lists, queries)


def _list_rows(task: str, block: Ranked) -> dict[str, Any]:
    """Return the entries of a block's lists as columns."""
    lists = block.lists[task]
    place, rank = np.nonzero(lists != metrics.PADDING)
    item = lists[place, rank]
    score = block.order[task][place, item].astype(np.float32)
    return {"user": block.users[place], "rank": rank + 1, "item": item, "score": score}


def _table(schema: pa.Schema, columns: dict[str, Any]) -> pa.Table:
    """Make a table of columns, of which single values hold for all rows."""
    length = max(len(values) for values in columns.values() if not isinstance(values, str | int))
    full = {k: pa.repeat(v, length) if isinstance(v, str | int) else pa.array(v) for k, v in columns.items()}
    return pa.table({name: full[name] for name in schema.names}).cast(schema)


class Pairs(NamedTuple):
    """Pairs that are asked about, sorted by user.

    Attributes:
        user: (n,) numbers of the users.
        item: (n,) numbers of the items.
        time: (n,) seconds at which it is asked; None where the data has no times.
    """

    user: IntArray
    item: IntArray
    time: NDArray[np.float64] | None

    @classmethod
    def of(cls, table: pa.Table) -> Pairs:
        """Read columns of a sorted table."""
        time = table["time"].to_numpy().astype(np.float64)
        return cls(table["user"].to_numpy(), table["item"].to_numpy(), None if np.isnan(time).any() else time)


Answers = Iterator[tuple[pa.Table, pa.Table]]


def _answers(
    model: Recommender,
    split: str,
    seed: int,
    side: SideInformation,
    histories: Histories,
    pairs: Pairs,
    catalogue: BoolArray,
    length: int,
) -> Answers:
    """Yield the predictions of the pairs and the lists of their users, block by block."""
    user, item, time = pairs
    for block in _ranked(model, side, histories, np.unique(user), catalogue, length):
        own = slice(*np.searchsorted(user, [block.users[0], block.users[-1] + 1]))
        place, moment = np.searchsorted(block.users, user[own]), None if time is None else time[own]
        predicted = model.predict(block.queries, block.scores, place, item[own], moment)
        for task, score in predicted.items():
            what: dict[str, Any] = {"split": split, "seed": seed, "task": task}
            part = {"user": user[own], "item": item[own], "score": score}
            yield _table(PREDICTIONS, what | part), _table(LISTS, what | _list_rows(task, block))


def _kept(answers: Callable[[], Answers]) -> tuple[list[tuple[pa.Table, pa.Table]], Cost]:
    """Return all answers, and what they cost."""
    with measured() as cost:
        parts = list(answers())
    return parts, cost


def predict(
    variant: Variant,
    chosen: dict[str, Any],
    splits: SplitSettings,
    tables: TrainingTables,
    stored: StoredModel,
    user_embedding: StoredModel | None,
    evaluation: EvaluationSettings,
    validation_rows: ir.Table,
    test_pairs: ir.Table,
    workers: int = 1,
) -> tuple[Spool, Spool, dict[str, Any]]:
    """Score the test pairs and rank the candidates for every test user. Test labels are not an input.

    A user is asked with all rows known before the test: those of the training and of the validation, and a model may
    look at the time of a pair, as somebody who is asked about it does. Fits are asked at
    the same time by several ``workers`` where their lists are short enough to be kept, else one after the other.

    Returns:
        predictions (split, seed, task, user, item, score); ranked_lists (split, seed, task, user, rank, item,
        score) without the items of the user's history; costs by split.
    """
    predictions, ranked = Spool(PREDICTIONS), Spool(LISTS)
    costs: dict[str, Any] = {}
    for split in chosen:
        rows = tables.rows(split)
        models, side = restored(
            variant, chosen, stored, _record(tables), tables.side(split), user_embedding, split, rows
        )
        pairs = Pairs.of(test_pairs.filter(test_pairs.split == split).order_by("user", "item").to_pyarrow())
        histories = tables.known(split, validation_rows, side)
        catalogue = candidate_items(splits.candidates_of(split), rows.item, side.items)
        length = max(evaluation.ks)
        answers = [
            partial(_answers, model, split, int(seed), side, histories, pairs, catalogue, length)
            for seed, model in models.items()
        ]
        measures: list[Cost] = []
        if len(np.unique(pairs.user)) * len(side.tasks) * length <= _KEPT_ROWS:
            for parts, cost in run_jobs(_kept, answers, workers, f"{variant.name}: predicting"):
                measures.append(cost)
                for prediction, listed in parts:
                    predictions.add(prediction)
                    ranked.add(listed)
        else:
            for own in answers:
                with single_threaded(), measured() as cost:
                    for prediction, listed in own():
                        predictions.add(prediction)
                        ranked.add(listed)
                measures.append(cost)
        costs[split] = {"seconds": [c.seconds for c in measures], "peak_mb": [c.peak_mb for c in measures]}
    return predictions, ranked, costs


def recommend(
    variant: Variant,
    chosen: dict[str, Any],
    stored: StoredModel,
    user_embedding: StoredModel | None,
    study: StudySettings,
    tables: TrainingTables,
) -> Spool:
    """Recommend to every user with the model fitted on all interactions.

    Nothing of it is evaluated: it is what the study hands over for use.

    Returns:
        recommendations (user_id, task, rank, item_id, title, score) without the user's known items, user by user.
    """
    result = Spool(RECOMMENDATIONS)
    if not chosen:
        return result
    rows = tables.rows(EVERYTHING)
    models, side = restored(
        variant, chosen, stored, _record(tables), tables.side(EVERYTHING), user_embedding, EVERYTHING, rows
    )
    (model,) = models.values()
    trained = candidate_items("trained", rows.item, side.items)
    histories = Histories(rows, side.user_features)
    user_id = pa.array(tables.identifiers[0], pa.string())
    items = tables.items.order_by("item").select("item_id", "title").to_pyarrow().combine_chunks()
    with single_threaded():
        for block in _ranked(model, side, histories, np.arange(side.users), trained, study.recommendations):
            parts = []
            for number, task in enumerate(block.order):
                own = _list_rows(task, block)
                of_items = items.take(pa.array(own["item"]))
                columns = {
                    "user_id": user_id.take(pa.array(own["user"])),
                    "item_id": of_items["item_id"],
                    "title": of_items["title"],
                    "task": task,
                    "rank": own["rank"],
                    "score": own["score"],
                }
                order = {"user": pa.array(own["user"]), "number": pa.repeat(number, len(own["user"]))}
                table = _table(RECOMMENDATIONS, columns)
                for name, values in order.items():
                    table = table.append_column(name, values)
                parts.append(table)
            together = pa.concat_tables(parts)
            result.add(together.sort_by([("user", "ascending"), ("number", "ascending"), ("rank", "ascending")]))
    return result
