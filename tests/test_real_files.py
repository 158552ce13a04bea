"""Files as practitioners have them, and descriptions as they write them: read as meant, or refused in words that help."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from kedro.io import DatasetError
from pydantic import ValidationError

from conftest import Project
from multitask_recommender.data import dates, labels
from multitask_recommender.data.description import DatasetSettings, Feature, Signal, SplitSettings
from multitask_recommender.foundation.errors import DataError, SettingsError
from multitask_recommender.new_dataset import write_starting_point
from multitask_recommender.pipelines.data_engineering import nodes
from multitask_recommender.raw_tables import ROW, RawTable
from test_bring_your_own_data import (
    BASE_ROWS,
    described,
    lines,
    place_movielens_1m_published,
    place_retailrocket,
    prepare,
    refused,
    run_data_engineering,
    values,
)

Write = Callable[..., str]


# Label expressions -----------------------------------------------------------------------------------------------------


def interactions_with(**columns: list[float | None]) -> ibis.Table:
    count = len(next(iter(columns.values())))
    frame = pd.DataFrame(
        {
            "row": np.arange(count),
            "user": np.arange(count) % 3,
            "item": np.arange(count),
            "user_id": [f"u{n % 3}" for n in range(count)],
            "item_id": [f"i{n}" for n in range(count)],
            "timestamp": np.arange(count, dtype=float),
            "time": np.arange(count, dtype=float),
            **{name: pd.array(own, dtype="Float64").to_numpy(float, na_value=np.nan) for name, own in columns.items()},
        }
    )
    table = ibis.memtable(frame)
    known = {name: table[name].isnan().ifelse(None, table[name]) for name in columns}
    return table.mutate(**known, given_part=ibis.null("string"))


def tasks_over(signals: list[str], tasks: dict[str, Any]) -> DatasetSettings:
    return DatasetSettings.model_validate(
        {
            "name": "small",
            "interactions": {
                "user_id": "u",
                "item_id": "i",
                "signals": {name: {"column": name} for name in signals},
            },
            "tasks": tasks,
        }
    )


def label_values(expression: str, **columns: list[float | None]) -> list[float | None]:
    dataset = tasks_over(list(columns), {"e": {"kind": "regression", "label": expression, "relevant": "1 > 0"}})
    table = interactions_with(**columns)
    labels.check_labels(table, dataset)
    found = labels.label_interactions(table, dataset).execute()["e"]
    return [None if pd.isna(value) else round(value, 9) for value in found]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("save or share", [0, 1, 1, None]),
        ("save and not share", [0, 1, 0, 0]),
        ("(hours >= 1) + (hours >= 5)", [0, 1, 2, 2]),
        ("max(hours, 2) - min(hours, 2, 4)", [2, 0, 7, 3]),
        ("abs(-hours)", [0, 2, 9, 5]),
        ("log1p(hours) - log(hours + 1) + exp(0) * hours", [0, 2, 9, 5]),
        ("is_missing(share) + hours", [0, 2, 9, 6]),
        ("(hours > 1) == (save > 0)", [1, 1, 0, 0]),
        ("`hours`", [0, 2, 9, 5]),
    ],
)
def test_expressions_calculate_with_yes_and_no(expression: str, expected: list[float | None]) -> None:
    found = label_values(expression, save=[0, 1, 0, 0], share=[0, 0, 1, None], hours=[0, 2, 9, 5])
    assert found == expected


@pytest.mark.parametrize("name", ["return", "class", "lambda", "None", "log", "max", "观看", "ﬁt"])
def test_signals_may_have_names_that_mean_something_elsewhere(name: str) -> None:
    assert label_values(f"{name} + 1", **{name: [0, 1]}) == [1, 2]


@pytest.mark.parametrize("name", ["add.to.cart", "add to cart", "like/love", "3rd", "a-b"])
def test_names_that_are_no_words_stand_between_backticks(name: str) -> None:
    assert label_values(f"`{name}` * 2", **{name: [0, 1]}) == [0, 2]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("hours == '5'", ["compares a number with a text", "'hours == '5''", "without quotes"]),
        ("1 < hours < '5'", ["compares a number with a text", "hours"]),
        ("save or 'a'", ["takes a text", "''a''"]),
        ("hours + 'a'", ["calculates with a text", "in ''a''"]),
        ("hours or save", ["takes 'hours' for yes or no", "hours > 0", "hours: 9"]),
        ("not hours", ["takes 'hours' for yes or no"]),
        ("hours / save", ["not a finite number", "hours: 1.0, save: 0.0", "dataset.tasks.e.asked"]),
        ("save / save", ["not a finite number", "row 1 (line 2)"]),
        ("log(save)", ["not a finite number"]),
        ("log1p(-hours)", ["not a finite number"]),
        ("exp(hours * 1000)", ["not a finite number"]),
        ("hours * 1e38 * 100", ["not a finite number"]),
        ("hours / save > 1", ["not a finite number"]),
        ("hours > 1 >", ["not an expression", "after 'hours > 1 >'"]),
        ("hours if save else 1", ["something other than", "hours if save else 1"]),
        ("hours is None", ["something other than"]),
        ("hours ** 2", ["something other than", "'hours ** 2'"]),
        ("sqrt(hours)", ["something other than", "log1p"]),
        ("log(hours, 2)", ["gives log 2 values", "one value"]),
        ("max(hours)", ["gives max 1 values", "two values or more"]),
        ("1e999 * hours", ["something other than"]),
        ("huors > 1", ["'huors'", "hours", "backticks"]),
        ("'a'", ["is a text"]),
    ],
)
def test_expressions_without_a_meaning_are_refused_at_their_place(expression: str, said: list[str]) -> None:
    with pytest.raises((SettingsError, DataError)) as raised:
        label_values(expression, save=[0, 1, 0, 1], share=[0, 0, 1, 1], hours=[1, 2, 9, 5])
    for part in [*said, "dataset.tasks.e.label", expression]:
        assert part in str(raised.value)


def test_asked_and_relevant_take_flags_and_nothing_else() -> None:
    table = interactions_with(save=[0, 1, 1, 1], hours=[1, 2, 0, 5])
    dataset = tasks_over(
        ["save", "hours"],
        {"e": {"kind": "regression", "label": "hours / save", "asked": "save", "relevant": "save"}},
    )
    labels.check_labels(table, dataset)
    found = labels.label_interactions(table, dataset).execute()
    assert found["relevant_e"].tolist() == [False, True, True, True]
    assert found["e"].isna().tolist() == [True, False, False, False]
    for place in ("asked", "relevant"):
        task = {"kind": "regression", "label": "hours", "relevant": "save", place: "hours"}
        with pytest.raises(DataError, match="takes 'hours' for yes or no") as raised:
            labels.check_labels(table, tasks_over(["save", "hours"], {"e": task}))
        assert f"dataset.tasks.e.{place}" in str(raised.value)
        assert raised.value.rows == [1, 3]


@pytest.mark.parametrize(
    ("kind", "label", "said"),
    [
        ("binary", "hours", "range from 0 to 9"),
        ("binary", "hours / 9", r"range from 0 to 1 \(1 are neither\)"),
        ("binary", "hours >= 0", "range from 1 to 1"),
        ("regression", "hours * 0", "the label is 0 on every"),
        ("regression", "(hours >= 0) + 1", "the label is 2 on every"),
        # Equal as the numbers of 32 bits that models calculate with.
        ("regression", "1600000000 + hours", "the label is 1.6e\\+09 on every"),
    ],
)
def test_labels_that_nothing_can_be_learnt_of_are_refused(kind: str, label: str, said: str) -> None:
    dataset = tasks_over(["hours"], {"e": {"kind": kind, "label": label, "relevant": "1 > 0"}})
    with pytest.raises(SettingsError, match=said):
        labels.check_labels(interactions_with(hours=[0, 3, 9, 9]), dataset)


# Funnels ---------------------------------------------------------------------------------------------------------------


def funnel(**handling: str) -> DatasetSettings:
    tasks: dict[str, Any] = {
        "view": {"kind": "retrieval", "label": "view"},
        "cart": {"kind": "retrieval", "label": "cart", "after": "view"},
        "buy": {"kind": "binary", "label": "buy", "after": "cart"},
    }
    for name, value in handling.items():
        tasks[name]["contradictions"] = value
    return tasks_over(["view", "cart", "buy"], tasks)


@pytest.mark.parametrize(
    ("task", "training", "test", "said"),
    [
        ("regression", [3, 3], [1, 5], r"on the temporal split: the label is 3 on every training row"),
        ("binary", [1, 1], [0, 1], r"on the temporal split: the label is 1 on every training row"),
        ("retrieval", [None, None], [1, 1], r"on the temporal split: none of its training rows has a label"),
        ("regression", [1, 5], [None, None], r"no test row of any split has a label"),
    ],
)
def test_parts_that_nothing_can_be_learnt_or_measured_of_are_refused(
    task: str, training: list[float | None], test: list[float | None], said: str
) -> None:
    dataset = tasks_over(["r"], {"e": {"kind": task, "label": "r", "relevant": "r > 3"}})
    parts = [(["random", *["temporal"] * 2, "random"], [1, *training, 2]), (["temporal"] * 2, test)]
    tables = [ibis.memtable(pa.table({"split": split, "e": pa.array(own, pa.float64())})) for split, own in parts]
    with pytest.raises(SettingsError, match=said):
        labels.check_parts(*tables, dataset)


def test_rows_that_contradict_a_funnel_are_handled_as_declared_and_counted() -> None:
    table = interactions_with(view=[1, 1, 0, 0], cart=[1, 0, 1, 0], buy=[1, 0, 0, 1])
    with pytest.raises(DataError, match="'buy' is positive and 'cart'") as raised:
        labels.settle_contradictions(table, funnel())
    assert raised.value.rows == [3]
    assert "dataset.tasks.buy.contradictions" in str(raised.value)

    left, done = labels.settle_contradictions(table, funnel(buy="drop", cart="drop"))
    assert left.order_by("row").execute()["row"].tolist() == [0, 1]
    assert [rows for *_, rows in done] == [1, 1]

    kept, done = labels.settle_contradictions(table, funnel(buy="keep", cart="keep"))
    assert int(kept.count().execute()) == 4
    assert [rows for *_, rows in done] == [1, 1]

    # A purchase implies the cart, and that cart the view.
    implied = funnel(buy="imply", cart="imply")
    _, done = labels.settle_contradictions(table, implied)
    assert [rows for *_, rows in done] == [1, 2]
    found = labels.label_interactions(table, implied).execute()
    assert found["cart"].fillna(0).tolist() == [1, 0, 1, 1]
    assert found["view"].fillna(0).tolist() == [1, 1, 1, 1]
    assert found["relevant_view"].all()
    with pytest.raises(DataError, match="'cart' is positive and 'view'"):
        labels.settle_contradictions(table, funnel(buy="imply"))


def test_contradictions_reach_the_report_of_what_was_dropped(write: Write) -> None:
    rows = [(u, i, "1", str(n)) for n, (u, i) in enumerate((u, i) for u in "abcdefg" for i in "xyz")]
    dataset = described(
        tasks={
            "view": {"kind": "binary", "label": "score < 5"},
            "buy": {"kind": "binary", "label": "score > 3", "after": "view", "contradictions": "drop"},
        }
    )
    changed = [("h", "x", "9", "99"), ("h", "y", "4", "98"), *rows]
    with pytest.raises(SettingsError, match="'view' cannot be learnt"):  # What is left has no negative of it.
        prepare(write, dataset, lines(changed))
    tasks = dataset.model_dump()["tasks"]
    interactions, *_, report = prepare(
        write, described(tasks={**tasks, "view": {"kind": "retrieval", "label": "score < 5"}}), lines(changed)
    )
    assert len(interactions) == len(rows) + 1
    assert report == {
        (
            "raw_interactions",
            "'buy' is positive and 'view', which it comes after, is not: the row is dropped",
        ): 1
    }


# Signals, numbers and times --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["Infinity", "-inf", "1e400", "nan", "1_000"])
@pytest.mark.parametrize("place", ["signal", "time", "feature"])
def test_numbers_are_finite_or_their_row_is_named(write: Write, bad: str, place: str) -> None:
    row = {"signal": ("h", "x", bad, "60"), "time": ("h", "x", "1", bad), "feature": ("h", "x", "1", "60")}[place]
    age = bad if place == "feature" else "30"
    users = "u,age\n" + "".join(f"{user},{age if user == 'h' else 20}\n" for user in "abcdefgh")
    dataset = described(users={"user_id": "u", "features": {"age": {"kind": "numeric", "column": "age"}}})
    with pytest.raises(DataError, match="finite") as raised:
        prepare(write, dataset, lines([*BASE_ROWS, row]), users=users)
    assert repr(bad) in str(raised.value)
    assert raised.value.rows == [7 if place == "feature" else len(BASE_ROWS)]


def test_words_for_yes_and_no_are_numbers(write: Write) -> None:
    rows = [("a", "x", "True", "1"), ("a", "y", "false", "2"), ("b", "x", "TRUE", "3")]
    rows += [(user, item, "False", "4") for user in "cdefg" for item in "xyz"]
    interactions, *_ = prepare(write, described(), lines(rows))
    assert interactions["score"].tolist()[:4] == [1, 0, 1, 0]
    declared = {"column": "s", "true_values": ["yes", "J"], "false_values": ["no"]}
    rows = [(u, i, {"True": "yes", "TRUE": "J"}.get(s, "no"), t) for u, i, s, t in rows]
    interactions, *_ = prepare(write, described(interactions__signals__score=declared), lines(rows))
    assert interactions["score"].tolist()[:4] == [1, 0, 1, 0]
    with pytest.raises(DataError, match="true_values"):
        prepare(write, described(), lines(rows))
    with pytest.raises(ValidationError, match="both one of"):
        Signal(column="s", true_values=["1"], false_values=["1"])


def test_decimal_commas_are_read_where_declared_and_named_where_not(write: Write) -> None:
    rows = [(u, i, "2,5", f"{n},25") for n, (u, i) in enumerate((u, i) for u in "abcdefg" for i in "xyz")]
    text = lines(rows).replace("2,5", "2c5").replace(",", ";").replace("2c5", "2,5").replace(";25", ",25")
    users = "u;age\n" + "".join(f"{user};30,5\n" for user in "abcdefg")
    features = {"age": {"kind": "numeric", "column": "age"}}

    def tables(decimal: str, side: str) -> dict[str, Any]:
        dataset = described(
            users={"user_id": "u", "features": features, "decimal": side},
            interactions__decimal=decimal,
            interactions__signals={"score": {"column": "s", "missing_values": [9.5]}},
        )
        (Path(write("")).parent / "users.csv").write_text(users)
        (Path(write("")).parent / "i.csv").write_text(text)
        folder = Path(write("")).parent
        return {
            "interactions": nodes.standardise_interactions(
                RawTable(filepath=str(folder / "i.csv"), delimiter=";").load(), dataset
            ),
            "users": nodes.standardise_users(
                RawTable(filepath=str(folder / "users.csv"), delimiter=";").load(), dataset
            ),
            "items": nodes.standardise_items(None, None, None, dataset),
            "dataset": dataset,
            "split_settings": SplitSettings(strategies=["random"], seed=1, folds=2),
        }

    interactions, own, *_ = nodes.validate_tables(**tables(",", ","))
    assert interactions.execute()["score"].unique().tolist() == [2.5]
    assert interactions.execute()["timestamp"].tolist()[1] == 1.25
    assert own.execute()["age"].unique().tolist() == [30.5]
    with pytest.raises(DataError, match=r"dataset\.interactions\.decimal"):
        nodes.validate_tables(**tables(".", ","))
    with pytest.raises(DataError, match=r"dataset\.users\.decimal"):
        nodes.validate_tables(**tables(",", "."))


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        ("2020-09-13T12:26:40Z", "%Y-%m-%dT%H:%M:%S%z", "2020-09-13T12:26:40"),
        ("2020-09-13T12:26:40+02:00", "%Y-%m-%dT%H:%M:%S%z", "2020-09-13T10:26:40"),
        ("2020-09-13 00:26:40 -0330", "%Y-%m-%d %H:%M:%S %z", "2020-09-13T03:56:40"),
        ("2020-09-13 12:26:40+00", "%Y-%m-%d %H:%M:%S%z", "2020-09-13T12:26:40"),
        ("2020-09-13 12:26:40.125", "%Y-%m-%d %H:%M:%S.%f", "2020-09-13T12:26:40.125"),
        ("09/13/2020 12:26:40 AM", "%m/%d/%Y %I:%M:%S %p", "2020-09-13T00:26:40"),
        ("9/13/2020 12:26 p.m.", "%m/%d/%Y %I:%M %p", "2020-09-13T12:26:00"),
        ("13 Sep 2020 11pm", "%d %b %Y %I%p", "2020-09-13T23:00:00"),
        ("Sun Sep 13 12:26:40 +0000 2020", "%a %b %d %H:%M:%S %z %Y", "2020-09-13T12:26:40"),
    ],
)
def test_times_of_day_and_zones_are_read(text: str, form: str, expected: str) -> None:
    table = ibis.memtable({"text": [text]})
    found = dates.seconds(table.text, dates.check_formats([form])).execute().iloc[0]
    assert found == np.datetime64(expected, "ms").astype(float) / 1000


@pytest.mark.parametrize("form", ["%Y %I:%M", "%Y %H:%M %p", "%Y-%m-%d %Y"])
def test_forms_of_time_that_contradict_themselves_are_refused(form: str) -> None:
    with pytest.raises(ValueError, match=r"%I|twice"):
        dates.check_formats([form])


def test_times_with_a_zone_are_the_same_on_every_machine(tmp_path: Path) -> None:
    times = pd.to_datetime(["2020-07-01 12:00:00", "2020-12-01 12:00:00.5"], format="ISO8601").tz_localize(
        "Europe/Oslo"
    )
    pd.DataFrame({"t": times}).to_parquet(tmp_path / "t.parquet")
    code = (
        "from multitask_recommender.raw_tables import RawTable; "
        f"print(RawTable(filepath={str(tmp_path / 't.parquet')!r}, file_format='parquet').load().execute()['t'].tolist())"
    )
    for zone in ("UTC", "America/New_York", "Asia/Kolkata"):
        environment = {**os.environ, "TZ": zone}
        shown = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
        )
        assert shown.stdout.strip().endswith("['2020-07-01 10:00:00+00', '2020-12-01 11:00:00.5+00']")


# Identifiers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ["\u00a0a", "a\u200b", "\ufeffa\u3000", "\u2060a"])
def test_characters_that_cannot_be_seen_make_no_other_user_and_are_counted(write: Write, odd: str) -> None:
    rows = [(odd, "z", "1", "60"), *BASE_ROWS, ("b", f"z{odd.replace('a', '')}", "1", "61")]
    interactions, users, items, report = prepare(write, described(), lines(rows))
    assert users["user_id"].tolist() == list("abcdefg")
    assert items["item_id"].tolist() == list("xyz")
    assert len(interactions) == len(rows)
    assert list(report.values()) == [1, 1]
    table = "u,age\n" + "".join(f"{odd if user == 'a' else user},30\n" for user in "abcdefg")
    described_users = described(users={"user_id": "u"})
    *_, report = prepare(write, described_users, users=table)
    assert report == {("raw_users", "read without characters around or in 'u' that cannot be seen"): 1}


def test_identifiers_that_became_floats_are_read_as_declared(write: Write) -> None:
    rows = [(user, item, "1", "50") for user in "abcdefg" for item in ("9.0", "12.0")]
    table = "i\n9\n12\n"
    with pytest.raises(DataError, match=r"item_id_integer") as raised:
        prepare(write, described(items={"item_id": "i"}), lines(rows), items=table)
    assert "_length" not in str(raised.value)
    dataset = described(items={"item_id": "i"}, interactions__item_id_integer=True)
    interactions, *_ = prepare(write, dataset, lines(rows), items=table)
    assert set(interactions["item_id"]) == {"9", "12"}
    # The other way round, and for users.
    rows = [(user, item, "1", "50") for user in "1234567" for item in "xyz"]
    users = "u\n" + "".join(f"{user}.00\n" for user in "1234567")
    with pytest.raises(DataError, match=r"dataset\.users\.id_integer"):
        prepare(write, described(users={"user_id": "u"}), lines(rows), users=users)
    _, found, *_ = prepare(write, described(users={"user_id": "u", "id_integer": True}), lines(rows), users=users)
    assert found["user_id"].tolist() == list("1234567")
    # With an exponent, as some programs write large whole numbers.
    rows = [(user, item, "1", "50") for user in "abcdefg" for item in ("1e+05", "1.2e+05", "x1e+05", "7e-1")]
    table = "i\n100000\n120000\nx1e+05\n7e-1\n"
    with pytest.raises(DataError, match=r"exponent.*item_id_integer"):
        prepare(write, described(items={"item_id": "i"}), lines(rows), items=table)
    interactions, *_ = prepare(write, dataset, lines(rows), items=table)
    assert set(interactions["item_id"]) == {"100000", "120000", "x1e+05", "7e-1"}


# Repeated pairs and several files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handling", "expected"),
    [("sum", 6.0), ("mean", 2.0), ("minimum", 1.0), ("maximum", 3.0), ("count", 3.0)],
)
def test_repeated_pairs_become_one_row_as_declared(write: Write, handling: str, expected: float) -> None:
    rows = [("a", "x", "1", "99"), ("a", "x", "2", "5"), *BASE_ROWS]  # The third stands among the others.
    interactions, *_, report = prepare(write, described(interactions__duplicates=handling), lines(rows))
    pair = interactions.query("user_id == 'a' and item_id == 'x'")
    assert pair["timestamp"].tolist() == [99]
    assert pair["count" if handling == "count" else "score"].tolist() == [expected]
    assert list(report.values()) == [2]
    assert handling in next(reason for _, reason in report)


def test_one_event_of_a_pair_cannot_be_kept() -> None:
    events = {"column": "what", "kinds": {"viewed": "view"}}
    with pytest.raises(ValidationError, match="would keep one event"):
        described(interactions={"user_id": "u", "item_id": "i", "events": events, "duplicates": "last"})


def test_a_signal_belongs_to_the_file_it_stands_in(tmp_path: Path) -> None:
    pairs = [(u, i) for u in "abcdefg" for i in "xyz"]
    (tmp_path / "view.csv").write_text("u,i,n\n" + "".join(f"{u},{i},1\n" for u, i in pairs))
    (tmp_path / "rate.csv").write_text(
        "u,i,n\n" + "".join(f"{u},{i},{3 + n % 3}\n" for n, (u, i) in enumerate(pairs[:9]))
    )
    raw = RawTable(filepath=tmp_path.as_posix(), files={"view": "view.csv", "rate": "rate.csv"}).load()

    def labelled(**signal: Any) -> pd.DataFrame:
        dataset = described(
            interactions={
                "user_id": "u",
                "item_id": "i",
                "events": {"column": "(file)", "kinds": {"view": "view", "rate": "rate"}},
                "signals": {"rating": {"column": "n", **signal}},
            },
            tasks={"rating": {"kind": "regression", "label": "rating", "relevant": "rating >= 4"}},
        )
        tables = nodes.validate_tables(
            nodes.standardise_interactions(raw, dataset),
            nodes.standardise_users(None, dataset),
            nodes.standardise_items(None, None, None, dataset),
            dataset,
            SplitSettings(strategies=["random"], seed=1, folds=2),
        )
        return nodes.label_interactions(tables[0], dataset).execute()

    with pytest.raises(DataError, match=r"stands in the files rate, view") as raised:
        labelled()
    assert "dataset.interactions.signals.rating.files" in str(raised.value)
    found = labelled(files=["rate"])["rating"]
    assert (found.notna().sum(), found.min()) == (9, 3)
    assert labelled(files=["rate", "view"])["rating"].notna().sum() == len(pairs) + 9
    with pytest.raises(DataError, match="names 'rates'; the table has the files rate, view"):
        labelled(files=["rates"])


# Names -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["fold", "Split", "item", "position", "part", "relevant_read", "READ", " read", "a\nb", "", "self"]
)
def test_names_of_tasks_that_cannot_be_columns_are_refused(name: str) -> None:
    task = {"kind": "binary", "label": "score > 3"}
    with pytest.raises(ValidationError, match="tasks cannot be called"):
        described(tasks={"read": {"kind": "retrieval"}, name: task})


@pytest.mark.parametrize("name", ["forward", "apply", "type", "add.to.cart", "like/love", "return", "to read", "名"])
def test_other_names_of_tasks_are_columns(write: Write, name: str) -> None:
    dataset = described(tasks={"read": {"kind": "retrieval"}, name: {"kind": "binary", "label": "score > 3"}})
    prepare(write, dataset)


@pytest.mark.parametrize(
    "name", ["item", "Row", "event", "raw_score", "Score", "and", "not", "True", "file", "self", "(row)"]
)
def test_names_of_signals_that_mean_something_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="signals cannot be called"):
        described(interactions__signals={"score": {"column": "s"}, name: {"column": "t"}})


@pytest.mark.parametrize("name", ["place", "number", "value", "by", "x/y"])
def test_other_names_of_features_are_columns(write: Write, name: str) -> None:
    feature = {"kind": "category", "column": "city"}
    dataset = described(users={"user_id": "u", "features": {name: feature}})
    users = prepare(write, dataset, users="u,city\n" + "".join(f"{user},in {user}\n" for user in "abcdefg"))[1]
    assert users[name].tolist() == [f"in {user}" for user in "abcdefg"]


@pytest.mark.parametrize("name", ["Title", "AGE", "raw_age", "row", "self", "(place)"])
def test_names_of_features_that_mean_something_are_refused(name: str) -> None:
    numeric = {"kind": "numeric", "column": "age"}
    with pytest.raises(ValidationError, match="features of users cannot be called"):
        described(users={"user_id": "u", "features": {"age": numeric, name: numeric}})
    with pytest.raises(ValidationError, match="features of users cannot be called"):
        described(users={"user_id": "u", "features": {"age": numeric}, "activity": "Age"})


@pytest.mark.parametrize(
    "changed",
    [
        {"interactions__signals__score": {"column": "s", "missing_values": [False]}},
        {"interactions__signals__score": {"column": "s", "true_values": [True]}},
        {"interactions__user_id": False},
        {"interactions__events": {"column": "e", "kinds": {"view": True}}},
        {"interactions__events": {"column": "e", "kinds": {True: "view"}}},
        {"users": {"user_id": "u", "features": {"f": {"kind": "category", "column": "c", "missing_values": [False]}}}},
        {"name": True},
        {"tasks__read": {"kind": "retrieval", "label": True}},
        {"tasks": {True: {"kind": "retrieval"}}},
    ],
)
def test_words_that_yaml_reads_as_truth_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="put the word in quotes"):
        described(**changed)


@pytest.mark.parametrize("options", [{"missing_values": [False]}, {"missing_values": [None]}, {"columns": ["u", True]}])
def test_words_that_yaml_reads_otherwise_are_refused_in_the_catalog(write: Write, options: Any) -> None:
    with pytest.raises(ValueError, match="put the word in quotes"):
        RawTable(filepath=write("u\n1\n"), **options)


@pytest.mark.parametrize("pattern", [r"(\d{4})(?=\)\s*$)", r"(?<=a)(b)", r"(a)\1", r"(\d"])
def test_patterns_that_the_engine_does_not_know_are_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match=r"cannot be used.*RE2"):
        Feature(kind="category", column="c", pattern=pattern)


# Raw files -------------------------------------------------------------------------------------------------------------


def test_lists_are_lists_and_parts_are_stripped(tmp_path: Path, write: Write) -> None:
    items = [
        {"i": "x", "g": ["A, b", " C "], "w": "A , C"},
        {"i": "y", "g": [], "w": "C,,"},
        {"i": "z", "g": None, "w": " "},
    ]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "i.json").write_text(json.dumps(items, indent=1))
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "i.parquet")
    features = {
        "several": {"kind": "categories", "column": "g"},
        "words": {"kind": "text", "column": "g"},
        "cut": {"kind": "categories", "column": "w", "separator": ","},
    }
    dataset = described(items={"item_id": "i", "features": features})
    for name, form in (("i.jsonl", "json_lines"), ("i.json", "json_lines"), ("i.parquet", "parquet")):
        raw = RawTable(filepath=str(tmp_path / name), file_format=form).load()  # type: ignore[arg-type]
        found = nodes.standardise_items(raw, None, None, dataset).order_by("item_id").execute()
        assert list(found["several"][0]) == ["A, b", "C"]
        assert list(found["words"][0]) == ["a", "b", "c"]
        assert [list(own) if own is not None else [] for own in found["cut"]] == [["A", "C"], ["C"], []]
        one = described(items={"item_id": "i", "features": {"f": {"kind": "category", "column": "g"}}})
        with pytest.raises(DataError, match="'g' holds lists of values"):
            nodes.standardise_items(raw, None, None, one)
    with pytest.raises(DataError, match=r"'g' holds lists.*dataset\.items\.item_id"):
        nodes.standardise_items(raw, None, None, described(items={"item_id": "g"}))


def test_texts_of_lists_as_programs_write_them_are_lists(write: Write) -> None:
    texts = {
        "a": ("['Action', 'Sci-Fi, old', \"Rock 'n' Roll\"]", ["Action", "Sci-Fi, old", "Rock 'n' Roll"]),
        "b": ('["Action"]', ["Action"]),
        "c": ("[8, 12 ,3]", ["8", "12", "3"]),
        "d": ("[]", []),
        "e": ("('x', 'y',)", ["x", "y"]),
        "f": ("(no genres listed)", ["(no genres listed)"]),
        "g": ("plain|[new] wave", ["plain", "[new] wave"]),
    }
    raw = ibis.memtable({"i": list(texts), "g": [text for text, _ in texts.values()]})
    feature = {"kind": "categories", "column": "g", "separator": "|"}
    dataset = described(items={"item_id": "i", "features": {"g": feature}})
    found = nodes.standardise_items(raw, None, None, dataset).order_by("item_id").execute()
    assert {i: list(own) for i, own in zip(found["item_id"], found["g"], strict=True)} == {
        i: wanted for i, (_, wanted) in texts.items()
    }


def test_json_keeps_keys_of_any_case_and_form(write: Write) -> None:
    text = '{"b": null, "a.b": 1, "x/y": true}\n{"x/y": {"k": 1}, "c~d": "t", "tags": ["u", 2]}\n{"tags": "one"}\n'
    raw = RawTable(filepath=write(text), file_format="json_lines").load()
    frame = raw.order_by(ROW).execute()
    assert list(frame.columns)[:5] == ["b", "a.b", "x/y", "c~d", "tags"]
    assert frame["x/y"].tolist()[:2] == ["true", '{"k":1}']
    assert [list(own) for own in frame["tags"][1:]] == [["u", "2"], ["one"]]


@pytest.mark.parametrize("form", ["csv", "json_lines", "parquet"])
def test_columns_that_differ_in_case_are_told_apart_or_refused(write: Write, tmp_path: Path, form: Any) -> None:
    texts = {"csv": "id,Id\na,b\n", "json_lines": '{"id": "a", "Id": "b"}\n'}
    path = write(texts.get(form, ""))
    if form == "parquet":
        pq.write_table(pa.table({"id": ["a"], "Id": ["b"]}), path)
    message = str(refused(RawTable(filepath=path, file_format=form)))
    assert "'id' and 'Id' differ in case alone" in message
    assert "rename: {Id: Id_2}" in message
    assert "'ID', which no file has" in str(
        refused(RawTable(filepath=path, file_format=form, rename={"ID": "x", "Id": "y"}))
    )
    table = RawTable(filepath=path, file_format=form, rename={"Id": "item"})
    assert values(table) == [["a", "b"]]
    assert table.load().columns[:2] == ("id", "item")


def test_lines_before_the_heading_are_passed_over(write: Write) -> None:
    assert values(RawTable(filepath=write('sep=;\r\nid;x\r\n1;"a\r\nb"\r\n'), delimiter=";")) == [["1", "a\nb"]]
    message = str(refused(RawTable(filepath=write("sep=;\nid;x\n1;a\n"))))
    assert "Line 1 says that ';' divides" in message
    assert "set 'delimiter: \";\"'" in message
    text = "Report of 2020\n\nid,id\n1,a\n2\n"
    table = RawTable(filepath=write(text), skip_lines=3, columns=["id", "x"], unreadable="drop")
    assert values(table)[0] == ["1", "a"]
    assert "row 2 (line 5)" in str(refused(RawTable(filepath=write(text), skip_lines=3, columns=["id", "x"])))
    assert "skip_lines" in str(refused(RawTable(filepath=write("id\n"), skip_lines=2)))
    assert "skip_lines: 1" in str(refused(RawTable(filepath=write("id,id\n1,a\n"))))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"u,i\n", mtime=0), r"packed by gzip[\s\S]*ending .gz"),
        (b"PK\x03\x04\x14\0", r"a zip archive or a spreadsheet[\s\S]*as CSV"),
        (b"PAR1\x15\x04", "'file_format: parquet'"),
        ("u,i\n".encode("utf-16"), "'encoding: utf-16'"),
    ],
)
def test_files_that_are_no_text_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=said):
        RawTable(filepath=str(path)).load()


def test_the_line_of_a_bad_row_is_right_after_line_breaks_in_values(write: Write) -> None:
    text = 'u,i\na,"x\n\n y"\n\nb,"q ""r"""\nc\n'
    assert "row 3 (line 7)" in str(refused(RawTable(filepath=write(text))))
    table = RawTable(filepath=write(text), unreadable="drop").load().order_by(ROW).execute()
    assert table[ROW].tolist() == [0, 1, 2]
    whole = RawTable(filepath=write(text.removesuffix("c\n")))
    whole.load()
    assert whole.locate(1) == "row 2"
    gaps = RawTable(filepath=write('{"a": 1}\n\n{"a": 2}\n{"a": \n'), file_format="json_lines")
    assert "row 3 (line 4)" in str(refused(gaps))
    gaps = RawTable(filepath=write('{"a": 1}\n\n{"a": 2}\n'), file_format="json_lines")
    gaps.load()
    assert gaps.locate(1) == "row 2"


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"])
def test_tar_archives_are_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    mode = {".tar": "w", ".tgz": "w:gz"}.get(ending, f"w:{ending.rsplit('.', 1)[-1]}")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, text in (("./in/x.csv", "id\n01\n"), ("./in/y.csv", "id\n02\n")):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    assert values(RawTable(filepath=str(path), member="in/y.csv")) == [["02"]]
    assert len(RawTable(filepath=str(path), files={"x": "in/x.csv", "y": "in/y.csv"}).load().execute()) == 2
    assert "in/x.csv" in str(refused(RawTable(filepath=str(path))))
    assert "in/x.csv" in str(refused(RawTable(filepath=str(path), member="z.csv")))
    if ending.endswith("gz"):
        (tmp_path / "renamed.gz").write_bytes(path.read_bytes())
        assert "no text" in str(refused(RawTable(filepath=str(tmp_path / "renamed.gz"))))
        path.write_bytes(path.read_bytes()[:-30])
        assert "cannot be" in str(refused(RawTable(filepath=str(path), member="in/y.csv")))


