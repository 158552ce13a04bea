"""Parameters that all pipelines of models share."""

from __future__ import annotations

from pydantic import Field

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.variants import Variant


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
