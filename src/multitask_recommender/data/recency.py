"""Recency: how much more the latest rows of a history count than the earlier ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from multitask_recommender.data.interactions import FloatArray, IntArray
from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.foundation.settings_base import Settings


class Recency(Settings):
    """Weights of the rows of a history by their age: w = 1 + weight exp(-age / reach - hours / duration).

    The age of a row is the number of rows of the history after it, its hours are those until the last row. A history's
    weights are divided by their mean, so that they move what counts and not how much. In the form of the weights of
    session-based linear models (Choe et al., Session-aware Linear Item-Item Models, WWW 2021, section 3.3), with a rest
    that does not fade: tastes stay.

    Attributes:
        weight: How much more the last row counts than one long ago; 0: all rows count alike.
        reach: Rows over which what is added falls by the factor e.
        duration: Hours over which it falls by the factor e; null: the clock is not looked at.
    """

    weight: float = Field(default=0.0, ge=0, le=1e9)
    reach: float = Field(default=5.0, gt=0, le=1e9)
    duration: float | None = Field(default=None, gt=0, le=1e12)

    def weights(self, owner: IntArray, owners: int, time: NDArray[np.float64] | None = None) -> FloatArray | None:
        """Weigh the rows of histories.

        Args:
            owner: (rows,) whose history a row belongs to, ascending; an owner's rows are in the order of time.
            owners: Number of histories.
            time: (rows,) seconds, where they are known.

        Returns:
            (rows,) with mean 1 in every history; None where all rows count alike.

        Raises:
            SettingsError: If ``duration`` is given and the rows have no times.
        """
        if self.weight == 0 or not len(owner):
            return None
        counts = np.bincount(owner, minlength=owners)
        ends = np.cumsum(counts)
        fading = -(ends[owner] - 1 - np.arange(len(owner))) / self.reach
        if self.duration is not None:
            if time is None:
                raise SettingsError(
                    "'recency.duration' weighs histories by the clock, and the interactions have no times of day.\n"
                    "  what to do: set it to null, or name 'dataset.interactions.timestamp' and its unit."
                )
            last = time[np.maximum(ends - 1, 0)]
            fading -= (last[owner] - time) / (3600.0 * self.duration)
        weights = 1.0 + self.weight * np.exp(fading)
        means = np.bincount(owner, weights, owners) / np.maximum(counts, 1)
        return (weights / means[owner]).astype(np.float32)
