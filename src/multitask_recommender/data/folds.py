"""Folds inside the training rows: what is trained on, asked with and held out, so that it resembles the test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from multitask_recommender.data.events import as_pairs, pair_rules
from multitask_recommender.data.interactions import BoolArray, Interactions
from multitask_recommender.data.tasks import Task

Folding = Literal["random", "forward", "users"]
"""How folds are made of training rows.

``random``: every row is in one fold. ``forward`` (forward chaining): a fold is a slice of time, and what comes after it
is not looked at; the latest slice is fold 0, and the rows before all slices are in none. ``users``: every user is in
one fold, whose rows no model is trained on; the user is asked with a part of them, and the others are held out.
"""


Candidates = Literal["trained", "new", "all"]
"""Which items may be recommended: those with training rows, those without, or all."""


IN_TIME = ("chronological", "temporal", "leave_last_out")
"""Splits whose test is the future; they need timestamps."""


class SplitRule(NamedTuple):
    """What models and measures have to know of a split.

    Attributes:
        name: Its name.
        candidates: Which items may be recommended.
        folding: How the folds of its training rows are made.
        folds: Their number.
    """

    name: str
    candidates: Candidates
    folding: Folding
    folds: int

    @property
    def in_time(self) -> bool:
        """Whether the test is the future, as far as the folds know."""
        return self.folding == "forward"


class FoldPairs(NamedTuple):
    """The parts of the training rows for one fold, as pairs.

    Attributes:
        train: What a model is trained on.
        known: What users are asked with.
        held_out: What it is measured on.
    """

    train: Interactions
    known: Interactions
    held_out: Interactions


def fold_masks(folding: Folding, fold: np.ndarray, number: int, folds: int) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Return which rows are trained on, asked with and held out.

    Args:
        folding: How the folds were made.
        fold: (rows,) the column ``fold`` of the training rows. ``forward``: ``folds`` stands for the rows before all
            slices. ``users``: f for the rows of the users of fold f that are held out, ``folds`` + 1 + f for those that
            they are asked with.
        number: The fold.
        folds: Number of folds.
    """
    held_out = fold == number
    if folding == "forward":
        return fold > number, fold > number, held_out
    return ~held_out & (fold != folds + 1 + number), ~held_out, held_out


def fold_pairs(split: SplitRule, events: Interactions, number: int, tasks: Mapping[str, Task]) -> FoldPairs:
    """Return the pairs that the parts of the training rows make for one fold.

    Args:
        split: The split.
        events: Its training rows with their folds.
        number: The fold.
        tasks: The tasks by name.
    """
    assert events.fold is not None
    rules, masks = pair_rules(tasks), fold_masks(split.folding, events.fold, number, split.folds)
    return FoldPairs(*(as_pairs(events.where(mask), rules) for mask in masks))
