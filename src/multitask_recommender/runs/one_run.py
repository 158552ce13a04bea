"""One run at a time in a folder, and an end that leaves no process and no file behind."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol

from multitask_recommender.foundation.errors import StudyError
from multitask_recommender.foundation.jobs import stop_workers
from multitask_recommender.runs.records import FOLDER
from multitask_recommender.runs.reuse import run_folder

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
LOCK = "lock"
_GRACE = 3.0
"""Seconds that a run is given to end by itself."""


class BusyFolderError(StudyError):
    """Another run is writing into the folder."""


class OneRun:
    """Hook: refuses a second run in one folder, and ends a run that is told to end within seconds."""

    def __init__(self) -> None:
        self._lock: int | None = None
        self._handlers: dict[int, Any] = {}
        self._bell: tuple[int, int] | None = None

    @hook_impl(trylast=True)
    def before_pipeline_run(self, catalog: CatalogProtocol) -> None:
        """Take the lock of the folder.

        Raises:
            BusyFolderError: If another run has it.
        """
        self._release()
        folder = run_folder(catalog)
        if folder is None:
            return
        place = folder / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(place / LOCK)
        for number in _ENDING:
            # Python refuses handlers outside its main thread, as in some notebooks; there its own stay.
            try:
                self._handlers[number] = signal.signal(number, _end)
            except ValueError:
                break
        # A notebook outlives its runs, and is not ended with them.
        if self._handlers and "IPython" not in sys.modules:
            heard, rung = os.pipe()
            os.set_blocking(rung, False)
            self._bell = signal.set_wakeup_fd(rung, warn_on_full_buffer=False), rung
            threading.Thread(target=_end_in_any_case, args=(heard,), daemon=True).start()

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Give the lock back."""
        self._release()

    @hook_impl(trylast=True)
    def on_pipeline_error(self) -> None:
        """Give the lock back."""
        self._release()

    def _release(self) -> None:
        if self._bell is not None:
            before, rung = self._bell
            signal.set_wakeup_fd(before)
            os.close(rung)
            self._bell = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        if self._lock is not None:
            # The file stays: removing it would let two runs hold the locks of two files of one name.
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None


def _lock(path: Path) -> int:
    """Lock a file for as long as this process lives, however it ends, and write its number into it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise BusyFolderError(
            f"Another run is writing into the folder: process {holder or 'unknown'}.\n"
            f"  where: {path.parents[1]}\n"
            "  what to do: wait for it or end it; or write elsewhere: another --env, or 'folder' in conf/*/globals.yml."
        ) from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """End the run: no worker goes on, and open files are closed on the way out."""
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    _say_that_it_ends(number)
    stop_workers()
    raise SystemExit(128 + number)


def _say_that_it_ends(number: int) -> None:
    name = signal.Signals(number).name
    print(f"\nStopped by {name}: what is finished is kept; the same command goes on from there.", file=sys.stderr)


def _end_in_any_case(heard: int) -> None:
    """End the process some seconds after a signal that its main thread could not hear, as in a long computation of C.

    Args:
        heard: Where the numbers of signals are read from, until the run is over.
    """
    with os.fdopen(heard, "rb", buffering=0) as bell:
        number = 0
        while number not in _ENDING:
            rung = bell.read(1)
            if not rung:
                return
            number = rung[0]
    time.sleep(_GRACE)
    if signal.getsignal(number) == _end:
        _say_that_it_ends(number)
    # What is half-written is left as by a process that is killed: the next run begins with removing it.
    sys.stderr.flush()
    os._exit(128 + number)
