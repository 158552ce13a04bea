"""What the computer lacks is named as such; a stated limit of memory bounds what is held at a time."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from kedro.io import DatasetError

from multitask_recommender.foundation import resources
from multitask_recommender.foundation.resources import affordable_workers, lacking, scores_at_once, tables_limit
from multitask_recommender.raw_tables import RawTable


@pytest.fixture
def limited() -> Iterator[None]:
    resources.limit_memory(1.0)
    yield
    resources.limit_memory(None)


def numpy_asks_for_too_much() -> BaseException:
    with pytest.raises(MemoryError) as raised:
        np.empty(2**55)
    return raised.value


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (numpy_asks_for_too_much(), "not enough memory: Unable to allocate 256. PiB"),
        (duckdb.OutOfMemoryException("Out of Memory Error: failed to allocate data of size 16 MiB"), "16 MiB"),
        (pa.ArrowMemoryError("malloc of size 99 failed"), "malloc of size 99"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "8 bytes"),
        (OSError(errno.ENOSPC, "No space left on device", "x.parquet"), "The disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "The disk is full"),
        (duckdb.IOException('IO Error: Could not write file "x": No space left on device'), "The disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "x.csv"), "There is no permission"),
        (OSError(errno.EROFS, "Read-only file system"), "There is no permission"),
    ],
)
def test_what_is_lacking_is_named_with_what_was_done(error: BaseException, said: str) -> None:
    wrapped = DatasetError("Failed while saving data")
    wrapped.__cause__ = error
    found = lacking(wrapped, "saving the table 'users'")
    assert found is not None
    assert said in str(found)
    assert "saving the table 'users'" in str(found)


@pytest.mark.parametrize("error", [ValueError("out of memory"), KeyError("x"), OSError(errno.ENOENT, "no file"), None])
def test_other_faults_are_not_taken_for_a_lack(error: BaseException | None) -> None:
    assert lacking(error, "") is None


def test_a_full_disk_is_no_fault_of_the_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RawTable, "_write_copy", full)
    with pytest.raises(DatasetError) as raised:
        RawTable(filepath=str(tmp_path / "t.csv")).load()
    assert "The disk is full" in str(raised.value)
    assert "delimiter" not in str(raised.value)


def test_a_table_beyond_the_limit_is_a_lack_of_memory(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + f"{'x' * 1000},2\n" * 150_000)
    resources.limit_memory(1e-9)
    try:
        with pytest.raises(DatasetError) as raised:
            RawTable(filepath=str(tmp_path / "t.csv")).load()
    finally:
        resources.limit_memory(None)
    assert "There is not enough memory" in str(raised.value)


@pytest.mark.usefixtures("limited")
def test_a_limit_bounds_tables_blocks_and_workers() -> None:
    assert tables_limit() == "500MB"
    assert scores_at_once(2**23) < 2**23
    assert scores_at_once(5) == 5
    assert affordable_workers(1000) < 10
    assert affordable_workers(1) == 1


def test_without_a_limit_nothing_is_bounded() -> None:
    assert tables_limit() is None
    assert scores_at_once(2**40) == 2**40
    assert affordable_workers(1000) == 1000


def test_as_many_workers_as_cores_and_no_more_than_free_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.joblib, "cpu_count", lambda: 6)
    own = max(resources._resident(), 300 * 10**6)

    def workers(free: int | None) -> int:
        resources._one_per_core.cache_clear()
        monkeypatch.setattr(resources, "_free_memory", lambda: free)
        return affordable_workers(None)

    try:
        assert workers(10**12) == 6
        assert workers(None) == 6
        assert workers(3 * own + 1) in (2, 3)
        assert workers(1) == 1
        assert workers(10**12) == 6
        # What the workers take themselves is no reason for fewer of them.
        monkeypatch.setattr(resources, "_free_memory", lambda: 1)
        assert affordable_workers(None) == 6
        resources.limit_memory(1.0)
        assert affordable_workers(None) < 6
    finally:
        resources.limit_memory(None)
        resources._one_per_core.cache_clear()


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="this system has no /proc/meminfo")
def test_the_system_tells_its_free_memory() -> None:
    free = resources._free_memory()
    assert free is not None
    assert 10**7 < free < 10**15