def test_flags_in_columns_of_their_own_are_one_feature(write: Write) -> None:
    table = "i,Drama,War,Noir\nx,1,0,1\ny,0,,true\nz,0,0,0\n"
    feature = {"kind": "categories", "columns": ["Drama", "War", "Noir"]}
    _, _, items, _ = prepare(write, described(items={"item_id": "i", "features": {"genres": feature}}), items=table)
    assert [list(own) for own in items["genres"]] == [["Drama", "Noir"], ["Noir"], []]
    with pytest.raises(DataError, match="'genres' must be 0 or 1") as raised:
        prepare(
            write,
            described(items={"item_id": "i", "features": {"genres": feature}}),
            items=table.replace("x,1,0", "x,1,2"),
        )
    assert "War: 2" in str(raised.value)
    assert raised.value.rows == [0]
    with pytest.raises(ValidationError, match="label column"):
        described(items={"item_id": "i", "features": {"f": {"kind": "categories", "columns": ["a", "s"]}}})


# A first description of files that nobody has described ----------------------------------------------------------------


def guessed_pairs() -> list[tuple[int, int]]:
    return [(u, i) for u in range(1, 25) for i in range(1, 21) if (u * 7 + i * 5) % 3]


def test_a_first_description_of_files_runs(project: Project) -> None:
    folder = project.folder / "downloads"
    folder.mkdir()
    rows = [f"{u};{i};{1 + (u + i) % 9 // 2},{(u + i) % 2 * 5};{i % 2};2020-09-{i:02d}" for u, i in guessed_pairs()]
    (folder / "ratings.csv").write_bytes(
        ("Kunde_member;book;rating;saved;when_date\n" + "\n".join(rows) + "\n").encode()
    )
    items = [
        {
            "book": str(i),
            "title": f"Bücher {i} of all",
            "genres": ["a", "bc"[i % 2]],
            "url": f"http://x/{i}",
            "pages": i * 10,
        }
        | {f"f{n}": int(i % (n + 1) == 0) for n in (1, 2, 3)}
        for i in range(1, 21)
    ]
    (folder / "books.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    rows_of_users = [f"{u}\t{'Köln' if u % 2 else 'Oslo'}\t{u:02d}.01.2019" for u in range(1, 25)]
    users = "\n".join(["Kunde_member\tcity\tjoined", *rows_of_users, ""])
    (folder / "members.tsv").write_bytes(users.encode("latin-1"))
    (folder / "README.md").write_text("# Notes")
    written = write_starting_point("guessed", project.folder, folder)
    catalog, parameters = (path.read_text() for path in written[1:])
    assert "README.md" in catalog
    assert "cp1252" in catalog
    code = [line for line in parameters.splitlines() if ": {" in line or "#" in line]
    assert sum("#" in line for line in code) > 0.7 * len(code)
    described = yaml.safe_load(parameters)["dataset"]
    assert described["interactions"]["decimal"] == ","
    assert described["interactions"]["timestamp_formats"] == ["%Y-%m-%d"]
    assert described["items"]["features"]["flags"]["columns"] == ["f1", "f2", "f3"]
    assert described["users"]["features"]["joined"]["formats"] == ["%d.%m.%Y"]
    assert set(described["tasks"]) == {"interact", "like", "rating", "saved"}
    tables = run_data_engineering(project, "guessed")
    assert len(tables["interactions"]) == len(guessed_pairs())
    assert list(tables["items"].set_index("item_id").loc["1", "genres"]) == ["a", "c"]
    before = [path.read_text() for path in written]
    with pytest.raises(FileExistsError, match="nothing was changed"):
        write_starting_point("guessed", project.folder, folder)
    assert [path.read_text() for path in written] == before


def test_a_first_description_of_files_without_headings_and_of_behaviours(project: Project) -> None:
    place_movielens_1m_published(project)
    archive = project.folder / "data/01_raw/movielens_1m/ml-1m.zip"
    write_starting_point("packed", project.folder, archive)
    tables = run_data_engineering(project, "packed")
    assert set(tables["splits"]["split"]) == {"random", "chronological", "everything"}
    assert len(tables["users"]) == 24
    place_retailrocket(project)
    write_starting_point("shop", project.folder, project.folder / "data/01_raw/retailrocket")
    tables = run_data_engineering(project, "shop")
    assert {"view_ecommerce", "purchase_ecommerce"} <= set(tables["interactions"])


def test_a_first_description_knows_interactions_without_a_heading_and_a_name(tmp_path: Path) -> None:
    """As in MovieLens-100k, whose files are u.data, u.user and u.item."""
    (tmp_path / "raw").mkdir()
    rows = [(user, 100 + item, 1 + (user * item) % 5, 10**9 + user + item) for user in range(9) for item in range(7)]
    (tmp_path / "raw" / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    (tmp_path / "raw" / "u.user").write_text("".join(f"{user}|{20 + user}|F|{user}\n" for user in range(9)))
    written = write_starting_point("mine", tmp_path, tmp_path / "raw")
    dataset = yaml.safe_load(written[-1].read_text())["dataset"]
    assert (dataset["interactions"]["user_id"], dataset["interactions"]["item_id"]) == ("u_1", "u_2")
    assert dataset["interactions"]["timestamp"] == "u_4"
    assert "u.data" in (tmp_path / "conf" / "mine" / "catalog.yml").read_text()


@pytest.mark.parametrize(("user", "item"), [("listener", "track_uri"), ("Player", "game"), ("student_id", "Course")])
def test_a_first_description_knows_users_and_items_by_many_names(tmp_path: Path, user: str, item: str) -> None:
    (tmp_path / "raw").mkdir()
    rows = "".join(f"{n % 4},{n},{n % 5}\n" for n in range(20))
    (tmp_path / "raw" / "log.csv").write_text(f"{user},{item},hours\n{rows}")
    written = write_starting_point("mine", tmp_path, tmp_path / "raw")
    names = yaml.safe_load(written[-1].read_text())["dataset"]["interactions"]
    assert (names["user_id"], names["item_id"]) == (user, item)


def test_files_that_nothing_can_be_made_of_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "notes.csv").write_text("a,b\nx,y\n")
    with pytest.raises(ValueError, match=r"notes\.csv: a, b\n  what to do: leave FROM out"):
        write_starting_point("nothing", tmp_path, tmp_path / "raw")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_starting_point("nothing", tmp_path, tmp_path / "absent")
    assert not (tmp_path / "conf").exists()
