from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from multitask_recommender.evaluation import statistics
from multitask_recommender.evaluation.statistics import Comparison, compare_paired, estimate_means, holm, judge

ONES = np.ones(200)


def compare(model: np.ndarray, control: np.ndarray, count: np.ndarray = ONES, root: bool = False) -> Comparison:
    return compare_paired(model, control, count, root, 999, np.random.default_rng(1))


def test_a_difference_of_means_equals_the_t_interval_nearly() -> None:
    random = np.random.default_rng(2)
    control = random.normal(1.0, 0.3, 200)
    model = control + random.normal(0.05, 0.2, 200)
    found = compare(model, control)
    assert found.difference == pytest.approx((model - control).mean())
    assert found.relative == pytest.approx((model - control).mean() / control.mean())
    low, high = stats.t.interval(0.95, 199, loc=found.difference, scale=stats.sem(model - control))
    assert found.low == pytest.approx(low, abs=0.006)
    assert found.high == pytest.approx(high, abs=0.006)
    assert found.p_value == pytest.approx(stats.ttest_rel(model, control).pvalue, abs=0.02)


def test_rmse_is_over_rows_not_over_users() -> None:
    count = np.array([1.0, 3.0] * 100)
    model, control = np.array([4.0, 3.0] * 100), np.array([1.0, 3.0] * 100)
    found = compare(model, control, count, root=True)
    assert found.difference == pytest.approx(np.sqrt(700 / 400) - 1.0)


def test_swapping_the_models_changes_the_sign_alone() -> None:
    random = np.random.default_rng(3)
    a, b = random.normal(1, 1, 200), random.normal(1.2, 1, 200)
    one, other = compare(a, b), compare(b, a)
    assert one.difference == -other.difference
    assert one.p_value == pytest.approx(other.p_value, abs=0.03)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=0.03)


def test_equal_models_are_equivalent() -> None:
    found = compare(ONES, ONES)
    assert found.p_value == 1
    assert judge(found, 1.0, True, 0.01) == "equivalent"


def test_false_positives_stay_at_their_level() -> None:
    """Without a difference, 'helps' or 'harms' comes up in at most 5 % of the repeats, up to chance."""
    random = np.random.default_rng(4)
    wrong = 0
    for repeat in range(200):
        a, b = random.gamma(2.0, 0.1, 60), random.gamma(2.0, 0.1, 60)
        found = compare_paired(a, b, np.ones(60), False, 199, np.random.default_rng(repeat))
        wrong += judge(found, found.p_value, True, 0.01) in ("helps", "harms")
    assert wrong <= stats.binom.ppf(0.999, 200, 0.05)


def test_the_interval_over_users_equals_that_of_scipy() -> None:
    random = np.random.default_rng(8)
    difference = random.gamma(0.5, 0.4, 80) - 0.15  # Skewed, so that bias and acceleration count.
    found = compare_paired(difference, np.zeros(80), np.ones(80), False, 9999, np.random.default_rng(1))
    expected = stats.bootstrap((difference,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(2))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.004)


def test_intervals_cover_what_differs_between_seeds() -> None:
    """Trainings differ by more than users do: intervals over users alone would nearly always exclude no difference."""
    random = np.random.default_rng(9)
    covered = {"users": 0, "users and seeds": 0}
    repeats = 150
    for repeat in range(repeats):
        user = random.normal(0.5, 0.2, 100)
        model, control = (user + random.normal(0, 0.05, (5, 1)) + random.normal(0, 0.02, (5, 100)) for _ in range(2))
        for kind in covered:
            pair = (model, control) if kind == "users and seeds" else (model.mean(0), control.mean(0))
            found = compare_paired(*pair, np.ones(100), False, 199, np.random.default_rng(repeat))
            covered[kind] += found.low <= 0 <= found.high
    assert covered["users"] < 0.4 * repeats
    # Of five seeds a variance is known badly: a little below 95 %.
    assert 0.84 * repeats < covered["users and seeds"] <= repeats


def test_the_spread_of_resamples_is_that_of_means_of_users_and_seeds() -> None:
    random = np.random.default_rng(10)
    seeds = random.normal(0, 0.05, 4)
    users = random.normal(0.5, 0.1, 300)
    model = seeds[:, None] + users
    found = compare_paired(model, np.zeros(300), np.ones(300), False, 4999, np.random.default_rng(1))
    error = np.sqrt(seeds.var(ddof=1) / 4 + users.var(ddof=1) / 300)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.1)


def test_order_and_number_of_seeds_of_a_model_that_does_not_vary_change_nothing() -> None:
    random = np.random.default_rng(11)
    model, control = random.random((3, 50)), random.random(50)
    one = compare_paired(model, control, np.ones(50), False, 199, np.random.default_rng(1))
    again = compare_paired(model[::-1], control[None], np.ones(50), False, 199, np.random.default_rng(1))
    assert one.difference == pytest.approx(again.difference)
    assert one.p_value == again.p_value


