"""What the study holds: parameters that all pipelines of models share, and what a data set does not allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import ibis
import ibis.expr.types as ir
import pandas as pd
from pydantic import Field, field_validator

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.folds import IN_TIME
from multitask_recommender.evaluation.metric_records import ALL, METRICS, ListMetric, RowMetric, compared_metrics
from multitask_recommender.foundation.errors import SettingsError, did_you_mean
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.variants import VARIANTS, Variant

FAMILIES: Mapping[str, Callable[[Variant], bool]] = {
    "baselines": lambda variant: variant.kind == "baseline",
    "controls": lambda variant: variant.kind == "single_task",
    "multi_task": lambda variant: variant.kind == "multi_task",
    "ablations": lambda variant: variant.kind == "ablation",
    "core": lambda variant: variant.core,
    "quick": lambda variant: variant.quick,
}
"""Names that stand for several models in ``study.models``."""


class StudySettings(Settings):
    """What holds for every model.

    Attributes:
        seed: The seed that every random number of the study is derived from, save the splits.
        repeats: Seed numbers per stochastic model: each is fitted so many times.
        models: The models to run, by name or family (``FAMILIES``), as a list or with spaces between them; what a named
            one is based on runs too. It takes the place of ``core_only`` and ``quick``. Null: all that these leave.
        core_only: Leave out the models that are not marked as core in the list of variants; their outputs are empty.
        quick: Leave out the models that are not marked as quick in the list of variants; their outputs are empty.
        affinity_folds: Folds that the affinity of the tasks is measured on, at most as many as there are; every fold
            costs a fit per task, per pair of tasks and of all together.
        recommendations: Length of the lists of recommendations per user and task.
        recommend_with: Name of the model that answers new events; null: ``wide_shared_bottom`` or, where it was not
            run, the first multi-task model.
        memory_gb: Most memory that a run may take, in GB (10^9 bytes): the engine of the tables takes at most half of
            it, blocks of users are smaller, and fewer workers run at the same time where it has no room for all. Null:
            all there is.
        train_again_share: Share of new events of users, or on items, that the training did not know, above which the
            report advises to train again.
        index_above: Number of items above which the lists for new events come from an approximate index (faiss, the
            extra ``ann``), for retrieval tasks of models whose scores are inner products; null: they are exact. Lists
            that are evaluated, and those of the study, are exact always.
        not_of_models: Names of the settings that say which models are studied and used, and nothing of how.
    """

    not_of_models: ClassVar[frozenset[str]] = frozenset(
        {"models", "core_only", "quick", "recommend_with", "train_again_share", "index_above", "memory_gb"}
    )

    seed: int = Field(ge=0, le=2**63 - 1)
    repeats: int = Field(ge=1, le=1000)
    models: list[str] | None = Field(default=None, min_length=1)
    core_only: bool = False
    quick: bool = False
    affinity_folds: int = Field(default=3, ge=1, le=1000)
    recommendations: int = Field(default=10, ge=1, le=10_000)
    recommend_with: str | None = None
    memory_gb: float | None = Field(default=None, ge=0.5, le=100_000)
    train_again_share: float = Field(default=0.2, ge=0, le=1)
    index_above: int | None = Field(default=None, ge=0, le=10**9)

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.split() if isinstance(value, str) else value

    @field_validator("models")
    @classmethod
    def _check(cls, value: list[str] | None) -> list[str] | None:
        known = [*FAMILIES, *VARIANTS]
        for name in value or ():
            if name not in known:
                raise ValueError(
                    f"'study.models' names '{name}', which is no model{did_you_mean(name, known)} "
                    f"Families are {', '.join(FAMILIES)}; the models are listed in models/variants.py."
                )
        return value

    @field_validator("recommend_with")
    @classmethod
    def _check_one(cls, value: str | None) -> str | None:
        if value is not None and value not in VARIANTS:
            raise ValueError(
                f"'study.recommend_with' names '{value}', which is no model{did_you_mean(value, VARIANTS)}"
            )
        return value

    def wants(self, variant: Variant) -> bool:
        """Return whether the settings ask for a model, or for one that is based on it."""
        if self.models is None:
            return (variant.quick or not self.quick) and (variant.core or not self.core_only)
        named = {
            own.name
            for own in VARIANTS.values()
            if any(name == own.name or (name in FAMILIES and FAMILIES[name](own)) for name in self.models)
        }
        return variant.name in named | {VARIANTS[name].based_on for name in named}

    def runs(self, variant: Variant, dataset: DatasetSettings) -> bool:
        """Return whether the study includes a model."""
        return self.wants(variant) and impossible(variant, dataset) is None

    def running(self, dataset: DatasetSettings) -> list[str]:
        """Return the names of the models that the study includes.

        Raises:
            SettingsError: If there is none.
        """
        found = [name for name, variant in VARIANTS.items() if self.runs(variant, dataset)]
        if not found:
            wanted = [name for name, variant in VARIANTS.items() if self.wants(variant)]
            reasons = "; ".join(f"{name}: {impossible(VARIANTS[name], dataset)}" for name in wanted)
            raise SettingsError(
                f"No model of the study can be run ({reasons}).\n  where: 'study.models'\n  what to do: name others."
            )
        return found


def impossible(variant: Variant, dataset: DatasetSettings) -> str | None:
    """Say why a model has nothing to work with on a data set, or return None."""
    obstacle = variant.obstacle(dataset.tasks)
    if obstacle is not None:
        return obstacle
    if variant.item_features and not dataset.items.features:
        return "the data set has no item features"
    if not variant.scored_tasks(variant.trained_tasks(dataset.tasks)):
        kinds = " or ".join(sorted(variant.recommender.ranks))
        return f"the data set has no task of kind {kinds}"
    return None


def left_out_of(dataset: DatasetSettings) -> pd.DataFrame:
    """Say what cannot be computed on the data set: table (what, reason)."""
    lines = [
        (f"model {variant.name}", reason)
        for variant in VARIANTS.values()
        if (reason := impossible(variant, dataset)) is not None
    ]
    if dataset.interactions.timestamp is None:
        lines += [(f"split {name}", "the interactions have no timestamps") for name in IN_TIME]
    if dataset.items.title is None:
        lines.append(("titles in recommendations", "the data set has none; they show the identifier"))
    for side, described in (("user", dataset.users.features), ("item", dataset.items.features)):
        if not described:
            lines.append((f"{side} features in models", f"the data set has no {side} features"))
    if not dataset.items.features:
        lines.append(("ranking of cold items", "without item features, items that are new cannot be told apart"))
    kinds = {task.kind for task in dataset.tasks.values()}
    for kind in sorted(ALL - kinds):
        own = [metric.title for metric in METRICS.values() if metric.kinds == {kind}]
        lines.append((", ".join(own or ["lists of a retrieval task"]), f"the data set has no task of kind {kind}"))
    return pd.DataFrame(lines, columns=["what", "reason"])


def left_out_models(
    dataset: DatasetSettings, study: StudySettings, metrics: pd.DataFrame, costs: pd.DataFrame
) -> pd.DataFrame:
    """Say which models the metrics hold nothing of: table (what, reason)."""
    lines = []
    for name, variant in VARIANTS.items():
        if name in set(metrics["model"]):
            continue
        if not study.wants(variant):
            setting = "models" if study.models else "core_only" if study.core_only and not variant.core else "quick"
            reason = f"'study.{setting}' leaves it out"
        elif name in set(costs["model"]):
            reason = "the tasks that it predicts have no test rows with a label"
        else:
            reason = impossible(variant, dataset) or f"it has not been run: kedro run --namespaces {variant.namespace}"
        lines.append((f"model {name}", reason))
    return pd.DataFrame(lines, columns=["what", "reason"])


def _whom(metric: RowMetric | ListMetric) -> str:
    """Say which users a metric compares models on: those with relevant rows, labels of both classes, or any label."""
    if metric.of_lists:
        return "relevant"
    return "classes" if metric.name == "auc" else "labelled"


def _users_compared(test_labels: ir.Table, dataset: DatasetSettings) -> pd.DataFrame:
    """Count the users of every split that models can be compared on: columns ``<whom>_<place of the task>``."""
    measures: dict[str, ir.Value] = {}
    for place, name in enumerate(dataset.tasks):
        label, relevant = test_labels[name], test_labels[f"relevant_{name}"]
        measures |= {
            f"relevant_{place}": relevant.any(),
            f"labelled_{place}": label.count() > 0,
            f"classes_{place}": (label.min() < label.max()).fill_null(False),
        }
    by_user = test_labels.group_by("split", "user").aggregate(**measures)
    return (
        by_user.group_by("split")
        .aggregate(**{name: by_user[name].sum() for name in measures})
        .execute()
        .set_index("split")
    )


def left_out_of_tests(
    behaviour_sequences: ir.Table,
    validation_rows: ir.Table,
    test_labels: ir.Table,
    dataset: DatasetSettings,
    splits: SplitSettings,
) -> pd.DataFrame:
    """Say which tasks have nothing in the test rows of a split, and how much of it cannot be recommended.

    Args:
        behaviour_sequences: Training rows of all splits.
        validation_rows: Validation rows of all splits.
        test_labels: Test rows of all splits.
        dataset: The tasks.
        splits: Which items may be recommended on every split.

    Returns:
        Table (what, reason).
    """
    trained = behaviour_sequences.select("split", "item").distinct().mutate(trained=ibis.literal(True))
    pairs = test_labels.group_by("split", "user", "item").aggregate(
        **{name: test_labels[name].max() for name in dataset.tasks},
        **{f"relevant_{name}": test_labels[f"relevant_{name}"].any() for name in dataset.tasks},
    )
    relevance = [f"relevant_{name}" for name in dataset.tasks]
    met = ibis.union(
        *[table.select("split", "user", "item", *relevance) for table in (behaviour_sequences, validation_rows)]
    )
    # Of the pairs that were met, few are test pairs: only these are counted.
    keys = pairs.select("split", "user", "item").cache()
    met = met.semi_join(keys, ["split", "user", "item"])
    met = met.group_by("split", "user", "item").aggregate(
        **{f"met_{place}": met[name].any() for place, name in enumerate(relevance)}, met=ibis.literal(True)
    )
    pairs = pairs.left_join(met, ["split", "user", "item"]).drop("split_right", "user_right", "item_right")
    joined = pairs.left_join(trained, ["split", "item"])
    counts = {"rows": joined.count()}
    known = joined.trained.fill_null(False)
    for place, name in enumerate(dataset.tasks):
        relevant = joined[f"relevant_{name}"]
        counts[f"labels_{place}"] = joined[name].count()
        counts[f"relevant_{place}"] = relevant.sum()
        counts[f"trained_{place}"] = (relevant & known).sum()
        own = joined.met if dataset.tasks[name].known == "any_task" else joined[f"met_{place}"]
        counts[f"met_{place}"] = (relevant & own.fill_null(False)).sum()
    found = joined.group_by("split").aggregate(**counts).execute().set_index("split")
    users = _users_compared(test_labels, dataset)
    lines: list[tuple[str, str]] = []
    for split in splits.names:
        if split not in found.index:
            continue
        rule = splits.candidates_of(split)
        for place, name in enumerate(dataset.tasks):
            own = {what: int(found.loc[split, f"{what}_{place}"]) for what in ("labels", "relevant", "trained")}
            task = f"task {name} on the {split} split"
            if own["labels"] == 0:
                lines.append((task, f"none of the {int(found.loc[split, 'rows'])} test rows has a label"))
                continue
            if own["relevant"] == 0:
                lines.append((f"lists of {task}", "no test row is relevant"))
            for metric in compared_metrics(dataset.tasks[name].kind):
                number = int(users[f"{_whom(metric)}_{place}"][split])
                if number == 1 or (number == 0 and metric.name == "auc"):
                    whom = f"{'one user has' if number else 'no user has'} test rows to compare by"
                    what = "no interval, so the verdict is 'undecided'" if number else "no comparison"
                    lines.append((f"comparisons by {metric.name} of {task}", f"{whom}: {what}"))
            met_before = int(found.loc[split, f"met_{place}"])
            if met_before:
                keep = (
                    "; 'known: own_task' leaves out own positives alone"
                    if dataset.tasks[name].known == "any_task"
                    else ""
                )
                lines.append(
                    (
                        f"{met_before} of {own['relevant']} relevant test pairs of {task}",
                        f"their items are known of the user, and lists leave them out{keep}",
                    )
                )
            outside = {"trained": own["relevant"] - own["trained"], "new": own["trained"], "all": 0}[rule]
            if outside:
                which = {"trained": "have no training rows", "new": "have training rows", "all": ""}[rule]
                remedy = f"'splits.candidates: {{{split}: all}}' ranks all items"
                pairs = f"{outside} of {own['relevant']} relevant test pairs of {task}"
                lines.append((pairs, f"their items {which}; {remedy}"))
    return pd.DataFrame(lines, columns=["what", "reason"])
