"""The shares of an explanation add up to the score, and are those of additive models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from conftest import Project
from multitask_recommender import load_recommender
from multitask_recommender.models.baselines.item_item import Ease, EaseSettings
from multitask_recommender.models.state import array, branch
from multitask_recommender.use.recommender import LoadedRecommender

RATED = [("1", 5), ("2", 2), ("10", 4), ("12", 5)]


@pytest.mark.parametrize("name", ["shared_bottom", "single_task", "two_stage", "item_knn", "user_item_bias"])
def test_contributions_add_up_to_the_score(finished_project: Project, name: str) -> None:
    recommender = load_recommender(finished_project.outputs, model=name)
    for task in recommender.tasks:
        parts = recommender.explain("5", history=RATED, context={"age": 30, "gender": "F"}, task=task)
        score = recommender.predict(["5"], history=RATED, context={"age": 30, "gender": "F"})[task][0]
        assert parts["contribution"].sum() == pytest.approx(score, abs=1e-6)
        assert sorted(parts["item_id"].dropna()) == ["1", "10", "12", "2"]
        whole = recommender.explain("5", user_id="42", task=task)["contribution"].sum()
        assert whole == pytest.approx(recommender.predict(["5"], user_id="42")[task][0], abs=1e-5)


def test_base_and_features_are_scores_without_history(shared_bottom: LoadedRecommender) -> None:
    parts = shared_bottom.explain("5", history=[], context={"gender": "F"}, task="rating")
    assert parts["part"].tolist() == ["base", "features"]
    other = shared_bottom.explain("5", history=RATED, context={"gender": "M"}, task="rating")
    assert other["contribution"][0] == pytest.approx(parts["contribution"][0])
    assert other["contribution"][1] != pytest.approx(parts["contribution"][1], abs=1e-6)


def test_contributions_of_ease_are_its_weights(shared_bottom: LoadedRecommender) -> None:
    """Less equal shares of the popularity, which is the base and counts as long as nothing is known."""
    ease = Ease(EaseSettings(penalty=20.0))
    ease.fit(shared_bottom.run.rows, shared_bottom.run.side, 0)
    recommender = LoadedRecommender(replace(shared_bottom.run, name="ease", model=ease))
    parts = recommender.explain("5", history=RATED, task="watch")
    state = branch(ease.state(), "watch")
    weights, item = array(branch(state, "weights"), "dense"), shared_bottom.item_number("5")
    popularity = array(state, "popularity")[item]
    assert parts["contribution"][0] == pytest.approx(popularity)
    assert parts["contribution"][1] == pytest.approx(0.0)
    for row in parts[2:].itertuples():
        expected = weights[shared_bottom.item_number(row.item_id), item] - popularity / len(RATED)
        assert row.contribution == pytest.approx(expected, abs=1e-7)


def test_explanations_repeat_themselves(shared_bottom: LoadedRecommender) -> None:
    first, second = (shared_bottom.explain("5", history=RATED) for _ in range(2))
    np.testing.assert_array_equal(first["contribution"], second["contribution"])
