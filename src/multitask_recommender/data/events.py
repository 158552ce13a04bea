"""From events to pairs: a user may meet an item many times, and models read one row a pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from multitask_recommender.data.interactions import BoolArray, FloatArray, IntArray, Interactions
from multitask_recommender.data.tasks import PairRule, Task

Order = Literal["time", "item"]
_ROWS = 2**21
"""About so many rows are made to pairs at a time."""


def pair_rules(tasks: Mapping[str, Task], merged: str | None = None) -> dict[str, PairRule]:
    """Return how the label of a pair comes from those of its events, per task.

    Args:
        tasks: The tasks by name.
        merged: ``duplicates`` of data whose rows were joined to pairs already: events that come later are joined alike.
    """
    if merged == "maximum":
        return dict.fromkeys(tasks, "maximum")
    return {name: task.pair_rule for name, task in tasks.items()}


def as_pairs(rows: Interactions, rules: Mapping[str, PairRule], order: Order = "time") -> Interactions:
    """Make one row of the events of a pair.

    Its labels come from the labelled events of the pair by the rule of each task. It is relevant for a task if the
    event that the label is taken from is (``first``, ``last``), else if any of them is. Its place and time are those of
    the last event, its fold too.

    Args:
        rows: Events sorted by user and, within a user, by time.
        rules: Task to its rule.
        order: Whether the pairs of a user stand in the order of time or of the items.

    Returns:
        The pairs, sorted by user.
    """
    if len(rows) <= _ROWS:
        return _pairs_of(rows, rules, order)
    # By parts that end with a user: what is sorted is as small as a part.
    parts = [_pairs_of(part, rules, order) for part in _parts(rows)]
    return rows if order == "time" and sum(map(len, parts)) == len(rows) else concatenated(parts)


def _pairs_of(rows: Interactions, rules: Mapping[str, PairRule], order: Order) -> Interactions:
    """Return :func:`as_pairs` of rows that are few enough to be sorted together."""
    key = rows.user * (int(rows.item.max(initial=0)) + 1) + rows.item
    by_pair = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(key[by_pair]) != 0)[: len(key)])
    last = by_pair[np.append(starts[1:], len(key)) - 1] if len(key) else by_pair
    if len(starts) < len(key):
        merged = {name: _merge(rows.labels[name], rows.relevant[name], by_pair, starts, rules[name]) for name in rules}
        labels = {name: label for name, (label, _) in merged.items()}
        pairs = replace(rows.where(last), labels=labels, relevant={name: some for name, (_, some) in merged.items()})
    elif order == "time":
        return rows
    else:
        pairs = rows.where(last)
    # Pairs stand by user and item now.
    return pairs if order == "item" else pairs.where(np.argsort(last, kind="stable"))


def _parts(rows: Interactions) -> Iterator[Interactions]:
    """Divide rows into parts of some ``_ROWS`` that end with a user, and that are at most as long if users allow it."""
    begin = 0
    while begin < len(rows):
        end = min(begin + _ROWS, len(rows))
        if end < len(rows):
            first = int(np.searchsorted(rows.user, rows.user[end]))
            end = first if first > begin else int(np.searchsorted(rows.user, rows.user[end], side="right"))
        yield rows.where(slice(begin, end))
        begin = end


def concatenated(parts: Sequence[Interactions]) -> Interactions:
    """Put rows behind each other."""
    first = parts[0]

    def together(columns: Sequence[np.ndarray | None]) -> Any:
        known = [column for column in columns if column is not None]
        return np.concatenate(known) if known else None

    return Interactions(
        user=together([part.user for part in parts]),
        item=together([part.item for part in parts]),
        labels={name: together([part.labels[name] for part in parts]) for name in first.labels},
        relevant={name: together([part.relevant[name] for part in parts]) for name in first.relevant},
        fold=together([part.fold for part in parts]),
        time=together([part.time for part in parts]),
        weight=together([part.weight for part in parts]),
    )


def _merge(
    label: FloatArray, relevant: BoolArray, by_pair: IntArray, starts: IntArray, rule: PairRule
) -> tuple[FloatArray, BoolArray]:
    """Return (pairs,) labels and relevance of the pairs, whose events stand together in ``by_pair``."""
    values, known = label[by_pair].astype(np.float64), ~np.isnan(label[by_pair])
    counts = np.add.reduceat(known.astype(np.int64), starts)
    none = counts == 0
    if rule in ("first", "last"):
        places = np.arange(len(by_pair))
        if rule == "first":
            chosen = np.minimum.reduceat(np.where(known, places, len(places)), starts)
        else:
            chosen = np.maximum.reduceat(np.where(known, places, -1), starts)
        chosen = by_pair[np.where(none, 0, chosen)]
        found = label[chosen].copy()
        found[none] = np.nan
        return found, relevant[chosen] & ~none
    with np.errstate(invalid="ignore"):
        if rule in ("sum", "mean"):
            total = np.add.reduceat(np.where(known, values, 0.0), starts)
            merged = total if rule == "sum" else total / np.maximum(counts, 1)
        elif rule == "minimum":
            merged = np.fmin.reduceat(values, starts)
        else:
            merged = np.fmax.reduceat(values, starts)
    merged[none] = np.nan
    return merged.astype(np.float32), np.logical_or.reduceat(relevant[by_pair], starts)
