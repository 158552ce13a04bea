"""The pipeline ``recommender``: one namespace per model, all made from the list of variants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ibis.expr.types as ir
import pandas as pd
from kedro.pipeline import Pipeline, node

from multitask_recommender.cross_validation import CrossValidationSettings
from multitask_recommender.pipelines.data_engineering.parameters import DatasetSettings, SplitSettings
from multitask_recommender.pipelines.evaluation.parameters import EvaluationSettings
from multitask_recommender.pipelines.inputs import TrainingTables
from multitask_recommender.pipelines.recommender import nodes
from multitask_recommender.pipelines.recommender.parameters import StudySettings
from multitask_recommender.recommender import Arrays
from multitask_recommender.variants import Variant, VariantParameters

_ROWS = ["behaviour_sequences", "users", "items"]
_DATA = [*_ROWS, "user_features", "item_features"]


def _model_pipeline(variant: Variant) -> Pipeline:
    """Build the four nodes of a model inside a namespace with its name."""

    def tune(
        parameters: VariantParameters,
        cross_validation: CrossValidationSettings,
        study: StudySettings,
        splits: SplitSettings,
        dataset: DatasetSettings,
        *tables: ir.Table,
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        return nodes.tune(variant, parameters, cross_validation, study, splits, TrainingTables(dataset, *tables))

    # Kedro validates a parameter by the annotation of the argument it goes to: here the model's own settings.
    tune.__annotations__["parameters"] = variant.parameters

    def fit(
        chosen: dict[str, Any],
        cross_validation: CrossValidationSettings,
        study: StudySettings,
        splits: SplitSettings,
        dataset: DatasetSettings,
        *tables: ir.Table,
    ) -> tuple[Arrays, pd.DataFrame, dict[str, Any]]:
        return nodes.fit(variant, chosen, cross_validation, study, splits, TrainingTables(dataset, *tables))

    def predict(
        chosen: dict[str, Any],
        weights: Arrays,
        study: StudySettings,
        splits: SplitSettings,
        dataset: DatasetSettings,
        evaluation: EvaluationSettings,
        validation_rows: ir.Table,
        test_pairs: ir.Table,
        *tables: ir.Table,
    ) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
        return nodes.predict(
            variant,
            chosen,
            study,
            splits,
            TrainingTables(dataset, *tables),
            weights,
            evaluation,
            validation_rows,
            test_pairs,
        )

    def recommend(
        chosen: dict[str, Any],
        weights: Arrays,
        study: StudySettings,
        dataset: DatasetSettings,
        *tables: ir.Table,
    ) -> pd.DataFrame:
        return nodes.recommend(variant, chosen, weights, study, TrainingTables(dataset, *tables))

    learnt_from = [*_DATA, "user_vectors"] if variant.user_vectors else _DATA
    study = ["params:study", "params:splits", "params:dataset"]
    parameters = f"params:models.{variant.name}"
    return Pipeline(
        [
            node(
                tune,
                [parameters, "params:cross_validation", *study, *learnt_from],
                ["cv_results", "chosen_settings"],
                name="tune",
            ),
            node(
                fit,
                ["chosen_settings", "params:cross_validation", *study, *learnt_from],
                ["weights", "learning_curve", "fit_costs"],
                name="fit",
            ),
            node(
                predict,
                ["chosen_settings", "weights", *study, "params:evaluation", "validation_rows", "test_pairs", *_ROWS],
                ["predictions", "ranked_lists", "predict_costs"],
                name="predict",
            ),
            node(
                recommend,
                ["chosen_settings", "weights", "params:study", "params:dataset", *_ROWS],
                "recommendations",
                name="recommend",
            ),
        ],
        namespace=variant.name,
        inputs={*learnt_from, "validation_rows", "test_pairs"},
        parameters={parameters, "params:cross_validation", "params:evaluation", *study},
        tags=["recommender", variant.kind],
    )


def create_pipeline(variants: Sequence[Variant]) -> Pipeline:
    """Build the pipelines of some models."""
    return sum(map(_model_pipeline, variants), Pipeline([]))
