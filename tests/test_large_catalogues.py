"""Item-item models on catalogues beyond their limit keep to a block, and go on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.data.tasks import Task
from multitask_recommender.models.baselines import item_item, item_ridge, neighbours
from multitask_recommender.models.recommender import Recommender

USERS, ITEMS = 60, 40
PENALTY, FEATURE_WEIGHT, SEQUENCE_WEIGHT = 3.0, 2.0, 0.5


@pytest.fixture(scope="module")
def history() -> sparse.csr_matrix:
    """Histories in which the popularity of items falls with their number, but for item 7, which nobody has."""
    random = np.random.default_rng(5)
    seen = random.random((USERS, ITEMS)) < np.linspace(0.7, 0.1, ITEMS)
    seen[:, 7] = False
    return sparse.csr_matrix(seen.astype(np.float32))


@pytest.fixture(scope="module")
def features() -> sparse.csr_matrix:
    return sparse.random(ITEMS, 9, 0.4, format="csr", dtype=np.float32, random_state=2)


@pytest.fixture(scope="module")
def nearness(history: sparse.csr_matrix) -> sparse.csr_matrix:
    user, item = history.nonzero()
    return item_item.sequence_nearness(user, item, ITEMS, 2.0)


@pytest.fixture(scope="module")
def data(history: sparse.csr_matrix, features: sparse.csr_matrix) -> tuple[Interactions, SideInformation]:
    user, item = (part.astype(np.int64) for part in history.nonzero())
    rating = 1.0 + np.random.default_rng(6).integers(0, 5, len(user)).astype(np.float32)
    labels = {"watch": np.ones(len(user), np.float32), "rating": rating}
    rows = Interactions(user, item, labels, {"watch": np.ones(len(user), bool), "rating": rating >= 4})
    tasks = {"watch": Task(kind="retrieval"), "rating": Task(kind="regression", label="rating", relevant="rating >= 4")}
    return rows, SideInformation(tasks, USERS, ITEMS, sparse.csr_matrix((USERS, 0), dtype=np.float32), features)


def test_all_items_in_the_block_are_the_whole_solution(
    history: sparse.csr_matrix, features: sparse.csr_matrix, nearness: sparse.csr_matrix
) -> None:
    problem = (history, PENALTY, features, FEATURE_WEIGHT, nearness, SEQUENCE_WEIGHT)
    found = item_item.ease_weights_from_popular(*problem, solved=ITEMS, neighbours=ITEMS)
    assert np.allclose(found.toarray(), item_item.ease_weights(*problem), atol=1e-4)


@pytest.mark.parametrize("columns_at_a_time", [7, 1024])
def test_every_item_is_regressed_on_the_popular_ones(
    history: sparse.csr_matrix,
    features: sparse.csr_matrix,
    nearness: sparse.csr_matrix,
    columns_at_a_time: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(item_item, "_BLOCK", columns_at_a_time)
    problem = (history, PENALTY, features, FEATURE_WEIGHT, nearness, SEQUENCE_WEIGHT)
    found = item_item.ease_weights_from_popular(*problem, solved=12, neighbours=ITEMS).toarray()
    counts = np.asarray(history.sum(axis=0)).ravel()
    popular = np.argsort(-counts, kind="stable")[:12]
    gram = (history.T @ history + SEQUENCE_WEIGHT * nearness + FEATURE_WEIGHT * features @ features.T).toarray()
    for item in range(ITEMS):
        inputs = popular[popular != item]
        system = gram[np.ix_(inputs, inputs)] + PENALTY * np.eye(len(inputs))
        expected = np.zeros(ITEMS)
        expected[inputs] = np.linalg.solve(system, gram[inputs, item])
        assert np.allclose(found[:, item], expected, atol=1e-4), item
    # Items outside are no inputs, and have scores.
    outside = np.setdiff1d(np.arange(ITEMS), popular)
    assert not found[outside].any()
    assert found[:, outside].any()


def test_the_largest_weights_to_every_item_are_kept(history: sparse.csr_matrix) -> None:
    every = item_item.ease_weights_from_popular(history, PENALTY, solved=12, neighbours=ITEMS).toarray()
    kept = item_item.ease_weights_from_popular(history, PENALTY, solved=12, neighbours=3).toarray()
    assert ((kept != 0).sum(axis=0) <= 3).all()
    for item in range(ITEMS):
        order = np.argsort(-np.abs(every[:, item]))[:3]
        assert np.array_equal(kept[order, item], every[order, item])


@pytest.mark.parametrize(
    "model",
    [
        item_item.Ease(item_item.EaseSettings(penalty=PENALTY, sequence_weight=1.0)),
        item_item.FirstStepEase(item_item.EaseSettings(penalty=PENALTY)),
        item_ridge.ItemRidge(item_ridge.ItemRidgeSettings()),
    ],
    ids=["ease", "ease_first_step", "item_ridge"],
)
def test_models_go_on_beyond_the_limit(
    model: Recommender, data: tuple[Interactions, SideInformation], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, side = data
    queries = Histories(rows, side.user_features).of(np.arange(USERS))
    model.fit(rows, side, seed=0)
    whole = model.score(queries)
    for module in (item_item, item_ridge):
        monkeypatch.setattr(module, "LARGEST_CATALOGUE", ITEMS - 1)
    monkeypatch.setattr(item_item, "SOLVED_TOGETHER", 20)
    for module in (item_item, item_ridge):
        monkeypatch.setattr(module, "KEPT_BEYOND", 10)
    model.fit(rows, side, seed=0)
    for task, scores in model.score(queries).items():
        assert np.isfinite(scores).all()
        assert not np.array_equal(scores, whole[task])
        # A part of the weights orders the items as all of them do, by and large.
        alike = [np.corrcoef(own, other)[0, 1] for own, other in zip(scores, whole[task], strict=True)]
        assert np.mean(alike) > 0.5


def test_kept_weights_of_item_ridge_are_the_largest_of_all(
    data: tuple[Interactions, SideInformation], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = data
    shape = (USERS, ITEMS)
    profiles = sparse.csr_matrix((rows.labels["rating"] - 3, (rows.user, rows.item)), shape=shape)
    monkeypatch.setattr(item_ridge, "_BLOCK", 9)
    problem = (profiles, profiles.tocsc(), 1.0, 500)
    every = item_ridge.item_ridge_weights(*problem)
    assert isinstance(every, np.ndarray)
    kept = item_ridge.item_ridge_weights(*problem, neighbours=5)
    assert not isinstance(kept, np.ndarray)
    assert np.array_equal(kept.toarray(), item_item.keep_largest_weights(every, 5).toarray())
    assert kept.nnz <= 5 * ITEMS


@pytest.mark.parametrize("items_at_a_time", [3, 1000])
def test_blocks_change_nothing_for_random_walks(
    items_at_a_time: int, data: tuple[Interactions, SideInformation], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, side = data
    queries = Histories(rows, side.user_features).of(np.arange(USERS))
    model = item_item.RandomWalk(item_item.RandomWalkSettings(neighbours=8))
    model.fit(rows, side, seed=0)
    expected = model.score(queries)
    monkeypatch.setattr(neighbours, "_CELLS", items_at_a_time * ITEMS)
    model.fit(rows, side, seed=0)
    for task, scores in model.score(queries).items():
        assert np.array_equal(scores, expected[task])
