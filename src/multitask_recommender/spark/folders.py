"""Folders for what is on its way between the driver and the executors."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path


def temporary_folder(parent: str | None) -> Path:
    """Make a folder that vanishes with this process.

    Args:
        parent: Where to make it; None: where the system keeps temporary files.
    """
    if parent is not None:
        Path(parent).mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="multitask-recommender-", dir=parent)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
