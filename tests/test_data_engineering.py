"""Tables, splits and features: what they hold, and what they must never hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pytest
import yaml
from pydantic import ValidationError

from conftest import ROOT
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.features import MISSING, RARE
from multitask_recommender.data.inputs import TrainingTables
from multitask_recommender.data.splits import check_splits
from multitask_recommender.datasets import IbisTable
from multitask_recommender.foundation.errors import DataError, SettingsError
from multitask_recommender.pipelines.data_engineering import nodes

TINY = ROOT / "tests" / "data" / "tiny_study"
DECLARED = yaml.safe_load((ROOT / "conf/base/parameters_data_engineering.yml").read_text())
DATASET = DatasetSettings.model_validate(DECLARED["dataset"])
SPLITS = SplitSettings(
    strategies=["random", "chronological", "temporal", "cold_items"], seed=42, folds=3, test_share=0.2
)


def raw_tables(**changed: pd.DataFrame) -> dict[str, ir.Table]:
    frames = {path.stem: pd.read_csv(path, sep="\t", dtype=str) for path in TINY.glob("*.tsv")} | changed
    return {name: ibis.memtable(frame) for name, frame in frames.items()}


def validated(tables: dict[str, ir.Table]) -> tuple[ir.Table, ir.Table, ir.Table]:
    return nodes.validate_tables(
        nodes.standardise_interactions(tables["interactions"], DATASET),
        nodes.standardise_users(tables["users"], DATASET),
        nodes.standardise_items(tables["items"], tables["item_links"], tables["item_graph"], DATASET),
        DATASET,
        SPLITS,
    )[:3]


@pytest.fixture(scope="module")
def prepared() -> dict[str, pd.DataFrame]:
    interactions, users, items = validated(raw_tables())
    labelled = nodes.label_interactions(interactions, DATASET)
    splits = nodes.assign_splits(labelled, SPLITS)
    sequences, validation, pairs, labels = nodes.separate_parts(labelled, splits, DATASET)
    user_vocabulary, user_features = nodes.build_user_features(users, sequences, DATASET)
    item_vocabulary, item_features = nodes.build_item_features(items, sequences, DATASET)
    tables = {
        "interactions": interactions,
        "users": users,
        "items": items,
        "splits": splits,
        "sequences": sequences,
        "validation": validation,
        "pairs": pairs,
        "labels": labels,
        "user_vocabulary": user_vocabulary,
        "user_features": user_features,
        "item_vocabulary": item_vocabulary,
        "item_features": item_features,
    }
    return {name: table.execute() for name, table in tables.items()}


def parts(prepared: dict[str, pd.DataFrame], split: str) -> pd.DataFrame:
    splits = prepared["splits"]
    return splits[splits["split"] == split].merge(prepared["interactions"], on="row")


def test_every_row_is_in_one_part_of_every_split(prepared: dict[str, pd.DataFrame]) -> None:
    rows = set(prepared["interactions"]["row"])
    for _, group in prepared["splits"].groupby("split"):
        assert set(group["row"]) == rows
        assert len(group) == len(rows)
        assert (group["fold"].notna() == (group["part"] == "train")).all()


def test_random_split_is_the_published_one(prepared: dict[str, pd.DataFrame]) -> None:
    count = len(prepared["interactions"])
    order = np.random.RandomState(42).permutation(count)
    part = prepared["splits"].query("split == 'random'").set_index("row")["part"]
    test, validation = round(count * 0.1), round(count * 0.1)
    assert (part.loc[order[count - test :]] == "test").all()
    assert (part.loc[order[count - test - validation : count - test]] == "validation").all()
    assert (part.loc[order[: count - test - validation]] == "train").all()


def test_chronological_split_never_trains_on_a_users_future(prepared: dict[str, pd.DataFrame]) -> None:
    for _, own in parts(prepared, "chronological").groupby("user"):
        part = pd.Categorical(own["part"], ["train", "validation", "test"], ordered=True)
        own = own.assign(part=part).sort_values(["timestamp", "item_id"])
        assert own["part"].is_monotonic_increasing
        assert (own["part"] == "test").sum() == int(len(own) * 0.2)


def test_temporal_split_never_trains_on_anybodys_future(prepared: dict[str, pd.DataFrame]) -> None:
    time = parts(prepared, "temporal").groupby("part")["timestamp"].agg(["min", "max"])
    assert time.loc["train", "max"] < time.loc["validation", "min"]
    assert time.loc["validation", "max"] < time.loc["test", "min"]


def test_cold_items_never_appear_in_training(prepared: dict[str, pd.DataFrame]) -> None:
    items = parts(prepared, "cold_items").groupby("part")["item"].agg(set)
    assert not items["train"] & items["test"]
    assert not items["train"] & items["validation"]
    assert not items["validation"] & items["test"]
    folds = parts(prepared, "cold_items").dropna(subset="fold").groupby("fold")["item"].agg(set)
    assert not folds[0] & folds[1]


def test_folds_divide_the_training_rows(prepared: dict[str, pd.DataFrame]) -> None:
    sizes = prepared["splits"].query("part == 'train' and split == 'random'")["fold"].value_counts()
    assert sorted(sizes.index) == [0, 1, 2]
    assert sizes.max() - sizes.min() < 0.2 * sizes.mean()


def test_test_pairs_carry_no_label(prepared: dict[str, pd.DataFrame]) -> None:
    assert list(prepared["pairs"].columns) == ["split", "user", "item", "time"]


def test_sequences_are_in_order_of_time(prepared: dict[str, pd.DataFrame]) -> None:
    own = prepared["sequences"].query("split == 'random'").merge(prepared["interactions"], on=["user", "item"])
    assert (own.sort_values(["user", "position"]).groupby("user")["timestamp"].diff().dropna() >= 0).all()


def test_labels(prepared: dict[str, pd.DataFrame]) -> None:
    rows = (
        prepared["labels"]
        .query("split == 'random'")
        .merge(prepared["interactions"], on=["user", "item"], suffixes=("", "_raw"))
    )
    assert (rows["watch"] == 1).all()
    assert (rows["like"] == (rows["rating_raw"] >= 4)).all()
    assert (rows["rating"] == rows["rating_raw"]).all()
    assert (rows["relevant_rating"] == (rows["rating_raw"] >= 4)).all()


def test_features_have_weight_one_per_feature(prepared: dict[str, pd.DataFrame]) -> None:
    for key, features in (("user", 5), ("item", 6)):
        matrix = prepared[f"{key}_features"]
        total = matrix.groupby(["split", key])["weight"].sum()
        assert np.allclose(total, features)


def test_missing_and_rare_values_have_their_columns(prepared: dict[str, pd.DataFrame]) -> None:
    vocabulary = prepared["user_vocabulary"].query("split == 'random' and feature == 'age'").set_index("value")
    matrix = prepared["user_features"].query("split == 'random'")
    without_age = set(prepared["users"].query("age.isna()")["user"])
    assert without_age
    assert set(matrix[matrix["column"] == vocabulary.loc[MISSING, "column"]]["user"]) == without_age
    assert RARE in vocabulary.index


def test_unseen_categories_count_as_rare() -> None:
    users = pd.read_csv(TINY / "users.tsv", sep="\t", dtype=str)
    users.loc[len(users)] = ["999", "30", "X", "unheard", "12345"]  # A user without any interaction.
    interactions, users_table, _ = validated(raw_tables(users=users))
    labelled = nodes.label_interactions(interactions, DATASET)
    splits = nodes.assign_splits(labelled, SPLITS)
    sequences, *_ = nodes.separate_parts(labelled, splits, DATASET)
    vocabulary, matrix = nodes.build_user_features(users_table, sequences, DATASET)
    names = vocabulary.execute().query("split == 'random'")
    assert "unheard" not in set(names["value"])
    number = users_table.execute().set_index("user_id").loc["999", "user"]
    columns = set(matrix.execute().query(f"split == 'random' and user == {number}")["column"])
    rare = names.query("feature == 'occupation' and value == @RARE")["column"].item()
    assert rare in columns


def test_several_values_stay_several(prepared: dict[str, pd.DataFrame]) -> None:
    vocabulary = prepared["item_vocabulary"].query("split == 'random' and feature == 'genres'")
    genres = prepared["items"].set_index("item")["genres"]
    item = next(item for item, values in genres.items() if len(set(values)) == 2)
    own = prepared["item_features"].query(f"split == 'random' and item == {item}")
    own = own[own["column"].isin(vocabulary["column"])]
    assert own["weight"].tolist() == [0.5, 0.5]


def test_features_do_not_change_with_held_out_rows_or_labels() -> None:
    """Features are made of training rows alone: shuffling all labels and moving test rows changes nothing."""
    interactions, users, items = validated(raw_tables())
    splits = nodes.assign_splits(interactions, SPLITS)

    def features(table: ir.Table) -> list[pd.DataFrame]:
        sequences, *_ = nodes.separate_parts(nodes.label_interactions(table, DATASET), splits, DATASET)
        return [
            frame.execute()
            for build, own in ((nodes.build_user_features, users), (nodes.build_item_features, items))
            for frame in build(own, sequences, DATASET)
        ]

    frame = interactions.execute()
    split = splits.execute().query("split == 'random'").set_index("row")["part"].loc[frame["row"]].to_numpy()
    changed = frame.copy()
    changed["rating"] = np.roll(frame["rating"], 5)
    held_out = split != "train"
    changed.loc[held_out, ["user", "item"]] = np.roll(frame.loc[held_out, ["user", "item"]].to_numpy(), 1, axis=0)
    before, after = features(interactions), features(ibis.memtable(changed))
    for old, new in zip(before, after, strict=True):
        pd.testing.assert_frame_equal(
            old.query("split == 'random'").reset_index(drop=True),
            new.query("split == 'random'").reset_index(drop=True),
        )


def test_more_folds_than_rows_is_refused() -> None:
    interactions, _, _ = validated(raw_tables())
    few = interactions.order_by("row").limit(40)
    check_splits(few, SplitSettings(strategies=["random"], seed=1, folds=28))
    with pytest.raises(SettingsError, match=r"splits\.folds.*28 interactions"):
        check_splits(few, SplitSettings(strategies=["random"], seed=1, folds=30))
    with pytest.raises(SettingsError, match=r"splits\.folds.*items"):
        check_splits(interactions, SplitSettings(strategies=["cold_items"], seed=1, folds=60))


def test_splits_without_test_rows_are_refused() -> None:
    interactions, _, _ = validated(raw_tables())
    one_each = interactions.filter(interactions.row == interactions.row.min().over(group_by="user"))
    check_splits(one_each, SplitSettings(strategies=["random"], seed=1, folds=2))
    with pytest.raises(SettingsError, match=r"chronological.*no test"):
        check_splits(one_each, SplitSettings(strategies=["chronological"], seed=1, folds=2))


def test_time_splits_without_time_are_refused() -> None:
    interactions, _, _ = validated(raw_tables())
    untimed = interactions.mutate(timestamp=ibis.null("float64"))
    with pytest.raises(SettingsError, match="chronological"):
        check_splits(untimed, SPLITS)
    check_splits(untimed, SPLITS.model_copy(update={"strategies": ["random", "cold_items"]}))


def spoil(column: str, row: int, value: str) -> dict[str, pd.DataFrame]:
    table = pd.read_csv(TINY / "interactions.tsv", sep="\t", dtype=str)
    table.loc[row, column] = value
    return {"interactions": table}


def without(name: str, column: str) -> dict[str, pd.DataFrame]:
    return {name: pd.read_csv(TINY / f"{name}.tsv", sep="\t", dtype=str).drop(columns=column)}


def repeated() -> dict[str, pd.DataFrame]:
    table = pd.read_csv(TINY / "interactions.tsv", sep="\t", dtype=str)
    table.loc[9, ["user_id:token", "item_id:token"]] = table.loc[3, ["user_id:token", "item_id:token"]]
    return {"interactions": table}


def renamed() -> dict[str, pd.DataFrame]:
    table = pd.read_csv(TINY / "interactions.tsv", sep="\t", dtype=str)
    return {"interactions": table.rename(columns={"rating:float": "ratings:float"})}


@pytest.mark.parametrize(
    ("changed", "table", "column", "rows", "said"),
    [
        (spoil("rating:float", 4, "9"), "raw_interactions", "rating:float", [4], "'9'"),
        (spoil("rating:float", 5, "NaN"), "raw_interactions", "rating:float", [5], "NaN"),
        (spoil("rating:float", 6, "good"), "raw_interactions", "rating:float", [6], "'good'"),
        (spoil("timestamp:float", 7, "today"), "raw_interactions", "timestamp:float", [7], "'today'"),
        (spoil("user_id:token", 8, "nobody"), "raw_interactions", "user_id:token", [8], "'nobody'"),
        (spoil("item_id:token", 8, "nothing"), "raw_interactions", "item_id:token", [8], "'nothing'"),
        (spoil("item_id:token", 8, " "), "raw_interactions", "item_id:token", [8], "missing"),
        (repeated(), "raw_interactions", "user_id:token, item_id:token", [9], "earlier row"),
        (renamed(), "raw_interactions", "rating:float", [], "did you mean 'ratings:float'"),
        (without("users", "age:token"), "raw_users", "age:token", [], "missing"),
        (without("items", "class:token_seq"), "raw_items", "class:token_seq", [], "missing"),
        (
            {"users": pd.read_csv(TINY / "users.tsv", sep="\t", dtype=str).iloc[:0]},
            "raw_users",
            None,
            [],
            "empty",
        ),
    ],
)
def test_bad_tables_are_refused(
    changed: dict[str, Any], table: str, column: str | None, rows: list[int], said: str
) -> None:
    with pytest.raises(DataError) as raised:
        validated(raw_tables(**changed))
    assert raised.value.table == table
    assert raised.value.column == column
    assert raised.value.rows == rows
    assert said in str(raised.value)
    if rows:
        assert f"(line {rows[0] + 2})" in str(raised.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("tasks", "like", "kind"), "binry", "kind"),
        (("tasks", "like", "label"), None, "needs a 'label'"),
        (("tasks", "rating", "relevant"), None, "relevant"),
        (("users", "features", "age", "binns"), 3, "binns"),
        (("items", "features", "genres", "column"), "rating:float", "label column"),
        (("tasks", "like", "after"), "rate", "not a task"),
    ],
)
def test_bad_descriptions_are_refused(path: tuple[str, ...], value: object, said: str) -> None:
    declared = yaml.safe_load((ROOT / "conf/base/parameters_data_engineering.yml").read_text())["dataset"]
    place = declared
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValidationError, match=said):
        DatasetSettings.model_validate(declared)


def test_a_funnel_in_a_circle_is_refused() -> None:
    declared = yaml.safe_load((ROOT / "conf/base/parameters_data_engineering.yml").read_text())["dataset"]
    declared["tasks"]["watch"]["after"] = "like"
    declared["tasks"]["like"]["after"] = "watch"
    with pytest.raises(ValidationError, match="circle"):
        DatasetSettings.model_validate(declared)


def test_tiny_study_is_what_its_script_makes(tmp_path: Path) -> None:
    from data.make_tiny_study import make_tables

    for name, table in make_tables().items():
        table.to_csv(tmp_path / name, sep="\t", index=False)
        assert (tmp_path / name).read_text() == (TINY / f"{name}.tsv").read_text()


def test_a_table_is_read_again_when_its_file_is_another(tmp_path: Path) -> None:
    dataset = IbisTable(filepath=str(tmp_path / "users.parquet"), file_format="parquet")
    items = ibis.memtable({"item": [0], "item_id": ["x"]})
    for names in (["a", "b"], ["a", "c"]):
        dataset.save(ibis.memtable({"user": [0, 1], "user_id": names}))
        users = dataset.load()
        assert users is dataset.load()
        tables = TrainingTables(DATASET, items, users, items, items, items)
        assert tables.identifiers == (names, ["x"])
        assert tables.shape == (2, 1)


def test_no_test_pair_is_in_the_history_that_answers_it(prepared: dict[str, pd.DataFrame]) -> None:
    key = ["split", "user", "item"]
    known = pd.concat([prepared["sequences"][key], prepared["validation"][key]])
    assert len(prepared["pairs"])
    assert known.merge(prepared["pairs"][key], on=key).query("split != 'everything'").empty
