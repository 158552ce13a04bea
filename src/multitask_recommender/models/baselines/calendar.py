"""The calendar: what labels have in common because of the weekday or the hour, or of an item within one month."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multitask_recommender.data.interactions import IntArray
from multitask_recommender.models.state import State, array, branch

Period = Literal["weekday", "hour", "item_month"]
_DAY = 86_400
_MONTH = 30 * _DAY
_FIRST_WEEKDAY = 3
"""1970 began with a Thursday, and a week begins with Monday."""


def keys_of(period: Period, item: IntArray, time: NDArray[np.float64]) -> IntArray:
    """Return (n,) what rows of one period have in common: the weekday, the hour, or the item and 30 days of time.

    Args:
        period: The period.
        item: (n,) items.
        time: (n,) seconds since 1970, in UTC.
    """
    if period == "weekday":
        return (np.floor(time / _DAY).astype(np.int64) + _FIRST_WEEKDAY) % 7
    if period == "hour":
        return np.floor(time % _DAY / 3600).astype(np.int64)
    return item * 2**20 + np.floor(time / _MONTH).astype(np.int64)


class CalendarEffects:
    """e ~ N(0, 1 / t) for every weekday, hour, or month of an item, with t drawn as well: one set of them per period.

    The time of a rating as in Koren, Collaborative Filtering with Temporal Dynamics, KDD 2009, section 3, where item
    biases change from one bin of time to the next.

    Args:
        periods: The periods.
        item: (n,) items of the rows.
        time: (n,) seconds, or None: then there are no effects.
    """

    def __init__(self, periods: Sequence[Period], item: IntArray, time: NDArray[np.float64] | None) -> None:
        self._keys: dict[Period, IntArray] = {}
        self._group: dict[Period, Tensor] = {}
        self._counts: dict[Period, Tensor] = {}
        self.effects: dict[Period, Tensor] = {}
        self._precision: dict[Period, float] = {}
        for period in periods if time is not None else ():
            assert time is not None
            self._keys[period], group = np.unique(keys_of(period, item, time), return_inverse=True)
            self._group[period] = torch.from_numpy(group)
            self._counts[period] = torch.bincount(self._group[period]).float()
            self.effects[period], self._precision[period] = torch.zeros(len(self._keys[period])), 20.0

    def of_rows(self) -> Tensor:
        """Return (n,) the sum of the effects, or a single 0 where there are none."""
        total = torch.zeros(())
        for period, effect in self.effects.items():
            total = total + effect[self._group[period]]
        return total

    def draw(self, left: Tensor, noise_precision: float, generator: torch.Generator, rng: np.random.Generator) -> None:
        """Draw the effects of every period anew, given those of the others.

        Args:
            left: (n,) labels less everything but these effects.
            noise_precision: Precision of a label.
            generator: Source of normal numbers.
            rng: Source of others.
        """
        for period, effect in self.effects.items():
            rest = left - self.of_rows() + effect[self._group[period]]
            sums = torch.zeros(len(effect)).index_add_(0, self._group[period], rest)
            precision = noise_precision * self._counts[period] + self._precision[period]
            noise = torch.randn(len(effect), generator=generator)
            drawn = (noise_precision * sums + noise * precision.sqrt()) / precision
            self.effects[period] = drawn
            rate = 0.01 + 0.5 * float(drawn.square().sum())
            self._precision[period] = float(rng.gamma(1.0 + 0.5 * len(drawn)) / rate)

    def sample(self) -> dict[str, NDArray[np.float32]]:
        """Return a copy of the effects."""
        return {period: effect.numpy().copy() for period, effect in self.effects.items()}

    def stored(self, samples: Sequence[dict[str, NDArray[np.float32]]]) -> State:
        """Return what :func:`calendar_at` reads: for every period its keys and the (S, keys) effects of S draws."""
        return {
            period: {"keys": keys, "values": np.stack([one[period] for one in samples])}
            for period, keys in self._keys.items()
        }


def calendar_at(stored: State, item: IntArray, time: NDArray[np.float64], samples: int) -> Tensor:
    """Return (n, S) the sums of the effects for items at some times; 0 where a period was not seen in training.

    Args:
        stored: Result of :meth:`CalendarEffects.stored`.
        item: (n,) items.
        time: (n,) seconds.
        samples: S.
    """
    total = torch.zeros(len(item), samples)
    for name in stored:
        own = branch(stored, name)
        keys, values = array(own, "keys"), torch.from_numpy(array(own, "values"))
        wanted = keys_of(name, item, time)  # type: ignore[arg-type]
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        seen = torch.from_numpy((keys[place] == wanted).astype(np.float32))
        total += seen[:, None] * values.T[torch.from_numpy(place)]
    return total
