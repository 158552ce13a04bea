"""The study on tables in memory."""

from __future__ import annotations

import copy
from datetime import date
from typing import Any

import pandas as pd
import pytest
import yaml

import multitask_recommender
from commands import empty
from conftest import ROOT
from multitask_recommender.datasets import FigureFile
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


@pytest.fixture(autouse=True)
def without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, and what is saved is empty: nothing here looks at one."""
    monkeypatch.setattr(FigureFile, "save", empty(FigureFile.save))


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


def few(models: list[str], **changed: Any) -> dict[str, Any]:
    tiny = yaml.safe_load((ROOT / "conf/test/parameters.yml").read_text())
    return copy.deepcopy({**tiny, "dataset": DATASET, "study": {**tiny["study"], "models": models}, **changed})


def test_a_study_of_frames() -> None:
    models = ["popularity", "ease", "single_task", "shared_bottom"]
    interactions, users, items = tables()
    found = multitask_recommender.study(interactions, users, items, few(models))
    assert set(found.metrics["model"]) == set(found.recommendations) == set(models)
    assert set(found.comparisons["control"]) == set(models) - {"shared_bottom"}
    assert list(found.headline["model"]) == models
    lists = found.recommendations["shared_bottom"]
    assert set(lists["user_id"]) == set(users["user"].astype(str))
    assert lists["title"].str.startswith("Film ").all()
    assert found.dropped_rows.empty
    assert len(found.left_out)
    assert "model mmoe" in set(found.left_out_models["what"])


def test_a_task_without_test_labels_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    interactions, users, items = tables()
    interactions["rating"] = interactions["rating"].where(interactions["time"] < interactions["time"].quantile(0.79))
    description = few(["popularity", "item_mean"], splits={"strategies": ["temporal"], "folds": 2})
    description["dataset"]["interactions"]["signals"]["rating"]["optional"] = True
    # An index with a name is a column; what is no text in YAML may be an object here.
    users["born"] = pd.Timestamp("1990-05-01")
    age = {"kind": "date", "column": "born", "formats": ["%Y-%m-%d %H:%M:%S"], "of_date": "age"}
    description["dataset"]["users"]["features"]["age"] = {**age, "reference": date(2026, 1, 31)}
    found = multitask_recommender.study(interactions.set_index(["user", "item"]), users, items, description)
    assert list(found.headline["model"]) == ["popularity"]
    assert "task like on the temporal split" in set(found.left_out["what"])
    said = found.left_out_models.set_index("what")["reason"]
    assert said["model item_mean"] == "the tasks that it predicts have no test rows with a label"
    assert not capsys.readouterr().out


def test_faults_of_frames_are_one_clear_message() -> None:
    interactions, users, items = tables()
    with pytest.raises(StudyError, match="not a DataFrame"):
        multitask_recommender.study(interactions.to_dict("list"), users, items, {"dataset": DATASET})
    with pytest.raises(StudyError, match="'description'"):
        multitask_recommender.study(interactions, users, items)
    with pytest.raises(StudyError, match="raw_users"):
        multitask_recommender.study(interactions, users.assign(user=[1, *["u"] * 99]), items, {"dataset": DATASET})
    interactions.loc[3, "rating"] = 11
    with pytest.raises(StudyError, match="'11") as error:
        multitask_recommender.study(interactions, users, items, {"dataset": DATASET})
    assert ".parquet" not in str(error.value)
