"""Tomorrow's log: new events are answered without training, and the report says when to train again."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from conftest import Project
from multitask_recommender import load_recommender

HEADING = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


@pytest.fixture
def tomorrow(project: Project, finished_project: Project) -> Project:
    shutil.copytree(finished_project.outputs, project.outputs, dirs_exist_ok=True)
    return project


def run(project: Project, *lines: str, options: tuple[str, ...] = ()) -> tuple[pd.DataFrame, pd.Series]:
    (project.raw / "new_interactions.tsv").write_text(HEADING + "".join(f"{line}\n" for line in lines))
    result = project.run("--pipelines", "recommend", *options)
    assert result.returncode == 0, result.stderr
    lists = pd.read_parquet(project.outputs / "07_model_output" / "new_recommendations.parquet")
    report = pd.read_csv(project.outputs / "08_reporting" / "update_report.csv").set_index("what")["value"]
    return lists, report


def test_new_events(tomorrow: Project) -> None:
    lists, report = run(
        tomorrow,
        "42\t1\t5\t900000002",
        "42\t2\t1\t900000001",
        "new\t3\t4\t900000003",
        "new\t10\t2\t900000004",
        "new\tunknown\t2\t900000005",
        "other\tunknown\t2\t900000006",
        options=("--params", "study.recommend_with=shared_bottom"),
    )
    assert set(lists["user_id"]) == {"42", "new"}
    recommender = load_recommender(tomorrow.outputs, model="shared_bottom")
    for (user_id, task), own in lists.groupby(["user_id", "task"]):
        history = [("2", 1), ("1", 5)] if user_id == "42" else [("3", 4), ("10", 2)]
        expected = recommender.recommend(user_id=user_id, history=history, task=task)
        assert own["item_id"].tolist() == expected["item_id"].tolist()
        assert own["rank"].tolist() == expected["rank"].tolist()
    assert report["model"] == "shared_bottom"
    assert report["events"] == "6"
    assert report["events left out: on unknown items"] == "2"
    assert report["users the training knew"] == "1"
    assert report["users it did not know"] == "2"
    assert float(report["share of events of unknown users"]) == pytest.approx(4 / 6, abs=1e-4)
    assert report["advice"].startswith("train again: 67%")


def test_a_report_without_reason_to_train_again(tomorrow: Project) -> None:
    lists, report = run(tomorrow, "42\t1\t5\t900000002", "7\t2\t1\t900000001")
    assert report["advice"] == "no need to train again yet"
    assert set(lists["task"]) == {"watch", "like", "rating"}


def test_faults_name_the_file(tomorrow: Project) -> None:
    (tomorrow.raw / "new_interactions.tsv").write_text(HEADING + "42\t1\t9\t900000002\n")
    result = tomorrow.run("--pipelines", "recommend")
    assert result.returncode != 0
    assert "'rating' must be a number from 1 to 5" in result.stderr
    assert "new_interactions.tsv" in result.stderr
    (tomorrow.raw / "new_interactions.tsv").unlink()
    assert "raw_new_interactions" in tomorrow.run("--pipelines", "recommend").stderr


def test_other_tasks_than_those_of_the_training(tomorrow: Project) -> None:
    (tomorrow.raw / "new_interactions.tsv").write_text(HEADING + "42\t1\t4\t900000002\n")
    result = tomorrow.run("--pipelines", "recommend", "--params", "dataset.tasks.like.label=rating >= 3")
    assert result.returncode != 0
    assert "tasks.like.label" in result.stderr
