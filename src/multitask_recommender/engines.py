"""The engines behind the tables: a connection to DuckDB or to Spark, and what differs between the two."""

from __future__ import annotations

import ibis.expr.types as ir
import pyarrow as pa
from ibis.backends import BaseBackend
from kedro_datasets.ibis import FileDataset

from multitask_recommender.spark.session import start_session
from multitask_recommender.spark.settings import SparkSettings


class EngineFile(FileDataset):
    """``ibis.FileDataset`` that knows how to reach Spark.

    A connection ``{backend: pyspark, settings: ...}`` is one to the session of this process, which
    :class:`SparkSettings` describes. All data sets of one description share it, so that their tables can be joined.
    """

    def _connect(self) -> BaseBackend:
        if not self.on_spark:
            return super()._connect()
        from multitask_recommender.spark.tables import SparkTables

        settings = SparkSettings.model_validate(self._connection_config["settings"])
        return SparkTables.over(start_session(settings), settings.shared_folder)

    @property
    def on_spark(self) -> bool:
        """Whether the tables are those of Spark, reached by settings."""
        return "settings" in self._connection_config

    def register(self, name: str, table: pa.Table) -> ir.Table:
        """Give a table in memory to the engine, for as long as this process lives."""
        if self.on_spark:
            return self.connection.register(name, table)
        return self.connection.create_table(name, table, temp=True, overwrite=True)
