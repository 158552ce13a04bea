"""The one place where engines are connected; how much memory DuckDB takes, and where it puts what does not fit."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

import duckdb
import ibis.expr.types as ir
from ibis.backends.duckdb import Backend
from kedro_datasets.ibis import FileDataset

from multitask_recommender.foundation.resources import tables_limit
from multitask_recommender.spark.settings import SparkSettings

_SHARE, _LEAST_GB = 8, 1.0
"""Without a declared limit the engine takes one part in so many of the machine's memory, and at least so much."""
_PREFIX, _LOCK = "multitask-recommender-", "lock"
_connections: list[duckdb.DuckDBPyConnection] = []


def renew_limits() -> None:
    """Give connections that are open the limit of memory that holds now, see ``foundation/resources.py``."""
    for connection in _connections:
        connection.execute(f"SET memory_limit = '{_memory_limit()}'")


def _memory_limit() -> str:
    stated = tables_limit()
    if stated is not None:
        return stated
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return f"{round(max(machine / _SHARE, _LEAST_GB) * 1000)}MB"


def spill_folder() -> Path:
    """Return the folder of this process for what does not fit into memory.

    It vanishes with the process; that of a process that was killed vanishes when the next one needs such a folder.
    """
    return Path(_folder()[0].name)


@cache
def _folder() -> tuple[tempfile.TemporaryDirectory[str], IO[str]]:
    """Make the folder, with a file that is locked as long as the process lives."""
    for other in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        # Another process may remove it at the same time, and a folder of another user is not ours to remove.
        with suppress(OSError), other.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other.parent, ignore_errors=True)
    folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
    unlocked = Path(folder.name) / "unlocked"
    lock = unlocked.open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    unlocked.rename(unlocked.with_name(_LOCK))
    return folder, lock


def _settings() -> dict[str, Any]:
    return {
        "memory_limit": _memory_limit(),
        "temp_directory": str(spill_folder() / "duckdb"),
        # The system keeps files that are read again in memory as long as there is room; DuckDB would up to its limit.
        "enable_external_file_cache": False,
    }


# Python without a script (a notebook, a prompt) gets a bar from DuckDB among its own output in each slow query.
_NO_BAR = "SET enable_progress_bar = false"


def connect() -> duckdb.DuckDBPyConnection:
    """Return a connection to an empty database in memory, with the limit."""
    connection = duckdb.connect(config=_settings())
    connection.execute(_NO_BAR)
    return connection


class SpillingBackend(Backend):
    """Ibis on DuckDB, whose cached tables are compressed files in the spill folder instead of tables in memory."""

    def _create_cached_table(self, name: str, expr: ir.Table) -> ir.Table:
        path = spill_folder() / f"{name}.parquet"
        self.to_parquet(expr, path)
        return self.read_parquet(path, table_name=name)

    def _drop_cached_table(self, name: str) -> None:
        # The file alone, and no statement: one would end a result that is being read from the connection.
        (spill_folder() / f"{name}.parquet").unlink(missing_ok=True)


class EngineFile(FileDataset):
    """``ibis.FileDataset``, whose DuckDB has the limit of memory, and which knows how to reach Spark.

    A connection ``{backend: pyspark, settings: ...}`` is one to the Spark session of this process, which
    :class:`SparkSettings` describes. All data sets of one description share it, so that their tables can be joined.
    """

    def _connect(self) -> Any:
        config = dict(self._connection_config)
        if "settings" in config:
            # Here, because PySpark is an extra.
            from multitask_recommender.spark.session import start_session
            from multitask_recommender.spark.tables import SparkTables

            settings = SparkSettings.model_validate(config["settings"])
            return SparkTables.over(start_session(settings), settings.shared_folder)
        if config["backend"] != "duckdb":
            return super()._connect()
        del config["backend"]
        backend = SpillingBackend().connect(**{**_settings(), **config})
        backend.con.execute(_NO_BAR)
        _connections.append(backend.con)
        return backend

    def read_file(self, path: Path, name: str) -> ir.Table:
        """Read a parquet file of the spill folder, where the executors of Spark may not see it."""
        if "settings" in self._connection_config:
            path = Path(shutil.move(path, self.connection.folder))
        return self.connection.read_parquet(path, table_name=name)
