"""The Markov chain counts what follows what, and asks the latest items of a history."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import everyone, make_interactions, make_side
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.models.baselines.markov import MarkovChain, MarkovSettings, count_transitions, fading
from multitask_recommender.models.recommender import popularity

USERS, ITEMS = 30, 20


@pytest.fixture(scope="module")
def rows() -> Interactions:
    return make_interactions(USERS, ITEMS, 6, seed=2)


@pytest.fixture(scope="module")
def side() -> SideInformation:
    return make_side(USERS, ITEMS)


def fitted(rows: Interactions, side: SideInformation, **settings: float) -> MarkovChain:
    model = MarkovChain(MarkovSettings.model_validate(settings))
    model.fit(rows, side, seed=0)
    return model


@pytest.mark.parametrize("skip", [0.0, 2.0])
def test_transitions_equal_their_definition(skip: float) -> None:
    user, item = np.array([0, 0, 0, 2, 2, 2, 2]), np.array([3, 1, 0, 1, 3, 2, 4])
    expected = np.zeros((5, 5))
    for first in range(7):
        for later in range(first + 1, 7):
            if user[first] == user[later]:
                expected[item[first], item[later]] += fading(np.array(later - first - 1), skip)
    assert np.allclose(count_transitions(user, item, 5, skip).toarray(), expected, atol=1e-6)


def test_scores_are_probabilities(rows: Interactions, side: SideInformation) -> None:
    """Without a history they are the popularity."""
    queries, model = everyone(rows, side), fitted(rows, side)
    nobody = queries.take(np.array([0]))
    nobody = type(nobody)(nobody.user, nobody.history.where(np.zeros(len(nobody.history), bool)), nobody.context)
    for task, score in model.score(queries).items():
        assert np.allclose(score.sum(axis=1), 1.0, atol=1e-5)
        assert score.min() >= 0.0
        assert np.allclose(model.score(nobody)[task][0], popularity(rows, task, ITEMS))


def test_a_first_order_chain_reads_the_latest_item_alone(rows: Interactions, side: SideInformation) -> None:
    counts = np.bincount(rows.user, minlength=USERS)
    latest = rows.where(np.arange(len(rows)) == (np.cumsum(counts) - 1)[rows.user])
    for memory, alone in ((0.0, True), (5.0, False)):
        model = fitted(rows, side, memory=memory)
        whole, last = (model.score(everyone(asked, side))["watch"] for asked in (rows, latest))
        assert np.allclose(whole, last, atol=1e-6) == alone
        for item, score in zip(latest.item, last, strict=True):
            own = model.similarities(int(item), "watch")
            assert own is not None
            assert np.allclose(score, own, atol=1e-6)


def test_it_sees_the_direction_of_time() -> None:
    """In a cycle of items the next one is first, in a cycle that is read backwards the one before."""
    side = make_side(USERS, ITEMS)
    rows = make_interactions(USERS, ITEMS, 6, seed=2)
    counts = np.bincount(rows.user, minlength=USERS)
    place = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows.user]
    for step in (1, -1):
        cycle = Interactions(rows.user, (rows.user + step * place) % ITEMS, rows.labels, rows.relevant)
        every = {task: np.ones(len(rows), bool) for task in rows.relevant}
        cycle = Interactions(cycle.user, cycle.item, cycle.labels, every)
        latest = cycle.item[np.cumsum(counts) - 1]
        score = fitted(cycle, side, skip=0.0, memory=0.0, smoothing=1.0).score(everyone(cycle, side))["watch"]
        assert (score.argmax(axis=1) == (latest + step) % ITEMS).all()
