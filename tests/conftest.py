"""What the tests share: small study inputs, a copy of the project to run in, and tables made in memory."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import sparse

from commands import run_kedro
from multitask_recommender import load_recommender
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.queries import Histories, Queries
from multitask_recommender.data.tasks import Task
from multitask_recommender.foundation.jobs import single_threaded
from multitask_recommender.use.recommender import LoadedRecommender

ROOT = Path(__file__).parents[1]

# The cores are for several processes of tests: the threads of one small fit would only wait for each other.
single_threaded()


@pytest.hookimpl(optionalhook=True)  # Mutation testing does without xdist.
def pytest_xdist_auto_num_workers() -> int:
    """Half as many processes of tests again as there are cores, at most 4: they often wait for a kernel, a browser, Java."""
    return max(min(3 * (os.cpu_count() or 1) // 2, 4), 1)


_IN_MEMORY, _ROOM = Path("/dev/shm"), 2**33
"""Where the tests write, and how many bytes must be free there: a run makes some hundred small files, and to make those
on a disk takes a tenth of a tiny run."""


def pytest_configure() -> None:
    """Let the folders of the tests be in memory, where there is much of it."""
    if os.access(_IN_MEMORY, os.W_OK) and shutil.disk_usage(_IN_MEMORY).free > _ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_IN_MEMORY))


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

    @classmethod
    def at(cls, folder: Path) -> Project:
        """A copy that is there already."""
        project = cls.__new__(cls)
        project.folder = folder
        return project

    @property
    def raw(self) -> Path:
        return self.folder / "tests" / "data" / "tiny_study"

    @property
    def outputs(self) -> Path:
        return self.folder / "data" / "test"

    def run(self, *options: str, fresh: bool = False, pictures: bool = False) -> subprocess.CompletedProcess[str]:
        """Run ``kedro run``; fresh in a Python of its own, with another order of sets, otherwise in a fork of one.

        A fresh run draws its figures in any case, see ``commands.py``.
        """
        arguments = ["run", "--env", "test", *options]
        environment = {**os.environ, "KEDRO_DISABLE_TELEMETRY": "1"}
        if not fresh:
            return run_kedro(arguments, self.folder, environment, pictures)
        command = [sys.executable, "-m", "kedro", *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=environment, check=False)

    def files(self) -> dict[str, bytes]:
        """Contents of all outputs save those that hold times."""
        timed = {"runs.jsonl", "costs.csv", "fit_costs.json", "predict_costs.json", "cost.png", "cost.svg"}
        return {
            str(path.relative_to(self.outputs)): path.read_bytes()
            for path in sorted(self.outputs.rglob("*"))
            if path.is_file() and path.name not in timed and path.relative_to(self.outputs).parts[0] != ".provenance"
        }

    def edit(self, table: str, change: object) -> None:
        """Rewrite a raw table: ``change`` maps its text to a new text."""
        path = self.raw / f"{table}.tsv"
        path.write_text(change(path.read_text()))  # type: ignore[operator]

    def configure(self, change: Callable[[dict[str, Any]], None]) -> Project:
        """Rewrite the parameters of the tests: ``change`` changes what was read."""
        path = self.folder / "conf" / "test" / "parameters.yml"
        parameters = yaml.safe_load(path.read_text())
        change(parameters)
        path.write_text(yaml.safe_dump(parameters, sort_keys=False))
        return self

    def shuffle_test_labels(self, split: str, divided: Project) -> None:
        """Permute the raw ratings among the test rows of a split, of which a run of the same project tells."""
        splits = pd.read_parquet(divided.outputs / "03_primary" / "splits.parquet")
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


OTHER_SPLITS = ["chronological", "temporal", "cold_items"]


def with_other_splits(project: Project) -> Project:
    """The project, which divides its rows otherwise than by chance from now on."""
    return project.configure(lambda parameters: parameters["splits"].update(strategies=OTHER_SPLITS))


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of the processes of the tests makes for all of them."""
    own = factory.getbasetemp()
    place = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, finished = place / name, place / f"{name}.finished"
    with (place / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            finished.touch()
    return folder


def made_once(
    factory: pytest.TempPathFactory,
    name: str,
    *options: str,
    prepare: Callable[[Project], Project] = lambda project: project,
    fresh: bool = False,
    pictures: bool = False,
) -> Project:
    """The tiny study after one run, which the first of the processes of the tests makes for all of them."""

    def make(folder: Path) -> None:
        result = prepare(Project(folder)).run(*options, fresh=fresh, pictures=pictures)
        assert result.returncode == 0, result.stderr

    return Project.at(once(factory, name, make))


@pytest.fixture(scope="session")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Project, str], Path]:
    """Executes a notebook on the outputs of a finished project, once for all tests, and returns its file."""

    def execute_once(project: Project, name: str) -> Path:
        def make(folder: Path) -> None:
            command = [sys.executable, ROOT / "notebooks" / "execute.py", project.folder / "notebooks" / name]
            environment = {**os.environ, "KEDRO_ENV": "test"}
            result = subprocess.run([*command, "--to", folder], env=environment, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr

        return once(tmp_path_factory, f"{project.folder.name}_{Path(name).stem}", make) / name

    return execute_once


@pytest.fixture(scope="session")
def every_model(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny study with all models after one whole run; tests that use it must not change it."""
    return made_once(tmp_path_factory, "every_model", "--params", "study.quick=false", pictures=True)


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny study after one whole run; tests that use it must not change it."""
    return made_once(tmp_path_factory, "study", fresh=True)


FEW_MODELS = ["item_mean", "ease", "shared_bottom"]


def with_few_models(project: Project) -> Project:
    """The project, which studies a few models from now on."""
    return project.configure(lambda parameters: parameters["study"].update(models=FEW_MODELS, quick=False))


@pytest.fixture(scope="session")
def few_models(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny study with a few models after one whole run; tests that use it must not change it."""
    return made_once(tmp_path_factory, "few_models", prepare=with_few_models)


@pytest.fixture
def few_models_to_change(few_models: Project, tmp_path: Path) -> Project:
    """A copy of the finished study that a test may change."""
    shutil.copytree(few_models.folder, tmp_path / "copy")
    return Project.at(tmp_path / "copy")


@pytest.fixture(scope="session")
def other_splits(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny study on the other splits after one whole run; tests that use it must not change it."""
    return made_once(tmp_path_factory, "other_splits", prepare=with_other_splits)


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
