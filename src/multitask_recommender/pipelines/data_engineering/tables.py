"""Raw tables to canonical tables: ``interactions``, ``users`` and ``items``, checked before anything else runs.

All functions build Ibis expressions that run on any engine; only the checks execute, and each brings back a few rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

import ibis
import ibis.expr.types as ir

from multitask_recommender.errors import DataError
from multitask_recommender.pipelines.data_engineering.parameters import (
    DatasetSettings,
    Feature,
    InteractionTable,
)

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


def _with_row(raw: ir.Table) -> ir.Table:
    return raw.mutate(row=ibis.row_number().cast("int64"))


def standardise_interactions(raw: ir.Table, settings: InteractionTable) -> ir.Table:
    """Give the columns of the interactions their canonical names and types.

    Args:
        raw: The raw table, one row an interaction.
        settings: Which column is what.

    Returns:
        Table with row (position in the raw file), user_id, item_id, timestamp (null without one) and, for every
        signal, its number (null where the text is not a number) and ``raw_<signal>``, the text.

    Raises:
        DataError: If a column is missing.
    """
    wanted = {
        "dataset.interactions.user_id": settings.user_id,
        "dataset.interactions.item_id": settings.item_id,
        **{f"dataset.interactions.signals.{name}.column": s.column for name, s in settings.signals.items()},
    }
    if settings.timestamp is not None:
        wanted["dataset.interactions.timestamp"] = settings.timestamp
    require_columns(raw, "raw_interactions", wanted)
    table = _with_row(raw)
    columns: dict[str, ir.Value] = {
        "row": table.row,
        "user_id": _text(table[settings.user_id]),
        "item_id": _text(table[settings.item_id]),
        "timestamp": (
            ibis.null("float64") if settings.timestamp is None else _text(table[settings.timestamp]).try_cast("float64")
        ),
    }
    if settings.timestamp is not None:
        columns["raw_timestamp"] = _text(table[settings.timestamp])
    for name, signal in settings.signals.items():
        columns[name] = _text(table[signal.column]).try_cast("float64")
        columns[f"raw_{name}"] = _text(table[signal.column])
    return table.select(**columns)


def _feature_value(table: ir.Table, feature: Feature) -> ir.Value:
    text = _text(table[feature.column])
    if feature.kind == "numeric":
        return text.try_cast("float64")
    if feature.kind == "categories":
        return text.split(feature.separator)
    if feature.kind == "text":
        return text.lower().re_replace(r"[^\p{L}\p{N}]+", " ").strip().split(" ")
    if feature.first_characters is not None:
        return text.left(feature.first_characters)
    return text


def standardise_users(raw: ir.Table, settings: DatasetSettings) -> ir.Table:
    """Give the columns of the users their canonical names and types.

    Returns:
        Table with row, user_id and one column per feature: float64 (numeric), string (category) or
        array<string> (categories, text); null where missing.

    Raises:
        DataError: If a column is missing.
    """
    features = settings.users.features
    wanted = {"dataset.users.user_id": settings.users.user_id}
    wanted |= {f"dataset.users.features.{name}.column": f.column or "" for name, f in features.items()}
    require_columns(raw, "raw_users", wanted)
    table = _with_row(raw)
    values = {name: _feature_value(table, feature) for name, feature in features.items()}
    return table.select(row=table.row, user_id=_text(table[settings.users.user_id]), **values)


def standardise_items(raw: ir.Table, settings: DatasetSettings, relations: ir.Table | None) -> ir.Table:
    """Give the columns of the items their canonical names and types.

    Args:
        raw: The raw table, one row an item.
        settings: Which column is what.
        relations: Table (item_id, relation, value) from the item graph, or None.

    Returns:
        Table with row, item_id, title (the identifier where there is none) and one column per feature, as for users.

    Raises:
        DataError: If a column is missing.
    """
    features = settings.items.features
    wanted = {"dataset.items.item_id": settings.items.item_id}
    if settings.items.title is not None:
        wanted["dataset.items.title"] = settings.items.title
    wanted |= {f"dataset.items.features.{name}.column": f.column for name, f in features.items() if f.column}
    require_columns(raw, "raw_items", wanted)
    table = _with_row(raw)
    item_id = _text(table[settings.items.item_id])
    title = item_id if settings.items.title is None else _text(table[settings.items.title]).fill_null(item_id)
    values = {name: _feature_value(table, feature) for name, feature in features.items() if feature.column}
    items = table.select(row=table.row, item_id=item_id, title=title, **values)
    for name, feature in features.items():
        if feature.relation is not None and relations is not None:
            found = relations.filter(relations.relation == feature.relation)
            lists = found.group_by("item_id").aggregate(**{name: found.value.collect()})
            # The order of a collected array depends on the engine; sorting makes it the same everywhere.
            lists = lists.mutate(**{name: lists[name].sort()})
            items = items.left_join(lists, "item_id").drop("item_id_right")
    return items.select("row", "item_id", "title", *features)


def read_item_relations(links: ir.Table, graph: ir.Table, settings: DatasetSettings) -> ir.Table:
    """Follow the relations of the item graph that features ask for.

    Returns:
        Distinct rows (item_id, relation, value), all strings.

    Raises:
        DataError: If a column is missing.
    """
    names = settings.item_graph
    if names is None:
        raise DataError("raw_item_graph", "The item graph is not described.", "describe it in 'dataset.item_graph'.")
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


def _check_identifiers(table: ir.Table, name: str, keys: Mapping[str, str], unique: Iterable[str]) -> None:
    if int(table.count().execute()) == 0:
        raise DataError(name, "The table is empty.", "put at least one row into the file, or name another file.")
    for key, column in keys.items():
        _refuse_rows(
            table.filter(table[key].isnull()),
            name,
            column,
            "An identifier is missing.",
            "fill it in or remove the row.",
        )
    unique = list(unique)
    repeated = table.mutate(
        occurrence=ibis.row_number().over(ibis.window(group_by=unique, order_by=table.row)),
        key=ibis.literal(", ").join([table[key] for key in unique]),
    )
    _refuse_rows(
        repeated.filter(repeated.occurrence > 0),
        name,
        ", ".join(keys[key] for key in unique),
        f"The same {' and '.join(unique)} stands in an earlier row.",
        "keep one row of each.",
        value="key",
    )


def validate_tables(
    interactions: ir.Table, users: ir.Table, items: ir.Table, settings: DatasetSettings
) -> tuple[ir.Table, ir.Table, ir.Table]:
    """Check the standardised tables and number users and items.

    Args:
        interactions: Result of :func:`standardise_interactions`.
        users: Result of :func:`standardise_users`.
        items: Result of :func:`standardise_items`.
        settings: The description of the data set.

    Returns:
        interactions (row, user, item, user_id, item_id, timestamp, signals), users (user, user_id, features) and
        items (item, item_id, title, features). ``user`` and ``item`` count from 0 in the order of the identifiers.

    Raises:
        DataError: On an empty table, a missing or repeated identifier, a repeated pair, an unknown user or item, a
            timestamp or signal that is missing, not a number or outside its declared range.
    """
    names = settings.interactions
    users, items, interactions = users.cache(), items.cache(), interactions.cache()
    _check_identifiers(users, "raw_users", {"user_id": settings.users.user_id}, ["user_id"])
    _check_identifiers(items, "raw_items", {"item_id": settings.items.item_id}, ["item_id"])
    _check_identifiers(
        interactions,
        "raw_interactions",
        {"user_id": names.user_id, "item_id": names.item_id},
        ["user_id", "item_id"],
    )
    for key, column, known, table in (
        ("user_id", names.user_id, users, "raw_users"),
        ("item_id", names.item_id, items, "raw_items"),
    ):
        _refuse_rows(
            interactions.anti_join(known, key),
            "raw_interactions",
            column,
            f"A {key} is not in {table}.",
            f"add it to {table} or remove the interaction.",
            value=key,
        )
    if names.timestamp is not None:
        missing = interactions.timestamp.isnull() | interactions.timestamp.isnan()
        _refuse_rows(
            interactions.filter(missing),
            "raw_interactions",
            names.timestamp,
            "A timestamp is missing or not a number.",
            "give every interaction a number that grows with time, or set 'dataset.interactions.timestamp' to null.",
            value="raw_timestamp",
        )
    for name, signal in names.signals.items():
        value, text = interactions[name], interactions[f"raw_{name}"]
        outside = ((value < signal.minimum) | (value > signal.maximum) | value.isnan()).fill_null(False)
        unreadable = value.isnull() & (text.notnull() if signal.optional else ibis.literal(True))
        _refuse_rows(
            interactions.filter(outside | unreadable),
            "raw_interactions",
            signal.column,
            f"'{name}' must be a number from {signal.minimum:g} to {signal.maximum:g}.",
            f"correct the rows, or the range in 'dataset.interactions.signals.{name}'.",
            value=f"raw_{name}",
        )
    users = users.mutate(user=ibis.row_number().over(order_by=users.user_id).cast("int64"))
    items = items.mutate(item=ibis.row_number().over(order_by=items.item_id).cast("int64"))
    interactions = (
        interactions.inner_join(users.select("user", "user_id"), "user_id")
        .inner_join(items.select("item", "item_id"), "item_id")
        .select("row", "user", "item", "user_id", "item_id", "timestamp", *names.signals)
        .order_by("row")
    )
    return (
        interactions,
        users.select("user", "user_id", *settings.users.features).order_by("user"),
        items.select("item", "item_id", "title", *settings.items.features).order_by("item"),
    )
