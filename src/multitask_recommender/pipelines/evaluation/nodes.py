"""Steps of the pipeline ``evaluation``, the only one that reads test labels."""

from __future__ import annotations

from typing import Any

import ibis.expr.types as ir
import numpy as np
import pandas as pd

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.interactions import BoolArray, IntArray, Interactions, read_interactions
from multitask_recommender.data.splits import candidate_items
from multitask_recommender.data.tasks import Task
from multitask_recommender.evaluation import metrics
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.models.variants import Variant

METRIC_COLUMNS = ["dataset", "split", "model", "kind", "task", "metric", "k", "seed", "value", "users"]
USER_TOTAL_COLUMNS = ["split", "model", "task", "metric", "k", "seed", "user", "total", "count"]
GROUP_COLUMNS = ["split", "model", "task", "metric", "k", "seed", "side", "group", "value", "count"]
GROUPS = ["low", "middle", "high"]

Rows = list[tuple[str, int, float, int]]
Totals = list[tuple[str, int, IntArray, np.ndarray, np.ndarray]]


def _pointwise(task: Task, label: np.ndarray, score: np.ndarray, predicts: bool) -> dict[str, float]:
    """Metrics over all test rows on which the task asks."""
    if task.kind == "regression" and predicts:
        return {"rmse": metrics.rmse(label, score), "mae": metrics.mae(label, score)}
    if task.kind == "binary":
        result = {"auc": metrics.auc(label, score)}
        if predicts:
            result |= {
                "log_loss": metrics.log_loss(label, score),
                "accuracy": metrics.accuracy(label, score),
                "ece": metrics.expected_calibration_error(label, score),
            }
        return result
    return {}


def _pointwise_totals(task: Task, user: IntArray, label: np.ndarray, score: np.ndarray, predicts: bool) -> Totals:
    """Per user, the sum and the number of rows of every pointwise metric; AUC is the user's own, with count 1."""
    totals: Totals = []

    def add(metric: str, values: np.ndarray) -> None:
        users, place = np.unique(user, return_inverse=True)
        totals.append((metric, 0, users, np.bincount(place, values), np.bincount(place).astype(float)))

    if task.kind == "regression" and predicts:
        add("rmse", (label - score) ** 2)
        add("mae", np.abs(label - score))
    if task.kind == "binary":
        users, values = metrics.auc_by_user(label, score, user)
        if len(users):
            totals.append(("auc", 0, users, values, np.ones(len(users))))
        if predicts:
            p = np.clip(score.astype(np.float64), 1e-7, 1 - 1e-7)
            add("log_loss", -(label * np.log(p) + (1 - label) * np.log(1 - p)))
    return totals