def test_holm_equals_the_definition_worked_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("low", "high", "p", "higher", "verdict"),
    [
        (0.02, 0.06, 0.001, True, "helps"),
        (0.02, 0.06, 0.001, False, "harms"),
        (-0.06, -0.02, 0.001, True, "harms"),
        (0.02, 0.06, 0.2, True, "undecided"),
        (-0.002, 0.006, 0.5, True, "equivalent"),
        (0.001, 0.006, 0.001, True, "equivalent"),
        (-0.02, 0.03, 0.6, True, "undecided"),
        (-0.02, 0.02, 0.6, True, "undecided"),
    ],
)
def test_verdicts(low: float, high: float, p: float, higher: bool, verdict: str) -> None:
    middle = (low + high) / 2
    assert judge(Comparison(middle, middle, low, high, p, 1.0), p, higher, 0.01) == verdict


@pytest.mark.parametrize(("root", "model", "control"), [(False, 0.5, 0.3), (True, 4.0, 1.0)])
def test_the_interval_of_a_constant_difference_is_the_point(root: bool, model: float, control: float) -> None:
    count = np.arange(1.0, 13.0)
    found = compare_paired(model * count, control * count, count, root, 999, np.random.default_rng(1))
    assert found.low == pytest.approx(found.difference)
    assert found.high == pytest.approx(found.difference)
    assert found.p_value < 0.01
    assert judge(found, found.p_value, True, 0.01) == "helps"
    assert judge(found, found.p_value, False, 0.01) == "harms"


def test_of_one_user_nothing_is_inferred() -> None:
    found = compare(np.array([0.9]), np.array([0.2]), np.ones(1))
    assert found.difference == pytest.approx(0.7)
    assert np.isnan([found.low, found.high]).all()
    assert found.p_value == 1.0
    assert judge(found, 1.0, True, 0.01) == "undecided"
    nobody = compare(np.array([]), np.array([]), np.array([]))
    assert np.isnan([nobody.difference, nobody.relative, nobody.low, nobody.high, nobody.base]).all()
    assert nobody.p_value == 1.0
    assert judge(nobody, 1.0, True, 0.01) == "undecided"


def test_two_users_have_an_interval_and_no_verdict() -> None:
    found = compare(np.array([0.4, 0.6]), np.array([0.3, 0.2]), np.ones(2))
    assert 0.1 - 1e-9 <= found.low <= found.high <= 0.4 + 1e-9
    assert judge(found, found.p_value, True, 0.01) == "undecided"


@pytest.mark.parametrize(("value", "resamples"), [(np.nan, 99), (np.inf, 99), (0.5, 0)])
def test_what_cannot_be_compared_is_an_error(value: float, resamples: int) -> None:
    problem = "0 resamples tell nothing: at least 1 is needed" if resamples == 0 else "have to be finite numbers"
    with pytest.raises(ValueError, match=f"^(totals and counts )?{problem}$"):
        compare_paired(np.array([value, 1.0]), np.ones(2), np.ones(2), False, resamples, np.random.default_rng(1))


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_p_value_is_the_share_of_all_exchanges_that_differ_as_much(root: bool, seed: int) -> None:
    """Few users, so that all ways of swapping their totals can be counted out."""
    rng = np.random.default_rng(seed)
    model, control = rng.exponential(1.0, (2, 9)), rng.exponential(1.6, 9)
    count = rng.integers(1, 6, 9).astype(float)

    def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        means = one.sum(-1) / count.sum(), other.sum(-1) / count.sum()
        return np.sqrt(means[0]) - np.sqrt(means[1]) if root else means[0] - means[1]

    swaps = (np.arange(2**9)[:, None] >> np.arange(9)) & 1 == 1
    own = model.mean(0)
    every = difference(np.where(swaps, control, own), np.where(swaps, own, control))
    exact = (np.abs(every) >= abs(difference(own, control)) - 1e-12).mean()
    assert 0.02 < exact < 0.98
    found = compare_paired(model, control[None], count, root, 20_000, np.random.default_rng(1))
    assert found.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-3)


def test_the_smallest_p_value_is_that_of_the_number_of_permutations() -> None:
    found = statistics.permutation_p_value(2 * ONES, ONES, 199, np.random.default_rng(1))
    assert found == pytest.approx(2 / 200)
    # Swaps of users are independent of each other and as likely as none.
    drawn = statistics.permutation_p_value(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 4000, np.random.default_rng(2))
    assert drawn == pytest.approx(1.0)
    one = statistics.permutation_p_value(np.array([3.0, 1.0]), np.zeros(2), 4000, np.random.default_rng(2))
    assert one == pytest.approx(0.5, abs=0.04)


