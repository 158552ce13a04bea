"""Parameters of the pipeline ``evaluation``."""

from __future__ import annotations

from pydantic import Field

from multitask_recommender.settings_base import Settings


class EvaluationSettings(Settings):
    """What is measured.

    Attributes:
        ks: Lengths of the lists at which ranking, coverage and novelty are measured.
        headline_k: The length that the headline table and the figures show.
    """

    ks: list[int] = Field(min_length=1)
    headline_k: int = 10
