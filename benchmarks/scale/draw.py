"""Draws the canonical tables of a made-up data set, as the nodes of the recommenders read them.

Users and items have one of 50 tastes; most items of a user are of the user's own taste, popular items more often.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.data.splits import EVERYTHING

SPLIT = "random"
DATASET = DatasetSettings.model_validate(
    {
        "name": "Made-up",
        "interactions": {"user_id": "user_id", "item_id": "item_id", "signals": {"rating": {"column": "rating"}}},
        "tasks": {
            "watch": {"kind": "retrieval"},
            "like": {"kind": "binary", "label": "rating >= 4"},
            "rating": {"kind": "regression", "label": "rating", "relevant": "rating >= 4"},
        },
    }
)
_TASTES, _OWN_TASTE = 50, 0.7
_DRAWN = 24  # Per user; what is drawn twice counts once, which leaves about 22.
_TEST, _VALIDATION = 2, 1  # Rows per user; two more are of the training at least.


def _interactions(users: int, items: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw rows sorted by user, in each user's random order, with the place among the user's rows."""
    popularity = 1.0 / np.arange(1, items + 1) ** 0.7
    bounds = np.cumsum(popularity) / popularity.sum()
    item = np.minimum(np.searchsorted(bounds, random.random((users, _DRAWN))), items - 1)
    # Item i is of the taste i mod 50: the popular ones are of all tastes.
    taste = random.integers(0, _TASTES, (users, 1))
    own = np.minimum(item // _TASTES * _TASTES + taste, items - 1)
    item = np.where(random.random(item.shape) < _OWN_TASTE, own, item)
    keys = np.unique((np.arange(users)[:, None] * items + item).ravel())
    keys = keys[np.lexsort((random.random(len(keys)), keys // items))]
    user, item = keys // items, keys % items
    counts = np.bincount(user, minlength=users)
    position = np.arange(len(user)) - (np.cumsum(counts) - counts)[user]
    fits = item % _TASTES == taste[user, 0]
    rating = 3.0 + 0.6 * random.normal(size=items)[item] + 0.5 * random.normal(size=users)[user] + 0.8 * fits
    rating = np.clip(np.rint(rating + 0.8 * random.normal(size=len(user))), 1, 5)
    return {"user": user, "item": item, "position": position, "left": counts[user] - position, "rating": rating}


def _features(key: str, count: int, columns: int, random: np.random.Generator) -> pa.Table:
    """Draw a design matrix: every user or item has one value of two features."""
    half = columns // 2
    entity = np.repeat(np.arange(count), 2)
    column = random.integers(0, half, 2 * count) + np.tile([0, half], count)
    return pa.concat_tables(
        pa.table({"split": pa.repeat(split, 2 * count), key: entity, "column": column, "weight": np.ones(2 * count)})
        for split in (SPLIT, EVERYTHING)
    )


def _names(key: str, count: int) -> pa.Table:
    return pa.table({key: np.arange(count), f"{key}_id": [f"{key[0]}{number}" for number in range(count)]})


def draw(users: int, items: int, seed: int = 0) -> dict[str, pa.Table]:
    """Draw all tables by name."""
    random = np.random.default_rng(seed)
    drawn = _interactions(users, items, random)
    like = drawn["rating"] >= 4
    rows = pa.table(
        {
            **{name: drawn[name] for name in ("user", "position", "item")},
            "time": pa.nulls(len(like), pa.float64()),
            "fold": drawn["item"] % 2,
            "watch": np.ones(len(like)),
            "like": like.astype(np.float64),
            "rating": drawn["rating"],
            "relevant_watch": np.ones(len(like), bool),
            "relevant_like": like,
            "relevant_rating": like,
        }
    )
    test = drawn["left"] <= _TEST
    validation = ~test & (drawn["left"] <= _TEST + _VALIDATION)

    def of_split(split: str, table: pa.Table) -> pa.Table:
        return table.add_column(0, "split", pa.repeat(split, len(table)))

    training = of_split(SPLIT, rows.filter(~(test | validation)))
    pairs = rows.select(["user", "item", "time"]).filter(test).sort_by([("user", "ascending"), ("item", "ascending")])
    catalogue = _names("item", items)
    return {
        "behaviour_sequences": pa.concat_tables([of_split(EVERYTHING, rows), training]),
        "validation_rows": of_split(SPLIT, rows.filter(validation)).drop_columns("fold"),
        "test_pairs": of_split(SPLIT, pairs),
        "users": _names("user", users),
        "items": catalogue.append_column("title", [[f"Title of {name}" for name in catalogue["item_id"].to_pylist()]]),
        "user_features": _features("user", users, 40, random),
        "item_features": _features("item", items, 200, random),
    }


def write(folder: Path, users: int, items: int) -> None:
    """Draw all tables and write them to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in draw(users, items).items():
        pq.write_table(table, folder / f"{name}.parquet")
