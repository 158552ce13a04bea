"""Steps of the pipeline ``data_engineering``."""

from __future__ import annotations

import logging

import ibis
import ibis.expr.types as ir
import pandas as pd

from multitask_recommender.data import features, labels, splits, tables
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.interactions import EVERYTHING
from multitask_recommender.data.splits import IN_FILE_ORDER
from multitask_recommender.evaluation import comparisons, study

logger = logging.getLogger(__name__)


def standardise_interactions(raw_interactions: ir.Table, dataset: DatasetSettings) -> ir.Table:
    """Give the interactions canonical names and types (see ``tables.standardise_interactions``)."""
    return tables.standardise_interactions(raw_interactions, dataset.interactions)


def standardise_users(raw_users: ir.Table | None, dataset: DatasetSettings) -> ir.Table:
    """Give the users canonical names and types (see ``tables.standardise_users``)."""
    return tables.standardise_users(raw_users, dataset)


def standardise_items(
    raw_items: ir.Table | None,
    raw_item_links: ir.Table | None,
    raw_item_graph: ir.Table | None,
    dataset: DatasetSettings,
) -> ir.Table:
    """Give the items canonical names and types and join the relations of the item graph."""
    relations = (
        None if dataset.item_graph is None else tables.read_item_relations(raw_item_links, raw_item_graph, dataset)
    )
    return tables.standardise_items(raw_items, dataset, relations)


def validate_tables(
    interactions: ir.Table, users: ir.Table, items: ir.Table, dataset: DatasetSettings, split_settings: SplitSettings
) -> tuple[ir.Table, ir.Table, ir.Table, pd.DataFrame, pd.DataFrame]:
    """Check the three tables together and number users and items (see ``tables.validate_tables``).

    Label expressions and splits are checked here too, so that nothing is written before all of the input is known good.

    Returns:
        interactions, users, items; the rows and values that were dropped (table, reason, rows), which go to the log as
        well; what there is to say of the splits (what, reason).
    """
    checked, users, items, dropped = tables.validate_tables(interactions, users, items, dataset, split_settings.seed)
    checked, contradictions = labels.settle_contradictions(checked, dataset)
    if contradictions:
        dropped = pd.concat([dropped, pd.DataFrame(contradictions, columns=dropped.columns)], ignore_index=True)
    ties = splits.check_splits(labels.label_interactions(checked, dataset), split_settings)
    labels.check_labels(checked, dataset)
    for row in dropped.itertuples():
        logger.warning("%s: %d x %s", row.table, row.rows, row.reason)
    return checked, users, items, dropped, pd.DataFrame(ties, columns=["what", "reason"])


def assign_splits(labelled_interactions: ir.Table, split_settings: SplitSettings) -> ir.Table:
    """Divide the interactions by every declared strategy (see ``splits.assign_splits``)."""
    return splits.assign_splits(labelled_interactions, split_settings)


def label_interactions(interactions: ir.Table, dataset: DatasetSettings) -> ir.Table:
    """Compute the label of every task on every interaction (see ``labels.label_interactions``)."""
    return labels.label_interactions(interactions, dataset)


def separate_parts(
    labelled: ir.Table, splits_table: ir.Table, dataset: DatasetSettings
) -> tuple[ir.Table, ir.Table, ir.Table, ir.Table]:
    """Divide the labelled interactions into files that the later pipelines may read.

    Returns:
        behaviour_sequences: training rows (split, user, position, item, time, fold, labels, relevance), sorted by user
            and time: the behaviour sequences ``h``; validation_rows, the same without folds, whose ``position`` is that
            among all rows known before the test; test_pairs (split, user, item, time), each once with its last
            time and without labels;
            test_labels, the test rows as those of validation, which only ``evaluation`` reads.

    Raises:
        SettingsError: If nothing can be learnt of a task on a split, or nothing measured.
    """
    tasks, relevance = list(dataset.tasks), [f"relevant_{name}" for name in dataset.tasks]
    # The order of a user's rows is found once for all splits, and on few columns: the others are joined in the end.
    rows = labelled.select("row", "user", "item", "timestamp")
    # Rows of one time are in an order that names and files do not change, and that is not the same for all users.
    pair = rows.user.cast("string") + ibis.literal("/") + rows.item.cast("string")
    rows = rows.mutate(tie=pair.hexdigest("md5").substr(0, 8))
    timed = dataset.interactions.timestamp is not None
    order = [*([rows.timestamp] if timed else []), rows.tie, rows.item, rows.row]
    rows = rows.select("row", "user", place=ibis.row_number().over(group_by="user", order_by=order))
    known = splits_table.filter(splits_table.part != "unused").inner_join(rows, "row")
    place = known.place
    if not timed:
        # The order of the file stands in, save where the split does not depend on it either.
        place = known.split.isin([*IN_FILE_ORDER, EVERYTHING]).ifelse(known.row, place)
    position = ibis.row_number().over(group_by=["split", "user"], order_by=[known.part == "test", place])
    known = known.select("split", "part", "fold", "row", position=position.cast("int64")).cache()
    columns = ["split", "user", "position", "item", "time", *tasks, *relevance]

    def rows_of(part: str) -> ir.Table:
        own = known.filter(known.part == part).select("split", "fold", "row", "position")
        return own.inner_join(labelled.select("row", "user", "item", "time", *tasks, *relevance), "row")

    sequences = rows_of("train").select("split", "user", "position", "item", "time", "fold", *tasks, *relevance)
    validation, test = rows_of("validation").select(columns), rows_of("test").select(columns)
    labels.check_parts(sequences, test, dataset)
    keys = ["split", "user", "item"]
    return (
        sequences.order_by("split", "user", "position"),
        validation.order_by("split", "user", "position"),
        test.group_by(keys).aggregate(time=test.time.max()).order_by(keys),
        test.order_by("split", "user", "position"),
    )


def list_left_out(
    split_notes: pd.DataFrame,
    behaviour_sequences: ir.Table,
    validation_rows: ir.Table,
    test_labels: ir.Table,
    dataset: DatasetSettings,
    split_settings: SplitSettings,
    study_settings: study.StudySettings,
) -> pd.DataFrame:
    """Say what the study cannot or does not compute on the data set: table (what, reason), and log it."""
    parts = [
        study.left_out_of(dataset),
        split_notes,
        study.left_out_of_tests(behaviour_sequences, validation_rows, test_labels, dataset, split_settings),
        comparisons.left_out_of_comparisons(dataset, study_settings),
    ]
    left_out = pd.concat(parts, ignore_index=True).astype(str)
    for row in left_out.itertuples():
        logger.info("left out: %s (%s)", row.what, row.reason)
    return left_out


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
