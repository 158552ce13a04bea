"""Raw tables to canonical tables: ``interactions``, ``users`` and ``items``, checked before anything else runs.

All functions build Ibis expressions that run on any engine; only the checks execute, and each brings back a few rows.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

import ibis
import ibis.expr.types as ir
import pandas as pd

from multitask_recommender.data import dates
from multitask_recommender.data.description import (
    DatasetSettings,
    Feature,
    InteractionTable,
    Missing,
    RowHandling,
)
from multitask_recommender.foundation.errors import DataError
from multitask_recommender.raw_tables import FAULT, ROW

_SHOWN_ROWS = 5


def require_columns(table: ir.Table, name: str, wanted: Mapping[str, str]) -> None:
    """Check that a raw table has the columns that the configuration names.

    Args:
        table: The raw table.
        name: Its catalog name.
        wanted: Configuration key to column name.

    Raises:
        DataError: If a column is missing; names the nearest existing column.
    """
    for key, column in wanted.items():
        if column not in table.columns:
            near = difflib.get_close_matches(column, table.columns, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise DataError(
                name,
                f"The column '{column}' is missing{hint}; the table has: {', '.join(table.columns)}.",
                f"name an existing column in '{key}' of parameters_data_engineering.yml, or correct the file.",
                column=column,
            )


def _text(column: ir.Value) -> ir.StringValue:
    return column.cast("string").strip().nullif("")


def _identifier(column: ir.Value, length: int | None) -> ir.StringValue:
    text = _text(column)
    return text if length is None else (text.length() < length).ifelse(text.lpad(length, "0"), text)


def _with_row(raw: ir.Table) -> ir.Table:
    """Add ``row``, the place in the raw files, and ``fault``, why the row could not be read."""
    return raw.mutate(
        row=(raw[ROW] if ROW in raw.columns else ibis.row_number()).cast("int64"),
        fault=raw[FAULT] if FAULT in raw.columns else ibis.null("string"),
    )


def _without_missing(text: ir.StringValue, missing: Missing) -> ir.StringValue:
    """Return null where the text is one of the declared missing values, as text or as number."""
    if not missing:
        return text
    found = text.isin([str(value) for value in missing])
    numbers = [float(value) for value in missing if not isinstance(value, str)]
    if numbers:
        found = found | text.try_cast("float64").isin(numbers).fill_null(False)
    return found.ifelse(None, text)


def standardise_interactions(
    raw: ir.Table | None, settings: InteractionTable, name: str = "raw_interactions"
) -> ir.Table:
    """Give the columns of the interactions their canonical names and types.

    Args:
        raw: The raw table, one row an interaction or an event.
        settings: Which column is what.
        name: Catalog name of the table.

    Returns:
        Table with row (position in the raw files), fault, user_id, item_id, timestamp (null without one), event (null
        without one) and, for every signal, its number (null where the text is not a number) and ``raw_<signal>``, the
        text (null where it stands for no value).

    Raises:
        DataError: If the table or a column is missing.
    """
    raw = _require_table(raw, name, "dataset.interactions")
    wanted = {
        "dataset.interactions.user_id": settings.user_id,
        "dataset.interactions.item_id": settings.item_id,
        **{f"dataset.interactions.signals.{name}.column": s.column for name, s in settings.signals.items()},
    }
    if settings.timestamp is not None:
        wanted["dataset.interactions.timestamp"] = settings.timestamp
    if settings.events is not None:
        wanted["dataset.interactions.events.column"] = settings.events.column
    require_columns(raw, name, wanted)
    table = _with_row(raw)
    columns: dict[str, ir.Value] = {
        "row": table.row,
        "fault": table.fault,
        "user_id": _identifier(table[settings.user_id], settings.user_id_length),
        "item_id": _identifier(table[settings.item_id], settings.item_id_length),
        "timestamp": ibis.null("float64"),
        "event": ibis.null("string") if settings.events is None else _text(table[settings.events.column]),
    }
    if settings.timestamp is not None:
        time = columns["raw_timestamp"] = _text(table[settings.timestamp])
        formats = settings.timestamp_formats
        columns["timestamp"] = dates.seconds(time, formats) if formats else time.try_cast("float64")
    for name, signal in settings.signals.items():
        text = columns[f"raw_{name}"] = _without_missing(_text(table[signal.column]), signal.missing_values)
        columns[name] = text.try_cast("float64")
    if settings.events is not None:
        for name, kind in settings.events.kinds.items():
            columns[name] = (columns["event"] == kind).cast("float64")
    return table.select(**columns)


def _part(text: ir.StringValue, separator: str, part: int) -> ir.StringValue:
    parts = text.split(separator)
    return parts[part - 1 if part > 0 else parts.length() + part].strip().nullif("")


def _feature_columns(table: ir.Table, features: Mapping[str, Feature]) -> dict[str, ir.Value]:
    """Values of the features that have a column; for numbers also ``raw_<feature>``, the text."""
    columns: dict[str, ir.Value] = {}
    for name, feature in features.items():
        if feature.column is None:
            continue
        text = _text(table[feature.column])
        if feature.pattern is not None:
            text = text.re_extract(feature.pattern, 1).strip().nullif("")
        if feature.part is not None:
            # A text with fewer parts has none at that place.
            long_enough = text.split(feature.separator).length() >= abs(feature.part)
            text = long_enough.ifelse(_part(text, feature.separator, feature.part), None)
        text = _without_missing(text, feature.missing_values)
        value: ir.Value = text
        if feature.is_number:
            columns[f"raw_{name}"] = text
            if feature.kind == "numeric":
                value = text.try_cast("float64")
                value = value.isnan().ifelse(None, value)
            elif feature.of_date == "age" and feature.reference is not None:
                value = dates.age(text, feature.formats, feature.reference)
            else:
                value = dates.year(text, feature.formats)
        elif feature.kind == "categories":
            value = text.split(feature.separator)
        elif feature.kind == "text":
            value = text.lower().re_replace(r"[^\p{L}\p{N}]+", " ").strip().split(" ")
        elif feature.first_characters is not None:
            value = text.left(feature.first_characters)
        columns[name] = value
    return columns


def _nothing(**columns: str) -> ir.Table:
    """A table without rows, for a raw table that does not exist."""
    schema = {"row": "int64", "fault": "string", **columns}
    return ibis.memtable({name: [] for name in schema}, schema=ibis.schema(schema))


def _require_table(raw: ir.Table | None, name: str, key: str) -> ir.Table:
    if raw is None:
        raise DataError(
            name,
            f"'{key}' describes the table {name}, which the catalog does not have.",
            f"add {name} to the catalog of the data set, or leave out '{key}'.",
        )
    return raw


def standardise_users(raw: ir.Table | None, settings: DatasetSettings) -> ir.Table:
    """Give the columns of the users their canonical names and types.

    Returns:
        Table with row, fault, user_id and one column per feature: float64 (numeric, date), string (category) or
        array<string> (categories, text); null where missing. Without rows where users are not described.

    Raises:
        DataError: If the table or a column is missing.
    """
    features, user_id = settings.users.features, settings.users.user_id
    if user_id is None:
        return _nothing(user_id="string")
    raw = _require_table(raw, "raw_users", "dataset.users.user_id")
    wanted = {"dataset.users.user_id": user_id}
    wanted |= {f"dataset.users.features.{name}.column": f.column or "" for name, f in features.items()}
    require_columns(raw, "raw_users", wanted)
    table = _with_row(raw)
    identifier = _identifier(table[user_id], settings.users.id_length)
    return table.select(row=table.row, fault=table.fault, user_id=identifier, **_feature_columns(table, features))


def standardise_items(raw: ir.Table | None, settings: DatasetSettings, relations: ir.Table | None) -> ir.Table:
    """Give the columns of the items their canonical names and types.

    Args:
        raw: The raw table, one row an item, or None.
        settings: Which column is what.
        relations: Table (item_id, relation, value) from the item graph, or None.

    Returns:
        Table with row, fault, item_id, title (the identifier where there is none) and one column per feature, as for
        users. Without rows where items are not described.

    Raises:
        DataError: If the table or a column is missing.
    """
    features, column = settings.items.features, settings.items.item_id
    if column is None:
        return _nothing(item_id="string", title="string")
    raw = _require_table(raw, "raw_items", "dataset.items.item_id")
    wanted = {"dataset.items.item_id": column}
    if settings.items.title is not None:
        wanted["dataset.items.title"] = settings.items.title
    wanted |= {f"dataset.items.features.{name}.column": f.column for name, f in features.items() if f.column}
    require_columns(raw, "raw_items", wanted)
    table = _with_row(raw)
    item_id = _identifier(table[column], settings.items.id_length)
    title = item_id if settings.items.title is None else _text(table[settings.items.title]).fill_null(item_id)
    values = _feature_columns(table, features)
    items = table.select(row=table.row, fault=table.fault, item_id=item_id, title=title, **values)
    for name, feature in features.items():
        if feature.relation is not None and relations is not None:
            found = relations.filter(relations.relation == feature.relation)
            lists = found.group_by("item_id").aggregate(**{name: found.value.collect()})
            # The order of a collected array depends on the engine; sorting makes it the same everywhere.
            lists = lists.mutate(**{name: lists[name].sort()})
            items = items.left_join(lists, "item_id").drop("item_id_right")
    raw_columns = [f"raw_{name}" for name, feature in features.items() if feature.is_number]
    return items.select("row", "fault", "item_id", "title", *features, *raw_columns)


def read_item_relations(links: ir.Table | None, graph: ir.Table | None, settings: DatasetSettings) -> ir.Table:
    """Follow the relations of the item graph that features ask for.

    Returns:
        Distinct rows (item_id, relation, value), all strings.

    Raises:
        DataError: If a column is missing.
    """
    names = settings.item_graph
    if names is None:
        raise DataError("raw_item_graph", "The item graph is not described.", "describe it in 'dataset.item_graph'.")
    links = _require_table(links, "raw_item_links", "dataset.item_graph")
    graph = _require_table(graph, "raw_item_graph", "dataset.item_graph")
    require_columns(
        links,
        "raw_item_links",
        {"dataset.item_graph.item_id": names.item_id, "dataset.item_graph.entity": names.entity},
    )
    require_columns(
        graph,
        "raw_item_graph",
        {
            "dataset.item_graph.head": names.head,
            "dataset.item_graph.relation": names.relation,
            "dataset.item_graph.tail": names.tail,
        },
    )
    wanted = sorted({f.relation for f in settings.items.features.values() if f.relation})
    edges = graph.filter(graph[names.relation].isin(wanted)).select(
        entity=graph[names.head], relation=graph[names.relation], value=graph[names.tail]
    )
    linked = links.select(item_id=links[names.item_id], entity=links[names.entity])
    return linked.inner_join(edges, "entity").select("item_id", "relation", "value").distinct()


def _refuse_rows(
    bad: ir.Table, table: str, column: str | None, problem: str, remedy: str, value: str | None = None
) -> None:
    """Raise a DataError if ``bad`` has rows; its column ``row`` says which."""
    count = int(bad.count().execute())
    if count == 0:
        return
    first = bad.order_by("row").limit(_SHOWN_ROWS).execute()
    shown = f" Values found: {', '.join(repr(v) for v in first[value])}." if value else ""
    raise DataError(
        table,
        f"{problem}{shown}",
        remedy,
        column=column,
        rows=[int(row) for row in first["row"]],
        count=count,
    )


class _Report:
    """Which rows and values were left out, and why; nothing is left out without an entry."""

    def __init__(self) -> None:
        self._entries: list[tuple[str, str, int]] = []

    def count(self, table: ir.Table, name: str, reason: str) -> bool:
        """Note the number of rows of ``table``; return whether there are any."""
        rows = int(table.count().execute())
        if rows:
            self.add(name, reason, rows)
        return rows > 0

    def add(self, name: str, reason: str, rows: int) -> None:
        """Note a number of rows."""
        self._entries.append((name, reason, rows))

    def keep(self, table: ir.Table, good: ir.BooleanValue, name: str, reason: str) -> ir.Table:
        """Return the rows of ``table`` that are good and note the number of the others."""
        good = good.fill_null(False)
        return table.filter(good) if self.count(table.filter(~good), name, reason) else table

    def table(self) -> pd.DataFrame:
        """The report: table, reason, rows."""
        return pd.DataFrame(self._entries, columns=["table", "reason", "rows"])


def _check_not_empty(table: ir.Table, name: str) -> None:
    if int(table.count().execute()) == 0:
        raise DataError(name, "The table is empty.", "put at least one row into the file, or name another file.")


def _settle_identifiers(
    table: ir.Table, name: str, key: str, columns: Mapping[str, str], unreadable: RowHandling, report: _Report
) -> ir.Table:
    """Refuse or drop the rows without identifier, and drop those that the file format could not read."""
    _check_not_empty(table, name)
    for fault in table.filter(table.fault.notnull()).select("fault").distinct().order_by("fault").execute()["fault"]:
        report.count(table.filter(table.fault == fault), name, f"unreadable: {fault}")
    table = table.filter(table.fault.isnull())
    for identifier, column in columns.items():
        if unreadable == "refuse":
            _refuse_rows(
                table.filter(table[identifier].isnull()),
                name,
                column,
                "An identifier is missing.",
                f"fill it in, remove the row, or set '{key}.unreadable: drop'.",
            )
        table = report.keep(table, table[identifier].notnull(), name, f"unreadable: '{column}' is missing")
    return table


def _settle_repeated(
    table: ir.Table,
    name: str,
    key: str,
    columns: Mapping[str, str],
    order: list[str],
    handling: str,
    report: _Report,
) -> ir.Table:
    """Refuse rows that repeat an identifier (a pair), or keep the first or last of them by ``order``."""
    unique = list(columns)
    first = {"refuse": ["row"], "first": order, "last": [ibis.desc(column) for column in order]}[handling]
    ranked = table.mutate(occurrence=ibis.row_number().over(ibis.window(group_by=unique, order_by=first)))
    if handling == "refuse":
        shown = ranked.mutate(key=ibis.literal(", ").join([ranked[column] for column in unique]))
        _refuse_rows(
            shown.filter(shown.occurrence > 0),
            name,
            ", ".join(columns.values()),
            f"The same {' and '.join(unique)} stands in an earlier row.",
            f"keep one row of each, or say which one counts in '{key}.duplicates'.",
            value="key",
        )
        return table
    kept = f"repeats {' and '.join(unique)}; the {handling} row is kept"
    return report.keep(ranked, ranked.occurrence == 0, name, kept).drop("occurrence")


def _settle_features(
    table: ir.Table, name: str, key: str, features: Mapping[str, Feature], report: _Report
) -> ir.Table:
    """Refuse numbers and dates that cannot be read, or make them missing; make implausible ones missing."""
    for feature_name, feature in features.items():
        if not feature.is_number:
            continue
        what = "a number" if feature.kind == "numeric" else f"a date in the form {' or '.join(feature.formats)}"
        value, raw = table[feature_name], table[f"raw_{feature_name}"]
        unreadable = table.filter(value.isnull() & raw.notnull())
        if feature.unreadable == "refuse":
            _refuse_rows(
                unreadable,
                name,
                feature.column,
                f"'{feature_name}' must be {what}.",
                f"correct the rows, or set 'missing_values'{', formats' if feature.formats else ''} or "
                f"'unreadable: missing' in '{key}.features.{feature_name}'.",
                value=f"raw_{feature_name}",
            )
        report.count(unreadable, name, f"value set to missing: '{feature_name}' is not {what}")
        low, high = feature.minimum, feature.maximum
        if low is not None or high is not None:
            outside = (value < (-math.inf if low is None else low)) | (value > (math.inf if high is None else high))
            outside = outside.fill_null(False)
            limits = f"{'' if low is None else f'{low:g}'}..{'' if high is None else f'{high:g}'}"
            report.count(table.filter(outside), name, f"value set to missing: '{feature_name}' is outside {limits}")
            table = table.mutate(**{feature_name: outside.ifelse(None, value)})
    return table


def _settle_interactions(
    interactions: ir.Table, settings: InteractionTable, report: _Report, name: str = "raw_interactions"
) -> ir.Table:
    """Check or drop rows of the interactions by themselves: events, timestamps, signals, repeated pairs."""
    key = "dataset.interactions"
    pair = {"user_id": settings.user_id, "item_id": settings.item_id}
    table = _settle_identifiers(interactions, name, key, pair, settings.unreadable, report)
    drop = f", or set '{key}.unreadable: drop'."
    if settings.events is not None:
        known = table.event.isin(list(settings.events.kinds.values())).fill_null(False)
        if settings.events.others == "refuse":
            _refuse_rows(
                table.filter(~known),
                name,
                settings.events.column,
                f"The kind of event is none of {', '.join(settings.events.kinds.values())}.",
                f"add it to '{key}.events.kinds', or set '{key}.events.others: drop'.",
                value="event",
            )
        table = report.keep(table, known, name, "another kind of event")
    if settings.timestamp is not None:
        readable = table.timestamp.notnull() & ~table.timestamp.isnan()
        formats = settings.timestamp_formats
        what = f"a date in the form {' or '.join(formats)}" if formats else "a number"
        if settings.unreadable == "refuse":
            _refuse_rows(
                table.filter(~readable),
                name,
                settings.timestamp,
                f"A timestamp is missing or not {what}.",
                "give every interaction a number that grows with time, name the form of dates in "
                f"'{key}.timestamp_formats', set '{key}.timestamp' to null{drop}",
                value="raw_timestamp",
            )
        table = report.keep(table, readable, name, f"unreadable: '{settings.timestamp}' is not {what}")
    for signal_name, signal in settings.signals.items():
        value, text = table[signal_name], table[f"raw_{signal_name}"]
        outside = ((value < signal.minimum) | (value > signal.maximum) | value.isnan()).fill_null(False)
        unreadable = value.isnull() & (text.notnull() if signal.may_be_missing else ibis.literal(True))
        limits = f"a number from {signal.minimum:g} to {signal.maximum:g}"
        if settings.unreadable == "refuse":
            _refuse_rows(
                table.filter(outside | unreadable),
                name,
                signal.column,
                f"'{signal_name}' must be {limits}.",
                f"correct the rows, or range, 'optional' or 'missing_values' in '{key}.signals.{signal_name}'{drop}",
                value=f"raw_{signal_name}",
            )
        table = report.keep(table, ~(outside | unreadable), name, f"unreadable: '{signal.column}' is not {limits}")
    table = table.select("row", "user_id", "item_id", "timestamp", *settings.signal_names).cache()
    if settings.events is not None or settings.duplicates == "maximum":
        maxima = {column: table[column].max() for column in ("timestamp", *settings.signal_names)}
        merged = table.group_by("user_id", "item_id").aggregate(row=table.row.min(), **maxima)
        left = int(table.count().execute()) - int(merged.count().execute())
        if left:
            report.add(name, "joined with another row of the same pair", left)
        return merged
    order = ["row"] if settings.timestamp is None else ["timestamp", "row"]
    return _settle_repeated(table, name, key, pair, order, settings.duplicates, report)


def _settle_unknown(
    interactions: ir.Table,
    known: ir.Table,
    identifier: str,
    described: str | None,
    settings: InteractionTable,
    report: _Report,
) -> tuple[ir.Table, ir.Table]:
    """Refuse, drop or add the users (items) of interactions that ``known`` does not have.

    Returns:
        The interactions and the users (items).
    """
    side = "users" if identifier == "user_id" else "items"
    table, key, handling = f"raw_{side}", f"dataset.interactions.unknown_{side}", getattr(settings, f"unknown_{side}")
    unknown = interactions.anti_join(known, identifier)
    if described is not None and handling == "refuse":
        remedy = f"add it to {table}, remove the interaction, or set '{key}: drop' or '{key}: keep'."
        bare = known.select(bare=known[identifier].re_replace("^0+", ""))
        padded = unknown.mutate(bare=unknown[identifier].re_replace("^0+|[.]0$", "")).semi_join(bare, "bare")
        if int(padded.count().execute()):
            longest = int(known[identifier].length().max().execute())
            remedy = (
                f"some differ from those in {table} by leading zeros or a decimal point, which a program has changed "
                f"by reading them as numbers: give their length, such as {longest}, in "
                f"'dataset.interactions.{identifier}_length' or 'dataset.{side}.id_length'. Or else {remedy}"
            )
        column = getattr(settings, identifier)
        _refuse_rows(
            unknown, "raw_interactions", column, f"A {identifier} is not in {table}.", remedy, value=identifier
        )
    if described is not None and handling == "drop":
        report.count(unknown, "raw_interactions", f"'{getattr(settings, identifier)}' is not in {table}")
        return interactions.semi_join(known, identifier), known
    added = unknown.select(identifier).distinct()
    if described is not None:
        report.count(added, table, "added: only in the interactions, without features")
    columns = {
        name: added[identifier] if name in (identifier, "title") else ibis.null(kind)
        for name, kind in known.schema().items()
    }
    return interactions, ibis.union(known, added.select(**columns))


def validate_tables(
    interactions: ir.Table, users: ir.Table, items: ir.Table, settings: DatasetSettings
) -> tuple[ir.Table, ir.Table, ir.Table, pd.DataFrame]:
    """Check the standardised tables, handle faults as declared, and number users and items.

    Args:
        interactions: Result of :func:`standardise_interactions`.
        users: Result of :func:`standardise_users`.
        items: Result of :func:`standardise_items`.
        settings: The description of the data set.

    Returns:
        interactions (row, user, item, user_id, item_id, timestamp, signals), users (user, user_id, features), items
        (item, item_id, title, features), and what was left out (table, reason, rows). ``user`` and ``item`` count from
        0 in the order of the identifiers.

    Raises:
        DataError: On an empty table, and on every fault that is not declared to be handled otherwise: a missing or
            repeated identifier, a repeated pair, an unknown user or item, a timestamp, signal or feature that is not
            a number or a date, a signal outside its declared range.
    """
    report = _Report()
    names = settings.interactions
    interactions = interactions.cache()
    sides = []
    for table, key, identifier, described in (
        (users, "users", "user_id", settings.users),
        (items, "items", "item_id", settings.items),
    ):
        column = getattr(described, identifier)
        if column is not None:
            where = (f"raw_{key}", f"dataset.{key}")
            own = {identifier: column}
            table = table.cache()
            table = _settle_identifiers(table, *where, own, described.unreadable, report)
            table = _settle_repeated(table, *where, own, ["row"], described.duplicates, report)
            table = _settle_features(table, *where, described.features, report)
        title = ["title"] if key == "items" else []
        sides.append(table.select(identifier, *title, *described.features))
    users, items = sides
    interactions = _settle_interactions(interactions, names, report)
    interactions, users = _settle_unknown(interactions, users, "user_id", settings.users.user_id, names, report)
    interactions, items = _settle_unknown(interactions, items, "item_id", settings.items.item_id, names, report)
    if int(interactions.count().execute()) == 0:
        raise DataError(
            "raw_interactions",
            "No interaction is left:\n" + report.table().to_string(index=False),
            "look at why the rows were dropped.",
        )
    users = users.mutate(user=ibis.row_number().over(order_by=users.user_id).cast("int64")).cache()
    items = items.mutate(item=ibis.row_number().over(order_by=items.item_id).cast("int64")).cache()
    interactions = (
        interactions.inner_join(users.select("user", "user_id"), "user_id")
        .inner_join(items.select("item", "item_id"), "item_id")
        .select("row", "user", "item", "user_id", "item_id", "timestamp", *names.signal_names)
        .order_by("row")
    )
    return (
        interactions,
        users.select("user", "user_id", *settings.users.features).order_by("user"),
        items.select("item", "item_id", "title", *settings.items.features).order_by("item"),
        report.table(),
    )


def settle_new_interactions(
    interactions: ir.Table, items: ir.Table, settings: InteractionTable, name: str
) -> tuple[ir.Table, ir.Table, pd.DataFrame]:
    """Check interactions that came after the training as those of the training were, and number them.

    Args:
        interactions: Result of :func:`standardise_interactions`.
        items: The canonical items of the training.
        settings: Which column is what, and how faults are handled.
        name: Catalog name of the raw table.

    Returns:
        The interactions on known items (row, user, item, user_id, item_id, timestamp, signals), where ``user`` counts
        the users of the table from 0 in the order of their identifiers; those on unknown items (user_id, item_id); and
        what was left out (table, reason, rows).

    Raises:
        DataError: As :func:`validate_tables`, but for unknown users and items.
    """
    report = _Report()
    table = _settle_interactions(interactions.cache(), settings, report, name)
    unknown = table.anti_join(items, "item_id").select("user_id", "item_id").order_by("user_id", "item_id")
    known = table.inner_join(items.select("item", "item_id"), "item_id")
    known = known.mutate(user=ibis.dense_rank().over(order_by=known.user_id).cast("int64"))
    known = known.select("row", "user", "item", "user_id", "item_id", "timestamp", *settings.signal_names)
    report.count(unknown, name, "on an item that the training did not know")
    return known.order_by("row"), unknown, report.table()
