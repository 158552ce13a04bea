"""Splits: equal to a plain second implementation; folds, equal times, and what cannot be divided."""

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


def timed(times: list[float]) -> ibis.Table:
    frame = pd.DataFrame({"row": np.arange(len(times)), "timestamp": np.array(times, dtype=float)})
    frame["user"], frame["item"] = frame["row"] // 10, frame["row"] % 10
    frame["user_id"], frame["item_id"] = "u" + frame["user"].astype(str), "i" + frame["item"].astype(str)
    return ibis.memtable(frame)


def split_settings(name: str, **options: Any) -> SplitSettings:
    return SplitSettings.model_validate({"strategies": [name], "seed": 5, "folds": 2, **options})


def test_equal_times_are_ordered_by_the_seed_and_counted() -> None:
    table = timed([1.0, 2, 3, 4, 5, 6, 6, 6, 6, 6] * 6)
    lines_ = check_splits(table, split_settings("chronological"))
    assert lines_ == [
        (
            "order of equal times in split chronological",
            "the cut of 6 of 6 users falls among 30 interactions of equal time; the seed decides",
        )
    ]

    def tests(own: ibis.Table) -> set[tuple[int, int]]:
        parts = assign_splits(own, split_settings("chronological")).filter(ibis._.split == "chronological")
        frame = parts.execute().merge(own.execute(), on="row")
        return set(frame.loc[frame["part"] == "test", ["user", "row"]].itertuples(index=False, name=None))

    found = tests(table)
    assert len({row % 10 for _, row in found}) > 2  # Not always the last items.
    renamed = table.mutate(item_id=ibis.literal("z").concat((9 - table.item).cast("string")))
    assert tests(renamed) == found
    assert check_splits(timed(list(range(10)) * 6), split_settings("chronological")) == []
    (line,) = check_splits(timed([*range(8), 8, 8] * 3 + [*range(10)] * 3), split_settings("leave_last_out"))
    assert line == (
        "order of equal times in split leave_last_out",
        "the cut of 3 of 6 users falls among 6 interactions of equal time; the seed decides",
    )
    assert check_splits(timed([*range(10)] * 6), split_settings("leave_last_out")) == []


