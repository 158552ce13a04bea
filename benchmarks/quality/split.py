"""The split of the benchmark, and the files that are handed to the peers: no label of a test row is among them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
from numpy.typing import NDArray

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.data.interactions import Interactions, read_features, read_interactions
from multitask_recommender.pipelines.data_engineering import nodes

SEED = 42
FOLDS = 5
ROWS = 100_000
"""Interactions of MovieLens-100k."""

Parts = NDArray[np.str_]


def _order(count: int) -> NDArray[np.int64]:
    # The legacy generator: published splits of MovieLens were made with it.
    return np.random.RandomState(SEED).permutation(count)


def random_parts(count: int) -> Parts:
    """Return (count,) the part of each row in file order: the shuffled rows train (80 %), validate and test (10 %)."""
    order = _order(count)
    parts = np.full(count, "train", dtype="<U10")
    parts[order[int(0.8 * count) :]] = "validation"
    parts[order[int(0.9 * count) :]] = "test"
    return parts


def fold_parts(count: int, fold: int) -> Parts:
    """Return (count,) the part of each row: every fifth of the shuffled rows, from row ``fold`` on, is the test."""
    parts = np.full(count, "train", dtype="<U10")
    parts[_order(count)[fold::FOLDS]] = "test"
    return parts


def study_parts(load: Callable[[str], ir.Table], strategy: str) -> Parts:
    """Return (rows,) the part of each row in file order, as the study divides them.

    Args:
        load: Name of a catalog entry to its value.
        strategy: Name of the split.
    """
    table = load("splits")
    own = table.filter(table.split == strategy).select("row", "part").order_by("row").to_pyarrow()
    return own["part"].to_numpy(zero_copy_only=False).astype("<U10")


class SplitData:
    """The rows and features of one split.

    Args:
        load: Name of a catalog entry to its value.
        dataset: The description of the data set.
        parts: (rows,) part of each interaction.

    Attributes:
        train: Training rows.
        validation: Validation rows.
        test: Test rows, for the measuring alone.
        users: Number of users.
        items: Number of items.
    """

    def __init__(self, load: Callable[[str], ir.Table], dataset: DatasetSettings, parts: Parts) -> None:
        labelled, users, items = (load(name) for name in ("labelled_interactions", "users", "items"))
        rows = np.sort(labelled.select("row").to_pyarrow()["row"].to_numpy())
        if len(rows) != len(parts):
            raise ValueError(f"the split is of {len(parts)} rows, but the data has {len(rows)}")
        # Folds are for cross-validation, which the benchmark does not do.
        table = ibis.memtable({"row": rows, "part": parts.astype(object)})
        table = table.mutate(split=ibis.literal("benchmark"), fold=ibis.literal(0).cast("int64"))
        sequences, validation, _, test = nodes.separate_parts(labelled, table, dataset)
        sequences = sequences.cache()
        self.users, self.items = int(users.count().execute()), int(items.count().execute())
        self.train = read_interactions(sequences, "benchmark", dataset.tasks)
        self.validation = read_interactions(validation, "benchmark", dataset.tasks)
        self.test = read_interactions(test, "benchmark", dataset.tasks)
        self._user = nodes.build_user_features(users, sequences, dataset)
        self._item = nodes.build_item_features(items, sequences, dataset)

    def _codes(self, side: str) -> dict[str, np.ndarray]:
        """Features with one value per user or item as codes, and the genres as padded codes."""
        vocabulary, matrix = self._user if side == "user" else self._item
        count = self.users if side == "user" else self.items
        words = vocabulary.order_by("column").execute()
        entries = matrix.order_by(side, "column").execute()
        entries["feature"] = words.set_index("column")["feature"].reindex(entries["column"]).to_numpy()
        result: dict[str, np.ndarray] = {}
        for name, own in entries.groupby("feature"):
            code = (own["column"] - own["column"].min()).to_numpy()
            if len(own) == count:
                result[f"{side}_code.{name}"] = code
            elif name == "genres":
                place = own.groupby(side).cumcount().to_numpy()
                padded = np.zeros((count, int(place.max()) + 1), dtype=np.int64)
                padded[own[side].to_numpy(), place] = code + 1
                result["genres"] = padded
        return result

    def arrays(self, known: bool = False) -> dict[str, Any]:
        """Return what a peer may learn from: training rows and features.

        Args:
            known: Whether to add ``history_user``, ``history_item``, ``history_rating`` and ``history_time``: the
                training and validation rows by user and time, which users are asked with. Nothing is learnt from them.
        """
        train = self.train
        result: dict[str, Any] = {
            "users": self.users,
            "items": self.items,
            "user": train.user,
            "item": train.item,
            "rating": train.labels["rating"],
            "time": np.zeros(len(train)) if train.time is None else train.time,
            **self._codes("user"),
            **self._codes("item"),
        }
        for side, (_, matrix), count in (("user", self._user, self.users), ("item", self._item, self.items)):
            features = read_features(matrix, side, count, "benchmark")
            for name in ("data", "indices", "indptr", "shape"):
                result[f"{side}_features.{name}"] = np.asarray(getattr(features, name))
        if known:
            parts = [self.train, self.validation]
            columns = {
                "user": [part.user for part in parts],
                "item": [part.item for part in parts],
                "rating": [part.labels["rating"] for part in parts],
                "time": [np.zeros(len(part)) if part.time is None else part.time for part in parts],
            }
            both = {name: np.concatenate(values) for name, values in columns.items()}
            # What is first in the table is first where times are equal.
            order = np.lexsort((both["time"], both["user"]))
            result |= {f"history_{name}": values[order] for name, values in both.items()}
        return result


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write named arrays to an npz file, whole or not at all."""
    partial = path.with_name(f"partial-{path.name}")
    np.savez(partial, **arrays)
    os.replace(partial, path)


def write_pairs(path: Path, rows: Interactions) -> None:
    """Write the pairs of some rows, without labels."""
    time = np.zeros(len(rows)) if rows.time is None else rows.time
    write_arrays(path, {"user": rows.user, "item": rows.item, "time": time})
