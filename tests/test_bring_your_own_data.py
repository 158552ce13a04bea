"""Data sets by configuration alone: layouts of published archives, raw defects, whole runs without time or features."""

from __future__ import annotations

import copy
import gzip
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import yaml
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DatasetError
from omegaconf import OmegaConf
from pydantic import ValidationError

from conftest import ROOT, Project
from multitask_recommender import new_dataset
from multitask_recommender.configuration import merged, without_base_data
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.features import build_features
from multitask_recommender.data.interactions import pair_matrix
from multitask_recommender.foundation.errors import DataError, SettingsError, find_study_error
from multitask_recommender.models.baselines.item_item import ease_weights, keep_largest_weights, multiply
from multitask_recommender.new_dataset import write_starting_point
from multitask_recommender.pipelines.data_engineering import nodes
from multitask_recommender.raw_tables import FAULT, FILE, ROW, RawTable

SPLITS = SplitSettings(strategies=["random"], seed=1, folds=2, random_test_share=0.2)
BASE = "conf/base/parameters_recommender.yml"


def values(table: RawTable) -> list[list[str | None]]:
    """Rows of a raw table in the order of the file, without the columns that it adds."""
    frame = table.load().order_by(ROW).execute().drop(columns=[ROW, FILE, FAULT])
    return frame.astype(object).where(frame.notna(), None).to_numpy().tolist()


def refused(table: RawTable) -> DataError:
    with pytest.raises(DatasetError) as raised:
        table.load()
    error = find_study_error(raised.value)
    assert isinstance(error, DataError)
    return error


@pytest.mark.parametrize(
    ("text", "options", "rows"),
    [
        ("\ufeffid,x\n007,a\n", {}, [["007", "a"]]),
        ("id,x\r\n1,a\r\n\r\n2,b\r\n", {}, [["1", "a"], ["2", "b"]]),
        ('id,x\n1,"a, b"\n2,"say ""hi"""\n', {}, [["1", "a, b"], ["2", 'say "hi"']]),
        ('"id";"x"\n"1";"a \\"b\\"; c"\n', {"delimiter": ";", "escape": "\\"}, [["1", 'a "b"; c']]),
        ('1::"a\n', {"delimiter": "::", "quote": "", "columns": ["id", "x"]}, [["1", '"a']]),
        ('id\tx\n1\t"a\n', {"delimiter": "\t", "quote": ""}, [["1", '"a']]),
        ("id,x\n1,NULL\n2,\n", {"missing_values": ["NULL"]}, [["1", None], ["2", None]]),
        ("id,x\n1,R&amp;B &#39;n&#39; soul\n2,AT&T\n", {"unescape_html": True}, [["1", "R&B 'n' soul"], ["2", "AT&T"]]),
        ("id,x\n1,R&amp;B\n", {}, [["1", "R&amp;B"]]),
        ("id,x\n1,\n2,3\n3,many\n", {}, [["1", None], ["2", "3"], ["3", "many"]]),
    ],
)
def test_text_is_read_as_declared(write: Callable[..., str], text: str, options: Any, rows: list[Any]) -> None:
    assert values(RawTable(filepath=write(text), **options)) == rows


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_encodings(write: Callable[..., str], encoding: str) -> None:
    path = write("id,x\n1,Bücher\n", encoding=encoding)
    assert values(RawTable(filepath=path, encoding=encoding)) == [["1", "Bücher"]]


def test_a_byte_order_mark_is_no_part_of_the_heading(write: Callable[..., str]) -> None:
    assert "id" in RawTable(filepath=write("\ufeffid,x\n007,a\n")).load().columns


def test_json_lines_and_parquet_keep_the_digits(write: Callable[..., str], tmp_path: Path) -> None:
    lines = '{"id": "007", "n": 12345678901234567}\n{"id": 8, "n": 1.50, "tag": ["a"]}\n'
    expected = [["007", "12345678901234567", None], ["8", "1.5", ["a"]]]
    assert values(RawTable(filepath=write(lines, "t.jsonl"), file_format="json_lines")) == expected
    pd.DataFrame({"id": ["007", "8"], "n": [1, 2]}).to_parquet(tmp_path / "t.parquet")
    table = RawTable(filepath=(tmp_path / "t.parquet").as_posix(), file_format="parquet")
    assert values(table) == [["007", "1"], ["8", "2"]]


def test_archives_and_addresses(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/x.csv", "id\n01\n")
        archive.writestr("in/y.csv", "id\n02\n")
    path = (tmp_path / "a.zip").as_posix()
    assert values(RawTable(filepath=path, member="in/y.csv")) == [["02"]]
    both = RawTable(filepath=path, files={"x": "in/x.csv", "y": "in/y.csv"})
    assert both.load().order_by(ROW).execute()[FILE].tolist() == ["x", "y"]
    assert "in/x.csv, in/y.csv" in str(refused(RawTable(filepath=path, member="z.csv")))
    (tmp_path / "a.zip").rename(tmp_path / "b.zip")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "y.csv").write_text("id\n03\n")
    assert values(RawTable(filepath=path, member="in/y.csv")) == [["03"]]
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"id\n04\n"))
    assert values(RawTable(filepath=(tmp_path / "x.csv.gz").as_posix())) == [["04"]]
    with fsspec.open("memory://raw/x.csv", "w") as file:
        file.write("id\n05\n")
    assert values(RawTable(filepath="memory://raw/x.csv")) == [["05"]]


