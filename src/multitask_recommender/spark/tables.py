"""Ibis tables on Spark: what the backend of Ibis leaves open for pipelines of many steps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ibis.expr.operations as ops
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends.pyspark import Backend
from ibis.backends.pyspark.datatypes import PySparkSchema
from ibis.formats.pyarrow import PyArrowData

from multitask_recommender.spark.folders import temporary_folder


class SparkTables(Backend):
    """The PySpark backend of Ibis, with tables in memory and cached tables kept as parquet files.

    A cached table of Spark is a plan that is remembered: it is computed again where an executor is lost, and every
    table made of it carries the whole plan along, so that plans of many steps take longer than what they compute.
    A file ends the plan. Tables in memory go through files as well, because types and missing values survive that.

    Attributes:
        folder: Where the files are, seen by the driver and all executors.
    """

    folder: Path

    @classmethod
    def over(cls, session: Any, shared_folder: str | None) -> SparkTables:
        """Make the backend over a session.

        Args:
            session: The Spark session.
            shared_folder: Folder that the driver and all executors see; None: a temporary one.
        """
        cls.register_options()
        backend: SparkTables = cls().connect(session)
        backend.folder = temporary_folder(shared_folder)
        return backend

    def register(self, name: str, table: pa.Table) -> ir.Table:
        """Take a table in memory."""
        path = self.folder / f"{name}.parquet"
        pq.write_table(table, path)
        return self.read_parquet(path, table_name=name)

    def to_pyarrow(self, expr: ir.Expr, /, **options: Any) -> pa.Table:
        """Return the rows, through Arrow all the way, so that a missing number stays missing."""
        self._run_pre_execute_hooks(expr)
        table = expr.as_table()
        found = self.raw_sql(self.compile(table, **options)).toArrow()
        return expr.__pyarrow_result__(PyArrowData.convert_table(found, table.schema()))

    def to_parquet(self, expr: ir.Table, /, path: str | Path, **options: Any) -> None:
        """Write the rows with the declared types: Spark counts rows in shorter numbers than Ibis says."""
        self._run_pre_execute_hooks(expr)
        rows = self.raw_sql(self.compile(expr))
        declared = PySparkSchema.from_ibis(expr.schema())
        columns = [rows[f"`{field.name}`"].cast(field.dataType).alias(field.name) for field in declared]
        rows.select(*columns).write.parquet(str(path), **options)

    def _register_in_memory_table(self, op: ops.InMemoryTable) -> None:
        self.register(op.name, op.data.to_pyarrow(op.schema))

    def _create_cached_table(self, name: str, expr: ir.Table) -> ir.Table:
        path = self.folder / f"{name}.parquet"
        self.to_parquet(expr, path)
        return self.read_parquet(path, table_name=name)

    def _drop_cached_table(self, name: str) -> None:
        self._session.catalog.dropTempView(name)
        shutil.rmtree(self.folder / f"{name}.parquet", ignore_errors=True)
