"""Hot, warm and cold users and items: who is which, and what metrics of a group are."""

from __future__ import annotations

import ibis
import numpy as np
import pandas as pd
import pytest

from conftest import make_interactions
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.features import build_features
from multitask_recommender.evaluation.groups import overall, read_groups
from multitask_recommender.pipelines.evaluation.nodes import group_entities
from test_metric_records import measured


@pytest.fixture
def groups() -> pd.DataFrame:
    """Six users and five items; users 0 and 1 and items 0 and 1 have training rows."""
    dataset = DatasetSettings.model_validate(
        {
            "name": "small",
            "interactions": {"user_id": "u", "item_id": "i"},
            "users": {"user_id": "u", "features": {"age": {"kind": "numeric", "column": "a"}}, "activity": "activity"},
            "items": {
                "item_id": "i",
                "features": {
                    "genre": {"kind": "categories", "column": "g"},
                    "author": {"kind": "category", "column": "w"},
                },
            },
            "tasks": {"watch": {"kind": "retrieval"}},
        }
    )
    training = ibis.memtable({"split": ["s"] * 3, "user": [0, 0, 1], "item": [0, 1, 1]})
    validation = ibis.memtable({"split": ["s", "s", "other"], "user": [0, 2, 5], "item": [2, 0, 0]})
    users = ibis.memtable(pd.DataFrame({"user": range(6), "age": [20.0, None, None, 33.0, None, None]}))
    items = ibis.memtable(
        {
            "item": [0, 1, 2, 3, 4],
            "genre": [["drama"], ["drama"], [], ["unheard of"], []],
            "author": ["A", None, None, None, "A"],
        }
    )
    built = [
        build_features(table, key, training, dataset) or pytest.fail("there are features")
        for key, table in (("user", users), ("item", items))
    ]
    (user_vocabulary, user_features), (item_vocabulary, item_features) = built
    splits = SplitSettings(strategies=["random"], seed=1, folds=2).model_copy(update={"strategies": ["s"]})
    described = (user_features, user_vocabulary, item_features, item_vocabulary)
    return group_entities(dataset, splits, users, items, training, validation, *described)


def test_who_is_hot_warm_and_cold(groups: pd.DataFrame) -> None:
    assert list(groups.columns) == ["split", "side", "entity", "group"]
    found = {side: own["group"].tolist() for side, own in groups.groupby("side")}
    # User 2 has a validation row, user 3 an age; user 5's validation row is of another split. The activity, which all
    # users have, tells nothing of them.
    assert found["user"] == ["hot", "hot", "warm", "warm", "cold", "cold"]
    # Item 2 has a validation row, which is no feature; the genre of item 3 is rare, but known.
    assert found["item"] == ["hot", "hot", "cold", "warm", "warm"]


