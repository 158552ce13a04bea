"""Inference on paired comparisons: the user is the unit, and the seeds of a model's trainings count as well.

A metric of a model is g(sum_u a_u / sum_u n_u) with one total a_u and one count n_u per user. For a ranking metric a_u
is the user's value and n_u = 1; for RMSE a_u is the sum of squared errors, n_u the number of rows, g the square root.
Of a model that was trained with several seeds, a_u is the mean over them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Values = NDArray[np.float64]
_BATCH = 25
"""Resamples that are drawn at a time."""
_LARGEST = 20_000
"""Most units that are resampled. Of more users random groups are, whose sums vary as theirs do."""
Verdict = Literal["helps", "harms", "equivalent", "undecided"]


@dataclass(frozen=True)
class Comparison:
    """A model against its control on one metric.

    Attributes:
        difference: Metric of the model minus metric of the control.
        relative: The difference over the control's metric.
        low: Lower end of the 95 % BCa bootstrap interval of the difference, over users and seeds.
        high: Upper end.
        p_value: Two-sided paired permutation test over users.
        base: Metric of the control.
    """

    difference: float
    relative: float
    low: float
    high: float
    p_value: float
    base: float


def compare_paired(
    model: Values, control: Values, count: Values, root: bool, resamples: int, rng: np.random.Generator
) -> Comparison:
    """Compare two models on the same users.

    The permutation test swaps the totals of users. The bootstrap draws users, and for each model of S seeds S - 1 of
    them, with repetition: the variance of a mean of so many is that of the mean of S seeds, without bias (Rao and Wu,
    Resampling Inference with Complex Survey Data, JASA 1988, section 2.2). Of a single seed, how much another would
    differ is not known, and the interval is over users alone.

    Args:
        model: (users,) or (seeds, users) totals a_u of the model.
        control: (users,) or (its seeds, users) totals of the control.
        count: (users,) counts n_u, the same for both.
        root: Whether g is the square root (RMSE) instead of the identity.
        resamples: Resamples of the permutation test and of the bootstrap.
        rng: Source of both.

    Returns:
        The comparison. For equal totals the difference is 0, the interval is a point and p is 1; where every resample
        has the same difference, the interval is that point. Of fewer than two users nothing can be inferred: there is
        no interval (NaN), and p is 1.

    Raises:
        ValueError: If a total or a count is not a number, or nothing is to be resampled.
    """
    if resamples < 1:
        raise ValueError(f"{resamples} resamples tell nothing: at least 1 is needed")
    if not all(np.isfinite(values).all() for values in (model, control, count)):
        raise ValueError("totals and counts have to be finite numbers")
    of_seeds = [np.atleast_2d(model), np.atleast_2d(control)]
    model, control = (values.mean(axis=0) for values in of_seeds)
    if not len(model):
        return Comparison(math.nan, math.nan, math.nan, math.nan, 1.0, math.nan)

    def metric(total: Values) -> float:
        mean = float(total.sum() / count.sum())
        return math.sqrt(mean) if root else mean

    base = metric(control)
    difference = metric(model) - base
    relative = difference / base if base != 0 else math.nan
    if all(np.array_equal(values, np.broadcast_to(model, values.shape)) for values in of_seeds):
        return Comparison(0.0, 0.0 if base != 0 else math.nan, 0.0, 0.0, 1.0, base)
    if len(model) == 1:
        return Comparison(difference, relative, math.nan, math.nan, 1.0, base)

    p_value = permutation_p_value(model, control, resamples, rng)
    drawn = np.empty(resamples)
    *units, numbers = _in_groups([*of_seeds, count], rng)
    for begin in range(0, resamples, _BATCH):
        size = min(_BATCH, resamples - begin)
        weights = _drawn_units(size, len(numbers), rng)
        totals = [(weights @ values.T * _drawn_seeds(size, len(values), rng)).sum(axis=1) for values in units]
        number = weights @ numbers
        one, other = (np.maximum(total, 0.0) / number if root else total / number for total in totals)
        drawn[begin : begin + size] = np.sqrt(one) - np.sqrt(other) if root else one - other
    rest = count.sum() - count
    one, other = ((values.sum() - values) / np.where(rest > 0, rest, 1.0) for values in (model, control))
    without = np.sqrt(np.maximum(one, 0.0)) - np.sqrt(np.maximum(other, 0.0)) if root else one - other
    low, high = _interval(difference, drawn, without)
    return Comparison(difference, relative, low, high, p_value, base)


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % BCa bootstrap interval over users and seeds; NaN where there is none.

    Attributes:
        value: The metric.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def estimate_means(
    totals: Sequence[Values], counts: Sequence[Values], root: bool, resamples: int, rng: np.random.Generator
) -> list[Estimate]:
    """Estimate one metric of several models with intervals, which all rest on the same resamples of the users.

    The resamples are those of :func:`compare_paired`: users, and S - 1 of the S seeds of a model. Of fewer than two
    users there is no interval.

    Args:
        totals: Of every model (its seeds, users) totals a_u; users whom a model was not measured on have 0.
        counts: Of every model (users,) counts n_u.
        root: Whether g is the square root instead of the identity.
        resamples: Resamples of the bootstrap.
        rng: Source of them.

    Returns:
        One estimate a model.
    """
    drawn = [np.empty(resamples) for _ in totals]
    sums_of_units = _in_groups([*totals, *counts], rng)
    units, numbers = sums_of_units[: len(totals)], sums_of_units[len(totals) :]
    for begin in range(0, resamples, _BATCH):
        size = min(_BATCH, resamples - begin)
        weights = _drawn_units(size, len(numbers[0]), rng)
        for own, total, count in zip(drawn, units, numbers, strict=True):
            number = weights @ count
            sums = (weights @ total.T * _drawn_seeds(size, len(total), rng)).sum(axis=1)
            own[begin : begin + size] = np.divide(sums, number, out=np.full(size, np.nan), where=number > 0)
    found = []
    for own, of_seeds, count in zip(drawn, totals, counts, strict=True):
        total, there = of_seeds.mean(axis=0), count > 0
        if there.sum() < 2:
            value = float(total.sum() / count.sum()) if there.any() else math.nan
            found.append(Estimate(math.sqrt(value) if root else value, math.nan, math.nan))
            continue
        rest = count.sum() - count[there]
        without = (total.sum() - total[there]) / np.where(rest > 0, rest, 1.0)
        value, own = float(total.sum() / count.sum()), own[np.isfinite(own)]
        if root:
            value, own, without = math.sqrt(value), np.sqrt(np.maximum(own, 0)), np.sqrt(np.maximum(without, 0))
        found.append(Estimate(value, *_interval(value, own, without)))
    return found


def permutation_p_value(model: Values, control: Values, resamples: int, rng: np.random.Generator) -> float:
    """Return the two-sided p-value of the test that swaps the totals of users between the models.

    A swap leaves the counts alone, and the sum of both models' totals as well: the difference of the metrics rises with
    that of the totals, whatever g is, and a swap turns the sign of a user's. The smallest value is 2 / (resamples + 1).

    Args:
        model: (users,) or (seeds, users) totals a_u of the model.
        control: (users,) or (its seeds, users) totals of the control.
        resamples: Number of permutations.
        rng: Source of them.
    """
    means = [np.atleast_2d(values).mean(axis=0) for values in (model, control)]
    difference = np.subtract(*_in_groups(means, rng))

    def signs(size: tuple[int, ...]) -> Values:
        number = math.prod(size)
        bits = np.unpackbits(np.frombuffer(rng.bytes(number // 8 + 1), np.uint8), count=number)
        return bits.reshape(size).astype(np.float64) * 2.0 - 1.0

    # Here, because it takes half a second to import, and most commands compare nothing.
    from scipy.stats import monte_carlo_test

    test = monte_carlo_test(
        np.ones(len(difference)),
        signs,
        lambda drawn, axis=-1: drawn @ difference,
        vectorized=True,
        n_resamples=resamples,
        batch=_BATCH,
    )
    return float(test.pvalue)


def _in_groups(values: Sequence[Values], rng: np.random.Generator) -> list[Values]:
    """Sum up values (..., users) by random groups of users of the same size, the same for all, where there are many.

    The sum over resampled groups has the expectation and the variance of that over resampled users. Source: Wolter,
    Introduction to Variance Estimation, 2007, chapter 2 (the method of random groups).
    """
    users = values[0].shape[-1]
    if users <= _LARGEST:
        return list(values)
    order = rng.permutation(users)
    begins = np.arange(_LARGEST) * users // _LARGEST
    return [np.add.reduceat(own[..., order], begins, axis=-1) for own in values]


def _drawn_units(size: int, number: int, rng: np.random.Generator) -> Values:
    """Return (size, number) how often every unit is drawn in resamples of all of them."""
    own = rng.integers(0, number, (size, number)) + np.arange(size)[:, None] * number
    return np.bincount(own.ravel(), minlength=size * number).reshape(size, number).astype(np.float64)


def _drawn_seeds(size: int, seeds: int, rng: np.random.Generator) -> Values:
    """Return (size, seeds) the shares of the seeds in resamples of them."""
    if seeds == 1:
        return np.ones((size, 1))
    return rng.multinomial(seeds - 1, np.full(seeds, 1.0 / seeds), size) / (seeds - 1)


def _interval(value: float, drawn: Values, without: Values) -> tuple[float, float]:
    """Return the ends of the 95 % BCa interval; where it is not defined, those of the percentile interval.

    It is not defined where all resamples lie on one side of the value. Source: Efron, Better Bootstrap Confidence
    Intervals, JASA 1987, equations 2.3 and 6.6.

    Args:
        value: The statistic.
        drawn: (resamples,) its values in the resamples.
        without: (users,) its values without one user each.
    """
    spread = without.mean() - without
    squares = float((spread**2).sum())
    acceleration = float((spread**3).sum()) / (6.0 * squares**1.5) if squares > 0 else 0.0
    below = float((drawn < value).mean() + 0.5 * (drawn == value).mean())
    ends = np.array([0.025, 0.975])
    if 0.0 < below < 1.0:
        bias = ndtri(below)
        moved = bias + ndtri(ends)
        ends = ndtr(bias + moved / (1.0 - acceleration * moved))
    low, high = np.quantile(drawn, ends)
    return float(low), float(high)


def holm(p_values: Values) -> Values:
    """Adjust p-values so that the probability of any false rejection in the family is bounded.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Statist. 1979.

    Args:
        p_values: (tests,).

    Returns:
        (tests,) adjusted p-values: the running maximum over ascending p of (tests - rank) p, at most 1.
    """
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    result = np.empty_like(adjusted)
    result[order] = adjusted
    return result


def judge(
    comparison: Comparison, p_adjusted: float, higher_is_better: bool, smallest_effect: float, level: float = 0.05
) -> Verdict:
    """Say what a comparison means.

    ``equivalent``: the whole interval lies within the smallest effect of interest. Otherwise ``helps`` or ``harms``, by
    the direction, if the adjusted p-value is below the level and the interval excludes 0. Otherwise ``undecided``.

    Args:
        comparison: The comparison.
        p_adjusted: Its p-value after correction.
        higher_is_better: Direction of the metric.
        smallest_effect: Declared before, relative to the control's metric.
        level: Bound of the false-positive rate.
    """
    margin = abs(smallest_effect * comparison.base)
    if (comparison.low == comparison.high == 0) or (-margin < comparison.low and comparison.high < margin):
        return "equivalent"
    excludes_zero = comparison.low > 0 or comparison.high < 0
    if p_adjusted < level and excludes_zero:
        return "helps" if (comparison.difference > 0) == higher_is_better else "harms"
    return "undecided"
