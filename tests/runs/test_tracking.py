"""The record of a run in a tracking store of MLflow: what is sent, and what happens where it cannot be."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from conftest import Project
from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.runs.tracking import Tracking, TrackingError, store_of

NOBODY = "http://bob:secret@127.0.0.1:9"
"""An address where nothing listens."""


def runs_of(project: Project) -> list[str]:
    return (project.outputs / "08_reporting" / "runs.jsonl").read_text().splitlines()


@pytest.mark.parametrize("settings", [None, {}, {"mlflow": None}])
def test_nothing_is_sent_unless_asked(settings: Any, tmp_path: Path) -> None:
    assert store_of(settings, tmp_path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"mlflow": True}, {"mlflow": ""}, {"mlflow": 3}, {"wandb": "local"}])
def test_other_settings_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tracking(.|\n)*the address of a tracking store"):
        store_of(settings, tmp_path)


def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrackingError, match=r"needs the extra 'mlflow'.*pip install") as found:
        Tracking(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, "tiny")
    assert "\n" not in str(found.value)


def test_a_run_that_cannot_be_tracked_does_not_begin(few_models: Project) -> None:
    before, runs = few_models.files(), runs_of(few_models)
    result = few_models.run("--params", f"study.seed=5,tracking.mlflow={NOBODY}")
    assert result.returncode != 0
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert "nothing was run" in line
    assert "Traceback" not in result.stderr
    assert "secret" not in result.stderr
    assert few_models.files() == before
    assert runs_of(few_models) == runs


def test_a_run_is_in_the_local_store(few_models_to_change: Project) -> None:
    result = few_models_to_change.run("--params", "tracking.mlflow=local", fresh=True)
    assert result.returncode == 0, result.stderr
    folder = few_models_to_change.outputs / "08_reporting" / "mlflow"
    record = json.loads(runs_of(few_models_to_change)[-1])
    with sqlite3.connect(folder / "mlflow.db") as store:
        names = store.execute("select r.name, r.status, e.name from runs r join experiments e using (experiment_id)")
        assert names.fetchall() == [(record["run"], "FINISHED", "tiny")]
        params = dict(store.execute("select key, value from params"))
        values = dict(store.execute("select key, value from metrics"))
    assert params["splits.seed"] == "42"
    assert params["version.numpy"] == record["packages"]["numpy"]
    assert values["nodes reused"] == len(record["reused_from_run"]) > 0
    headline = pd.read_csv(few_models_to_change.outputs / "08_reporting" / "headline.csv").set_index("model")
    assert values["random/ease/watch ndcg at 10"] == headline.loc["ease", "watch ndcg@10"]
    (file,) = folder.rglob("run.json")
    assert json.loads(file.read_text()) == record
    # Nothing is written beside the outputs, and the address is no part of the record.
    assert not [path for path in few_models_to_change.folder.iterdir() if "mlruns" in path.name]
    assert record["params"] == {}
    # Nothing of it is a reason to run a node again.
    assert record["seconds_per_node"] == {}


def test_a_store_that_breaks_during_a_run_leaves_the_outputs(tmp_path: Path) -> None:
    store = store_of({"mlflow": "local"}, tmp_path)
    assert store is not None
    tracking = Tracking(store, tmp_path, "tiny")
    with sqlite3.connect(tmp_path / "08_reporting" / "mlflow" / "mlflow.db") as database:
        database.execute("drop table runs")
    record = dict.fromkeys(("run", "environment", "git_commit", "pipeline"), "one")
    record |= {"packages": {}, "seconds": 1.0, "seconds_per_node": {}, "reused_from_run": {}}  # type: ignore[dict-item]
    with pytest.raises(TrackingError, match=r"outputs and runs\.jsonl are whole") as found:
        tracking.send(record, {}, None)
    assert "\n" not in str(found.value)
