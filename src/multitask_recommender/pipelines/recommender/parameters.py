"""Parameters that all pipelines of models share."""

from __future__ import annotations

from pydantic import Field

from multitask_recommender.settings_base import Settings
from multitask_recommender.tasks import Task
from multitask_recommender.variants import Variant


class StudySettings(Settings):
    """What holds for every model.

    Attributes:
        seed: The seed that every random number of the study is derived from, save the splits.
        repeats: Seed numbers per stochastic model: each is fitted so many times.
        quick: Leave out the models that are not marked as quick in the list of variants; their outputs are empty.
        recommendations: Length of the lists of recommendations per user and task.
    """

    seed: int = Field(ge=0)
    repeats: int = Field(ge=1)
    quick: bool = False
    recommendations: int = Field(default=10, ge=1)

    def runs(self, variant: Variant, tasks: dict[str, Task]) -> bool:
        """Return whether the study includes a model."""
        return (variant.quick or not self.quick) and variant.obstacle(tasks) is None
