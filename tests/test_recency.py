"""Recency: the latest rows of a history count more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from conftest import everyone
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.recency import Recency
from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.models.variants import VARIANTS


def test_weights_fall_with_age_and_are_one_on_average() -> None:
    owner = np.array([0, 0, 0, 2, 2])
    weights = Recency(weight=4.0, reach=2.0).weights(owner, 3)
    assert weights is not None
    by_hand = 1 + 4 * np.exp(-np.array([2, 1, 0]) / 2.0)
    np.testing.assert_allclose(weights[:3], by_hand / by_hand.mean(), rtol=1e-6)
    assert weights[3:].mean() == pytest.approx(1.0)
    assert (np.diff(weights[:3]) > 0).all()
    assert Recency().weights(owner, 3) is None


def test_the_clock_counts_where_it_is_asked_for() -> None:
    owner, day = np.zeros(3, np.int64), 86_400.0
    recency = Recency(weight=1.0, reach=1e9, duration=24.0)
    weights = recency.weights(owner, 1, np.array([0.0, 9 * day, 10 * day]))
    assert weights is not None
    by_hand = 1 + np.exp(-np.array([10.0, 1.0, 0.0]))
    np.testing.assert_allclose(weights, by_hand / by_hand.mean(), rtol=1e-6)
    with pytest.raises(SettingsError, match="no times of day"):
        recency.weights(owner, 1)


@pytest.mark.parametrize(
    "name",
    [
        "user_item_bias",
        "item_knn",
        "content_based",
        "rp3beta",
        "ease",
        "ials",
        "item_ridge",
        "matrix_factorisation",
        "svd_plus_plus",
        "two_stage",
        "joint",
        "single_task",
        "shared_bottom",
        "wide_shared_bottom",
        "mmoe",
        "softmax_retrieval",
        "bpr_retrieval",
    ],
)
def test_every_model_that_reads_histories_weighs_them(name: str, rows: Interactions, side: SideInformation) -> None:
    variant = VARIANTS[name]
    settings = variant.settings()
    if hasattr(settings, "training"):
        training = settings.training.model_copy(update={"epochs": 2, "batches": 2})
        settings = settings.model_copy(update={"training": training})
    model = variant.make(settings, side.tasks)
    model.fit(rows, side, 1)
    queries = everyone(rows, side)
    # The same rows in another order, which nothing but recency looks at.
    turned = replace(
        queries, history=queries.history.where(np.arange(len(rows)).reshape(side.users, -1)[:, ::-1].ravel())
    )
    plain, plain_turned = model.score(queries), model.score(turned)
    model.ask_with(settings.model_copy(update={"recency": Recency(weight=20.0, reach=1.0)}))
    recent, recent_turned = model.score(queries), model.score(turned)
    for task, score in plain.items():
        np.testing.assert_allclose(plain_turned[task], score, atol=2e-2)
        assert not np.allclose(recent[task], score, atol=1e-3)
        assert not np.allclose(recent_turned[task], recent[task], atol=1e-3)
