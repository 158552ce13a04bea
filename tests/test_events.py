"""Events and pairs: what a user's many meetings with an item become."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from multitask_recommender.data.events import as_pairs, pair_rules
from multitask_recommender.data.interactions import Interactions
from multitask_recommender.data.tasks import PairRule, Task

NAN = float("nan")


def events(label: list[float], relevant: list[bool] | None = None) -> Interactions:
    """Of user 0: items 7, 3, 7, 5, 7; of user 1: item 7."""
    return Interactions(
        user=np.array([0, 0, 0, 0, 0, 1]),
        item=np.array([7, 3, 7, 5, 7, 7]),
        labels={"score": np.array(label, np.float32)},
        relevant={"score": np.array(relevant if relevant is not None else np.nan_to_num(label) > 2)},
        fold=np.array([5, 4, 3, 2, 1, 0]),
        time=np.array([10.0, 20.0, 30.0, 40.0, 50.0, 5.0]),
    )


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("first", 4.0), ("last", 1.0), ("any", 4.0), ("maximum", 4.0), ("minimum", 1.0), ("sum", 5.0), ("mean", 2.5)],
)
def test_the_label_of_a_pair_comes_from_its_labelled_events(rule: PairRule, expected: float) -> None:
    pairs = as_pairs(events([NAN, 2.0, 4.0, NAN, 1.0, 3.0]), {"score": rule})
    assert pairs.user.tolist() == [0, 0, 0, 1]
    # In the order of their last events.
    assert pairs.item.tolist() == [3, 5, 7, 7]
    assert pairs.time is not None
    assert pairs.fold is not None
    assert pairs.time.tolist() == [20.0, 40.0, 50.0, 5.0]
    assert pairs.fold.tolist() == [4, 2, 1, 0]
    np.testing.assert_array_equal(pairs.labels["score"], np.array([2.0, NAN, expected, 3.0], np.float32))


def test_relevance_is_that_of_the_event_the_label_is_from() -> None:
    label, relevant = [5.0, 1.0, NAN, 1.0, 1.0, 5.0], [True, False, False, False, False, True]
    assert as_pairs(events(label, relevant), {"score": "last"}).relevant["score"].tolist() == [
        False,
        False,
        False,
        True,
    ]
    assert as_pairs(events(label, relevant), {"score": "any"}).relevant["score"].tolist() == [False, False, True, True]


def test_pairs_can_stand_in_the_order_of_items() -> None:
    pairs = as_pairs(events([1.0] * 6), {"score": "last"}, "item")
    assert list(zip(pairs.user.tolist(), pairs.item.tolist(), strict=True)) == [(0, 3), (0, 5), (0, 7), (1, 7)]


def test_rows_that_are_pairs_stay_as_they_are() -> None:
    rows = events([1.0] * 6).where(np.array([0, 1, 3, 5]))
    assert as_pairs(rows, {"score": "last"}) is rows
    nothing = rows.where(np.zeros(4, bool))
    assert len(as_pairs(nothing, {"score": "mean"})) == 0


@pytest.mark.parametrize("rule", ["first", "last", "any", "sum", "mean", "minimum"])
def test_it_agrees_with_pandas(rule: PairRule) -> None:
    random = np.random.default_rng(3)
    user = np.sort(random.integers(0, 6, 200))
    label = np.where(random.random(200) < 0.3, np.nan, random.integers(0, 5, 200)).astype(np.float32)
    rows = Interactions(user, random.integers(0, 9, 200), {"t": label}, {"t": np.nan_to_num(label) > 2})
    pairs = as_pairs(rows, {"t": rule}, "item")
    grouped = pd.DataFrame({"user": user, "item": rows.item, "label": label}).groupby(["user", "item"])["label"]
    expected = {"any": grouped.max(), "minimum": grouped.min(), "mean": grouped.mean(), "first": grouped.first()}
    expected |= {"last": grouped.last(), "sum": grouped.sum(min_count=1)}
    np.testing.assert_allclose(pairs.labels["t"], expected[rule].to_numpy(np.float32), rtol=1e-6)


def test_default_rules() -> None:
    tasks = {
        "buy": Task(kind="retrieval"),
        "rate": Task(kind="regression", label="x", relevant="x > 1"),
        "spent": Task(kind="regression", label="x", relevant="x > 1", of_pair="sum"),
    }
    assert pair_rules(tasks) == {"buy": "any", "rate": "last", "spent": "sum"}
    with pytest.raises(ValueError, match="'of_pair: mean'"):
        Task(kind="binary", label="x > 1", of_pair="mean")
