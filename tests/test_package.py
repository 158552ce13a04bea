"""The packaged project: a wheel and an archive of the configuration, run in a folder that holds neither."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from conftest import ROOT


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``kedro package`` makes of the project; its wheel is built with the setuptools that is installed."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("packaged")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "conf" / "local" / "credentials.yml").write_text("secret: token\n")
    scripts = folder / "scripts"
    scripts.mkdir()
    # kedro package would build in an environment of its own, which asks a package index.
    (scripts / "sitecustomize.py").write_text(
        "import sys\nif sys.orig_argv[1:3] == ['-m', 'build']:\n    sys.argv = [*sys.argv, '--no-isolation']\n"
    )
    environment = {**os.environ, "KEDRO_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(scripts)}
    command = [sys.executable, "-m", "kedro", "package"]
    made = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    return folder / "dist"


def test_the_archive_of_the_configuration_holds_no_credentials(dist: Path) -> None:
    listed = subprocess.run(
        ["tar", "-tzf", dist / "conf-multitask_recommender.tar.gz"], capture_output=True, text=True, check=True
    ).stdout
    assert "conf/base/catalog_recommender.yml" in listed
    assert "conf/logging.yml" in listed
    assert "credentials" not in listed


def test_the_wheel_runs_in_another_folder(dist: Path, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "elsewhere"
    (wheel,) = dist.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(install, check=True, capture_output=True)
    shutil.copytree(ROOT / "tests" / "data", folder / "tests" / "data")
    environment = {**os.environ, "KEDRO_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(site)}
    asked = [sys.executable, "-c", "import multitask_recommender; print(multitask_recommender.__file__)"]
    found = subprocess.run(asked, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(site))
    command = [sys.executable, "-m", "multitask_recommender", "--env", "test"]
    command += ["--conf-source", str(dist / "conf-multitask_recommender.tar.gz")]
    command += ["--namespaces", "data_engineering,recommender.baselines.ease", "--params", "study.models=ease"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    # It says what the project says in its own folder, and nothing of Kedro's.
    assert "ease: done in" in result.stderr
    assert "Loading data from" not in result.stdout + result.stderr
    lists = pd.read_parquet(folder / "data" / "test" / "07_model_output" / "ease" / "recommendations.parquet")
    asked = [sys.executable, "-m", "multitask_recommender", "recommend", "--data", "data/test", "--model", "ease"]
    asked += ["--user", lists["user_id"].iloc[0], "-n", "3", "--json"]
    answer = subprocess.run(asked, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout
    shown = [json.loads(line)["item_id"] for line in answer.splitlines()]
    assert shown == lists["item_id"].iloc[:3].tolist()
