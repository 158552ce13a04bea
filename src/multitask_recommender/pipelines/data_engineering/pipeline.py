"""The pipeline ``data_engineering``: raw tables to checked tables, labels, splits, sequences and features."""

from collections.abc import Callable
from typing import Any

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from multitask_recommender.data import profile
from multitask_recommender.pipelines.bundles import bundle
from multitask_recommender.pipelines.data_engineering import figures, nodes


def _descriptions() -> list[Node]:
    """Build the nodes that describe the data, in tables and figures."""
    labelled = ["labelled_interactions", "params:dataset"]
    vocabularies = ["user_vocabulary", "item_vocabulary"]
    made: list[tuple[Callable[..., Any], str | list[str], str]] = [
        (profile.summarise, ["interactions", "users", "items", "params:dataset"], "data_summary"),
        (profile.activity, "interactions", "activity"),
        (profile.count_parts, "splits", "split_sizes"),
        (profile.overlap_of_tasks, labelled, "task_overlap"),
        (profile.values_of_labels, labelled, "label_values"),
        (profile.events_in_time, ["labelled_interactions", "splits", "params:dataset"], "events_in_time"),
        (profile.summarise_features, ["users", "items", *vocabularies, "params:dataset"], "feature_summary"),
        (figures.plot_activity, ["activity", "feature_summary", "params:dataset"], "activity_figure"),
        (figures.plot_tasks, ["task_overlap", "label_values", "params:dataset"], "tasks_figure"),
        (figures.plot_time, ["events_in_time", "params:dataset"], "time_figure"),
    ]
    steps = [node(step, inputs, output, name=step.__name__) for step, inputs, output in made]
    parts = {output: output for output in [*(output for _, _, output in made), "dropped_rows", "left_out"]}
    return [*steps, node(bundle, parts, "data_description", name="hand_over_data_description")]


_LEARNT_FROM = [
    "behaviour_sequences",
    "users",
    "items",
    "user_features",
    "item_features",
    "user_vocabulary",
    "item_vocabulary",
]
"""What models may learn from, and what its columns stand for: handed over as one."""


def create_pipeline() -> Pipeline:
    """Build the pipeline."""
    return Pipeline(
        [
            node(
                nodes.standardise_interactions,
                ["raw_interactions", "params:dataset"],
                "standardised_interactions",
                name="standardise_interactions",
            ),
            node(
                nodes.standardise_users,
                ["raw_users", "params:dataset"],
                "standardised_users",
                name="standardise_users",
            ),
            node(
                nodes.standardise_items,
                ["raw_items", "raw_item_links", "raw_item_graph", "params:dataset"],
                "standardised_items",
                name="standardise_items",
            ),
            node(
                nodes.validate_tables,
                [
                    "standardised_interactions",
                    "standardised_users",
                    "standardised_items",
                    "params:dataset",
                    "params:splits",
                ],
                ["interactions", "users", "items", "dropped_rows", "split_notes"],
                name="validate_tables",
            ),
            node(
                nodes.label_interactions,
                ["interactions", "params:dataset"],
                "labelled_interactions",
                name="label_interactions",
            ),
            node(nodes.assign_splits, ["labelled_interactions", "params:splits"], "splits", name="assign_splits"),
            node(
                nodes.separate_parts,
                ["labelled_interactions", "splits", "params:dataset"],
                ["behaviour_sequences", "validation_rows", "test_pairs", "test_labels"],
                name="separate_parts",
            ),
            node(
                nodes.list_left_out,
                [
                    "split_notes",
                    "behaviour_sequences",
                    "validation_rows",
                    "test_labels",
                    "params:dataset",
                    "params:splits",
                    "params:study",
                ],
                "left_out",
                name="list_left_out",
            ),
            node(
                nodes.build_user_features,
                ["users", "behaviour_sequences", "params:dataset"],
                ["user_vocabulary", "user_features"],
                name="build_user_features",
            ),
            node(
                nodes.build_item_features,
                ["items", "behaviour_sequences", "params:dataset"],
                ["item_vocabulary", "item_features"],
                name="build_item_features",
            ),
            *_descriptions(),
            node(bundle, {name: name for name in _LEARNT_FROM}, "training_data", name="hand_over_training_data"),
        ],
        namespace="data_engineering",
        prefix_datasets_with_namespace=False,
        tags="data_engineering",
    )
