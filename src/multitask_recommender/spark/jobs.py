"""Independent jobs on the executors, which take and give arrays and tables through files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.foundation.jobs import single_threaded
from multitask_recommender.models.state import State
from multitask_recommender.models.stored import StoredModel, read_model, write_model
from multitask_recommender.spark.folders import temporary_folder
from multitask_recommender.spark.session import last_words, start_session
from multitask_recommender.spark.settings import SparkSettings

Job = Callable[..., Iterator[pa.Table]]
"""Takes the arrays of one job and what all jobs share, and yields tables of one schema."""


def run_on_executors(
    settings: SparkSettings, what: str, job: Job, inputs: Iterable[State], schema: pa.Schema, *shared: Any
) -> Iterator[pa.Table]:
    """Run a job on the executors for every input.

    A job whose executor is lost runs again on another, from the same file.

    Args:
        settings: How Spark is reached.
        what: What is made, for error messages.
        job: A function of an importable module.
        inputs: The arrays of every job; they are written one after the other, and not kept.
        schema: The columns of the tables.
        shared: What all jobs are given besides.

    Yields:
        The tables of all jobs, in the order of the inputs.

    Raises:
        SettingsError: If a job does not come to its end.
    """
    session = start_session(settings)
    folder = temporary_folder(settings.shared_folder)
    try:
        number = 0
        for state in inputs:
            write_model(folder / f"input_{number}", StoredModel(state))
            number += 1
        given = session.sparkContext.broadcast(shared)
        try:
            tasks = session.sparkContext.parallelize(range(number), max(number, 1))
            tasks.foreach(lambda task: _run(job, folder, task, schema, given.value))
        except Exception as error:  # Of Py4J, whose classes are those of the Java side.
            raise SettingsError(
                f"Spark could not make {what}: {last_words(error)}\n  where: the executors of '{settings.master}'\n"
                "  what to do: look into their logs; what was made before is whole, so the same command goes on from "
                "there with --from-nodes. Where executors get lost, give them more memory in 'spark.config'."
            ) from error
        finally:
            given.destroy()
        for task in range(number):
            for batch in pq.ParquetFile(folder / f"output_{task}").iter_batches():
                yield pa.Table.from_batches([batch], schema)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(job: Job, folder: Path, task: int, schema: pa.Schema, shared: tuple[Any, ...]) -> None:
    partial = folder / f".partial_{task}"
    with single_threaded(), pq.ParquetWriter(partial, schema) as writer:
        for table in job(read_model(folder / f"input_{task}").state, *shared):
            writer.write_table(table.select(schema.names).cast(schema))
    partial.replace(folder / f"output_{task}")
