"""The study on tables in memory."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import yaml

import multitask_recommender
from conftest import ROOT
from multitask_recommender.foundation.errors import StudyError

TINY = ROOT / "tests/data/tiny_study"
DATASET: dict[str, Any] = {
    "name": "frames",
    "interactions": {
        "user_id": "user",
        "item_id": "item",
        "timestamp": "time",
        "signals": {"rating": {"column": "rating", "minimum": 1, "maximum": 5}},
    },
    "users": {"user_id": "user", "features": {"age": {"kind": "numeric", "column": "age", "bins": 4}}},
    "items": {"item_id": "item", "title": "title"},
    "tasks": {
        "watch": {"kind": "retrieval"},
        "like": {"kind": "binary", "label": "rating >= 4"},
    },
}


def tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    interactions, users, items = (
        pd.read_csv(TINY / f"{name}.tsv", sep="\t") for name in ("interactions", "users", "items")
    )
    return (
        interactions.rename(columns=lambda name: name.split(":")[0]).rename(
            columns={"user_id": "user", "item_id": "item", "timestamp": "time"}
        ),
        users.rename(columns={"user_id:token": "user", "age:token": "age"}),
        items.rename(columns={"item_id:token": "item", "movie_title:token_seq": "title"}),
    )


def test_a_study_of_frames() -> None:
    tiny = yaml.safe_load((ROOT / "conf/test/parameters.yml").read_text())
    models = ["popularity", "ease", "single_task", "shared_bottom"]
    description = {**tiny, "dataset": DATASET, "study": {**tiny["study"], "models": models}}
    interactions, users, items = tables()
    found = multitask_recommender.study(interactions, users, items, description)
    assert set(found.metrics["model"]) == set(found.recommendations) == set(models)
    assert set(found.comparisons["control"]) == set(models) - {"shared_bottom"}
    assert list(found.headline["model"]) == models
    lists = found.recommendations["shared_bottom"]
    assert set(lists["user_id"]) == set(users["user"].astype(str))
    assert lists["title"].str.startswith("Film ").all()
    assert found.dropped_rows.empty
    assert len(found.left_out)
    assert "model mmoe" in set(found.left_out_models["what"])


def test_faults_of_frames_are_one_clear_message() -> None:
    interactions, users, items = tables()
    with pytest.raises(StudyError, match="'description'"):
        multitask_recommender.study(interactions, users, items)
    with pytest.raises(StudyError, match="raw_users"):
        multitask_recommender.study(interactions, users.assign(user=[1, *["u"] * 99]), items, {"dataset": DATASET})
    interactions.loc[3, "rating"] = 11
    with pytest.raises(StudyError, match="'11"):
        multitask_recommender.study(interactions, users, items, {"dataset": DATASET})
