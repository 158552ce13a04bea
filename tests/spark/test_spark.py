"""The study on a real Spark: the same tables, the same learning curves, the same lists as without it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil
import pytest

from conftest import Project, made_once

pyspark = pytest.importorskip("pyspark", reason="PySpark, the extra 'spark', is not installed")
pytestmark = pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java, which is not on this machine")

QUICK = {
    # Small queries: what costs is to start and to compile them.
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.executor.memory": "512m",
    "spark.driver.memory": "512m",
}
TABLES = [
    "03_primary/interactions",
    "03_primary/users",
    "03_primary/items",
    "03_primary/labelled_interactions",
    "03_primary/splits",
    "04_feature/user_vocabulary",
    "04_feature/user_features",
    "04_feature/item_vocabulary",
    "04_feature/item_features",
    "04_feature/behaviour_sequences",
    "05_model_input/validation_rows",
    "05_model_input/test_pairs",
    "05_model_input/test_labels",
]
MODEL = "shared_bottom"
NODE = f"recommender.multi_task.{MODEL}"
TOLERANCE = 1e-5
"""Largest difference of losses, over the largest loss, that comes from another order of summation."""


def on_spark(project: Project, **settings: object) -> Project:
    """The project, which runs on Spark from now on."""

    def change(parameters: dict) -> None:
        parameters["engine"] = "spark"
        parameters["spark"] = {"config": QUICK, **settings}
        parameters["study"]["models"] = MODEL

    return project.configure(change)


def curve(project: Project) -> pd.DataFrame:
    return pd.read_csv(project.outputs / "06_models" / MODEL / "learning_curve.csv")


def lists(project: Project) -> pd.DataFrame:
    return pd.read_parquet(project.outputs / "07_model_output" / MODEL / "recommendations.parquet")


def assert_same_training(one: Project, other: Project) -> None:
    """Learning curves are equal up to the order of summation, and lists up to the last digits of scores."""
    own, others = curve(one), curve(other)
    pd.testing.assert_frame_equal(own.drop(columns="value"), others.drop(columns="value"))
    assert (own["value"] - others["value"]).abs().max() < TOLERANCE * own["value"].abs().max()
    own, others = lists(one), lists(other)
    pd.testing.assert_frame_equal(own.drop(columns="score"), others.drop(columns="score"))
    assert (own["score"] - others["score"]).abs().max() < TOLERANCE * own["score"].abs().max()


@pytest.fixture(scope="session")
def local_study(tmp_path_factory: pytest.TempPathFactory, finished_project: Project) -> Project:
    """Tables, a training by two processes, and lists on two threads of this machine."""

    def without_tables(project: Project) -> Project:
        # What does not depend on the engine is reused, and the tables are gone.
        shutil.copytree(finished_project.outputs, project.outputs)
        for table in TABLES:
            (project.outputs / f"{table}.parquet").unlink()
        (project.outputs / "08_reporting" / "runs.jsonl").unlink()
        return on_spark(project, master="local[2]", num_processes=2)

    goal = f"{NODE}.recommend"
    return made_once(tmp_path_factory, "local_spark", "--to-nodes", goal, prepare=without_tables)


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_equal_row_for_row(local_study: Project, finished_project: Project, table: str) -> None:
    own, others = (pd.read_parquet(one.outputs / f"{table}.parquet") for one in (local_study, finished_project))
    pd.testing.assert_frame_equal(own, others, check_exact=True)
    assert len(own)


def test_reports_on_the_data_are_equal(local_study: Project, finished_project: Project) -> None:
    name = "08_reporting/dropped_rows.csv"
    assert (local_study.outputs / name).read_bytes() == (finished_project.outputs / name).read_bytes()


def test_two_processes_learn_what_one_does(local_study: Project, finished_project: Project) -> None:
    assert_same_training(local_study, finished_project)


def test_every_node_runs_once(local_study: Project) -> None:
    """Launchers that start the script again in every process would run the pipeline again."""
    records = (local_study.outputs / "08_reporting" / "runs.jsonl").read_text().splitlines()
    assert len(records) == 1
    assert f"{NODE}.fit" in json.loads(records[0])["seconds_per_node"]


def test_duckdb_goes_on_from_what_spark_wrote(local_study: Project, tmp_path: Path) -> None:
    """Tables are the same whoever makes them, so that nothing of them is made again."""
    project = Project(tmp_path)
    shutil.copytree(local_study.outputs, project.outputs)
    result = project.run("--to-nodes", "data_engineering.separate_parts", "--params", f"study.models={MODEL}")
    assert result.returncode == 0, result.stderr
    assert "Reusing the outputs of" in result.stdout + result.stderr
    before, after = local_study.files(), project.files()
    assert [name for name in TABLES if after[f"{name}.parquet"] != before[f"{name}.parquet"]] == []


class Cluster:
    """A standalone master and two workers of one core each on this machine, as processes of this test."""

    def __init__(self, folder: Path) -> None:
        home = Path(pyspark.__file__).parent
        self._command = str(home / "bin" / "spark-class")
        self._environment = {
            **os.environ,
            "SPARK_HOME": str(home),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_DAEMON_JAVA_OPTS": QUICK["spark.driver.extraJavaOptions"],
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.master = f"spark://127.0.0.1:{port}"
        ports = ["--host", "127.0.0.1", "--webui-port", "0"]
        self._processes = [self._start("master", "Master", *ports, "--port", str(port))]
        self._wait(lambda: socket.create_connection(("127.0.0.1", port), 1).close())
        for number in range(2):
            given = ["--cores", "1", "--memory", "600m", "--work-dir", str(folder / f"work_{number}")]
            self._processes.append(self._start(f"worker_{number}", "Worker", *ports, *given, self.master))

    def _start(self, name: str, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [self._command, f"org.apache.spark.deploy.{kind.lower()}.{kind}", *arguments]
        with (self._folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)

    def _wait(self, attempt) -> None:
        for _ in range(600):
            try:
                return attempt()
            except OSError:
                time.sleep(0.1)
        raise TimeoutError((self._folder / "master.log").read_text())

    def executors(self) -> list[psutil.Process]:
        """The executors that the workers have started."""
        found = [own for one in self._processes[1:] for own in psutil.Process(one.pid).children(recursive=True)]
        return [own for own in found if "CoarseGrainedExecutorBackend" in _command(own)]

    def stop(self) -> None:
        for one in self._processes:
            for own in psutil.Process(one.pid).children(recursive=True):
                own.kill()
            one.kill()
            one.wait()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # It has ended meanwhile.
        return ""


@contextmanager
def cluster_of_two(folder: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        cluster.stop()


def test_cluster_of_two_workers_and_one_that_dies(finished_project: Project, tmp_path: Path) -> None:
    """By configuration alone; a training whose executor is killed begins again, and ends as if nothing had been."""
    (tmp_path / "cluster").mkdir()
    shared = tmp_path / "shared"
    with cluster_of_two(tmp_path / "cluster") as cluster:
        project = on_spark(
            Project(tmp_path / "project"), master=cluster.master, num_processes=2, shared_folder=str(shared)
        )
        shutil.copytree(finished_project.outputs, project.outputs)
        before = project.files()
        for name in ("weights.safetensors", "learning_curve.csv"):
            (project.outputs / "06_models" / MODEL / name).unlink()
        results = []
        run = threading.Thread(target=lambda: results.append(project.run("--nodes", f"{NODE}.fit,{NODE}.recommend")))
        run.start()
        begun: list[Path] = []
        while run.is_alive() and not begun:
            begun = list(shared.glob("*/begun"))
            time.sleep(0.01)
        if run.is_alive():
            cluster.executors()[0].kill()
        run.join()
        (result,) = results
        assert result.returncode == 0, result.stderr[-3000:]
        assert "begins again" in result.stdout + result.stderr
        assert_same_training(project, finished_project)
        touched = {f"06_models/{MODEL}/", f"07_model_output/{MODEL}/"}
        kept = {name: own for name, own in before.items() if not any(name.startswith(place) for place in touched)}
        after = project.files()
        assert kept == {name: after[name] for name in kept}
        assert not list(shared.glob("*/share_*"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"master": "spark://127.0.0.1:1"}, "No Spark master answers at 'spark://127.0.0.1:1'"),
        ({"master": "local[1]", "num_processes": 2}, "write 'spark.master: local[2]', or fewer processes"),
        ({"masters": "local[2]"}, "spark.masters: Extra inputs are not permitted"),
    ],
)
def test_what_keeps_spark_from_starting_is_said(project: Project, settings: dict, said: str) -> None:
    result = on_spark(project, **settings).run("--pipelines", "data_engineering")
    assert result.returncode != 0
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(project.outputs.rglob("*.parquet"))


def test_without_java_it_is_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project.folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    result = on_spark(project).run("--pipelines", "data_engineering")
    assert result.returncode != 0
    assert "Spark needs Java" in result.stderr
    assert "Traceback" not in result.stderr
