"""Parameters of the pipeline ``evaluation``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from multitask_recommender.foundation.settings_base import Settings


class EvaluationSettings(Settings):
    """What is measured.

    Attributes:
        ks: Lengths of the lists at which ranking, coverage and novelty are measured.
        headline_k: The length that the headline table, the figures and the comparisons use.
        resamples: Resamples of every permutation test and bootstrap.
        smallest_effect: The smallest effect of interest, relative to the control; declared before looking.
    """

    ks: list[Annotated[int, Field(ge=1, le=10_000)]] = Field(min_length=1, max_length=100)
    headline_k: int = Field(default=10, ge=1, le=10_000)
    resamples: int = Field(default=1999, ge=99, le=1_000_000)
    smallest_effect: float = Field(default=0.01, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> EvaluationSettings:
        twice = [k for k in self.ks if self.ks.count(k) > 1]
        if twice:
            raise ValueError(f"ks lists {twice[0]} twice")
        if self.headline_k not in self.ks:
            raise ValueError(f"headline_k {self.headline_k} is not among ks {self.ks}")
        return self
