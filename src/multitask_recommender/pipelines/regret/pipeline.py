"""The pipeline ``regret``: lists of every model against those of an oracle, where the truth is known."""

from __future__ import annotations

from collections.abc import Mapping

import ibis.expr.types as ir
import pandas as pd
from kedro.pipeline import Pipeline, node

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.pipelines.bundles import ModelOutputs, in_order
from multitask_recommender.pipelines.regret import nodes
from multitask_recommender.simulation.bookstore import Arrays


def measure_regret(
    dataset: DatasetSettings,
    settings: EvaluationSettings,
    splits: SplitSettings,
    ground_truth: Arrays,
    training_data: Mapping[str, ir.Table],
    validation_rows: ir.Table,
    model_outputs: ModelOutputs,
) -> pd.DataFrame:
    """Compare the lists of all models with those of an oracle: see ``nodes.measure_regret``."""
    names = in_order(model_outputs)
    tables = (*(training_data[name] for name in ("users", "items", "behaviour_sequences")), validation_rows)
    lists = (model_outputs[name]["ranked_lists"] for name in names)
    return nodes.measure_regret(names, dataset, settings, splits, ground_truth, *tables, *lists)


def create_pipeline() -> Pipeline:
    """Build the pipeline."""
    return Pipeline(
        [
            node(
                measure_regret,
                [
                    "params:dataset",
                    "params:evaluation",
                    "params:splits",
                    "ground_truth",
                    "training_data",
                    "validation_rows",
                    "model_outputs",
                ],
                "regret",
                name="measure_regret",
            )
        ],
        namespace="regret_of_lists",
        prefix_datasets_with_namespace=False,
        tags="regret",
    )
