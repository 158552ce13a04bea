"""Steps of the pipeline ``data_engineering``."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from multitask_recommender.label_expressions import evaluate_label_expression
from multitask_recommender.pipelines.data_engineering import features, splits, tables
from multitask_recommender.pipelines.data_engineering.parameters import DatasetSettings, SplitSettings
from multitask_recommender.tasks import Task


def standardise_interactions(raw_interactions: ir.Table, dataset: DatasetSettings) -> ir.Table:
    """Give the interactions canonical names and types (see ``tables.standardise_interactions``)."""
    return tables.standardise_interactions(raw_interactions, dataset.interactions)


def standardise_users(raw_users: ir.Table, dataset: DatasetSettings) -> ir.Table:
    """Give the users canonical names and types (see ``tables.standardise_users``)."""
    return tables.standardise_users(raw_users, dataset)


def standardise_items(
    raw_items: ir.Table, raw_item_links: ir.Table, raw_item_graph: ir.Table, dataset: DatasetSettings
) -> ir.Table:
    """Give the items canonical names and types and join the relations of the item graph."""
    relations = (
        None if dataset.item_graph is None else tables.read_item_relations(raw_item_links, raw_item_graph, dataset)
    )
    return tables.standardise_items(raw_items, dataset, relations)


def validate_tables(
    interactions: ir.Table, users: ir.Table, items: ir.Table, dataset: DatasetSettings, split_settings: SplitSettings
) -> tuple[ir.Table, ir.Table, ir.Table]:
    """Check the three tables together and number users and items (see ``tables.validate_tables``).

    Label expressions and splits are checked here too, so that nothing is written before all of the input is known good.
    """
    checked = tables.validate_tables(interactions, users, items, dataset)
    splits.check_splits(checked[0], split_settings)
    label_interactions(checked[0], dataset)
    return checked


def assign_splits(interactions: ir.Table, split_settings: SplitSettings) -> ir.Table:
    """Divide the interactions by every declared strategy (see ``splits.assign_splits``)."""
    return splits.assign_splits(interactions, split_settings)


def _label(table: ir.Table, name: str, task: Task) -> ir.Value:
    key = f"dataset.tasks.{name}"
    # Made from columns: a bare literal such as 1.0 would be stored as a decimal number.
    if task.label is None:
        label: ir.Value = table.row.notnull().cast("float64")
    else:
        label = evaluate_label_expression(task.label, table, f"{key}.label").cast("float64")
    if task.kind == "retrieval":
        label = (label > 0).cast("float64").nullif(0)
    if task.asked is not None:
        label = evaluate_label_expression(task.asked, table, f"{key}.asked").ifelse(label, None)
    return label


def _relevance(table: ir.Table, name: str, task: Task) -> ir.Value:
    label = table[name]
    if task.kind == "regression" and task.relevant is not None:
        relevant = evaluate_label_expression(task.relevant, table, f"dataset.tasks.{name}.relevant")
        return (label.notnull() & relevant).fill_null(False)
    return (label > 0).fill_null(False)


def label_interactions(interactions: ir.Table, dataset: DatasetSettings) -> ir.Table:
    """Compute the label of every task on every interaction.

    Returns:
        Table (row, user, item, timestamp, item_id, one float64 column per task, ``relevant_<task>``): null where
        the task does not ask.
    """
    labelled = interactions.mutate(
        **{
            name: _label(interactions, name, task)
            for name, task in dataset.tasks.items()
            if name not in interactions.columns
        }
    )
    # A task may carry the name of the signal it is made from, such as ``rating``.
    for name, task in dataset.tasks.items():
        if name in interactions.columns:
            labelled = labelled.mutate(**{name: _label(interactions, name, task)})
    labelled = labelled.mutate(
        **{f"relevant_{name}": _relevance(labelled, name, task) for name, task in dataset.tasks.items()}
    )
    relevant = [f"relevant_{name}" for name in dataset.tasks]
    return labelled.select("row", "user", "item", "item_id", "timestamp", *dataset.tasks, *relevant).order_by("row")


def separate_parts(
    labelled: ir.Table, splits_table: ir.Table, dataset: DatasetSettings
) -> tuple[ir.Table, ir.Table, ir.Table, ir.Table]:
    """Divide the labelled interactions into files that the later pipelines may read.

    Returns:
        behaviour_sequences: training rows (split, user, position, item, fold, labels), sorted by user and time: the
            behaviour sequences ``h``; validation_rows (split, user, item, labels); test_pairs (split, user, item),
            without labels; test_labels (split, user, item, labels, relevance), which only ``evaluation`` reads.
    """
    joined = labelled.inner_join(splits_table, "row")
    tasks, relevance = list(dataset.tasks), [f"relevant_{name}" for name in dataset.tasks]
    train = joined.filter(joined.part == "train")
    order = ["timestamp", "item_id"] if dataset.interactions.timestamp is not None else ["row"]
    train = train.mutate(position=ibis.row_number().over(group_by=["split", "user"], order_by=order).cast("int64"))
    sequences = train.select("split", "user", "position", "item", "fold", *tasks, *relevance)
    validation = joined.filter(joined.part == "validation").select("split", "user", "item", *tasks, *relevance)
    test = joined.filter(joined.part == "test").select("split", "user", "item", *tasks, *relevance)
    keys = ["split", "user", "item"]
    return (
        sequences.order_by("split", "user", "position"),
        validation.order_by(keys),
        test.select(keys).order_by(keys),
        test.order_by(keys),
    )


def build_user_features(
    users: ir.Table, behaviour_sequences: ir.Table, dataset: DatasetSettings
) -> tuple[ir.Table, ir.Table]:
    """Make the users' vocabulary and design matrix, the context ``c`` (see ``features.build_features``)."""
    return _features_or_empty(users, "user", behaviour_sequences, dataset)


def build_item_features(
    items: ir.Table, behaviour_sequences: ir.Table, dataset: DatasetSettings
) -> tuple[ir.Table, ir.Table]:
    """Make the items' vocabulary and design matrix (see ``features.build_features``)."""
    return _features_or_empty(items, "item", behaviour_sequences, dataset)


def _features_or_empty(
    table: ir.Table, key: str, training: ir.Table, dataset: DatasetSettings
) -> tuple[ir.Table, ir.Table]:
    built = features.build_features(table, key, training, dataset)
    if built is not None:
        return built
    none = training.limit(0)
    number, text = ibis.literal(0).cast("int64"), ibis.literal("")
    vocabulary = none.select("split", feature=text, value=text, column=number, entities=number)
    return vocabulary, none.select("split", key, column=number, weight=ibis.literal(0.0))
