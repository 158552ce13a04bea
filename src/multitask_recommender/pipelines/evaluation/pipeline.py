"""The pipeline ``evaluation``: predictions and lists to metrics, costs, the headline table and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ibis.expr.types as ir
import pandas as pd
from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.evaluation import comparisons, estimates, figures, group_comparisons, group_gaps
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.evaluation.study import StudySettings, left_out_models
from multitask_recommender.pipelines.bundles import bundle
from multitask_recommender.pipelines.evaluation import nodes

RESULTS = (
    "metrics",
    "headline",
    "comparisons",
    "group_metrics",
    "group_gaps",
    "expert_utilisation",
    "costs",
    "cv_results",
    "left_out_models",
    "estimates",
    "group_comparisons",
    "choices",
    "learning_curves",
    "verdicts_figure",
    "accuracy_figure",
    "trade_off_figure",
    "group_gains_figure",
    "cost_figure",
    "affinity_figure",
    "experts_figure",
    "learning_curves_figure",
    "all_verdicts_figure",
    "all_accuracy_figure",
)
"""What the evaluation is there for: tables and figures."""


def group_entities(
    dataset: DatasetSettings, splits: SplitSettings, training_data: Mapping[str, ir.Table], validation_rows: ir.Table
) -> pd.DataFrame:
    """Divide users and items into hot, warm and cold ones: see ``nodes.group_entities``."""
    users, items, sequences = (training_data[name] for name in ("users", "items", "behaviour_sequences"))
    names = ("user_features", "user_vocabulary", "item_features", "item_vocabulary")
    tables = [training_data[name] for name in names]
    return nodes.group_entities(dataset, splits, users, items, sequences, validation_rows, *tables)


def measure_group_gaps(
    dataset: DatasetSettings,
    study: StudySettings,
    splits: SplitSettings,
    settings: EvaluationSettings,
    cross_validation: CrossValidationSettings,
    training_data: Mapping[str, ir.Table],
    user_totals: pd.DataFrame,
) -> pd.DataFrame:
    """Measure how far the main metrics lie apart between groups of users: see ``group_gaps.measure_group_gaps``."""
    features = (training_data[name] for name in ("user_features", "user_vocabulary"))
    return group_gaps.measure_group_gaps(dataset, study, splits, settings, cross_validation, *features, user_totals)


def compare_groups(
    dataset: DatasetSettings,
    study: StudySettings,
    settings: EvaluationSettings,
    cross_validation: CrossValidationSettings,
    training_data: Mapping[str, ir.Table],
    user_totals: pd.DataFrame,
) -> pd.DataFrame:
    """Compare models in thirds of the users by activity: see ``group_comparisons.compare_groups``."""
    sequences = training_data["behaviour_sequences"]
    return group_comparisons.compare_groups(dataset, study, settings, cross_validation, sequences, user_totals)


def _descriptions() -> list[Node]:
    """Build the nodes of the figures and of what they show: metrics with intervals, groups of users, curves."""
    settings = ["params:dataset", "params:evaluation"]
    parameters = ["params:dataset", "params:study", "params:evaluation", "params:cross_validation"]
    made: list[tuple[Callable[..., Any], str | list[str], str]] = [
        (estimates.estimate_metrics, [*parameters, "user_totals"], "estimates"),
        (compare_groups, [*parameters, "training_data", "user_totals"], "group_comparisons"),
        (nodes.summarise_choices, "cv_results", "choices"),
        (nodes.collect_learning_curves, "model_outputs", "learning_curves"),
        (figures.plot_verdicts, ["comparisons", "params:dataset"], "verdicts_figure"),
        (figures.plot_all_verdicts, ["comparisons", "params:dataset"], "all_verdicts_figure"),
        (figures.plot_accuracy, ["estimates", *settings], "accuracy_figure"),
        (figures.plot_all_accuracy, ["estimates", *settings], "all_accuracy_figure"),
        (figures.plot_trade_off, ["estimates", "metrics", *settings], "trade_off_figure"),
        (figures.plot_cost, ["estimates", "costs", *settings], "cost_figure"),
        (figures.plot_group_gains, ["group_comparisons", "params:dataset"], "group_gains_figure"),
        (figures.plot_affinity, ["task_affinity", "task_pair_gains"], "affinity_figure"),
        (figures.plot_experts, "expert_utilisation", "experts_figure"),
        (figures.plot_learning_curves, ["learning_curves", "params:dataset"], "learning_curves_figure"),
    ]
    return [node(step, inputs, output, name=step.__name__) for step, inputs, output in made]


def create_pipeline() -> Pipeline:
    """Build the pipeline."""
    settings = ["params:dataset", "params:evaluation"]
    study = ["params:dataset", "params:study", "params:splits", "params:evaluation"]
    return Pipeline(
        [
            node(
                group_entities,
                ["params:dataset", "params:splits", "training_data", "validation_rows"],
                "entity_groups",
                name="group_entities",
            ),
            node(
                nodes.measure_models,
                [
                    *settings,
                    "params:splits",
                    "training_data",
                    "validation_rows",
                    "entity_groups",
                    "test_labels",
                    "model_outputs",
                    "params:cross_validation",
                ],
                ["metrics", "user_totals", "group_metrics"],
                name="measure_models",
            ),
            node(
                left_out_models,
                ["params:dataset", "params:study", "metrics", "costs"],
                "left_out_models",
                name="list_models_left_out",
            ),
            node(
                nodes.collect_expert_utilisation,
                "model_outputs",
                "expert_utilisation",
                name="collect_expert_utilisation",
            ),
            node(
                comparisons.compare_models,
                [*study, "params:cross_validation", "user_totals"],
                "comparisons",
                name="compare_models",
            ),
            node(
                measure_group_gaps,
                [*study, "params:cross_validation", "training_data", "user_totals"],
                "group_gaps",
                name="measure_group_gaps",
            ),
            node(
                nodes.collect_cv_results,
                ["user_embedding.outputs", "model_outputs"],
                "cv_results",
                name="collect_cv_results",
            ),
            node(nodes.collect_costs, "model_outputs", "costs", name="collect_costs"),
            node(nodes.make_headline, ["metrics", *settings], "headline", name="make_headline"),
            *_descriptions(),
            node(bundle, {name: name for name in RESULTS}, "results", name="hand_over_results"),
        ],
        namespace="evaluation",
        prefix_datasets_with_namespace=False,
        tags="evaluation",
    )
