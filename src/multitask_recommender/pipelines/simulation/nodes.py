"""Steps of the pipeline ``simulation``."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from multitask_recommender.simulation.bookstore import Arrays, Bookstore, BookstoreSettings
from multitask_recommender.simulation.tables import InteractionTables, book_table, user_table


def simulate_bookstore(settings: BookstoreSettings) -> tuple[ir.Table, ir.Table, Arrays, InteractionTables]:
    """Simulate the bookstore.

    Returns:
        raw_users, raw_items; the ground truth, whose rows are in the order of the identifiers; raw_interactions, made
        while they are written.
    """
    store = Bookstore(settings)
    return (
        ibis.memtable(user_table(store)),
        ibis.memtable(book_table(store)),
        store.truth.arrays(),
        InteractionTables(store),
    )