def test_masks_of_groups(groups: pd.DataFrame) -> None:
    everyone, *others = read_groups(groups, "s")
    assert everyone.name == "all"
    assert everyone.contains(np.array([0, 5]), np.array([4, 2])).tolist() == [True, True]
    names = [f"{name}_{side}" for side in ("users", "items") for name in ("hot", "warm", "cold")]
    assert [group.name for group in others] == names
    user, item = (part.ravel() for part in np.indices((6, 5)))
    for side in (others[:3], others[3:]):
        # Every pair belongs to one group of users and one group of items.
        assert np.array_equal(sum(group.contains(user, item).astype(int) for group in side), np.ones(30))


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Metrics of random scores, with a third each of the users and of the items hot, warm and cold."""
    rows = make_interactions(users=42, items=30, rows_per_user=8, seed=1)
    score = np.random.default_rng(2).random((42, 30)).astype(np.float32)
    side = [*["user"] * 42, *["item"] * 30]
    entity = np.concatenate([np.arange(42), np.arange(30)])
    group = np.array(["hot", "warm", "cold"])[entity % 3]
    groups = pd.DataFrame({"split": "s", "side": side, "entity": entity, "group": group})
    train, test = rows.where(rows.fold > 0), rows.where(rows.fold == 0)
    return measured(train, test, score, groups).set_index(["task", "metric", "k", "group"]).sort_index()


def test_overall_figures_are_one_row_a_metric(table: pd.DataFrame) -> None:
    own = overall(table.reset_index())
    assert len(own) > 0
    assert not own.duplicated(["task", "metric", "k"]).any()


@pytest.mark.parametrize("side", ["users", "items"])
def test_rows_of_the_groups_are_all_rows(table: pd.DataFrame, side: str) -> None:
    for key, of_metric in table.groupby(["task", "metric", "k"]):
        own = of_metric.droplevel(["task", "metric", "k"])
        parts = own.loc[[f"{name}_{side}" for name in ("hot", "warm", "cold")]]
        assert parts["rows"].sum() == own.loc["all", "rows"], key
        assert (parts["users"] <= own.loc["all", "users"]).all()
        if side == "users":
            assert parts["users"].sum() == own.loc["all", "users"]


@pytest.mark.parametrize("metric", ["ndcg", "precision", "recall", "hit_rate", "novelty"])
def test_metrics_of_user_groups_average_to_the_whole(table: pd.DataFrame, metric: str) -> None:
    own = table.loc[("like", metric, 5)]
    parts = own.loc[["hot_users", "warm_users", "cold_users"]]
    assert parts["value"].nunique() == 3
    assert np.average(parts["value"], weights=parts["users"]) == pytest.approx(own.loc["all", "value"])


def test_recall_of_an_item_group_asks_for_its_items_alone(table: pd.DataFrame) -> None:
    rows = make_interactions(users=42, items=30, rows_per_user=8, seed=1)
    test = rows.where(rows.fold == 0)
    lists = np.argsort(-np.random.default_rng(2).random((42, 30)).astype(np.float32), axis=1)[:, :5]
    for place, name in enumerate(("hot", "warm", "cold")):
        wanted = [set(test.item[(test.user == user) & (test.item % 3 == place)]) for user in range(42)]
        shares = [len(own & set(lists[user])) / len(own) for user, own in enumerate(wanted) if own]
        found = table.loc[("watch", "recall", 5, f"{name}_items")]
        assert found["value"] == pytest.approx(np.mean(shares))
        assert found["users"] == len(shares)
        assert found["rows"] == sum(map(len, wanted))
        # Of the catalogue, the group's part of 10 items in the same users' lists.
        shown = {item for user, own in enumerate(wanted) if own for item in lists[user] if item % 3 == place}
        assert table.loc[("watch", "coverage", 5, f"{name}_items"), "value"] == len(shown) / 10


def test_row_metrics_of_a_group_are_those_of_its_rows(table: pd.DataFrame) -> None:
    rows = make_interactions(users=42, items=30, rows_per_user=8, seed=1)
    test = rows.where(rows.fold == 0)
    score = np.random.default_rng(2).random((42, 30)).astype(np.float32)[test.user, test.item]
    for side, entity in (("users", test.user), ("items", test.item)):
        own = entity % 3 == 1
        label = test.labels["like"][own] > 0
        below = score[own][label][:, None] > score[own][~label][None, :]
        assert table.loc[("like", "auc", 0, f"warm_{side}"), "value"] == pytest.approx(below.mean())


def test_a_group_without_test_rows_has_no_row() -> None:
    rows = make_interactions(users=12, items=30, rows_per_user=8, seed=1)
    train, test = rows.where(rows.fold > 0), rows.where(rows.fold == 0)
    entity = [*range(12), *range(30)]
    groups = pd.DataFrame({"split": "s", "side": ["user"] * 12 + ["item"] * 30, "entity": entity, "group": "hot"})
    untested = np.setdiff1d(np.arange(30), test.item)[0]
    groups.loc[12 + untested, "group"] = "cold"
    found = measured(train, test, np.random.default_rng(2).random((12, 30)), groups)
    assert set(found["group"]) == {"all", "hot_users", "hot_items"}


def test_a_group_with_all_test_rows_still_has_the_catalogue_of_its_own() -> None:
    rows = make_interactions(users=12, items=30, rows_per_user=8, seed=1)
    train, test = rows.where(rows.fold > 0), rows.where(rows.fold == 0)
    score = np.random.default_rng(2).random((12, 30)).astype(np.float32)
    everywhere = pd.DataFrame({"split": "s", "side": ["user"] * 12 + ["item"] * 30, "entity": [*range(12), *range(30)]})
    untested = int(np.setdiff1d(np.arange(30), test.item)[0])
    score[:, untested] = 2.0
    apart = everywhere.assign(group=np.where(everywhere.index == 12 + untested, "cold", "hot"))
    keys = ["group", "task", "metric", "k"]
    same, other = (
        measured(train, test, score, own).set_index(keys)["value"] for own in (everywhere.assign(group="hot"), apart)
    )
    assert same["hot_items"].equals(same["all"])
    assert same["all"].equals(other["all"])
    # An item that is in every list is none of the group's: its place is empty.
    for metric in ("novelty", "gini"):
        assert other["hot_items", "watch", metric, 5] != other["all", "watch", metric, 5]
    assert other["hot_items", "watch", "ndcg", 5] == other["all", "watch", "ndcg", 5]
