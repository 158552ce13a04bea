"""Steps of the pipeline ``evaluation``, the only one that reads test labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.events import as_pairs, pair_rules
from multitask_recommender.data.features import MISSING, RARE
from multitask_recommender.data.interactions import (
    BoolArray,
    IntArray,
    Interactions,
    pair_matrix,
    read_features,
    read_interactions,
)
from multitask_recommender.data.splits import candidate_items
from multitask_recommender.data.tasks import Task
from multitask_recommender.evaluation import metrics
from multitask_recommender.evaluation.cross_validation import CV_COLUMNS, CrossValidationSettings
from multitask_recommender.evaluation.groups import (
    THIRDS,
    Group,
    activity_thirds,
    entities_with_features,
    find_temperatures,
    groups_of_pairs,
    overall,
    read_groups,
)
from multitask_recommender.evaluation.metric_records import (
    LIST_METRICS,
    METRICS,
    ROW_METRICS,
    JudgedLists,
    Metric,
    RowMetric,
    ScoredRows,
    Surroundings,
    Totals,
)
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.foundation.jobs import run_jobs
from multitask_recommender.foundation.membership import among
from multitask_recommender.foundation.spool import Spool
from multitask_recommender.models import ranking
from multitask_recommender.models.soundness import check_predictions
from multitask_recommender.models.variants import VARIANTS, Variant
from multitask_recommender.pipelines.bundles import ModelOutputs, in_order

_TEST_ROWS_TOGETHER = 500_000
"""Most test rows of all splits that are kept in memory for all models; of more, those of one split."""
_MODELS_TOGETHER = 8
"""Models whose measures are kept until they are written."""
METRIC_COLUMNS = [
    "dataset",
    "split",
    "model",
    "kind",
    "task",
    "metric",
    "k",
    "group",
    "seed",
    "value",
    "users",
    "rows",
]
USER_TOTALS = pa.schema(
    [
        *((name, pa.string()) for name in ("split", "model", "task", "metric")),
        *((name, pa.int32()) for name in ("k", "seed", "user")),
        *((name, pa.float64()) for name in ("total", "count")),
    ]
)
USER_TOTAL_COLUMNS = USER_TOTALS.names
GROUP_COLUMNS = ["split", "model", "task", "metric", "k", "seed", "side", "group", "value", "count"]


def group_entities(
    dataset: DatasetSettings,
    splits: SplitSettings,
    users: ir.Table,
    items: ir.Table,
    behaviour_sequences: ir.Table,
    validation_rows: ir.Table,
    user_features: ir.Table,
    user_vocabulary: ir.Table,
    item_features: ir.Table,
    item_vocabulary: ir.Table,
) -> pd.DataFrame:
    """Divide users and items into hot, warm and cold ones, split by split (see ``groups.find_temperatures``).

    Hot are those with training rows; warm are other users with validation rows or features, and other items with
    features; cold is the rest.
    """
    described_users = entities_with_features(user_features, user_vocabulary, "user", dataset.users.activity)
    described_items = entities_with_features(item_features, item_vocabulary, "item", None)
    sides: list[tuple[str, ir.Table, list[ir.Table]]] = [
        ("user", users, [validation_rows, described_users]),
        ("item", items, [described_items]),
    ]
    tables = [
        find_temperatures(splits.names, key, int(entities.count().execute()), behaviour_sequences, known)
        for key, entities, known in sides
    ]
    return pd.concat(tables, ignore_index=True)


def _list_table(listed: pd.DataFrame, users: int, k: int) -> IntArray:
    """Lists as an array (users, k), ``ranking.PADDING`` in empty places."""
    table = np.full((users, k), ranking.PADDING, dtype=np.int64)
    within = listed["rank"] <= k
    table[listed["user"][within], listed["rank"][within] - 1] = listed["item"][within]
    return table


def _judge(
    table: IntArray,
    pairs: tuple[IntArray, IntArray],
    group: Group,
    catalogue: BoolArray,
    around: Surroundings,
) -> JudgedLists:
    """Judge the lists of the users who have relevant items in a group, by those.

    Entries outside the group keep their place in the list, empty; the catalogue is the group's part of it.

    Args:
        table: (users, k) lists of all users.
        pairs: (pairs,) users and (pairs,) items of the relevant pairs.
        group: The group.
        catalogue: (items,), true for the items that may be recommended.
        around: What is known of items and users.
    """
    inside = group.contains(*pairs)
    user, item = (part[inside] for part in pairs)
    judged, positives = np.unique(user, return_counts=True)
    lists = table[judged]
    lists = np.where(group.items[lists] & (lists != ranking.PADDING), lists, ranking.PADDING)
    hits = metrics.find_hits(lists, judged, user, item, len(catalogue))
    return JudgedLists(judged, lists, hits, positives, catalogue & group.items, around)


def surroundings(
    dataset: DatasetSettings,
    split: str,
    train: Interactions,
    known: Sequence[Interactions],
    shape: tuple[int, int],
    item_features: ir.Table,
    item_vocabulary: ir.Table,
) -> Surroundings:
    """Put together what is known before the test of a split's users and items.

    Two items are not alike because both lack a feature or have a rare value of it: those columns are left out.

    Args:
        dataset: Which feature's values are the categories.
        split: Name of the split.
        train: Its training pairs.
        known: All pairs that are known before the test.
        shape: Numbers of users and items.
        item_features: Design matrix of the items in long form.
        item_vocabulary: What its columns stand for.
    """
    features = read_features(item_features, "item", shape[1], split)
    columns = item_vocabulary.filter((item_vocabulary.split == split) & ~item_vocabulary.value.isin([MISSING, RARE]))
    columns = columns.select("column", "feature").order_by("column").execute()
    telling = features[:, columns["column"]]
    declared = features[:, columns.loc[columns["feature"] == dataset.items.categories, "column"]]
    categories = _over_row_sums(declared)
    user, item = (np.concatenate([getattr(part, side) for part in known]) for side in ("user", "item"))
    return Surroundings(
        item_users=np.bincount(train.item, minlength=shape[1]),
        training_users=len(np.unique(train.user)),
        features=_over_row_sums(telling.power(2)).sqrt() if telling.nnz else None,
        categories=categories if categories.nnz else None,
        tastes=_over_row_sums(pair_matrix(user, item, shape) @ categories).toarray() if categories.nnz else None,
    )


def _over_row_sums(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Divide every row by its sum, where that is above 0."""
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    return (sparse.diags(1.0 / np.where(sums > 0, sums, 1.0)) @ matrix).tocsr()


