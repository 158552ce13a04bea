"""Histories as people write them, turned into rows that models read; and histories that have grown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

import numpy as np

from multitask_recommender.data.events import as_pairs, pair_rules
from multitask_recommender.data.interactions import Interactions
from multitask_recommender.data.label_values import label_values
from multitask_recommender.data.tasks import PairRule, Task
from multitask_recommender.foundation.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd

Event: TypeAlias = str | int | tuple[Any, Any] | Mapping[str, Any]
History: TypeAlias = Union[Sequence[Event], "pd.DataFrame"]
UnknownItems = Literal["refuse", "ignore"]


class HistoryReader:
    """Reads histories: lists of items, of pairs (item, value of the one signal), of mappings, or a data frame.

    A mapping has ``item_id`` and any of the signals (such as ``rating``) or tasks (such as ``like``) by name.

    Args:
        number_of: Identifier to the number of the item, or None.
        tasks: The tasks by name.
        interactions: The part ``interactions`` of the description of the data set.
        ranges: Task to the smallest and largest label of the training.
    """

    def __init__(
        self,
        number_of: Callable[[Any], int | None],
        tasks: Mapping[str, Task],
        interactions: Mapping[str, Any],
        ranges: Mapping[str, Sequence[float] | None],
    ) -> None:
        self._number_of, self._tasks, self._ranges = number_of, tasks, ranges
        self._signals: dict[str, tuple[float, float]] = {
            name: (signal["minimum"], signal["maximum"]) for name, signal in interactions["signals"].items()
        }
        events = interactions["events"]
        self._signals |= dict.fromkeys(events["kinds"] if events else (), (0.0, 1.0))
        self.rules = pair_rules(tasks, interactions["duplicates"])
        if interactions["duplicates"] == "count":
            self._signals["count"] = (1.0, math.inf)

    def read(self, history: History, unknown_items: UnknownItems = "refuse") -> tuple[Interactions, int]:
        """Read one history, the earliest event first.

        Args:
            history: The events.
            unknown_items: ``ignore`` leaves out events on items that the training did not know.

        Returns:
            The rows, all of user 0, and the number of events left out.

        Raises:
            RequestError: If an event cannot be read, its item is unknown, or a label is outside its range.
        """
        items: list[int] = []
        labels: list[dict[str, Any]] = []
        unknown: list[str] = []
        for event in _events(history):
            identifier, values = self._parts(event)
            item = self._number_of(identifier)
            if item is None:
                unknown.append(str(identifier))
                continue
            items.append(item)
            labels.append(self._labels(str(identifier), values))
        if unknown and unknown_items == "refuse":
            shown = ", ".join(f"'{name}'" for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise RequestError(
                f"The history has {len(unknown)} unknown item{'s' * (len(unknown) > 1)}: {shown}.",
                "history",
                "give identifiers as they stand in the raw data, or ignore unknown items.",
            )
        rows = Interactions(
            user=np.zeros(len(items), np.int64),
            item=np.array(items, dtype=np.int64),
            labels={name: np.array([own[name] for own in labels], dtype=np.float32) for name in self._tasks},
            relevant={name: np.array([own[f"relevant_{name}"] for own in labels], dtype=bool) for name in self._tasks},
        )
        return rows, len(unknown)

    def _parts(self, event: Event) -> tuple[Any, Mapping[str, Any]]:
        """Return the item and the named values of an event."""
        if isinstance(event, Mapping):
            values = dict(event)
            if "item_id" not in values:
                raise RequestError(f"The event {values} names no item.", "history", "name it by 'item_id'.")
            return values.pop("item_id"), values
        if isinstance(event, tuple | list):
            if len(event) != 2:
                raise RequestError(f"The event {event} is no pair.", "history", "give (item, value) or a mapping.")
            item, value = event
            if isinstance(value, Mapping):
                return item, value
            if len(self._signals) != 1:
                raise RequestError(
                    f"It is not clear what the value {value} of item '{item}' is.",
                    "history",
                    f"name it, as in {{'item_id': '{item}', '{next(iter([*self._signals, *self._tasks]))}': {value}}}.",
                )
            return item, {next(iter(self._signals)): value}
        return event, {}

    def _labels(self, item: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the labels of all tasks for an event."""
        where = f"history, item '{item}'"
        signals: dict[str, float] = {}
        given: dict[str, float] = {}
        for name, value in values.items():
            if name not in self._signals and name not in self._tasks:
                names = ", ".join(dict.fromkeys([*self._signals, *self._tasks]))
                raise RequestError(f"'{name}' is neither a signal nor a task.", where, f"name one of {names}.")
            try:
                number = math.nan if value is None else float(value)
            except (TypeError, ValueError):
                raise RequestError(f"'{name}' is '{value}', which is no number.", where, "give a number.") from None
            if math.isnan(number):
                continue
            if name in self._signals:
                _check(name, number, self._signals[name], where)
                signals[name] = number
            else:
                low, high = self._ranges[name] or (-math.inf, math.inf)
                _check(name, number, (0.0, high) if self._tasks[name].kind == "retrieval" else (low, high), where)
                given[name] = number
        labels = label_values(signals, given, self._tasks)
        for name, limits in self._ranges.items():
            if limits is not None and not math.isnan(labels[name]):
                _check(name, float(np.float32(labels[name])), limits, where)
        return labels


def _check(name: str, number: float, limits: Sequence[float], where: str) -> None:
    low, high = limits
    if not low <= number <= high:
        raise RequestError(
            f"'{name}' is {number:g}, which is out of range.", where, f"give a number from {low:g} to {high:g}."
        )


def _events(history: History) -> Iterable[Event]:
    if isinstance(history, str):
        raise RequestError("The history is a text.", "history", "give a list of events, such as ['50', '181'].")
    return history if isinstance(history, Sequence) else history.to_dict("records")  # type: ignore[return-value]


def joined(parts: Sequence[Interactions], rules: Mapping[str, PairRule]) -> Interactions:
    """Put histories together, the earlier part first, so that an item stands once in a history: at its last place.

    Args:
        parts: Rows whose ``user`` is the place of a query; a query's rows are in the order of time.
        rules: Task to how the label of a pair comes from its rows.

    Returns:
        Rows sorted by query and time.
    """
    user = np.concatenate([part.user for part in parts])
    order = np.argsort(user, kind="stable")
    item = np.concatenate([part.item for part in parts])
    labels = {name: np.concatenate([part.labels[name] for part in parts])[order] for name in parts[0].labels}
    relevant = {name: np.concatenate([part.relevant[name] for part in parts])[order] for name in labels}
    times = [part.time for part in parts if part.time is not None or len(part)]
    time = None
    if times and all(own is not None for own in times):
        time = np.concatenate([own for own in times if own is not None])[order]
    return as_pairs(Interactions(user[order], item[order], labels, relevant, time=time), rules)
