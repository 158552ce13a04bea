"""Parameters of the pipeline ``data_engineering``: what the raw tables are, and how they are split."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from datetime import date
from typing import Annotated, Literal

import duckdb
from pydantic import AllowInfNan, Field, field_validator, model_validator

from multitask_recommender.data.dates import check_formats
from multitask_recommender.data.folds import IN_TIME, Candidates, Folding, SplitRule
from multitask_recommender.data.label_expressions import NOT_NAMES
from multitask_recommender.data.tasks import Task
from multitask_recommender.foundation.settings_base import Settings

SplitName = Literal["random", "chronological", "temporal", "leave_last_out", "given", "cold_items", "cold_users"]


TimeUnit = Literal["days", "hours", "minutes", "seconds", "milliseconds", "microseconds", "nanoseconds", "order"]
Missing = list[str | int | float]
_LARGEST = sys.float_info.max
RowHandling = Literal["refuse", "drop"]
Duplicates = Literal["refuse", "first", "last"]
MERGED = ("maximum", "minimum", "sum", "mean", "count")
"""Ways to make one row of the rows that repeat a pair."""


class Signal(Settings):
    """A numeric column of the interactions, such as the rating.

    Attributes:
        column: Name of the column in the raw table.
        minimum: Smallest value allowed.
        maximum: Largest value allowed.
        missing_values: Values that stand for none, such as 0 where 0 means that no score was given.
        optional: Whether the value may be missing.
        true_values: Texts that stand for 1, such as ``yes``; ``true`` in any case always does.
        false_values: Texts that stand for 0; ``false`` in any case always does.
        files: Of a table in several files, the names of those in which the column is this signal; in the rows of the
            others it is missing.
    """

    column: str
    minimum: Annotated[float, AllowInfNan(True)] = -math.inf
    maximum: Annotated[float, AllowInfNan(True)] = math.inf
    missing_values: Missing = Field(default_factory=list)
    optional: bool = False
    true_values: list[str] = Field(default_factory=list)
    false_values: list[str] = Field(default_factory=list)
    files: list[str] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Signal:
        if not self.minimum <= self.maximum:
            raise ValueError(f"minimum {self.minimum} is not below maximum {self.maximum}")
        twice = set(self.true_values) & set(self.false_values)
        if twice:
            raise ValueError(f"'{min(twice)}' is both one of 'true_values' and one of 'false_values'")
        return self

    @property
    def may_be_missing(self) -> bool:
        """Whether a row without the value is in order."""
        return self.optional or bool(self.missing_values)


class Events(Settings):
    """Rows that are events of several kinds, such as view, cart and purchase; pairs get one 0/1 signal per kind.

    Attributes:
        column: Column with the kind of the event; ``(file)`` where every kind has a file of its own.
        kinds: Signal to the column's value that stands for it.
        others: What happens to rows of another kind.
    """

    column: str
    kinds: dict[str, str] = Field(min_length=1)
    others: RowHandling = "refuse"


class GivenParts(Settings):
    """Which rows the data itself divides into training, validation and test rows.

    Attributes:
        column: Column that names the part; ``(file)`` where every part has a file of its own.
        train: Values of the training rows.
        validation: Values of the validation rows.
        test: Values of the test rows.
        unused: Values of rows that the split ``given`` leaves out.
    """

    column: str
    train: list[str] = Field(default=["train"], min_length=1)
    validation: list[str] = Field(default=["validation"])
    test: list[str] = Field(default=["test"], min_length=1)
    unused: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> GivenParts:
        values = [value for part in self.parts.values() for value in part]
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"the value '{value}' stands for two parts")
        return self

    @property
    def parts(self) -> dict[str, list[str]]:
        """Part to its values."""
        return {name: getattr(self, name) for name in ("train", "validation", "test", "unused")}


class InteractionTable(Settings):
    """Which column of ``raw_interactions`` is what.

    Attributes:
        user_id: Column with the user's identifier.
        item_id: Column with the item's identifier.
        user_id_length: Fill shorter user identifiers with leading zeros to this length.
        item_id_length: The same for item identifiers.
        user_id_integer: Whether user identifiers such as ``9.0`` and ``9e0`` are the integer ``9``.
        item_id_integer: The same for item identifiers.
        decimal: What divides the whole part of signals and timestamps from the fraction.
        timestamp: Column with a number that grows with time, or null.
        timestamp_formats: Where it is a date instead: its formats, such as ``%Y-%m-%d %H:%M:%S``.
        timestamp_unit: What the number counts since 1970; ``order``: it only grows with time. Null: by its size, see
            ``tables.py``.
        signals: Numeric columns, by the name that label expressions use.
        events: Where rows are events of several kinds; ``duplicates: refuse`` then means ``keep``, as events of a pair
            are in order.
        duplicates: What happens to rows that repeat a pair: ``refuse`` them, ``keep`` them all as events (the labels of
            a pair come from them by ``of_pair`` of each task), keep the ``first`` or ``last`` by time (by place in the
            file where there is no time), or make one row of them with the ``maximum``, ``minimum``, ``sum`` or ``mean``
            of every signal; ``count`` makes one row with the number of rows as the signal ``count`` and the maximum of
            every other signal. The time is that of the last row.
        unreadable: What happens to rows without identifiers, or with a timestamp or signal that cannot be read or is
            outside its range.
        part: Where the data says itself what is training and what is test, for the split ``given``.
        unknown_users: What happens to rows of users that ``raw_users`` does not have; ``keep`` adds the user, with
            all features missing.
        unknown_items: The same for items.
    """

    user_id: str
    item_id: str
    user_id_length: int | None = Field(default=None, ge=1, le=1000)
    item_id_length: int | None = Field(default=None, ge=1, le=1000)
    user_id_integer: bool = False
    item_id_integer: bool = False
    decimal: Literal[".", ","] = "."
    timestamp: str | None = None
    timestamp_formats: list[str] = Field(default_factory=list)
    timestamp_unit: TimeUnit | None = None
    signals: dict[str, Signal] = Field(default_factory=dict)
    events: Events | None = None
    duplicates: Literal["refuse", "keep", "first", "last", "maximum", "minimum", "sum", "mean", "count"] = "refuse"
    unreadable: RowHandling = "refuse"
    part: GivenParts | None = None
    unknown_users: Literal["refuse", "drop", "keep"] = "refuse"
    unknown_items: Literal["refuse", "drop", "keep"] = "refuse"

    _check_formats = field_validator("timestamp_formats")(check_formats)

    @model_validator(mode="after")
    def _check(self) -> InteractionTable:
        if self.events is not None and self.duplicates in ("first", "last"):
            raise ValueError(
                f"'duplicates: {self.duplicates}' would keep one event of a pair; with 'events' name a merge"
            )
        return self

    @property
    def keeps_events(self) -> bool:
        """Whether a user may meet an item many times, each time in a row of its own."""
        return self.duplicates == "keep" or (self.events is not None and self.duplicates == "refuse")

    @property
    def signal_names(self) -> list[str]:
        """Names of all signals, those of events and the number of rows last."""
        counted = ["count"] if self.duplicates == "count" else []
        return [*self.signals, *(self.events.kinds if self.events else []), *counted]


class Feature(Settings):
    """A feature of a user or an item.

    Attributes:
        kind: ``numeric`` (cut into ``bins`` of equal count), ``category`` (one value), ``categories`` (several,
            divided by ``separator``), ``text`` (its words) or ``date`` (a number: its ``year`` or an ``age`` in years).
        column: Column of the raw table that holds it; or
        columns: several columns of 0 and 1, which are one feature of several values: the names of those with a 1; or
        relation: relation of the item graph that holds it (items only; always several values).
        separator: What divides the values of ``categories``, or the parts of a ``category``. Texts in square brackets
            are lists as programs write them, whatever the separator.
        part: Of a ``category`` that is divided by ``separator``, the part to take: 1 the first, -1 the last.
        pattern: Regular expression whose first group is the value, for a value inside a longer text.
        bins: Number of bins of a numeric feature.
        minimum: Smallest plausible number; below it the value counts as missing.
        maximum: Largest plausible number; above it the value counts as missing.
        missing_values: Values that stand for none, such as 0 for an unknown year.
        formats: Formats of a date, such as ``%d.%m.%Y``; the first that fits is taken.
        of_date: What a date becomes: its ``year``, or the ``age`` on the ``reference`` day.
        reference: The day on which ages are counted.
        hash_columns: Words of a ``text`` share so many columns by their MD5 digest, instead of one column a word.
        first_characters: Keep only so many leading characters of a category (a zip code's region).
        minimum_count: A value seen on fewer users (items) than this joins the value ``(rare)``; bins of numbers do not.
        unreadable: What happens to a value that is not a number or a date: ``refuse`` it, or count it as ``missing``.
    """

    kind: Literal["numeric", "category", "categories", "text", "date"]
    column: str | None = None
    columns: list[str] | None = Field(default=None, min_length=1)
    relation: str | None = None
    separator: str = " "
    part: int | None = Field(default=None, ge=-1000, le=1000)
    pattern: str | None = Field(default=None, max_length=1000)
    bins: int = Field(default=8, ge=2, le=10_000)
    minimum: float | None = Field(default=None, ge=-_LARGEST, le=_LARGEST)
    maximum: float | None = Field(default=None, ge=-_LARGEST, le=_LARGEST)
    missing_values: Missing = Field(default_factory=list)
    formats: list[str] = Field(default_factory=list)
    of_date: Literal["year", "age"] = "year"
    reference: date | None = None
    hash_columns: int | None = Field(default=None, ge=1, le=2**20)
    first_characters: int | None = Field(default=None, ge=1, le=10_000)
    minimum_count: int = Field(default=2, ge=1, le=10**9)
    unreadable: Literal["refuse", "missing"] = "refuse"

    _check_formats = field_validator("formats")(check_formats)

    @model_validator(mode="after")
    def _check(self) -> Feature:
        sources = [name for name in ("column", "columns", "relation") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ValueError("a feature needs either 'column', 'columns' or 'relation'")
        if sources != ["column"] and self.kind != "categories":
            raise ValueError(f"a feature with '{sources[0]}' is of kind 'categories'")
        if (self.kind == "date") != bool(self.formats):
            raise ValueError("'formats' belong to features of kind 'date', which need them")
        if self.kind == "date" and (self.of_date == "age") != (self.reference is not None):
            raise ValueError("'of_date: age' needs the 'reference' day, and nothing else does")
        if self.part is not None and (self.part == 0 or self.kind != "category"):
            raise ValueError("'part' counts from 1, or from -1 at the end, and belongs to features of kind 'category'")
        if self.pattern is not None:
            _check_pattern(self.pattern)
        if self.hash_columns is not None and self.kind != "text":
            raise ValueError("'hash_columns' belongs to features of kind 'text'")
        if not self.is_number and (self.minimum is not None or self.maximum is not None):
            raise ValueError("'minimum' and 'maximum' belong to features of kind 'numeric' or 'date'")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum:g} is not below maximum {self.maximum:g}: all would be missing")
        return self

    @property
    def is_number(self) -> bool:
        """Whether the canonical table holds the feature as a number."""
        return self.kind in ("numeric", "date")

    @property
    def is_checked(self) -> bool:
        """Whether a value may be unreadable."""
        return self.is_number or self.columns is not None

    @property
    def raw_columns(self) -> list[str]:
        """The columns of the raw table that hold the feature."""
        return self.columns or ([self.column] if self.column is not None else [])


def _check_pattern(pattern: str) -> None:
    """Refuse a regular expression that the engine which will match it does not know, such as one that looks ahead."""
    with duckdb.connect() as engine:
        try:
            engine.execute("SELECT regexp_extract('', $1)", [pattern])
        except (duckdb.Error, RuntimeError, ValueError) as error:
            raise ValueError(
                f"'pattern: {pattern}' cannot be used: {str(error).split(': ', 1)[-1]}. Patterns are those of RE2, "
                "which looks neither ahead nor behind: match what surrounds the value, and put the value in brackets"
            ) from None
        try:
            # A name for the first group, which has to exist.
            engine.execute("SELECT regexp_extract('', $1, ['group'])", [pattern])
        except duckdb.Error:
            raise ValueError(f"'pattern: {pattern}' has no group: put the value in round brackets") from None


class UserTable(Settings):
    """Which column of ``raw_users`` is what.

    Attributes:
        user_id: Column with the user's identifier; null where there is no such table, and the users are those of the
            interactions.
        id_length: Fill shorter identifiers with leading zeros to this length.
        id_integer: Whether identifiers such as ``9.0`` and ``9e0`` are the integer ``9``.
        decimal: What divides the whole part of numeric features from the fraction.
        features: Features by name.
        activity: Name of the feature that counts the user's training interactions (doubling bins), or null.
        groups: Names of features with one value a user, between whose values the main metrics are compared.
        duplicates: What happens to rows that repeat an identifier: ``refuse``, or keep the ``first`` or ``last``.
        unreadable: What happens to rows without identifier.
    """

    user_id: str | None = None
    id_length: int | None = Field(default=None, ge=1, le=1000)
    id_integer: bool = False
    decimal: Literal[".", ","] = "."
    features: dict[str, Feature] = Field(default_factory=dict)
    activity: str | None = None
    groups: list[str] = Field(default_factory=list)
    duplicates: Duplicates = "refuse"
    unreadable: RowHandling = "refuse"

    @model_validator(mode="after")
    def _check(self) -> UserTable:
        if self.user_id is None and self.features:
            raise ValueError("features of users need the column 'user_id' of raw_users")
        single = [name for name, one in self.features.items() if one.kind in ("numeric", "category", "date")]
        single += [self.activity] if self.activity is not None else []
        twice = [name for name in self.groups if self.groups.count(name) > 1]
        if twice:
            raise ValueError(f"'groups' names '{twice[0]}' twice")
        unknown = [name for name in self.groups if name not in single]
        if unknown:
            raise ValueError(
                f"'groups' names '{unknown[0]}'; the features with one value a user are: {', '.join(single) or 'none'}"
            )
        return self


class ItemTable(Settings):
    """Which column of ``raw_items`` is what.

    Attributes:
        item_id: Column with the item's identifier; null where there is no such table, and the items are those of the
            interactions.
        id_length: Fill shorter identifiers with leading zeros to this length.
        id_integer: Whether identifiers such as ``9.0`` and ``9e0`` are the integer ``9``.
        decimal: What divides the whole part of numeric features from the fraction.
        title: Column with the title that lists of recommendations show, or null.
        features: Features by name.
        categories: Name of the feature of kind ``category`` or ``categories`` by whose values lists are compared with
            what a user has met (the metric ``miscalibration``), or null.
        duplicates: What happens to rows that repeat an identifier: ``refuse``, or keep the ``first`` or ``last``.
        unreadable: What happens to rows without identifier.
    """

    item_id: str | None = None
    id_length: int | None = Field(default=None, ge=1, le=1000)
    id_integer: bool = False
    decimal: Literal[".", ","] = "."
    title: str | None = None
    features: dict[str, Feature] = Field(default_factory=dict)
    categories: str | None = None
    duplicates: Duplicates = "refuse"
    unreadable: RowHandling = "refuse"

    @model_validator(mode="after")
    def _check(self) -> ItemTable:
        if self.item_id is None and (self.features or self.title):
            raise ValueError("features and titles of items need the column 'item_id' of raw_items")
        named = [name for name, one in self.features.items() if one.kind in ("category", "categories")]
        if self.categories is not None and self.categories not in named:
            raise ValueError(
                f"'categories' names '{self.categories}'; the features of kind category or categories are: "
                f"{', '.join(named) or 'none'}"
            )
        return self


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
        users: The columns of ``raw_users``; null without such a table.
        items: The columns of ``raw_items``; null without such a table.
        item_graph: The columns of the item graph, or null.
        tasks: The tasks by name.
    """

    name: str
    interactions: InteractionTable
    users: UserTable = UserTable()
    items: ItemTable = ItemTable()
    item_graph: ItemGraph | None = None
    tasks: dict[str, Task] = Field(min_length=1)

    @field_validator("users", "items", mode="before")
    @classmethod
    def _absent(cls, value: object) -> object:
        return {} if value is None else value

    @model_validator(mode="after")
    def _check(self) -> DatasetSettings:
        signals, events = self.interactions.signals, self.interactions.events
        twice = set(signals) & set(events.kinds if events else ())
        if twice:
            raise ValueError(f"'{min(twice)}' is both a signal and a kind of event")
        names = self.interactions.signal_names
        _check_names("signals", names, {*_INTERACTION_COLUMNS, *(f"raw_{name}" for name in signals)})
        wrong = NOT_NAMES.intersection(names)
        if wrong:
            raise ValueError(f"signals cannot be called '{min(wrong)}', a word of label expressions")
        _check_names("tasks", self.tasks, {*_LABEL_COLUMNS, *(f"relevant_{name}" for name in self.tasks)})
        label_columns = {signal.column: f"dataset.interactions.signals.{name}" for name, signal in signals.items()}
        if events is not None:
            label_columns[events.column] = "dataset.interactions.events"
        for side, described in (("users", self.users), ("items", self.items)):
            features = described.features
            own = [*features, *([self.users.activity] if side == "users" and self.users.activity else [])]
            checked = {f"raw_{name}" for name, feature in features.items() if feature.is_checked}
            _check_names(f"features of {side}", own, {*_SIDE_COLUMNS, *checked})
            for name, feature in features.items():
                if feature.relation is not None and (side == "users" or self.item_graph is None):
                    raise ValueError(f"feature '{name}' of {side} has a 'relation' but there is no item graph")
                for column in feature.raw_columns:
                    if column in label_columns:
                        raise ValueError(
                            f"dataset.{side}.features.{name}.column is '{column}', which is a label column "
                            f"({label_columns[column]}): a model would see what it has to predict"
                        )
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


_INTERACTION_COLUMNS = frozenset(
    {"row", "user", "item", "user_id", "item_id", "timestamp", "raw_timestamp", "time", "event", "fault", "file"}
    | {"invisible_user_id", "invisible_item_id", "occurrence", "key", "given_part"}
)
_LABEL_COLUMNS = frozenset(
    {"row", "user", "item", "item_id", "timestamp", "time", "given_part", "split", "part", "fold", "position"}
)
_SIDE_COLUMNS = frozenset(
    {"row", "user", "item", "user_id", "item_id", "title", "fault", "occurrence", "key"}
    | {"invisible_user_id", "invisible_item_id"}
)


def _check_names(what: str, names: Iterable[str], taken: set[str]) -> None:
    """Refuse names that the tables use already, or that differ in case alone, as engines do not tell."""
    seen: dict[str, str] = {}
    # Names of columns are arguments of Ibis's methods, which have one of their own.
    reserved = {"self", *(name.casefold() for name in taken)}
    for name in names:
        folded = name.casefold()
        if folded in reserved or (name.startswith("(") and name.endswith(")")):
            raise ValueError(f"{what} cannot be called '{name}', a name that the project's own tables use")
        if folded in seen:
            raise ValueError(f"{what} cannot be called '{seen[folded]}' and '{name}', which differ at most in case")
        if not name.isprintable() or name != name.strip() or not name:
            raise ValueError(
                f"{what} cannot be called {name!r}: a name begins and ends with characters that can be seen"
            )
        seen[folded] = name


class SplitSettings(Settings):
    """How interactions are divided into training, validation and test rows.

    Attributes:
        strategies: The splits to study; see the README of this pipeline.
        seed: Seed of the shuffles.
        test_share: Share of test rows of the splits ``chronological``, ``temporal`` and (of items) ``cold_items``.
        random_test_share: Share of test rows of the split ``random``.
        validation_share: Share of validation rows; 0 for none.
        folds: Number of cross-validation folds inside the training rows.
        hidden_share: Of the split ``cold_users``, the share of a new user's rows that is to be found.
        leave_last_out: Name of the task whose last positive row the split ``leave_last_out`` tests; null: the last
            row of any kind. In YAML, ``{leave_last_out: task}`` in the list of strategies says the same.
        folding: ``{given: forward}`` where the parts that the data names follow each other in time; else its folds are
            random. Those of the other splits follow from what they test (see ``folds.py``).
        candidates: Split to the items that may be recommended on it: ``trained`` (those with training rows, the
            default), ``new`` (those without: which of the new items does a user get? the default of ``cold_items``), or
            ``all``.
    """

    strategies: list[SplitName] = Field(min_length=1)
    seed: int = Field(ge=0, lt=2**32)
    random_test_share: float = Field(default=0.1, gt=0, lt=1)
    test_share: float = Field(default=0.2, gt=0, lt=1)
    validation_share: float = Field(default=0.1, ge=0, lt=1)
    folds: int = Field(ge=2, le=10_000)
    hidden_share: float = Field(default=0.2, gt=0, lt=1)
    leave_last_out: str | None = None
    folding: dict[Literal["given"], Literal["random", "forward"]] = Field(default_factory=dict)
    candidates: dict[SplitName, Candidates] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read_task(cls, values: object) -> object:
        if not isinstance(values, dict) or not isinstance(values.get("strategies"), list):
            return values
        names, task = [], values.get("leave_last_out")
        for entry in values["strategies"]:
            if isinstance(entry, dict) and list(entry) == ["leave_last_out"]:
                task = entry["leave_last_out"]
                entry = "leave_last_out"
            names.append(entry)
        return {**values, "strategies": names, "leave_last_out": task}

    @model_validator(mode="after")
    def _check(self) -> SplitSettings:
        if max(self.test_share, self.random_test_share) + self.validation_share >= 1:
            raise ValueError("test and validation shares leave no training rows")
        if len(set(self.strategies)) != len(self.strategies):
            raise ValueError("a split strategy is listed twice")
        return self

    def rule(self, split: str) -> SplitRule:
        """Return what else there is to know of a split."""
        return SplitRule(split, self.candidates_of(split), self.folding_of(split), self.folds)

    @property
    def names(self) -> list[str]:
        """The split strategies in the declared order."""
        return list(self.strategies)

    def folding_of(self, split: str) -> Folding:
        """Return how the folds of a split are made."""
        if split == "given":
            return self.folding.get("given", "random")
        if split in IN_TIME:
            return "forward"
        return "users" if split == "cold_users" else "random"

    def candidates_of(self, split: str) -> Candidates:
        """Return which items may be recommended on a split."""
        default: Candidates = "new" if split == "cold_items" else "trained"
        return {str(name): rule for name, rule in self.candidates.items()}.get(split, default)
