"""The declared split strategies: which interactions are training, validation and test rows, and their folds."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir
import numpy as np

from multitask_recommender.data.description import Candidates, SplitSettings
from multitask_recommender.data.interactions import EVERYTHING, BoolArray, IntArray
from multitask_recommender.foundation.errors import SettingsError

NEED_TIME = ("chronological", "temporal")
"""Strategies that need timestamps."""


def candidate_items(rule: Candidates, trained: IntArray, items: int) -> BoolArray:
    """Say which items may be recommended.

    Args:
        rule: What the split declares, see :class:`SplitSettings`.
        trained: Items of the training rows.
        items: Number of items.

    Returns:
        (items,), true for a candidate.
    """
    known = np.bincount(trained, minlength=items) > 0
    return {"trained": known, "new": ~known, "all": np.ones(items, dtype=bool)}[rule]


def _shuffled_positions(count: int, seed: int) -> ir.Table:
    """Table (place, position): where the shuffle puts each of ``count`` things."""
    # The legacy generator, because published splits of MovieLens were made with it.
    order = np.random.RandomState(seed).permutation(count)
    return ibis.memtable({"place": order.astype(np.int64), "position": np.arange(count, dtype=np.int64)})


def _part(is_test: ir.BooleanValue, is_validation: ir.BooleanValue) -> ir.StringValue:
    return ibis.cases((is_test, "test"), (is_validation, "validation"), else_="train")


def check_splits(interactions: ir.Table, settings: SplitSettings) -> None:
    """Check that the declared splits can be made.

    Args:
        interactions: The canonical interactions.
        settings: Strategies and number of folds.

    Raises:
        SettingsError: If there are more folds than training rows (or items to divide), or a strategy needs timestamps
            that do not exist.
    """
    counts = interactions.aggregate(
        rows=interactions.count(), timed=interactions.timestamp.count(), items=interactions.item.nunique()
    ).execute()
    rows, timed, items = (int(counts[name].iloc[0]) for name in ("rows", "timed", "items"))
    late = set(settings.strategies) & set(NEED_TIME)
    if late and timed < rows:
        raise SettingsError(
            f"The split strategy '{min(late)}' needs timestamps, and the data set has none.\n"
            "  what to do: remove it from 'splits.strategies' or name the column in 'dataset.interactions.timestamp'."
        )
    held_out = max(settings.random_test_share, settings.test_share) + settings.validation_share
    longest = int(interactions.group_by("user").aggregate(rows=ibis._.count()).rows.max().execute())
    for strategy in settings.strategies:
        share = settings.random_test_share if strategy == "random" else settings.test_share
        units = {"chronological": longest, "cold_items": items}.get(strategy, rows)
        if int(units * share) < 1 or int(units * settings.validation_share) < 1:
            raise SettingsError(
                f"The split strategy '{strategy}' would leave no test or no validation rows: the data is too small.\n"
                "  where: parameters_data_engineering.yml\n"
                "  what to do: raise the shares in 'splits', remove the strategy, or bring more data."
            )
    dividable = {"interactions": int(rows * (1 - held_out))}
    if "cold_items" in settings.strategies:
        dividable["items"] = int(items * (1 - held_out))
    for what, number in dividable.items():
        if number < settings.folds:
            raise SettingsError(
                f"'splits.folds' is {settings.folds}, but only {number} {what} are left for training.\n"
                "  where: parameters_data_engineering.yml\n"
                "  what to do: choose fewer folds, or smaller test and validation shares."
            )


def assign_splits(interactions: ir.Table, settings: SplitSettings) -> ir.Table:
    """Assign every interaction to a part and, in training, to a cross-validation fold, once per strategy.

    ``random`` shuffles the rows: the first rows train, the next ``validation_share`` validate, the last
    ``random_test_share`` test. ``chronological`` takes the last ``test_share`` of each user's rows by (timestamp,
    item_id), ``temporal`` the rows after one cut in time, ``cold_items`` all rows of a share of the items; each
    takes its validation rows the same way from what is left. Folds divide the shuffled training rows (``cold_items``:
    the shuffled items), so that fold sizes differ by chance alone.

    Args:
        interactions: The canonical interactions.
        settings: Strategies, shares, seed and number of folds.

    Returns:
        Table (row, split, part, fold) with ``fold`` null outside the training part, for every strategy and for
        ``everything``, the split that trains on all rows.
    """
    count = int(interactions.count().execute())
    test, validation = settings.test_share, settings.validation_share
    placed = interactions.mutate(place=ibis.row_number().over(order_by=interactions.row).cast("int64"))
    placed = placed.inner_join(_shuffled_positions(count, settings.seed), "place").drop("place")
    placed = placed.mutate(fold=placed.position % settings.folds)

    def parts(strategy: str) -> ir.Table:
        table = placed
        if strategy == "random":
            first_test = count - round(count * settings.random_test_share)
            first_validation = first_test - round(count * validation)
            part = _part(table.position >= first_test, table.position >= first_validation)
        elif strategy == "chronological":
            own = ibis.window(group_by="user")
            table = table.mutate(
                place=ibis.row_number().over(group_by="user", order_by=["timestamp", "item_id"]),
                length=ibis._.count().over(own),
            )
            tests = (table.length * test).floor()
            held_out = tests + (table.length * validation).floor()
            part = _part(table.place >= table.length - tests, table.place >= table.length - held_out)
        elif strategy == "temporal":
            table = table.mutate(place=ibis.row_number().over(order_by=["timestamp", "user_id", "item_id"]))
            first_test = count - round(count * test)
            first_validation = first_test - round(count * validation)
            cuts = table.filter(table.place.isin([first_validation, first_test])).order_by("place").timestamp.execute()
            part = _part(table.timestamp >= float(cuts.iloc[1]), table.timestamp >= float(cuts.iloc[0]))
        elif strategy == "cold_items":
            items = interactions.select("item").distinct()
            number = int(items.count().execute())
            items = items.mutate(place=ibis.row_number().over(order_by=items.item).cast("int64"))
            items = items.inner_join(_shuffled_positions(number, settings.seed), "place").select(
                "item", item_position="position"
            )
            table = table.inner_join(items, "item").mutate(fold=ibis._.item_position % settings.folds)
            part = _part(
                table.item_position >= number - round(number * test),
                table.item_position >= number - round(number * (test + validation)),
            )
        else:
            part = ibis.literal("train")
        table = table.mutate(part=part)
        return table.select(
            "row",
            split=ibis.literal(strategy),
            part="part",
            fold=(table.part == "train").ifelse(table.fold, None).cast("int64"),
        )

    return ibis.union(*[parts(name) for name in [*settings.strategies, EVERYTHING]]).order_by("split", "row")
