"""Why an item has its score: what the features and every item of the history added to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from multitask_recommender.data.interactions import IntArray
from multitask_recommender.data.queries import Queries

if TYPE_CHECKING:
    from multitask_recommender.use.recommender import LoadedRecommender

_QUERIES = 600
"""About how many histories are scored for an explanation."""


def explain(recommender: LoadedRecommender, queries: Queries, task: str, item: int, seed: int = 0) -> pd.DataFrame:
    """Divide the score of an item among what is known of the user.

    The base is the score without history and without context. The context is added first, then the items of the
    history one by one, in random orders; an item gets the mean of what it changed. These are Shapley values of the
    items, estimated by sampled permutations (Strumbelj and Kononenko, Explaining prediction models and individual
    predictions with feature contributions, KAIS 2014), each together with its reverse, and with rotations so that
    every item comes first as often as others. They are exact where the items' contributions add up, as for EASE:
    there an item gets its weight, less its share of the popularity that stands in for an empty history. They need
    nothing of a model but its scores.

    Args:
        recommender: The fitted model.
        queries: One query.
        task: Name of the task.
        item: Number of the item that is scored.
        seed: Seed of the orders.

    Returns:
        Table (part, item_id, title, contribution): ``base``, ``features``, and the items of the ``history``, the
        largest contribution first. The contributions add up to the score.
    """
    number = len(queries.history)
    nobody = replace(_prefixes(queries, np.empty(0, np.int64)), context=_nothing(queries.context))
    orders = [nobody, *(_prefixes(queries, order) for order in _orders(number, seed))]
    values = np.concatenate([_scores(recommender, asked, task, item) for asked in orders])
    base, steps = values[0], values[1:].reshape(-1, number + 1)
    shares = np.zeros(number)
    for order, own in zip(_orders(number, seed), steps, strict=True):
        shares[order] += np.diff(own) / len(steps)
    names, titles = recommender.run.item_ids, recommender.run.titles
    items = queries.history.item.tolist()
    parts = pd.DataFrame(
        {
            "part": ["base", "features", *["history"] * number],
            "item_id": [None, None, *(names[known] for known in items)],
            "title": [None, None, *(titles[known] for known in items)],
            "contribution": [base, steps[0, 0] - base, *shares],
        }
    )
    order = np.concatenate([[0, 1], 2 + np.argsort(-np.abs(shares), kind="stable")])
    return parts.iloc[order].reset_index(drop=True)


def _orders(number: int, seed: int) -> Iterator[IntArray]:
    """Yield orders of the rows: rotations of random orders, each followed by its reverse; always the same ones."""
    generator = np.random.default_rng(seed)
    start = generator.permutation(number)
    turns = max(min(number, _QUERIES // (2 * (number + 1))), 1)
    for turn in range(turns):
        order = np.roll(start, turn * number // turns)
        yield order
        yield order[::-1]


def _prefixes(queries: Queries, order: IntArray) -> Queries:
    """Return the query with 0, 1, ... of the rows of its history, taken in an order; they stay in the order of time."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    place = np.concatenate([np.repeat(known, known) for known in range(len(order) + 1)])
    row = np.concatenate([np.flatnonzero(rank < known) for known in range(len(order) + 1)])
    copies = np.zeros(len(order) + 1, np.int64)
    history = replace(queries.history.where(row.astype(np.int64)), user=place.astype(np.int64))
    return Queries(queries.user[copies], history, queries.context[copies])


def _nothing(context: sparse.csr_matrix) -> sparse.csr_matrix:
    return sparse.csr_matrix((1, context.shape[1]), dtype=context.dtype)


def _scores(recommender: LoadedRecommender, queries: Queries, task: str, item: int) -> np.ndarray:
    """Return (B,) what orders an item for some queries."""
    found = [recommender.orders(block, [task])[task][:, item] for _, block in recommender.blocks(queries)]
    return np.concatenate(found).astype(np.float64)
