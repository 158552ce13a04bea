"""Approximate lists: the recall that is asked for, without known items, and exact where every cell is searched."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import faiss
import numpy as np
import pytest
from scipy import sparse

from conftest import Project
from multitask_recommender import load_recommender
from multitask_recommender.foundation.errors import RequestError
from multitask_recommender.models import ranking
from multitask_recommender.use.item_index import ItemIndex

ITEMS, USERS, K = 8000, 300, 10


@pytest.fixture(scope="module")
def sides() -> tuple[np.ndarray, np.ndarray, sparse.csr_matrix, np.ndarray]:
    """Vectors in clusters, as learnt ones are, of very different lengths; known items; and what may be recommended."""
    random = np.random.default_rng(5)
    centres = random.normal(size=(40, 16))

    def drawn(count: int) -> np.ndarray:
        return centres[random.integers(0, 40, count)] + 0.5 * random.normal(size=(count, 16))

    items = drawn(ITEMS) * random.gamma(4.0, 0.25, (ITEMS, 1))
    known = sparse.random(USERS, ITEMS, 0.01, format="csr", random_state=1)
    return drawn(USERS).astype(np.float32), items.astype(np.float32), known, random.random(ITEMS) < 0.9


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, exact, strict=True)]))


@pytest.mark.parametrize("wanted", [0.6, 0.95])
def test_an_index_finds_what_is_asked_of_it(
    sides: tuple[np.ndarray, np.ndarray, sparse.csr_matrix, np.ndarray], wanted: float
) -> None:
    users, items, known, allowed = sides
    index = ItemIndex(items, allowed)
    index.tune(users[:200], known[:200], K, wanted)
    assert 1 <= index.index.nprobe < index.cells
    exact = ranking.top_items_by_vectors(users, items, known, allowed, K, np.arange(USERS))
    found, score = index.search(users, known, K)
    assert index.recall == pytest.approx(recall(found[:200], exact[:200]))
    assert index.recall >= wanted
    assert recall(found[200:], exact[200:]) > wanted - 0.05  # Others than it was tuned on.
    assert allowed[found].all()
    assert not known[np.repeat(np.arange(USERS), K), found.ravel()].any()
    np.testing.assert_allclose(score, np.einsum("ud,ukd->uk", users, items[found]), rtol=1e-4, atol=1e-4)
    assert (np.diff(score, axis=1) <= 1e-5).all()


def test_all_cells_give_exact_lists(sides: tuple[np.ndarray, np.ndarray, sparse.csr_matrix, np.ndarray]) -> None:
    users, items, known, allowed = sides
    exact = ranking.top_items_by_vectors(users, items, known, allowed, K, np.arange(USERS))
    assert recall(ItemIndex(items, allowed).search(users, known, K)[0], exact) > 0.999


def test_short_lists_end_with_padding() -> None:
    items, nothing = np.eye(4, dtype=np.float32), sparse.csr_matrix((1, 4))
    index = ItemIndex(items, np.array([True, True, True, False]))
    found, _ = index.search(np.array([[3.0, 2.0, 1.0, 4.0]], np.float32), nothing, 5)
    assert found.tolist() == [[0, 1, 2, ranking.PADDING, ranking.PADDING]]
    found, _ = index.search(np.array([[3.0, 2.0, 1.0, 4.0]], np.float32), sparse.csr_matrix([[0, 1, 0, 0]]), 2)
    assert found.tolist() == [[0, 2]]


def test_many_users_are_answered_through_the_index(finished_project: Project) -> None:
    exact = load_recommender(finished_project.outputs, model="shared_bottom")
    approximate = load_recommender(finished_project.outputs, model="shared_bottom", index_above=0)
    users = exact.run.user_ids[:20]
    one, other = (own.recommend(user_ids=users, task="watch", n=5) for own in (exact, approximate))
    assert approximate._indexes["watch"].recall >= 0.95
    together = one.merge(other, on=["user_id", "item_id"])
    assert len(together) >= 0.9 * len(one)
    np.testing.assert_allclose(together["score_x"], together["score_y"], rtol=1e-3, atol=1e-4)
    # Other tasks, and lists of chosen candidates, are exact.
    for asked in ({"task": "like"}, {"task": "watch", "exclude": [one["item_id"][0]]}):
        answers = [own.recommend(user_ids=users, n=5, **asked) for own in (exact, approximate)]
        assert answers[0].equals(answers[1])
    assert not load_recommender(finished_project.outputs, "shared_bottom", index_above=10**6)._indexes_of(["watch"])


def test_exported_indexes_name_items_and_recall(finished_project: Project, tmp_path: Path) -> None:
    recommender = load_recommender(finished_project.outputs, model="shared_bottom")
    written = recommender.export_indexes(tmp_path)
    described = json.loads((tmp_path / "indexes.json").read_text())
    assert [one["task"] for one in described] == recommender.tasks
    assert {path.name for path in written} == {*(one["file"] for one in described), "indexes.json"}
    index = faiss.read_index(str(tmp_path / described[0]["file"]))
    assert described[0]["recall_10"] >= 0.95
    assert index.nprobe == described[0]["nprobe"]
    queries = recommender.every_user().take(np.arange(10))
    users, items = recommender.model.inner_products(queries)[described[0]["task"]]
    index.nprobe = described[0]["cells"]
    product, found = index.search(users, 1)
    np.testing.assert_allclose(product[:, 0], (users * items[found[:, 0]]).sum(1), rtol=1e-4, atol=1e-4)


def test_models_without_vectors_and_machines_without_faiss(
    finished_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="'item_knn' are not inner products"):
        load_recommender(finished_project.outputs, model="item_knn").export_indexes(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"'faiss', which is not installed(.|\n)*multitask-recommender\[ann\]"):
        ItemIndex(np.eye(3, dtype=np.float32), np.ones(3, bool))
