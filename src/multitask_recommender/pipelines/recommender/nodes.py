"""Steps of the pipeline ``recommender``, the same for every model: tune, fit, predict, recommend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.events import as_pairs, pair_rules
from multitask_recommender.data.inputs import TrainingTables
from multitask_recommender.data.interactions import (
    EVERYTHING,
    NO_FOLD,
    BoolArray,
    FloatArray,
    IntArray,
    Interactions,
    SideInformation,
)
from multitask_recommender.data.queries import Histories, Queries
from multitask_recommender.data.splits import candidate_items
from multitask_recommender.evaluation.cross_validation import (
    CV_COLUMNS,
    CrossValidationSettings,
    Searched,
    cross_validate,
)
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.errors import TrainingError
from multitask_recommender.foundation.jobs import call, run_jobs, single_threaded
from multitask_recommender.foundation.measuring import Cost, measured
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.foundation.spool import Spool
from multitask_recommender.models import ranking
from multitask_recommender.models.asked import queries_state, read_queries
from multitask_recommender.models.fitted import note_fit, restored, settings_for, start_record, with_encoder
from multitask_recommender.models.recommender import FittedPart, Recommender
from multitask_recommender.models.shared_parts import Wanted, fit_slow_parts
from multitask_recommender.models.soundness import check_learnt, check_predictions
from multitask_recommender.models.state import State, array, branch
from multitask_recommender.models.stored import StoredModel
from multitask_recommender.models.training.division import Launcher, trained_by
from multitask_recommender.models.variants import (
    VARIANTS,
    DataSize,
    DerivedParameters,
    Variant,
    VariantParameters,
    with_values,
)
from multitask_recommender.spark.jobs import run_on_executors
from multitask_recommender.spark.settings import SparkSettings

logger = logging.getLogger(__name__)
_KEPT_ROWS = 1_000_000
"""Most rows of the lists of one fit that are kept until they are written."""
_ROWS_TOGETHER = 20_000_000
"""Most rows of all splits that are in memory together for the training; of more, one split after the other."""
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
    names = splits.names if study.runs(variant, dataset) else []
    # Folds hold the rows two more times, and processes copies of them.
    for together in [names] if 4 * tables.count() <= _ROWS_TOGETHER else [[split] for split in names]:
        searches = []
        for split in together:
            side, rule, events = tables.side(split), splits.rule(split), tables.events(split)
            size = DataSize.of(as_pairs(events, pair_rules(tables.dataset.tasks)))
            own = parameters.for_split(rule).for_size(size)
            searches.append(Searched(rule, own, events, partial(with_encoder, side, user_embedding, split)))
        choices = cross_validate(variant, searches, cross_validation, study.seed)
        for split, (_, own, *_), choice in zip(together, searches, choices, strict=True):
            results.append(choice.table.assign(model=variant.name, split=split))
            if variant.per_task:
                chosen[split] = {task: own.with_values(values).model_dump() for task, values in choice.chosen.items()}
            else:
                chosen[split] = own.with_values(choice.chosen).model_dump()
    measured_fits = [table for table in results if len(table)]
    return (pd.concat(measured_fits) if measured_fits else pd.DataFrame(columns=CV_COLUMNS))[CV_COLUMNS], chosen


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
    launcher: Launcher | None = None,
) -> tuple[StoredModel, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Fit the model with its chosen parameters on the training rows of every split, once per seed number.

    The split ``everything``, from which recommendations are made, uses the parameters that :func:`settings_for` finds.
    With a ``launcher`` the fits are made one after the other, and each module that can be divided by several processes.

    Returns:
        The states by split and seed number, with what made them; learning curves (split, seed, epoch, loss, value); the
        use of the experts (``UTILISATION_COLUMNS``); costs by split: parameters, seconds and peak memory per fit.
    """
    if not chosen:
        return StoredModel({}), pd.DataFrame(columns=CURVE_COLUMNS), pd.DataFrame(columns=UTILISATION_COLUMNS), {}
    names = [*chosen, EVERYTHING] if variant.recommends else [*chosen]
    rows: dict[str, Interactions] = {}
    sides: dict[str, SideInformation] = {}
    settings = {split: settings_for(chosen, split) for split in names}
    made_from = _record(tables)

    def read(splits: Sequence[str]) -> None:
        rows.clear()
        for split in splits:
            rows[split] = tables.rows(split)
            sides[split] = with_encoder(tables.side(split), user_embedding, split, NO_FOLD)
            note_fit(made_from, split, settings[split], rows[split], sides[split])

    def make(split: str) -> Recommender:
        return variant.make(variant.read_settings(settings[split]), sides[split].tasks)

    def fit_once(
        split: str,
        seed: int,
        model: Recommender,
        parts: dict[str, FittedPart],
        train: Interactions,
        side: SideInformation,
    ) -> tuple[State, list[dict[str, float]], int, dict[str, float]]:
        model.take_parts(parts)
        with measured() as cost, trained_by(launcher):
            try:
                curve = model.fit(train, side, derive_seed(study.seed, variant.name, split, seed))
                check_learnt(model.state())
            except TrainingError as error:
                raise error.within(f"model '{variant.name}', {split} split, seed number {seed}") from error
        cost.seconds += sum(part.seconds for part in parts.values())
        cost.peak_mb = max(cost.peak_mb, *(part.peak_mb for part in parts.values()), 0.0)
        # Plain values, which a killed run goes on with.
        return model.state(), curve.epochs, model.parameter_count(), vars(cost)

    jobs = [(split, seed) for split in chosen for seed in _repeats(variant, study)]
    jobs += [(split, 0) for split in names if split == EVERYTHING]
    workers = cross_validation.workers if launcher is None else 1
    title = f"{variant.name}: training"
    results: list[tuple[State, list[dict[str, float]], int, dict[str, float]]] = []
    for together in [names] if tables.count() <= _ROWS_TOGETHER else [[split] for split in names]:
        read(together)
        own_jobs = [job for job in jobs if job[0] in together]
        wanted = [
            Wanted(make(split), rows[split], sides[split], derive_seed(study.seed, "slow parts", split, seed))
            for split, seed in own_jobs
        ]
        with trained_by(launcher):
            parts = fit_slow_parts(wanted, workers, title)
        # A process is sent the rows of its split alone.
        calls = [
            partial(fit_once, split, seed, one.model, own, one.train, one.side)
            for (split, seed), one, own in zip(own_jobs, wanted, parts, strict=True)
        ]
        results += run_jobs(call, calls, workers, title)
        del wanted, parts, calls  # They hold the rows, in whose place others are read.
    states: State = {split: {} for split in names}
    curves: list[dict[str, Any]] = []
    costs: dict[str, Any] = {}
    used: list[pd.DataFrame] = []
    for (split, seed), (state, epochs, parameters, cost) in zip(jobs, results, strict=True):
        branch(states, split)[str(seed)] = state
        curves += [
            {"split": split, "seed": seed, "epoch": number + 1, "loss": name, "value": value}
            for number, losses in enumerate(epochs)
            for name, value in losses.items()
        ]
        used.append(expert_utilisation(state).assign(split=split, seed=seed))
        own = costs.setdefault(split, {"parameters": parameters, "seconds": [], "peak_mb": []})
        own["seconds"].append(cost["seconds"])
        own["peak_mb"].append(cost["peak_mb"])
    seconds = np.mean([cost["seconds"] for *_, cost in results])
    logger.debug("%s: fitted %d times, %.2f s each", variant.name, len(jobs), seconds)
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


