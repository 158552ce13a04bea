"""The pipeline ``regret``: lists of every model against those of an oracle, where the truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import ibis.expr.types as ir
import pandas as pd
from kedro.pipeline import Pipeline, node

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.models.variants import Variant
from multitask_recommender.pipelines.regret import nodes
from multitask_recommender.simulation.bookstore import Arrays


def create_pipeline(variants: Sequence[Variant]) -> Pipeline:
    """Build the pipeline for some models."""
    names = [variant.name for variant in variants]

    def measure_regret(
        dataset: DatasetSettings,
        settings: EvaluationSettings,
        splits: SplitSettings,
        ground_truth: Arrays,
        users: ir.Table,
        items: ir.Table,
        behaviour_sequences: ir.Table,
        validation_rows: ir.Table,
        *ranked_lists: pd.DataFrame,
    ) -> pd.DataFrame:
        tables = (users, items, behaviour_sequences, validation_rows)
        return nodes.measure_regret(names, dataset, settings, splits, ground_truth, *tables, *ranked_lists)

    return Pipeline(
        [
            node(
                measure_regret,
                [
                    "params:dataset",
                    "params:evaluation",
                    "params:splits",
                    "ground_truth",
                    "users",
                    "items",
                    "behaviour_sequences",
                    "validation_rows",
                    *(f"{name}.ranked_lists" for name in names),
                ],
                "regret",
                name="measure_regret",
            )
        ],
        namespace="regret_of_lists",
        prefix_datasets_with_namespace=False,
        tags="regret",
    )
