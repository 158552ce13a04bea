"""The list of the study's models. Pipelines, parameters, tests and notebooks all read it.

To add a model: write its module, add one line here and one block in ``conf/base/parameters_recommender.yml``.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field, create_model, model_validator

from multitask_recommender.data.folds import SplitRule
from multitask_recommender.data.interactions import Interactions
from multitask_recommender.data.tasks import Task, TaskKind
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.architectures import (
    aitm,
    cross_stitch,
    escm2,
    esmm,
    mmoe,
    pairwise,
    ple,
    shared_bottom,
    stem,
)
from multitask_recommender.models.architectures.shared_bottom import SharedBottomSettings
from multitask_recommender.models.baselines import (
    bayesian_factors,
    item_item,
    item_ridge,
    markov,
    matrix_factorisation,
    neighbours,
    next_items,
    revisit,
    simple,
)
from multitask_recommender.models.document import document_system
from multitask_recommender.models.per_task import PerTask
from multitask_recommender.models.recommender import Recommender
from multitask_recommender.models.towers.user_side import history_task

Kind = Literal["baseline", "single_task", "multi_task", "ablation"]
NAMESPACE = "recommender"
"""The box of all models on the pipeline map."""


class DataSize(NamedTuple):
    """How much there is to learn from.

    Attributes:
        rows: Training rows.
        rows_per_item: Training rows of an item that has any, on average.
    """

    rows: float
    rows_per_item: float

    @classmethod
    def of(cls, train: Interactions) -> DataSize:
        """Measure training rows."""
        return cls(len(train), len(train) / max(len(np.unique(train.item)), 1))


_COMBINATIONS = 1_000_000
"""Most combinations of searched values: all of them are listed before some are drawn."""
REFERENCE_SIZE = DataSize(80_000, 48)
"""The size for which the values in the YAML files are meant where they follow the size: that of MovieLens-100k."""


class BySize(Settings):
    """How a parameter follows the size of the data: its value times the product of powers of size over reference size.

    Attributes:
        rows: Exponent of the number of training rows.
        rows_per_item: Exponent of the rows per item.
        most: Largest value; null: none.
    """

    rows: float = Field(default=0.0, ge=-10, le=10)
    rows_per_item: float = Field(default=0.0, ge=-10, le=10)
    most: float | None = Field(default=None, gt=0, le=1e12)

    def scaled(self, value: float, size: DataSize) -> float:
        """Return a value for data of this size, to three digits; a whole number stays one, of eights beyond 16."""
        factor = (size.rows / REFERENCE_SIZE.rows) ** self.rows
        factor *= (size.rows_per_item / REFERENCE_SIZE.rows_per_item) ** self.rows_per_item
        found = value * factor if self.most is None else min(value * factor, max(value, self.most))
        if isinstance(value, int):
            return max(8 * round(found / 8) if found > 16 else round(found), 1)
        return float(f"{found:.3g}")


class InTime(Settings):
    """What differs on splits whose test is the future.

    Attributes:
        settings: Parameter (nested ones with dots) to its value.
        search: Parameter to the values that are chosen from, beside or instead of those of other splits; null: it is
            not searched.
    """

    settings: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, list[Any] | None] = Field(default_factory=dict)


class VariantParameters(Settings):
    """The YAML block of a model.

    Attributes:
        settings: Parameters that are not searched.
        search: Parameter (nested ones with dots) to the values that cross-validation chooses from.
        in_time: What differs on splits whose test is the future.
        by_size: Parameter (nested ones with dots) to how its values, fixed or searched, follow the size of the data.
    """

    settings: Settings
    search: dict[str, list[Any]] | None = None
    in_time: InTime = InTime()
    by_size: dict[str, BySize] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> VariantParameters:
        with_values(self.settings, self.in_time.settings)
        for path in self.by_size:
            if path.split(".")[0] not in type(self.settings).model_fields:
                raise ValueError(f"'by_size' names an unknown parameter '{path}'")
        for search in (self.search or {}, {**(self.search or {}), **self.in_time.search}):
            for name, values in search.items():
                if values is not None and not values:
                    raise ValueError(f"search of '{name}' lists no value")
                twice = [value for place, value in enumerate(values or ()) if value in (values or [])[:place]]
                if twice:
                    raise ValueError(f"search of '{name}' lists {twice[0]} twice")
                for value in values or ():
                    self.with_values({name: value})
            combinations = math.prod(len(values) for values in search.values() if values)
            if combinations > _COMBINATIONS:
                raise ValueError(
                    f"search has {combinations:,} combinations of values; at most {_COMBINATIONS:,} are sampled from"
                )
        return self

    def for_split(self, split: SplitRule) -> VariantParameters:
        """Return the block as it holds on a split."""
        if not split.in_time:
            return self
        settings = with_values(self.settings, self.in_time.settings)
        search = {**(self.search or {}), **self.in_time.search}
        found = {name: values for name, values in search.items() if values is not None}
        return self.model_copy(update={"settings": settings, "search": found, "in_time": InTime()})

    def for_size(self, size: DataSize) -> VariantParameters:
        """Return the block as it holds for data of a size."""
        tree = self.settings.model_dump()
        values: dict[str, Any] = {}
        for path, rule in self.by_size.items():
            *groups, name = path.split(".")
            place = _walk(tree, groups)
            if isinstance(place, dict) and isinstance(place.get(name), int | float):
                values[path] = rule.scaled(place[name], size)
        search = {
            path: list(dict.fromkeys(self.by_size[path].scaled(value, size) for value in tried))
            if path in self.by_size
            else tried
            for path, tried in (self.search or {}).items()
        }
        settings = with_values(self.settings, values)
        return self.model_copy(update={"settings": settings, "search": search, "by_size": {}})

    def with_values(self, values: dict[str, Any]) -> Settings:
        """Return the settings with searched parameters set, checked as if they stood in the YAML file."""
        return with_values(self.settings, values)


def with_values(settings: Settings, values: dict[str, Any]) -> Settings:
    """Return settings with some parameters (nested ones with dots) changed, checked as if they stood in a file.

    Those of a part that is left out (null) change nothing.
    """
    tree = settings.model_dump()
    for path, value in values.items():
        *groups, name = path.split(".")
        place = _walk(tree, groups)
        if place is None:
            continue
        if not isinstance(place, dict):
            raise ValueError(f"there is no parameter '{path}'")
        place[name] = value
    return type(settings).model_validate(tree)


_UNKNOWN = object()


def _walk(tree: Any, groups: list[str]) -> Any:
    """Return what stands at a place in a tree of settings; None inside a part that is left out."""
    for group in groups:
        if tree is None:
            break
        tree = tree.get(group, _UNKNOWN) if isinstance(tree, dict) else _UNKNOWN
    return tree


class DerivedParameters(Settings):
    """The YAML block of a model that is another one with something changed.

    Attributes:
        changes: Parameter (nested ones with dots) to its value, on top of what was chosen for the other model.
    """

    changes: dict[str, Any] = Field(default_factory=dict)


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
        user_encoder: Whether it reads the vectors of the user embedding model.
        core: Whether a run with ``study.core_only`` includes it.
        quick: Whether a run with ``study.quick`` includes it.
        based_on: Name of the model whose chosen settings it takes over with a change, instead of being tuned.
        leaves_out: Kind of the tasks that it is not trained on.
        funnel: Whether it is for tasks that form a funnel.
        revisits: Whether it ranks what was met in an earlier step, and is nothing where lists leave that out.
        compared_only: Whether others are only compared with it, so that it recommends nothing.
        package: Name of an optional package that it needs.
        item_features: Whether it is nothing without item features.
        own_control: Name of the single-task model of the same sort and size, where ``single_task`` is of another.
        equal_inputs_of: Name of the single-task control that this one is, with the histories of a joint model: they
            carry the labels of all tasks, and it is trained on one. It takes that model's block of parameters.
    """

    name: str
    recommender: type[Recommender]
    settings: type[Settings]
    kind: Kind
    title: str
    per_task: bool = False
    user_encoder: bool = False
    core: bool = True
    quick: bool = True
    based_on: str | None = None
    leaves_out: TaskKind | None = None
    funnel: bool = False
    revisits: bool = False
    compared_only: bool = False
    package: str | None = None
    item_features: bool = False
    own_control: str | None = None
    equal_inputs_of: str | None = None

    @property
    def block(self) -> str:
        """Name of the model's block of parameters."""
        return self.equal_inputs_of or self.name

    @property
    def family(self) -> str:
        """Name of the models that it stands with on the pipeline map."""
        return {"baseline": "baselines", "ablation": "ablations"}.get(self.kind, self.kind)

    @property
    def namespace(self) -> str:
        """Its box on the pipeline map: ``kedro run --namespaces`` takes it."""
        return f"{NAMESPACE}.{self.family}.{self.name}"

    @cached_property
    def parameters(self) -> type[Settings]:
        """The class of the model's YAML block."""
        if self.based_on is not None:
            return create_model(
                f"Parameters of {self.name}",
                __base__=DerivedParameters,
                changes=(Annotated[dict[str, Any], AfterValidator(self._check_changes)], Field(default_factory=dict)),
            )
        return create_model(
            f"Parameters of {self.name}",
            __base__=VariantParameters,
            settings=(self.settings, self.settings()),
        )

    def _check_changes(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Refuse changes that the settings of the model do not take."""
        with_values(self.settings(), changes)
        return changes

    def make(self, settings: Settings | dict[str, Settings], tasks: dict[str, Task]) -> Recommender:
        """Make the untrained model.

        Args:
            settings: Its settings; per task for a model per task.
            tasks: The tasks of the study.
        """
        if self.per_task:
            ranked = [name for name, task in tasks.items() if task.kind in self.recommender.ranks]
            own = settings if isinstance(settings, dict) else dict.fromkeys(ranked, settings)
            return PerTask(self.recommender, {task: own[task] for task in ranked if task in own}, self.equal_inputs)
        assert isinstance(settings, Settings)
        return self.recommender(settings)

    def read_settings(self, values: dict[str, Any]) -> Settings | dict[str, Settings]:
        """Return settings from their plain values; for a model per task from a dictionary of them by task."""
        if self.per_task:
            return {task: self.settings.model_validate(own) for task, own in values.items()}
        return self.settings.model_validate(values)

    def trained_tasks(self, tasks: dict[str, Task]) -> dict[str, Task]:
        """Return the tasks that the model is trained on."""
        return {name: task for name, task in tasks.items() if task.kind != self.leaves_out}

    def obstacle(self, tasks: dict[str, Task]) -> str | None:
        """Return why the model can't take part in a study of these tasks, or None."""
        own = self.trained_tasks(tasks)
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return f"the package '{self.package}' is not installed"
        if self.funnel and not any(task.after in own for task in own.values()):
            return "no task is declared to come 'after' another"
        if self.revisits and not any(task.after in own and task.known == "own_task" for task in own.values()):
            return "no task that comes 'after' another keeps in its lists what was met ('known: own_task')"
        if self.equal_inputs and len(own) == 1:
            return "there is one task alone"
        if self.leaves_out is not None and (len(own) == len(tasks) or not own):
            return f"leaving out the tasks of kind '{self.leaves_out}' leaves all tasks or none"
        return None

    @property
    def equal_inputs(self) -> bool:
        """Whether it is a single-task control whose histories carry the labels of all tasks."""
        return self.equal_inputs_of is not None

    def scored_tasks(self, tasks: dict[str, Task]) -> list[str]:
        """Return the names of the tasks for which the model gives scores.

        The task whose labels histories carry anyway is no task of a control with equal inputs: it would be the same as
        the one without.
        """
        same = history_task(tasks) if self.equal_inputs else None
        return [name for name, task in tasks.items() if task.kind in self.recommender.ranks and name != same]

    @property
    def recommends(self) -> bool:
        """Whether lists of recommendations are made with it: not with a model that the study only compares with."""
        return not self.compared_only

    def trained_to_rank(self, name: str, tasks: dict[str, Task]) -> bool:
        """Return whether the model learns an order of the catalogue for a task.

        One that predicts labels learns from the rows that have them, which say nothing of the other items, unless it is
        trained together with a task of retrieval.
        """
        together = self.kind in ("multi_task", "ablation")
        retrieves = any(task.kind == "retrieval" for task in self.trained_tasks(tasks).values())
        return not self.predicts(tasks[name]) or (together and retrieves)

    def predicts(self, task: Task) -> bool:
        """Return whether the model's scores for the task predict its label."""
        return task.kind in self.recommender.predicts


def _architecture(
    name: str, recommender: type[Recommender], settings: type[Settings], title: str, funnel: bool = False
) -> Variant:
    """A tuned multi-task model beside the core ones."""
    return Variant(
        name, recommender, settings, "multi_task", title, core=False, quick=False, funnel=funnel, compared_only=True
    )


def _derived(
    name: str,
    kind: Kind,
    title: str,
    recommender: type[Recommender] = shared_bottom.SharedBottom,
    settings: type[Settings] = SharedBottomSettings,
    **more: Any,
) -> Variant:
    """The shared-bottom model with something changed."""
    return Variant(
        name,
        recommender,
        settings,
        kind,
        title,
        core=False,
        quick=False,
        based_on="shared_bottom",
        compared_only=True,
        **more,
    )


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
        "rp3beta",
        item_item.RandomWalk,
        item_item.RandomWalkSettings,
        "baseline",
        "RP3beta",
        per_task=True,
        core=False,
        quick=False,
    ),
    Variant(
        "markov", markov.MarkovChain, markov.MarkovSettings, "baseline", "Markov chain", per_task=True, quick=False
    ),
    Variant(
        "next_items",
        next_items.NextItems,
        next_items.NextItemsSettings,
        "baseline",
        "Next items",
        per_task=True,
        core=False,
        quick=False,
    ),
    Variant("ease", item_item.Ease, item_item.EaseSettings, "baseline", "EASE", per_task=True, quick=False),
    Variant(
        "ease_first_step",
        item_item.FirstStepEase,
        item_item.EaseSettings,
        "baseline",
        "EASE on the first step",
        quick=False,
        funnel=True,
    ),
    Variant(
        "revisit",
        revisit.Revisit,
        revisit.RevisitSettings,
        "baseline",
        "Revisit",
        quick=False,
        funnel=True,
        revisits=True,
    ),
    Variant(
        "ials", item_item.ImplicitALS, item_item.ImplicitALSSettings, "baseline", "iALS", per_task=True, quick=False
    ),
    Variant(
        "item_ridge",
        item_ridge.ItemRidge,
        item_ridge.ItemRidgeSettings,
        "baseline",
        "Item ridge",
        per_task=True,
        quick=False,
    ),
    Variant(
        "bayesian_factors",
        bayesian_factors.BayesianFactors,
        bayesian_factors.BayesianFactorsSettings,
        "baseline",
        "Bayesian factors",
        per_task=True,
        quick=False,
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
        SharedBottomSettings,
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
        user_encoder=True,
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
        "joint_adam",
        document_system.JointSystem,
        document_system.DocumentSystemSettings,
        "multi_task",
        "Document, joint, Adam",
        quick=False,
        own_control="joint_adam_single_task",
    ),
    Variant(
        "joint_adam_single_task",
        document_system.JointSystem,
        document_system.DocumentSystemSettings,
        "single_task",
        "Document, Adam, one task each",
        per_task=True,
        quick=False,
        compared_only=True,
    ),
    Variant(
        "single_task",
        shared_bottom.SharedBottom,
        SharedBottomSettings,
        "single_task",
        "Single-task control",
        per_task=True,
    ),
    Variant(
        "single_task_equal_inputs",
        shared_bottom.SharedBottom,
        SharedBottomSettings,
        "single_task",
        "Single-task, equal inputs",
        per_task=True,
        quick=False,
        compared_only=True,
        core=False,
        equal_inputs_of="single_task",
    ),
    Variant("shared_bottom", shared_bottom.SharedBottom, SharedBottomSettings, "multi_task", "Shared-bottom"),
    Variant(
        "wide_shared_bottom",
        shared_bottom.WideSharedBottom,
        shared_bottom.WideSharedBottomSettings,
        "multi_task",
        "Wide shared-bottom",
        quick=False,
        own_control="wide_single_task",
    ),
    Variant(
        "wide_single_task",
        shared_bottom.WideSharedBottom,
        shared_bottom.WideSharedBottomSettings,
        "single_task",
        "Wide, one task each",
        per_task=True,
        quick=False,
        compared_only=True,
    ),
    Variant(
        "wide_single_task_equal_inputs",
        shared_bottom.WideSharedBottom,
        shared_bottom.WideSharedBottomSettings,
        "single_task",
        "Wide, one task, equal inputs",
        per_task=True,
        quick=False,
        compared_only=True,
        core=False,
        equal_inputs_of="wide_single_task",
    ),
    _architecture("mmoe", mmoe.MMoE, mmoe.MMoESettings, "MMoE"),
    _architecture("cross_stitch", cross_stitch.CrossStitch, cross_stitch.CrossStitchSettings, "Cross-stitch"),
    _architecture("cgc", ple.PLE, ple.PLESettings, "CGC"),
    _architecture("ple", ple.PLE, ple.PLESettings, "PLE"),
    _architecture("stem", stem.STEM, stem.STEMSettings, "STEM"),
    _architecture("esmm", esmm.RevisitingESMM, esmm.RevisitingESMMSettings, "ESMM", funnel=True),
    *(
        _architecture(name, escm2.RevisitingESCM2, escm2.RevisitingESCM2Settings, title, funnel=True)
        for name, title in (("escm2_ips", "ESCM2, inverse propensity"), ("escm2_dr", "ESCM2, doubly robust"))
    ),
    _architecture("aitm", aitm.RevisitingAITM, aitm.RevisitingAITMSettings, "AITM", funnel=True),
    _architecture("mmoe_pairwise", pairwise.PairwiseMMoE, pairwise.PairwiseSettings, "MMoE over pairs"),
    _architecture("ple_pairwise", pairwise.PairwisePLE, pairwise.PairwiseSettings, "PLE over pairs"),
    _architecture("softmax_retrieval", shared_bottom.SharedBottom, SharedBottomSettings, "Softmax retrieval"),
    _architecture("bpr_retrieval", shared_bottom.DrawnSharedBottom, SharedBottomSettings, "BPR retrieval"),
    Variant(
        "linear_experts",
        mmoe.MMoE,
        mmoe.MMoESettings,
        "ablation",
        "MMoE, linear experts",
        core=False,
        quick=False,
        based_on="mmoe",
        compared_only=True,
    ),
    _derived("nonlinear_encoder", "multi_task", "Non-linear encoder"),
    _derived(
        "with_next_items",
        "multi_task",
        "Shared-bottom, next items",
        shared_bottom.WideSharedBottom,
        shared_bottom.WideSharedBottomSettings,
    ),
    _derived("uncertainty_weighting", "multi_task", "Uncertainty weighting"),
    _derived("dynamic_weight_average", "multi_task", "Dynamic weight average"),
    _derived("random_weighting", "multi_task", "Random weighting"),
    *(
        _derived(name, "multi_task", title, package="torchjd")
        for name, title in (
            ("famo", "FAMO"),
            ("pcgrad", "PCGrad"),
            ("cagrad", "CAGrad"),
            ("nash_mtl", "Nash-MTL"),
            ("aligned_mtl", "Aligned-MTL"),
            ("upgrad", "UPGrad"),
        )
    ),
    _derived("pretrained_user_embedding", "ablation", "Pre-trained user embedding", user_encoder=True),
    _derived("no_user_embedding", "ablation", "No user embedding"),
    _derived("no_features", "ablation", "No features"),
    _derived("unshared_embeddings", "ablation", "Unshared embeddings"),
    _derived("without_retrieval", "ablation", "Without retrieval tasks", leaves_out="retrieval"),
    _derived("without_binary", "ablation", "Without binary tasks", leaves_out="binary"),
    _derived("without_regression", "ablation", "Without regression tasks", leaves_out="regression"),
)
AFFINITY_BASE = "shared_bottom"
"""The model that the affinity of the tasks is measured with."""
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}
"""Every model by name, in the order of tables and figures."""
