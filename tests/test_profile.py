"""What is said of the data is true of it: counted by hand on a small table."""

from __future__ import annotations

import ibis
import numpy as np
import pandas as pd
import pytest

from conftest import TASKS
from multitask_recommender.data import profile
from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.pipelines.data_engineering import figures


def described(**interactions: object) -> DatasetSettings:
    signals = {"rating": {"column": "r", "minimum": 1, "maximum": 5}}
    tasks = {name: task.model_dump() for name, task in TASKS.items()}
    table = {"user_id": "u", "item_id": "i", "signals": signals, **interactions}
    users = {"user_id": "u", "features": {"age": {"kind": "numeric", "column": "a"}}}
    return DatasetSettings.model_validate({"name": "small", "interactions": table, "users": users, "tasks": tasks})


TIMED = described(timestamp="t")


@pytest.fixture
def labelled() -> ibis.Table:
    """Five users with 10, 4, 3, 2 and 1 of ten items, a day apart."""
    pairs = [(user, item) for user, number in enumerate((10, 4, 3, 2, 1)) for item in range(number)]
    rating = np.arange(20) % 5 + 1.0
    table = pd.DataFrame(pairs, columns=["user", "item"]).assign(
        row=range(20), time=86400.0 * np.arange(20), watch=1.0, like=(rating >= 4).astype(float), rating=rating
    )
    table.loc[table["row"] >= 10, "rating"] = np.nan
    relevant = {"relevant_watch": True, "relevant_like": table["like"] > 0, "relevant_rating": table["rating"] >= 4}
    return ibis.memtable(table.assign(**relevant))


def test_size_and_shape(labelled: ibis.Table) -> None:
    users, items = ibis.memtable({"user": range(8)}), ibis.memtable({"item": range(10)})
    value = profile.summarise(labelled, users, items, TIMED).set_index("what")["value"]
    assert value["interactions"] == value["different pairs"] == 20
    assert value["density"] == pytest.approx(100 * 20 / 80)
    assert value["median interactions per user"] == 3
    assert value["users with fewer than 5 interactions"] == 80
    assert value["time from first to last"] == pytest.approx(19)
    counts = np.array([1, 2, 3, 4, 10])
    differences = np.abs(counts[:, None] - counts).sum() / (2 * 25 * counts.mean())
    assert value["inequality of the users (Gini)"] == pytest.approx(differences)
    assert "time from first to last" not in profile.summarise(labelled, users, items, described())["what"].tolist()


def test_activity_ends_with_everything(labelled: ibis.Table) -> None:
    table = profile.activity(labelled)
    for side, most in (("user", 10), ("item", 5)):
        own = table[table["side"] == side]
        assert own["rows"].iloc[0] == most
        assert own[["share_of_side", "share_of_rows"]].iloc[-1].tolist() == [1.0, 1.0]
        assert (own["rows"].diff().dropna() <= 0).all()


def test_overlap_of_tasks(labelled: ibis.Table) -> None:
    table = profile.overlap_of_tasks(labelled, TIMED).set_index(["task", "other"])
    assert table.loc[("watch", "like"), ["rows", "share"]].tolist() == [20, 8 / 20]
    assert table.loc[("like", "watch"), "share"] == 1
    # On the ten rows with a rating, those of 4 and 5 are liked and relevant.
    assert table.loc[("like", "rating"), ["rows", "share"]].tolist() == [10, 1.0]
    frame = labelled.execute()
    assert table.loc[("like", "rating"), "correlation"] == pytest.approx(frame["like"].corr(frame["rating"]))
    assert np.isnan(table.loc[("watch", "like"), "correlation"])  # The label of one never differs.


def test_labels_and_parts_are_counted(labelled: ibis.Table) -> None:
    labels = profile.values_of_labels(labelled, TIMED)
    assert labels.groupby("task")["rows"].sum().to_dict() == {"watch": 20, "like": 20, "rating": 10}
    many = labelled.mutate(rating=labelled.row.cast("float64"))
    wide = profile.values_of_labels(many, TIMED)
    assert wide[wide["task"] == "rating"]["rows"].sum() == 20
    assert len(wide[wide["task"] == "rating"]) == 12
    parts = ibis.memtable(
        pd.DataFrame({"row": range(20), "split": "random", "part": ["train"] * 15 + ["test"] * 5, "fold": 0})
    )
    assert profile.count_parts(parts)[["part", "rows", "share"]].to_numpy().tolist() == [
        ["test", 5, 25],
        ["train", 15, 75],
    ]
    events = profile.events_in_time(labelled, parts, TIMED)
    assert events.groupby("part")["rows"].sum().to_dict() == {"train": 15, "test": 5}
    assert events.loc[events["part"] == "test", "begin"].min() >= 14.2
    assert not len(profile.events_in_time(labelled, parts, described()))
    assert "no times" in figures.plot_time(events[:0], TIMED).get_label()


def test_features_say_what_is_missing() -> None:
    users = ibis.memtable(pd.DataFrame({"user": [0, 1, 2, 3], "age": [30.0, None, 41.0, None]}))
    items = ibis.memtable(pd.DataFrame({"item": [0]}))
    names = ["split", "feature", "value", "entities", "column"]
    rows = [
        ("everything", "age", "(missing)", 2, 0),
        ("everything", "age", "from 30", 2, 1),
        ("random", "age", "x", 9, 0),
    ]
    vocabulary = ibis.memtable(pd.DataFrame(rows, columns=names))
    empty = vocabulary.filter(vocabulary.split == "none")
    table = profile.summarise_features(users, items, vocabulary, empty, TIMED)
    assert table.to_numpy().tolist() == [["user", "age", 2, 50.0, "from 30"]]
    activity = profile.activity(ibis.memtable(pd.DataFrame({"user": [0, 1], "item": [0, 0]})))
    assert "1 features, of which 1" in figures.plot_activity(activity, table, TIMED).get_label()