def _recall_by_popularity(own: JudgedLists, item: IntArray, ks: list[int]) -> pd.DataFrame:
    """Share of the relevant pairs that the lists find, by popularity of the item.

    Args:
        own: Lists of all users.
        item: (pairs,) items of the relevant pairs.
        ks: Lengths of the lists.

    Returns:
        Table (metric, k, group, value, count): the training catalogue in thirds of equal numbers of training rows.
    """
    popularity = own.around.item_users
    order = np.argsort(popularity, kind="stable")
    third = np.empty(len(popularity), dtype=np.int64)
    third[order] = np.minimum(3 * np.cumsum(popularity[order]) // max(popularity.sum() + 1, 1), 2)
    wanted = np.bincount(third[item], minlength=3)
    rows = []
    for k in ks:
        shown = own.first(k)
        found = np.bincount(third[shown.lists[shown.hits]], minlength=3)
        rows += [
            ("recall", k, group, hit / number, number)
            for group, hit, number in zip(THIRDS, found, wanted, strict=True)
            if number
        ]
    return pd.DataFrame(rows, columns=["metric", "k", "group", "value", "count"])


def _user_thirds(found: list[tuple[dict[str, Any], Totals]], thirds: NDArray[np.str_]) -> pd.DataFrame:
    """Every per-user metric within thirds of the users by number of training interactions.

    Args:
        found: What was measured, with the totals of the users.
        thirds: (users,) the third of every user.
    """
    rows = []
    for what, (users, total, count) in found:
        of_user = thirds[users]
        for group in THIRDS:
            inside = of_user == group
            if inside.any():
                number = count[inside].sum()
                value = METRICS[what["metric"]].finish(total[inside].sum() / number) if number else float("nan")
                rows.append({**what, "group": group, "value": value, "count": int(number), "side": "user"})
    return pd.DataFrame(rows).sort_values(["task", "metric", "k", "seed", "group"])


def _stack(tables: list[pd.DataFrame], columns: list[str], model: str) -> pd.DataFrame:
    tables = [table for table in tables if len(table)]
    if not tables:
        return pd.DataFrame(columns=columns)
    table = pd.concat(tables, ignore_index=True)
    return table.assign(model=_repeated(model, len(table), [model]) if "user" in columns else model)[columns]


def _repeated(name: str, count: int, names: Iterable[str]) -> pd.Categorical[Any]:
    """Return a name so many times, as a category among some names."""
    known = sorted(names)
    return pd.Categorical.from_codes(np.full(count, known.index(name), np.int8), dtype=pd.CategoricalDtype(known))


def _with_names(totals: pd.DataFrame) -> pd.DataFrame:
    """Make categories of the columns of names, of the names that occur."""
    columns = {name: totals[name].astype("category").cat.remove_unused_categories() for name in USER_TOTAL_COLUMNS[:4]}
    return totals.assign(**columns)


def _measurable(
    row_metrics: list[RowMetric], inside: ScoredRows, judged: JudgedLists, ks: list[int]
) -> list[tuple[Metric[Any], int, Any]]:
    """Put together metrics, lengths of lists (0 without) and what they are metrics of, where there is anything."""
    of_rows = [(metric, 0, inside) for metric in row_metrics if inside.rows]
    of_lists = [one for one in LIST_METRICS if one.needs is None or getattr(judged.around, one.needs) is not None]
    return [*of_rows, *((metric, k, judged.first(k)) for k in ks for metric in of_lists if judged.rows)]


def _may_be_listed(test: Interactions, known: list[Interactions], name: str, task: Task, items: int) -> BoolArray:
    """Return (rows,) whether the item of a test pair is not left out of the lists of a task because it is known."""
    left_out = [part if task.known == "any_task" else part.where(part.relevant[name]) for part in known]
    keys = [part.user * items + part.item for part in left_out]
    return ~among(test.user * items + test.item, np.concatenate(keys))


def _stack_totals(found: list[tuple[dict[str, Any], Totals]], tasks: Iterable[str]) -> pd.DataFrame:
    """Make one table of the per-user totals of several metrics, each with what its rows have in common."""
    sizes = [len(totals[0]) for _, totals in found]
    # Names repeat in every row; as categories they take a byte instead of a pointer.
    kinds = {"task": pd.CategoricalDtype(sorted(tasks)), "metric": pd.CategoricalDtype(sorted(METRICS))}
    common = pd.DataFrame([what for what, _ in found]).astype(kinds)
    table = common.loc[common.index.repeat(sizes)].reset_index(drop=True)
    parts = zip(*(totals for _, totals in found), strict=True)
    return table.assign(**dict(zip(("user", "total", "count"), map(np.concatenate, parts), strict=True)))


def _places(table: pd.DataFrame, keys: list[str]) -> dict[Any, IntArray]:
    """Return where the rows of every combination of keys stand."""
    return {key: np.asarray(places) for key, places in table.groupby(keys).indices.items()}


class HeldOut(NamedTuple):
    """What every model is measured by on one split.

    Attributes:
        rows: Test rows, by user and item.
        groups: Groups of the users, of the items and of the pairs.
        thirds: (users,) the third of every user by training pairs, as ``activity_thirds`` names it.
        catalogue: (items,), true for the items that may be recommended.
        around: What is known of users and items before the test.
        relevant: Task to (rows,), whether a pair is relevant and may be listed.
    """

    rows: Interactions
    groups: list[Group]
    thirds: NDArray[np.str_]
    catalogue: BoolArray
    around: Surroundings
    relevant: dict[str, BoolArray]


def read_held_out(
    dataset: DatasetSettings,
    splits: SplitSettings,
    behaviour_sequences: ir.Table,
    validation_rows: ir.Table,
    entity_groups: pd.DataFrame,
    item_features: ir.Table,
    item_vocabulary: ir.Table,
    test_labels: ir.Table,
    split: str,
) -> HeldOut:
    """Read what every model is measured by on one split."""
    rules = pair_rules(dataset.tasks)
    test = as_pairs(read_interactions(test_labels, split, dataset.tasks), rules, "item")
    train = as_pairs(read_interactions(behaviour_sequences, split, dataset.tasks), rules)
    known = [train, as_pairs(read_interactions(validation_rows, split, dataset.tasks), rules)]
    groups = read_groups(entity_groups, split)
    shape = len(groups[0].users), len(groups[0].items)
    groups += groups_of_pairs(groups[0], test, [(part.user, part.item) for part in known])
    return HeldOut(
        test,
        groups,
        activity_thirds(train.user, np.arange(shape[0])),
        candidate_items(splits.candidates_of(split), train.item, shape[1]),
        surroundings(dataset, split, train, known, shape, item_features, item_vocabulary),
        {
            name: test.relevant[name] & _may_be_listed(test, known, name, task, shape[1])
            for name, task in dataset.tasks.items()
        },
    )


def measure(
    variant: Variant,
    dataset: DatasetSettings,
    settings: EvaluationSettings,
    held_out: Callable[[str], HeldOut],
    predictions: pd.DataFrame,
    ranked_lists: pd.DataFrame,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Measure one model on the test rows of every split.

    Returns:
        metrics (``METRIC_COLUMNS``; k is 0 for metrics that are not of lists; ``users`` and ``rows`` stand behind the
        value: rows with a label, or relevant pairs for metrics of lists); per-user totals and counts, from which
        comparisons are made (``USER_TOTAL_COLUMNS``); metrics within thirds of the users by activity and recall within
        thirds of the items by popularity (``GROUP_COLUMNS``).
    """
    rows: list[tuple[Any, ...]] = []
    totals: list[pd.DataFrame] = []
    thirds: list[pd.DataFrame] = []
    keys = ["split", "task", "seed"]
    # The places of the rows alone: the rows of one fit and task are taken when they are measured.
    scored, listed = _places(predictions, keys), _places(ranked_lists, keys)
    none = np.zeros(0, np.int64)
    measured_splits = predictions["split"].drop_duplicates().tolist()
    for split in measured_splits:
        test, groups, users_in_thirds, catalogue, around, all_relevant = held_out(split)
        by_task: dict[str, pd.DataFrame] = {}
        for name, task in dataset.tasks.items():
            own: list[tuple[dict[str, Any], Totals]] = []
            asked = ~np.isnan(test.labels[name])
            relevant = all_relevant[name]
            pairs = test.user[relevant], test.item[relevant]
            row_metrics = [
                metric
                for metric in ROW_METRICS
                if task.kind in metric.kinds and (variant.predicts(task) or not metric.needs_predictions)
            ]
            for seed in predictions["seed"].drop_duplicates():
                places = scored.get((split, name, seed))
                if places is None:
                    continue
                part = predictions[["user", "item", "score"]].take(places)
                if not (np.array_equal(part["user"], test.user) and np.array_equal(part["item"], test.item)):
                    raise AssertionError(f"the predictions of {variant.name} are not in the order of the test rows")
                where = f"'score' of {variant.name}.predictions, {split} split, seed number {seed}"
                probable = [name] if variant.predicts(task) else []
                check_predictions({name: part["score"].to_numpy()}, dataset.tasks, probable, where)
                labelled = ScoredRows(test.user, test.item, test.labels[name], part["score"].to_numpy()).where(asked)
                shown = ranked_lists[["user", "rank", "item"]].take(listed.get((split, name, seed), none))
                table = _list_table(shown, len(groups[0].users), max(settings.ks))
                whole = _judge(table, pairs, groups[0], catalogue, around)
                everyone = []
                for metric, k, of in _measurable(row_metrics, labelled, whole, settings.ks):
                    value, found = metric.value_and_totals(of)
                    everyone.append((metric.name, k, value, of.users, of.rows))
                    if found is not None and len(found[0]):
                        own.append(({"task": name, "seed": seed, "metric": metric.name, "k": k}, found))
                by_item = _recall_by_popularity(whole, pairs[1], settings.ks)
                thirds.append(by_item.assign(split=split, task=name, seed=seed, side="item"))
                for group in groups:
                    inside = labelled.where(group.contains(labelled.user, labelled.item))
                    judged = _judge(table, pairs, group, catalogue, around)
                    # A group that all rows and lists belong to is not measured again.
                    alike = inside.rows == labelled.rows and judged.is_like(whole)
                    values = (
                        everyone
                        if alike
                        else [
                            (metric.name, k, metric.value(of), of.users, of.rows)
                            for metric, k, of in _measurable(row_metrics, inside, judged, settings.ks)
                        ]
                    )
                    for metric_name, k, value, users, count in values:
                        key = (dataset.name, split, variant.name, variant.kind, name, metric_name, k, group.name, seed)
                        rows.append((*key, value, users, count))
            if own:
                together = _stack_totals(own, dataset.tasks)
                totals.append(together.assign(split=_repeated(split, len(together), measured_splits)))
                by_task[name] = _user_thirds(own, users_in_thirds)
        thirds += [by_task[name].assign(split=split) for name in sorted(by_task)]
    return (
        pd.DataFrame(rows, columns=METRIC_COLUMNS),
        _with_names(_stack(totals, USER_TOTAL_COLUMNS, variant.name)),
        _stack(thirds, GROUP_COLUMNS, variant.name),
    )


def measure_models(
    dataset: DatasetSettings,
    settings: EvaluationSettings,
    splits: SplitSettings,
    training_data: Mapping[str, ir.Table],
    validation_rows: ir.Table,
    entity_groups: pd.DataFrame,
    test_labels: ir.Table,
    model_outputs: ModelOutputs,
    cross_validation: CrossValidationSettings,
) -> tuple[pd.DataFrame, Spool, pd.DataFrame]:
    """Measure every model; as many at the same time as fits are, unless there are many test rows.

    Returns:
        The three tables of :func:`measure` with the rows of all models, in the order of the list of variants.
    """
    found: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    totals = Spool(USER_TOTALS)
    sequences, features, vocabulary = (
        training_data[name] for name in ("behaviour_sequences", "item_features", "item_vocabulary")
    )
    known = (sequences, validation_rows, entity_groups, features, vocabulary, test_labels)
    read = partial(read_held_out, dataset, splits, *known)
    held_out: Callable[[str], HeldOut]
    if int(test_labels.count().execute()) <= _TEST_ROWS_TOGETHER:
        # Read once for all models.
        held_out = {split: read(split) for split in splits.names}.__getitem__
        workers, together = cross_validation.workers, _MODELS_TOGETHER
    else:
        held_out, workers, together = lru_cache(1)(read), 1, 1
    job = partial(_measure_outputs, dataset, settings, held_out)
    names = in_order(model_outputs)
    for begin in range(0, len(names), together):
        outputs = [(name, model_outputs[name]) for name in names[begin : begin + together]]
        for values, own, thirds in run_jobs(job, outputs, workers, "measuring models"):
            found.append((values, thirds))
            totals.add(pa.Table.from_pandas(own, preserve_index=False))
    measured, by_groups = (collect(tables) for tables in zip(*found, strict=True))
    return measured, totals, by_groups


def _measure_outputs(
    dataset: DatasetSettings,
    settings: EvaluationSettings,
    held_out: Callable[[str], HeldOut],
    job: tuple[str, Mapping[str, Any]],
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    name, outputs = job
    return measure(VARIANTS[name], dataset, settings, held_out, outputs["predictions"], outputs["ranked_lists"])


def collect(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put the models' tables into one; models that the study left out have empty ones."""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else tables[0]


def summarise_choices(cv_results: pd.DataFrame) -> pd.DataFrame:
    """Return what cross-validation chose: table (split, model, task, parameters, error, folds, candidates).

    A model that is independent per task chose per task; another chose once, for the mean over its tasks. The error is
    the mean over the folds of the candidate that went through all of them with the least.
    """
    apart = cv_results["model"].map(lambda name: name in VARIANTS and VARIANTS[name].per_task).astype(bool)
    shown = cv_results.assign(task=cv_results["task"].where(apart, "all tasks"))
    keys = ["split", "model", "task"]
    means = shown.groupby([*keys, "parameters"], sort=False).agg(error=("error", "mean"), folds=("fold", "nunique"))
    means = means.reset_index()
    tried = means.groupby(keys, sort=False)["parameters"].transform("count")
    means = means.assign(candidates=tried)
    whole = means[means["folds"] == means.groupby(keys)["folds"].transform("max")]
    return whole.loc[whole.groupby(keys, sort=False)["error"].idxmin()].reset_index(drop=True)


def collect_cv_results(user_embedding: Mapping[str, Any], model_outputs: ModelOutputs) -> pd.DataFrame:
    """Put every cross-validation fit into one table.

    Args:
        user_embedding: Outputs of the user embedding model; empty if it has not been trained.
        model_outputs: Outputs of the models.
    """
    everything = [user_embedding] if user_embedding else []
    everything += [model_outputs[name] for name in in_order(model_outputs)]
    return collect([outputs["cv_results"] for outputs in everything])[CV_COLUMNS]


def collect_learning_curves(model_outputs: ModelOutputs) -> pd.DataFrame:
    """Put the learning curves of the core models into one table (model, split, seed, epoch, loss, value)."""
    trained = [
        name for name in in_order(model_outputs) if VARIANTS[name].core and VARIANTS[name].recommender.stochastic
    ]
    curves = [model_outputs[name]["learning_curve"].assign(model=name) for name in trained]
    return collect(curves) if curves else pd.DataFrame(columns=["model", "split", "seed", "epoch", "loss", "value"])


def collect_expert_utilisation(model_outputs: ModelOutputs) -> pd.DataFrame:
    """Put the use of the experts of every model into one table."""
    return collect([model_outputs[name]["expert_utilisation"] for name in in_order(model_outputs)])


def collect_costs(model_outputs: ModelOutputs) -> pd.DataFrame:
    """Put the models' costs into one table: means over splits and seed numbers, the peak over all."""
    rows = []
    for name in in_order(model_outputs):
        fit_cost, predict_cost = (model_outputs[name][part] for part in ("fit_costs", "predict_costs"))
        if fit_cost:
            rows.append(
                {
                    "model": name,
                    "parameters": max(own["parameters"] for own in fit_cost.values()),
                    "fit_seconds": np.mean([s for own in fit_cost.values() for s in own["seconds"]]),
                    "predict_seconds": np.mean([s for own in predict_cost.values() for s in own["seconds"]]),
                    "peak_mb": max(m for own in fit_cost.values() for m in own["peak_mb"]),
                }
            )
    return pd.DataFrame(rows).round({"fit_seconds": 3, "predict_seconds": 3, "peak_mb": 1})


def make_headline(table: pd.DataFrame, dataset: DatasetSettings, settings: EvaluationSettings) -> pd.DataFrame:
    """Make the headline table: models x accuracy, recall, coverage and novelty per task, means over seeds.

    Returns:
        Columns split, model, then ``<task> <metric>`` (ranking metrics at ``headline_k``).
    """
    shown = overall(table)
    shown = shown[shown["k"].isin([0, settings.headline_k])]
    means = shown.groupby(["split", "model", "task", "metric"])["value"].mean()
    rows = []
    for split in table["split"].drop_duplicates():
        for model in table["model"].drop_duplicates():
            row: dict[str, Any] = {"split": split, "model": model}
            for name, task in dataset.tasks.items():
                for metric in METRICS.values():
                    if task.kind in metric.headline:
                        suffix = f"@{settings.headline_k}" if metric.of_lists else ""
                        row[f"{name} {metric.name}{suffix}"] = means.get((split, model, name, metric.name), np.nan)
            rows.append(row)
    return pd.DataFrame(rows).round(4)
