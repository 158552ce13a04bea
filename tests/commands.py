"""Runs commands of Kedro in forks of one process that has imported what is slow to import.

A command finds what it would find in a process of its own: its arguments, folder, environment and streams; Kedro itself
is imported anew. An error that nobody catches goes through ``sys.excepthook``, as at the end of any Python program.

Drawing is a third of a tiny run. What it saves are empty figures, unless pictures are asked for: figures are made in any
case, and drawn by the runs of the finished study, of all its models, of the sweep and of three overlays.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from multitask_recommender.foundation.jobs import stop_workers

# None of them imports the settings of a project, which Kedro reads from the folder that it starts in.
_IMPORTED = ["multitask_recommender.pipeline_registry", "ibis.backends.duckdb", "scipy.stats"]
_IMPORTED += [f"kedro_datasets.{name}" for name in ("ibis", "json", "matplotlib", "pandas")]
_IMPORTED += ["dynaconf", "omegaconf", "pathspec", "requests"]  # What Kedro and its plugins need.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(_IMPORTED)


def start_kedro(
    arguments: Sequence[str], folder: Path, environment: dict[str, str], streams: Sequence[Path], pictures: bool = False
) -> multiprocessing.process.BaseProcess:
    """Start ``kedro`` with arguments in a folder; what it says goes into two files."""
    process = _FORKS.Process(target=_kedro, args=(list(arguments), folder, environment, list(streams), pictures))
    process.start()
    return process


def run_kedro(
    arguments: Sequence[str], folder: Path, environment: dict[str, str], pictures: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ``kedro`` with arguments in a folder and wait for its end."""
    with tempfile.TemporaryDirectory() as place:
        streams = [Path(place) / name for name in ("stdout", "stderr")]
        process = start_kedro(arguments, folder, environment, streams, pictures)
        process.join()
        said = [stream.read_text() for stream in streams]
    assert process.exitcode is not None
    return subprocess.CompletedProcess(["kedro", *arguments], process.exitcode, *said)


def _kedro(
    arguments: list[str], folder: Path, environment: dict[str, str], streams: list[Path], pictures: bool
) -> None:
    # What is imported already is no garbage, and is not searched for some.
    gc.freeze()
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["kedro", *arguments]
    if not pictures:
        _save_empty_figures()
    try:
        from kedro.framework.cli import main

        main()
    except Exception:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        sys.exit(1)
    finally:
        # At its end Python lets the processes of a pool go, but a fork waits for them: five minutes, until they are idle
        # for so long.
        stop_workers()


def _save_empty_figures() -> None:
    from multitask_recommender.datasets import FigureFile

    setattr(FigureFile, "save", empty(FigureFile.save))  # noqa: B010


def empty(save: Any) -> Callable[[Any, Any], None]:
    """Return what saves an empty figure in the place of one."""
    from matplotlib.figure import Figure

    return lambda self, data: save(self, Figure((1.0, 1.0)))
