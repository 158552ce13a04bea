"""The records of the metrics agree with each other and with the functions, and one record is all that a metric needs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import ibis
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import entropy

from conftest import TASKS, make_interactions
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.interactions import Interactions
from multitask_recommender.evaluation import metric_records, metrics
from multitask_recommender.evaluation.metric_records import (
    ALL,
    LIST_METRICS,
    METRICS,
    ROW_METRICS,
    JudgedLists,
    ListMetric,
    ScoredRows,
    Surroundings,
    compared_metrics,
    main_metric,
)
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.models import ranking
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.pipelines.evaluation import nodes

SPLITS = SplitSettings(strategies=["random"], seed=1, folds=2)
SETTINGS = EvaluationSettings(ks=[3, 5], headline_k=5)
DATASET = DatasetSettings.model_validate(
    {"name": "small", "interactions": {"user_id": "u", "item_id": "i"}, "tasks": TASKS}
)


def scored_rows(seed: int = 0) -> ScoredRows:
    """300 rows of 20 users, with labels of 0 and 1 and scores between them."""
    random = np.random.default_rng(seed)
    user, item = np.sort(random.integers(0, 20, 300)), random.integers(0, 30, 300)
    label = random.integers(0, 2, 300).astype(np.float32)
    return ScoredRows(user, item, label, (0.3 * label + 0.7 * random.random(300)).astype(np.float32))


def judged_lists(seed: int = 0) -> JudgedLists:
    """Lists of 5 of 30 items for 20 users, the last of them empty."""
    random = np.random.default_rng(seed)
    lists = np.stack([random.permutation(30)[:5] for _ in range(20)])
    lists[-1] = ranking.PADDING
    hits = (random.random((20, 5)) < 0.4) & (lists != ranking.PADDING)
    positives = hits.sum(axis=1) + random.integers(1, 4, 20)
    shares = sparse.csr_matrix(random.dirichlet(np.ones(4), 30))
    unit = sparse.csr_matrix(np.eye(6)[random.integers(0, 6, 30)])
    around = Surroundings(random.integers(0, 9, 30), 15, unit, shares, random.dirichlet(np.ones(4), 20))
    return JudgedLists(np.arange(20), lists, hits, positives, np.ones(30, bool), around)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_that_of_its_totals(name: str) -> None:
    metric, of = METRICS[name], judged_lists() if METRICS[name].of_lists else scored_rows()
    totals = metric.totals(of)
    if totals is None:
        assert metric.each is None
        return
    users, total, count = totals
    assert (np.diff(users) > 0).all()
    assert set(users) <= set(of.user)
    value = metric.finish(total.sum() / count.sum())
    if name == "auc":
        # Over all rows it does not divide by user; what is compared is the mean of the users' own.
        value = metric.value(of)
        own = [metrics.auc(of.label[of.user == user], of.score[of.user == user]) for user in users]
        assert total / count == pytest.approx(own, abs=1e-12)
    assert value == pytest.approx(metric.value(of), abs=1e-12)


def test_totals_of_a_user_are_those_of_the_users_rows() -> None:
    rows = scored_rows()
    for metric in ROW_METRICS:
        for user, total, count in zip(*(metric.totals(rows) or ([], [], [])), strict=True):
            own = rows.where(rows.user == user)
            assert metric.finish(total / count) == pytest.approx(metric.value(own), abs=1e-12), metric.name


def test_values_are_those_of_the_plain_functions() -> None:
    rows, lists = scored_rows(), judged_lists()
    for name, function in (("rmse", metrics.rmse), ("mae", metrics.mae), ("log_loss", metrics.log_loss)):
        assert METRICS[name].value(rows) == function(rows.label, rows.score)
    assert METRICS["accuracy"].value(rows) == np.mean((rows.score >= 0.5) == (rows.label > 0))
    assert METRICS["ndcg"].value(lists.first(2)) == metrics.ndcg(lists.hits[:, :2], lists.positives).mean()
    assert METRICS["novelty"].value(lists) == np.nanmean(
        metrics.self_information(lists.lists, lists.around.item_users, 15)
    )


def test_a_metric_that_is_not_defined_is_not_a_number() -> None:
    rows, lists = scored_rows(), judged_lists()
    one_class = rows.where(rows.label > 0)
    assert np.isnan(METRICS["auc"].value(one_class))
    nothing = replace(lists, lists=np.full((20, 5), ranking.PADDING), catalogue=np.zeros(30, bool))
    for name in ("coverage", "gini", "novelty"):
        assert np.isnan(METRICS[name].value(nothing))


def test_every_kind_of_task_has_what_the_study_asks_for() -> None:
    for kind in ALL:
        assert sum(kind in metric.main for metric in METRICS.values()) == 1
        assert sum(kind in metric.chooses for metric in METRICS.values()) == 1
        assert main_metric(kind) in compared_metrics(kind)
        assert {"recall", "coverage", "novelty"} < {m.name for m in METRICS.values() if kind in m.headline}
    for metric in METRICS.values():
        assert metric.headline | metric.compared | metric.main | metric.chooses <= metric.kinds
        if metric.compared:
            assert metric.higher_is_better is not None
            assert metric.totals(judged_lists() if metric.of_lists else scored_rows()) is not None


def test_lower_is_better_of_errors_alone() -> None:
    perfect, rows = scored_rows(), scored_rows()
    perfect = replace(perfect, score=perfect.label)
    for metric in ROW_METRICS:
        assert metric.sign * metric.value(perfect) > metric.sign * metric.value(rows), metric.name
    lists = judged_lists()
    found = replace(lists, hits=lists.lists != ranking.PADDING, positives=np.full(20, 5))
    for metric in LIST_METRICS:
        if metric.name in ("ndcg", "precision", "recall", "hit_rate"):
            assert metric.sign * metric.value(found) > metric.sign * metric.value(lists), metric.name


def test_labels_of_axes_say_unit_and_direction() -> None:
    assert METRICS["rmse"].label(10) == "RMSE (label units), lower is better"
    assert METRICS["ndcg"].label(10) == "NDCG@10, higher is better"
    assert METRICS["coverage"].label(20) == "catalogue coverage@20 (share of items)"


def long_table(rows: Interactions) -> ibis.expr.types.Table:
    columns = {"split": "s", "user": rows.user, "item": rows.item, "position": np.arange(len(rows)), **rows.labels}
    columns |= {f"relevant_{name}": values for name, values in rows.relevant.items()}
    return ibis.memtable(pd.DataFrame(columns))


NO_FEATURES = (
    ibis.memtable(
        {"split": [], "item": [], "column": [], "weight": []},
        schema=ibis.schema({"split": "string", "item": "int64", "column": "int64", "weight": "float64"}),
    ),
    ibis.memtable(
        {"split": [], "feature": [], "value": [], "column": []},
        schema=ibis.schema({"split": "string", "feature": "string", "value": "string", "column": "int64"}),
    ),
)


def measured(
    train: Interactions,
    test: Interactions,
    score: np.ndarray,
    groups: pd.DataFrame,
    features: tuple[ibis.expr.types.Table, ibis.expr.types.Table] = NO_FEATURES,
    dataset: DatasetSettings = DATASET,
) -> pd.DataFrame:
    """Measure scores (users, items), by which the catalogue is ranked for every task, as ``popularity``."""
    order = np.lexsort((test.item, test.user))
    user, item = test.user[order], test.item[order]
    pairs = pd.DataFrame({"split": "s", "seed": 0, "user": user, "item": item, "score": score[user, item]})
    lists = np.argsort(-score, axis=1)[:, :5]
    place, rank = np.indices(lists.shape)
    ranked = pd.DataFrame({"split": "s", "seed": 0, "user": place.ravel(), "rank": rank.ravel() + 1})
    ranked["item"] = lists.ravel()
    predictions, ranked_lists = (
        pd.concat([table.assign(task=task) for task in TASKS], ignore_index=True) for table in (pairs, ranked)
    )
    nothing = long_table(train).limit(0)
    tables = (long_table(train), nothing, groups, *features, long_table(test))
    held_out = partial(nodes.read_held_out, dataset, SPLITS, *tables)
    return nodes.measure(VARIANTS["popularity"], dataset, SETTINGS, held_out, predictions, ranked_lists)[0]


def test_one_record_is_all_that_a_new_metric_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured, divided among users, shown in the headline and compared, from its record alone."""

    def reciprocal_rank(hits: np.ndarray) -> np.ndarray:
        return np.where(hits.any(axis=1), 1 / (1 + hits.argmax(axis=1)), 0.0)

    new = ListMetric(
        name="reciprocal_rank",
        title="mean reciprocal rank",
        higher_is_better=True,
        each=lambda own: reciprocal_rank(own.hits),
        headline=ALL,
        compared=ALL,
    )
    monkeypatch.setattr(nodes, "LIST_METRICS", (*LIST_METRICS, new))
    monkeypatch.setitem(metric_records.METRICS, new.name, new)
    rows = make_interactions(users=40, items=30, rows_per_user=8, seed=1)
    train, test = rows.where(rows.fold > 0), rows.where(rows.fold == 0)
    score = np.random.default_rng(2).random((40, 30))
    groups = pd.DataFrame({"side": ["user"] * 40 + ["item"] * 30, "entity": [*range(40), *range(30)]})
    table = measured(train, test, score, groups.assign(split="s", group="hot"))
    found = table[(table["metric"] == new.name) & (table["group"] == "all") & (table["task"] == "watch")]
    assert found["k"].tolist() == [3, 5]
    lists = np.argsort(-score, axis=1)[:, :5]
    hits = [np.isin(lists[user], test.item[test.user == user]) for user in np.unique(test.user)]
    assert found["value"].tolist()[1] == pytest.approx(reciprocal_rank(np.array(hits)).mean())
    headline = nodes.make_headline(table, DATASET, SETTINGS)
    assert headline["watch reciprocal_rank@5"].tolist() == pytest.approx([found["value"].iloc[1]], abs=1e-4)
    assert new in compared_metrics("retrieval")


