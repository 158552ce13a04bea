"""Tomorrow's log: answers for the users of new events without training, and when to train again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from multitask_recommender.data.interactions import Interactions
from multitask_recommender.data.queries import NEW_USER
from multitask_recommender.use.recommender import LoadedRecommender

RECOMMENDATIONS = pa.schema(
    [
        ("user_id", pa.string()),
        ("task", pa.string()),
        ("rank", pa.int64()),
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("score", pa.float32()),
    ]
)
_BLOCK = 512


@dataclass(frozen=True)
class NewEvents:
    """Events after the training, on items that it knew.

    Attributes:
        rows: The events, sorted by user and time; ``user`` is the place in ``user_ids``.
        user_ids: Identifiers of the users that the events concern.
        unknown_items: Identifiers of the items of events that were left out, one per event.
        unknown_item_users: Identifiers of the users of these events.
    """

    rows: Interactions
    user_ids: list[str]
    unknown_items: list[str]
    unknown_item_users: list[str]


def answer(recommender: LoadedRecommender, events: NewEvents, n: int) -> Iterator[pa.Table]:
    """Yield the lists of all users that new events concern, asked with their whole histories, block by block.

    Args:
        recommender: The fitted model.
        events: The new events.
        n: Length of the lists.
    """
    users = np.array([recommender.user_number(name) for name in events.user_ids], dtype=np.int64)
    for begin in range(0, len(users), _BLOCK):
        own = slice(*np.searchsorted(events.rows.user, [begin, begin + _BLOCK]))
        rows = events.rows.where(np.arange(own.start, own.stop))
        rows = replace(rows, user=rows.user - begin)
        lists = recommender.lists(recommender.grown(users[begin : begin + _BLOCK], rows), n)
        tables = [table.assign(user_id=events.user_ids[begin + place], task=task) for place, task, table in lists]
        yield pa.Table.from_pandas(pd.concat(tables)[RECOMMENDATIONS.names], RECOMMENDATIONS, preserve_index=False)


def report(recommender: LoadedRecommender, events: NewEvents, largest_share: float) -> pd.DataFrame:
    """Count what the training knew of the new events, and say whether to train again.

    Args:
        recommender: The fitted model.
        events: The new events.
        largest_share: Share of events of unknown users, or on unknown items, above which to train again.

    Returns:
        Table (what, value).
    """
    counts = np.bincount(events.rows.user, minlength=len(events.user_ids))
    new = np.array([recommender.user_number(name) == NEW_USER for name in events.user_ids], dtype=bool)
    left_out, total = len(events.unknown_items), len(events.rows) + len(events.unknown_items)
    others = sum(recommender.user_number(name) == NEW_USER for name in events.unknown_item_users)
    everyone = {*events.user_ids, *events.unknown_item_users}
    unknown_users = {name for name in everyone if recommender.user_number(name) == NEW_USER}
    of_users = (int(counts[new].sum()) + others) / max(total, 1)
    of_items = left_out / max(total, 1)
    return pd.DataFrame(
        [
            ("model", recommender.run.name),
            ("events", total),
            ("events left out: on unknown items", left_out),
            ("users the training knew", len(everyone) - len(unknown_users)),
            ("users it did not know", len(unknown_users)),
            ("items it knew", len(np.unique(events.rows.item))),
            ("items it did not know", len(set(events.unknown_items))),
            ("share of events of unknown users", round(of_users, 4)),
            ("share of events on unknown items", round(of_items, 4)),
            ("train again above a share of", largest_share),
            ("advice", _advice({"of unknown users": of_users, "on unknown items": of_items}, largest_share)),
        ],
        columns=["what", "value"],
    )


def _advice(shares: dict[str, float], largest: float) -> str:
    passed = [f"{share:.0%} of the events are {what}" for what, share in shares.items() if share > largest]
    return f"train again: {' and '.join(passed)}" if passed else "no need to train again yet"
