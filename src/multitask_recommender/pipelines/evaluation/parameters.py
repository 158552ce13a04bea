"""Parameters of the pipeline ``evaluation``."""

from __future__ import annotations

from pydantic import Field

from multitask_recommender.settings_base import Settings


class EvaluationSettings(Settings):
    """What is measured.

    Attributes:
        ks: Lengths of the lists at which ranking, coverage and novelty are measured.
        headline_k: The length that the headline table, the figures and the comparisons use.
        resamples: Resamples of every permutation test and bootstrap.
        smallest_effect: The smallest effect of interest, relative to the control; declared before looking.
    """

    ks: list[int] = Field(min_length=1)
    headline_k: int = 10
    resamples: int = Field(default=1999, ge=99)
    smallest_effect: float = Field(default=0.01, gt=0)