def test_files_with_other_columns_have_nulls(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,x\n1,2\n")
    (tmp_path / "b.csv").write_text("id\n3\n")
    table = RawTable(filepath=tmp_path.as_posix(), files={"a": "a.csv", "b": "b.csv"})
    assert values(table) == [["1", "2"], ["3", None]]
    assert [table.locate(row) for row in (0, 1)] == ["row 1 (line 2) of a.csv", "row 1 (line 2) of b.csv"]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("id,x\n1,2\n3\n4,5\n6,7,8\n", {}, ["fewer values", "row 2 (line 3) and 1 more", "'x'", "unreadable: drop"]),
        ("id,x\n1,2\n\n3\n", {}, ["fewer values", "row 2 (line 4)"]),
        ("id,x\n1,2,3\n", {}, ["more values", "row 1 (line 2)", "delimiter"]),
        ('id,x\n1,2\n2,"a"b\n', {}, ["stray quote", "row 2 (line 3)", "quote"]),
        # A quote that is never closed swallows rows, so it cannot be dropped.
        ('id,x\n1,"2\n3,4\n', {"unreadable": "drop"}, ["stray quote", "row 1 (line 2)", "'quote'"]),
        ("", {}, ["empty", "filepath"]),
        ("id,id\n1,2\n", {}, ["'id' twice", "columns"]),
        ('{"id": 1}\n{"id": 2\n', {"file_format": "json_lines"}, ["not JSON", "row 2 (line 2)", "file_format"]),
        ("id\n1\n", {"file_format": "parquet"}, ["cannot be read", "file_format"]),
    ],
)
def test_text_that_does_not_fit_is_refused(write: Callable[..., str], text: str, options: Any, said: list[str]) -> None:
    path = write(text)
    message = str(refused(RawTable(filepath=path, **options)))
    for part in [path, "catalog", *said]:
        assert part in message


def test_a_wrong_encoding_is_refused_with_its_line(write: Callable[..., str]) -> None:
    message = str(refused(RawTable(filepath=write("id\n1\n2\né\n", encoding="latin-1"))))
    assert "Line 4" in message
    assert "'encoding'" in message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    message = str(refused(RawTable(filepath=(tmp_path / "no.csv").as_posix())))
    assert "no.csv" in message
    assert "'filepath'" in message


def test_dropped_rows_leave_the_numbers_of_the_others(write: Callable[..., str]) -> None:
    table = RawTable(filepath=write("id,x\n1,2\n3\n4,5\n6,7,8\n9,10\n"), unreadable="drop").load().execute()
    good = table[table[FAULT].isna()]
    assert dict(zip(good["id"], good[ROW], strict=True)) == {"1": 0, "4": 2, "9": 4}
    assert table.loc[table[FAULT].notna(), ROW].tolist() == [1, 3]


DESCRIBED: dict[str, Any] = {
    "name": "small",
    "interactions": {"user_id": "u", "item_id": "i", "timestamp": "t", "signals": {"score": {"column": "s"}}},
    "tasks": {"read": {"kind": "retrieval"}},
}


def described(**changed: Any) -> DatasetSettings:
    """The small description with other values at dotted keys (two underscores for a dot)."""
    tree = yaml.safe_load(yaml.safe_dump(DESCRIBED))
    for key, value in changed.items():
        *groups, name = key.split("__")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return DatasetSettings.model_validate(tree)


def raw(write: Callable[..., str], text: str, name: str, **options: Any) -> Any:
    return RawTable(filepath=write(text, f"{name}.csv"), **options).load()


BASE_ROWS = [("a", "x", "3", "10"), ("a", "y", "0", "20"), ("b", "x", "5", "30"), ("b", "y", "4", "40")] + [
    (user, item, "1", "50") for user in "cdefg" for item in "xyz"
]


def lines(rows: list[tuple[str, ...]]) -> str:
    return "u,i,s,t\n" + "".join(",".join(row) + "\n" for row in rows)


def prepare(
    write: Callable[..., str],
    dataset: DatasetSettings,
    interactions: str | None = None,
    users: str | None = None,
    items: str | None = None,
    **options: Any,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[tuple[str, str], int]]:
    """Interactions, users, items and the report of what was left out."""
    text = lines(BASE_ROWS) if interactions is None else interactions
    tables = nodes.validate_tables(
        nodes.standardise_interactions(raw(write, text, "interactions", **options), dataset),
        nodes.standardise_users(None if users is None else raw(write, users, "users"), dataset),
        nodes.standardise_items(None if items is None else raw(write, items, "items"), None, None, dataset),
        dataset,
        SPLITS,
    )
    report = {(row.table, row.reason): row.rows for row in tables[3].itertuples()}
    return (*(table.execute() for table in tables[:3]), report)  # type: ignore[return-value]


def test_without_other_tables_users_and_items_are_those_of_the_interactions(write: Callable[..., str]) -> None:
    interactions, users, items, report = prepare(write, described())
    assert users["user_id"].tolist() == list("abcdefg")
    assert items[["item_id", "title"]].to_numpy().tolist() == [["x", "x"], ["y", "y"], ["z", "z"]]
    assert len(interactions) == len(BASE_ROWS)
    assert report == {}


