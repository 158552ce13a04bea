"""Files behind data sets, and their digests."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any


def local_files(dataset: Any) -> list[Path]:
    """Return the local files behind a data set; none for memory and remote addresses."""
    path = getattr(dataset, "_filepath", None)
    if path is None or getattr(dataset, "_fs_prefix", False):
        return []
    return [Path(own) for own in getattr(dataset, "paths", [path])]


@functools.cache
def _digest_of(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; one that has not changed is read once."""
    status = os.stat(path)
    return _digest_of(str(path), status.st_size, status.st_mtime_ns)
