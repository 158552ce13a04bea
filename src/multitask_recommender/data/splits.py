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
WITHOUT_FILE_ORDER = (*NEED_TIME, "cold_items")
"""Strategies that do not depend on the order of the rows in the file."""


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


def check_splits(interactions: ir.Table, settings: SplitSettings) -> list[tuple[str, str]]:
    """Check that the declared splits can be made.

    Args:
        interactions: The canonical interactions.
        settings: Strategies and number of folds.

    Returns:
        What was done about equal times at the cuts of the splits in time: (split, what).

    Raises:
        SettingsError: If there are more folds than training rows (or items to divide), a strategy needs timestamps
            that do not exist, or so many times are equal that a cut in time says nothing.
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
        if int(units * share) < 1 or (settings.validation_share and int(units * settings.validation_share) < 1):
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
    checks = {"chronological": _check_chronological, "temporal": _check_temporal}
    found = [checks[name](interactions, settings) for name in settings.strategies if name in checks]
    return [line for lines in found for line in lines]


def _degenerate(strategy: str, problem: str) -> SettingsError:
    return SettingsError(
        f"The split strategy '{strategy}' cannot be made: {problem}.\n"
        "  where: 'dataset.interactions.timestamp'\n"
        "  what to do: name a finer time (with 'timestamp_formats', if it is a date), choose other shares in 'splits', "
        f"or remove {strategy} from 'splits.strategies'."
    )


def _check_chronological(interactions: ir.Table, settings: SplitSettings) -> list[tuple[str, str]]:
    """Refuse where no user's cut lies between two times, and count the rows at which the seed decides."""
    one = settings.model_copy(update={"strategies": ["chronological"]})
    parts = assign_splits(interactions, one).filter(ibis._.split == "chronological")
    parts = parts.select("row", "part").cache()
    moments = interactions.inner_join(parts, "row").group_by("user", "timestamp")
    moments = moments.aggregate(rows=ibis._.count(), parts=ibis._.part.nunique())
    users = moments.group_by("user").aggregate(
        moments=ibis._.count(), rows=ibis._.rows.sum(), tied=ibis._.rows.sum(where=ibis._.parts > 1).fill_null(0)
    )
    cut = interactions.inner_join(parts.filter(ibis._.part != "train"), "row").select("user").distinct()
    users = users.semi_join(cut.cache(), "user")
    found = users.aggregate(
        users=ibis._.count(), moments=ibis._.moments.max(), tied=(ibis._.tied > 0).sum(), rows=ibis._.tied.sum()
    ).execute()
    count, moments_each, tied, rows = (int(found[name].iloc[0]) for name in ("users", "moments", "tied", "rows"))
    if moments_each == 1:
        raise _degenerate("chronological", f"all interactions of each of the {count} users have the same time")
    if not tied:
        return []
    return [
        (
            "order of equal times in split chronological",
            f"the cut of {tied} of {count} users falls among {rows} interactions of equal time; the seed decides",
        )
    ]


def _check_temporal(interactions: ir.Table, settings: SplitSettings) -> list[tuple[str, str]]:
    """Refuse where a part has less than half of its rows, because a cut cannot divide equal times; else say so."""
    count = int(interactions.count().execute())
    cuts = _cuts(interactions, settings)
    time = interactions.timestamp
    found = interactions.aggregate(
        test=(time >= cuts[1]).sum(),
        validation=((time >= cuts[0]) & (time < cuts[1])).sum(),
        train=(time < cuts[0]).sum(),
        at_test=(time == cuts[1]).sum(),
        at_validation=(time == cuts[0]).sum(),
    ).execute()
    rows = {name: int(found[name].iloc[0]) for name in found}
    declared = {"test": round(count * settings.test_share), "validation": round(count * settings.validation_share)}
    declared["train"] = count - sum(declared.values())
    for part, wanted in declared.items():
        if 2 * rows[part] < wanted:
            at, most = max((rows["at_test"], cuts[1]), (rows["at_validation"], cuts[0]))
            raise _degenerate(
                "temporal",
                f"{at} of {count} interactions have the time {most:.15g}, which no cut divides, so that {rows[part]} "
                f"are left for {part} where {wanted} are declared",
            )
    if all(rows[part] == wanted for part, wanted in declared.items()):
        return []
    shares = ", ".join(f"{part} {rows[part]} of {count} (declared {wanted})" for part, wanted in declared.items())
    return [("equal times in split temporal", f"a cut does not divide them: {shares}")]


def _cuts(interactions: ir.Table, settings: SplitSettings) -> tuple[float, float]:
    """Times from which on the rows of ``temporal`` are validation and test rows."""
    count = int(interactions.count().execute())
    first_test = count - round(count * settings.test_share)
    first_validation = first_test - round(count * settings.validation_share)
    times = interactions.select(ibis._.timestamp, place=ibis.row_number().over(order_by=interactions.timestamp))
    found = times.filter(times.place.isin([first_validation, first_test])).execute().set_index("place")["timestamp"]
    return float(found[first_validation]), float(found[first_test])


def assign_splits(interactions: ir.Table, settings: SplitSettings) -> ir.Table:
    """Assign every interaction to a part and, in training, to a cross-validation fold, once per strategy.

    ``random`` shuffles the rows of the file: the first rows train, the next ``validation_share`` validate, the last
    ``random_test_share`` test. ``chronological`` takes the last ``test_share`` of each user's rows by time, those of
    equal time in the shuffled order, ``temporal`` the rows from one time on, ``cold_items`` all rows of a share of
    the items; each takes its validation rows the same way from what is left. Folds divide the shuffled training rows
    (``cold_items``: the shuffled items), so that fold sizes differ by chance alone. All but ``random`` shuffle rows
    in the order of the numbers of users and items, which is the same whatever the order of the file.

    Args:
        interactions: The canonical interactions.
        settings: Strategies, shares, seed and number of folds.

    Returns:
        Table (row, split, part, fold) with ``fold`` null outside the training part, for every strategy and for
        ``everything``, the split that trains on all rows.
    """
    count = int(interactions.count().execute())
    test, validation = settings.test_share, settings.validation_share
    shuffled = _shuffled_positions(count, settings.seed)

    def parts(strategy: str) -> ir.Table:
        order = ["user", "item"] if strategy in WITHOUT_FILE_ORDER else ["row"]
        table = interactions.mutate(place=ibis.row_number().over(order_by=order).cast("int64"))
        table = table.inner_join(shuffled, "place").drop("place")
        table = table.mutate(fold=table.position % settings.folds)
        if strategy == "random":
            first_test = count - round(count * settings.random_test_share)
            first_validation = first_test - round(count * validation)
            part = _part(table.position >= first_test, table.position >= first_validation)
        elif strategy == "chronological":
            own = ibis.window(group_by="user")
            table = table.mutate(
                place=ibis.row_number().over(group_by="user", order_by=["timestamp", "position"]),
                length=ibis._.count().over(own),
            )
            tests = (table.length * test).floor()
            held_out = tests + (table.length * validation).floor()
            part = _part(table.place >= table.length - tests, table.place >= table.length - held_out)
        elif strategy == "temporal":
            validation_from, test_from = _cuts(interactions, settings)
            part = _part(table.timestamp >= test_from, table.timestamp >= validation_from)
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
