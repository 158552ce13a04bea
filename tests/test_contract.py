"""Every model of the study keeps the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from multitask_recommender.data.interactions import FloatArray, Interactions, SideInformation
from multitask_recommender.data.queries import NEW_USER, Queries
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import Knowledge, LearningCurve, Recommender
from multitask_recommender.models.state import State, array
from multitask_recommender.models.variants import VARIANTS, Variant
from multitask_recommender.testing import CHECKS, ModelUnderTest, parametrize_with_checks

_SHORT: dict[str, Any] = {"training": {"epochs": 3, "batches": 2}, "dimension": 4, "sweeps": 6, "burn_in": 2}
_WIDE: dict[str, Any] = {"wide": {"penalty": 10.0}, "wide_labels": {"sweeps": 4, "burn_in": 1}}


def quick_settings(variant: Variant) -> Settings:
    """The settings of a model, with short training and small vectors."""
    plain = variant.settings().model_dump()
    changes = {**_SHORT, **(_WIDE if "wide" in variant.name else {})}
    for key, value in changes.items():
        if key in plain:
            plain[key] = {**plain[key], **value} if isinstance(value, dict) and plain[key] else value
    return variant.settings.model_validate(plain)


def under_test(variant: Variant) -> ModelUnderTest:
    return ModelUnderTest(
        variant.name, lambda tasks: variant.make(quick_settings(variant), variant.trained_tasks(tasks))
    )


@parametrize_with_checks([under_test(variant) for variant in VARIANTS.values()])
def test_contract(model: ModelUnderTest, check: Callable[[ModelUnderTest], None]) -> None:
    check(model)


class _Faulty(Recommender[Settings]):
    """A model that keeps a random vector for every user, and reads its neighbours in a block."""

    knowledge = Knowledge("says so", "says so", "says so")
    stochastic = True

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        random = np.random.default_rng(seed)
        self._scores = random.random((side.users + 1, side.items), np.float32)
        self._tasks = list(side.tasks)
        return LearningCurve()

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        noise = np.random.default_rng(len(queries)).random(len(queries))[:, None]
        own = self._scores[queries.user] + np.where(queries.user[:, None] == NEW_USER, noise, 0.0)
        return dict.fromkeys(self._tasks, own.astype(np.float32))

    def state(self) -> State:
        return {"scores": self._scores + 1}

    def restore(self, state: State, side: SideInformation) -> None:
        self._scores, self._tasks = array(state, "scores"), list(side.tasks)


@pytest.mark.parametrize("name", ["nothing_known", "new_items", "history_is_the_user", "history_alone", "storing"])
def test_the_checks_find_faults(name: str) -> None:
    (check,) = (check for check in CHECKS if check.__name__ == f"check_{name}")
    with pytest.raises(AssertionError):
        check(ModelUnderTest("faulty", lambda tasks: _Faulty(Settings())))
