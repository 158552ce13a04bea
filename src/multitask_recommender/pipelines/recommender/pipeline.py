"""The pipeline ``recommender``: one namespace per model, all made from the list of variants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ibis.expr.types as ir
import pandas as pd
from kedro.pipeline import Pipeline, node

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.inputs import TrainingTables
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.spool import Spool
from multitask_recommender.models.stored import StoredModel
from multitask_recommender.models.variants import AFFINITY_BASE, DerivedParameters, Variant, VariantParameters
from multitask_recommender.pipelines.recommender import nodes, task_affinity
from multitask_recommender.spark.settings import SparkSettings
from multitask_recommender.spark.training import SparkLauncher

_DATA = ["behaviour_sequences", "users", "items", "user_features", "item_features"]


def _model_pipeline(variant: Variant) -> Pipeline:
    """Build the nodes of a model inside a namespace with its name."""

    def read(dataset: DatasetSettings, tables: Sequence[Any]) -> tuple[TrainingTables, StoredModel | None]:
        """Return the tables, with the tasks of the model alone, and the user embedding model if it reads one."""
        own = dataset.model_copy(update={"tasks": variant.trained_tasks(dataset.tasks)})
        return TrainingTables(own, *tables[: len(_DATA)]), tables[len(_DATA)] if variant.user_encoder else None

    def tune(
        parameters: VariantParameters,
        cross_validation: CrossValidationSettings,
        study: StudySettings,
        splits: SplitSettings,
        dataset: DatasetSettings,
        *tables: Any,
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        return nodes.tune(variant, parameters, cross_validation, study, splits, dataset, *read(dataset, tables))

    def derive(
        parameters: DerivedParameters,
        base: dict[str, Any],
        study: StudySettings,
        splits: SplitSettings,
        dataset: DatasetSettings,
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        return nodes.derive(variant, parameters, base, study, splits, dataset)

    # Kedro validates a parameter by the annotation of the argument it goes to: here the model's own settings.
    tune.__annotations__["parameters"] = variant.parameters

    def fit(
        chosen: dict[str, Any],
        cross_validation: CrossValidationSettings,
        study: StudySettings,
        splits: SplitSettings,
        dataset: DatasetSettings,
        engine: str,
        spark: SparkSettings,
        *tables: Any,
    ) -> tuple[StoredModel, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
        launcher = SparkLauncher(spark) if engine == "spark" else None
        return nodes.fit(variant, chosen, cross_validation, study, splits, *read(dataset, tables), launcher)

    def predict(
        chosen: dict[str, Any],
        weights: StoredModel,
        cross_validation: CrossValidationSettings,
        splits: SplitSettings,
        dataset: DatasetSettings,
        evaluation: EvaluationSettings,
        validation_rows: ir.Table,
        test_pairs: ir.Table,
        *tables: Any,
    ) -> tuple[Spool, Spool, dict[str, Any]]:
        own, encoder = read(dataset, tables)
        known = (validation_rows, test_pairs)
        return nodes.predict(
            variant, chosen, splits, own, weights, encoder, evaluation, *known, cross_validation.workers
        )

    def recommend(
        chosen: dict[str, Any],
        weights: StoredModel,
        study: StudySettings,
        dataset: DatasetSettings,
        engine: str,
        spark: SparkSettings,
        *tables: Any,
    ) -> Spool:
        own, encoder = read(dataset, tables)
        return nodes.recommend(variant, chosen, weights, encoder, study, own, spark if engine == "spark" else None)

    learnt_from = [*_DATA, "user_embedding.weights"] if variant.user_encoder else _DATA
    study = ["params:study", "params:splits", "params:dataset"]
    engine = ["params:engine", "params:spark"]
    parameters = f"params:models.{variant.block}"
    if variant.based_on is None:
        choose = node(
            tune,
            [parameters, "params:cross_validation", *study, *learnt_from],
            ["cv_results", "chosen_settings"],
            name="tune",
        )
        inputs = {*learnt_from, "validation_rows", "test_pairs"}
    else:
        base = f"{variant.based_on}.chosen_settings"
        choose = node(derive, [parameters, base, *study], ["cv_results", "chosen_settings"], name="derive")
        inputs = {base, *learnt_from, "validation_rows", "test_pairs"}
    steps = [
        choose,
        node(
            fit,
            ["chosen_settings", "params:cross_validation", *study, *engine, *learnt_from],
            ["weights", "learning_curve", "expert_utilisation", "fit_costs"],
            name="fit",
        ),
        node(
            predict,
            [
                "chosen_settings",
                "weights",
                "params:cross_validation",
                "params:splits",
                "params:dataset",
                "params:evaluation",
                "validation_rows",
                "test_pairs",
                *learnt_from,
            ],
            ["predictions", "ranked_lists", "predict_costs"],
            name="predict",
        ),
    ]
    if variant.recommends:
        steps.append(
            node(
                recommend,
                ["chosen_settings", "weights", "params:study", "params:dataset", *engine, *learnt_from],
                "recommendations",
                name="recommend",
            )
        )
    return Pipeline(
        steps,
        namespace=variant.name,
        inputs=inputs,
        parameters={parameters, "params:cross_validation", "params:evaluation", *study, *engine},
        tags=["recommender", variant.kind],
    )


def _task_affinity_pipeline() -> Pipeline:
    base = f"{AFFINITY_BASE}.chosen_settings"
    shared = ["params:cross_validation", "params:study", "params:splits", "params:dataset"]
    return Pipeline(
        [
            node(
                task_affinity.measure_task_affinity,
                [base, *shared, *_DATA],
                ["task_affinity", "task_pair_gains"],
                name="measure_task_affinity",
            )
        ],
        tags="recommender",
    )


def create_pipeline(variants: Sequence[Variant]) -> Pipeline:
    """Build the pipelines of some models, and that of the tasks' affinity."""
    return sum(map(_model_pipeline, variants), _task_affinity_pipeline())
