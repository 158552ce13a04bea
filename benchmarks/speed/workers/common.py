"""What every worker shares: it prepares a task, says so, and then repeats it whenever it is asked. Needs NumPy alone.

A worker is a process in its library's own environment, ``python -m workers.<library> TASK ARGUMENTS``. Workers wait for
their turn, so that this project and its peers are measured in turn, close to each other in time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Arguments = dict[str, Any]
Run = Callable[[], float | None]
"""Does the work once. Gives the seconds where only a part of the work counts."""
METRICS_AT = (5, 10, 20)
"""Lengths of the lists that the evaluation measures."""


def serve(tasks: dict[str, Callable[[Arguments], Run]]) -> None:
    """Prepare the task of the command line, then do it once for every line of the input.

    Answers with one line of JSON, to the open file whose number the variable ``ANSWERS`` of the environment has, since
    libraries print what they like: nothing when ready, then the seconds.

    Args:
        tasks: Name of a task to what prepares it.
    """
    answers = os.fdopen(int(os.environ["ANSWERS"]), "w")
    run = tasks[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps(None), file=answers, flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        seconds = run()
        seconds = time.perf_counter() - begin if seconds is None else seconds
        print(json.dumps(seconds), file=answers, flush=True)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read all arrays of a file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def top_lists(given: dict[str, np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the lists out of a matrix of scores, for libraries that measure lists and make none.

    Args:
        given: ``matrix`` (users, items), and ``user`` and ``item`` of ``train`` and ``test``.
        k: Length of the lists.

    Returns:
        (m,) the users with test rows, and their (m, k) items, best first, without those of training.
    """
    users = np.unique(given["test_user"])
    score = given["matrix"].copy()
    score[given["train_user"], given["train_item"]] = -np.inf
    score[:, np.bincount(given["train_item"], minlength=score.shape[1]) == 0] = -np.inf
    score = score[users]
    best = np.argpartition(-score, k, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(score, best, axis=1), axis=1, kind="stable")
    return users, np.take_along_axis(best, order, axis=1)
