"""Runs that are killed, told to end, or started twice: nothing is lost, torn or left behind."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from commands import start_kedro
from conftest import Project, with_few_models
from multitask_recommender.foundation import jobs
from multitask_recommender.foundation.errors import StudyError
from multitask_recommender.foundation.kept_values import NotPlainError, read_values, write_values
from multitask_recommender.runs.reuse import Reuse

ENVIRONMENT = {**os.environ, "KEDRO_DISABLE_TELEMETRY": "1"}
KILLS = 20


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(few_models: Project, tmp_path: Path) -> None:
    project = with_few_models(Project(tmp_path / "killed"))
    moments = random.Random(5)
    streams = [tmp_path / name for name in ("stdout", "stderr")]
    kills = 0
    while kills < KILLS:
        process = start_kedro(["run", "--env", "test"], project.folder, ENVIRONMENT, streams)
        # The clock starts when the run does: how long Python takes to begin is not its matter.
        while process.is_alive() and "INFO" not in (streams[1].read_text() if streams[1].exists() else ""):
            time.sleep(0.02)
        process.join(moments.uniform(0.0, 1.2))
        if not process.is_alive():
            # It was finished before it could be killed, and begins anew.
            assert process.exitcode == 0, streams[1].read_text()
            assert project.files() == few_models.files()
            shutil.rmtree(project.outputs)
        else:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        streams[1].unlink(missing_ok=True)
    result = project.run()
    assert result.returncode == 0, result.stderr
    assert project.files() == few_models.files()
    assert not list(project.outputs.rglob(".partial*"))
    unfinished = project.outputs / ".provenance" / "unfinished"
    assert not unfinished.exists() or not list(unfinished.iterdir())


@pytest.fixture
def long_training(few_models_to_change: Project) -> Project:
    """A study that has come as far as to a training that does not end."""

    def change(parameters: dict[str, Any]) -> None:
        settings = {"training": {"epochs": 100_000, "batches": 2}}
        parameters["models"]["shared_bottom"] = {**parameters["models"]["shared_bottom"], "settings": settings}

    return few_models_to_change.configure(change)


def start(project: Project, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kedro", "run", "--env", "test", *options]
    return subprocess.Popen(command, cwd=project.folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def works(process: psutil.Process) -> bool:
    try:
        return any("LokyProcess" in part for part in process.cmdline())
    except psutil.NoSuchProcess:  # What a library asks for as it is imported may have ended meanwhile.
        return False


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait for the processes that work for a run."""
    for _ in range(600):
        found = [child for child in psutil.Process(process.pid).children(recursive=True) if works(child)]
        if len(found) >= 2:
            return found
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.1)
    raise AssertionError("no processes were started")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_a_run(long_training: Project, number: signal.Signals) -> None:
    process = start(long_training, "--params", "cross_validation.workers=2")
    workers = workers_of(process)
    every = psutil.Process(process.pid).children(recursive=True)
    if number == signal.SIGTERM:
        # Another run is refused meanwhile, by the number of the process.
        second = long_training.run()
        assert second.returncode != 0
        assert f"process {process.pid}" in second.stderr
        assert "Traceback" not in second.stderr
    process.send_signal(number)
    process.wait(60)
    gone, alive = psutil.wait_procs(every, timeout=30)
    assert not alive
    assert len(gone) >= len(workers)
    assert process.stderr is not None
    said = process.stderr.read()
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert f"Stopped by {number.name}" in said
    assert not list(Path("/dev/shm").glob(f"*loky-{process.pid}-*"))


def test_a_run_ends_in_the_middle_of_a_computation_that_hears_no_signal(few_models_to_change: Project) -> None:
    (few_models_to_change.folder / "src" / "long.py").write_text(
        "import hashlib\n"
        "from kedro.framework.hooks import hook_impl\n"
        "class Long:\n"
        "    @hook_impl(trylast=True)\n"
        "    def before_node_run(self):\n"
        "        print('computing', flush=True)\n"
        "        hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"
    )
    command = "import sys; sys.path.insert(0, 'src'); import long; from multitask_recommender import settings\n"
    command += "settings.HOOKS += (long.Long(),); from kedro.framework.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "run", "--env", "test", "--params", "study.seed=3"],
        cwd=few_models_to_change.folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "computing" in line:
            break
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM" in said
    assert "Traceback" not in said
    assert few_models_to_change.run().returncode == 0


def test_a_worker_that_is_killed_ends_the_run_with_a_message(long_training: Project) -> None:
    process = start(long_training, "--params", "cross_validation.workers=2")
    workers_of(process)[0].kill()
    assert process.wait(120) != 0
    assert process.stderr is not None
    said = process.stderr.read()
    assert "A process of the run was killed" in said
    assert "Traceback" not in said
    assert "cross_validation.workers=1" in said


