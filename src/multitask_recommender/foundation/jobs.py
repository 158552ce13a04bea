"""Runs independent fits on several processes, each on one thread: results do not depend on the number of cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed
from threadpoolctl import ThreadpoolController, threadpool_limits
from tqdm import tqdm

from multitask_recommender.foundation.resources import affordable_workers

# Without its thread that looks after bars: at the end of a process such a thread may be met inside the database, whose
# code does not survive it (duckdb issue 13904).
tqdm.monitor_interval = 0
T = TypeVar("T")
R = TypeVar("R")


def single_threaded() -> AbstractContextManager[Any]:
    """Limit numerical libraries to one thread: sums are made in the same order everywhere."""
    torch.set_num_threads(1)
    return threadpool_limits(limits=1)


@cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit numerical libraries to one thread for a short while, as for a request: two would only wait for each other.

    What is limited is looked up once, so that it costs little.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _thread_pools().limit(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


def run_jobs(function: Callable[[T], R], jobs: Sequence[T], workers: int, title: str) -> list[R]:
    """Run a function on every job and show a progress bar.

    Args:
        function: What to do with a job.
        jobs: The jobs.
        workers: Processes at the same time, or fewer where memory is limited; 1 stays in this process.
        title: What the progress bar says.

    Returns:
        The results in the order of the jobs.
    """
    workers = affordable_workers(workers)

    def alone(job: T) -> R:
        with single_threaded():
            return function(job)

    if workers == 1 or len(jobs) <= 1:
        results = map(alone, jobs)
    else:
        # Without memory mapping: a worker may write to its arrays, and nothing is left in temporary folders.
        pool = Parallel(n_jobs=workers, backend="loky", max_nbytes=None, return_as="generator")
        results = pool(delayed(alone)(job) for job in jobs)
    return list(tqdm(results, total=len(jobs), desc=title, leave=False, disable=None))