def test_equal_models_and_models_without_users() -> None:
    same = np.array([[1.0, 2.0, 3.0]])
    found = compare_paired(same, same, np.array([1, 1, 1]), False, 99, np.random.default_rng(0))
    assert found == Comparison(0.0, 0.0, 0.0, 0.0, 1.0, 2.0)
    nothing = compare_paired(0 * same, 0 * same, np.array([1, 1, 1]), False, 99, np.random.default_rng(0))
    assert (nothing.difference, nothing.p_value, nothing.base) == (0.0, 1.0, 0.0)
    assert np.isnan(nothing.relative)


def test_random_groups_of_many_users_give_the_interval_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(8)
    count = random.integers(1, 30, 60_000).astype(float)
    control = count * random.gamma(1.0, 1.0, (2, 60_000))
    # A difference of about two standard errors, so that the p-value tells much.
    model = control + 0.012 * count * random.normal(0.8, 60.0, 60_000)
    found = {}
    for largest in (20_000, 10**9):
        monkeypatch.setattr(statistics, "_LARGEST", largest)
        one = compare_paired(model, control, count, True, 1000, np.random.default_rng(1))
        (other,) = estimate_means([model], [count], True, 1000, np.random.default_rng(1))
        found[largest] = one, other
    (few, own), (all_users, own_of_all) = found.values()
    assert few.difference == all_users.difference
    assert few.high - few.low == pytest.approx(all_users.high - all_users.low, rel=0.1)
    assert own.high - own.low == pytest.approx(own_of_all.high - own_of_all.low, rel=0.1)
    assert few.p_value == pytest.approx(all_users.p_value, abs=0.03)
    groups = statistics._in_groups([count, control], np.random.default_rng(1))[0]
    monkeypatch.setattr(statistics, "_LARGEST", 20_000)
    sums, of_control = statistics._in_groups([count, control], np.random.default_rng(1))
    assert len(groups) == 60_000
    assert len(sums) == 20_000
    assert sums.sum() == count.sum()
    assert np.allclose(of_control.sum(axis=1), control.sum(axis=1))


def test_estimates_are_those_of_resamples_of_the_users() -> None:
    """Two models, of which one was measured on two of five users: some resamples have none of them."""
    random = np.random.default_rng(3)
    counts = [np.array([1.0, 2.0, 3.0, 1.0, 2.0]), np.array([1.0, 0.0, 0.0, 1.0, 0.0])]
    totals = [random.random(5) * counts[0], np.array([0.3, 0.0, 0.0, 0.8, 0.0])]
    resamples = statistics._BATCH + 7
    for root in (False, True):
        with np.errstate(all="raise"):
            found = estimate_means([total[None] for total in totals], counts, root, resamples, np.random.default_rng(4))
        rng = np.random.default_rng(4)
        drawn = np.concatenate([rng.integers(0, 5, (size, 5)) for size in (statistics._BATCH, 7)])
        for own, total, count in zip(found, totals, counts, strict=True):
            there = count > 0
            number = count[drawn].sum(1)
            means = total[drawn].sum(1)[number > 0] / number[number > 0]
            value = total.sum() / count.sum()
            without = np.array([(total.sum() - total[u]) / (count.sum() - count[u]) for u in np.flatnonzero(there)])
            g = np.sqrt if root else np.asarray
            assert own.value == pytest.approx(float(g(value)), rel=1e-12)
            expected = statistics._interval(float(g(value)), g(means), g(without))
            assert (own.low, own.high) == pytest.approx(expected, rel=1e-12)
        assert (counts[1][drawn].sum(1) == 0).any()


def test_estimates_draw_seeds_for_every_resample() -> None:
    # Users are alike and two seeds differ: each resample has one of them.
    totals = np.stack([np.full(6, 0.2), np.full(6, 0.4)])
    (found,) = estimate_means([totals], [np.ones(6)], False, 200, np.random.default_rng(1))
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((0.2, 0.4))
    drawn = [statistics._drawn_seeds(400, seeds, np.random.default_rng(2)) for seeds in (1, 2, 4)]
    assert [own.shape for own in drawn] == [(400, 1), (400, 2), (400, 4)]
    for own in drawn:
        assert own.sum(axis=1) == pytest.approx(np.ones(400))
        assert own.mean(axis=0) == pytest.approx(np.full(own.shape[1], 1 / own.shape[1]), abs=0.06)
    assert set(drawn[1].ravel()) == {0.0, 1.0}


def test_estimates_of_few_users_have_no_interval() -> None:
    counts = [np.array([2.0, 0.0]), np.zeros(2), np.array([1.0, 1.0])]
    totals = [np.array([[8.0, 0.0]]), np.zeros((1, 2)), np.array([[4.0, 4.0]])]
    for root, expected in ((False, 4.0), (True, 2.0)):
        one, nobody, two = estimate_means(totals, counts, root, 30, np.random.default_rng(1))
        assert one.value == expected
        assert np.isnan([one.low, one.high, nobody.value, nobody.low, nobody.high]).all()
        assert two == statistics.Estimate(expected, expected, expected)


