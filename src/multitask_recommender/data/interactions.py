"""The one place that turns tables into arrays: what models see of the data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from multitask_recommender.data.streams import read_arrays
from multitask_recommender.data.tasks import Task

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa
    from ibis.expr.operations import Relation

    from multitask_recommender.data.queries import Queries

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
_BLOCK = 2**20
_KEPT_ROWS = 500_000
"""Most rows of a table whose arrays are kept: every node of every model asks for the same ones."""

EVERYTHING = "everything"
"""Name of the additional split whose training part is all interactions: the recommendations are made from it."""
NO_FOLD = -1
"""Stands for the fold in what is about the whole training part."""


@dataclass(frozen=True)
class Interactions:
    """Rows of user-item pairs with the labels of every task, sorted by user and, within a user, by time.

    Attributes:
        user: (rows,) number of the user.
        item: (rows,) number of the item.
        labels: Task to (rows,) labels, NaN where the task does not ask.
        relevant: Task to (rows,), whether the pair counts as relevant when the task ranks.
        fold: (rows,) cross-validation fold, of any type of whole numbers, or None.
        time: (rows,) seconds, or None where the data has no times.
        weight: (rows,) how much a row of a history counts, on average 1; None: all count alike.
    """

    user: IntArray
    item: IntArray
    labels: dict[str, FloatArray]
    relevant: dict[str, BoolArray]
    fold: NDArray[np.integer] | None = None
    time: NDArray[np.float64] | None = None
    weight: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.user)

    def where(self, mask: BoolArray | IntArray | slice) -> Interactions:
        """Return the rows in which ``mask`` (rows,) is true, or those at the places that it lists or spans."""
        return Interactions(
            user=self.user[mask],
            item=self.item[mask],
            labels={task: values[mask] for task, values in self.labels.items()},
            relevant={task: values[mask] for task, values in self.relevant.items()},
            fold=None if self.fold is None else self.fold[mask],
            time=None if self.time is None else self.time[mask],
            weight=None if self.weight is None else self.weight[mask],
        )

    def with_tasks(self, names: list[str]) -> Interactions:
        """Return the same rows with the labels of some tasks alone."""
        return replace(
            self,
            labels={name: self.labels[name] for name in names},
            relevant={name: self.relevant[name] for name in names},
        )


class UserEncoder(Protocol):
    """Something that turns histories and contexts into vectors, and is not trained any more.

    Attributes:
        dimension: k, the length of a vector.
    """

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        ...

    def encode(self, queries: Queries) -> FloatArray:
        """Return (B, k) vectors."""
        ...


@dataclass(frozen=True)
class SideInformation:
    """What a model may know beside the training rows.

    Attributes:
        tasks: The tasks to predict, by name.
        users: Number of users.
        items: Number of items.
        user_features: (users, user columns) sparse design matrix, the context ``c``.
        item_features: (items, item columns) sparse design matrix.
        user_encoder: The user embedding model, trained on the same rows; None for models that do not use it.
        read: The tasks whose labels histories carry, where they are others than those to predict.
    """

    tasks: dict[str, Task]
    users: int
    items: int
    user_features: sparse.csr_matrix
    item_features: sparse.csr_matrix
    user_encoder: UserEncoder | None = None
    read: dict[str, Task] | None = None

    @property
    def read_tasks(self) -> dict[str, Task]:
        """The tasks whose labels histories carry."""
        return self.tasks if self.read is None else self.read

    def with_tasks(self, names: list[str], equal_inputs: bool = False) -> SideInformation:
        """Return the same information for some tasks alone.

        Args:
            names: The tasks, of those whose labels histories carry.
            equal_inputs: Whether histories carry the labels of the same tasks as before, instead of those alone.
        """
        own = {name: self.read_tasks[name] for name in names}
        return replace(self, tasks=own, read=self.read_tasks if equal_inputs else None)

    def without_users(self) -> SideInformation:
        """Return the same information with no user: what a model needs that is read from a file."""
        nobody = sparse.csr_matrix((0, self.user_features.shape[1]))
        return replace(self, users=0, user_features=nobody)


def read_interactions(table: ir.Table, split: str, tasks: Iterable[str], mostly_sorted: bool = True) -> Interactions:
    """Turn the rows of one split into arrays, which nobody may write to: those of a small table are read once.

    Args:
        table: ``behaviour_sequences``, ``validation_rows`` or ``test_labels``.
        split: Name of the split.
        tasks: Names of the tasks.
        mostly_sorted: Whether the rows are likely to stand in order, which is tried before they are sorted.

    Returns:
        The rows, sorted by user and by position in the behaviour sequence.
    """
    # Tables are compared by what makes them: two put together alike are one, and a file that is written again is
    # another.
    relation = table.op()
    read = _read_interactions if _count(relation) > _KEPT_ROWS else _kept_interactions
    return read(relation, split, tuple(tasks), mostly_sorted)


@lru_cache(maxsize=16)
def _count(relation: Relation) -> int:
    return int(relation.to_expr().count().execute())


def _read_interactions(relation: Relation, split: str, tasks: tuple[str, ...], mostly_sorted: bool) -> Interactions:
    table = relation.to_expr()
    own = table.filter(table.split == split)
    kinds: dict[str, type[np.generic]] = {"user": np.int64, "position": np.int32, "item": np.int64}
    kinds |= dict.fromkeys(tasks, np.float32) | dict.fromkeys((f"relevant_{name}" for name in tasks), np.bool_)
    kinds |= {name: kind for name, kind in (("fold", np.int16), ("time", np.float64)) if name in table.columns}
    count = int(own.count().execute())
    rows = read_arrays(own if mostly_sorted else own.order_by("user", "position"), kinds, count)
    if not _in_order(rows["user"], rows["position"]):
        rows = read_arrays(own.order_by("user", "position"), kinds, count)
    time = rows.get("time")
    return Interactions(
        user=rows["user"],
        item=rows["item"],
        labels={name: rows[name] for name in tasks},
        relevant={name: rows[f"relevant_{name}"] for name in tasks},
        fold=rows.get("fold"),
        time=None if time is None or np.isnan(time).any() else time,
    )


_kept_interactions = lru_cache(maxsize=12)(_read_interactions)


def _in_order(user: IntArray, position: NDArray[np.int32]) -> bool:
    """Return whether rows are sorted by user and position: those of a table that was written so mostly are."""
    for begin in range(0, len(user), _BLOCK):
        # With the first row of the next block.
        own, place = user[begin : begin + _BLOCK + 1], position[begin : begin + _BLOCK + 1]
        if not ((own[1:] > own[:-1]) | ((own[1:] == own[:-1]) & (place[1:] >= place[:-1]))).all():
            return False
    return True


def interactions_of(rows: pa.Table, tasks: Iterable[str]) -> Interactions:
    """Turn sorted rows (user, item, one column per task, ``relevant_<task>``, perhaps fold) into arrays."""
    time = rows["time"].to_numpy() if "time" in rows.column_names else None
    return Interactions(
        user=rows["user"].to_numpy(),
        item=rows["item"].to_numpy(),
        labels={name: rows[name].to_numpy().astype(np.float32) for name in tasks},
        relevant={name: rows[f"relevant_{name}"].to_numpy() for name in tasks},
        fold=rows["fold"].to_numpy().astype(np.int64) if "fold" in rows.column_names else None,
        time=None if time is None or np.isnan(time.astype(np.float64)).any() else time.astype(np.float64),
    )


@lru_cache(maxsize=8)
def read_features(matrix: ir.Table, key: str, count: int, split: str) -> sparse.csr_matrix:
    """Turn the long form of a design matrix into a sparse matrix (``count``, columns), which nobody may write to.

    Args:
        matrix: Table (split, ``key``, column, weight).
        key: ``user`` or ``item``.
        count: Number of users or items.
        split: Name of the split.
    """
    return features_of(matrix.filter(matrix.split == split).order_by(key, "column").to_pyarrow(), key, count)


def features_of(rows: pa.Table, key: str, count: int) -> sparse.csr_matrix:
    """Turn rows (``key``, column, weight), sorted, into a sparse matrix (``count``, columns)."""
    column = rows["column"].to_numpy()
    columns = int(column.max()) + 1 if len(column) else 0
    entries = (rows["weight"].to_numpy().astype(np.float32), (rows[key].to_numpy(), column))
    return sparse.csr_matrix(entries, shape=(count, columns), dtype=np.float32)


def pair_matrix(user: IntArray, item: IntArray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return the sparse matrix ``shape`` with a one at every pair."""
    ones = np.ones(len(user), dtype=np.float32)
    return sparse.csr_matrix((ones, (user, item)), shape=shape, dtype=np.float32)