def _ranking(
    lists: pd.DataFrame,
    test: Interactions,
    train: Interactions,
    task: str,
    items: int,
    catalogue: BoolArray,
    ks: list[int],
) -> tuple[Rows, Totals, list[tuple[str, int, str, float, int]]]:
    """Ranking, coverage and novelty of one task's lists.

    Returns:
        rows (metric, k, value, users); per-user totals; and recall by popularity of the item (metric, k, group, value,
        relevant pairs): the training catalogue in thirds of equal numbers of training interactions.
    """
    relevant = test.relevant[task]
    user, item = test.user[relevant], test.item[relevant]
    positives = np.bincount(user, minlength=int(test.user.max()) + 1)
    judged = np.nonzero(positives)[0]
    longest = max(ks)
    table = np.full((len(positives), longest), metrics.PADDING, dtype=np.int64)
    within = lists["rank"] <= longest
    table[lists["user"][within], lists["rank"][within] - 1] = lists["item"][within]
    item_users = np.bincount(train.item, minlength=items)
    users = len(np.unique(train.user))
    rows: Rows = []
    own: Totals = []
    groups: list[tuple[str, int, str, float, int]] = []
    if not len(judged):
        return rows, own, groups
    order = np.argsort(item_users, kind="stable")
    third = np.empty(items, dtype=np.int64)
    third[order] = np.minimum(3 * np.cumsum(item_users[order]) // max(item_users.sum() + 1, 1), 2)
    for k in ks:
        shown = table[judged, :k]
        hits = metrics.find_hits(shown, judged, user, item, items)
        values = metrics.ranking_metrics(hits, positives[judged])
        values["novelty"] = metrics.self_information(shown, item_users, users)
        rows += [(name, k, float(np.nanmean(value)), len(judged)) for name, value in values.items()]
        own += [
            (name, k, judged, np.nan_to_num(value), (~np.isnan(value)).astype(float)) for name, value in values.items()
        ]
        rows.append(("coverage", k, metrics.catalogue_coverage(shown, catalogue), len(judged)))
        rows.append(("gini", k, metrics.gini(shown, catalogue), len(judged)))
        hit_thirds = np.bincount(third[shown[hits]], minlength=3)
        wanted = np.bincount(third[item], minlength=3)
        groups += [
            ("recall", k, group, float(hit / number), int(number))
            for group, hit, number in zip(GROUPS, hit_thirds, wanted, strict=True)
            if number
        ]
    return rows, own, groups


def _user_groups(totals: pd.DataFrame, train: Interactions) -> pd.DataFrame:
    """Every per-user metric within thirds of the users by number of training interactions."""
    rows = np.bincount(train.user)
    edges = np.quantile(rows[rows > 0], [1 / 3, 2 / 3])
    activity = pd.Series(rows).reindex(totals["user"], fill_value=0).to_numpy()
    group = np.array(GROUPS)[np.searchsorted(edges, activity)]
    keys = ["task", "metric", "k", "seed", "group"]
    summed = totals.assign(group=group).groupby(keys)[["total", "count"]].sum().reset_index()
    value = summed["total"] / summed["count"]
    summed["value"] = np.where(summed["metric"] == "rmse", np.sqrt(value), value)
    return summed.assign(side="user", count=summed["count"].astype(int)).drop(columns="total")


def _stack(tables: list[pd.DataFrame], columns: list[str], model: str) -> pd.DataFrame:
    if not tables:
        return pd.DataFrame(columns=columns)
    return pd.concat(tables, ignore_index=True).assign(model=model)[columns]


def measure(
    variant: Variant,
    dataset: DatasetSettings,
    settings: EvaluationSettings,
    splits: SplitSettings,
    behaviour_sequences: ir.Table,
    items: ir.Table,
    test_labels: ir.Table,
    predictions: pd.DataFrame,
    ranked_lists: pd.DataFrame,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Measure one model on the test rows of every split.

    Returns:
        metrics (``METRIC_COLUMNS``; k is 0 for metrics that are not of lists); per-user totals and counts, from which
        comparisons are made (``USER_TOTAL_COLUMNS``); metrics within thirds of the users by activity and recall within
        thirds of the items by popularity (``GROUP_COLUMNS``).
    """
    rows: list[tuple[Any, ...]] = []
    totals: list[pd.DataFrame] = []
    groups: list[pd.DataFrame] = []
    number = int(items.count().execute())
    keys = ["split", "task", "seed"]
    scored, listed = dict(iter(predictions.groupby(keys))), dict(iter(ranked_lists.groupby(keys)))
    for split in predictions["split"].drop_duplicates():
        test = read_interactions(test_labels, split, dataset.tasks)
        train = read_interactions(behaviour_sequences, split, dataset.tasks)
        catalogue = candidate_items(splits.candidates_of(split), train.item, number)
        own: list[pd.DataFrame] = []
        for name, task in dataset.tasks.items():
            for seed in predictions["seed"].drop_duplicates():
                part = scored.get((split, name, seed))
                if part is None:
                    continue
                if not (np.array_equal(part["user"], test.user) and np.array_equal(part["item"], test.item)):
                    raise AssertionError(f"the predictions of {variant.name} are not in the order of the test rows")
                asked = ~np.isnan(test.labels[name])
                user, label, score = test.user[asked], test.labels[name][asked], part["score"].to_numpy()[asked]
                base = (dataset.name, split, variant.name, variant.kind, name)
                predicts = variant.predicts(task)
                values = _pointwise(task, label, score, predicts)
                rows += [(*base, metric, 0, seed, value, len(np.unique(user))) for metric, value in values.items()]
                chosen = listed.get((split, name, seed), ranked_lists[:0])
                ranking, per_user, by_item = _ranking(chosen, test, train, name, number, catalogue, settings.ks)
                rows += [(*base, metric, k, seed, value, judged) for metric, k, value, judged in ranking]
                for metric, k, users, total, count in [
                    *_pointwise_totals(task, user, label, score, predicts),
                    *per_user,
                ]:
                    table = {"task": name, "metric": metric, "k": k, "seed": seed, "user": users}
                    own.append(pd.DataFrame({**table, "total": total, "count": count}))
                items_table = pd.DataFrame(by_item, columns=["metric", "k", "group", "value", "count"])
                groups.append(items_table.assign(split=split, task=name, seed=seed, side="item"))
        if own:
            together = pd.concat(own, ignore_index=True)
            totals.append(together.assign(split=split))
            groups.append(_user_groups(together, train).assign(split=split))
    return (
        pd.DataFrame(rows, columns=METRIC_COLUMNS),
        # Names repeat in every row; as categories they take a byte instead of a pointer.
        _stack(totals, USER_TOTAL_COLUMNS, variant.name).astype(dict.fromkeys(USER_TOTAL_COLUMNS[:4], "category")),
        _stack(groups, GROUP_COLUMNS, variant.name),
    )


def collect(*tables: pd.DataFrame) -> pd.DataFrame:
    """Put the models' tables into one, in the order of the list of variants; models that were left out have none."""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else tables[0]


def collect_cv_results(*tables: pd.DataFrame) -> pd.DataFrame:
    """Put every cross-validation fit into one table."""
    table = pd.concat([part for part in tables if len(part)], ignore_index=True)
    return table[["model", "split", "candidate", "parameters", "fold", "task", "error"]]


def collect_costs(table: pd.DataFrame, *costs: dict[str, Any]) -> pd.DataFrame:
    """Put the models' costs into one table: means over splits and seed numbers, the peak over all.

    Args:
        table: The metrics, whose models are those of the costs.
        costs: Fit costs of every model in order, then predict costs of every model in order; empty for one left out.
    """
    names = list(table["model"].drop_duplicates())
    half = len(costs) // 2
    fits, predicts = ([own for own in part if own] for part in (costs[:half], costs[half:]))
    rows = []
    for name, fit_cost, predict_cost in zip(names, fits, predicts, strict=True):
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


_HEADLINE = {
    "retrieval": ["ndcg", "recall", "coverage", "novelty"],
    "binary": ["auc", "accuracy", "recall", "coverage", "novelty"],
    "regression": ["rmse", "mae", "recall", "coverage", "novelty"],
}


def make_headline(table: pd.DataFrame, dataset: DatasetSettings, settings: EvaluationSettings) -> pd.DataFrame:
    """Make the headline table: models x accuracy, recall, coverage and novelty per task, means over seeds.

    Returns:
        Columns split, model, then ``<task> <metric>`` (ranking metrics at ``headline_k``).
    """
    shown = table[table["k"].isin([0, settings.headline_k])]
    means = shown.groupby(["split", "model", "task", "metric"])["value"].mean()
    rows = []
    for split in table["split"].drop_duplicates():
        for model in table["model"].drop_duplicates():
            row: dict[str, Any] = {"split": split, "model": model}
            for name, task in dataset.tasks.items():
                for metric in _HEADLINE[task.kind]:
                    suffix = "" if metric in ("auc", "accuracy", "rmse", "mae") else f"@{settings.headline_k}"
                    row[f"{name} {metric}{suffix}"] = means.get((split, model, name, metric), np.nan)
            rows.append(row)
    return pd.DataFrame(rows).round(4)
