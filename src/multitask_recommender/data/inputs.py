"""The tables that every pipeline of models reads, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import ibis.expr.types as ir
import numpy as np
from scipy import sparse

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.data.interactions import (
    FloatArray,
    Interactions,
    SideInformation,
    read_features,
    read_interactions,
)

NO_FOLD = -1
"""Stands for the fold in rows about the whole training part."""


@dataclass(frozen=True)
class TrainingTables:
    """The tables a model may learn from.

    Attributes:
        dataset: The description of the data set.
        behaviour_sequences: Training rows of all splits.
        users: The canonical users.
        items: The canonical items.
        user_features: Design matrix of the users in long form; None: without columns.
        item_features: Design matrix of the items in long form; None: without columns.
        user_vectors: Vectors of the user embedding model (split, fold, user, vector), or None.
    """

    dataset: DatasetSettings
    behaviour_sequences: ir.Table
    users: ir.Table
    items: ir.Table
    user_features: ir.Table | None = None
    item_features: ir.Table | None = None
    user_vectors: ir.Table | None = None

    def rows(self, split: str) -> Interactions:
        """Read the training rows of a split."""
        return read_interactions(self.behaviour_sequences, split, self.dataset.tasks)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Numbers of users and items."""
        return int(self.users.count().execute()), int(self.items.count().execute())

    def side(self, split: str) -> SideInformation:
        """Read the side information of a split, without user vectors."""
        users, items = self.shape
        return SideInformation(
            tasks=self.dataset.tasks,
            users=users,
            items=items,
            user_features=_features(self.user_features, "user", users, split),
            item_features=_features(self.item_features, "item", items, split),
        )

    def vectors(self, split: str, fold: int) -> FloatArray | None:
        """Read the user vectors trained on the rows of a split outside a fold (``NO_FOLD``: on all of them)."""
        if self.user_vectors is None:
            return None
        table = self.user_vectors
        rows = table.filter((table.split == split) & (table.fold == fold)).order_by("user").execute()
        return np.stack(rows["vector"].to_list()).astype(np.float32)


def _features(table: ir.Table | None, key: str, count: int, split: str) -> sparse.csr_matrix:
    if table is None:
        return sparse.csr_matrix((count, 0), dtype=np.float32)
    return read_features(table, key, count, split)
