"""Steps of the pipeline ``evaluation``, the only one that reads test labels."""

from __future__ import annotations

from typing import Any

import ibis.expr.types as ir
import numpy as np
import pandas as pd

from multitask_recommender import metrics
from multitask_recommender.errors import SettingsError
from multitask_recommender.interactions import BoolArray, Interactions, read_interactions
from multitask_recommender.pipelines.data_engineering.parameters import DatasetSettings, SplitSettings
from multitask_recommender.pipelines.evaluation.parameters import EvaluationSettings
from multitask_recommender.pipelines.recommender.parameters import StudySettings
from multitask_recommender.tasks import Task
from multitask_recommender.variants import VARIANTS, Variant

METRIC_COLUMNS = ["dataset", "split", "model", "kind", "task", "metric", "k", "seed", "value", "users"]
USER_METRIC_COLUMNS = ["split", "model", "task", "metric", "k", "seed", "user", "value"]


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


def _ranking(
    lists: pd.DataFrame,
    test: Interactions,
    train: Interactions,
    task: str,
    items: int,
    catalogue: BoolArray,
    ks: list[int],
) -> tuple[list[tuple[str, int, float, int]], list[tuple[str, int, np.ndarray, np.ndarray]]]:
    """Ranking, coverage and novelty of one task's lists: rows (metric, k, value, users) and per-user values."""
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
    rows: list[tuple[str, int, float, int]] = []
    own: list[tuple[str, int, np.ndarray, np.ndarray]] = []
    if not len(judged):
        return rows, own
    for k in ks:
        shown = table[judged, :k]
        hits = metrics.find_hits(shown, judged, user, item, items)
        values = metrics.ranking_metrics(hits, positives[judged])
        values["novelty"] = metrics.self_information(shown, item_users, users)
        rows += [(name, k, float(np.nanmean(value)), len(judged)) for name, value in values.items()]
        own += [(name, k, judged, value) for name, value in values.items()]
        rows.append(("coverage", k, metrics.catalogue_coverage(shown, catalogue), len(judged)))
        rows.append(("gini", k, metrics.gini(shown, catalogue), len(judged)))
    return rows, own


def measure(
    variant: Variant,
    dataset: DatasetSettings,
    study: StudySettings,
    splits: SplitSettings,
    settings: EvaluationSettings,
    behaviour_sequences: ir.Table,
    items: ir.Table,
    test_labels: ir.Table,
    predictions: pd.DataFrame,
    ranked_lists: pd.DataFrame,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure one model on the test rows of every split.

    Returns:
        metrics (``METRIC_COLUMNS``; k is 0 for metrics that are not of lists) and per-user values of the ranking
        metrics (``USER_METRIC_COLUMNS``).

    Raises:
        SettingsError: If a metric is asked for beyond the length of the stored lists.
    """
    if max(settings.ks) > study.ranks:
        raise SettingsError(
            f"'evaluation.ks' asks for lists of {max(settings.ks)}, but 'study.ranks' keeps {study.ranks}."
        )
    rows: list[tuple[Any, ...]] = []
    own: list[pd.DataFrame] = []
    number = int(items.count().execute())
    for split in splits.names:
        test = read_interactions(test_labels, split, dataset.tasks)
        train = read_interactions(behaviour_sequences, split, dataset.tasks)
        catalogue = metrics.rankable_items(train.item, test.item, number)
        scores = predictions[predictions["split"] == split]
        lists = ranked_lists[ranked_lists["split"] == split]
        for name, task in dataset.tasks.items():
            for seed, part in scores[scores["task"] == name].groupby("seed"):
                if not (np.array_equal(part["user"], test.user) and np.array_equal(part["item"], test.item)):
                    raise AssertionError(f"the predictions of {variant.name} are not in the order of the test rows")
                asked = ~np.isnan(test.labels[name])
                score = part["score"].to_numpy()
                base = (dataset.name, split, variant.name, variant.kind, name)
                users = len(np.unique(test.user[asked]))
                values = _pointwise(task, test.labels[name][asked], score[asked], variant.predicts(task))
                rows += [(*base, metric, 0, seed, value, users) for metric, value in values.items()]
                chosen = lists[(lists["task"] == name) & (lists["seed"] == seed)]
                ranking, per_user = _ranking(chosen, test, train, name, number, catalogue, settings.ks)
                rows += [(*base, metric, k, seed, value, judged) for metric, k, value, judged in ranking]
                own += [
                    pd.DataFrame(
                        {
                            "split": split,
                            "model": variant.name,
                            "task": name,
                            "metric": metric,
                            "k": k,
                            "seed": seed,
                            "user": judged,
                            "value": value,
                        }
                    )
                    for metric, k, judged, value in per_user
                ]
    per_user_table = pd.concat(own, ignore_index=True) if own else pd.DataFrame(columns=USER_METRIC_COLUMNS)
    return pd.DataFrame(rows, columns=METRIC_COLUMNS), per_user_table


def collect_metrics(*tables: pd.DataFrame) -> pd.DataFrame:
    """Put the models' metrics into one table, in the order of the list of variants."""
    return pd.concat(tables, ignore_index=True)


def collect_cv_results(*tables: pd.DataFrame) -> pd.DataFrame:
    """Put every cross-validation fit into one table."""
    table = pd.concat([part for part in tables if len(part)], ignore_index=True)
    return table[["model", "split", "candidate", "parameters", "fold", "task", "error"]]


def collect_costs(*costs: dict[str, Any]) -> pd.DataFrame:
    """Put the models' costs into one table: means over splits and seed numbers, the peak over all.

    Args:
        costs: Fit costs of every variant in order, then predict costs of every variant in order.
    """
    fits, predicts = costs[: len(VARIANTS)], costs[len(VARIANTS) :]
    rows = []
    for name, fit_cost, predict_cost in zip(VARIANTS, fits, predicts, strict=True):
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