@pytest.mark.parametrize(
    ("strategy", "times"),
    [
        ("chronological", [7.0] * 60),
        ("chronological", [float(n // 10) for n in range(60)]),
        ("leave_last_out", [7.0] * 60),
        ("leave_last_out", [float(n // 10) for n in range(60)]),
        ("temporal", [1.0] * 3 + [2.0] * 57),
        ("temporal", [1.0] * 57 + [2.0] * 3),
        ("temporal", [1.0] * 30 + [2.0] * 30),
    ],
)
def test_cuts_in_time_that_say_nothing_are_refused(strategy: str, times: list[float]) -> None:
    with pytest.raises(SettingsError, match=f"'{strategy}' cannot be made") as raised:
        check_splits(timed(times), split_settings(strategy))
    assert "dataset.interactions.timestamp" in str(raised.value)


def test_a_cut_that_equal_times_have_moved_is_said() -> None:
    times = [float(n) for n in range(44)] + [44.0] * 10 + [float(n) for n in range(45, 51)]
    assert check_splits(timed(times), split_settings("temporal", validation_share=0.0)) == [
        (
            "equal times in split temporal",
            "a cut does not divide them: test 16 of 60 (declared 12), validation 0 of 60 (declared 0), "
            "train 44 of 60 (declared 48)",
        )
    ]


@pytest.mark.parametrize("strategy", ["random", "chronological", "temporal", "cold_items"])
def test_a_study_may_have_no_validation_rows(strategy: str) -> None:
    table, settings = timed([float(n) for n in range(60)]), split_settings(strategy, validation_share=0.0)
    check_splits(table, settings)
    parts = assign_splits(table, settings).filter(ibis._.split == strategy).execute()["part"]
    assert set(parts) == {"train", "test"}


def by_hand(rows: pd.DataFrame, strategy: str, settings: SplitSettings) -> pd.DataFrame:
    """Parts and folds of rows whose times differ, row by row: the second implementation."""
    folds, count = settings.folds, len(rows)

    def shuffled(number: int) -> np.ndarray:
        position = np.empty(number, dtype=np.int64)
        position[np.random.RandomState(settings.seed).permutation(number)] = np.arange(number)
        return position

    order = ["row"] if strategy in ("random", "given", "everything") else ["user", "item", "timestamp", "row"]
    rows = rows.sort_values(order).assign(position=shuffled(count))
    rows["part"], rows["fold"] = "train", rows["position"] % folds

    def slices(own: pd.DataFrame) -> None:
        from_end = len(own) - 1 - np.arange(len(own))
        rows.loc[own.index, "fold"] = np.minimum(from_end * 2 * folds // len(own), folds)

    if strategy == "random":
        tests = round(count * settings.random_test_share)
        first = count - tests - round(count * settings.validation_share)
        rows.loc[rows["position"] >= first, "part"] = "validation"
        rows.loc[rows["position"] >= count - tests, "part"] = "test"
    elif strategy == "chronological":
        for _, own in rows.sort_values("timestamp").groupby("user"):
            tests, validation = (int(len(own) * share) for share in (settings.test_share, settings.validation_share))
            first, end = len(own) - tests - validation, len(own) - tests
            rows.loc[own.index[first:end], "part"], rows.loc[own.index[end:], "part"] = "validation", "test"
            slices(own[:first])
    elif strategy == "temporal":
        own = rows.sort_values("timestamp")
        tests, validation = (round(count * share) for share in (settings.test_share, settings.validation_share))
        first, end = count - tests - validation, count - tests
        rows.loc[own.index[first:end], "part"], rows.loc[own.index[end:], "part"] = "validation", "test"
        slices(own[:first])
    elif strategy == "cold_items":
        place = shuffled(rows["item"].nunique())[rows["item"].rank(method="dense").astype(int) - 1]
        number = rows["item"].nunique()
        rows["fold"] = place % folds
        rows.loc[place >= number - round(number * (settings.test_share + settings.validation_share)), "part"] = (
            "validation"
        )
        rows.loc[place >= number - round(number * settings.test_share), "part"] = "test"
    elif strategy == "cold_users":
        number = rows["user"].nunique()
        entity = dict(zip(sorted(rows["user"].unique()), shuffled(number), strict=True))
        for user, own in rows.sort_values("position").groupby("user"):
            hidden = max(int(len(own) * settings.hidden_share), 1) if len(own) > 1 else 0
            end = len(own) - hidden
            rows.loc[own.index[:end], "fold"] = entity[user] % folds + folds + 1
            rows.loc[own.index[end:], "fold"] = entity[user] % folds
            if entity[user] >= number - round(number * settings.test_share):
                rows.loc[own.index[:end], "part"], rows.loc[own.index[end:], "part"] = "validation", "test"
    elif strategy == "given":
        rows["part"] = rows["given_part"]
    elif strategy == "leave_last_out":
        for _, own in rows.sort_values("timestamp").groupby("user"):
            counted = np.flatnonzero(own["relevant_buy"])
            if len(counted) < 3:
                rows.loc[own.index, "fold"] = folds
                continue
            *before, last = counted
            rows.loc[own.index[before[-1] : last], "part"] = "validation"
            rows.loc[own.index[last], "part"] = "test"
            rows.loc[own.index[last + 1 :], "part"] = "unused"
            # Counted from the end: a fold holds out one row that counts and what stands behind it.
            for place in range(before[-1]):
                rows.loc[own.index[place], "fold"] = np.clip((counted > place).sum() - 2, 0, folds)
    fold = rows["fold"].where(rows["part"] == "train")
    return pd.DataFrame({"row": rows["row"], "split": strategy, "part": rows["part"], "fold": fold})


@pytest.mark.parametrize("seed", [3, 8])
def test_splits_equal_a_second_implementation(seed: int) -> None:
    rows = table(users=30, seed=seed)
    # Users of one, two and three rows as well.
    rows = rows[rows["user"].map({4: 1, 9: 2, 11: 3}).fillna(99) > rows.groupby("user").cumcount()].reset_index(
        drop=True
    )
    rows["row"] = np.arange(len(rows))
    rows["given_part"] = np.random.default_rng(seed).choice(
        ["train", "train", "validation", "test", "unused"], len(rows)
    )
    names = ["random", "chronological", "temporal", "cold_items", "cold_users", "given", {"leave_last_out": "buy"}]
    shares = {"random_test_share": 0.13, "test_share": 0.22, "validation_share": 0.11, "hidden_share": 0.3}
    settings = SplitSettings.model_validate({"strategies": names, "seed": seed, "folds": FOLDS, **shares})
    # The order in which a table hands out its rows is no order of the file.
    found = assign_splits(ibis.memtable(rows.sample(frac=1.0, random_state=seed)), settings).execute()
    wanted = pd.concat(by_hand(rows, name, settings) for name in [*settings.names, "everything"])
    wanted = wanted.sort_values(["split", "row"]).reset_index(drop=True)
    found["fold"] = found["fold"].astype(float)
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False)
    assert found["row"].dtype == np.int64


def test_parts_that_are_given_with_times_have_folds_of_slices() -> None:
    rows = table(users=12)
    rows["given_part"] = np.random.default_rng(0).choice(["train", "train", "test", "unused"], len(rows))
    found = assigned(rows, strategies=["given"], folding={"given": "forward"})
    for _, own in found[found["part"] == "train"].groupby("user"):
        from_end = len(own) - 1 - np.arange(len(own))
        assert own["fold"].tolist() == np.minimum(from_end * 2 * FOLDS // len(own), FOLDS).tolist()


NO_TIME = (
    "where: 'dataset.interactions.timestamp'\n  what to do: name a finer time (with 'timestamp_formats', if it is a "
)
NO_TIME += "date), choose other shares in 'splits', or remove {0} from 'splits.strategies'."
SMALL = "The split strategy '{0}' would leave no test or no validation rows: the data is too small.\n"
SMALL += "  where: parameters_data_engineering.yml\n"
SMALL += "  what to do: raise the shares in 'splits', remove the strategy, or bring more data."
FOLDED = "'splits.folds' is {0}, but only {1} {2} are left for training.\n  where: parameters_data_engineering.yml\n"
FOLDED += "  what to do: choose fewer folds, or smaller test and validation shares."


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (
            {"timestamp": np.nan},
            {"strategies": ["random", "temporal", "chronological"]},
            "The split strategy 'chronological' needs timestamps, and the data set has none.\n"
            "  what to do: remove it from 'splits.strategies' or name the column in 'dataset.interactions.timestamp'.",
        ),
        ({}, {"strategies": ["random"], "random_test_share": 0.001}, SMALL.format("random")),
        ({}, {"strategies": ["random"], "validation_share": 0.001}, SMALL.format("random")),
        ({}, {"strategies": ["cold_items"], "test_share": 0.08}, SMALL.format("cold_items")),
        ({}, {"strategies": ["cold_items"], "validation_share": 0.08}, SMALL.format("cold_items")),
        ({}, {"strategies": ["cold_users"], "test_share": 0.02}, SMALL.format("cold_users")),
        ({}, {"strategies": ["chronological"], "test_share": 0.03}, SMALL.format("chronological")),
        (
            {},
            {"strategies": ["random"], "folds": 500, "test_share": 0.4, "validation_share": 0.1},
            FOLDED.format(500, 336, "interactions"),
        ),
        (
            {},
            {"strategies": ["cold_items"], "folds": 9, "test_share": 0.3, "validation_share": 0.1},
            FOLDED.format(9, 7, "items"),
        ),
        ({}, {"strategies": ["cold_users"], "folds": 33, "test_share": 0.2}, FOLDED.format(33, 32, "users")),
        (
            {"timestamp": 7.0},
            {"strategies": ["chronological"]},
            "The split strategy 'chronological' cannot be made: all interactions of each of the 40 users have the same "
            "time.\n  " + NO_TIME.format("chronological"),
        ),
        (
            {"timestamp": 7.0},
            {"strategies": ["temporal"], "test_share": 0.2, "validation_share": 0.1},
            "The split strategy 'temporal' cannot be made: 672 of 672 interactions have the time 7, which no cut divides, "
            "so that 0 are left for validation where 67 are declared.\n  " + NO_TIME.format("temporal"),
        ),
        (
            {"relevant_buy": False},
            {"strategies": [{"leave_last_out": "buy"}]},
            "The split strategy 'leave_last_out' cannot be made: none of the 40 users has three positive rows of task "
            "'buy'.\n  " + NO_TIME.format("leave_last_out"),
        ),
        (
            {"user": lambda rows: rows["row"] // 2},
            {"strategies": ["leave_last_out"]},
            "The split strategy 'leave_last_out' cannot be made: none of the 336 users has three rows.\n  "
            + NO_TIME.format("leave_last_out"),
        ),
        (
            {},
            {"strategies": [{"leave_last_out": "sell"}]},
            "'splits.strategies' leaves the last 'sell' out, which is not a task.\n  where: 'splits.strategies'\n"
            "  what to do: name a task of 'dataset.tasks', or write leave_last_out alone for the last row of any.",
        ),
        (
            {},
            {"strategies": ["given"]},
            "The split 'given' takes its parts from the data, and 'dataset.interactions.part' names no column of it.\n"
            "  what to do: name the column and its values there, or remove 'given' from 'splits.strategies'.",
        ),
        (
            {"given_part": "train"},
            {"strategies": ["given"]},
            "The split 'given' has no rows for test.\n  where: 'dataset.interactions.part'\n"
            "  what to do: list the values that stand for it in 'dataset.interactions.part.test'.",
        ),
        (
            {"given_part": lambda rows: np.where(rows["row"] % 2, "train", "test"), "timestamp": np.nan},
            {"strategies": ["given"], "folding": {"given": "forward"}},
            "'splits.folding: {given: forward}' makes folds of slices of time, and the data set has no timestamps.\n"
            "  what to do: remove it, or name the column in 'dataset.interactions.timestamp'.",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused_with_place_and_remedy(
    change: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    rows = table().assign(**change)
    rows = rows.assign(timestamp=rows["timestamp"].astype(float))
    with pytest.raises(SettingsError) as raised:
        check_splits(ibis.memtable(rows), SplitSettings.model_validate({"seed": 3, "folds": FOLDS, **settings}))
    assert str(raised.value) == said


def test_data_that_is_just_large_enough_is_divided() -> None:
    rows = table()
    longest = rows.groupby("user").size().max()
    for name, units in (("chronological", longest), ("cold_items", 12), ("cold_users", 40), ("random", len(rows))):
        share = "random_test_share" if name == "random" else "test_share"
        enough = {"strategies": [name], share: 1 / units + 1e-6, "validation_share": 1 / units + 1e-6, "folds": 2}
        check_splits(ibis.memtable(rows), SplitSettings.model_validate({"seed": 3, **enough}))
    for what, number in (("cold_items", 7), ("cold_users", 32), ("random", 403)):
        most = {"strategies": [what], "folds": number, "test_share": 0.3, "random_test_share": 0.3}
        most |= {"validation_share": 0.1} | ({"test_share": 0.2} if what == "cold_users" else {})
        check_splits(ibis.memtable(rows), SplitSettings.model_validate({"seed": 3, **most}))


def test_what_given_parts_leave_out_is_counted() -> None:
    rows = table(users=6)
    settings = SplitSettings.model_validate({"seed": 3, "folds": 2, "strategies": ["given"]})

    def lines(parts: np.ndarray | str) -> list[tuple[str, str]]:
        return check_splits(ibis.memtable(rows.assign(given_part=parts)), settings)

    half = np.where(rows.groupby("user").cumcount() < 2, "train", "test")
    assert lines(half) == []
    # One user with a single test row and no other; one who is unused whole; one who only validates.
    first = rows.groupby("user").cumcount() == 0
    parts = np.select(
        [rows["user"].eq(1) & first, rows["user"].eq(1), rows["user"].eq(2), rows["user"].eq(3)],
        ["test", "validation", "unused", "validation"],
        half,
    )
    unused = int((rows["user"] == 2).sum())
    cold = ("split given", "1 users have test rows and no training rows: they are cold")
    assert lines(parts) == [cold, ("split given", f"{unused} rows are in no part")]
    assert lines(np.where(rows["user"] == 2, half, parts)) == [cold]


def test_users_of_enough_rows_need_no_word() -> None:
    rows = table(users=6)
    last = SplitSettings.model_validate({"seed": 3, "folds": 2, "strategies": ["leave_last_out"]})
    assert check_splits(ibis.memtable(rows), last) == []
    few = rows[(rows["user"] > 0) | (rows["row"] < 2)]
    line = ("split leave_last_out", "1 of 6 users have fewer than three rows: they only train")
    assert check_splits(ibis.memtable(few), last) == [line]
    three = rows[(rows["user"] > 0) | (rows["row"] < 3)]
    assert check_splits(ibis.memtable(three), last) == []
