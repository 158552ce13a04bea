"""EASE, item kNN and iALS give the scores of independent libraries, on random small data and for newcomers."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from implicit import utils as implicit_utils
from implicit.cpu.als import AlternatingLeastSquares
from lenskit.data import Dataset, ItemList, RecQuery, from_interactions_df
from lenskit.knn import EASEScorer, ItemKNNScorer
from scipy import sparse
from threadpoolctl import threadpool_limits

from multitask_recommender.data.interactions import FloatArray, Interactions, SideInformation
from multitask_recommender.data.queries import NEW_USER, Queries
from multitask_recommender.models.baselines.item_item import Ease, EaseSettings, ImplicitALS, ImplicitALSSettings
from multitask_recommender.models.baselines.neighbours import ItemKNN, ItemKNNSettings
from multitask_recommender.models.recommender import Recommender
from multitask_recommender.testing import ITEMS, NEW_ITEMS, ModelUnderTest, example_study

HISTORIES = [[3], [7, 1, 12], [5, 20, 2, 9, 14, 26]]
TRAINED = [item for item in range(ITEMS) if item not in NEW_ITEMS]


@pytest.fixture(scope="module")
def study() -> tuple[Interactions, SideInformation]:
    rows, side = example_study(seed=3)
    return rows.with_tasks(["watch"]), side.with_tasks(["watch"])


@pytest.fixture(scope="module")
def dataset(study: tuple[Interactions, SideInformation]) -> Dataset:
    rows, _ = study
    return from_interactions_df(pd.DataFrame({"user_id": rows.user, "item_id": rows.item}))


def newcomers() -> Queries:
    return ModelUnderTest("reference", lambda tasks: Ease(EaseSettings())).ask(*HISTORIES).with_tasks(["watch"])


def scores_of(model: Recommender, study: tuple[Interactions, SideInformation]) -> FloatArray:
    model.fit(*study, seed=1)
    queries = newcomers()
    assert (queries.user == NEW_USER).all()
    return model.score(queries)["watch"]


def test_ease_equals_lenskit(study: tuple[Interactions, SideInformation], dataset: Dataset) -> None:
    ours = scores_of(Ease(EaseSettings(penalty=20.0)), study)
    reference = EASEScorer(regularization=20.0)
    reference.train(dataset)
    for own, history in zip(ours, HISTORIES, strict=True):
        items = ItemList(item_ids=TRAINED)
        found = reference(RecQuery(user_items=ItemList(item_ids=history)), items).scores()
        assert np.allclose(own[TRAINED], found, atol=1e-4)


def test_item_knn_equals_lenskit(study: tuple[Interactions, SideInformation], dataset: Dataset) -> None:
    """With all neighbours the score of an item not in the history is the sum of cosines to the history."""
    ours = scores_of(ItemKNN(ItemKNNSettings(neighbours=ITEMS, normalisation=0.5)), study)
    reference = ItemKNNScorer(feedback="implicit", max_nbrs=ITEMS, min_nbrs=1, min_sim=1e-6)
    reference.train(dataset)
    compared = 0
    for own, history in zip(ours, HISTORIES, strict=True):
        others = [item for item in TRAINED if item not in history]
        found = reference(RecQuery(user_items=ItemList(item_ids=history)), ItemList(item_ids=others)).scores()
        known = ~np.isnan(found)
        assert np.allclose(own[others][known], found[known], atol=1e-4)
        assert np.allclose(own[others][~known], 0, atol=1e-6)
        compared += int(known.sum())
    assert compared > 30


def test_ials_equals_implicit(study: tuple[Interactions, SideInformation]) -> None:
    rows, side = study
    settings = ImplicitALSSettings(dimension=6, positive_weight=4.0, penalty=0.7, iterations=5)
    ours = scores_of(ImplicitALS(settings), study)
    reference = AlternatingLeastSquares(
        factors=6, regularization=0.7, alpha=5.0, iterations=5, num_threads=1, random_state=1
    )
    pairs = (np.ones(len(rows), np.float32), (rows.user, rows.item))
    reference.fit(sparse.csr_matrix(pairs, shape=(side.users, side.items)), show_progress=False)
    asked = newcomers().relevant("watch", side.items)
    items, scores = reference.recommend(
        np.arange(len(HISTORIES)), asked, N=side.items, filter_already_liked_items=False, recalculate_user=True
    )
    for own, order, found in zip(ours, items, scores, strict=True):
        assert np.allclose(own[order], found, atol=1e-5)


def test_a_model_that_is_taken_back_says_nothing_of_threads(
    study: tuple[Interactions, SideInformation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library advises one thread wherever a model of it is made; a request is given one when it is answered."""
    rows, side = study
    model = ImplicitALS(ImplicitALSSettings(dimension=4, iterations=1))
    model.fit(rows, side, 1)
    monkeypatch.setattr(implicit_utils, "_checked_blas_config", False)
    with threadpool_limits(2), warnings.catch_warnings():
        warnings.simplefilter("error")
        ImplicitALS(ImplicitALSSettings(dimension=4)).restore(model.state(), side)
