"""Hot, warm and cold users and items: what is known of whom a model is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import ibis.expr.types as ir
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from multitask_recommender.data.features import MISSING
from multitask_recommender.data.interactions import BoolArray, IntArray, Interactions
from multitask_recommender.foundation.membership import among

COLUMNS = ["split", "side", "entity", "group"]
EVERYONE = "all"
"""The group that holds all users and items: what a metric is without groups."""
TEMPERATURES = ("hot", "warm", "cold")
THIRDS = ["low", "middle", "high"]
"""Users in thirds by activity, items in thirds by popularity."""


@dataclass(frozen=True)
class Group:
    """Users and items whose test rows are measured apart from the others.

    Attributes:
        name: ``all``, or such as ``hot_users``, ``cold_items`` or ``visited_pairs``.
        users: (users,), true for those of the group.
        items: (items,), true for those of the group.
        visited: (pairs,) user x number of items + item of the pairs with earlier events, where the group rests on them.
        new: Whether it holds the other pairs.
    """

    name: str
    users: BoolArray
    items: BoolArray
    visited: IntArray | None = None
    new: bool = False

    def contains(self, user: IntArray, item: IntArray) -> BoolArray:
        """Say of pairs (n,) of a user and an item whether they belong to the group."""
        inside = self.users[user] & self.items[item]
        if self.visited is not None:
            inside &= among(user * len(self.items) + item, self.visited) != self.new
        return inside


def entities_with_features(matrix: ir.Table, vocabulary: ir.Table, key: str, activity: str | None) -> ir.Table:
    """Return the users or items of which a feature is known.

    Args:
        matrix: Design matrix in long form (split, ``key``, column, weight).
        vocabulary: What its columns stand for (split, feature, value, column).
        key: ``user`` or ``item``.
        activity: Name of the feature that counts training rows, which tells nothing of somebody without any, or None.

    Returns:
        Table (split, ``key``).
    """
    telling = vocabulary.filter(vocabulary.value != MISSING)
    if activity is not None:
        telling = telling.filter(telling.feature != activity)
    return matrix.semi_join(telling, ["split", "column"]).select("split", key)


def find_temperatures(
    splits: Sequence[str], key: str, count: int, training: ir.Table, known: Sequence[ir.Table]
) -> pd.DataFrame:
    """Divide the users or the items of every split into hot, warm and cold ones.

    Args:
        splits: Names of the splits.
        key: ``user`` or ``item``.
        count: Number of users or items.
        training: Training rows: who has one is hot.
        known: Tables (split, ``key``): who is not hot and stands in one of them is warm, the others are cold.

    Returns:
        Table with ``COLUMNS``, sorted by split and entity; ``side`` is the key.
    """

    def found(table: ir.Table, split: str) -> BoolArray:
        mask = np.zeros(count, dtype=bool)
        mask[table.filter(table.split == split).select(key).distinct().to_pyarrow()[key].to_numpy()] = True
        return mask

    tables = []
    for split in splits:
        warm = np.any([found(table, split) for table in known], axis=0)
        group = np.where(found(training, split), "hot", np.where(warm, "warm", "cold"))
        tables.append(pd.DataFrame({"split": split, "side": key, "entity": np.arange(count), "group": group}))
    return pd.concat(tables, ignore_index=True)


def read_groups(table: pd.DataFrame, split: str) -> list[Group]:
    """Turn the groups of a split into masks.

    Args:
        table: Table with ``COLUMNS``.
        split: Name of the split.

    Returns:
        The group ``all``, then the groups of users with all items, then those of items with all users.
    """
    own = table[table["split"] == split].sort_values("entity")
    users, items = (own.loc[own["side"] == side, "group"].to_numpy() for side in ("user", "item"))
    every_user, every_item = np.ones(len(users), dtype=bool), np.ones(len(items), dtype=bool)
    return [
        Group(EVERYONE, every_user, every_item),
        *(Group(f"{name}_users", users == name, every_item) for name in TEMPERATURES),
        *(Group(f"{name}_items", every_user, items == name) for name in TEMPERATURES),
    ]


def groups_of_pairs(everyone: Group, test: Interactions, known: Sequence[tuple[IntArray, IntArray]]) -> list[Group]:
    """Return the groups of visited and of new pairs: those with and without events before the test.

    Args:
        everyone: The group ``all``.
        test: The test pairs.
        known: (pairs,) users and (pairs,) items of the known pairs.

    Returns:
        Both groups; none where no test pair has earlier events.
    """
    items = len(everyone.items)
    visited = np.intersect1d(test.user * items + test.item, np.concatenate([u * items + i for u, i in known]))
    if not len(visited):
        return []
    return [
        replace(everyone, name="visited_pairs", visited=visited),
        replace(everyone, name="new_pairs", visited=visited, new=True),
    ]


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the metrics table that are of all users and items."""
    return table[table["group"] == EVERYONE]


def activity_thirds(training_users: IntArray, users: IntArray) -> NDArray[np.str_]:
    """Return (n,) the third, by number of training rows, that some users belong to.

    Args:
        training_users: (rows,) user of every training row.
        users: (n,) the users that are asked about; one without training rows belongs to the lowest third.
    """
    rows = np.bincount(training_users, minlength=int(users.max(initial=-1)) + 1)
    edges = np.quantile(rows[rows > 0], [1 / 3, 2 / 3])
    return np.array(THIRDS)[np.searchsorted(edges, rows[users])]
