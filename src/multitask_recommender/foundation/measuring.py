"""What a fit costs: seconds and memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Cost:
    """CPU seconds of the process, and its largest resident memory meanwhile in MB (10^6 bytes).

    On one thread the CPU seconds are what the clock would show if no other process ran at the same time.
    """

    seconds: float = 0.0
    peak_mb: float = 0.0


def _reset_peak() -> None:
    # Where the file is missing (not Linux), the peak since the start of the process is reported.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure the block of a ``with`` statement."""
    cost = Cost()
    _reset_peak()
    begin = time.process_time()
    try:
        yield cost
    finally:
        cost.seconds = time.process_time() - begin
        cost.peak_mb = _peak_mb()
