"""Folds inside the training rows: what is trained on, asked with and held out, so that it resembles the test."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from multitask_recommender.data.interactions import BoolArray, Interactions

Folding = Literal["random", "forward", "users"]
"""How folds are made of training rows.

``random``: every row is in one fold. ``forward`` (forward chaining): a fold is a slice of time, and what comes after it
is not looked at; the latest slice is fold 0, and the rows before all slices are in none. ``users``: every user is in
one fold, whose rows no model is trained on; the user is asked with a part of them, and the others are held out.
"""


Candidates = Literal["trained", "new", "all"]
"""Which items may be recommended: those with training rows, those without, or all."""


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


class FoldRows(NamedTuple):
    """The parts of the training rows for one fold.

    Attributes:
        train: Rows that a model is trained on.
        known: Rows that users are asked with.
        held_out: Rows that it is measured on.
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


def fold_rows(folding: Folding, rows: Interactions, number: int, folds: int) -> FoldRows:
    """Return the parts of the training rows for one fold; arguments as in :func:`fold_masks`."""
    assert rows.fold is not None
    return FoldRows(*(rows.where(mask) for mask in fold_masks(folding, rows.fold, number, folds)))