@pytest.mark.parametrize(("handling", "score", "time"), [("first", 3, 10), ("last", 9, 99), ("maximum", 9, 99)])
def test_repeated_pairs_are_handled_as_declared(
    write: Callable[..., str], handling: str, score: float, time: float
) -> None:
    text = lines([("a", "x", "9", "99"), *BASE_ROWS])
    interactions, _, _, report = prepare(write, described(interactions__duplicates=handling), text)
    pair = interactions.query("user_id == 'a' and item_id == 'x'")
    assert pair[["score", "timestamp"]].to_numpy().tolist() == [[score, time]]
    assert list(report.values()) == [1]
    with pytest.raises(DataError, match=r"earlier row") as raised:
        prepare(write, described(), text)
    assert raised.value.rows == [1]
    assert "dataset.interactions.duplicates" in str(raised.value)


def test_zero_is_no_score_when_declared(write: Callable[..., str]) -> None:
    dataset = described(interactions__signals__score={"column": "s", "minimum": 1, "missing_values": [0]})
    interactions, *_ = prepare(write, dataset)
    assert interactions.query("user_id == 'a' and item_id == 'y'")["score"].isna().all()
    with pytest.raises(DataError, match="'score' must be a number from 1") as raised:
        prepare(write, described(interactions__signals__score={"column": "s", "minimum": 1}))
    assert raised.value.rows == [1]
    assert "dataset.interactions.signals.score" in str(raised.value)


def test_events_stay_or_become_signals_of_pairs(write: Callable[..., str]) -> None:
    text = "u,i,what\n" + "".join(f"{u},{i},view\n" for u in "abcdefg" for i in "xyz") + "a,x,buy\na,x,view\nb,y,hide\n"
    events = {"column": "what", "kinds": {"viewed": "view", "bought": "buy"}}
    interactions = {"user_id": "u", "item_id": "i", "events": events}
    with pytest.raises(DataError, match="hide") as raised:
        prepare(write, described(interactions=interactions), text)
    assert raised.value.rows == [23]
    assert "dataset.interactions.events" in str(raised.value)
    interactions["events"] = {**events, "others": "drop"}
    kept, _, _, report = prepare(write, described(interactions=interactions), text)
    assert len(kept) == 23
    assert kept.query("user_id == 'a' and item_id == 'x'")[["viewed", "bought"]].to_numpy().tolist() == [
        [1.0, 0.0],
        [0.0, 1.0],
        [1.0, 0.0],
    ]
    assert list(report.values()) == [1]
    pairs, _, _, report = prepare(write, described(interactions={**interactions, "duplicates": "maximum"}), text)
    assert len(pairs) == 21
    assert pairs.query("bought == 1")[["user_id", "item_id", "viewed"]].to_numpy().tolist() == [["a", "x", 1.0]]
    assert sorted(report.values()) == [1, 2]


def test_unreadable_rows_are_dropped_and_counted(write: Callable[..., str]) -> None:
    faults = "a,,1,1\nh,x,good,1\ni,x,1,today\nj,x\n"
    interactions, users, _, report = prepare(
        write, described(interactions__unreadable="drop"), lines(BASE_ROWS) + faults, unreadable="drop"
    )
    assert len(interactions) == len(BASE_ROWS)
    assert set(users["user_id"]) == set("abcdefg")
    assert list(report.values()) == [1, 1, 1, 1]
    assert {table for table, _ in report} == {"raw_interactions"}


@pytest.mark.parametrize(("handling", "users", "rows"), [("drop", 6, len(BASE_ROWS) - 3), ("keep", 7, len(BASE_ROWS))])
def test_unknown_users_are_handled_as_declared(write: Callable[..., str], handling: str, users: int, rows: int) -> None:
    table = "u,age\n" + "".join(f"{user},30\n" for user in "abcdef")
    features = {"age": {"kind": "numeric", "column": "age"}}
    declared: dict[str, Any] = {"users": {"user_id": "u", "features": features}}
    interactions, found, _, report = prepare(
        write, described(**declared, interactions__unknown_users=handling), users=table
    )
    assert (len(interactions), len(found)) == (rows, users)
    assert len(report) == 1
    with pytest.raises(DataError, match="'g'") as raised:
        prepare(write, described(**declared), users=table)
    assert "dataset.interactions.unknown_users" in str(raised.value)


def test_a_lost_leading_zero_is_named_and_settled(write: Callable[..., str]) -> None:
    rows = [(user, item, "1", "50") for user in "abcdefg" for item in ("60013117", "374157065")]
    table = "i\n0060013117\n0374157065\n"
    with pytest.raises(DataError, match="is not in raw_items") as raised:
        prepare(write, described(items={"item_id": "i"}), lines(rows), items=table)
    assert "dataset.interactions.item_id_length" in str(raised.value)
    assert raised.value.rows[0] == 0
    dataset = described(items={"item_id": "i"}, interactions__item_id_length=10)
    interactions, *_ = prepare(write, dataset, lines(rows), items=table)
    assert set(interactions["item_id"]) == {"0060013117", "0374157065"}


def test_repeated_identifiers_are_handled_as_declared(write: Callable[..., str]) -> None:
    table = "i,name\nx,old\ny,why\nz,zed\nx,new\n"
    for handling, title in (("first", "old"), ("last", "new")):
        dataset = described(items={"item_id": "i", "title": "name", "duplicates": handling})
        _, _, items, report = prepare(write, dataset, items=table)
        assert items.set_index("item_id").loc["x", "title"] == title
        assert list(report.values()) == [1]
    with pytest.raises(DataError) as raised:
        prepare(write, described(items={"item_id": "i"}), items=table)
    assert raised.value.rows == [3]
    assert "dataset.items.duplicates" in str(raised.value)


