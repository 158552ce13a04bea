"""The declared split strategies: which interactions are training, validation and test rows, and their folds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from multitask_recommender.data.description import SplitSettings
from multitask_recommender.data.folds import IN_TIME, Candidates
from multitask_recommender.data.interactions import EVERYTHING, BoolArray, IntArray
from multitask_recommender.data.streams import read_arrays
from multitask_recommender.foundation.errors import SettingsError

IN_FILE_ORDER = ("random", "given")
"""Strategies that depend on the order of the rows in the file: the others can be made whatever it is."""


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
    return {"trained": known, "new": ~known, "all": np.ones_like(known)}[rule]


def _shuffled_positions(table: ir.Table, count: int, key: str, order: list[str], seed: int) -> ir.Table:
    """Table (``key``, position): where a shuffle puts each row of a table.

    The rows are numbered here: a window over all of them needs more memory in an engine than sorting them.

    Args:
        table: The table.
        count: Number of its rows.
        key: A column of whole numbers that tells its rows apart.
        order: Columns by which they stand before they are shuffled.
        seed: Seed of the shuffle.
    """
    keys = read_arrays(table.order_by(order).select(key), {key: np.int64}, count)[key]
    # The legacy generator, because published splits of MovieLens were made with it.
    shuffled = keys[np.random.RandomState(seed).permutation(count)]
    return ibis.memtable(pa.table({key: shuffled, "position": np.arange(count)}))


def _part(is_test: ir.BooleanValue, is_validation: ir.BooleanValue) -> ir.StringValue:
    return ibis.cases((is_test, "test"), (is_validation, "validation"), else_="train")


def check_splits(interactions: ir.Table, settings: SplitSettings) -> list[tuple[str, str]]:
    """Check that the declared splits can be made.

    Args:
        interactions: The interactions with the labels of the tasks.
        settings: Strategies and number of folds.

    Returns:
        What there is to say of the splits, such as what was done about equal times at their cuts: (split, what).

    Raises:
        SettingsError: If there are more folds than training rows (or items to divide), a strategy needs timestamps
            that do not exist, or so many times are equal that a cut in time says nothing.
    """
    counts = interactions.aggregate(
        rows=interactions.count(),
        timed=interactions.timestamp.count(),
        items=interactions.item.nunique(),
        users=interactions.user.nunique(),
    ).execute()
    rows, timed, items, users = (int(counts[name].iloc[0]) for name in ("rows", "timed", "items", "users"))
    late = set(settings.strategies) & set(IN_TIME)
    if late and timed < rows:
        raise SettingsError(
            f"The split strategy '{min(late)}' needs timestamps, and the data set has none.\n"
            "  what to do: remove it from 'splits.strategies' or name the column in 'dataset.interactions.timestamp'."
        )
    held_out = max(settings.random_test_share, settings.test_share) + settings.validation_share
    longest = int(interactions.group_by("user").aggregate(rows=ibis._.count()).rows.max().execute())
    for strategy in settings.strategies:
        if strategy in ("given", "leave_last_out"):
            continue
        share = settings.random_test_share if strategy == "random" else settings.test_share
        units = {"chronological": longest, "cold_items": items, "cold_users": users}.get(strategy, rows)
        if int(units * share) < 1 or (settings.validation_share and int(units * settings.validation_share) < 1):
            raise SettingsError(
                f"The split strategy '{strategy}' would leave no test or no validation rows: the data is too small.\n"
                "  where: parameters_data_engineering.yml\n"
                "  what to do: raise the shares in 'splits', remove the strategy, or bring more data."
            )
    dividable = {"interactions": int(rows * (1 - held_out))}
    if "cold_items" in settings.strategies:
        dividable["items"] = int(items * (1 - held_out))
    if "cold_users" in settings.strategies:
        dividable["users"] = int(users * (1 - settings.test_share))
    for what, number in dividable.items():
        if number < settings.folds:
            raise SettingsError(
                f"'splits.folds' is {settings.folds}, but only {number} {what} are left for training.\n"
                "  where: parameters_data_engineering.yml\n"
                "  what to do: choose fewer folds, or smaller test and validation shares."
            )
    checks: dict[str, Callable[[ir.Table, SplitSettings], list[tuple[str, str]]]] = {
        "chronological": partial(_check_cuts_of_users, strategy="chronological"),
        "temporal": _check_temporal,
        "leave_last_out": _check_leave_last_out,
        "given": _check_given,
    }
    found = [checks[name](interactions, settings) for name in settings.strategies if name in checks]
    return [line for lines in found for line in lines]


def _degenerate(strategy: str, problem: str) -> SettingsError:
    return SettingsError(
        f"The split strategy '{strategy}' cannot be made: {problem}.\n"
        "  where: 'dataset.interactions.timestamp'\n"
        "  what to do: name a finer time (with 'timestamp_formats', if it is a date), choose other shares in 'splits', "
        f"or remove {strategy} from 'splits.strategies'."
    )


def _check_cuts_of_users(interactions: ir.Table, settings: SplitSettings, strategy: str) -> list[tuple[str, str]]:
    """Refuse where no user's cut lies between two times, and count the rows at which the seed decides."""
    one = settings.model_copy(update={"strategies": [strategy]})
    parts = assign_splits(interactions, one).filter(ibis._.split == strategy)
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
        raise _degenerate(strategy, f"all interactions of each of the {count} users have the same time")
    if not tied:
        return []
    return [
        (
            f"order of equal times in split {strategy}",
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


def _check_leave_last_out(interactions: ir.Table, settings: SplitSettings) -> list[tuple[str, str]]:
    """Refuse where no user has three rows that count, and say how many have not."""
    of = settings.leave_last_out
    if of is not None and f"relevant_{of}" not in interactions.columns:
        raise SettingsError(
            f"'splits.strategies' leaves the last '{of}' out, which is not a task.\n  where: 'splits.strategies'\n"
            "  what to do: name a task of 'dataset.tasks', or write leave_last_out alone for the last row of any."
        )
    counted = interactions.row.notnull() if of is None else interactions[f"relevant_{of}"]
    users = interactions.group_by("user").aggregate(rows=counted.sum())
    found = users.aggregate(users=users.count(), enough=(users.rows >= 3).sum()).execute()
    count, enough = int(found["users"].iloc[0]), int(found["enough"].iloc[0] or 0)
    what = "rows" if of is None else f"positive rows of task '{of}'"
    if not enough:
        raise _degenerate("leave_last_out", f"none of the {count} users has three {what}")
    few = f"{count - enough} of {count} users have fewer than three {what}: they only train"
    lines = [("split leave_last_out", few)] if enough < count else []
    return lines + _check_cuts_of_users(interactions, settings, "leave_last_out")


def _check_given(interactions: ir.Table, settings: SplitSettings) -> list[tuple[str, str]]:
    """Refuse parts that are missing, or that leave nothing to train or to test on; count users without training."""
    if "given_part" not in interactions.columns:
        raise SettingsError(
            "The split 'given' takes its parts from the data, and 'dataset.interactions.part' names no column of it.\n"
            "  what to do: name the column and its values there, or remove 'given' from 'splits.strategies'."
        )
    part = interactions.given_part
    found = interactions.aggregate(train=(part == "train").sum(), test=(part == "test").sum()).execute()
    for name in ("train", "test"):
        if not int(found[name].iloc[0] or 0):
            raise SettingsError(
                f"The split 'given' has no rows for {name}.\n  where: 'dataset.interactions.part'\n"
                f"  what to do: list the values that stand for it in 'dataset.interactions.part.{name}'."
            )
    if settings.folding_of("given") == "forward" and int(interactions.timestamp.count().execute()) == 0:
        raise SettingsError(
            "'splits.folding: {given: forward}' makes folds of slices of time, and the data set has no timestamps.\n"
            "  what to do: remove it, or name the column in 'dataset.interactions.timestamp'."
        )
    users = interactions.group_by("user").aggregate(train=(part == "train").sum(), test=(part == "test").sum())
    cold = int(users.filter((users.train == 0) & (users.test > 0)).count().execute())
    lines = [("split given", f"{cold} users have test rows and no training rows: they are cold")] if cold else []
    unused = int(interactions.filter(part == "unused").count().execute())
    return lines + ([("split given", f"{unused} rows are in no part")] if unused else [])


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
    equal time in the shuffled order, ``temporal`` the rows from one time on, ``leave_last_out`` each user's last row
    or last positive row of a task, ``cold_items`` all rows of a share of the items; each takes its validation rows the
    same way from what is left. ``cold_users`` tests ``hidden_share`` of the rows of a share of the users, of whom the
    other rows, the validation part, are known (strong generalisation: Marlin, 2004, section 3.3). ``given`` takes the
    parts that the data names.

    Folds divide the shuffled training rows (``cold_items``: the shuffled items; ``cold_users``: the shuffled users), so
    that fold sizes differ by chance alone; where the test is the future they are slices of time, of which all together
    hold the last half of the training rows (see ``folds.py``). All but ``random`` and ``given`` shuffle rows in the
    order of the numbers of users and items, which is the same whatever the order of the file.

    Args:
        interactions: The interactions with the labels of the tasks.
        settings: Strategies, shares, seed and number of folds.

    Returns:
        Table (row, split, part, fold) with ``fold`` null outside the training part, for every strategy and for
        ``everything``, the split that trains on all rows. ``part`` is train, validation, test or unused.
    """
    count = int(interactions.count().execute())
    orders = {True: ["row"], False: ["user", "item", "timestamp", "row"]}

    @cache
    def positions(in_file_order: bool) -> ir.Table:
        return _shuffled_positions(interactions, count, "row", orders[in_file_order], settings.seed)

    def parts(strategy: str) -> ir.Table:
        table = interactions.inner_join(positions(strategy in (*IN_FILE_ORDER, EVERYTHING)), "row")
        table = table.mutate(fold=table.position % settings.folds)
        if strategy == EVERYTHING:
            table = table.mutate(part=ibis.literal("train"))
        else:
            table = _STRATEGIES[strategy](table, settings, count)
        return table.select(
            "row",
            split=ibis.literal(strategy),
            part="part",
            fold=(table.part == "train").ifelse(table.fold, None).cast("int64"),
        )

    return ibis.union(*[parts(name) for name in [*settings.strategies, EVERYTHING]]).order_by("split", "row")


def _random(table: ir.Table, settings: SplitSettings, count: int) -> ir.Table:
    first_test = count - round(count * settings.random_test_share)
    first_validation = first_test - round(count * settings.validation_share)
    return table.mutate(part=_part(table.position >= first_test, table.position >= first_validation))


def _slices(from_end: ir.IntegerValue, length: ir.Value, folds: int) -> ir.IntegerValue:
    """Number of the slice of time that a training row stands in, from the end; ``folds`` before all of them."""
    # In whole numbers, so that no rounding of an engine moves a row.
    return ibis.least((from_end * (2 * folds)) // ibis.greatest(length, 1), folds).cast("int64")


def _in_own_order(table: ir.Table) -> ir.Table:
    """Add the place of a row among those of its user by time, and their number."""
    return table.mutate(
        place=ibis.row_number().over(group_by="user", order_by=["timestamp", "position"]).cast("int64"),
        length=ibis._.count().over(ibis.window(group_by="user")).cast("int64"),
    )


def _with_slices(table: ir.Table, settings: SplitSettings) -> ir.Table:
    """Let the folds be slices of each user's training rows by time."""
    own = ibis.window(group_by=["user", "part"])
    place = ibis.row_number().over(group_by=["user", "part"], order_by=["timestamp", "position"]).cast("int64")
    table = table.mutate(place=place, length=ibis._.count().over(own).cast("int64"))
    return table.mutate(fold=_slices(table.length - 1 - table.place, table.length, settings.folds))


def _chronological(table: ir.Table, settings: SplitSettings, count: int) -> ir.Table:
    table = _in_own_order(table)
    tests = (table.length * settings.test_share).floor()
    held_out = tests + (table.length * settings.validation_share).floor()
    table = table.mutate(part=_part(table.place >= table.length - tests, table.place >= table.length - held_out))
    return _with_slices(table, settings)


def _temporal(table: ir.Table, settings: SplitSettings, count: int) -> ir.Table:
    validation_from, test_from = _cuts(table, settings)
    table = table.mutate(part=_part(table.timestamp >= test_from, table.timestamp >= validation_from))
    later = int(table.filter(table.part != "train").count().execute())
    from_end = ibis.rank().over(order_by=ibis.desc(table.timestamp)).cast("int64") - later
    return table.mutate(fold=_slices(from_end, ibis.literal(count - later), settings.folds))


def _leave_last_out(table: ir.Table, settings: SplitSettings, count: int) -> ir.Table:
    of = settings.leave_last_out
    counts = table.row.notnull() if of is None else table[f"relevant_{of}"]
    table = _in_own_order(table.mutate(counts=counts.cast("int64")))
    window = ibis.window(group_by="user", order_by="place", preceding=None, following=0)
    own = ibis.window(group_by="user")
    table = table.mutate(until=table.counts.sum().over(window), of_user=table.counts.sum().over(own))
    # Rows that count and stand behind a row, the row itself among them.
    behind = (table.of_user - table.until + table.counts).cast("int64")
    table = table.mutate(behind=behind)
    last = (table.counts == 1) & (table.behind == 1)
    part = ibis.cases(
        (table.of_user < 3, "train"),
        (last, "test"),
        (table.behind == 0, "unused"),
        (table.behind == 1, "validation"),
        ((table.behind == 2) & (table.counts == 1), "validation"),
        else_="train",
    )
    table = table.mutate(part=part)
    # A fold holds out a row that counts and those behind it; the rows between it and the one before are known.
    further = ibis.greatest(table.behind - 2 - table.counts, 0)
    further = (table.of_user < 3).ifelse(settings.folds, further)
    return table.mutate(fold=ibis.least(further, settings.folds).cast("int64"))


def _shuffled_entities(table: ir.Table, key: str, settings: SplitSettings) -> tuple[ir.Table, int]:
    """Add ``entity``, the shuffled place of the user or item of a row; return the number of them as well."""
    entities = table.select(key).distinct()
    number = int(entities.count().execute())
    positions = _shuffled_positions(entities, number, key, [key], settings.seed)
    return table.inner_join(positions.select(key, entity="position"), key), number


def _cold_items(table: ir.Table, settings: SplitSettings, count: int) -> ir.Table:
    table, number = _shuffled_entities(table, "item", settings)
    test, validation = settings.test_share, settings.validation_share
    part = _part(
        table.entity >= number - round(number * test), table.entity >= number - round(number * (test + validation))
    )
    return table.mutate(part=part, fold=table.entity % settings.folds)


def _cold_users(table: ir.Table, settings: SplitSettings, count: int) -> ir.Table:
    table, number = _shuffled_entities(table, "user", settings)
    table = table.mutate(
        place=ibis.row_number().over(group_by="user", order_by="position").cast("int64"),
        length=ibis._.count().over(ibis.window(group_by="user")).cast("int64"),
    )
    hidden = ibis.greatest((table.length * settings.hidden_share).floor(), (table.length > 1).ifelse(1, 0))
    table = table.mutate(hidden=table.place >= table.length - hidden)
    cold = table.entity >= number - round(number * settings.test_share)
    fold = table.entity % settings.folds
    return table.mutate(
        part=_part(cold & table.hidden, cold), fold=table.hidden.ifelse(fold, fold + settings.folds + 1)
    )


def _given(table: ir.Table, settings: SplitSettings, count: int) -> ir.Table:
    table = table.mutate(part=table.given_part)
    return _with_slices(table, settings) if settings.folding_of("given") == "forward" else table


_STRATEGIES: dict[str, Callable[[ir.Table, SplitSettings, int], ir.Table]] = {
    "random": _random,
    "chronological": _chronological,
    "temporal": _temporal,
    "leave_last_out": _leave_last_out,
    "cold_items": _cold_items,
    "cold_users": _cold_users,
    "given": _given,
}
