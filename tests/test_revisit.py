"""Revisits: what was viewed and not bought, by the rate at which views end in purchases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.data.tasks import Task
from multitask_recommender.models.architectures.aitm import RevisitingAITMSettings
from multitask_recommender.models.architectures.esmm import RevisitingESMMSettings
from multitask_recommender.models.architectures.revisiting import RevisitingSettings
from multitask_recommender.models.architectures.shared_bottom import WideSharedBottom, WideSharedBottomSettings
from multitask_recommender.models.baselines.revisit import Revisit, RevisitBonus, RevisitSettings, visits
from multitask_recommender.models.variants import VARIANTS

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


def test_the_bonus_is_that_of_visits_alone(train: Interactions, side: SideInformation) -> None:
    plain, model = (kind(RevisitSettings(item_smoothing=2.0)) for kind in (Revisit, RevisitBonus))
    for own in (plain, model):
        own.fit(train, side, 0)
    asked = Histories(pairs([(0, 0, 1), (0, 2, 2), (0, 3, 3)]), side.user_features).of(np.array([0]))
    bonus = model.score(asked)
    assert list(bonus) == ["cart", "buy"]
    share = train.relevant["buy"].sum() / (20 * 5)
    rate = plain.score(asked)["buy"][0, 2] - 1
    assert bonus["buy"][0, 2] == pytest.approx(np.log1p(rate / share), rel=1e-5)
    assert bonus["buy"][0, [1, 3, 4]].tolist() == [0, 0, 0]
    assert bonus["cart"][0, 0] > 0


def test_a_wide_model_reads_visits(train: Interactions, side: SideInformation) -> None:
    training = {"epochs": 1, "batches": 2}
    settings = WideSharedBottomSettings.model_validate(
        {"dimension": 2, "user_features": False, "item_features": False, "training": training, "revisit": {}}
    )
    model = WideSharedBottom(settings)
    model.fit(train, side, 1)
    asked = Histories(pairs([(0, 0, 1), (0, 2, 2)]), side.user_features).of(np.array([0]))
    weak = model.score(asked)["buy"][0]
    model.ask_with(settings.model_copy(update={"revisit_weight": 50.0}))
    strong = model.score(asked)["buy"][0]
    assert np.argmax(strong) == 2
    np.testing.assert_allclose(strong[[1, 3, 4]], weak[[1, 3, 4]])
    again = WideSharedBottom(settings.model_copy(update={"revisit_weight": 50.0}))
    again.restore(model.state(), side)
    np.testing.assert_allclose(again.score(asked)["buy"][0], strong, rtol=1e-6)


def test_a_control_with_equal_inputs_reads_the_steps_before_its_task(
    train: Interactions, side: SideInformation
) -> None:
    training = {"epochs": 1, "batches": 2}
    values = {"dimension": 2, "user_features": False, "item_features": False, "training": training, "revisit": {}}
    settings = WideSharedBottomSettings.model_validate({**values, "revisit_weight": 50.0})
    # With item 2 in the cart, and before.
    asked, before = (
        Histories(pairs(rows), side.user_features).of(np.array([0])) for rows in ([(0, 2, 2), (0, 3, 3)], [(0, 3, 3)])
    )
    scores = {}
    for name in ("wide_single_task", "wide_single_task_equal_inputs"):
        assert VARIANTS[name].obstacle(TASKS) is None
        assert VARIANTS[name].scored_tasks(TASKS) == list(TASKS)
        model, again = (VARIANTS[name].make(settings, TASKS) for _ in range(2))
        model.fit(train, side, 1)
        scores[name] = [model.score(queries)["buy"][0] for queries in (asked, before)]
        again.restore(model.state(), side)
        found = again.score(asked)
        assert list(found) == list(TASKS)
        np.testing.assert_allclose(found["buy"][0], scores[name][0], rtol=1e-6)
        np.testing.assert_array_equal(model.orders(asked, ["buy"])["buy"][0], scores[name][0])
    moved = {name: np.subtract(*pair) for name, pair in scores.items()}
    own = moved["wide_single_task_equal_inputs"]
    assert own[2] > 1000 * np.abs(np.delete(own, 2)).max()
    # Without the labels of the other tasks the row counts as any other of the history does.
    np.testing.assert_allclose(moved["wide_single_task"], 0.0, atol=1e-3)


@pytest.mark.parametrize(("name", "settings"), [("esmm", RevisitingESMMSettings), ("aitm", RevisitingAITMSettings)])
def test_models_of_funnels_rank_what_was_met(
    name: str, settings: type[RevisitingSettings], train: Interactions, side: SideInformation
) -> None:
    short = settings.model_validate({"dimension": 3, "training": {"epochs": 2, "batches": 2}})
    plain = VARIANTS[name].make(short, TASKS)
    knowing = VARIANTS[name].make(short.model_copy(update={"revisit": RevisitSettings(), "revisit_weight": 0.3}), TASKS)
    asked = pairs([(0, 2, 2), (0, 3, 3)])
    queries = Histories(asked, side.user_features).of(np.array([0]))
    found = []
    for model in (plain, knowing):
        model.fit(train, side, 1)
        found.append(model.score(queries))
    alone, both = found
    assert np.array_equal(both["view"], alone["view"])
    moved = both["buy"][0] - alone["buy"][0]
    # Item 2 was put into the cart and not bought, item 3 was bought, and nothing is known of the others.
    assert moved[2] > 0.1
    np.testing.assert_allclose(np.delete(moved, 2), 0.0, atol=1e-6)
    assert knowing.ranking_scores(both)["buy"][0].argmax() == 2
    again = VARIANTS[name].make(knowing.settings, TASKS)
    again.restore(knowing.state(), side)
    np.testing.assert_allclose(again.score(queries)["buy"], both["buy"], atol=1e-6)


def test_revisits_are_nothing_where_lists_leave_out_what_was_met() -> None:
    assert VARIANTS["revisit"].obstacle(TASKS) is None
    forgetful = {name: task.model_copy(update={"known": "any_task"}) for name, task in TASKS.items()}
    assert "known: own_task" in (VARIANTS["revisit"].obstacle(forgetful) or "")
    # What keeps what was met has to come after something.
    first = {**forgetful, "view": TASKS["view"].model_copy(update={"known": "own_task"})}
    assert "known: own_task" in (VARIANTS["revisit"].obstacle(first) or "")
