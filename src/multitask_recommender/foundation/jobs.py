"""Runs independent fits on several processes, each on one thread: results do not depend on the number of cores."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed
from joblib.externals import loky
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import ThreadpoolController
from tqdm import tqdm

from multitask_recommender.foundation.errors import StudyError
from multitask_recommender.foundation.kept_values import NotPlainError, read_values, write_values
from multitask_recommender.foundation.resources import affordable_workers

logger = logging.getLogger(__name__)

# Without its thread that looks after bars: at the end of a process such a thread may be met inside the database, whose
# code does not survive it (duckdb issue 13904).
tqdm.monitor_interval = 0
T = TypeVar("T")
R = TypeVar("R")


def single_threaded() -> AbstractContextManager[Any]:
    """Limit numerical libraries to one thread: sums are made in the same order everywhere."""
    torch.set_num_threads(1)
    return _thread_pools(len(sys.modules)).limit(limits=1)


@lru_cache(maxsize=1)
def _thread_pools(modules: int) -> ThreadpoolController:
    """Look up what can be limited (10 ms): anew where modules, and with them libraries, were imported since."""
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit numerical libraries to one thread for a while, as for a request: two would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _thread_pools(len(sys.modules)).limit(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Kept:
    """Where the results of finished jobs are kept, and how often :func:`run_jobs` was called since it was told so."""

    folder: Path
    calls: int = 0


_kept: _Kept | None = None


def keep_results(folder: Path | None) -> None:
    """Keep the results of finished jobs from now on, so that a killed run goes on where it was.

    Jobs are told apart by their order alone: the folder must be another one whenever anything that they depend on is.

    Args:
        folder: Where they are kept; None: no more is kept.
    """
    global _kept
    _kept = None if folder is None else _Kept(folder)


_MEMORY = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=268435456"
"""A step of a training frees what the next one asks for again. Memory that is kept between them, in large pages, saves
a tenth of the time of a study; what is larger than 32 MB goes back at once."""
_TUNABLES = "GLIBC_TUNABLES"


@contextmanager
def _memory_kept() -> Iterator[None]:
    """Let processes that are started meanwhile keep what they free; elsewhere than on glibc it means nothing."""
    if _TUNABLES in os.environ:
        yield
        return
    os.environ[_TUNABLES] = _MEMORY
    try:
        yield
    finally:
        del os.environ[_TUNABLES]


_watcher: Callable[[], None] | None = None


def after_each_job(watcher: Callable[[], None] | None) -> None:
    """Call something after every job from now on, such as what shows how far a whole run is; None: nothing more."""
    global _watcher
    _watcher = watcher


def _die_with(parent: int) -> None:
    """End this process soon after its parent, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@cache
def _freeze_imports(parent: int) -> None:
    """Let a process that works for another search for garbage among what is new alone; before its first job.

    The pool looks for garbage after every second of work. What was imported is none, and many objects.
    """
    if os.getpid() != parent:
        gc.freeze()


@_memory_kept()
def run_jobs(
    function: Callable[[T], R],
    jobs: Sequence[T],
    workers: int | None,
    title: str,
    efforts: Sequence[float] | None = None,
) -> list[R]:
    """Run a function on every job and show a progress bar.

    Results that are trees of plain values and arrays are kept until the node is done, see :func:`keep_results`.

    Args:
        function: What to do with a job.
        jobs: The jobs.
        workers: Processes at the same time, or fewer where memory is limited; 1 stays in this process. None: as many as
            there are cores.
        title: What the progress bar says.
        efforts: About how long every job takes, next to the others: the longest begin first, so that no process works
            on one of them while the others have nothing left. None: all alike.

    Returns:
        The results in the order of the jobs.

    Raises:
        StudyError: If one of the processes is killed.
    """
    workers = affordable_workers(workers)
    folder = None
    if _kept is not None:
        folder = _kept.folder / str(_kept.calls)
        _kept.calls += 1
    results: dict[int, R] = {}
    if folder is not None and folder.is_dir():
        for number in range(len(jobs)):
            with suppress(OSError):
                results[number] = read_values(folder / f"{number}.safetensors")
    if results:
        logger.info("%s: going on after %d of %d", title, len(results), len(jobs))
    left = [number for number in range(len(jobs)) if number not in results]
    if efforts is not None:
        left.sort(key=lambda number: -efforts[number])
    parent = os.getpid()

    def alone(job: T) -> R:
        _freeze_imports(parent)
        with single_threaded():
            return function(job)

    todo = [jobs[number] for number in left]
    found: Iterable[R]
    if workers == 1 or len(todo) <= 1:
        found = map(alone, todo)
    else:
        # Without memory mapping: a worker may write to its arrays, and nothing is left in temporary folders.
        # The parent can die before a process has its first job, and the process would wait for one for minutes.
        at_begin: dict[str, Any] = {"initializer": _die_with, "initargs": (parent,)}
        pool = Parallel(n_jobs=workers, backend="loky", max_nbytes=None, return_as="generator", **at_begin)
        found = pool(delayed(alone)(job) for job in todo)
    bar = tqdm(found, total=len(jobs), initial=len(results), desc=title, leave=False, disable=None)
    try:
        with warnings.catch_warnings():
            # A process that has grown is replaced by a new one between two jobs: nothing is lost.
            warnings.filterwarnings(
                "ignore", message="A worker stopped while some jobs were given", category=UserWarning
            )
            for number, result in zip(left, bar, strict=True):
                results[number] = result
                if _watcher is not None:
                    _watcher()
                if folder is not None and len(jobs) > 1:
                    with suppress(NotPlainError):
                        write_values(folder / f"{number}.safetensors", result)
    except TerminatedWorkerError as error:
        raise StudyError(
            f"A process of the run was killed, most often because the memory did not suffice ({title}).\n"
            f"  where: one of {workers} processes that work at the same time\n"
            "  what to do: run again, it goes on after what is finished; with fewer processes, such as "
            "--params cross_validation.workers=1, it needs less memory."
        ) from error
    except BaseException:
        stop_workers()
        raise
    return [results[number] for number in range(len(jobs))]


def call(job: Callable[[], R]) -> R:
    """Do a job that knows by itself what to do."""
    return job()


def stop_workers() -> None:
    """Kill the processes that work at the same time, if there are any."""
    # Asked for in the usual way, one with other arguments would be replaced, after all of its jobs were done.
    executor = loky.reusable_executor._executor
    if executor is not None:
        executor.shutdown(wait=False, kill_workers=True)
