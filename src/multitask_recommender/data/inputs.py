"""The tables that every pipeline of models reads, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache

import ibis
import ibis.expr.types as ir

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.data.events import as_pairs, pair_rules
from multitask_recommender.data.interactions import Interactions, SideInformation, read_features, read_interactions
from multitask_recommender.data.queries import Histories


# Every node of every model asks for those of the same two tables; a file that is written again is another table.
@lru_cache(maxsize=2)
def _identifiers(table: ir.Table, key: str) -> list[str]:
    return table.order_by(key).select(f"{key}_id").to_pyarrow()[f"{key}_id"].to_pylist()


@dataclass(frozen=True)
class TrainingTables:
    """The tables a model may learn from.

    Attributes:
        dataset: The description of the data set.
        behaviour_sequences: Training rows of all splits.
        users: The canonical users.
        items: The canonical items.
        user_features: Design matrix of the users in long form.
        item_features: Design matrix of the items in long form.
    """

    dataset: DatasetSettings
    behaviour_sequences: ir.Table
    users: ir.Table
    items: ir.Table
    user_features: ir.Table
    item_features: ir.Table

    @classmethod
    def of(cls, dataset: DatasetSettings, training_data: Mapping[str, ir.Table]) -> TrainingTables:
        """Take the tables out of the bundle ``training_data``."""
        names = [field.name for field in fields(cls) if field.name != "dataset"]
        return cls(dataset, *(training_data[name] for name in names))

    def events(self, split: str) -> Interactions:
        """Read the training rows of a split, where a user may meet an item many times."""
        return read_interactions(self.behaviour_sequences, split, self.dataset.tasks)

    def count(self) -> int:
        """Count the training rows of all splits."""
        return int(self.behaviour_sequences.count().execute())

    def rows(self, split: str) -> Interactions:
        """Read the pairs that the training rows of a split make."""
        return as_pairs(self.events(split), pair_rules(self.dataset.tasks))

    def known(self, split: str, validation_rows: ir.Table, side: SideInformation) -> Histories:
        """Read all rows of a split that are known before the test, to ask with, beside its side information."""
        columns = ["split", "user", "position", "item", "time", *self.dataset.tasks]
        columns += [f"relevant_{name}" for name in self.dataset.tasks]
        both = ibis.union(self.behaviour_sequences.select(columns), validation_rows.select(columns))
        events = read_interactions(both, split, self.dataset.tasks, mostly_sorted=False)
        return Histories(as_pairs(events, pair_rules(self.dataset.tasks)), side.user_features)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Numbers of users and items."""
        users, items = self.identifiers
        return len(users), len(items)

    @cached_property
    def identifiers(self) -> tuple[list[str], list[str]]:
        """Identifiers of the users and of the items, in the order of their numbers."""
        return _identifiers(self.users, "user"), _identifiers(self.items, "item")

    def side(self, split: str) -> SideInformation:
        """Read the side information of a split, without the user embedding model."""
        users, items = self.shape
        return SideInformation(
            tasks=self.dataset.tasks,
            users=users,
            items=items,
            user_features=read_features(self.user_features, "user", users, split),
            item_features=read_features(self.item_features, "item", items, split),
        )
