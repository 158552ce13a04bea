"""Groups of users between which a metric differs are told from groups made by chance."""

from __future__ import annotations

from typing import Any

import ibis
import numpy as np
import pandas as pd
import pytest

from conftest import TASKS
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.group_gaps import COLUMNS, measure_group_gaps
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.evaluation.study import StudySettings

USERS = 240
SPLITS = SplitSettings(strategies=["random"], seed=1, folds=2)
SETTINGS = EvaluationSettings(ks=[5], headline_k=5, resamples=199)


def dataset(**users: Any) -> DatasetSettings:
    described = {"user_id": "u", "features": {"club": {"kind": "category", "column": "c"}}, "groups": ["club"], **users}
    tables = {"name": "small", "interactions": {"user_id": "u", "item_id": "i"}, "users": described}
    return DatasetSettings.model_validate({**tables, "tasks": TASKS})


def measure(clubs: np.ndarray, *totals: pd.DataFrame, seed: int = 7) -> pd.DataFrame:
    """Measure the gaps between clubs (USERS,); a club of "" is not known."""
    names = ["(missing)", *sorted(set(clubs) - {""})]
    column = [names.index(club or "(missing)") for club in clubs]
    features = ibis.memtable({"split": ["random"] * USERS, "user": range(USERS), "column": column})
    vocabulary = ibis.memtable(
        {
            "split": ["random"] * len(names),
            "feature": ["club"] * len(names),
            "value": names,
            "column": range(len(names)),
        }
    )
    study = StudySettings(seed=seed, repeats=2)
    return measure_group_gaps(
        dataset(),
        study,
        SPLITS,
        SETTINGS,
        CrossValidationSettings(candidates=1, workers=1),
        features,
        vocabulary,
        *totals,
    )


def totals(model: str, ndcg: np.ndarray, errors: np.ndarray) -> pd.DataFrame:
    """Totals of NDCG@5 of watch (2 seeds, whose mean is given) and of RMSE of rating, 3 rows a user."""
    parts = []
    for seed, shift in ((0, -0.1), (1, 0.1)):
        own = {"split": "random", "model": model, "seed": seed, "user": np.arange(USERS)}
        parts.append(
            pd.DataFrame({**own, "task": "watch", "metric": "ndcg", "k": 5, "total": ndcg + shift, "count": 1.0})
        )
        parts.append(
            pd.DataFrame({**own, "task": "rating", "metric": "rmse", "k": 0, "total": 3 * errors**2, "count": 3.0})
        )
    return pd.concat(parts, ignore_index=True)


def test_a_planted_gap_is_found_and_its_value_is_that_of_the_groups() -> None:
    random = np.random.default_rng(1)
    clubs = random.choice(["a", "b", "c", ""], USERS)
    ndcg = 0.4 + 0.1 * random.normal(size=USERS) + 0.15 * (clubs == "b")
    errors = np.abs(1 + 0.2 * random.normal(size=USERS) + 0.3 * (clubs == "c"))
    table = measure(clubs, totals("ease", ndcg, errors)).set_index("task")
    assert list(table.reset_index()[COLUMNS].columns) == COLUMNS
    watch, rating = table.loc["watch"], table.loc["rating"]
    means = {club: ndcg[clubs == club].mean() for club in "abc"}
    assert watch["best"] == "b"
    assert watch["worst"] == min(means, key=lambda club: means[club])
    assert watch["gap"] == pytest.approx(means["b"] - min(means.values()))
    assert watch["users"] == (clubs != "").sum()
    assert watch["ci_low"] < 0.15 < watch["ci_high"]
    # Of errors, the smallest is the best.
    rmse = {club: np.sqrt((errors[clubs == club] ** 2).mean()) for club in "abc"}
    assert rating["worst"] == "c"
    assert rating["worst_value"] == pytest.approx(rmse["c"])
    assert rating["best_value"] == pytest.approx(min(rmse.values()))
    assert 0 < rating["ci_low"] < rating["gap"] < rating["ci_high"]
    assert max(watch["p_value"], rating["p_value"]) <= 0.01


def test_groups_made_by_chance_differ_by_chance() -> None:
    random = np.random.default_rng(2)
    p_values = []
    for _ in range(40):
        clubs = random.choice(["a", "b", "c", "d"], USERS)
        table = measure(clubs, totals("ease", random.normal(size=USERS), np.abs(random.normal(size=USERS))))
        p_values += table["p_value"].tolist()
    assert np.mean(np.array(p_values) <= 0.05) < 0.13
    assert 0.35 < np.mean(p_values) < 0.65


def test_small_groups_are_left_out_and_two_are_needed() -> None:
    clubs = np.array(["a"] * 120 + ["b"] * 115 + ["c"] * 5)
    values = np.where(clubs == "c", 0.9, 0.5)
    own = totals("ease", values, values)
    assert set(measure(clubs, own)[["best", "worst"]].to_numpy().ravel()) <= {"a", "b"}
    assert measure(np.array(["a"] * (USERS - 5) + ["c"] * 5), own).empty
    assert measure(clubs).empty


def test_models_do_not_change_each_other_and_two_runs_are_equal() -> None:
    random = np.random.default_rng(3)
    clubs = random.choice(["a", "b"], USERS)
    one, other = (totals(model, random.random(USERS), random.random(USERS)) for model in ("ease", "ials"))
    both = measure(clubs, one, other)
    assert both["model"].tolist() == ["ease", "ials"] * 2
    pd.testing.assert_frame_equal(both, measure(clubs, one, other))
    alone = measure(clubs, other)
    pd.testing.assert_frame_equal(alone, both[both["model"] == "ials"].reset_index(drop=True))


def test_a_group_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="'groups' names 'age'; the features with one value a user are: club, busy"):
        dataset(groups=["age"], activity="busy")
    several = {"kind": "categories", "column": "c"}
    with pytest.raises(ValueError, match="'groups' names 'club'"):
        dataset(features={"club": several})
