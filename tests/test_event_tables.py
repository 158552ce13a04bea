"""Tables of events: units of time, parts that the data names, steps of a funnel in the wrong order."""

from __future__ import annotations

import time
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pytest

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.foundation.errors import DataError
from multitask_recommender.pipelines.data_engineering import nodes

SPLITS = SplitSettings(strategies=["random"], seed=1, folds=2)
START = 1_600_000_000


def dataset(tasks: dict[str, Any] | None = None, **interactions: Any) -> DatasetSettings:
    described = {"user_id": "user", "item_id": "item", "timestamp": "at", **interactions}
    return DatasetSettings.model_validate(
        {"name": "shop", "interactions": described, "tasks": tasks or {"view": {"kind": "retrieval"}}}
    )


def checked(frame: pd.DataFrame, described: DatasetSettings) -> tuple[ir.Table, pd.DataFrame]:
    raw = nodes.standardise_interactions(ibis.memtable(frame.astype(str)), described)
    users, items = (
        nodes.standardise_users(None, described),
        nodes.standardise_items(None, None, None, described),
    )
    interactions, _, _, dropped, _ = nodes.validate_tables(raw, users, items, described, SPLITS)
    return interactions, dropped


def rows(at: Any) -> pd.DataFrame:
    count = 40
    at = np.resize(np.asarray(at, dtype=object), count)
    return pd.DataFrame({"user": np.arange(count) % 8, "item": np.arange(count) // 8, "at": at})


@pytest.mark.parametrize(
    ("factor", "settings"),
    [(1, {}), (1000, {}), (10**6, {}), (10**9, {}), (1000, {"timestamp_unit": "milliseconds"})],
)
def test_times_are_seconds_whatever_they_count(factor: int, settings: dict[str, str]) -> None:
    frame = rows([(START + second) * factor for second in range(40)])
    found = checked(frame, dataset(**settings))[0].order_by("row").execute()
    np.testing.assert_allclose(found["time"], START + np.arange(40))
    # The order is that of the numbers as they stand.
    np.testing.assert_allclose(found["timestamp"], (START + np.arange(40)) * factor)


def test_small_numbers_are_an_order_alone() -> None:
    assert checked(rows(list(range(40))), dataset())[0].execute()["time"].isna().all()
    declared = dataset(timestamp_unit="days")
    np.testing.assert_allclose(
        checked(rows(list(range(40))), declared)[0].order_by("row").execute()["time"], 86_400.0 * np.arange(40)
    )


def test_mixed_units_are_refused() -> None:
    frame = rows([START + second for second in range(40)])
    frame.loc[5, "at"] = (START + 5) * 1000
    with pytest.raises(DataError, match=r"mixed units: most are seconds by their size, others milliseconds") as raised:
        checked(frame, dataset())
    assert (raised.value.column, raised.value.rows) == ("at", [5])


def test_the_future_is_refused_or_dropped() -> None:
    frame = rows([START + second for second in range(40)])
    frame.loc[7, "at"] = int(time.time()) + 10 * 86_400
    with pytest.raises(DataError, match="counted in seconds, lies in the future") as raised:
        checked(frame, dataset())
    assert (raised.value.column, raised.value.rows) == ("at", [7])
    interactions, dropped = checked(frame, dataset(unreadable="drop"))
    assert interactions.count().execute() == 39
    assert dropped["reason"].tolist() == ["unreadable: 'at' lies in the future"]
    assert checked(frame, dataset(timestamp_unit="order"))[0].count().execute() == 40


def test_parts_that_nothing_stands_for_are_refused() -> None:
    frame = rows([START + second for second in range(40)]).assign(part=["train", "dev"] * 20)
    with pytest.raises(DataError, match=r"none of train, validation, test\.[\s\S]*'dev'") as raised:
        checked(frame, dataset(part={"column": "part"}))
    assert raised.value.column == "part"
    given = dataset(part={"column": "part", "test": ["dev"]})
    assert set(checked(frame, given)[0].execute()["given_part"]) == {"train", "test"}


def test_a_pair_that_is_joined_stands_in_one_part() -> None:
    frame = rows([START + second for second in range(40)]).assign(part=["train", "test"] * 20)
    frame = pd.concat([frame, frame.iloc[[3]].assign(part="train")])
    part = {"column": "part"}
    with pytest.raises(DataError, match="which are to be joined, stand in several parts"):
        checked(frame, dataset(part=part, duplicates="maximum"))
    assert checked(frame, dataset(part=part, duplicates="keep"))[0].count().execute() == 41


FUNNEL = {
    "view": {"kind": "retrieval", "label": "view"},
    "buy": {"kind": "retrieval", "label": "buy", "after": "view"},
}


def shop(contradictions: str) -> DatasetSettings:
    tasks = {**FUNNEL, "buy": {**FUNNEL["buy"], "contradictions": contradictions}}
    return dataset(tasks, events={"column": "kind", "kinds": {"view": "view", "buy": "buy"}})


@pytest.fixture
def funnel() -> pd.DataFrame:
    """Views of 40 pairs; two of them bought later, one before the view, and one without a view."""
    views = rows([START + second for second in range(40)]).assign(kind="view")
    later = views.iloc[[0, 1]].assign(at=START + 100, kind="buy")
    before = views.iloc[[20]].assign(at=START - 100, kind="buy")
    never = pd.DataFrame({"user": [3], "item": [77], "at": [START + 5], "kind": ["buy"]})
    return pd.concat([views, later, before, never], ignore_index=True)


def test_a_step_comes_no_earlier_than_the_one_before(funnel: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="'buy' is positive and 'view', which it comes after, is not by then") as raised:
        checked(funnel, shop("refuse"))
    assert raised.value.rows == [42, 43]
    interactions, dropped = checked(funnel, shop("drop"))
    assert interactions.count().execute() == 42
    assert dropped["rows"].tolist() == [2]
    interactions, dropped = checked(funnel, shop("keep"))
    assert interactions.count().execute() == 44
    assert dropped["reason"].str.endswith("kept as it is").all()


def test_an_implied_step_is_in_the_row_that_implies_it(funnel: pd.DataFrame) -> None:
    described = shop("imply")
    interactions, _ = checked(funnel, described)
    labels = nodes.label_interactions(interactions, described).order_by("row").execute()
    assert labels["view"].tolist()[40:42] != [1.0, 1.0]
    assert labels["view"].tolist()[42:] == [1.0, 1.0]
    assert labels["buy"].sum() == 4


def test_a_split_divides_events(funnel: pd.DataFrame) -> None:
    described = shop("keep")
    interactions, _ = checked(funnel, described)
    labelled = nodes.label_interactions(interactions, described)
    splits = nodes.assign_splits(labelled, SPLITS.model_copy(update={"strategies": ["temporal"], "test_share": 0.05}))
    _, _, pairs, test = nodes.separate_parts(labelled, splits, described)
    # The latest events are the purchases of pairs that were viewed in training.
    assert test.filter(test.split == "temporal").execute()["buy"].sum() == 2
    assert not pairs.execute().duplicated().any()
