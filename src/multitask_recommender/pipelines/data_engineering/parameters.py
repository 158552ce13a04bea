"""Parameters of the pipeline ``data_engineering``: what the raw tables are, and how they are split."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from multitask_recommender.settings_base import Settings
from multitask_recommender.tasks import Task

SplitName = Literal["random", "chronological", "temporal", "cold_items"]


class Signal(Settings):
    """A numeric column of the interactions, such as the rating.

    Attributes:
        column: Name of the column in the raw table.
        minimum: Smallest value allowed.
        maximum: Largest value allowed.
        optional: Whether the value may be missing.
    """

    column: str
    minimum: float
    maximum: float
    optional: bool = False

    @model_validator(mode="after")
    def _check(self) -> Signal:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self


class InteractionTable(Settings):
    """Which column of ``raw_interactions`` is what.

    Attributes:
        user_id: Column with the user's identifier.
        item_id: Column with the item's identifier.
        timestamp: Column with a number that grows with time, or null.
        signals: Numeric columns, by the name that label expressions use.
    """

    user_id: str
    item_id: str
    timestamp: str | None = None
    signals: dict[str, Signal] = Field(default_factory=dict)


class Feature(Settings):
    """A feature of a user or an item.

    Attributes:
        kind: ``numeric`` (cut into ``bins`` of equal count), ``category`` (one value), ``categories`` (several,
            divided by ``separator``) or ``text`` (its words).
        column: Column of the raw table that holds it; or
        relation: relation of the item graph that holds it (items only; always several values).
        separator: What divides the values of ``categories``.
        bins: Number of bins of a numeric feature.
        first_characters: Keep only so many leading characters of a category (a zip code's region).
        minimum_count: A value seen on fewer users (items) than this joins the value ``(rare)``.
    """

    kind: Literal["numeric", "category", "categories", "text"]
    column: str | None = None
    relation: str | None = None
    separator: str = " "
    bins: int = Field(default=8, ge=2)
    first_characters: int | None = Field(default=None, ge=1)
    minimum_count: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Feature:
        if (self.column is None) == (self.relation is None):
            raise ValueError("a feature needs either 'column' or 'relation'")
        if self.relation is not None and self.kind != "categories":
            raise ValueError("a feature with a 'relation' is of kind 'categories'")
        return self


class UserTable(Settings):
    """Which column of ``raw_users`` is what.

    Attributes:
        user_id: Column with the user's identifier.
        features: Features by name.
        activity: Name of the feature that counts the user's training interactions (doubling bins), or null.
    """

    user_id: str
    features: dict[str, Feature] = Field(default_factory=dict)
    activity: str | None = None


class ItemTable(Settings):
    """Which column of ``raw_items`` is what.

    Attributes:
        item_id: Column with the item's identifier.
        title: Column with the title that lists of recommendations show, or null.
        features: Features by name.
    """

    item_id: str
    title: str | None = None
    features: dict[str, Feature] = Field(default_factory=dict)


class ItemGraph(Settings):
    """A knowledge graph of the items: ``raw_item_links`` names an item's entity, ``raw_item_graph`` its relations.

    Attributes:
        item_id: Column of ``raw_item_links`` with the item's identifier.
        entity: Column of ``raw_item_links`` with the entity.
        head: Column of ``raw_item_graph`` with the entity a relation starts from.
        relation: Column of ``raw_item_graph`` with the name of the relation.
        tail: Column of ``raw_item_graph`` with the entity a relation leads to.
    """

    item_id: str
    entity: str
    head: str
    relation: str
    tail: str


class DatasetSettings(Settings):
    """The description of a data set.

    Attributes:
        name: Name of the data set in every result.
        interactions: The columns of ``raw_interactions``.
        users: The columns of ``raw_users``.
        items: The columns of ``raw_items``.
        item_graph: The columns of the item graph, or null.
        tasks: The tasks by name.
    """

    name: str
    interactions: InteractionTable
    users: UserTable
    items: ItemTable
    item_graph: ItemGraph | None = None
    tasks: dict[str, Task] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> DatasetSettings:
        reserved = {"row", "user", "item", "user_id", "item_id", "timestamp"} & set(self.interactions.signals)
        if reserved:
            raise ValueError(f"signals cannot be called {', '.join(sorted(reserved))}")
        for side, features in (("users", self.users.features), ("items", self.items.features)):
            for name, feature in features.items():
                if feature.relation is not None and (side == "users" or self.item_graph is None):
                    raise ValueError(f"feature '{name}' of {side} has a 'relation' but there is no item graph")
                label_columns = {signal.column for signal in self.interactions.signals.values()}
                if feature.column in label_columns:
                    raise ValueError(f"feature '{name}' of {side} reads '{feature.column}', which is a label column")
        for name, task in self.tasks.items():
            before, visited = task.after, {name}
            while before is not None:
                if before not in self.tasks:
                    raise ValueError(f"task '{name}' comes after '{before}', which is not a task")
                if before in visited:
                    raise ValueError(f"the funnel of task '{name}' runs in a circle through '{before}'")
                visited.add(before)
                before = self.tasks[before].after
        return self


class SplitSettings(Settings):
    """How interactions are divided into training, validation and test rows.

    Attributes:
        strategies: The splits to study; see the README of this pipeline.
        seed: Seed of the shuffles.
        test_share: Share of test rows of the splits ``chronological``, ``temporal`` and (of items) ``cold_items``.
        random_test_share: Share of test rows of the split ``random``.
        validation_share: Share of validation rows.
        folds: Number of cross-validation folds inside the training rows.
    """

    strategies: list[SplitName] = Field(min_length=1)
    seed: int = Field(ge=0, lt=2**32)
    random_test_share: float = Field(default=0.1, gt=0, lt=1)
    test_share: float = Field(default=0.2, gt=0, lt=1)
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    folds: int = Field(ge=2)

    @model_validator(mode="after")
    def _check(self) -> SplitSettings:
        if max(self.test_share, self.random_test_share) + self.validation_share >= 1:
            raise ValueError("test and validation shares leave no training rows")
        if len(set(self.strategies)) != len(self.strategies):
            raise ValueError("a split strategy is listed twice")
        return self

    @property
    def names(self) -> list[str]:
        """The split strategies in the declared order."""
        return list(self.strategies)
