"""What a computer may lack - memory, disk space, permission - named as such, and the memory that a study may take."""

from __future__ import annotations

import errno
import functools
import os
import re
from pathlib import Path

import joblib

from multitask_recommender.foundation.errors import StudyError

MEMORY_VARIABLE = "MULTITASK_RECOMMENDER_MEMORY_GB"
"""Environment variable that carries ``study.memory_gb`` to all that runs, the processes of the workers among them."""
_GB = 10**9
_SHARE_OF_TABLES = 0.5
_SHARE_OF_SCORES = 0.1
_COPIES_OF_SCORES = 6
"""About how many arrays of the size of a block's scores are held while it is ranked."""
_SMALLEST_WORKER = 300 * 10**6
"""Bytes that the libraries of a worker take before it has any data."""

_NO_MEMORY = re.compile(
    r"out of memory|cannot allocate memory|can't allocate memory|unable to allocate|failed to allocate|bad_alloc|"
    r"can't start new thread|malloc of size",
    re.IGNORECASE,
)
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded|file too large", re.IGNORECASE)
_NO_PERMISSION = re.compile(r"permission denied|read-only file system|operation not permitted", re.IGNORECASE)
_ERRNO = {
    errno.ENOMEM: "memory",
    errno.ENOSPC: "space",
    errno.EDQUOT: "space",
    errno.EFBIG: "space",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EROFS: "permission",
    errno.EMFILE: "files",
    errno.ENFILE: "files",
}
_WHAT = {
    "memory": (
        "There is not enough memory",
        "give the run more memory, or let it take less: fewer 'cross_validation.workers', a smaller 'study.memory_gb', "
        "shorter lists ('evaluation.ks'), smaller models.",
    ),
    "space": (
        "The disk is full",
        "free space on the disk of the file (and of the temporary folder, which TMPDIR names), and run again.",
    ),
    "permission": (
        "There is no permission",
        "give the user of this process the right to read or write there, or name another place.",
    ),
    "files": ("Too many files are open", "raise the limit of open files (ulimit -n), or take fewer workers."),
}


class ResourceError(StudyError):
    """Something that the computer lacks.

    Args:
        problem: What is lacking, with what was asked for as far as it is known.
        where: What was being done.
        remedy: What to do.
    """

    def __init__(self, problem: str, where: str, remedy: str) -> None:
        super().__init__(problem, where, remedy)
        self.problem, self.where, self.remedy = problem, where, remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  where: {self.where}\n  what to do: {self.remedy}"


def lacking(error: BaseException | None, doing: str) -> ResourceError | None:
    """Say what the computer lacked, if that is why something failed.

    Args:
        error: What was raised; its causes are looked at too.
        doing: What was being done, such as ``reading data/users.csv``.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, ResourceError):
            return error
        kind = _kind(error)
        if kind is not None:
            what, remedy = _WHAT[kind]
            said = " ".join(str(error).split())[:300]
            return ResourceError(f"{what}{f': {said}' if said else ''}.", doing, remedy)
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _kind(error: BaseException) -> str | None:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryException":
        return "memory"
    if isinstance(error, OSError) and error.errno in _ERRNO:
        return _ERRNO[error.errno]
    # Engines in other languages say it in words, and not by a number.
    compiled = type(error).__module__.split(".")[0] in ("_duckdb", "duckdb", "pyarrow", "safetensors")
    if compiled or isinstance(error, OSError | RuntimeError):
        text = str(error)
        for kind, pattern in (("memory", _NO_MEMORY), ("space", _NO_SPACE), ("permission", _NO_PERMISSION)):
            if pattern.search(text):
                return kind
    return None


def limit_memory(memory_gb: float | None) -> None:
    """State how much memory this process and those that it starts may take, in GB (10^9 bytes); None: all there is."""
    if memory_gb is None:
        os.environ.pop(MEMORY_VARIABLE, None)
    else:
        os.environ[MEMORY_VARIABLE] = repr(float(memory_gb))


def memory_limit() -> float | None:
    """Return the stated limit in bytes, or None."""
    text = os.environ.get(MEMORY_VARIABLE)
    return None if not text else float(text) * _GB


def tables_limit() -> str | None:
    """Return what an engine of tables may take of the limit, as its setting ``memory_limit`` says it; or None."""
    limit = memory_limit()
    return None if limit is None else f"{max(int(limit * _SHARE_OF_TABLES / 10**6), 64)}MB"


def scores_at_once(most: int) -> int:
    """Return how many scores may be held at a time: ``most``, or fewer where memory is limited."""
    limit = memory_limit()
    if limit is None:
        return most
    return int(min(most, max(limit * _SHARE_OF_SCORES / (4 * _COPIES_OF_SCORES), 1)))


def affordable_workers(wanted: int | None) -> int:
    """Return how many of the wanted workers the stated limit has room for, at least 1.

    Every worker is taken to need what this process has now: the libraries and the tables.

    Args:
        wanted: How many; None: one for every core, and no more than the free memory has room for.
    """
    wanted = _one_per_core() if wanted is None else wanted
    limit = memory_limit()
    if limit is None or wanted == 1:
        return wanted
    own = _resident()
    return int(min(wanted, max((limit - own) // max(own, _SMALLEST_WORKER), 1)))


@functools.cache
def _one_per_core() -> int:
    """Found once: later the workers themselves take of the free memory, and their number would go up and down."""
    cores, free = joblib.cpu_count(), _free_memory()
    return int(cores if free is None else min(cores, max(free // max(_resident(), _SMALLEST_WORKER), 1)))


def _free_memory() -> int | None:
    """Bytes that this computer could still give; None where the system does not tell."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


def _resident() -> int:
    """Resident memory of this process in bytes; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
