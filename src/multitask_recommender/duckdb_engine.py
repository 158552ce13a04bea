"""The one place where engines are connected; how much memory DuckDB takes, and where it puts what does not fit."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import ibis.expr.types as ir
from ibis.backends.duckdb import Backend
from kedro_datasets.ibis import FileDataset

from multitask_recommender.spark.settings import SparkSettings

_SHARE, _LEAST_GB = 8, 1.0
"""Without a declared limit the engine takes one part in so many of the machine's memory, and at least so much."""
_limit_gb: float | None = None
_connections: list[duckdb.DuckDBPyConnection] = []


def limit_memory(gigabytes: float | None) -> None:
    """Declare how much memory the engine may take, for connections that are open and those to come.

    Args:
        gigabytes: In GB (10^9 bytes); None: an eighth of the machine's memory, at least 1 GB.
    """
    global _limit_gb
    _limit_gb = gigabytes
    for connection in _connections:
        connection.execute(f"SET memory_limit = '{_memory_limit()}'")


def _memory_limit() -> str:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    gigabytes = _limit_gb or max(machine / _SHARE, _LEAST_GB)
    return f"{round(gigabytes * 1000)}MB"


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="multitask-recommender-")


def spill_folder() -> Path:
    """Return the folder of this process for what does not fit into memory; it vanishes with the process."""
    return Path(_folder().name)


def _settings() -> dict[str, Any]:
    return {"memory_limit": _memory_limit(), "temp_directory": str(spill_folder() / "duckdb")}


def connect() -> duckdb.DuckDBPyConnection:
    """Return a connection to an empty database in memory, with the limit."""
    return duckdb.connect(config=_settings())


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
        _connections.append(backend.con)
        return backend

    def read_file(self, path: Path, name: str) -> ir.Table:
        """Read a parquet file of the spill folder, where the executors of Spark may not see it."""
        if "settings" in self._connection_config:
            path = Path(shutil.move(path, self.connection.folder))
        return self.connection.read_parquet(path, table_name=name)
