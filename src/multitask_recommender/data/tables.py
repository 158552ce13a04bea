"""Raw tables to canonical tables: ``interactions``, ``users`` and ``items``, checked before anything else runs.

All functions build Ibis expressions that run on any engine; only the checks execute, and each brings back a few rows.
"""

from __future__ import annotations

import difflib
import math
import time as clock
from collections.abc import Mapping

import ibis
import ibis.expr.types as ir
import pandas as pd

from multitask_recommender.data import dates, numbering
from multitask_recommender.data.description import (
    MERGED,
    DatasetSettings,
    Feature,
    InteractionTable,
    ItemTable,
    Missing,
    RowHandling,
    Signal,
    UserTable,
)
from multitask_recommender.data.raw_columns import FAULT, FILE, ROW
from multitask_recommender.foundation.errors import DataError

_SHOWN_ROWS = 5
_KEPT = ("row", "user_id", "item_id", "timestamp", "time", "given_part")
"""What is kept of an interaction beside its signals."""
_UNITS = {
    "days": 86_400.0,
    "hours": 3_600.0,
    "minutes": 60.0,
    "seconds": 1.0,
    "milliseconds": 1e-3,
    "microseconds": 1e-6,
    "nanoseconds": 1e-9,
}
"""Seconds of every unit of time."""
_UNIT_KEY = "dataset.interactions.timestamp_unit"
_SIZES = {"seconds": 1e8, "milliseconds": 1e11, "microseconds": 1e14, "nanoseconds": 1e17}
"""Least size of numbers that are taken for times of day in a unit."""
_FINITE = "a number, and a finite one"
# Spaces of any kind and characters that take no place, such as a byte order mark, at both ends of a text.
_AROUND = r"^[\s\p{Z}\p{Cf}\p{Cc}]+|[\s\p{Z}\p{Cf}\p{Cc}]+$"
_BETWEEN = "\x1f"
"""The character that divides units of a text, which no value holds."""
_POINT = r"^([+-]?\d+)\.0*$"
"""A whole number with a decimal point."""
# Within an identifier, characters that take no place: zero-width space, word joiner, byte order mark, soft hyphen.
_INVISIBLE = "[\u200b\u2060\ufeff\u00ad]"


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
            known = [own for own in table.columns if own not in (ROW, FAULT)]
            near = [own for own in known if own.casefold() == column.casefold()]
            near = near or difflib.get_close_matches(column, known, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            alone = " alone: is 'delimiter' in the catalog right?" if set(known) <= {known[0], FILE} else "."
            raise DataError(
                name,
                f"The column '{column}' is missing{hint}; the table has: {', '.join(known)}{alone}",
                f"name an existing column in '{key}' of the parameters, or correct the file.",
                column=column,
            )


def _text(column: ir.Value) -> ir.StringValue:
    return column.cast("string").re_replace(_AROUND, "").nullif("")


def _identifier(column: ir.Value, length: int | None, integer: bool) -> ir.StringValue:
    text = _text(column).re_replace(_INVISIBLE, "")
    if integer:
        text = _integer(text)
    return text if length is None else (text.length() < length).ifelse(text.lpad(length, "0"), text)


def _integer(text: ir.StringValue) -> ir.StringValue:
    """The whole number that a text such as ``9.0`` or ``1.2e+05`` stands for; other texts as they are."""
    # Floating-point numbers hold whole numbers of up to 15 digits exactly.
    number = text.re_search(r"^[+-]?\d+(\.\d+)?[eE]\+?\d{1,2}$").ifelse(text, None).try_cast("float64")
    whole = (number == number.floor()) & (number.abs() < 1e15)
    digits = whole.ifelse(number, None).cast("int64").cast("string")
    return digits.fill_null(text.re_replace(_POINT, r"\1"))


def _invisible(column: ir.Value) -> ir.BooleanValue:
    """Whether an identifier had to be freed of more than plain spaces."""
    text = column.cast("string")
    return (_text(column).re_replace(_INVISIBLE, "") != text.re_replace(r"^\s+|\s+$", "")).fill_null(False)


def _number(text: ir.StringValue, decimal: str) -> ir.NumericValue:
    """The number that a text stands for: NaN for the infinite, null for what is none; true is 1, false is 0."""
    digits = text if decimal == "." else text.replace(decimal, ".")
    # An engine may read 1_000 as a thousand, which a table of numbers does not mean.
    number = digits.contains("_").ifelse(None, digits).try_cast("float64")
    number = number.isinf().ifelse(math.nan, number)
    return ibis.cases((text.lower() == "true", 1.0), (text.lower() == "false", 0.0), else_=number)


def _signal(text: ir.StringValue, signal: Signal, decimal: str) -> ir.NumericValue:
    number = _number(text, decimal)
    words = {**dict.fromkeys(signal.true_values, 1.0), **dict.fromkeys(signal.false_values, 0.0)}
    return ibis.cases(*[(text == word, value) for word, value in words.items()], else_=number) if words else number


def _require_values(table: ir.Table, name: str, columns: Mapping[str, str | None]) -> None:
    """Refuse a column of lists where one value is needed; ``columns`` is configuration key to column."""
    for key, column in columns.items():
        if column is not None and table[column].type().is_array():
            raise DataError(
                name,
                f"The column '{column}' holds lists of values, and '{key}' needs one value a row.",
                "name another column; lists can be features of kind 'categories' or 'text'.",
                column=column,
            )


def _with_row(raw: ir.Table) -> ir.Table:
    """Add ``row``, the place in the raw files, and ``fault``, why the row could not be read."""
    return raw.mutate(
        row=(raw[ROW] if ROW in raw.columns else ibis.row_number()).cast("int64"),
        fault=raw[FAULT] if FAULT in raw.columns else ibis.null("string"),
    )


def _without_missing(text: ir.StringValue, missing: Missing, decimal: str = ".") -> ir.StringValue:
    """Return null where the text is one of the declared missing values, as text or as number."""
    if not missing:
        return text
    found = text.isin([str(value) for value in missing])
    numbers = [float(value) for value in missing if not isinstance(value, str)]
    if numbers:
        found = found | _number(text, decimal).isin(numbers).fill_null(False)
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
        Table with row (position in the raw files), fault, file (null for a table of one file), user_id, item_id and
        whether they held invisible characters, timestamp (null without one), event and ``raw_part`` (null without one)
        and, for every signal, its number (null where the text is not a number, NaN where it is not a finite one) and
        ``raw_<signal>``, the text (null where it stands for no value).

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
    if settings.part is not None:
        wanted["dataset.interactions.part.column"] = settings.part.column
    of_files = {f"dataset.interactions.signals.{n}.files": FILE for n, s in settings.signals.items() if s.files}
    require_columns(raw, name, wanted | of_files)
    _require_values(raw, name, wanted)
    table = _with_row(raw)
    columns: dict[str, ir.Value] = {
        "row": table.row,
        "fault": table.fault,
        "file": table[FILE] if FILE in table.columns else ibis.null("string"),
        "user_id": _identifier(table[settings.user_id], settings.user_id_length, settings.user_id_integer),
        "item_id": _identifier(table[settings.item_id], settings.item_id_length, settings.item_id_integer),
        "invisible_user_id": _invisible(table[settings.user_id]),
        "invisible_item_id": _invisible(table[settings.item_id]),
        "timestamp": ibis.null("float64"),
        "event": ibis.null("string") if settings.events is None else _text(table[settings.events.column]),
        "raw_part": ibis.null("string") if settings.part is None else _text(table[settings.part.column]),
    }
    if settings.timestamp is not None:
        time = columns["raw_timestamp"] = _text(table[settings.timestamp])
        formats = settings.timestamp_formats
        columns["timestamp"] = dates.seconds(time, formats) if formats else _number(time, settings.decimal)
    for name, signal in settings.signals.items():
        text = _without_missing(_text(table[signal.column]), signal.missing_values, settings.decimal)
        if signal.files is not None:
            text = table[FILE].isin(signal.files).ifelse(text, None)
        columns[f"raw_{name}"] = text
        columns[name] = _signal(text, signal, settings.decimal)
    if settings.events is not None:
        for name, kind in settings.events.kinds.items():
            columns[name] = (columns["event"] == kind).cast("float64")
    return table.select(**columns)


def _part(text: ir.StringValue, separator: str, part: int) -> ir.StringValue:
    parts = text.split(separator)
    return parts[part - 1 if part > 0 else parts.length() + part].strip().nullif("")


def _flags(table: ir.Table, name: str, flags: list[str], missing: Missing) -> dict[str, ir.Value]:
    """The names of the columns that hold a 1, and in ``raw_<feature>`` the first value that is neither 1 nor 0."""
    texts = {column: _without_missing(_text(table[column]), missing) for column in flags}
    numbers = {column: _number(text, ".") for column, text in texts.items()}
    wrong = {
        column: (texts[column].notnull() & ~number.isin([0.0, 1.0]).fill_null(False))
        for column, number in numbers.items()
    }
    found = ibis.array([(number == 1).ifelse(column, None) for column, number in numbers.items()])
    shown = [wrong[column].ifelse(ibis.literal(f"{column}: ") + texts[column], None) for column in flags]
    return {name: found.filter(lambda value: value.notnull()), f"raw_{name}": ibis.coalesce(*shown)}


def _feature_columns(
    table: ir.Table, features: Mapping[str, Feature], settings: UserTable | ItemTable
) -> dict[str, ir.Value]:
    """Values of the features that have a column; for numbers also ``raw_<feature>``, the text."""
    columns: dict[str, ir.Value] = {}
    for name, feature in features.items():
        if feature.columns is not None:
            columns |= _flags(table, name, feature.columns, feature.missing_values)
            continue
        if feature.column is None:
            continue
        several = table[feature.column].type().is_array()
        if several and feature.kind == "categories":
            columns[name] = _list_of_texts(table[feature.column], feature.missing_values)
            continue
        text = _text(table[feature.column].join(" ") if several else table[feature.column])
        if feature.pattern is not None:
            text = text.re_extract(feature.pattern, 1).strip().nullif("")
        if feature.part is not None:
            # A text with fewer parts has none at that place.
            long_enough = text.split(feature.separator).length() >= abs(feature.part)
            text = long_enough.ifelse(_part(text, feature.separator, feature.part), None)
        text = _without_missing(text, feature.missing_values, settings.decimal)
        value: ir.Value = text
        if feature.is_number:
            columns[f"raw_{name}"] = text
            if feature.kind == "numeric":
                value = _number(text, settings.decimal)
                value = value.isnan().ifelse(None, value)
            elif feature.of_date == "age" and feature.reference is not None:
                value = dates.age(text, feature.formats, feature.reference)
            else:
                value = dates.year(text, feature.formats)
        elif feature.kind == "categories":
            value = _list_of_texts(_parts(text, feature.separator), feature.missing_values)
        elif feature.kind == "text":
            value = text.lower().re_replace(r"[^\p{L}\p{N}]+", " ").strip().split(" ")
        elif feature.first_characters is not None:
            value = text.left(feature.first_characters)
        columns[name] = value
    return columns


def _parts(text: ir.StringValue, separator: str) -> ir.ArrayValue:
    """The values of a text: those between separators, or those of a list as a program writes it, ``['a', 'b, c']``."""
    inside = text.re_replace(r"^[\[(]\s*|\s*,?\s*[\])]$", "")
    quoted = inside.re_replace(r"""['"]\s*,\s*['"]""", _BETWEEN).split(_BETWEEN)
    plain = inside.split(",").map(lambda value: value.re_replace(_AROUND, ""))
    values = inside.re_search(r"""^['"]""").ifelse(quoted, plain)
    listed = values.map(lambda value: value.re_replace(r"""^['"]|['"]$""", ""))
    is_list = text.re_search(r"""^(\[.*\]|\(['"].*\))$""")
    return is_list.ifelse(listed, text.split(separator))


def _list_of_texts(values: ir.ArrayValue, missing: Missing) -> ir.ArrayValue:
    stripped = values.map(lambda value: _without_missing(_text(value), missing))
    return stripped.filter(lambda value: value.notnull())


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


def _require_feature_columns(
    raw: ir.Table, table: str, wanted: dict[str, str], key: str, features: Mapping[str, Feature]
) -> None:
    """Check the columns of identifiers and titles (``wanted``) and of features."""
    single = {f"{key}.features.{name}.column": f.column for name, f in features.items() if f.column is not None}
    for name, feature in features.items():
        require_columns(raw, table, {f"{key}.features.{name}.columns": column for column in feature.columns or []})
    require_columns(raw, table, wanted | single)
    lists = {f"{key}.features.{name}.column" for name, f in features.items() if f.kind in ("categories", "text")}
    _require_values(raw, table, {place: column for place, column in (wanted | single).items() if place not in lists})


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
    _require_feature_columns(raw, "raw_users", wanted, "dataset.users", features)
    table = _with_row(raw)
    return table.select(
        row=table.row,
        fault=table.fault,
        user_id=_identifier(table[user_id], settings.users.id_length, settings.users.id_integer),
        invisible_user_id=_invisible(table[user_id]),
        **_feature_columns(table, features, settings.users),
    )


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
    _require_feature_columns(raw, "raw_items", wanted, "dataset.items", features)
    table = _with_row(raw)
    item_id = _identifier(table[column], settings.items.id_length, settings.items.id_integer)
    title = item_id if settings.items.title is None else _text(table[settings.items.title]).fill_null(item_id)
    values = _feature_columns(table, features, settings.items)
    invisible = _invisible(table[column])
    items = table.select(
        row=table.row, fault=table.fault, item_id=item_id, invisible_item_id=invisible, title=title, **values
    )
    for name, feature in features.items():
        if feature.relation is not None and relations is not None:
            found = relations.filter(relations.relation == feature.relation)
            lists = found.group_by("item_id").aggregate(**{name: found.value.collect()})
            # The order of a collected array depends on the engine; sorting makes it the same everywhere.
            lists = lists.mutate(**{name: lists[name].sort()})
            items = items.left_join(lists, "item_id").drop("item_id_right")
    raw_columns = [f"raw_{name}" for name, feature in features.items() if feature.is_checked]
    return items.select("row", "fault", "item_id", "invisible_item_id", "title", *features, *raw_columns)


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
        entity=_text(graph[names.head]), relation=graph[names.relation], value=_text(graph[names.tail])
    )
    item_id = _identifier(links[names.item_id], settings.items.id_length, settings.items.id_integer)
    linked = links.select(item_id=item_id, entity=_text(links[names.entity]))
    return linked.inner_join(edges, "entity").select("item_id", "relation", "value").distinct()


