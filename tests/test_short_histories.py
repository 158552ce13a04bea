"""Popularity counts beside a short history as much as 'prior_rows' rows of it."""

from __future__ import annotations

import numpy as np
import pytest

from multitask_recommender.models.recommender import Recommender, ShrunkSettings
from multitask_recommender.models.towers.two_tower import log_odds_of_positives
from multitask_recommender.models.training.loop import TrainingSettings, UserRows
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.testing import ModelUnderTest

CASES = [(0.0, ([],)), (0.0, ([3], [3, 7, 11, 2])), (3.0, ([3], [3, 7, 11, 2]))]
"""Prior rows and histories."""


def model_of(name: str) -> ModelUnderTest:
    def make(tasks: object) -> Recommender:
        settings = VARIANTS[name].settings()
        if "training" in type(settings).model_fields:
            settings = settings.model_copy(update={"training": TrainingSettings(epochs=5, batches=2)})
        return VARIANTS[name].recommender(settings)

    return ModelUnderTest(name, make)


def scores(model: ModelUnderTest, prior_rows: float, *histories: list[int]) -> dict[str, np.ndarray]:
    own = model.fitted.settings
    assert isinstance(own, ShrunkSettings)
    model.fitted.ask_with(own.model_copy(update={"prior_rows": prior_rows}))
    return model.fitted.score(model.ask(*histories))


@pytest.mark.parametrize("name", ["two_stage", "joint"])
def test_the_document_system_is_shrunk_to_its_prior(name: str) -> None:
    """Rankings move to what stands in for no history, by the number of rows; labels do not."""
    model = model_of(name)
    none, own, shrunk = (scores(model, m, *histories) for m, histories in CASES)
    prior = none["watch"][0]
    assert len(np.unique(prior)) > 1
    for place, rows in enumerate((1, 4)):
        expected = (rows * own["watch"][place] + 3.0 * prior) / (rows + 3.0)
        np.testing.assert_allclose(shrunk["watch"][place], expected, atol=1e-6)
        assert np.abs(own["watch"][place] - prior).max() > 1e-3
    for task in ("like", "rating"):
        np.testing.assert_array_equal(own[task], shrunk[task])


def test_the_prior_of_the_document_system_has_the_least_loss() -> None:
    """Of all scores that are the same for every user, it minimises the loss of a retrieval task."""
    model = model_of("joint")
    weight = model.fitted.settings.positive_weight
    rows, side = model.study
    share = np.bincount(rows.item, minlength=side.items) / side.users
    prior = scores(model, 0.0, [])["watch"][0]

    def loss(score: np.ndarray) -> np.ndarray:
        return share * (1.0 + weight) * (1.0 - score) ** 2 + (1.0 - share) * score**2

    for step in (-0.01, 0.01):
        assert (loss(prior) < loss(prior + step)).all()


def test_content_is_ranked_beside_popularity() -> None:
    """The more popularity counts, the nearer a list is to it; without a history it is popularity in any case."""
    model = model_of("content_based")
    rows, side = model.study
    popular = np.bincount(rows.item, minlength=side.items).astype(float)
    alike = []
    for prior_rows in (0.0, 3.0, 1e6):
        empty, own = scores(model, prior_rows, [], [3])["watch"]
        np.testing.assert_allclose(empty / empty.max(), popular / popular.max(), rtol=1e-6)
        alike.append(np.corrcoef(own, popular)[0, 1])
    assert alike[0] < alike[1] < alike[2]
    assert alike[2] == pytest.approx(1.0)
    few, many = (scores(model, 3.0, history)["watch"][0] for history in ([3], [3, 7, 11, 2, 5, 13]))
    assert np.corrcoef(few, popular)[0, 1] > np.corrcoef(many, popular)[0, 1]


DRAWN = ["bpr_retrieval", "esmm", "escm2_ips", "mmoe_pairwise", "ple_pairwise"]


def drawn(name: str) -> ModelUnderTest:
    """A model whose retrieval tasks are trained with drawn negatives."""
    variant = VARIANTS[name]
    changed = {"training": TrainingSettings(epochs=2, batches=2)}
    if name == "bpr_retrieval":
        changed["retrieval_loss"] = "bpr"
    settings = variant.settings().model_copy(update=changed)
    return ModelUnderTest(name, lambda tasks: variant.recommender(settings))


@pytest.mark.parametrize("name", DRAWN)
def test_popular_items_stand_in_where_negatives_are_drawn(name: str) -> None:
    """Who has no history gets them in their order; a history moves the ranking from there, and labels as ever."""
    model = drawn(name)
    rows, side = model.study
    popular = np.bincount(rows.item, minlength=side.items)
    queries = model.ask([], [3], [3, 7, 11, 2])
    found = {}
    for prior_rows in (0.0, 3.0, 1e7):
        model.fitted.ask_with(model.fitted.settings.model_copy(update={"prior_rows": prior_rows}))
        found[prior_rows] = model.fitted.score(queries)
    for scores_of in found.values():
        assert (np.diff(scores_of["watch"][0][np.argsort(popular, kind="stable")]) >= 0).all()
        for task in ("like", "rating"):
            np.testing.assert_array_equal(scores_of[task], found[0.0][task])
    # A long history is moved less than a short one.
    moved = np.abs(found[3.0]["watch"] - found[0.0]["watch"]).max(1)
    assert moved[0] == 0
    assert min(moved[1], moved[2]) > 0
    np.testing.assert_allclose(found[1e7]["watch"][1:], found[0.0]["watch"][[0, 0]], atol=1e-4)


def test_the_prior_of_drawn_negatives_has_the_least_loss() -> None:
    """Of all scores that are the same for every user, up to the half a row that is added to every count."""
    rows, _ = drawn("bpr_retrieval").study
    users = UserRows(rows, int(rows.user.max()) + 1)
    (odds,) = log_odds_of_positives(users, ["watch"], int(rows.item.max()) + 1, negatives=4).double().numpy()
    counts = np.bincount(rows.item)
    expected = 4 * counts.sum() / (counts > 0).sum()

    def loss(score: np.ndarray) -> np.ndarray:
        return (counts + 0.5) * np.logaddexp(0.0, -score) + expected * np.logaddexp(0.0, score)

    for step in (-0.01, 0.01):
        assert (loss(odds) < loss(odds + step)).all()
