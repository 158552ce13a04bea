"""Steps of the pipeline ``simulation``."""

from __future__ import annotations

import pyarrow as pa

from multitask_recommender.simulation.bookstore import Arrays, Bookstore, BookstoreSettings
from multitask_recommender.simulation.tables import InteractionTables, book_table, user_table


def simulate_bookstore(settings: BookstoreSettings) -> tuple[pa.Table, pa.Table, Arrays, InteractionTables]:
    """Simulate the bookstore.

    Returns:
        raw_users, raw_items; the ground truth, whose rows are in the order of the identifiers; raw_interactions, made
        while they are written.
    """
    store = Bookstore(settings)
    return (
        pa.Table.from_pandas(user_table(store), preserve_index=False),
        pa.Table.from_pandas(book_table(store), preserve_index=False),
        store.truth.arrays(),
        InteractionTables(store),
    )