def test_lists_are_judged_by_the_features_that_items_have() -> None:
    """Without features no metric asks for them; missing and rare values make no two items alike."""
    rows = make_interactions(users=40, items=30, rows_per_user=8, seed=1)
    train, test = rows.where(rows.fold > 0), rows.where(rows.fold == 0)
    score = np.random.default_rng(2).random((40, 30))
    groups = pd.DataFrame({"side": ["user"] * 40 + ["item"] * 30, "entity": [*range(40), *range(30)]})
    groups = groups.assign(split="s", group="hot")
    plain = measured(train, test, score, groups)
    assert not {"diversity", "miscalibration"} & set(plain["metric"])
    # Items 0 to 9 are crime, 10 to 19 travel, 20 to 24 of a rare genre, the others of none.
    names = ["(missing)", "(rare)", "crime", "travel"]
    column = np.repeat([2, 3, 1, 0], [10, 10, 5, 5])
    matrix = ibis.memtable({"split": ["s"] * 30, "item": range(30), "column": column, "weight": [1.0] * 30})
    vocabulary = ibis.memtable({"split": ["s"] * 4, "feature": ["genre"] * 4, "value": names, "column": range(4)})
    described = {"item_id": "i", "categories": "genre", "features": {"genre": {"kind": "category", "column": "g"}}}
    dataset = DatasetSettings.model_validate({**DATASET.model_dump(mode="json"), "items": described})
    table = measured(train, test, score, groups, (matrix, vocabulary), dataset)
    shown = table.query("group == 'all' and task == 'watch' and k == 5").set_index("metric")["value"]
    judged = np.unique(test.user)
    lists = np.argsort(-score, axis=1)[judged, :5]
    genre = np.where(column > 1, column, -np.arange(30) - 1)[lists]
    alike = [(own[:, None] == own)[np.triu_indices(5, 1)].mean() for own in genre]
    assert shown["diversity"] == pytest.approx(1 - np.mean(alike))
    taste = np.array([np.bincount(column[train.item[train.user == user]], minlength=4)[2:] for user in judged])
    found = np.array([np.bincount(column[own], minlength=4)[2:] for own in lists])
    known = taste.any(axis=1) & found.any(axis=1)
    p, q = (part[known] / part[known].sum(axis=1, keepdims=True) for part in (taste, found))
    divergence = [entropy(own, 0.99 * other + 0.01 * own) for own, other in zip(p, q, strict=True)]
    assert shown["miscalibration"] == pytest.approx(np.mean(divergence))


def test_categories_name_a_feature_of_the_items() -> None:
    described = {"item_id": "i", "categories": "genre", "features": {"year": {"kind": "numeric", "column": "y"}}}
    with pytest.raises(ValueError, match="'categories' names 'genre'; the features of kind category or categories are"):
        DatasetSettings.model_validate({**DATASET.model_dump(mode="json"), "items": described})
