"""Every metric against an independent library and against examples worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as torch_classification
from lenskit.data import ItemList
from lenskit.metrics import NDCG, Hit, Precision, Recall
from lenskit.metrics.ranking import LogRankWeight
from lenskit.stats import gini as lenskit_gini
from scipy import sparse
from scipy.stats import entropy

from multitask_recommender.evaluation import metrics
from multitask_recommender.foundation.membership import among
from multitask_recommender.models import ranking

RANDOM = np.random.default_rng(3)
LABEL = RANDOM.integers(0, 2, 500)
PROBABILITY = np.clip(0.6 * RANDOM.random(500) + 0.3 * LABEL, 0.01, 0.99)


@pytest.fixture(scope="module")
def ranked() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists of 20 users, and relevant pairs (user, item): from 1 to 15 a user."""
    random = np.random.default_rng(5)
    lists = np.stack([random.permutation(60)[:10] for _ in range(20)])
    pairs = [(user, item) for user in range(20) for item in random.permutation(60)[: random.integers(1, 16)]]
    user, item = np.array(pairs).T
    return lists, user, item


def test_errors_equal_scikit_learn() -> None:
    label, prediction = RANDOM.normal(size=50), RANDOM.normal(size=50)
    assert metrics.rmse(label, prediction) == pytest.approx(
        sklearn.metrics.root_mean_squared_error(label, prediction), abs=1e-12
    )
    assert metrics.mae(label, prediction) == pytest.approx(
        sklearn.metrics.mean_absolute_error(label, prediction), abs=1e-12
    )


def test_classification_equals_scikit_learn() -> None:
    tied = np.round(PROBABILITY, 1)
    assert metrics.auc(LABEL, tied) == pytest.approx(sklearn.metrics.roc_auc_score(LABEL, tied), abs=1e-12)
    assert metrics.log_loss(LABEL, PROBABILITY) == pytest.approx(
        sklearn.metrics.log_loss(LABEL, PROBABILITY), abs=1e-12
    )
    right = metrics.right_answers(LABEL, PROBABILITY)
    assert right.mean() == sklearn.metrics.accuracy_score(LABEL, PROBABILITY >= 0.5)


def test_calibration_error_equals_torchmetrics() -> None:
    # Their binary version bins the probability of the positive class, as ours does.
    expected = torch_classification.binary_calibration_error(
        torch.tensor(PROBABILITY), torch.tensor(LABEL), n_bins=15, norm="l1"
    )
    assert metrics.expected_calibration_error(LABEL, PROBABILITY) == pytest.approx(float(expected), abs=1e-6)


def test_auc_by_user_is_the_auc_of_every_users_rows() -> None:
    random = np.random.default_rng(1)
    user, label = random.integers(0, 40, 300), random.integers(0, 2, 300)
    score = random.integers(0, 6, 300) / 5  # With ties.
    users, areas = metrics.auc_by_user(label, score, user)
    expected = {u: metrics.auc(label[user == u], score[user == u]) for u in np.unique(user)}
    expected = {u: area for u, area in expected.items() if not np.isnan(area)}
    assert users.tolist() == list(expected)
    assert areas == pytest.approx(list(expected.values()), abs=1e-12)
    one_class = metrics.auc_by_user([1, 1, 0], [0.1, 0.2, 0.3], np.array([4, 4, 5]))
    assert [len(part) for part in one_class] == [0, 0]


def test_auc_of_one_class_is_not_a_number() -> None:
    assert np.isnan(metrics.auc([1, 1], [0.2, 0.3]))