ITEMS = """i,year,born,place,words
x,1999,2001-02-28,"Oslo, Viken, Norway",The Old Man
y,0,28.2.1950,"Paris, , France","The, old: sea!"
z,2999,"1 Mar 2001",Lima,Émile's THE
"""


def test_features_of_every_kind(write: Callable[..., str]) -> None:
    dates = {"kind": "date", "column": "born", "formats": ["%Y-%m-%d", "%d.%m.%Y", "%d %b %Y"]}
    place = {"kind": "category", "column": "place", "separator": ","}
    features = {
        "year": {"kind": "numeric", "column": "year", "missing_values": [0], "maximum": 2025},
        "born": dates,
        "age": {**dates, "of_date": "age", "reference": "2026-02-28"},
        "country": {**place, "part": -1},
        "region": {**place, "part": 2},
        "first": {"kind": "category", "column": "words", "pattern": "^([A-Z])"},
        "words": {"kind": "text", "column": "words", "hash_columns": 7},
    }
    dataset = described(items={"item_id": "i", "features": features})
    _, _, items, report = prepare(write, dataset, items=ITEMS)
    items = items.astype(object).where(items.notna(), None)
    assert items["year"].tolist() == [1999.0, None, None]
    assert items["born"].tolist() == [2001.0, 1950.0, 2001.0]
    assert items["age"].tolist() == [25.0, 76.0, 24.0]
    assert items["country"].tolist() == ["Norway", "France", "Lima"]
    assert items["region"].tolist() == ["Viken", None, None]
    assert items["first"].tolist() == ["T", "T", None]
    assert [list(words) for words in items["words"]] == [
        ["the", "old", "man"],
        ["the", "old", "sea"],
        ["émile", "s", "the"],
    ]
    assert report == {("raw_items", "value set to missing: 'year' is outside ..2025"): 1}


def test_words_share_columns_by_md5(write: Callable[..., str]) -> None:
    import hashlib

    import ibis

    features = {"words": {"kind": "text", "column": "words", "hash_columns": 7, "minimum_count": 1}}
    dataset = described(items={"item_id": "i", "features": features})
    training = ibis.memtable({"split": ["s"] * 3, "user": [0, 0, 0], "item": [0, 1, 2]})
    items = ibis.memtable({"item": [0, 1, 2], "words": [["the"], ["sea"], ["émile"]]})
    built = build_features(items, "item", training, dataset)
    assert built is not None
    names = set(built[0].filter(built[0].entities > 0).execute()["value"])
    # The first six hexadecimal digits, least significant first.
    expected = {int(hashlib.md5(word.encode()).hexdigest()[:6][::-1], 16) % 7 for word in ("the", "sea", "émile")}
    assert names == {f"words {number}" for number in expected}


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        ({"kind": "numeric", "column": "words"}, ["must be a number", "'The Old Man'"]),
        ({"kind": "date", "column": "born", "formats": ["%Y-%m-%d"]}, ["%Y-%m-%d", "'28.2.1950'", "formats"]),
    ],
)
def test_unreadable_features_are_refused_or_missing(write: Callable[..., str], feature: Any, said: list[str]) -> None:
    with pytest.raises(DataError) as raised:
        prepare(write, described(items={"item_id": "i", "features": {"f": feature}}), items=ITEMS)
    for part in [*said, "dataset.items.features.f", "unreadable: missing"]:
        assert part in str(raised.value)
    settled = described(items={"item_id": "i", "features": {"f": {**feature, "unreadable": "missing"}}})
    _, _, items, report = prepare(write, settled, items=ITEMS)
    assert sum(report.values()) == items["f"].isna().sum() > 0


