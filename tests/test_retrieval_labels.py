"""Positives of a retrieval task are the rows with a label above 0; 0 says no as a missing label does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conftest import FixedProjection
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.foundation.jobs import single_threaded
from multitask_recommender.models.document.user_embedding import UserEmbeddingModel, UserEmbeddingSettings
from multitask_recommender.models.training.loop import TrainingSettings
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.testing import example_study
from test_contract import quick_settings


def with_labels_of_others(rows: Interactions, value: float) -> Interactions:
    """A third of the rows are no positives of 'watch': they carry a value."""
    positive = np.arange(len(rows)) % 3 > 0
    label = np.where(positive, 1.0, value).astype(np.float32)
    return replace(
        rows, labels={**rows.labels, "watch": label}, relevant={**rows.relevant, "watch": positive.astype(bool)}
    )


def scores(name: str, rows: Interactions, side: SideInformation, **settings: Any) -> dict[str, np.ndarray]:
    variant = VARIANTS[name]
    own = quick_settings(variant)
    model = variant.make(type(own).model_validate({**own.model_dump(), **settings}), side.tasks)
    with single_threaded():
        model.fit(rows, side, seed=5)
        return model.score(Histories(rows, side.user_features).of(np.arange(12)))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("shared_bottom", {}),
        ("shared_bottom", {"retrieval_loss": "softmax"}),
        ("shared_bottom", {"retrieval_loss": "bpr"}),
        ("esmm", {}),
        ("aitm", {}),
        ("two_stage", {}),
        ("wide_shared_bottom", {}),
    ],
)
def test_a_label_of_0_is_no_positive(name: str, settings: dict[str, Any]) -> None:
    rows, side = example_study()
    # One that does not read labels, as that of the study does: see below.
    vectors = np.random.default_rng(1).normal(size=(side.items, 5)).astype(np.float32)
    side = replace(side, user_encoder=FixedProjection(vectors))
    zeros, missing = (with_labels_of_others(rows, value) for value in (0.0, np.nan))
    found, expected = (scores(name, own, side, **settings) for own in (zeros, missing))
    for task, score in expected.items():
        np.testing.assert_array_equal(found[task], score, err_msg=task)
    everywhere = scores(name, with_labels_of_others(rows, 1.0), side, **settings)
    assert not np.allclose(found["watch"], everywhere["watch"])


def test_histories_are_embedded_without_rows_that_are_no_positives() -> None:
    rows, side = example_study()
    zeros = with_labels_of_others(rows, 0.0)
    settings = UserEmbeddingSettings(dimension=3, training=TrainingSettings(epochs=2, batches=2, learning_rate=0.1))
    found, expected = UserEmbeddingModel(settings), UserEmbeddingModel(settings)
    found.fit(zeros, side, seed=1)
    kept = zeros.where(zeros.labels["watch"] > 0)
    expected.fit(kept, side, seed=1)
    one, other = (
        model.encode(Histories(own, side.user_features).of(np.arange(side.users)))
        for model, own in ((found, zeros), (expected, kept))
    )
    np.testing.assert_allclose(one, other, atol=1e-6)