def test_finished_jobs_are_not_done_again(tmp_path: Path) -> None:
    done: list[int] = []

    def job(number: int) -> dict[str, float]:
        if number == 3 and len(done) < 4:
            raise StudyError("stopped")
        done.append(number)
        return {"a number": number / 3}

    try:
        jobs.keep_results(tmp_path / "kept")
        with pytest.raises(StudyError):
            jobs.run_jobs(job, range(5), 1, "jobs")
        done.append(-1)
        jobs.keep_results(tmp_path / "kept")
        assert jobs.run_jobs(job, range(5), 1, "jobs") == [{"a number": number / 3} for number in range(5)]
        assert done == [0, 1, 2, -1, 3, 4]
        # A run that failed has said that no more is kept: what this process does next is its own.
        Reuse().on_pipeline_error()
        assert jobs.run_jobs(job, range(5), 1, "other jobs") == [{"a number": number / 3} for number in range(5)]
        assert done == [0, 1, 2, -1, 3, 4, 0, 1, 2, 3, 4]
    finally:
        jobs.keep_results(None)


def test_the_longest_jobs_begin_first(tmp_path: Path) -> None:
    done: list[int] = []

    def job(number: int) -> dict[str, int]:
        if number == 2 and len(done) < 3:
            raise StudyError("stopped")
        done.append(number)
        return {"a number": number}

    try:
        jobs.keep_results(tmp_path / "kept")
        with pytest.raises(StudyError):
            jobs.run_jobs(job, range(4), 1, "jobs", [1.0, 4.0, 2.0, 4.0])
        done.append(-1)
        # What is kept goes by the numbers of the jobs, whatever their order.
        jobs.keep_results(tmp_path / "kept")
        assert jobs.run_jobs(job, range(4), 1, "jobs", [1.0, 4.0, 2.0, 4.0]) == [{"a number": n} for n in range(4)]
        assert done == [1, 3, -1, 2, 0]
    finally:
        jobs.keep_results(None)


def test_what_a_process_has_imported_is_not_searched_for_garbage() -> None:
    assert all(jobs.run_jobs(lambda _: gc.get_freeze_count() > 10_000, range(3), 2, "jobs"))
    assert not jobs.run_jobs(lambda _: gc.get_freeze_count(), [0], 1, "jobs")[0]


def test_processes_that_work_keep_memory_and_nobody_else_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    jobs.stop_workers()
    told = jobs.run_jobs(os.environ.get, ["GLIBC_TUNABLES"] * 2, 2, "jobs")
    assert ["hugetlb=1" in (own or "") for own in told] == [True, True]
    assert "GLIBC_TUNABLES" not in os.environ
    # What somebody has set stays.
    jobs.stop_workers()
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    assert jobs.run_jobs(os.environ.get, ["GLIBC_TUNABLES"] * 2, 2, "jobs") == ["glibc.malloc.check=0"] * 2
    jobs.stop_workers()


def test_nothing_is_said_of_a_process_that_is_replaced_between_two_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """joblib warns of a process that it replaces because it has grown; that one cannot be made to grow on time."""

    def replace_one(tasks: Iterator[Any]) -> Iterator[int]:
        for number, _ in enumerate(tasks):
            warnings.warn(
                "A worker stopped while some jobs were given to the executor. This can be caused by a too short worker "
                "timeout or by a memory leak.",
                UserWarning,
                stacklevel=1,
            )
            warnings.warn("another matter", UserWarning, stacklevel=1)
            yield number

    monkeypatch.setattr(jobs, "Parallel", lambda **options: replace_one)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert jobs.run_jobs(abs, [1, 2], 2, "jobs") == [0, 1]
    assert [str(one.message) for one in said] == ["another matter"] * 2


def test_kept_values_are_the_same(tmp_path: Path) -> None:
    import numpy as np

    value = {
        "tree": [{"a": 0.1 + 0.2, "b": float("inf")}, (1, None, True, "text")],
        "arrays": (np.arange(6, dtype=np.float32).reshape(2, 3).T, np.array(3), np.float32(0.1), np.zeros((0, 2))),
        "empty": {},
    }
    write_values(tmp_path / "values", value)
    found = read_values(tmp_path / "values")
    assert repr(found) == repr(value)
    assert [type(one) for one in found["arrays"]] == [type(one) for one in value["arrays"]]
    for wrong in ({1: 2}, {1, 2}, [object()], np.array(["text"])):
        with pytest.raises(NotPlainError):
            write_values(tmp_path / "wrong", wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["values"]
    (tmp_path / "damaged").write_bytes((tmp_path / "values").read_bytes()[:20])
    with pytest.raises(OSError, match="damaged"):
        read_values(tmp_path / "damaged")