def _blocks(histories: Histories, users: IntArray, size: int) -> Iterator[Queries]:
    """Ask about some users with their known rows, ``size`` at a time."""
    for begin in range(0, len(users), size):
        yield histories.of(users[begin : begin + size])


def _ranked(
    model: Recommender, side: SideInformation, blocks: Iterator[Queries], catalogue: BoolArray, length: int
) -> Iterator[Ranked]:
    """Score and rank users block by block, by what is known of them; lists leave out what their task declares."""
    for queries in blocks:
        scores = model.score(queries)
        order = model.ranking_scores(scores)
        left_out = {task: queries.left_out(task, side.tasks[task], side.items) for task in order}
        lists = {
            task: ranking.top_items(score, left_out[task], catalogue, length, queries.user)
            for task, score in order.items()
        }
        yield Ranked(queries.user, scores, order, lists, queries)


def _list_rows(task: str, block: Ranked) -> dict[str, Any]:
    """Return the entries of a block's lists as columns."""
    lists = block.lists[task]
    place, rank = np.nonzero(lists != ranking.PADDING)
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

    def halves(self) -> list[Pairs]:
        """Return those of half of the users and those of the others; all as one where there is one user alone."""
        users = np.unique(self.user)
        middle = int(np.searchsorted(self.user, users[len(users) // 2])) if len(users) else 0
        parts = [slice(0, middle), slice(middle, None)] if middle else [slice(None)]
        return [Pairs(self.user[own], self.item[own], None if self.time is None else self.time[own]) for own in parts]


Answers = Iterator[tuple[pa.Table, pa.Table]]


def _answers(
    model: Recommender,
    pairs: Pairs,
    split: str,
    seed: int,
    side: SideInformation,
    histories: Histories,
    catalogue: BoolArray,
    length: int,
    probabilities: list[str],
) -> Answers:
    """Yield the predictions of the pairs and the lists of their users, block by block."""
    user, item, time = pairs
    blocks = _blocks(histories, np.unique(user), ranking.users_at_a_time(side.items, len(side.tasks)))
    for block in _ranked(model, side, blocks, catalogue, length):
        own = slice(*np.searchsorted(user, [block.users[0], block.users[-1] + 1]))
        place, moment = np.searchsorted(block.users, user[own]), None if time is None else time[own]
        predicted = model.predict(block.queries, block.scores, place, item[own], moment)
        check_predictions(predicted, side.tasks, probabilities, f"{split} split, seed number {seed}")
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
    list_lengths: Sequence[int],
    validation_rows: ir.Table,
    test_pairs: ir.Table,
    workers: int | None = 1,
) -> tuple[Spool, Spool, dict[str, Any]]:
    """Score the test pairs and rank the candidates for every test user. Test labels are not an input.

    A user is asked with all rows known before the test: those of the training and of the validation, and a model may
    look at the time of a pair, as somebody who is asked about it does. Fits are asked at
    the same time by several ``workers`` where their lists are short enough to be kept, else one after the other. Lists
    are as long as the longest of ``list_lengths``.

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
        catalogue = candidate_items(splits.candidates_of(split), rows.item, side.items)
        del rows  # The known rows, which hold them as well, take their place.
        pairs = Pairs.of(test_pairs.filter(test_pairs.split == split).order_by("user", "item").to_pyarrow())
        histories = tables.known(split, validation_rows, side)
        length = max(list_lengths)
        probabilities = [name for name, task in side.tasks.items() if variant.predicts(task)]

        answers = partial(
            _answers,
            split=split,
            side=side,
            histories=histories,
            catalogue=catalogue,
            length=length,
            probabilities=probabilities,
        )
        measures: dict[str, list[Cost]] = {seed: [] for seed in models}
        if len(np.unique(pairs.user)) * len(side.tasks) * length <= _KEPT_ROWS:
            # Halves, because three fits keep two processes busy for as long as four would.
            asked = [(seed, half) for seed in models for half in pairs.halves()]
            jobs = [partial(answers, model=models[seed], seed=int(seed), pairs=half) for seed, half in asked]
            results = run_jobs(_kept, jobs, workers, f"{variant.name}: predicting")
            for (seed, _), (parts, cost) in zip(asked, results, strict=True):
                measures[seed].append(cost)
                for prediction, listed in parts:
                    predictions.add(prediction)
                    ranked.add(listed)
        else:
            for seed, model in models.items():
                with single_threaded(), measured() as cost:
                    for prediction, listed in answers(model=model, seed=int(seed), pairs=pairs):
                        predictions.add(prediction)
                        ranked.add(listed)
                measures[seed].append(cost)
        costs[split] = {
            "seconds": [sum(cost.seconds for cost in own) for own in measures.values()],
            "peak_mb": [max(cost.peak_mb for cost in own) for own in measures.values()],
        }
    return predictions, ranked, costs


def recommend(
    variant: Variant,
    chosen: dict[str, Any],
    stored: StoredModel,
    user_embedding: StoredModel | None,
    study: StudySettings,
    tables: TrainingTables,
    spark: SparkSettings | None = None,
) -> Spool:
    """Recommend to every user with the model fitted on all interactions.

    Nothing of it is evaluated: it is what the study hands over for use. With ``spark`` the lists are made on the
    executors, from the stored vectors or weights and the users' histories.

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
    ((seed, model),) = models.items()
    trained, size = (
        candidate_items("trained", rows.item, side.items),
        ranking.users_at_a_time(side.items, len(side.tasks)),
    )
    histories, everyone = Histories(rows, side.user_features), np.arange(side.users)
    user_id = pa.array(tables.identifiers[0], pa.string())
    items = tables.items.order_by("item").select("item_id", "title").to_pyarrow().combine_chunks()
    if spark is None:
        with single_threaded():
            for block in _ranked(model, side, _blocks(histories, everyone, size), trained, study.recommendations):
                result.add(_with_names(_numbered_lists(block), user_id, items))
        return result
    # Jobs are of whole blocks, so that no score depends on their number, and several a slot, so that none waits long.
    step = size * max(side.users // size // (4 * spark.num_processes), 1)
    asked = (queries_state(queries) for queries in _blocks(histories, everyone, step))
    state = branch(branch(stored.state, EVERYTHING), seed)
    shared = (variant.name, settings_for(chosen, EVERYTHING), side.without_users(), state, trained)
    lists = run_on_executors(
        spark, f"the lists of '{variant.name}'", _make_lists, asked, NUMBERED, *shared, study.recommendations
    )
    for table in lists:
        result.add(_with_names(table, user_id, items))
    return result


NUMBERED = pa.schema(
    [("user", pa.int64()), ("task", pa.string()), ("rank", pa.int64()), ("item", pa.int64()), ("score", pa.float32())]
)


def _numbered_lists(block: Ranked) -> pa.Table:
    """Return the lists of a block, user by user, and of a user task by task."""
    parts = []
    for number, task in enumerate(block.order):
        own = _list_rows(task, block)
        table = _table(NUMBERED, {**own, "task": task})
        parts.append(table.append_column("number", pa.repeat(number, len(table))))
    together = pa.concat_tables(parts)
    return together.sort_by([("user", "ascending"), ("number", "ascending"), ("rank", "ascending")])


def _with_names(lists: pa.Table, user_id: pa.Array, items: pa.Table) -> pa.Table:
    """Put identifiers and titles in the place of numbers."""
    of_items = items.take(lists["item"])
    return (
        lists.append_column("user_id", user_id.take(lists["user"].combine_chunks()))
        .append_column("item_id", of_items["item_id"])
        .append_column("title", of_items["title"])
    )


def _make_lists(
    asked: State,
    name: str,
    settings: dict[str, Any],
    side: SideInformation,
    state: State,
    catalogue: BoolArray,
    length: int,
) -> Iterator[pa.Table]:
    """Make the lists of some users; runs on an executor.

    Args:
        asked: The queries, as :func:`queries_state` gives them.
        name: Name of the model.
        settings: What was chosen for it.
        side: The side information without users.
        state: What the model learnt.
        catalogue: (items,) which may be recommended.
        length: Of a list.
    """
    variant = VARIANTS[name]
    model = variant.make(variant.read_settings(settings), side.tasks)
    model.restore(state, side)
    for block in _ranked(
        model, side, read_queries(asked).blocks(ranking.users_at_a_time(side.items, len(side.tasks))), catalogue, length
    ):
        yield _numbered_lists(block)
