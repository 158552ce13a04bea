"""What the tests share: small study inputs, a copy of the project to run in, and tables made in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from multitask_recommender import load_recommender
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.queries import Histories, Queries
from multitask_recommender.data.tasks import Task
from multitask_recommender.use.recommender import LoadedRecommender

ROOT = Path(__file__).parents[1]

TASKS = {
    "watch": Task(kind="retrieval"),
    "like": Task(kind="binary", label="rating >= 4"),
    "rating": Task(kind="regression", label="rating", relevant="rating >= 4"),
}


def make_interactions(users: int, items: int, rows_per_user: int, seed: int, folds: int = 3) -> Interactions:
    """Interactions with ratings that follow two factors, sorted by user."""
    random = np.random.default_rng(seed)
    taste, vector = random.normal(size=(users, 2)), random.normal(size=(items, 2))
    user = np.repeat(np.arange(users), rows_per_user)
    score = taste @ vector.T + random.gumbel(size=(users, items))
    item = np.argsort(-score, axis=1)[:, :rows_per_user].ravel()
    rating = np.clip(np.rint(3.5 + (taste[user] * vector[item]).sum(1)), 1, 5).astype(np.float32)
    return Interactions(
        user=user,
        item=item,
        labels={
            "watch": np.ones(len(user), np.float32),
            "like": (rating >= 4).astype(np.float32),
            "rating": rating,
        },
        relevant={"watch": np.ones(len(user), bool), "like": rating >= 4, "rating": rating >= 4},
        fold=random.integers(0, folds, len(user)),
    )


class FixedProjection:
    """A user encoder that sums fixed vectors of the items in a history."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self.dimension = vectors, vectors.shape[1]

    def encode(self, queries: Queries) -> np.ndarray:
        rows = queries.history
        weight = np.ones(len(rows), np.float32) if rows.weight is None else rows.weight
        shape = (len(queries), len(self.vectors))
        return sparse.csr_matrix((weight, (rows.user, rows.item)), shape=shape) @ self.vectors


def everyone(rows: Interactions, side: SideInformation) -> Queries:
    """Ask about all users with their training rows."""
    return Histories(rows, side.user_features).of(np.arange(side.users))


def make_side(users: int, items: int, seed: int = 0) -> SideInformation:
    random = np.random.default_rng(seed)
    return SideInformation(
        tasks=TASKS,
        users=users,
        items=items,
        user_features=sparse.csr_matrix(np.eye(3, dtype=np.float32)[random.integers(0, 3, users)]),
        item_features=sparse.csr_matrix(np.eye(4, dtype=np.float32)[random.integers(0, 4, items)]),
        user_encoder=FixedProjection(random.normal(size=(items, 5)).astype(np.float32)),
    )


@pytest.fixture
def rows() -> Interactions:
    return make_interactions(users=40, items=30, rows_per_user=8, seed=1)


@pytest.fixture
def side() -> SideInformation:
    return make_side(users=40, items=30)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a text into a file of the test's folder and returns its path."""

    def write_file(text: str, name: str = "table.csv", encoding: str = "utf-8") -> str:
        (tmp_path / name).write_bytes(text.encode(encoding))
        return (tmp_path / name).as_posix()

    return write_file


class Project:
    """A copy of the project's configuration and tiny data in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("conf", "notebooks", "tests/data"):
            shutil.copytree(ROOT / name, folder / name)
        for name in ("pyproject.toml", ".telemetry"):
            shutil.copy(ROOT / name, folder)
        (folder / "src").mkdir()  # The package itself is the installed one.

    @property
    def raw(self) -> Path:
        return self.folder / "tests" / "data" / "tiny_study"

    @property
    def outputs(self) -> Path:
        return self.folder / "data" / "test"

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kedro", "run", "--env", "test", *options]
        environment = {**os.environ, "KEDRO_DISABLE_TELEMETRY": "1"}
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=environment, check=False)

    def files(self) -> dict[str, bytes]:
        """Contents of all outputs save those that hold times."""
        timed = {"runs.jsonl", "costs.csv", "fit_costs.json", "predict_costs.json", "cost.png"}
        return {
            str(path.relative_to(self.outputs)): path.read_bytes()
            for path in sorted(self.outputs.rglob("*"))
            if path.is_file() and path.name not in timed
        }

    def edit(self, table: str, change: object) -> None:
        """Rewrite a raw table: ``change`` maps its text to a new text."""
        path = self.raw / f"{table}.tsv"
        path.write_text(change(path.read_text()))  # type: ignore[operator]

    def shuffle_test_labels(self, split: str) -> None:
        """Permute the raw ratings among the test rows of a split of the last run."""
        splits = pd.read_parquet(self.outputs / "03_primary" / "splits.parquet")
        test = splits.loc[(splits["split"] == split) & (splits["part"] == "test"), "row"].to_numpy()
        path = self.raw / "interactions.tsv"
        table = pd.read_csv(path, sep="\t", dtype=str)
        rating = table["rating:float"].to_numpy().copy()
        rating[test] = np.roll(rating[test], 1)
        table["rating:float"] = rating
        table.to_csv(path, sep="\t", index=False)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="session")
def every_model(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny study with all models after one whole run; tests that use it must not change it."""
    project = Project(tmp_path_factory.mktemp("every_model"))
    result = project.run("--params", "study.quick=false")
    assert result.returncode == 0, result.stderr
    return project


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny study after one whole run; tests that use it must not change it."""
    project = Project(tmp_path_factory.mktemp("study"))
    result = project.run()
    assert result.returncode == 0, result.stderr
    return project


@pytest.fixture(scope="session")
def shared_bottom(finished_project: Project) -> LoadedRecommender:
    """The multi-task model of the finished study, to ask."""
    return load_recommender(finished_project.outputs, model="shared_bottom")


@pytest.fixture(scope="session")
def events(finished_project: Project) -> pd.DataFrame:
    """The raw interactions of the tiny study in the order of time: user_id, item_id, rating."""
    table = pd.read_csv(finished_project.raw / "interactions.tsv", sep="\t", dtype=str)
    table.columns = [name.split(":")[0] for name in table.columns]
    table["rating"] = table["rating"].astype(float)
    return table.assign(time=table["timestamp"].astype(float)).sort_values(["time", "item_id"])


@pytest.fixture
def outputs(finished_project: Project, tmp_path: Path) -> Path:
    """A copy of the outputs of the finished study that a test may damage."""
    return Path(shutil.copytree(finished_project.outputs, tmp_path / "data"))
