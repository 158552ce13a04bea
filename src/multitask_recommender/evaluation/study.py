"""What the study holds: parameters that all pipelines of models share, and what a data set does not allow."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir
import pandas as pd
from pydantic import Field

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.splits import NEED_TIME
from multitask_recommender.evaluation.metric_records import ALL, METRICS
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.variants import VARIANTS, Variant


class StudySettings(Settings):
    """What holds for every model.

    Attributes:
        seed: The seed that every random number of the study is derived from, save the splits.
        repeats: Seed numbers per stochastic model: each is fitted so many times.
        core_only: Leave out the models that are not marked as core in the list of variants; their outputs are empty.
        quick: Leave out the models that are not marked as quick in the list of variants; their outputs are empty.
        affinity_folds: Folds that the affinity of the tasks is measured on, at most as many as there are; every fold
            costs a fit per task, per pair of tasks and of all together.
        recommendations: Length of the lists of recommendations per user and task.
        recommend_with: Name of the model that answers new events; null: ``wide_shared_bottom`` or, where it was not
            run, the first multi-task model.
        train_again_share: Share of new events of users, or on items, that the training did not know, above which the
            report advises to train again.
    """

    seed: int = Field(ge=0)
    repeats: int = Field(ge=1)
    core_only: bool = False
    quick: bool = False
    affinity_folds: int = Field(default=3, ge=1)
    recommendations: int = Field(default=10, ge=1)
    recommend_with: str | None = None
    train_again_share: float = Field(default=0.2, ge=0, le=1)

    def runs(self, variant: Variant, dataset: DatasetSettings) -> bool:
        """Return whether the study includes a model."""
        wanted = (variant.quick or not self.quick) and (variant.core or not self.core_only)
        return wanted and impossible(variant, dataset) is None


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
        lines += [(f"split {name}", "the interactions have no timestamps") for name in NEED_TIME]
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


def left_out_of_tests(
    behaviour_sequences: ir.Table, test_labels: ir.Table, dataset: DatasetSettings, splits: SplitSettings
) -> pd.DataFrame:
    """Say which tasks have nothing in the test rows of a split, and how much of it cannot be recommended.

    Args:
        behaviour_sequences: Training rows of all splits.
        test_labels: Test rows of all splits.
        dataset: The tasks.
        splits: Which items may be recommended on every split.

    Returns:
        Table (what, reason).
    """
    trained = behaviour_sequences.select("split", "item").distinct().mutate(trained=ibis.literal(True))
    joined = test_labels.left_join(trained, ["split", "item"])
    counts = {"rows": joined.count()}
    known = joined.trained.fill_null(False)
    for place, name in enumerate(dataset.tasks):
        relevant = joined[f"relevant_{name}"]
        counts[f"labels_{place}"] = joined[name].count()
        counts[f"relevant_{place}"] = relevant.sum()
        counts[f"trained_{place}"] = (relevant & known).sum()
    found = joined.group_by("split").aggregate(**counts).execute().set_index("split")
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
            outside = {"trained": own["relevant"] - own["trained"], "new": own["trained"], "all": 0}[rule]
            if outside:
                which = {"trained": "have no training rows", "new": "have training rows", "all": ""}[rule]
                remedy = f"'splits.candidates: {{{split}: all}}' ranks all items"
                pairs = f"{outside} of {own['relevant']} relevant test pairs of {task}"
                lines.append((pairs, f"their items {which}; {remedy}"))
    return pd.DataFrame(lines, columns=["what", "reason"])
