"""Ibis tables on Spark: what the backend of Ibis leaves open for pipelines of many steps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis.expr.operations as ops
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends.pyspark import Backend
from ibis.backends.pyspark.datatypes import PySparkSchema
from ibis.formats.pyarrow import PyArrowData
from ibis.util import gen_name

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

    def to_pyarrow(self, expr: ir.Expr, /, **options: Any) -> pa.Table:
        """Return the rows, through Arrow all the way, so that a missing number stays missing."""
        self._run_pre_execute_hooks(expr)
        table = expr.as_table()
        found = self.raw_sql(self.compile(table, **options)).toArrow()
        return expr.__pyarrow_result__(PyArrowData.convert_table(found, table.schema()))

    def to_pyarrow_batches(self, expr: ir.Expr, /, *, chunk_size: int = 1_000_000, **options: Any) -> Any:
        """Yield the rows a part at a time: they go through files, and are never together in this process."""
        folder = self.folder / gen_name("batches")
        self._write_parts(expr.as_table(), folder)

        def batches() -> Iterator[pa.RecordBatch]:
            for part in _parts(folder):
                yield from pq.ParquetFile(part).iter_batches(chunk_size)
            shutil.rmtree(folder, ignore_errors=True)

        return pa.RecordBatchReader.from_batches(_schema(expr.as_table(), folder), batches())

    def to_parquet(self, expr: ir.Table, /, path: str | Path, **options: Any) -> None:
        """Write the rows to one file, as everything that reads outputs expects it; Spark writes one per partition."""
        folder = self.folder / gen_name("parts")
        self._write_parts(expr, folder)
        with pq.ParquetWriter(path, _schema(expr, folder), compression="zstd") as writer:
            for part in _parts(folder):
                for batch in pq.ParquetFile(part).iter_batches(_ROWS):
                    writer.write_batch(batch)
        shutil.rmtree(folder)

    def _write_parts(self, expr: ir.Table, folder: Path) -> None:
        """Write the rows with the declared types: Spark counts rows in shorter numbers than Ibis says."""
        self._run_pre_execute_hooks(expr)
        rows = self.raw_sql(self.compile(expr))
        declared = PySparkSchema.from_ibis(expr.schema())
        columns = [rows[f"`{field.name}`"].cast(field.dataType).alias(field.name) for field in declared]
        rows.select(*columns).write.parquet(str(folder))

    def _register_in_memory_table(self, op: ops.InMemoryTable) -> None:
        path = self.folder / f"{op.name}.parquet"
        pq.write_table(op.data.to_pyarrow(op.schema), path)
        self.read_parquet(path, table_name=op.name)

    def _create_cached_table(self, name: str, expr: ir.Table) -> ir.Table:
        path = self.folder / f"{name}.parquet"
        self._write_parts(expr, path)
        return self.read_parquet(path, table_name=name)

    def _drop_cached_table(self, name: str) -> None:
        self._session.catalog.dropTempView(name)
        shutil.rmtree(self.folder / f"{name}.parquet", ignore_errors=True)


_ROWS = 2**17


def _parts(folder: Path) -> list[Path]:
    """Return the files that Spark wrote into a folder, in the order of the rows."""
    return sorted(folder.glob("part-*.parquet"))


def _schema(table: ir.Table, folder: Path) -> pa.Schema:
    """Return the columns of such files; without a file, those that the table declares."""
    parts = _parts(folder)
    return pq.read_schema(parts[0]).remove_metadata() if parts else table.schema().to_pyarrow()
