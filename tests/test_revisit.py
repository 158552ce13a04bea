"""Revisits: what was viewed and not bought, by the rate at which views end in purchases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.data.tasks import Task
from multitask_recommender.models.baselines.revisit import Revisit, RevisitSettings, visits

TASKS = {
    "view": Task(kind="retrieval"),
    "cart": Task(kind="retrieval", after="view"),
    "buy": Task(kind="retrieval", after="cart", known="own_task"),
}


def pairs(rows: list[tuple[int, int, int]]) -> Interactions:
    """Rows (user, item, furthest step: 1 view, 2 cart, 3 purchase)."""
    user, item, step = (np.array(column) for column in zip(*rows, strict=True))
    relevant = {name: step > place for place, name in enumerate(TASKS)}
    labels = {name: np.where(own, 1.0, np.nan).astype(np.float32) for name, own in relevant.items()}
    return Interactions(user, item, labels, relevant)


@pytest.fixture
def train() -> Interactions:
    # Item 0 is often viewed and rarely bought, item 1 the other way round; item 2 is put into the cart, items 3, 4 popular.
    rows = [(user, 0, 3 if user < 1 else 1) for user in range(10)]
    rows += [(user, 1, 3 if user < 4 else 1) for user in range(5)]
    rows += [(user, 2, 3 if user < 3 else 2) for user in range(4)]
    rows += [(user, 3, 3) for user in range(10, 16)]
    return pairs(sorted(rows))


@pytest.fixture
def side() -> SideInformation:
    nothing = sparse.csr_matrix
    return SideInformation(TASKS, 20, 5, nothing((20, 0), dtype=np.float32), nothing((5, 0), dtype=np.float32))


def test_how_far_pairs_got(train: Interactions) -> None:
    reached, positive = visits(train, TASKS, "buy")
    own = train.item == 2
    assert reached[own].tolist() == [1.0] * 4
    assert positive[own].tolist() == [True, True, True, False]
    assert np.isnan(visits(train, TASKS, "view")[0]).all()


def test_rates_by_hand(train: Interactions, side: SideInformation) -> None:
    model = Revisit(RevisitSettings(item_smoothing=2.0, user_smoothing=1e9))
    model.fit(train, side, 0)
    # A purchase implies cart and view here: all visits that ended got as far as the cart.
    asked = pairs([(0, 0, 1), (0, 1, 1), (0, 2, 2), (0, 4, 1)])
    scores = model.score(Histories(asked, side.user_features).of(np.array([0])))["buy"][0]
    cart_mean = (1 + 4 + 3 + 6) / (1 + 4 + 4 + 6)
    assert scores[2] == pytest.approx(1 + (3 + 2 * cart_mean) / (4 + 2), rel=1e-5)
    # Nothing that was viewed alone was bought in the training.
    assert scores[[0, 1, 4]] == pytest.approx(1.0)
    assert scores[3] == pytest.approx(0.5)  # The most popular of the items that were not met.


def test_what_was_bought_is_met_no_more_and_eager_users_count(train: Interactions, side: SideInformation) -> None:
    model = Revisit(RevisitSettings(item_smoothing=2.0, user_smoothing=1.0))
    model.fit(train, side, 0)
    asked = pairs([(0, 2, 2), (0, 3, 3), (1, 2, 2), (1, 1, 2)])
    scores = model.score(Histories(asked, side.user_features).of(np.array([0, 1])))["buy"]
    assert scores[0, 3] < 1
    assert scores[0, 2] > scores[1, 2] > 1
