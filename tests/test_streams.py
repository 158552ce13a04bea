"""Tables are read, sorted, cached and written a part at a time, and the parts change nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kedro.io import DatasetError

from multitask_recommender import duckdb_engine, raw_tables
from multitask_recommender.data import events, interactions, numbering, streams
from multitask_recommender.data.interactions import Interactions, interactions_of, read_interactions
from multitask_recommender.data.tasks import PairRule, Task
from multitask_recommender.datasets import IbisTable
from multitask_recommender.foundation import resources
from multitask_recommender.raw_tables import RawTable

TASKS = {"click": Task(kind="retrieval"), "rating": Task(kind="regression", label="rating", relevant="rating >= 4")}


@pytest.fixture
def engine(tmp_path: Path) -> duckdb_engine.SpillingBackend:
    return duckdb_engine.EngineFile(str(tmp_path / "table.parquet")).connection


def sequences(users: int = 40, seed: int = 3) -> pd.DataFrame:
    """Behaviour sequences of two splits in order, with items that a user meets twice."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 12, users)
    user = np.repeat(np.arange(users), counts)
    position = np.concatenate([np.arange(count) for count in counts])
    rating = np.where(random.random(len(user)) < 0.3, np.nan, random.integers(1, 6, len(user)))
    own = pd.DataFrame(
        {
            "user": user,
            "position": position,
            "item": random.integers(0, 6, len(user)),
            "time": position * 10.0,
            "fold": random.integers(0, 5, len(user)),
            "click": 1.0,
            "rating": rating,
            "relevant_click": True,
            "relevant_rating": rating >= 4,
        }
    )
    return pd.concat([own.assign(split=split) for split in ("random", "everything")], ignore_index=True)


def same(one: Interactions, other: Interactions) -> bool:
    columns: list[tuple[Any, Any]] = [(one.user, other.user), (one.item, other.item)]
    columns += [(one.fold, other.fold), (one.time, other.time)]
    columns += [(one.labels[task], other.labels[task]) for task in one.labels]
    columns += [(one.relevant[task], other.relevant[task]) for task in one.relevant]
    return all(np.array_equal(own, of_other, equal_nan=True) for own, of_other in columns)


