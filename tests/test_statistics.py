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


@pytest.mark.parametrize("root", [False, True])
def test_p_values_are_those_of_the_exact_permutation_test(root: bool) -> None:
    """Few users, so that all ways of swapping their totals can be counted out."""
    random = np.random.default_rng(5)
    model, control, count = random.gamma(2.0, 1.0, 9) + 0.4, random.gamma(2.0, 1.0, 9), random.integers(1, 5, 9)

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        one, other = a.sum(axis) / count.sum(), b.sum(axis) / count.sum()
        return np.sqrt(one) - np.sqrt(other) if root else one - other

    exact = stats.permutation_test((model, control), difference, permutation_type="samples", n_resamples=np.inf)
    found = compare_paired(model, control, count.astype(float), root, 20_000, np.random.default_rng(1))
    assert found.p_value == pytest.approx(exact.pvalue, abs=0.015)


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
    assert np.isnan([nobody.difference, nobody.low, nobody.high]).all()
    assert judge(nobody, 1.0, True, 0.01) == "undecided"


def test_two_users_have_an_interval_and_no_verdict() -> None:
    found = compare(np.array([0.4, 0.6]), np.array([0.3, 0.2]), np.ones(2))
    assert 0.1 - 1e-9 <= found.low <= found.high <= 0.4 + 1e-9
    assert judge(found, found.p_value, True, 0.01) == "undecided"


@pytest.mark.parametrize(("value", "resamples"), [(np.nan, 99), (np.inf, 99), (0.5, 0)])
def test_what_cannot_be_compared_is_an_error(value: float, resamples: int) -> None:
    with pytest.raises(ValueError, match=r"finite|resamples"):
        compare_paired(np.array([value, 1.0]), np.ones(2), np.ones(2), False, resamples, np.random.default_rng(1))


@pytest.mark.parametrize("root", [False, True])
def test_the_p_value_is_the_share_of_all_exchanges_that_differ_as_much(root: bool) -> None:
    rng = np.random.default_rng(5)
    model, control = rng.exponential(1.0, 9), rng.exponential(4.0, 9)
    count = rng.integers(1, 6, 9)

    def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        means = one.sum(-1) / count.sum(), other.sum(-1) / count.sum()
        return np.sqrt(means[0]) - np.sqrt(means[1]) if root else means[0] - means[1]

    swaps = (np.arange(2**9)[:, None] >> np.arange(9)) & 1 == 1
    every = difference(np.where(swaps, control, model), np.where(swaps, model, control))
    exact = (np.abs(every) >= abs(difference(model, control)) - 1e-12).mean()
    found = compare_paired(model[None], control[None], count, root, 40_000, np.random.default_rng(1))
    assert found.p_value == pytest.approx(exact, abs=0.01)


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
