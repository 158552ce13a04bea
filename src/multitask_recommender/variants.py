"""The list of the study's models. Pipelines, parameters, tests and notebooks all read it.

To add a model: write its module, add one line here and one block in ``conf/base/parameters_recommender.yml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import create_model, model_validator

from multitask_recommender.baselines import item_item, matrix_factorisation, neighbours, simple
from multitask_recommender.models import cross_stitch, document_system, mmoe, ple, shared_bottom, stem
from multitask_recommender.models.multi_task import MultiTaskSettings
from multitask_recommender.per_task import PerTask
from multitask_recommender.recommender import Recommender
from multitask_recommender.settings_base import Settings
from multitask_recommender.tasks import Task

Kind = Literal["baseline", "single_task", "multi_task"]


class VariantParameters(Settings):
    """The YAML block of a model.

    Attributes:
        settings: Parameters that are not searched.
        search: Parameter (nested ones with dots) to the values that cross-validation chooses from.
    """

    settings: Settings
    search: dict[str, list[Any]] | None = None

    @model_validator(mode="after")
    def _check(self) -> VariantParameters:
        for name, values in (self.search or {}).items():
            if not values:
                raise ValueError(f"search of '{name}' lists no value")
            for value in values:
                self.with_values({name: value})
        return self

    def with_values(self, values: dict[str, Any]) -> Settings:
        """Return the settings with searched parameters set, checked as if they stood in the YAML file."""
        tree = self.settings.model_dump()
        for path, value in values.items():
            *groups, name = path.split(".")
            place = tree
            for group in groups:
                place = place.get(group, {}) if isinstance(place, dict) else {}
            if not isinstance(place, dict):
                raise ValueError(f"search names an unknown parameter '{path}'")
            place[name] = value
            if groups and place is not _walk(tree, groups):
                raise ValueError(f"search names an unknown parameter '{path}'")
        return type(self.settings).model_validate(tree)


def _walk(tree: Any, groups: list[str]) -> Any:
    for group in groups:
        tree = tree.get(group) if isinstance(tree, dict) else None
    return tree


@dataclass(frozen=True)
class Variant:
    """A model of the study.

    Attributes:
        name: Its name in every output.
        recommender: Its class.
        settings: The class of its settings.
        kind: What it stands for in comparisons.
        title: Its name in figures.
        per_task: Whether it is an independent model per task, tuned per task.
        user_vectors: Whether it reads the frozen vectors of the user embedding model.
        core: Whether the default run includes it; ``kedro run --pipelines every_model`` runs all.
        quick: Whether a run with ``study.quick`` includes it.
        item_features: Whether it is nothing without item features.
    """

    name: str
    recommender: type[Recommender]
    settings: type[Settings]
    kind: Kind
    title: str
    per_task: bool = False
    user_vectors: bool = False
    core: bool = True
    quick: bool = True
    item_features: bool = False

    @cached_property
    def parameters(self) -> type[VariantParameters]:
        """The class of the model's YAML block."""
        return create_model(
            f"Parameters of {self.name}",
            __base__=VariantParameters,
            settings=(self.settings, self.settings()),
        )

    def make(self, settings: Settings | dict[str, Settings], tasks: dict[str, Task]) -> Recommender:
        """Make the untrained model.

        Args:
            settings: Its settings; per task for a model per task.
            tasks: The tasks of the study.
        """
        if self.per_task:
            own = settings if isinstance(settings, dict) else dict.fromkeys(tasks, settings)
            return PerTask(self.recommender, {task: own[task] for task in self.scored_tasks(tasks)})
        assert isinstance(settings, Settings)
        return self.recommender(settings)

    def scored_tasks(self, tasks: dict[str, Task]) -> list[str]:
        """Return the names of the tasks for which the model gives scores."""
        return [name for name, task in tasks.items() if task.kind in self.recommender.ranks]

    def predicts(self, task: Task) -> bool:
        """Return whether the model's scores for the task predict its label."""
        return task.kind in self.recommender.predicts


_ALL = (
    Variant("random", simple.RandomRecommender, simple.NoSettings, "baseline", "Random"),
    Variant("popularity", simple.Popularity, simple.NoSettings, "baseline", "Popularity"),
    Variant("global_mean", simple.GlobalMean, simple.NoSettings, "baseline", "Global mean", quick=False),
    Variant("user_mean", simple.UserMean, simple.NoSettings, "baseline", "User mean", quick=False),
    Variant("item_mean", simple.ItemMean, simple.NoSettings, "baseline", "Item mean"),
    Variant("user_item_bias", simple.UserItemBias, simple.BiasSettings, "baseline", "User + item bias", per_task=True),
    Variant("item_knn", neighbours.ItemKNN, neighbours.ItemKNNSettings, "baseline", "Item kNN", per_task=True),
    Variant(
        "content_based",
        neighbours.ContentBased,
        neighbours.ContentBasedSettings,
        "baseline",
        "Content-based",
        per_task=True,
        item_features=True,
    ),
    Variant(
        "rp3beta", item_item.RandomWalk, item_item.RandomWalkSettings, "baseline", "RP3beta", per_task=True, quick=False
    ),
    Variant("ease", item_item.Ease, item_item.EaseSettings, "baseline", "EASE", per_task=True, quick=False),
    Variant(
        "ials", item_item.ImplicitALS, item_item.ImplicitALSSettings, "baseline", "iALS", per_task=True, quick=False
    ),
    Variant(
        "matrix_factorisation",
        matrix_factorisation.MatrixFactorisation,
        matrix_factorisation.MatrixFactorisationSettings,
        "baseline",
        "Matrix factorisation",
        per_task=True,
    ),
    Variant(
        "svd_plus_plus",
        shared_bottom.PointwiseSharedBottom,
        MultiTaskSettings,
        "baseline",
        "SVD++ (denoising)",
        per_task=True,
        quick=False,
    ),
    Variant(
        "two_stage",
        document_system.TwoStageSystem,
        document_system.DocumentSystemSettings,
        "multi_task",
        "Document, two stages",
        user_vectors=True,
    ),
    Variant(
        "joint",
        document_system.JointSystem,
        document_system.DocumentSystemSettings,
        "multi_task",
        "Document, joint",
        quick=False,
    ),
    Variant(
        "single_task",
        shared_bottom.SharedBottom,
        MultiTaskSettings,
        "single_task",
        "Single-task control",
        per_task=True,
    ),
    Variant("shared_bottom", shared_bottom.SharedBottom, MultiTaskSettings, "multi_task", "Shared-bottom"),
    Variant(
        "wide_shared_bottom",
        shared_bottom.SharedBottom,
        MultiTaskSettings,
        "multi_task",
        "Wide shared-bottom",
        quick=False,
    ),
    Variant("mmoe", mmoe.MMoE, mmoe.MMoESettings, "multi_task", "MMoE", core=False, quick=False),
    Variant(
        "cross_stitch",
        cross_stitch.CrossStitch,
        cross_stitch.CrossStitchSettings,
        "multi_task",
        "Cross-stitch",
        core=False,
        quick=False,
    ),
    Variant("cgc", ple.PLE, ple.PLESettings, "multi_task", "CGC", core=False, quick=False),
    Variant("ple", ple.PLE, ple.PLESettings, "multi_task", "PLE", core=False, quick=False),
    Variant("stem", stem.STEM, MultiTaskSettings, "multi_task", "STEM", core=False, quick=False),
)
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}
"""Every model by name, in the order of tables and figures."""