def test_intervals_are_those_of_the_formula() -> None:
    """Efron 1987, equations 2.3 and 6.6, with the acceleration of the jackknife, equation 7.3 of his book of 1993."""
    random = np.random.default_rng(6)
    drawn, without = random.gamma(2.0, 1.0, 500).round(1), random.gamma(1.0, 0.3, 40)
    value = 1.5
    assert (drawn == value).sum() > 10
    z0 = stats.norm.ppf((drawn < value).mean() + (drawn == value).mean() / 2)
    centred = without.mean() - without
    a = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    z = stats.norm.ppf([0.025, 0.975])
    expected = np.quantile(drawn, stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))))
    assert statistics._interval(value, drawn, without) == pytest.approx(tuple(expected), rel=1e-12)
    # Users who are alike have no acceleration.
    plain = np.quantile(drawn, stats.norm.cdf(2 * z0 + z))
    assert statistics._interval(value, drawn, np.ones(40)) == pytest.approx(tuple(plain), rel=1e-12)
    # All on one side: the percentiles.
    for outside in (-1.0, 99.0):
        ends = statistics._interval(outside, drawn, without)
        assert ends == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), rel=1e-12)


def test_comparisons_are_those_of_resamples_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(7)
    count = np.array([1.0, 4.0, 2.0, 3.0, 0.0, 5.0])
    model, control = random.random(6) * count, random.random(6) * count
    resamples = statistics._BATCH + 3
    monkeypatch.setattr(statistics, "permutation_p_value", lambda *_: 0.125)
    for root in (False, True):
        with np.errstate(all="raise"):
            found = compare_paired(model, control, count, root, resamples, np.random.default_rng(5))
        rng = np.random.default_rng(5)
        users = np.concatenate([rng.integers(0, 6, (size, 6)) for size in (statistics._BATCH, 3)])
        g = np.sqrt if root else np.asarray
        drawn = g(model[users].sum(1) / count[users].sum(1)) - g(control[users].sum(1) / count[users].sum(1))
        rest = count.sum() - count
        without = g((model.sum() - model) / rest) - g((control.sum() - control) / rest)
        base = float(g(control.sum() / count.sum()))
        difference = float(g(model.sum() / count.sum())) - base
        ends = statistics._interval(difference, drawn, without)
        assert (found.low, found.high) == pytest.approx(ends, rel=1e-12)
        assert (found.difference, found.base, found.p_value) == pytest.approx((difference, base, 0.125))
        assert found.relative == pytest.approx(difference / base)
    one = compare_paired(model, control, count, False, 1, np.random.default_rng(5))
    assert one.low == one.high


def test_all_of_two_seeds_that_differ_is_a_difference() -> None:
    """The means are equal and the trainings are not: there is an interval, which holds 0."""
    model = np.stack([np.full(8, 0.2), np.full(8, 0.4)])
    found = compare_paired(model, np.full(8, 0.3), np.ones(8), False, 400, np.random.default_rng(1))
    assert found.difference == pytest.approx(0.0, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((-0.1, 0.1))


def test_verdicts_at_their_borders() -> None:
    def verdict(low: float, high: float, p: float = 0.001, base: float = 1.0, level: float = 0.05) -> str:
        return judge(Comparison((low + high) / 2, 0.0, low, high, p, base), p, True, 0.25, level)

    # An end that lies at the margin does not lie within it.
    assert verdict(-0.25, 0.125) == "undecided"
    assert verdict(-0.125, 0.25) == "undecided"
    assert verdict(-0.1875, 0.1875) == "equivalent"
    # The margin is a share of the control's metric.
    assert verdict(0.375, 0.4375, base=2.0) == "equivalent"
    assert verdict(0.375, 0.4375, base=0.5) == "helps"
    assert verdict(0.375, 0.4375, base=-2.0) == "equivalent"
    # An end at 0 does not exclude it.
    assert verdict(0.0, 0.5) == verdict(-0.5, 0.0) == "undecided"
    assert verdict(-0.5, 0.5) == "undecided"
    assert verdict(0.375, 0.5, p=0.05) == "undecided"
    assert verdict(0.375, 0.5, p=0.0499) == "helps"
    assert verdict(0.375, 0.5, p=0.0499, level=0.01) == "undecided"
    # No difference at all is equivalence, even where the control's metric is 0; half of it is not.
    assert verdict(0.0, 0.0, p=1.0, base=0.0) == "equivalent"
    assert verdict(0.0, 0.5, p=1.0, base=0.0) == verdict(0.5, 0.5, p=1.0, base=0.0) == "undecided"
