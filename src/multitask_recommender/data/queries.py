"""Queries: what is known of users at the moment when items are scored for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse

from multitask_recommender.data.interactions import IntArray, Interactions, pair_matrix
from multitask_recommender.data.recency import Recency
from multitask_recommender.data.tasks import Task

NEW_USER = -1
"""Number of a user who is not among those of the training."""


@dataclass(frozen=True)
class Queries:
    """A block of B queries. A history is an input of scoring, whoever it belongs to.

    Attributes:
        user: (B,) number of the user in training, or ``NEW_USER``.
        history: What is known now: the rows' ``user`` is the place of the query, from 0 to B - 1, ascending; rows of a
            query are in the order of time.
        context: (B, user columns) features of the users; a row without entries where nothing is known.
    """

    user: IntArray
    history: Interactions
    context: sparse.csr_matrix
    _narrowed: dict[tuple[str, ...], Queries] = field(init=False, default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        own = self.history.user
        if self.context.shape[0] != len(self.user):
            raise ValueError(f"{len(self.user)} queries have {self.context.shape[0]} rows of context")
        if len(own) and (own[0] < 0 or own[-1] >= len(self.user) or (np.diff(own) < 0).any()):
            raise ValueError("the rows of the histories are not sorted by the places of their queries")

    def __len__(self) -> int:
        return len(self.user)

    def take(self, places: IntArray) -> Queries:
        """Return the queries at some places, in their order."""
        counts = np.bincount(self.history.user, minlength=len(self))
        rows, owner = _ranges(np.cumsum(counts) - counts, counts, places)
        return Queries(self.user[places], replace(self.history.where(rows), user=owner), self.context[places])

    def blocks(self, size: int) -> Iterator[Queries]:
        """Yield the queries ``size`` at a time."""
        for begin in range(0, len(self), size):
            yield self.take(np.arange(begin, min(begin + size, len(self))))

    def with_tasks(self, names: list[str]) -> Queries:
        """Return the same queries with the labels of some tasks alone; asked again, the same object."""
        if tuple(names) not in self._narrowed:
            self._narrowed[tuple(names)] = replace(self, history=self.history.with_tasks(names))
        return self._narrowed[tuple(names)]

    def weighted(self, recency: Recency) -> Queries:
        """Return the same queries with the rows of the histories weighed by their age."""
        rows = self.history
        return replace(self, history=replace(rows, weight=recency.weights(rows.user, len(self), rows.time)))

    def known(self, items: int) -> sparse.csr_matrix:
        """Return (B, items), nonzero at the items of the histories."""
        return pair_matrix(self.history.user, self.history.item, (len(self), items))

    def left_out(self, name: str, task: Task, items: int) -> sparse.csr_matrix:
        """Return (B, items), nonzero at the items that a list of a task does not hold, because they are known."""
        return self.relevant(name, items) if task.known == "own_task" else self.known(items)

    def relevant(self, task: str, items: int) -> sparse.csr_matrix:
        """Return (B, items) with a one at the items that the user found relevant, however often, or its weight.

        Of an item that stands in a history several times, the weight is the largest.
        """
        rows, weight = self.history.relevant[task], self.history.weight
        user, item = self.history.user[rows], self.history.item[rows]
        matrix = pair_matrix(user, item, (len(self), items))
        matrix.data[:] = 1.0
        if weight is not None:
            matrix.sort_indices()
            key = user * items + item
            order = np.lexsort((weight[rows], key))
            last = np.append(np.diff(key[order]) != 0, True)[: len(order)]
            matrix.data[:] = weight[rows][order][last]
        return matrix


def _ranges(starts: IntArray, counts: IntArray, chosen: IntArray) -> tuple[IntArray, IntArray]:
    """Return the places of the rows of the chosen owners, and for each the place of its owner among the chosen."""
    lengths = counts[chosen]
    owner = np.repeat(np.arange(len(chosen)), lengths)
    begins = starts[chosen] - (np.cumsum(lengths) - lengths)
    return begins[owner] + np.arange(len(owner)), owner


class Histories:
    """The known rows of the users of the training, to ask with.

    Args:
        rows: Rows sorted by user and, within a user, by time.
        context: (users, user columns) features of all users.
    """

    def __init__(self, rows: Interactions, context: sparse.csr_matrix) -> None:
        self.rows, self.context = rows, context
        self._counts = np.bincount(rows.user, minlength=context.shape[0])
        self._starts = np.cumsum(self._counts) - self._counts

    def __len__(self) -> int:
        return self.context.shape[0]

    def of(self, users: IntArray) -> Queries:
        """Return the queries of some users, given by number."""
        if len(users) == len(self) and np.array_equal(users, np.arange(len(self))):
            return Queries(users, self.rows, self.context)  # Nothing is copied for everybody.
        rows, owner = _ranges(self._starts, self._counts, users)
        return Queries(users, replace(self.rows.where(rows), user=owner), self.context[users])
