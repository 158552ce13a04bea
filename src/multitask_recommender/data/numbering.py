"""Numbers of users and items, by what is known of them and not by their identifiers.

Everything downstream may depend on a number: initial vectors, the order of rows, shuffles, equal scores. So a number is
the rank of a fingerprint that no renaming changes: a colour by Weisfeiler and Leman (1968), as counted for kernels by
Shervashidze et al. (JMLR 2011), on the graph in which an interaction joins a user and an item. The first colours are
hashes of the seed and of the features; in every round a colour is joined by the multiset of the neighbours' colours,
each with the time of the interaction, until no more colours come apart. Labels and signals have no part in it, so
that no label of a test row can move a weight.

Users (items) of one colour are ordered by their first interaction in the raw files, and those without any by their
identifiers. Those of one colour that no label tells apart either are as a rule images of each other under a symmetry
of the whole data set, so that any order of them gives the same figures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from multitask_recommender.data.streams import read_arrays
from multitask_recommender.foundation.randomness import derive_seed, scramble

Colours = NDArray[np.uint64]
_MOST_ROUNDS = 10
_BLOCK = 2**20
_PLACE, _KIND, _FIRST = "(place)", "(kind)", "(first)"  # Features may have any name without parentheses.


def refine(
    user: NDArray[np.int32], item: NDArray[np.int32], time: NDArray[np.float64], colours: tuple[Colours, Colours]
) -> tuple[Colours, Colours]:
    """Refine the colours of users and items until no more of them come apart, or for a bounded number of rounds.

    Args:
        user: (rows,) user of each interaction.
        item: (rows,) item of each interaction.
        time: (rows,) time of each interaction, in any unit; NaN where there is none.
        colours: (users,) and (items,) first colours.

    Returns:
        (users,) and (items,) colours, which do not depend on the order of the rows.
    """
    edge = scramble((time + 0.0).view(np.uint64))  # Adding 0 makes one number of 0 and -0.

    def joined(own: Colours, receiver: NDArray[np.int32], others: Colours, sender: NDArray[np.int32]) -> Colours:
        total = np.zeros_like(own)
        for begin in range(0, len(edge), _BLOCK):
            rows = slice(begin, begin + _BLOCK)
            np.add.at(total, receiver[rows], scramble(others[sender[rows]] ^ edge[rows]))
        return scramble(scramble(own) + total)

    found = 0
    for _ in range(_MOST_ROUNDS):
        users, items = colours
        colours = joined(users, user, items, item), joined(items, item, users, user)
        before, found = found, sum(len(np.unique(side)) for side in colours)
        if found == before:
            break
    return colours


def _first_colours(table: ir.Table, features: Iterable[str], key: int) -> Colours:
    """(n,) hashes of a seed and the features, in the order of the identifiers; equal features are hashed once."""
    names = list(features)
    if names:
        kinds = ibis.dense_rank().over(order_by=[table[name] for name in names])
        table = table.select(_PLACE, *names, **{_KIND: kinds}).cache()
        kind = np.empty(int(table.count().execute()), np.int64)
        found = read_arrays(table, {_PLACE: np.int64, _KIND: np.int64}, len(kind))
        kind[found[_PLACE]] = found[_KIND]
        first = table.mutate(**{_FIRST: ibis.row_number().over(group_by=_KIND, order_by=_PLACE)})
        table = first.filter(first[_FIRST] == 0).select(_KIND, *names).order_by(_KIND)
    else:
        kind = np.zeros(int(table.count().execute()), np.int64)
    colours: list[int] = []
    batches = table.select(*names).to_pyarrow_batches(chunk_size=_BLOCK) if names else ()
    for own in chain.from_iterable(_values(batch, names) for batch in batches) if names else [()]:
        digest = hashlib.blake2b(repr(own).encode(), digest_size=8, key=key.to_bytes(8, "big"))
        colours.append(int.from_bytes(digest.digest(), "big"))
    return np.array(colours, dtype=np.uint64)[kind]


def _values(batch: pa.RecordBatch, names: list[str]) -> Iterator[tuple[object, ...]]:
    return zip(*[batch.column(name).to_pylist() for name in names], strict=True)


def number_tables(
    interactions: ir.Table,
    users: ir.Table,
    items: ir.Table,
    features: tuple[Iterable[str], Iterable[str]],
    seed: int,
) -> tuple[ir.Table, ir.Table]:
    """Number the users and the items.

    Args:
        interactions: Table (row, user_id, item_id, timestamp).
        users: Table (user_id, features).
        items: Table (item_id, features).
        features: Names of the features of users and of items.
        seed: Seed of the numbers.

    Returns:
        The users with the column ``user`` and the items with the column ``item``, both from 0.
    """
    keys, rows, tables, first = ("user", "item"), interactions, [], []
    for key, table, names in zip(keys, (users, items), features, strict=True):
        place = ibis.row_number().over(order_by=table[f"{key}_id"]).cast("int32")
        tables.append(table.mutate(**{_PLACE: place}).cache())
        first.append(_first_colours(tables[-1], names, derive_seed(seed, "numbers", key)))
        rows = rows.inner_join(tables[-1].select(f"{key}_id", **{key: _PLACE}), f"{key}_id")
    kinds: dict[str, type[np.generic]] = {"row": np.int64, "user": np.int32, "item": np.int32, "timestamp": np.float64}
    found = read_arrays(rows.mutate(timestamp=rows.timestamp.cast("float64")), kinds)
    row, user, item = (found[name] for name in ("row", *keys))
    colours = refine(user, item, found.pop("timestamp"), (first[0], first[1]))
    numbered = []
    for key, table, own, colour in zip(keys, tables, (user, item), colours, strict=True):
        earliest = np.full(len(colour), np.iinfo(np.int64).max)
        np.minimum.at(earliest, own, row)
        number = np.empty(len(colour), dtype=np.int64)
        number[np.lexsort((earliest, colour))] = np.arange(len(colour))
        ranks = ibis.memtable({_PLACE: np.arange(len(colour), dtype=np.int32), key: number})
        numbered.append(table.inner_join(ranks, _PLACE).drop(_PLACE).cache())
    return numbered[0], numbered[1]
