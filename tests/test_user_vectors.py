"""What is said of the user vectors: planted tastes are found, and the limit is that of the whole matrix."""

from __future__ import annotations

import ibis
import numpy as np
import pandas as pd
import pytest
import torch

from conftest import Project
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.evaluation import user_vectors
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.models.document.user_embedding import optimal_loss
from multitask_recommender.models.stored import StoredModel

DATASET = DatasetSettings.model_validate(
    {
        "name": "two tastes",
        "interactions": {"user_id": "u", "item_id": "i"},
        "items": {
            "item_id": "i",
            "title": "t",
            "categories": "genre",
            "features": {"genre": {"kind": "category", "column": "g"}},
        },
        "tasks": {"watch": {"kind": "retrieval"}},
    }
)
SPLITS = SplitSettings(strategies=["random"], seed=1, folds=2)
USERS, ITEMS = 60, 20


@pytest.fixture(scope="module")
def tables() -> dict[str, ibis.Table]:
    """Users of two tastes, each with 6 of the 10 items of a genre."""
    random = np.random.default_rng(0)
    pairs = [(user, 10 * (user % 2) + item) for user in range(USERS) for item in random.permutation(10)[:6]]
    rows = pd.DataFrame(pairs, columns=["user", "item"]).assign(split="random", time=np.nan, watch=1.0, fold=0)
    rows = rows.assign(relevant_watch=True, position=rows.groupby("user").cumcount())
    genre = ["war"] * 10 + ["love"] * 10
    items = pd.DataFrame(
        {"item": range(ITEMS), "item_id": [f"i{n}" for n in range(ITEMS)], "title": "", "genre": genre}
    )
    items = items.assign(title=[f"{name} {n}" for n, name in enumerate(genre)])
    columns = [0 if name == "war" else 1 for name in genre]
    return {
        "behaviour_sequences": ibis.memtable(rows),
        "users": ibis.memtable(pd.DataFrame({"user": range(USERS), "user_id": [f"u{n}" for n in range(USERS)]})),
        "items": ibis.memtable(items),
        "user_features": ibis.memtable({"split": ["random"], "user": [0], "column": [0], "weight": [1.0]}),
        "item_features": ibis.memtable(
            pd.DataFrame({"split": "random", "item": range(ITEMS), "column": columns, "weight": 1.0})
        ),
    }


def history_matrix(tables: dict[str, ibis.Table]) -> np.ndarray:
    rows = tables["behaviour_sequences"].execute()
    matrix = np.zeros((USERS, ITEMS))
    matrix[rows["user"], rows["item"]] = 1
    return matrix / np.sqrt(matrix.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("dimension", [2, 5, 25])
def test_limit_is_that_of_the_whole_matrix(tables: dict[str, ibis.Table], dimension: int) -> None:
    chosen = {"dimension": dimension, "penalty": 0.3, "context": False, "encoder": "linear", "history_dropout": 0.0}
    curve = pd.DataFrame({"split": "random", "epoch": [2, 1], "value": [0.5, 0.9]})
    (row,) = user_vectors.measure_limits(SPLITS, {"random": chosen}, curve, DATASET, tables).itertuples()
    values = torch.from_numpy(np.linalg.svd(history_matrix(tables), compute_uv=False))
    assert row.limit == pytest.approx(optimal_loss(values, dimension, 0.3) / USERS, rel=1e-6)
    assert (row.reached, row.users) == (0.5, USERS)
    other = {**chosen, "encoder": "sequential"}
    (row,) = user_vectors.measure_limits(SPLITS, {"random": other}, curve, DATASET, tables).itertuples()
    assert np.isnan(row.limit)


def test_planted_tastes_are_found(tables: dict[str, ibis.Table]) -> None:
    matrix = history_matrix(tables)
    right = np.linalg.svd(matrix)[2][:3].T
    vectors = ibis.memtable(
        pd.DataFrame({"split": "random", "user": range(USERS), "vector": (matrix @ right).tolist()})
    )
    names = ["split", "feature", "value", "entities", "column"]
    vocabulary = ibis.memtable(
        pd.DataFrame([("random", "genre", "war", 10, 0), ("random", "genre", "love", 10, 1)], columns=names)
    )
    weights = StoredModel({"random": {"-1": {"weight": right.astype(np.float32)}}})
    study = StudySettings(seed=3, repeats=1)
    found = user_vectors.read_vectors(
        study, SPLITS, DATASET, {**tables, "item_vocabulary": vocabulary}, vectors, weights
    )
    the_map, directions, nearest, overlap = found
    assert the_map.set_index("user")["taste"].to_dict() == {u: "love" if u % 2 else "war" for u in range(USERS)}
    # The first direction divides the tastes: users, and the items at its ends.
    assert len(set(np.sign(the_map.loc[the_map["user"] % 2 == 0, "x"]))) == 1
    assert set(np.sign(the_map["x"])) == {-1, 1}
    first = directions[directions["direction"] == 1]
    kinds = first.groupby("end")["title"].agg(lambda titles: {title.split()[0] for title in titles})
    assert sorted(map(sorted, kinds)) == [["love"], ["war"]]
    assert first["share"].iloc[0] > 0.5
    # Neighbours are of one taste, and have more in common than chance gives.
    assert (nearest["user_id"].str[1:].astype(int) % 2 == nearest["neighbour_id"].str[1:].astype(int) % 2).all()
    assert (nearest["common"] > nearest["by_chance"]).all()
    near, random = overlap.set_index("pairs").loc["nearest"], overlap.set_index("pairs").loc["random"]
    assert near["ci_low"] > random["ci_high"]
    assert near["overlap"] >= 6 / 14


def test_chance_is_what_strangers_have_in_common(tables: dict[str, ibis.Table]) -> None:
    """Vectors that say nothing find neighbours like random ones."""
    noise = np.random.default_rng(7).normal(size=(USERS, 4))
    vectors = ibis.memtable(pd.DataFrame({"split": "random", "user": range(USERS), "vector": noise.tolist()}))
    vocabulary = ibis.memtable({"split": ["random"], "feature": ["x"], "value": ["y"], "entities": [1], "column": [0]})
    weights = StoredModel({"random": {"-1": {"weight": np.ones((ITEMS, 4), np.float32)}}})
    study = StudySettings(seed=3, repeats=1)
    the_map, _, _, overlap = user_vectors.read_vectors(
        study, SPLITS, DATASET, {**tables, "item_vocabulary": vocabulary}, vectors, weights
    )
    assert the_map["taste"].isna().all()
    near, random = overlap.set_index("pairs")["overlap"]
    assert near == pytest.approx(random, abs=0.12)


def test_of_a_run(finished_project: Project) -> None:
    folder = finished_project.outputs
    limits = pd.read_csv(folder / "06_models" / "user_embedding" / "limits.csv")
    assert list(limits.columns) == user_vectors.LIMIT_COLUMNS
    assert ((limits["limit"] > 0) & (limits["limit"] <= 1)).all()
    the_map = pd.read_csv(folder / "08_reporting" / "user_map.csv")
    assert the_map[["x", "y"]].notna().all(axis=None)