def refuse_rows(
    bad: ir.Table, table: str, column: str | None, problem: str, remedy: str, value: str | None = None
) -> None:
    """Raise an error that shows the first rows of ``bad``, if it has any.

    Args:
        bad: The offending rows; its column ``row`` is their place in the raw files.
        table: Catalog name of the raw table.
        column: Name of the column in the raw file, or None.
        problem: What is wrong.
        remedy: What to do about it.
        value: Column of ``bad`` whose values to show, or None.

    Raises:
        DataError: If ``bad`` has rows.
    """
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
            refuse_rows(
                table.filter(table[identifier].isnull()),
                name,
                column,
                "An identifier is missing.",
                f"fill it in, remove the row, or set '{key}.unreadable: drop'.",
            )
        table = report.keep(table, table[identifier].notnull(), name, f"unreadable: '{column}' is missing")
        what = f"read without characters around or in '{column}' that cannot be seen"
        report.count(table.filter(table[f"invisible_{identifier}"]), name, what)
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
        refuse_rows(
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


def _decimal_advice(texts: ir.StringColumn, key: str) -> str:
    """What to do, if some of the texts that are no numbers have a comma in them."""
    commas = texts.re_search(r"^[+-]?\d*,\d+$").fill_null(False)
    if not commas.any().execute():
        return ""
    return f" Where a comma divides the fraction, set '{key}.decimal: \",\"'."


def _settle_features(
    table: ir.Table, name: str, key: str, features: Mapping[str, Feature], report: _Report
) -> ir.Table:
    """Refuse numbers and dates that cannot be read, or make them missing; make implausible ones missing."""
    for feature_name, feature in features.items():
        if not feature.is_checked:
            continue
        what = {"numeric": _FINITE, "categories": "0 or 1"}.get(
            feature.kind, f"a date in the form {' or '.join(feature.formats)}"
        )
        value, raw = table[feature_name], table[f"raw_{feature_name}"]
        unreadable = table.filter(raw.notnull() if feature.columns else value.isnull() & raw.notnull())
        if feature.unreadable == "refuse":
            refuse_rows(
                unreadable,
                name,
                ", ".join(feature.raw_columns),
                f"'{feature_name}' must be {what}.",
                f"correct the rows, or set 'missing_values'{', formats' if feature.formats else ''} or "
                f"'unreadable: missing' in '{key}.features.{feature_name}'."
                + (_decimal_advice(unreadable[f"raw_{feature_name}"], key) if feature.kind == "numeric" else ""),
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


def _merge(table: ir.Table, settings: InteractionTable, signals: list[str], report: _Report, name: str) -> ir.Table:
    """Make one row of the rows of a pair, as declared in ``duplicates``."""

    def merged(column: ir.NumericColumn) -> ir.Value:
        match settings.duplicates:
            case "minimum":
                return column.min()
            # In order of size, so that the sum does not depend on the order in which an engine adds.
            case "sum":
                return column.collect().sort().sums()
            case "mean":
                return column.collect().sort().means()
        return column.max()

    values = {signal: merged(table[signal]) for signal in signals}
    if settings.duplicates == "count":
        values["count"] = table.count().cast("float64")
    values |= {name: table[name].max() for name in ("timestamp", "time", "given_part")}
    if settings.part is not None:
        pair = ibis.window(group_by=["user_id", "item_id"])
        several = table.mutate(low=table.given_part.min().over(pair), high=table.given_part.max().over(pair))
        refuse_rows(
            several.filter(several.low != several.high),
            name,
            settings.part.column,
            "The rows of a pair, which are to be joined, stand in several parts.",
            "keep them apart as events ('dataset.interactions.duplicates: keep'), or correct the parts.",
            value="given_part",
        )
    pairs = table.group_by("user_id", "item_id").aggregate(row=table.row.min(), **values)
    pairs = pairs.select(*_KEPT, *settings.signal_names).cache()
    left = int(table.count().execute()) - int(pairs.count().execute())
    if left:
        how = settings.duplicates
        report.add(name, f"joined with another row of the same pair ({how} of every signal)", left)
    return pairs


def _check_files(table: ir.Table, settings: InteractionTable) -> None:
    """Refuse a signal whose files do not exist, or which stands in several files that are different behaviours."""
    key = "dataset.interactions.signals"
    behaviours = settings.events is not None and settings.events.column == FILE
    if not behaviours and not any(signal.files for signal in settings.signals.values()):
        return
    held = {name: table[f"raw_{name}"].count() for name in settings.signals}
    files = table.group_by("file").aggregate(**held).order_by("file").execute()
    known = [str(file) for file in files["file"]]
    for name, signal in settings.signals.items():
        unknown = set(signal.files or ()) - set(known)
        if unknown:
            raise DataError(
                "raw_interactions",
                f"'{key}.{name}.files' names '{min(unknown)}'; the table has the files {', '.join(known)}.",
                "name files as in 'files' of raw_interactions in the catalog.",
                column=signal.column,
            )
        found = [file for file, count in zip(known, files[name], strict=True) if count]
        if behaviours and signal.files is None and len(found) > 1:
            raise DataError(
                "raw_interactions",
                f"The column '{signal.column}' of the signal '{name}' stands in the files {', '.join(found)}, "
                "which are different behaviours.",
                f"say in which of them it is this signal: '{key}.{name}.files: [{found[-1]}]', or name all of them.",
                column=signal.column,
            )


def _settle_times(table: ir.Table, settings: InteractionTable, name: str, report: _Report) -> ir.Table:
    """Add ``time``, seconds since 1970 (null where the timestamps only say an order), and refuse times that cannot be.

    Without a declared unit the size of the largest number says it: numbers of 11 or fewer digits of which the first 9
    are reached (1973) are seconds, those a thousand, a million or a milliard times as large milli-, micro- and
    nanoseconds; smaller ones say an order alone.
    """
    if settings.timestamp is None:
        return table.mutate(time=ibis.null("float64"))
    unit: str | None = "seconds" if settings.timestamp_formats else settings.timestamp_unit
    if unit is None:
        unit = _unit_by_size(table, settings.timestamp, name)
    if unit == "order":
        return table.mutate(time=ibis.null("float64"))
    table = table.mutate(time=table.timestamp * _UNITS[unit])
    latest = clock.time() + _UNITS["days"]
    counted = "" if settings.timestamp_formats else f", counted in {unit},"
    if settings.unreadable == "refuse":
        refuse_rows(
            table.filter(table.time > latest),
            name,
            settings.timestamp,
            f"The time{counted} lies in the future.",
            f"correct the rows, say what the number counts in '{_UNIT_KEY}' ('order' if it is no time of day), or set "
            "'dataset.interactions.unreadable: drop'.",
            value="raw_timestamp",
        )
    return report.keep(table, table.time <= latest, name, f"unreadable: '{settings.timestamp}' lies in the future")


def _unit_by_size(table: ir.Table, column: str, name: str) -> str:
    """Return the unit of the timestamps by their size, and refuse several sizes."""
    sizes = {size: ((table.timestamp >= low) & (table.timestamp < 1000 * low)) for size, low in _SIZES.items()}
    counts = table.aggregate(**{size: inside.sum() for size, inside in sizes.items()}).execute().iloc[0].fillna(0)
    found = [size for size in sizes if counts[size] > 0]
    if not found:
        return "order"
    unit = max(found, key=lambda size: counts[size])
    others = [size for size in found if size != unit]
    if others:
        refuse_rows(
            table.filter(ibis.or_(*[sizes[size] for size in others])),
            name,
            column,
            f"Timestamps are in mixed units: most are {unit} by their size, others {' and '.join(others)}.",
            f"bring them to one unit, or say that they are of one in '{_UNIT_KEY}'.",
            value="raw_timestamp",
        )
    return unit


def _settle_parts(table: ir.Table, settings: InteractionTable, name: str) -> ir.Table:
    """Add ``given_part``, the part that the data puts a row into; null where it names none."""
    if settings.part is None:
        return table.mutate(given_part=ibis.null("string"))
    parts = settings.part.parts
    known = [(table.raw_part == value, part) for part, values in parts.items() for value in values]
    table = table.mutate(given_part=ibis.cases(*known, else_=None))
    refuse_rows(
        table.filter(table.given_part.isnull()),
        name,
        settings.part.column,
        f"The part is none of {', '.join(value for values in parts.values() for value in values)}.",
        "list it under 'train', 'validation', 'test' or 'unused' in 'dataset.interactions.part'.",
        value="raw_part",
    )
    return table


def _settle_interactions(
    interactions: ir.Table, settings: InteractionTable, report: _Report, name: str = "raw_interactions"
) -> ir.Table:
    """Check or drop rows of the interactions by themselves: events, timestamps, signals, repeated pairs."""
    key = "dataset.interactions"
    pair = {"user_id": settings.user_id, "item_id": settings.item_id}
    table = _settle_identifiers(interactions, name, key, pair, settings.unreadable, report)
    _check_files(table, settings)
    drop = f", or set '{key}.unreadable: drop'."
    if settings.events is not None:
        known = table.event.isin(list(settings.events.kinds.values())).fill_null(False)
        if settings.events.others == "refuse":
            refuse_rows(
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
        what = f"a date in the form {' or '.join(formats)}" if formats else _FINITE
        if settings.unreadable == "refuse":
            refuse_rows(
                table.filter(~readable),
                name,
                settings.timestamp,
                f"A timestamp is missing or not {what}.",
                "give every interaction a number that grows with time, name the form of dates in "
                f"'{key}.timestamp_formats', set '{key}.timestamp' to null{drop}"
                + ("" if formats else _decimal_advice(table.filter(~readable).raw_timestamp, key)),
                value="raw_timestamp",
            )
        table = report.keep(table, readable, name, f"unreadable: '{settings.timestamp}' is not {what}")
    table = _settle_times(table, settings, name, report)
    table = _settle_parts(table, settings, name)
    for signal_name, signal in settings.signals.items():
        value, text = table[signal_name], table[f"raw_{signal_name}"]
        outside = ((value < signal.minimum) | (value > signal.maximum) | value.isnan()).fill_null(False)
        required = ibis.literal(not signal.may_be_missing)
        if signal.files is not None:
            required = required & table.file.isin(signal.files)
        unreadable = value.isnull() & (text.notnull() | required)
        limits = _FINITE
        if math.isfinite(signal.minimum) or math.isfinite(signal.maximum):
            limits = f"a number from {signal.minimum:g} to {signal.maximum:g}, and a finite one"
        if settings.unreadable == "refuse":
            bad = table.filter(outside | unreadable)
            refuse_rows(
                bad,
                name,
                signal.column,
                f"'{signal_name}' must be {limits}.",
                f"correct the rows, or range, 'optional', 'missing_values', 'true_values' or 'false_values' in "
                f"'{key}.signals.{signal_name}'{drop}{_decimal_advice(bad[f'raw_{signal_name}'], key)}",
                value=f"raw_{signal_name}",
            )
        table = report.keep(table, ~(outside | unreadable), name, f"unreadable: '{signal.column}' is not {limits}")
    signals = [signal for signal in settings.signal_names if signal in table.columns]
    columns = [*_KEPT, *signals]
    table = table.select(*columns)
    if settings.keeps_events:
        return table
    if settings.duplicates in MERGED:
        return _merge(table, settings, signals, report, name)
    order = ["row"] if settings.timestamp is None else ["timestamp", "row"]
    settled = _settle_repeated(table, name, key, pair, order, settings.duplicates, report)
    return settled if settings.duplicates == "refuse" else settled.cache()


def _spelling_advice(unknown: ir.Table, known: ir.Table, identifier: str) -> str:
    """What to do about identifiers that a program has changed by reading them as numbers; empty if there are none."""
    side = "users" if identifier == "user_id" else "items"
    zeros = "^0+"

    if not unknown.limit(1).count().execute():
        return ""
    # Copies, because a join takes no table that is a part of the other.
    ids, known_ids = (table.distinct().cache()[identifier] for table in (unknown, known))

    def meets(left: ir.StringColumn, right: ir.StringColumn) -> bool:
        return bool(left.as_table().semi_join(right.as_table(), "own").limit(1).count().execute())

    def whole(column: ir.StringColumn) -> ir.StringColumn:
        return _integer(column).name("own")

    both = f"'dataset.interactions.{identifier}_integer: true' and 'dataset.{side}.id_integer: true'"
    if meets(whole(ids), whole(known_ids)):
        return (
            f"some differ from those in raw_{side} by a decimal point or an exponent, with which a program has written "
            f"them as numbers: set {both}, which read '9.0' as '9' and '1.2e+05' as '120000'. (A spreadsheet may have "
            "cut digits off before the exponent: then take the identifiers from where they came.)"
        )
    bare = whole(known_ids).re_replace(zeros, "").name("own")
    if meets(ids.re_replace(zeros, "").name("own"), bare):
        longest = int(known_ids.length().max().execute())
        return (
            f"some differ from those in raw_{side} by leading zeros, which a program has taken off by reading them as "
            f"numbers: give their length, such as {longest}, in 'dataset.interactions.{identifier}_length' and "
            f"'dataset.{side}.id_length'."
        )
    if meets(whole(ids).re_replace(zeros, "").name("own"), bare):
        longest = int(known_ids.length().max().execute())
        return (
            f"some differ from those in raw_{side} by leading zeros and a decimal point: set {both}, and give their "
            f"length, such as {longest}, in 'dataset.interactions.{identifier}_length' and 'dataset.{side}.id_length'."
        )
    return ""


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
        advice = _spelling_advice(unknown.select(identifier), known.select(identifier), identifier)
        if advice:
            remedy = f"{advice} Or else {remedy}"
        column = getattr(settings, identifier)
        problem = f"{'A' if side == 'users' else 'An'} {identifier} is not in {table}."
        refuse_rows(unknown, "raw_interactions", column, problem, remedy, value=identifier)
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
    interactions: ir.Table, users: ir.Table, items: ir.Table, settings: DatasetSettings, seed: int
) -> tuple[ir.Table, ir.Table, ir.Table, pd.DataFrame]:
    """Check the standardised tables, handle faults as declared, and number users and items.

    Args:
        interactions: Result of :func:`standardise_interactions`.
        users: Result of :func:`standardise_users`.
        items: Result of :func:`standardise_items`.
        settings: The description of the data set.
        seed: Seed of the numbers.

    Returns:
        interactions (row, user, item, user_id, item_id, timestamp, time, given_part, signals), users (user, user_id,
        features), items (item, item_id, title, features), and what was left out (table, reason, rows). ``user`` and
        ``item`` count from 0, in an order that no renaming changes (see :mod:`numbering
        <multitask_recommender.data.numbering>`).

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
    features = (settings.users.features, settings.items.features)
    users, items = numbering.number_tables(interactions, users, items, features, seed)
    interactions = (
        interactions.inner_join(users.select("user", "user_id"), "user_id")
        .inner_join(items.select("item", "item_id"), "item_id")
        .select("row", "user", "item", *_KEPT[1:], *names.signal_names)
        .order_by("row")
    )
    return (
        # Checks, labels and the file are made from it; joined once for all of them.
        interactions.cache(),
        users.select("user", "user_id", *settings.users.features).order_by("user_id"),
        items.select("item", "item_id", "title", *settings.items.features).order_by("item_id"),
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
        The interactions on known items (row, user, item, user_id, item_id, timestamp, time, given_part, signals), where
        ``user`` counts the users of the table from 0 in the order of their identifiers; those on unknown items
        (user_id, item_id); and what was left out (table, reason, rows).

    Raises:
        DataError: As :func:`validate_tables`, but for unknown users and items.
    """
    report = _Report()
    table = _settle_interactions(interactions.cache(), settings, report, name)
    unknown = table.anti_join(items, "item_id").select("user_id", "item_id").order_by("user_id", "item_id")
    known = table.inner_join(items.select("item", "item_id"), "item_id")
    known = known.mutate(user=ibis.dense_rank().over(order_by=known.user_id).cast("int64"))
    known = known.select("row", "user", "item", *_KEPT[1:], *settings.signal_names)
    report.count(unknown, name, "on an item that the training did not know")
    return known.order_by("row"), unknown, report.table()
