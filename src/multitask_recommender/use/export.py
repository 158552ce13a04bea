"""Export of vectors: users and items per task for any index of inner products."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multitask_recommender.data.interactions import FloatArray
from multitask_recommender.foundation.errors import RequestError
from multitask_recommender.foundation.jobs import one_thread

if TYPE_CHECKING:
    from multitask_recommender.use.recommender import LoadedRecommender


def export_vectors(recommender: LoadedRecommender, folder: str | Path) -> list[Path]:
    """Write ``users.parquet`` (task, user_id, vector) and ``items.parquet`` (task, item_id, vector).

    The inner product of a user's and an item's vector orders the items as the recommender does: biases are among the
    coordinates. It is the score itself for a retrieval task; that of a binary task is the logistic function of it, and
    that of a regression task grows with it. Users' vectors are those of their histories at the training.

    Args:
        recommender: The fitted model.
        folder: Folder to write to; it is made.

    Returns:
        The files written.

    Raises:
        RequestError: If the scores of the model are not inner products.
    """
    queries = recommender.every_user()
    folder = Path(folder)
    with one_thread():
        first = recommender.model.inner_products(queries.take(np.arange(min(len(queries), 1))))
    if not first:
        raise _no_products(recommender)
    folder.mkdir(parents=True, exist_ok=True)
    item_ids, user_ids = recommender.run.item_ids, recommender.run.user_ids
    items = (_table(task, "item_id", item_ids, vectors) for task, (_, vectors) in first.items())

    def users() -> Iterator[pa.Table]:
        for begin, block in recommender.blocks(queries):
            with one_thread():
                products = recommender.model.inner_products(block)
            names = user_ids[begin : begin + len(block)]
            yield from (_table(task, "user_id", names, vectors) for task, (vectors, _) in products.items())

    return [_write(folder / "items.parquet", items), _write(folder / "users.parquet", users())]


def export_indexes(recommender: LoadedRecommender, folder: str | Path) -> list[Path]:
    """Write an approximate index of inner products per task, ``items_<number>.faiss``, and ``indexes.json``.

    The file of an index is that of ``faiss.write_index``; the numbers in it are rows of ``items.parquet`` of the task.
    ``indexes.json`` says of every index its file, task, cells, how many of them a search looks into (``nprobe``), and
    the recall of lists of 10 that was measured with that on users of the training, known items left out.

    Args:
        recommender: The fitted model.
        folder: Folder to write to; it is made.

    Returns:
        The files written.

    Raises:
        RequestError: If the scores of the model are not inner products, or faiss is not installed.
    """
    indexes = recommender.make_indexes()
    if not indexes:
        raise _no_products(recommender)
    import faiss

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described, written = [], []
    for number, (task, index) in enumerate(indexes.items()):
        path = folder / f"items_{number}.faiss"
        partial = path.with_name(f".partial-{path.name}")
        faiss.write_index(index.index, str(partial))
        written.append(partial.replace(path))
        how = {"cells": index.cells, "nprobe": index.index.nprobe, "recall_10": round(index.recall, 4)}
        described.append({"file": path.name, "task": task, "items": len(index.items), **how})
    partial = folder / ".partial-indexes.json"
    partial.write_text(json.dumps(described, indent=1) + "\n")
    return [*written, partial.replace(folder / "indexes.json")]


def _no_products(recommender: LoadedRecommender) -> RequestError:
    return RequestError(
        f"The scores of the model '{recommender.run.name}' are not inner products of vectors.",
        "model",
        "export one whose scores are, such as shared_bottom, single_task or ials.",
    )


def _table(task: str, key: str, names: list[str], vectors: FloatArray) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1])
    columns = {"task": pa.repeat(task, len(names)), key: names, "vector": pa.ListArray.from_arrays(offsets, flat)}
    return pa.table(columns)


def _write(path: Path, tables: Iterator[pa.Table]) -> Path:
    """Write tables one after the other; the file has its name only when it is whole."""
    partial = path.with_name(f".partial-{path.name}")
    first = next(tables)
    with pq.ParquetWriter(partial, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
    return partial.replace(path)