def test_ranking_equals_lenskit(ranked: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    lists, user, item = ranked
    hits = metrics.find_hits(lists, np.arange(20), user, item, 60)
    positives = np.bincount(user, minlength=20)
    ours = {
        "precision": metrics.precision(hits),
        "recall": metrics.recall(hits, positives),
        "ndcg": metrics.ndcg(hits, positives),
        "hit_rate": metrics.hit_rate(hits),
    }
    theirs = {
        "precision": Precision(10),
        "recall": Recall(10),
        "ndcg": NDCG(10, weight=LogRankWeight(offset=1)),
        "hit_rate": Hit(10),
    }
    for name, metric in theirs.items():
        for place in range(20):
            recommended = ItemList(item_ids=lists[place], ordered=True)
            relevant = ItemList(item_ids=item[user == place])
            value = metric.measure_list(recommended, relevant)
            if name == "recall":
                # LensKit divides by min(k, positives); the definition here divides by all positives.
                value *= min(10, positives[place]) / positives[place]
            assert ours[name][place] == pytest.approx(value, abs=1e-12), name


def test_gini_equals_lenskit(ranked: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    lists, _, _ = ranked
    catalogue = np.ones(60, dtype=bool)
    counts = np.bincount(lists.ravel(), minlength=60)
    assert metrics.gini(lists, catalogue) == pytest.approx(lenskit_gini(counts), abs=1e-9)


def test_worked_example() -> None:
    # User 0 finds items 2 and 5 of three relevant ones at ranks 1 and 3; user 1 finds nothing.
    lists = np.array([[2, 0, 5], [1, 0, 3]])
    user, item = np.array([0, 0, 0, 1]), np.array([2, 5, 4, 2])
    hits = metrics.find_hits(lists, np.array([0, 1]), user, item, 6)
    positives = np.array([3, 1])
    assert metrics.precision(hits).tolist() == [2 / 3, 0]
    assert metrics.recall(hits, positives).tolist() == [2 / 3, 0]
    assert metrics.hit_rate(hits).tolist() == [1, 0]
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    assert metrics.ndcg(hits, positives).tolist() == pytest.approx([(1 + 1 / 2) / ideal, 0])
    assert metrics.catalogue_coverage(lists, np.ones(6, bool)) == 5 / 6
    # Item 0 was had by 4 of 8 users (1 bit), item 2 by 1 (3 bits), item 5 by none (taken as 1: 3 bits).
    novelty = metrics.self_information(lists, np.array([4, 8, 1, 2, 3, 0]), 8)
    assert novelty.tolist() == pytest.approx([(3 + 1 + 3) / 3, (0 + 1 + 2) / 3])


def with_padding(ranked: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """The lists, one without entries, one with a single one and one with two."""
    lists = ranked[0].copy()
    for place, length in enumerate([0, 1, 2]):
        lists[place, length:] = ranking.PADDING
    return lists


def test_diversity_equals_the_pairwise_distances_of_scikit_learn(
    ranked: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    lists = with_padding(ranked)
    features = sparse.random(60, 8, 0.3, format="csr", random_state=2)
    dense = features.toarray()
    length = np.linalg.norm(dense, axis=1)
    assert (length == 0).any()  # Items without features.
    unit = sparse.csr_matrix(dense / np.where(length > 0, length, 1)[:, None])
    ours = metrics.intra_list_diversity(lists, unit)
    for own, value in zip(lists, ours, strict=True):
        items = own[own != ranking.PADDING]
        if len(items) < 2:
            assert np.isnan(value)
            continue
        distance = sklearn.metrics.pairwise.cosine_distances(dense[items])
        assert value == pytest.approx(distance[np.triu_indices(len(items), 1)].mean(), abs=1e-12)


def test_miscalibration_equals_the_divergence_of_scipy(ranked: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    lists, random = with_padding(ranked), np.random.default_rng(6)
    categories = np.where(random.random((60, 5)) < 0.4, random.random((60, 5)), 0)
    categories[:9] = 0
    total = categories.sum(axis=1, keepdims=True)
    categories = categories / np.where(total > 0, total, 1)
    tastes = random.dirichlet(np.full(5, 0.3), 20)
    tastes[7] = 0
    ours = metrics.miscalibration(lists, sparse.csr_matrix(categories), tastes)
    for own, taste, value in zip(lists, tastes, ours, strict=True):
        items = [item for item in own if item != ranking.PADDING and categories[item].any()]
        if not items or not taste.any():
            assert np.isnan(value)
            continue
        shown = categories[items].mean(axis=0)
        assert value == pytest.approx(entropy(taste, 0.99 * shown + 0.01 * taste), abs=1e-9)
    same = metrics.miscalibration(np.arange(60)[9:, None], sparse.csr_matrix(categories), categories[9:])
    assert np.nanmax(np.abs(same)) < 1e-12


def test_popularity_of_lists_worked_by_hand() -> None:
    # Of 100 training pairs of 50 users, items 0 and 1 have 80: they are the short head, and item 2 as popular as 1.
    users = np.array([50, 30, 30, 10, 5, 5])
    assert metrics.short_head(users).tolist() == [True, True, True, False, False, False]
    assert metrics.short_head(np.array([0, 0, 0])).tolist() == [False, False, False]
    # Sizes 7, 4, 3, 1: two thirds are 10, which the first two do not reach at 90 %.
    uneven = np.array([1, 7, 3, 4])
    assert metrics.short_head(uneven, 0.7).tolist() == [False, True, False, True]
    assert metrics.short_head(uneven, 0.9).tolist() == [False, True, True, True]
    assert metrics.short_head(uneven, 1.0).tolist() == [True, True, True, True]
    # A share that rounding puts above the sum takes them all, and an item that nobody had is no head.
    assert metrics.short_head(uneven, 1.0 + 1e-9).tolist() == [True, True, True, True]
    assert metrics.short_head(np.array([3, 0]), 1.0 + 1e-9).tolist() == [True, False]
    assert metrics.short_head(np.array([1, 0]), 0.5).tolist() == [True, False]
    lists = np.array([[0, 3, 4], [1, 2, ranking.PADDING], [ranking.PADDING] * 3])
    assert metrics.average_popularity(lists, users, 50)[:2].tolist() == pytest.approx([65 / 150, 0.6])
    assert metrics.long_tail_share(lists, users)[:2].tolist() == pytest.approx([2 / 3, 0])
    assert np.isnan(metrics.average_popularity(lists, users, 50)[2])
    assert np.isnan(metrics.long_tail_share(lists, users)[2])


def test_serendipity_worked_by_hand() -> None:
    # By popularity the items stand at ranks 1, 2.5, 2.5, 4, 5; item 5 is no candidate.
    users, catalogue = np.array([9, 4, 4, 2, 1, 99]), np.array([True] * 5 + [False])
    lists = np.array([[3, 0, 4], [1, 2, ranking.PADDING]])
    hits = np.array([[True, True, True], [False, True, False]])
    # Item 3 three ranks earlier, item 0 one rank later, item 4 two ranks earlier; item 2 half a rank earlier.
    wanted = [(3 + 0 + 2) / 5 / 3, 0.5 / 5 / 3]
    assert metrics.serendipity(lists, hits, users, catalogue).tolist() == pytest.approx(wanted)
    alone = np.array([True] + [False] * 5)
    assert metrics.serendipity(np.array([[0]]), np.array([[True]]), users, alone).tolist() == [0.0]
    first = np.array([True, True] + [False] * 4)
    late = metrics.serendipity(np.array([[1]]), np.array([[True]]), users, first)
    assert late.tolist() == pytest.approx([1 / 2 / 1])
    # What is popular surprises nobody.
    assert metrics.serendipity(np.array([[0, 1]]), np.array([[True, True]]), users, catalogue)[0] == pytest.approx(
        0.5 / 5 / 2
    )


def test_gini_bounds() -> None:
    catalogue = np.ones(4, dtype=bool)
    assert metrics.gini(np.array([[0, 1], [2, 3]]), catalogue) == pytest.approx(0)
    assert metrics.gini(np.array([[0], [0]]), catalogue) == pytest.approx(0.75)


def test_a_catalogue_of_which_nothing_can_be_shown_has_no_coverage() -> None:
    lists, none = np.full((2, 3), ranking.PADDING), np.zeros(4, dtype=bool)
    with np.errstate(all="raise"):
        assert np.isnan(metrics.catalogue_coverage(lists, none))
        assert np.isnan(metrics.gini(lists, none))
        assert np.isnan(metrics.gini(lists, ~none))
    assert metrics.catalogue_coverage(lists, ~none) == 0


def test_errors_and_losses_worked_by_hand() -> None:
    assert metrics.squared_errors([3, 5], [1.5, 5]).tolist() == [2.25, 0.0]
    assert metrics.absolute_errors([3, 5], [4.5, 5]).tolist() == [1.5, 0.0]
    # What does not fit into float32 is not lost.
    assert metrics.absolute_errors(np.array([2**24 + 1]), np.array([2**24])).tolist() == [1.0]
    certain = metrics.log_losses([1, 0, 1, 0], [1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(certain, [1e-7, 1e-7, -np.log(1e-7), -np.log(1e-7)], rtol=1e-6)
    assert metrics.right_answers([1, 1, 0, 0], [0.5, 0.49, 0.5, 0.0]).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert metrics.squared_errors(np.array([2**24 + 1]), np.array([2**24])).tolist() == [1.0]
    small = np.array([16777217.0]), np.array([16777216.0], np.float32)
    assert metrics.squared_errors(*small).tolist() == metrics.squared_errors(*small[::-1]).tolist() == [1.0]
    narrow = np.array([0.1], np.float32), np.array([0.3], np.float32)
    exact = abs(float(narrow[0][0]) - float(narrow[1][0]))
    assert metrics.absolute_errors(*narrow).tolist() == [exact]
    assert metrics.squared_errors(*narrow).tolist() == [exact**2]
    assert metrics.log_losses(narrow[0] * 0, narrow[1]).tolist() == [-np.log(1 - float(narrow[1][0]))]
    assert metrics.hit_rate(np.array([[True, True], [False, False]])).tolist() == [1.0, 0.0]


def test_areas_worked_by_hand() -> None:
    assert metrics.auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert metrics.auc([0, 1, 1], [0.5, 0.5, 0.5]) == 0.5
    assert metrics.auc([0, 1], [1.0, 0.0]) == 0.0
    assert np.isnan(metrics.auc([0, 0], [0.1, 0.2]))
    assert np.isnan(metrics.auc([1, 1], [0.1, 0.2]))
    users, areas = metrics.auc_by_user(
        [0, 1, 1, 0, 0, 1, 1], [0.2, 0.1, 0.9, 0.3, 0.3, 0.3, 0.5], np.array([7, 7, 3, 3, 5, 5, 9])
    )
    assert users.tolist() == [3, 5, 7]
    assert areas.tolist() == [1.0, 0.5, 0.0]


def test_calibration_worked_by_hand() -> None:
    # Of two bins: 0.5 belongs to the first, both ends to the bins at the ends.
    found = metrics.expected_calibration_error([0, 1, 1, 0], [0.0, 0.5, 1.0, 0.7], bins=2)
    assert found == pytest.approx((abs(1 - 0.5) + abs(1 - 1.7)) / 4)
    assert metrics.expected_calibration_error([1, 1], [1.0, 1.0]) == 0.0
    # A probability that rounding puts above 1 or below 0 belongs to the bin at that end.
    outer = metrics.expected_calibration_error([1, 0, 0, 1], [1.0 + 1e-9, 0.9, -1e-9, 0.1], bins=2)
    assert outer == pytest.approx((abs(1 - 1.9) + abs(1 - 0.1)) / 4)
    narrow = np.array([0.1], np.float32)
    assert metrics.expected_calibration_error(narrow * 0, narrow) == float(narrow[0])
    # Of fifteen bins by default, 0.06 and 0.07 are in two.
    assert metrics.expected_calibration_error([1, 0], [0.06, 0.07]) == pytest.approx((0.94 + 0.07) / 2)


def test_numbers_are_found_among_others() -> None:
    random = np.random.default_rng(2)
    for wanted in (random.integers(0, 10**12, 50), np.array([7]), np.zeros(0, np.int64)):
        keys = np.concatenate([wanted[::3], wanted[:2] + 1, [-1, 10**13]]).reshape(-1, 1)
        assert np.array_equal(among(keys, wanted), np.isin(keys, wanted))


def test_lists_of_one_entry_and_of_none() -> None:
    lists = np.array([[0, 1], [2, ranking.PADDING], [ranking.PADDING] * 2])
    features = sparse.csr_matrix(np.array([[1, 0], [0, 1], [0, 1]], np.float32))
    tastes = np.array([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]], np.float32)
    users = np.array([1, 2, 4])
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(metrics.self_information(lists, users, 4), [1.5, 0.0, np.nan])
        np.testing.assert_array_equal(metrics.intra_list_diversity(lists, features), [1.0, np.nan, np.nan])
        found = metrics.miscalibration(lists, features, tastes)
        np.testing.assert_allclose(found, [0.0, 0.0, np.nan], atol=1e-7)
        # Nothing of the user's taste is in the list: the smoothing alone keeps the divergence finite.
        missed = metrics.miscalibration(lists[1:2], features, np.array([[1.0, 0.0]], np.float32))
        assert missed.tolist() == pytest.approx([np.log(100)], rel=1e-5)
        # A category that is missing in both counts nothing.
        three = sparse.csr_matrix(np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]], np.float32))
        both = metrics.miscalibration(lists[:1], three, np.array([[0.5, 0.5, 0.0]], np.float32))
        assert both.tolist() == pytest.approx([0.0], abs=1e-7)


def test_pairs_of_equal_items_are_not_diverse() -> None:
    features = sparse.csr_matrix(np.array([[1, 0], [1, 0], [0, 1]], np.float32))
    lists = np.array([[0, 1, ranking.PADDING], [0, 1, 2]])
    assert metrics.intra_list_diversity(lists, features).tolist() == pytest.approx([0.0, 2 / 3])
    # Squares beyond float32 are no infinity.
    large = sparse.csr_matrix(np.array([[1e30, 0], [0, 0]], np.float32))
    assert metrics._squared_lengths(large).tolist() == pytest.approx([1e60, 0.0])


def test_sums_over_entries_know_items_that_no_list_holds() -> None:
    features = sparse.csr_matrix(np.eye(4, dtype=np.float32))
    sums = metrics._sums_over_entries(np.array([[0, 1], [1, ranking.PADDING]]), features)
    assert sums.toarray().tolist() == [[1, 1, 0, 0], [0, 1, 0, 0]]
    nothing = metrics._sums_over_entries(np.full((2, 2), ranking.PADDING), features)
    assert nothing.toarray().tolist() == [[0, 0, 0, 0]] * 2


def test_places_outside_a_matrix_are_those_without_an_entry() -> None:
    matrix = sparse.csr_matrix(np.array([[0.0, 2.0], [1.0, 0.0]]))
    found = metrics.outside(matrix, np.array([0, 0, 1, 1, 0]), np.array([0, 1, 0, 1, 1]))
    assert found.dtype == bool
    assert found.tolist() == [True, False, False, True, False]
    nothing = metrics.outside(matrix, np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert (nothing.shape, nothing.dtype) == ((0,), np.dtype(bool))
