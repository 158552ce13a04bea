"""The pipeline ``recommender``: a namespace per family and in it per model, all made from the list of variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ibis.expr.types as ir
import pandas as pd
from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.inputs import TrainingTables
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.spool import Spool
from multitask_recommender.models.stored import StoredModel
from multitask_recommender.models.variants import (
    AFFINITY_BASE,
    NAMESPACE,
    DerivedParameters,
    Variant,
    VariantParameters,
)
from multitask_recommender.pipelines.bundles import bundle, bundle_models, join_families
from multitask_recommender.pipelines.recommender import nodes, task_affinity
from multitask_recommender.spark.settings import SparkSettings
from multitask_recommender.spark.training import SparkLauncher

_EVALUATED = ["cv_results", "expert_utilisation", "fit_costs", "predictions", "ranked_lists", "predict_costs"]
"""Outputs of a model that other pipelines read."""


def _tables(variant: Variant, dataset: DatasetSettings, training_data: Mapping[str, ir.Table]) -> TrainingTables:
    """Return the tables, with the tasks of the model alone."""
    own = dataset.model_copy(update={"tasks": variant.trained_tasks(dataset.tasks)})
    return TrainingTables.of(own, training_data)


def _steps(variant: Variant) -> list[Node]:
    """Build the nodes of a model in its box, that of its family."""

    def tune(
        parameters: VariantParameters,
        cross_validation: CrossValidationSettings,
        study: StudySettings,
        splits: SplitSettings,
        dataset: DatasetSettings,
        training_data: Mapping[str, ir.Table],
        encoder: StoredModel | None = None,
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        tables = _tables(variant, dataset, training_data)
        return nodes.tune(variant, parameters, cross_validation, study, splits, dataset, tables, encoder)

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
        training_data: Mapping[str, ir.Table],
        encoder: StoredModel | None = None,
    ) -> tuple[StoredModel, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
        launcher = SparkLauncher(spark) if engine == "spark" else None
        tables = _tables(variant, dataset, training_data)
        return nodes.fit(variant, chosen, cross_validation, study, splits, tables, encoder, launcher)

    def predict(
        chosen: dict[str, Any],
        weights: StoredModel,
        cross_validation: CrossValidationSettings,
        splits: SplitSettings,
        dataset: DatasetSettings,
        list_lengths: list[int],
        validation_rows: ir.Table,
        test_pairs: ir.Table,
        training_data: Mapping[str, ir.Table],
        encoder: StoredModel | None = None,
    ) -> tuple[Spool, Spool, dict[str, Any]]:
        own, known = _tables(variant, dataset, training_data), (validation_rows, test_pairs)
        return nodes.predict(
            variant, chosen, splits, own, weights, encoder, list_lengths, *known, cross_validation.workers
        )

    def recommend(
        chosen: dict[str, Any],
        weights: StoredModel,
        study: StudySettings,
        dataset: DatasetSettings,
        engine: str,
        spark: SparkSettings,
        training_data: Mapping[str, ir.Table],
        encoder: StoredModel | None = None,
    ) -> Spool:
        tables = _tables(variant, dataset, training_data)
        return nodes.recommend(variant, chosen, weights, encoder, study, tables, spark if engine == "spark" else None)

    # The viewer shows what stands in the docstrings of the functions.
    for function, described in ((tune, nodes.tune), (derive, nodes.derive), (fit, nodes.fit)):
        function.__doc__ = described.__doc__
    predict.__doc__, recommend.__doc__ = nodes.predict.__doc__, nodes.recommend.__doc__

    def own(*names: str) -> list[str]:
        """Return names of outputs of this model."""
        return [f"{variant.name}.{name}" for name in names]

    # In its box at once: one pipeline inside another would make all nodes anew, whichever command of Kedro is run.
    step = partial(node, namespace=variant.namespace, tags=["recommender", variant.kind])
    learnt_from = ["training_data", *(["user_embedding.weights"] if variant.user_encoder else [])]
    study = ["params:study", "params:splits", "params:dataset"]
    engine = ["params:engine", "params:spark"]
    parameters = f"params:models.{variant.block}"
    if variant.based_on is None:
        inputs = [parameters, "params:cross_validation", *study, *learnt_from]
        choose = step(tune, inputs, own("cv_results", "chosen_settings"), name="tune")
    else:
        inputs = [parameters, f"{variant.based_on}.chosen_settings", *study]
        choose = step(derive, inputs, own("cv_results", "chosen_settings"), name="derive")
    steps = [
        choose,
        step(
            fit,
            [*own("chosen_settings"), "params:cross_validation", *study, *engine, *learnt_from],
            own("weights", "learning_curve", "expert_utilisation", "fit_costs"),
            name="fit",
        ),
        step(
            predict,
            [
                *own("chosen_settings", "weights"),
                "params:cross_validation",
                "params:splits",
                "params:dataset",
                "params:evaluation.ks",
                "validation_rows",
                "test_pairs",
                *learnt_from,
            ],
            own("predictions", "ranked_lists", "predict_costs"),
            name="predict",
        ),
    ]
    if variant.recommends:
        steps.append(
            step(
                recommend,
                [*own("chosen_settings", "weights"), "params:study", "params:dataset", *engine, *learnt_from],
                *own("recommendations"),
                name="recommend",
            )
        )
    handed_over = [*_EVALUATED, "learning_curve", *(["recommendations"] if variant.recommends else [])]
    together = dict(zip(handed_over, own(*handed_over), strict=True))
    return [*steps, step(bundle, together, *own("outputs"), name="hand_over")]


def _task_affinity_pipeline() -> Pipeline:
    base = f"{AFFINITY_BASE}.chosen_settings"
    shared = ["params:cross_validation", "params:study", "params:splits", "params:dataset"]
    return Pipeline(
        [
            node(
                task_affinity.measure_task_affinity,
                [base, *shared, "training_data"],
                ["task_affinity", "task_pair_gains"],
                name="measure_task_affinity",
            )
        ],
        namespace=NAMESPACE,
        prefix_datasets_with_namespace=False,
        tags="recommender",
    )


def collecting_pipeline(variants: Sequence[Variant]) -> Pipeline:
    """Build the nodes that hand over the outputs of some models: family by family, then all as one."""
    families = list(dict.fromkeys(variant.family for variant in variants))
    steps = []
    for family in families:
        own = {one.name: f"{one.name}.outputs" for one in variants if one.family == family}
        collect = node(bundle_models, own, f"{family}.models", name="hand_over")
        steps.append(Pipeline([collect], namespace=family, prefix_datasets_with_namespace=False))
    steps.append(
        Pipeline([node(join_families, [f"{family}.models" for family in families], "model_outputs", name="hand_over")])
    )
    return Pipeline(steps, namespace=NAMESPACE, prefix_datasets_with_namespace=False, tags="recommender")


def create_pipeline(variants: Sequence[Variant]) -> Pipeline:
    """Build the pipelines of some models, that of the tasks' affinity, and what hands their outputs over."""
    steps = [step for variant in variants for step in _steps(variant)]
    return Pipeline([*steps, _task_affinity_pipeline(), collecting_pipeline(variants)])
