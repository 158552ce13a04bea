"""Metrics with intervals: the right value, an interval that covers what it should, and no more than there is to know."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from conftest import Project
from multitask_recommender.evaluation.comparisons import Cell
from multitask_recommender.evaluation.groups import activity_thirds, overall
from multitask_recommender.evaluation.metric_records import METRICS
from multitask_recommender.evaluation.statistics import estimate_means
from multitask_recommender.pipelines.evaluation.nodes import summarise_choices


def generator() -> np.random.Generator:
    return np.random.default_rng(5)


def test_interval_is_that_of_an_independent_bootstrap() -> None:
    values = generator().gamma(2.0, size=80)
    (found,) = estimate_means([values[None]], [np.ones(80)], False, 9999, generator())
    other = stats.bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=generator())
    assert found.value == pytest.approx(values.mean())
    width = other.confidence_interval.high - other.confidence_interval.low
    assert found.low == pytest.approx(other.confidence_interval.low, abs=0.04 * width)
    assert found.high == pytest.approx(other.confidence_interval.high, abs=0.04 * width)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = generator()
    found = [
        estimate_means([random.normal(1.0, 1.0, (1, 40))], [np.ones(40)], False, 199, random)[0] for _ in range(300)
    ]
    covered = np.mean([one.low <= 1.0 <= one.high for one in found])
    assert 0.90 < covered < 0.985


def test_trainings_that_differ_widen_the_interval() -> None:
    users = generator().normal(0.5, 0.05, 100)
    alike = np.stack([users] * 3)
    differing = alike + np.array([[-0.2], [0.0], [0.2]])
    same, wide = (estimate_means([total], [np.ones(100)], False, 999, generator())[0] for total in (alike, differing))
    assert wide.value == pytest.approx(same.value)
    assert wide.high - wide.low > 5 * (same.high - same.low)


def test_root_and_users_whom_a_model_was_not_measured_on() -> None:
    squares = generator().gamma(2.0, size=60)
    some = np.where(np.arange(60) < 30, squares, 0.0)
    whole, part = estimate_means(
        [squares[None], some[None]], [np.ones(60), (np.arange(60) < 30).astype(float)], True, 999, generator()
    )
    assert whole.value == pytest.approx(np.sqrt(squares.mean()))
    assert part.value == pytest.approx(np.sqrt(squares[:30].mean()))
    assert part.high - part.low > whole.high - whole.low
    (one,) = estimate_means([np.array([[4.0, 0.0]])], [np.array([1.0, 0.0])], True, 99, generator())
    assert one.value == 2.0
    assert np.isnan([one.low, one.high]).all()


def test_estimates_of_a_run_are_its_metrics(finished_project: Project) -> None:
    folder = finished_project.outputs / "08_reporting"
    estimates, metrics = pd.read_csv(folder / "estimates.csv"), overall(pd.read_csv(folder / "metrics.csv"))
    keys = ["split", "model", "task", "metric", "k"]
    both = estimates.merge(metrics.groupby(keys)["value"].mean().reset_index(), on=keys, suffixes=("", "_of_run"))
    assert len(both) == len(estimates) > 100
    # AUC is the mean of the users' own here.
    own = both[both["metric"] != "auc"]
    np.testing.assert_allclose(own["value"], own["value_of_run"], rtol=1e-6)
    known = estimates.dropna(subset=["ci_low"])
    assert (known["ci_low"] <= known["value"] + 1e-12).mean() > 0.99
    assert (known["value"] <= known["ci_high"] + 1e-12).mean() > 0.99
    assert set(estimates["metric"]) == {n for n, m in METRICS.items() if m.each is not None or m.by_user is not None}


def test_cells_are_read_alike_in_any_order() -> None:
    rows = pd.DataFrame(
        [(seed, user, 10.0 * seed + user, 1 + user) for seed in (0, 1) for user in (2, 5, 9)],
        columns=["seed", "user", "total", "count"],
    )
    fast, slow = Cell.of(rows), Cell.of(rows.sample(frac=1, random_state=2))
    for one, other in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(one, other)
    # A user who is missing with a seed is left out.
    assert Cell.of(rows.iloc[1:]).users.tolist() == [5, 9]


def test_groups_of_a_run_hold_all_users(finished_project: Project) -> None:
    folder = finished_project.outputs / "08_reporting"
    groups, estimates = pd.read_csv(folder / "group_comparisons.csv"), pd.read_csv(folder / "estimates.csv")
    comparisons = pd.read_csv(folder / "comparisons.csv")
    keys = ["split", "model", "task", "metric"]
    users = groups.groupby(keys)["users"].sum()
    assert len(users)
    for key, number in users.items():
        own = estimates.set_index(keys).loc[key]
        assert number == own["users"]
    # The gain of all lies between those of the groups.
    gains = groups.groupby([*keys, "control"])["gain"].agg(["min", "max"])
    whole = comparisons.set_index([*keys, "control"])["relative"]
    for key, row in gains.iterrows():
        gain = METRICS[key[3]].sign * whole[key]
        assert row["min"] - 0.02 <= gain <= row["max"] + 0.02


def test_thirds_of_users() -> None:
    training = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 6])
    assert activity_thirds(training, np.arange(8)).tolist() == ["low"] * 2 + ["middle"] * 2 + ["high"] * 2 + ["low"] * 2


def test_choices_are_the_candidates_with_the_least_error_over_all_folds() -> None:
    rows = [
        ("ease", "random", 0, "a", 0, "watch", 0.5),
        ("ease", "random", 0, "a", 1, "watch", 0.7),
        ("ease", "random", 1, "b", 0, "watch", 0.6),
        ("ease", "random", 1, "b", 1, "watch", 0.5),
        ("ease", "random", 2, "c", 0, "watch", 0.1),  # Did not go on.
        ("shared_bottom", "random", 0, "a", 0, "watch", 0.5),
        ("shared_bottom", "random", 0, "a", 0, "like", 0.9),
        ("shared_bottom", "random", 1, "b", 0, "watch", 0.6),
        ("shared_bottom", "random", 1, "b", 0, "like", 0.6),
    ]
    table = pd.DataFrame(rows, columns=["model", "split", "candidate", "parameters", "fold", "task", "error"])
    found = summarise_choices(table).set_index("model")
    assert found.loc["ease", ["task", "parameters", "folds", "candidates"]].tolist() == ["watch", "b", 2, 3]
    assert found.loc["ease", "error"] == pytest.approx(0.55)
    assert found.loc["shared_bottom", ["task", "parameters", "candidates"]].tolist() == ["all tasks", "b", 2]
