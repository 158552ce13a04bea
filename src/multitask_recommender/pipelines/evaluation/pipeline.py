"""The pipeline ``evaluation``: predictions and lists to metrics, costs, the headline table and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ibis.expr.types as ir
import pandas as pd
from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.evaluation import comparisons, estimates, figures, group_comparisons, group_gaps
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.evaluation.study import left_out_models
from multitask_recommender.models.variants import Variant
from multitask_recommender.pipelines.evaluation import nodes


def _measure_node(variant: Variant) -> Node:
    def measure(
        dataset: DatasetSettings,
        settings: EvaluationSettings,
        splits: SplitSettings,
        behaviour_sequences: ir.Table,
        validation_rows: ir.Table,
        entity_groups: pd.DataFrame,
        item_features: ir.Table,
        item_vocabulary: ir.Table,
        test_labels: ir.Table,
        predictions: pd.DataFrame,
        ranked_lists: pd.DataFrame,
    ) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        return nodes.measure(
            variant,
            dataset,
            settings,
            splits,
            behaviour_sequences,
            validation_rows,
            entity_groups,
            item_features,
            item_vocabulary,
            test_labels,
            predictions,
            ranked_lists,
        )

    return node(
        measure,
        [
            "params:dataset",
            "params:evaluation",
            "params:splits",
            "behaviour_sequences",
            "validation_rows",
            "entity_groups",
            "item_features",
            "item_vocabulary",
            "test_labels",
            f"{variant.name}.predictions",
            f"{variant.name}.ranked_lists",
        ],
        [f"{variant.name}.metrics", f"{variant.name}.user_totals", f"{variant.name}.group_metrics"],
        name=f"measure_{variant.name}",
    )


def _descriptions(variants: Sequence[Variant]) -> list[Node]:
    """Build the nodes of the figures and of what they show: metrics with intervals, groups of users, curves."""
    totals = [f"{variant.name}.user_totals" for variant in variants]
    trained = [variant.name for variant in variants if variant.core and variant.recommender.stochastic]
    settings = ["params:dataset", "params:evaluation"]

    def collect_learning_curves(*curves: pd.DataFrame) -> pd.DataFrame:
        return nodes.collect(*(curve.assign(model=name) for name, curve in zip(trained, curves, strict=True)))

    made: list[tuple[Callable[..., Any], str | list[str], str]] = [
        (estimates.estimate_metrics, ["params:dataset", "params:study", "params:evaluation", *totals], "estimates"),
        (
            group_comparisons.compare_groups,
            ["params:dataset", "params:study", "params:evaluation", "behaviour_sequences", *totals],
            "group_comparisons",
        ),
        (nodes.summarise_choices, "cv_results", "choices"),
        (collect_learning_curves, [f"{name}.learning_curve" for name in trained], "learning_curves"),
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


def create_pipeline(variants: Sequence[Variant]) -> Pipeline:
    """Build the pipeline for some models."""

    def of_every_model(output: str) -> list[str]:
        return [f"{variant.name}.{output}" for variant in variants]

    def collect_costs(*costs: dict[str, Any]) -> pd.DataFrame:
        return nodes.collect_costs([variant.name for variant in variants], *costs)

    settings = ["params:dataset", "params:evaluation"]
    return Pipeline(
        [
            node(
                nodes.group_entities,
                [
                    "params:dataset",
                    "params:splits",
                    "users",
                    "items",
                    "behaviour_sequences",
                    "validation_rows",
                    "user_features",
                    "user_vocabulary",
                    "item_features",
                    "item_vocabulary",
                ],
                "entity_groups",
                name="group_entities",
            ),
            *map(_measure_node, variants),
            node(nodes.collect, of_every_model("metrics"), "metrics", name="collect_metrics"),
            node(
                left_out_models,
                ["params:dataset", "params:study", "metrics", "costs"],
                "left_out_models",
                name="list_models_left_out",
            ),
            node(nodes.collect, of_every_model("group_metrics"), "group_metrics", name="collect_group_metrics"),
            node(
                nodes.collect,
                of_every_model("expert_utilisation"),
                "expert_utilisation",
                name="collect_expert_utilisation",
            ),
            node(
                comparisons.compare_models,
                [
                    "params:dataset",
                    "params:study",
                    "params:splits",
                    "params:evaluation",
                    "params:cross_validation",
                    *of_every_model("user_totals"),
                ],
                "comparisons",
                name="compare_models",
            ),
            node(
                group_gaps.measure_group_gaps,
                [
                    "params:dataset",
                    "params:study",
                    "params:splits",
                    "params:evaluation",
                    "user_features",
                    "user_vocabulary",
                    *of_every_model("user_totals"),
                ],
                "group_gaps",
                name="measure_group_gaps",
            ),
            node(
                nodes.collect_cv_results,
                ["user_embedding.cv_results", *of_every_model("cv_results")],
                "cv_results",
                name="collect_cv_results",
            ),
            node(
                collect_costs,
                [*of_every_model("fit_costs"), *of_every_model("predict_costs")],
                "costs",
                name="collect_costs",
            ),
            node(nodes.make_headline, ["metrics", *settings], "headline", name="make_headline"),
            *_descriptions(variants),
        ],
        namespace="evaluation",
        prefix_datasets_with_namespace=False,
        tags="evaluation",
    )
