"""Parameters that all pipelines of models share."""

from __future__ import annotations

from pydantic import Field

from multitask_recommender.settings_base import Settings


class StudySettings(Settings):
    """What holds for every model.

    Attributes:
        seed: The seed that every random number of the study is derived from, save the splits.
        repeats: Seed numbers per stochastic model: each is fitted so many times.
        recommendations: Length of the lists of recommendations per user and task.
    """

    seed: int = Field(ge=0)
    repeats: int = Field(ge=1)
    recommendations: int = Field(default=10, ge=1)
