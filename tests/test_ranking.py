"""The lists: a full sort, a hash among equals, blocks, and what is not looked at."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import chisquare

from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.models import ranking

RANDOM = np.random.default_rng(3)


def test_lists_equal_a_full_sort() -> None:
    score = np.round(RANDOM.normal(size=(30, 40)), 1).astype(np.float32)
    known = sparse.random(30, 40, 0.2, format="csr", random_state=1)
    catalogue = RANDOM.random(40) < 0.9
    expected = np.where(catalogue & ~(known.toarray() > 0), score, -np.inf)
    order = -np.sort(-expected, axis=1)[:, :7]
    lists = ranking.top_items(score, known, catalogue, 7, np.arange(30))
    assert np.array_equal(np.take_along_axis(expected, lists, axis=1), order)
    assert all(len(set(own)) == 7 for own in lists.tolist())


def test_lists_hold_no_known_item_and_end_with_padding() -> None:
    known = sparse.csr_matrix(np.array([[1, 1, 1, 0]]))
    lists = ranking.top_items(np.ones((1, 4), np.float32), known, np.ones(4, bool), 3, np.arange(1))
    assert lists.tolist() == [[3, ranking.PADDING, ranking.PADDING]]


def test_a_score_that_is_not_a_number_is_never_recommended() -> None:
    lists = ranking.top_items(
        np.array([[np.nan, 1.0, 2.0]], np.float32), sparse.csr_matrix((1, 3)), np.ones(3, bool), 3, np.arange(1)
    )
    assert lists.tolist() == [[2, 1, ranking.PADDING]]


@pytest.mark.parametrize("kind", ["few ties", "all tied", "most tied", "most unknown"])
def test_lists_break_ties_by_a_hash_of_user_and_item(kind: str) -> None:
    random = np.random.default_rng(1)
    score = random.normal(size=(16, 200)).astype(np.float32)
    score = {
        "few ties": np.round(score, 1),
        "all tied": np.zeros_like(score),
        "most tied": np.where(score > 1.5, score, np.float32(0)),
        "most unknown": np.where(score > -1.5, np.float32(np.nan), score),
    }[kind]
    excluded = sparse.random(16, 200, 0.05, format="csr", random_state=1)
    catalogue = random.random(200) < 0.9
    users = random.permutation(10**6)[:16]
    lists = ranking.top_items(score, excluded, catalogue, 20, users)
    order = {(user, item): tie_order(int(user), item) for user in users for item in range(200)}
    for place, found in enumerate(lists):
        allowed = catalogue & (excluded[[place]].toarray()[0] == 0) & ~np.isnan(score[place])
        key = [(-score[place, item], order[users[place], item], item) for item in np.nonzero(allowed)[0]]
        best = [item for *_, item in sorted(key)[:20]]
        assert found.tolist() == best + [ranking.PADDING] * (20 - len(best))
    for part in (slice(0, 1), slice(3, 16)):  # Other users change nothing.
        some = ranking.top_items(score[part], excluded[part], catalogue, 20, users[part])
        assert np.array_equal(some, lists[part])


def tie_order(user: int, item: int) -> int:
    """The hash that orders equal scores, in whole numbers of any size."""
    full = 2**64 - 1

    def scramble(number: int) -> int:
        number = (number + 0x9E3779B97F4A7C15) & full
        number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & full
        number = ((number ^ number >> 27) * 0x94D049BB133111EB) & full
        return number ^ number >> 31

    mixed = ((scramble(~user & full) ^ scramble(item)) * 0xBF58476D1CE4E5B9) & full
    return ((mixed ^ mixed >> 32) * 0x94D049BB133111EB) & full


@pytest.mark.parametrize("items", [60, 2000])
def test_equal_scores_are_at_chance(items: int) -> None:
    """Every item is as often at every place as any other, and the lists of two users hang together in nothing."""
    count, k = 4000, 10
    nothing, everything = sparse.csr_matrix((count, items)), np.ones(items, bool)
    lists = ranking.top_items(np.zeros((count, items), np.float32), nothing, everything, k, np.arange(count))
    for place in range(k):
        assert chisquare(np.bincount(lists[:, place], minlength=items)).pvalue > 1e-3
    shared = np.array([len(np.intersect1d(own, other)) for own, other in pairwise(lists)])
    expected = k * k / items
    assert abs(shared.mean() - expected) < 4 * np.sqrt(expected / count)


@pytest.mark.parametrize("items", [1, 5, 20, 21, 22, 83, 84, 85, 97, 500, 1682])
@pytest.mark.parametrize("kind", ["different", "some equal", "known but a few", "endless"])
def test_groups_miss_nothing(items: int, kind: str) -> None:
    """However the items fall into groups, and whatever is left over, the lists are those of a full sort."""
    random = np.random.default_rng(items)
    score = random.normal(size=(9, items)).astype(np.float32)
    known = sparse.random(9, items, 0.97 if kind == "known but a few" else 0.1, format="csr", random_state=2)
    score = np.round(score, 2) if kind == "some equal" else score
    if kind == "endless":
        score[random.random(score.shape) < 0.02] = np.inf
        score[random.random(score.shape) < 0.3] = -np.inf
    before, users, catalogue = score.copy(), random.permutation(1000)[:9], random.random(items) < 0.95
    lists = ranking.top_items(score, known, catalogue, 10, users)
    assert np.array_equal(score, before)
    for place, own in enumerate(lists):
        allowed = np.flatnonzero(catalogue & (known[[place]].toarray()[0] == 0) & ~np.isneginf(score[place]))
        key = [(-score[place, item], tie_order(int(users[place]), int(item)), item) for item in allowed]
        # What is endless is no score, and takes the place of one.
        best = [item for value, _, item in sorted(key)[:10] if np.isfinite(value)]
        assert own[: len(best)].tolist() == best


def vectors(users: int, items: int) -> tuple[np.ndarray, np.ndarray, sparse.csr_matrix, np.ndarray]:
    random = np.random.default_rng(8)
    known = sparse.random(users, items, 0.1, format="csr", random_state=4)
    own, other = (random.normal(size=(count, 6)).astype(np.float32) for count in (users, items))
    return own, other, known, random.random(items) < 0.9


@pytest.mark.parametrize("memory_mb", [None, 0.01, 0.002])
def test_lists_of_vectors_are_those_of_their_products(memory_mb: float | None) -> None:
    own, other, known, catalogue = vectors(70, 400)
    users = np.arange(70)
    lists = ranking.top_items_by_vectors(own, other, known, catalogue, 12, users, memory_mb)
    score = own.astype(np.float64) @ other.T.astype(np.float64)
    exact = ranking.top_items(score, known, catalogue, 12, users)
    # Single precision may turn neighbours round.
    assert np.mean(lists == exact) > 0.999
    listed, best = (np.take_along_axis(score, one, axis=1) for one in (lists, exact))
    np.testing.assert_allclose(listed, best, atol=1e-5)


def test_blocks_hold_what_the_memory_allows() -> None:
    assert ranking.users_at_a_time(1000, 2, memory_mb=1) == 2**20 // 8000
    assert ranking.users_at_a_time(10**9) == 1
    own, other, known, catalogue = vectors(3, 400)
    with pytest.raises(SettingsError, match=r"need 0\.0 MB, and 0\.001 MB are allowed(.|\n)*at least 1 MB"):
        ranking.top_items_by_vectors(own, other, known, catalogue, 12, np.arange(3), memory_mb=0.001)


def test_equals_at_the_end_of_a_list_are_drawn_from_all_groups() -> None:
    """The second place is open between items of three groups, of which two are not searched."""
    score = np.zeros((200, 27), np.float32)
    score[:, 0], score[:, 1:4] = 2.0, 1.0
    nothing, everything = sparse.csr_matrix(score.shape), np.ones(27, bool)
    lists = ranking.top_items(score, nothing, everything, 2, np.arange(200))
    assert (lists[:, 0] == 0).all()
    assert lists[:, 1].tolist() == [min((1, 2, 3), key=lambda item: tie_order(user, item)) for user in range(200)]


def test_scores_are_changed_only_where_they_may_be() -> None:
    random = np.random.default_rng(3)
    score = random.normal(size=(6, 40)).astype(np.float32)
    excluded = sparse.random_array((6, 40), density=0.2, rng=random, format="csr", dtype=np.float32).tocsr()
    excluded = sparse.csr_matrix(excluded)
    catalogue, kept = random.random(40) < 0.8, score.copy()
    lists = ranking.top_items(score, excluded, catalogue, 5, np.arange(6))
    assert np.array_equal(score, kept)
    assert np.array_equal(ranking.top_items(score, excluded, catalogue, 5, np.arange(6), overwrite=True), lists)
    assert not np.array_equal(score, kept)