def test_timestamps_in_declared_formats(write: Callable[..., str]) -> None:
    rows = [("a", "x", "3", "2004-02-29 23:59:58"), *[(u, i, "1", "01/03/04") for u in "bcdef" for i in "xyz"]]
    dataset = described(interactions__timestamp_formats=["%Y-%m-%d %H:%M:%S", "%d/%m/%y"])
    interactions, *_ = prepare(write, dataset, lines(rows))
    times = interactions.set_index(["user_id", "item_id"])["timestamp"]
    assert times["a", "x"] == pd.Timestamp("2004-02-29 23:59:58").timestamp()
    assert times["b", "x"] == pd.Timestamp("2004-03-01").timestamp()
    with pytest.raises(DataError, match="timestamp_formats") as raised:
        prepare(write, described(), lines(rows))
    assert raised.value.rows == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"items": {"item_id": "i", "features": {"f": {"kind": "numeric", "column": "s"}}}},
            r"dataset\.items\.features\.f\.column is 's', which is a label column.*signals\.score",
        ),
        ({"items": {"title": "name"}}, "item_id"),
        ({"items": {"item_id": "i", "features": {"title": {"kind": "text", "column": "t"}}}}, "cannot be called"),
        ({"interactions__timestamp_formats": ["%Y-%q"]}, "%q"),
        ({"users": {"user_id": "u", "features": {"f": {"kind": "text", "column": "c", "part": 1}}}}, "part"),
    ],
)
def test_bad_descriptions_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        described(**changed)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"kind": "binary", "label": "score >= 0"}, "both 0 and 1"),
        ({"kind": "retrieval", "label": "score > 9"}, "no int"),
    ],
)
def test_a_task_without_labels_is_refused(write: Callable[..., str], task: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as raised:
        prepare(write, described(tasks__odd=task))
    assert "dataset.tasks.odd" in str(raised.value)


def test_an_overlay_with_interactions_replaces_the_data_of_the_base() -> None:
    base = {"dataset": {"users": {"user_id": "x"}}, "splits": {"strategies": ["random", "chronological"], "seed": 1}}
    own = {"dataset": {"interactions": {"user_id": "u", "item_id": "i"}}}
    assert without_base_data(base, own, "parameters") == {"splits": {"strategies": ["random"], "seed": 1}}
    timed = {"dataset": {"interactions": {"user_id": "u", "item_id": "i", "timestamp": "t"}}}
    assert without_base_data(base, timed, "parameters")["splits"] == base["splits"]
    for other in ({"dataset": {"name": "tiny"}}, {"dataset": {"interactions": {"user_id": "u"}}}, {}):
        assert without_base_data(base, other, "parameters") == base
    catalog = {"raw_users": 1, "raw_interactions": 2, "raw_{table}": 3, "users": 4}
    assert without_base_data(catalog, {"raw_interactions": 5}, "catalog") == {"raw_{table}": 3, "users": 4}
    assert without_base_data(catalog, {"users": 5}, "catalog") == catalog


@pytest.mark.parametrize(
    ("base", "overlay"),
    [
        ({"a": {"b": 1, "c": [1, 2]}, "d": 2}, {"a": {"c": [3], "e": {}}}),
        ({"a": {"b": 1}, "c": [1], "d": {"e": None}}, {"a": None, "c": 2, "d": {"e": {"f": 1}}}),
        ({"a": 1, "b": {"c": {"d": 1, "e": 2}}}, {"a": {"x": 1}, "b": {"c": {"e": {"y": []}}}}),
        *(
            tuple(yaml.safe_load((ROOT / path).read_text()) for path in (BASE, f"conf/{name}/parameters.yml"))
            for name in ("test", "retailrocket", "book_crossing")
        ),
    ],
)
def test_overlays_are_merged_as_kedro_merges_them(base: dict[str, Any], overlay: dict[str, Any]) -> None:
    before = copy.deepcopy(base)
    assert merged(base, overlay) == OmegaConf.to_container(OmegaConf.unsafe_merge(base, overlay))
    assert base == before


def test_the_starting_point_is_short_and_never_overwrites(tmp_path: Path) -> None:
    written = write_starting_point("my_books", tmp_path)
    code = [line for path in written for line in path.read_text().splitlines() if line.split("#")[0].strip()]
    assert len(code) < 50
    parameters = yaml.safe_load((tmp_path / "conf/my_books/parameters.yml").read_text())
    DatasetSettings.model_validate(parameters["dataset"])
    before = [path.read_text() for path in written]
    with pytest.raises(FileExistsError, match="nothing was changed"):
        write_starting_point("my_books", tmp_path)
    assert [path.read_text() for path in written] == before
    with pytest.raises(ValueError, match="letters"):
        write_starting_point("../books", tmp_path)


def test_ease_leaves_out_items_without_history_and_small_weights() -> None:
    rng = np.random.default_rng(0)
    user, item = np.unique(rng.integers(0, (30, 12), (200, 2)), axis=0).T
    history = pair_matrix(user, item, (30, 20))  # Items 12 to 19 have no history.
    features = pair_matrix(np.arange(20), np.arange(20) % 3, (20, 3))
    without = ease_weights(history, 5.0, features[:, :0], 1.0)
    # A tiny weight of the features takes the long way, by the whole matrix.
    np.testing.assert_allclose(without, ease_weights(history, 5.0, features, 1e-9), atol=1e-6)
    kept = keep_largest_weights(without, 4)
    dense = kept.toarray()
    assert ((dense != 0).sum(axis=0) <= 4).all()
    for column in range(12):
        largest = np.argsort(-np.abs(without[:, column]))[:4]
        np.testing.assert_array_equal(np.flatnonzero(dense[:, column]), np.sort(largest))
    np.testing.assert_allclose(multiply(history, kept), history.toarray() @ dense, atol=1e-6)


def table_text(rows: list[list[object]], delimiter: str = ",", quote: bool = False) -> str:
    """Rows as text, every value in quotes or none."""
    return "".join(delimiter.join(f'"{value}"' if quote else str(value) for value in row) + "\n" for row in rows)


def pairs(users: int = 24, items: int = 20, each: int = 12) -> list[tuple[int, int]]:
    """Pairs of users and items, numbered from 1, with the even and the odd ones among themselves."""
    rng = np.random.default_rng(3)
    chance = 1 + 3 * (np.arange(users)[:, None] % 2 == np.arange(items)[None, :] % 2)
    return [
        (user + 1, int(item) + 1)
        for user in range(users)
        for item in rng.choice(items, each, replace=False, p=chance[user] / chance[user].sum())
    ]


def place(project: Project, path: str, text: str, encoding: str = "utf-8") -> Path:
    target = project.folder / "data" / "01_raw" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(text.encode(encoding))
    return target


def run_data_engineering(project: Project, name: str) -> dict[str, pd.DataFrame]:
    bootstrap_project(project.folder)
    with KedroSession.create(project_path=project.folder, env=name) as session:
        session.run(pipeline_names=["data_engineering"])
    folder = project.folder / "data" / name
    tables = {path.stem: pd.read_parquet(path) for path in folder.glob("0[345]_*/*.parquet")}
    return tables | {path.stem: pd.read_csv(path) for path in folder.glob("08_reporting/*.csv")}


def movielens_1m_tables() -> dict[str, list[list[object]]]:
    ratings = [[u, i, 1 + (u + i) % 5, 978300000 + 10 * i + u] for u, i in pairs()]
    users = [[u, "FM"[u % 2], [1, 18, 25][u % 3], u % 4, f"0{u:04d}"] for u in range(1, 25)]
    movies = [[i, f"Café {i}, The ({1980 + i})", ["Drama", "Action|Sci-Fi"][i % 2]] for i in range(1, 21)]
    return {"ratings": ratings, "users": users, "movies": movies}


def place_movielens_1m(project: Project) -> None:
    tables = movielens_1m_tables()
    for name in ("users", "movies"):
        place(project, f"movielens_1m/{name}.dat", table_text(tables[name], "::"), "latin-1")
    parts = ["train", "validation", "train", "test", "train", "train"]
    rows = [[*row[:3], parts[place % len(parts)]] for place, row in enumerate(tables["ratings"])]
    text = "user_id,movie_id,rating,part\n" + table_text(rows, ",")
    place(project, "movielens_1m/ratings.csv.gz", "").write_bytes(gzip.compress(text.encode()))


def test_movielens_1m_with_given_parts(project: Project) -> None:
    place_movielens_1m(project)
    tables = run_data_engineering(project, "movielens_1m")
    splits = tables["splits"].merge(tables["interactions"], on="row")
    own = splits[splits["split"] == "given"]
    assert (own["part"] == own["given_part"]).all()
    assert own["part"].value_counts()["train"] == len(tables["behaviour_sequences"].query("split == 'given'"))
    assert tables["dropped_rows"].empty


def place_movielens_1m_published(project: Project) -> None:
    with zipfile.ZipFile(place(project, "movielens_1m/ml-1m.zip", ""), "w") as archive:
        for name, rows in movielens_1m_tables().items():
            archive.writestr(f"ml-1m/{name}.dat", table_text(rows, "::").encode("latin-1"))


def test_movielens_1m_as_published(project: Project) -> None:
    place_movielens_1m_published(project)
    tables = run_data_engineering(project, "movielens_1m_published")
    item = tables["items"].set_index("item_id").loc["3"]
    assert item["title"] == "Café 3, The (1983)"
    assert item["release_year"] == 1983
    assert list(item["genres"]) == ["Action", "Sci-Fi"]
    assert tables["users"].set_index("user_id").loc["5", "region"] == "0"
    assert set(tables["splits"]["split"]) == {"random", "chronological", "temporal", "everything"}
    assert tables["dropped_rows"].empty
    archive = project.folder / "data/01_raw/movielens_1m/ml-1m.zip"
    zipfile.ZipFile(archive).extractall(archive.parent)
    archive.unlink()
    pd.testing.assert_frame_equal(run_data_engineering(project, "movielens_1m_published")["items"], tables["items"])


def place_goodbooks_10k(project: Project, wanted: list[tuple[int, int]]) -> None:
    columns = (
        "book_id,goodreads_book_id,best_book_id,work_id,books_count,isbn,isbn13,authors,original_publication_year,"
        "original_title,title,language_code,average_rating,ratings_count,work_ratings_count,work_text_reviews_count,"
        "ratings_1,ratings_2,ratings_3,ratings_4,ratings_5,image_url,small_image_url"
    )
    books = [
        f'{i},9{i},9{i},8{i},2,43902{i},9.7804390234e+12,"A. Author, B. Writer",{-750.0 if i == 1 else 2000.0 + i},'
        f'Book {i},"Book {i} (Series, #1)",{"" if i == 2 else "eng"},4.3,9,9,9,1,1,1,1,1,http://a,http://b\n'
        for i in range(1, 21)
    ]
    place(project, "goodbooks_10k/books.csv", columns + "\n" + "".join(books))
    ratings: list[list[object]] = [[u, i, 1 + (u + i) % 5] for u, i in pairs()]
    place(project, "goodbooks_10k/ratings.csv", table_text([["user_id", "book_id", "rating"], *ratings]))
    place(project, "goodbooks_10k/to_read.csv", table_text([["user_id", "book_id"], *map(list, wanted)]))


def test_goodbooks_10k_as_published(project: Project) -> None:
    place_goodbooks_10k(project, [(77, 1), (77, 2), (1, 3)])
    tables = run_data_engineering(project, "goodbooks_10k")
    assert list(tables["items"].set_index("item_id").loc["1", "authors"]) == ["A. Author", "B. Writer"]
    assert tables["items"].set_index("item_id").loc["1", "year"] == -750
    wanted = tables["interactions"].query("wanted == 1")
    assert set(zip(wanted["user_id"], wanted["item_id"], strict=True)) == {("77", "1"), ("77", "2"), ("1", "3")}
    labels = tables["labelled_interactions"]
    assert labels["rating"].isna().sum() == labels["like"].isna().sum() == labels["read"].isna().sum() >= 2
    assert "split temporal" in set(tables["left_out"]["what"])


def place_kuairand_pure(project: Project) -> None:
    log = (
        "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
        "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
    )

    def row(u: int, i: int, day: int) -> str:
        bits = [int((u * 7 + i * 3 + day) % n == 0) for n in (2, 5, 7, 6, 8, 9, 3)]
        return f"{u},{i},202204{day:02d},1600,{1649400000000 + day * 86400000 + i}," + (
            ",".join(map(str, bits)) + f",1385,2099{i},0,0,{bits[1]},0,1\n"
        )

    folder = "kuairand_pure/KuaiRand-Pure/data/"
    place(
        project,
        folder + "log_standard_4_08_to_4_21_pure.csv",
        log + "".join(row(u, i, 8 + (5 * u + i) % 14) for u, i in pairs()),
    )
    place(project, folder + "log_standard_4_22_to_5_08_pure.csv", log + row(1, pairs()[0][1], 23) + row(9, 99, 23))
    users = (
        "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
        "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
        "register_days_range," + ",".join(f"onehot_feat{n}" for n in range(18)) + "\n"
    )
    rows = [f'{u},full_active,0,0,0,5,"(0,10]",4,"[1,10)",0,0,107,61-90,' + ",".join("0" * 18) for u in range(1, 25)]
    place(project, folder + "user_features_pure.csv", users + "\n".join(rows) + "\n")
    videos = (
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,"
        "server_height,music_id,music_type,tag\n"
    )
    rows = [f'{i},{i % 4},NORMAL,2022-04-10,LongImport,0.0,,720,1280,91,9.0,"39,{i % 3}"' for i in range(1, 21)]
    place(project, folder + "video_features_basic_pure.csv", videos + "\n".join(rows) + "\n")


def test_kuairand_pure_as_published(project: Project) -> None:
    place_kuairand_pure(project)
    tables = run_data_engineering(project, "kuairand_pure")
    assert tables["users"].set_index("user_id").loc["1", "follows"] == "(0,10]"
    assert list(tables["items"].set_index("item_id").loc["1", "tags"]) == ["39", "1"]
    assert tables["items"].set_index("item_id").loc["1", "upload_year"] == 2022
    assert len(tables["interactions"]) == len(pairs()) + 1
    assert sorted(tables["dropped_rows"]["rows"]) == [1, 1]
    asked = tables["labelled_interactions"][["long_view", "like", "follow", "comment", "forward", "hate"]]
    assert asked.notna().all(axis=None)


def place_book_crossing(project: Project, original: bool) -> None:
    heading: list[list[object]] = [["User-ID", "ISBN", "Book-Rating"]]
    isbn = [f"00{i:07d}X" for i in range(21)]
    ratings: list[list[object]] = [[u, isbn[i], (u + i) % 4 and 4 + (u * i) % 7] for u, i in pairs()]
    users: list[list[object]] = [["User-ID", "Location", "Age"]]
    users += [
        [u, "n/a, ontario, canada" if u == 1 else "oslo, n/a, norway", 200 if u == 2 else 20 + u] for u in range(1, 25)
    ]
    books: list[list[object]] = [["ISBN", "Book-Title", "Book-Author", "Year-Of-Publication", "Publisher"]]
    title = 'The \\"Müller\\"; a book' if original else 'The ""Müller""; a book'
    books += [[isbn[i], title, "A &amp; B", 0 if i == 1 else 1980 + i, f"P{i % 3}"] for i in range(1, 21)]
    if original:
        books = [[*row, "http://images/S.jpg", "http://images/M.jpg", "http://images/L.jpg"] for row in books]
        ratings.append([3, "B0000UNKNOWN", 7])
    delimiter, encoding = (";", "latin-1") if original else (",", "utf-8")
    for name, rows in (("Book-Ratings", heading + ratings), ("Users", users), ("Books", books)):
        text = table_text(rows, delimiter, quote=True)
        if name == "Users" and original:
            text = text.replace('"23"\n', "NULL\n")
        place(project, f"book_crossing/BX-{name}.csv", text, encoding)


@pytest.mark.parametrize("original", [False, True])
def test_book_crossing_in_both_layouts(project: Project, original: bool) -> None:
    place_book_crossing(project, original)
    if original:
        settings = project.folder / "conf/book_crossing/globals.yml"
        text = settings.read_text()
        new = next(line[2:] for line in text.splitlines() if line.startswith("# layout:"))
        settings.write_text("folder: data/book_crossing\n" + new + "\n")
    tables = run_data_engineering(project, "book_crossing")
    users, items = tables["users"].set_index("user_id"), tables["items"].set_index("item_id")
    assert users.loc["1", ["city", "region", "country"]].tolist() == [None, "ontario", "canada"]
    assert users.loc["4", ["city", "region", "country"]].tolist() == ["oslo", None, "norway"]
    assert np.isnan(users.loc["2", "age"])
    assert np.isnan(users.loc["3", "age"]) == original
    assert items.loc["000000001X", "title"] == 'The "Müller"; a book'
    assert items.loc["000000001X", "author"] == "A & B"
    assert np.isnan(items.loc["000000001X", "year"])
    labels = tables["labelled_interactions"].merge(tables["interactions"][["row", "score"]], on="row")
    assert (labels["read"] == 1).all()
    assert (labels["rate"] == (labels["score"] > 0)).all()
    assert (labels["rating"].isna() == (labels["score"] == 0)).all()
    assert (labels["like"].isna() == (labels["score"] == 0)).all()
    assert (labels["relevant_like"] == (labels["score"] >= 8)).all()
    assert (labels["relevant_rating"] == (labels["score"] >= 8)).all()
    assert ("B0000UNKNOWN" in items.index) == original


def place_retailrocket(project: Project) -> None:
    every = pairs()
    for name, rows in (("view", every), ("add_to_cart", every[::2]), ("purchase", [*every[::5], (99, 1)])):
        lines: list[list[object]] = [["visitorid", "itemid", "event"], *([u, i, 1] for u, i in rows)]
        place(project, f"retailrocket/{name}_ecommerce.dat", table_text(lines, "\t"))


def tiny_models(
    project: Project, name: str, splits: dict[str, Any] | None = None, study: dict[str, Any] | None = None
) -> None:
    """Make an overlay's training and pictures as small as those of the tests.

    Args:
        project: The project.
        name: Name of the overlay.
        splits: What is changed of its splits.
        study: What is changed of its study.
    """
    path = project.folder / "conf" / name / "parameters.yml"
    own = yaml.safe_load(path.read_text())
    tiny = yaml.safe_load((project.folder / "conf/test/parameters.yml").read_text())
    for model, block in own.get("models", {}).items():
        shared = tiny["models"].get(model, {})
        settings = {**shared.get("settings", {}), **block.get("settings", {})}
        if "training" in settings:
            settings["training"] = {**settings["training"], "epochs": 2, "batches": 2}
        first = {parameter: values[:1] for parameter, values in block.get("search", {}).items()}
        search = {**(shared.get("search") or {}), **first} or None
        tiny["models"][model] = {**block, **shared, "settings": settings, "search": search}
    tiny["study"] = {**tiny["study"], "core_only": True, **own.get("study", {}), "quick": False, **(study or {})}
    tiny["splits"] = {**own.get("splits", {}), "folds": 2, **(splits or {})}
    path.write_text(yaml.safe_dump({**own, **tiny, "dataset": own["dataset"]}))
    catalog = yaml.safe_load((project.folder / "conf/test/catalog.yml").read_text())
    figures = {entry: described for entry, described in catalog.items() if entry.endswith("_figure")}
    (path.parent / "catalog_small_figures.yml").write_text(yaml.safe_dump(figures))


def test_make_new_dataset_gives_a_study_that_runs(project: Project) -> None:
    write_starting_point("my_books", project.folder)
    interactions: list[list[object]] = [[f"0{u}", f"0{i}", 1 + (u + i) % 5, 100 * i + u] for u, i in pairs()]
    place(
        project, "my_books/interactions.csv", table_text([["user_id", "item_id", "rating", "timestamp"], *interactions])
    )
    users: list[list[object]] = [[f"0{u}", 20 + u, "Oslo"] for u in range(1, 25)]
    place(project, "my_books/users.csv", table_text([["user_id", "age", "city"], *users]))
    items: list[list[object]] = [[f"0{i}", f"Book {i}", f"A{i % 3}", "a|b"] for i in range(1, 21)]
    place(project, "my_books/items.csv", table_text([["item_id", "title", "author", "genres"], *items]))
    tables = run_data_engineering(project, "my_books")
    assert len(tables["interactions"]) == len(interactions)
    assert "01" in set(tables["users"]["user_id"])
    assert set(tables["splits"]["split"]) == {"random", "chronological", "everything"}


def test_new_dataset_by_its_command_says_what_it_wrote_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["new_dataset", "my_books"])
    new_dataset.main()
    said = capsys.readouterr().out
    written = sorted((tmp_path / "conf" / "my_books").iterdir())
    assert sorted(line.removeprefix("wrote ") for line in said.splitlines()[:3]) == [str(path) for path in written]
    assert "kedro run --env my_books --pipelines data_engineering" in said
    before = [path.read_bytes() for path in written]
    for name in ("my_books", "../elsewhere"):
        monkeypatch.setattr("sys.argv", ["new_dataset", name])
        with pytest.raises(SystemExit, match="Error: .*" + re.escape(name)):
            new_dataset.main()
    assert [path.read_bytes() for path in written] == before
    assert not (tmp_path.parent / "elsewhere").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"users.csv": None}, ["users.csv", "does not exist"]),
        ({"users.csv": ""}, ["users.csv", "empty"]),
        ({"interactions.csv": "user_id,item_id,rating,timestamp\n1,2,3\n"}, ["interactions.csv", "row 1 (line 2)"]),
        (
            {"interactions.csv": "user_id,item_id,rating,timestamp\n01,01,9,1\n"},
            ["interactions.csv", "'rating'", "row 1 (line 2)", "dataset.interactions.signals.rating"],
        ),
    ],
)
def test_bad_raw_files_are_one_clear_message(project: Project, spoil: dict[str, str | None], said: list[str]) -> None:
    write_starting_point("my_books", project.folder)
    place(project, "my_books/interactions.csv", "user_id,item_id,rating,timestamp\n01,01,3,1\n")
    place(project, "my_books/users.csv", "user_id,age,city\n01,30,Oslo\n")
    place(project, "my_books/items.csv", "item_id,title,author,genres\n01,B,A,a|b\n")
    for name, text in spoil.items():
        path = place(project, f"my_books/{name}", text or "")
        if text is None:
            path.unlink()
    with pytest.raises(Exception) as raised:  # noqa: PT011 - Kedro wraps what a data set raises.
        run_data_engineering(project, "my_books")
    message = str(find_study_error(raised.value))
    for part in said:
        assert part in message
    assert not list((project.folder / "data/my_books").rglob("*.parquet"))
