"""Splits over events: forward folds, the last one left out, new users, parts that the data names."""

from __future__ import annotations

from typing import Any

import ibis
import numpy as np
import pandas as pd
import pytest

from multitask_recommender.data.description import SplitSettings
from multitask_recommender.data.folds import fold_masks
from multitask_recommender.data.splits import assign_splits, candidate_items, check_splits
from multitask_recommender.foundation.errors import SettingsError

FOLDS = 3


def table(users: int = 40, seed: int = 1, **more: Any) -> pd.DataFrame:
    """Events of some users in 5 to 30 rows each, some on the same item, with distinct times."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), random.integers(5, 30, users))
    count = len(user)
    return pd.DataFrame(
        {
            "row": np.arange(count),
            "user": user,
            "item": random.integers(0, 12, count),
            "timestamp": random.permutation(count).astype(float),
            "relevant_buy": random.random(count) < 0.3,
            **more,
        }
    )


def assigned(rows: pd.DataFrame, **settings: Any) -> pd.DataFrame:
    declared = SplitSettings.model_validate({"seed": 3, "folds": FOLDS, **settings})
    interactions = ibis.memtable(rows)
    check_splits(interactions, declared)
    found = assign_splits(interactions, declared).execute()
    return found[found["split"] != "everything"].merge(rows, on="row").sort_values(["user", "timestamp"])


@pytest.mark.parametrize("strategy", ["chronological", "temporal"])
def test_folds_chain_forward(strategy: str) -> None:
    rows = assigned(table(), strategies=[strategy])
    train = rows[rows["part"] == "train"]
    assert set(train["fold"]) == {0, 1, 2, FOLDS}
    for number in range(FOLDS):
        inside, known, held_out = fold_masks("forward", train["fold"].to_numpy(), number, FOLDS)
        assert (inside == known).all()
        assert inside.sum() / len(train) + 0.15 >= 0.5
        if strategy == "temporal":
            assert train["timestamp"][inside].max() < train["timestamp"][held_out].min()
            continue
        for _, own in train.assign(inside=inside, held_out=held_out).groupby("user"):
            if own["held_out"].any() and own["inside"].any():
                assert own["timestamp"][own["inside"]].max() < own["timestamp"][own["held_out"]].min()


def test_a_slice_never_divides_one_time() -> None:
    rows = table()
    rows["timestamp"] = rows["timestamp"] // 10
    train = assigned(rows, strategies=["temporal"]).query("part == 'train'")
    assert train.groupby("timestamp")["fold"].agg(["min", "max"]).eval("min == max").all()


def test_the_last_row_is_left_out() -> None:
    for _, own in assigned(table(), strategies=["leave_last_out"]).groupby("user"):
        assert own["part"].tolist() == ["train"] * (len(own) - 2) + ["validation", "test"]
        assert own["fold"].tolist()[-5:-2] == [2, 1, 0]


def test_the_last_positive_of_a_task_is_left_out_and_what_follows_is_unused() -> None:
    rows = assigned(table(seed=4), strategies=[{"leave_last_out": "buy"}])
    seen = 0
    for _, own in rows.groupby("user"):
        places = np.flatnonzero(own["relevant_buy"])
        parts = own["part"].to_numpy()
        if len(places) < 3:
            assert set(parts) == {"train"}
            continue
        seen += 1
        assert (parts[: places[-2]] == "train").all()
        assert (parts[places[-2] : places[-1]] == "validation").all()
        assert parts[places[-1]] == "test"
        assert (parts[places[-1] + 1 :] == "unused").all()
        # Held out in a fold is one positive; what lies between it and the one before is known then.
        fold = own["fold"].to_numpy()
        assert fold[places[-3]] == 0
        between = fold[places[-4] + 1 : places[-3]] if len(places) > 3 else fold[: places[-3]]
        assert (between == 1).all()
    assert seen > 5


def test_new_users_are_asked_with_a_part_of_their_rows() -> None:
    rows = assigned(table(), strategies=["cold_users"], test_share=0.25)
    by_user = rows.groupby("user")["part"].agg(set)
    assert sum(parts != {"train"} for parts in by_user) == 10
    assert all(parts in ({"train"}, {"validation", "test"}) for parts in by_user)
    tested = rows[rows["part"] == "test"].groupby("user").size() / rows[rows["part"] != "train"].groupby("user").size()
    assert tested.between(0.05, 0.21).all()
    train = rows[rows["part"] == "train"]
    for number in range(FOLDS):
        inside, known, held_out = fold_masks("users", train["fold"].to_numpy(), number, FOLDS)
        assert not set(train["user"][inside]) & set(train["user"][held_out])
        assert set(train["user"][held_out]) <= set(train["user"][known])
        assert not (known & held_out).any()


def test_given_parts_are_taken_over() -> None:
    rows = table()
    rows["given_part"] = np.random.default_rng(0).choice(["train", "train", "validation", "test", "unused"], len(rows))
    found = assigned(rows, strategies=["given"])
    assert (found["part"] == found["given_part"]).all()
    assert set(found["fold"].dropna()) == {0, 1, 2}
    forward = assigned(rows, strategies=["given"], folding={"given": "forward"})
    assert set(forward["fold"].dropna()) == {0, 1, 2, FOLDS}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"given_part": "train"}, "no rows for test"),
        ({"given_part": "test"}, "no rows for train"),
        ({}, "'dataset.interactions.part' names no column"),
    ],
)
def test_given_parts_that_leave_nothing_are_refused(change: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        assigned(table().assign(**change), strategies=["given"])


def test_users_who_only_train_are_counted() -> None:
    rows = table()
    rows.loc[rows["user"] == 7, "relevant_buy"] = False
    settings = SplitSettings.model_validate({"seed": 3, "folds": 2, "strategies": [{"leave_last_out": "buy"}]})
    lines = check_splits(ibis.memtable(rows), settings)
    few = (rows.groupby("user")["relevant_buy"].sum() < 3).sum()
    assert lines == [
        (
            "split leave_last_out",
            f"{few} of 40 users have fewer than three positive rows of task 'buy': they only train",
        )
    ]
    with pytest.raises(SettingsError, match="last 'sell' out, which is not a task"):
        assigned(rows, strategies=[{"leave_last_out": "sell"}])
    with pytest.raises(SettingsError, match="none of the 40 users has three"):
        assigned(rows.assign(relevant_buy=False), strategies=[{"leave_last_out": "buy"}])


def test_the_order_of_the_file_matters_for_random_rows_alone() -> None:
    rows = table().drop_duplicates(["user", "item"])
    turned = rows.assign(row=rows["row"].to_numpy()[::-1])
    names = ["chronological", "temporal", "leave_last_out", "cold_items", "cold_users"]
    keys = ["split", "user", "item"]
    one, other = (
        assigned(own, strategies=names, test_share=0.25)
        .sort_values(keys)[[*keys, "part", "fold"]]
        .reset_index(drop=True)
        for own in (rows, turned)
    )
    pd.testing.assert_frame_equal(one, other)


def test_candidates_are_those_that_a_split_declares() -> None:
    trained = np.array([0, 2, 2])
    assert candidate_items("trained", trained, 4).tolist() == [True, False, True, False]
    assert candidate_items("new", trained, 4).tolist() == [False, True, False, True]
    assert candidate_items("all", trained, 4).tolist() == [True] * 4
    assert candidate_items("trained", np.array([], dtype=np.int64), 2).tolist() == [False, False]