@pytest.mark.parametrize("in_order", [True, False])
def test_rows_are_read_in_order_whatever_the_order_of_the_table(
    in_order: bool, engine: duckdb_engine.SpillingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_ROWS", 2048)
    monkeypatch.setattr(interactions, "_BLOCK", 7)
    table = sequences(2000)
    stored = table if in_order else table.sample(frac=1.0, random_state=1)
    found = read_interactions(
        engine.create_table("in_order" if in_order else "mixed", stored, temp=True), "random", TASKS
    )
    own = table[table["split"] == "random"].sort_values(["user", "position"])
    assert same(found, interactions_of(pa.Table.from_pandas(own, preserve_index=False), TASKS))
    assert found.labels["rating"].dtype == np.float32


def test_tables_that_are_put_together_alike_are_read_once(engine: duckdb_engine.SpillingBackend) -> None:
    rows = sequences(50)
    first, second = (
        engine.create_table(f"part_{place}", rows[rows["user"] % 2 == place], temp=True) for place in (0, 1)
    )

    def together() -> Interactions:
        return read_interactions(ibis.union(first, second), "random", TASKS, mostly_sorted=False)

    found = together()
    assert together() is found
    assert len(found) == (rows["split"] == "random").sum()
    assert len(read_interactions(first, "random", TASKS)) < len(found)


@pytest.mark.parametrize("position", [[0, 1, 0, 1, 2], [0, 1, 1, 0, 2]], ids=["in order", "not in order"])
@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_order_is_seen_across_blocks(position: list[int], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactions, "_BLOCK", block)
    user = np.array([0, 0, 1, 1, 1])
    assert interactions._in_order(user, np.array(position, np.int32)) == (position[2] == 0)


@pytest.mark.parametrize("order", ["time", "item"])
@pytest.mark.parametrize("rule", ["first", "last", "maximum", "mean"])
def test_pairs_are_the_same_made_by_parts(order: events.Order, rule: PairRule, monkeypatch: pytest.MonkeyPatch) -> None:
    table = sequences()
    rows = interactions_of(pa.Table.from_pandas(table[table["split"] == "random"], preserve_index=False), TASKS)
    rules: dict[str, PairRule] = {"click": "maximum", "rating": rule}
    whole = events.as_pairs(rows, rules, order)
    assert len(whole) < len(rows)
    for size in (1, 5, 50):
        monkeypatch.setattr(events, "_ROWS", size)
        assert same(events.as_pairs(rows, rules, order), whole)


def test_rows_that_are_pairs_already_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    table = sequences().drop_duplicates(["split", "user", "item"])
    rows = interactions_of(pa.Table.from_pandas(table[table["split"] == "random"], preserve_index=False), TASKS)
    monkeypatch.setattr(events, "_ROWS", 5)
    assert events.as_pairs(rows, dict.fromkeys(TASKS, "maximum")) is rows


def test_equal_features_have_equal_colours_and_others_others(engine: duckdb_engine.SpillingBackend) -> None:
    random = np.random.default_rng(0)
    age = np.where(random.random(200) < 0.2, np.nan, random.integers(20, 24, 200))
    genres = [sorted(random.choice(["a", "b", "c"], random.integers(0, 3), replace=False)) for _ in range(200)]
    table = pd.DataFrame({"(place)": np.arange(200, dtype=np.int32), "age": age, "genres": genres})
    shuffled = engine.create_table("described", table.sample(frac=1.0, random_state=2), temp=True)
    colours = numbering._first_colours(shuffled, ["age", "genres"], key=9)
    seen: dict[str, int] = {}
    for own, genre, colour in zip(table["age"], genres, colours.tolist(), strict=True):
        assert seen.setdefault(f"{own} {genre}", colour) == colour
    assert len(set(seen.values())) == len(seen) > 10
    assert len(set(numbering._first_colours(shuffled, [], key=9).tolist())) == 1


@pytest.mark.parametrize("rows_at_a_time", [1, 3])
def test_raw_rows_keep_their_places_read_by_parts(
    rows_at_a_time: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"u{n};{n}" if n % 7 else f"u{n}" for n in range(40)]
    (tmp_path / "one.csv").write_text("\n".join(["user;n", *lines]) + "\n")
    (tmp_path / "two.csv").write_text("\n".join(["user;m", "a;1", "b", "c;3"]) + "\n")

    def read() -> pd.DataFrame:
        files = {"first": "one.csv", "second": "two.csv"}
        table = RawTable(filepath=str(tmp_path), files=files, delimiter=";", unreadable="drop").load()
        return table.order_by("(row)").execute()

    whole = read()
    assert whole["(row)"].tolist() == list(range(43))
    assert whole["(row)"][whole["(fault)"].notna()].tolist() == [*range(0, 40, 7), 41]
    assert whole.loc[[3, 42], ["user", "n", "m", "(file)"]].fillna("").to_numpy().tolist() == [
        ["u3", "3", "", "first"],
        ["c", "", "3", "second"],
    ]
    monkeypatch.setattr(raw_tables, "_ROWS", rows_at_a_time)
    pd.testing.assert_frame_equal(read(), whole)


def test_a_cached_table_is_a_file_and_goes_with_its_last_user(engine: duckdb_engine.SpillingBackend) -> None:
    def files() -> set[Path]:
        return set(duckdb_engine.spill_folder().glob("*.parquet"))

    before = files()
    table = engine.create_table("few", pd.DataFrame({"n": [3, 1, 2]}), temp=True)
    cached = table.order_by("n").cache()
    assert len(files() - before) == 1
    assert cached.execute()["n"].tolist() == [1, 2, 3]
    del cached
    assert files() == before


_HOLDS = """
import os, signal, sys
from multitask_recommender.duckdb_engine import spill_folder
print(spill_folder(), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


def test_the_folder_of_a_killed_process_is_removed_by_the_next_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    def start(what: str) -> tuple[subprocess.Popen[str], Path]:
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        command = [sys.executable, "-c", _HOLDS, what]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    living, its_folder = start("living")
    killed, left = start("killed")
    killed.wait()
    assert left.exists()
    last, own = start("living")
    assert not left.exists()
    assert its_folder.exists()
    for process in (living, last):
        process.communicate("")
    assert not its_folder.exists()
    assert not own.exists()


@pytest.fixture
def limit() -> Iterator[None]:
    yield
    resources.limit_memory(None)
    duckdb_engine.renew_limits()


def test_the_engine_keeps_its_limit_of_memory_and_spills(
    engine: duckdb_engine.SpillingBackend, tmp_path: Path, limit: object
) -> None:
    resources.limit_memory(0.3)
    duckdb_engine.renew_limits()
    for connection in (engine.con, duckdb_engine.connect()):
        assert connection.execute("SELECT current_setting('memory_limit')").fetchall() == [("143.0 MiB",)]
    # Its rows are larger than the limit, in an order that has to be made.
    engine.raw_sql(
        "CREATE OR REPLACE TEMP VIEW many AS SELECT hash(i) AS a, md5(i::VARCHAR) AS b FROM range(4000000) r(i)"
    )
    target = IbisTable(filepath=str(tmp_path / "sorted.parquet"))
    target.save(engine.table("many").order_by("a"))
    assert pq.read_metadata(tmp_path / "sorted.parquet").num_rows == 4_000_000


def test_a_limit_too_small_for_a_block_leaves_the_file_as_it_was(
    engine: duckdb_engine.SpillingBackend, tmp_path: Path, limit: object
) -> None:
    target = IbisTable(filepath=str(tmp_path / "table.parquet"))
    target.save(ibis.memtable({"n": [1, 2, 3]}))
    before = (tmp_path / "table.parquet").read_bytes()
    engine.raw_sql(
        "CREATE OR REPLACE TEMP VIEW many AS SELECT hash(i) AS a, md5(i::VARCHAR) AS b FROM range(4000000) r(i)"
    )
    engine.raw_sql("SET memory_limit = '2MB'")
    with pytest.raises(DatasetError) as raised:
        target.save(engine.table("many").order_by("a"))
    assert isinstance(raised.value.__cause__, duckdb.OutOfMemoryException)
    assert (tmp_path / "table.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.parquet"]
    duckdb_engine.renew_limits()
    target.save(ibis.memtable({"n": [4]}))
    assert target.load().execute()["n"].tolist() == [4]


READ = """
import resource, sys
from multitask_recommender.raw_tables import RawTable
for path in sys.argv[1:]:
    RawTable(filepath=path, file_format="parquet").load()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_raw_table_is_never_whole_in_memory(tmp_path: Path) -> None:
    """Ten times as many rows, which are 100 MB of text, take little more memory."""
    paths = []
    for rows in (10**5, 10**6):
        numbers = pa.array(np.arange(rows) + 10**15)
        paths.append(str(tmp_path / f"{rows}.parquet"))
        pq.write_table(pa.table(dict.fromkeys("abcdef", numbers)), paths[-1], row_group_size=10**5)
    found = subprocess.run([sys.executable, "-c", READ, *paths], capture_output=True, text=True, check=True).stdout
    few, many = (int(line) / 1024 for line in found.split())
    assert many - few < 100, (few, many)


BARS = """
from multitask_recommender import duckdb_engine
for connection in (duckdb_engine.connect(), duckdb_engine.EngineFile("table.parquet").connection.con):
    print(connection.execute("SELECT current_setting('enable_progress_bar')").fetchone()[0])
"""


def test_slow_queries_draw_no_bar_into_a_notebook(tmp_path: Path) -> None:
    """DuckDB does wherever Python was started without a script, among what the script prints."""
    command = [sys.executable, "-c", BARS]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert said.stdout.split() == ["False", "False"]
