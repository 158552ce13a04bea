"""The record of an output: what made it, and what its file held when it was made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multitask_recommender.runs.files import file_digest

FOLDER = ".provenance"
"""Folder of the records inside the folder of the outputs."""


@dataclass(frozen=True)
class OutputRecord:
    """What made an output.

    Attributes:
        dataset: Name in the catalog.
        run: Number of the run that made it, see ``runs.jsonl``.
        key: Key of what it was made from, see ``keys.py``.
        made_from: What it was made from, see ``keys.Ingredients``; nothing for a raw table.
        file: Where it was written, relative to the folder of the outputs; None for one that was kept in memory.
        sha256: Digest of the file.
        size: Bytes of the file.
        modified: When the file was written, in nanoseconds of the file system.
    """

    dataset: str
    run: str
    key: str
    made_from: dict[str, Any]
    file: str | None = None
    sha256: str = ""
    size: int = 0
    modified: int = 0

    def holds(self, file: Path) -> bool:
        """Return whether a file is still the one that was written: same size and time, or same contents."""
        try:
            status = file.stat()
        except OSError:
            return False
        if status.st_size != self.size:
            return False
        return status.st_mtime_ns == self.modified or file_digest(file) == self.sha256


class Records:
    """The records of the outputs in a folder, one file each.

    Args:
        folder: Folder of the outputs, such as ``data``.

    Attributes:
        folder: Folder of the outputs.
        unfinished: Folder of what nodes have done so far that are not finished, by their key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records = folder / FOLDER
        self.unfinished = self._records / "unfinished"

    def _path(self, dataset: str) -> Path:
        return self._records / f"{dataset}.json"

    def read(self, dataset: str) -> OutputRecord | None:
        """Return the record of a data set; None if there is none that can be read."""
        try:
            return OutputRecord(**json.loads(self._path(dataset).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def key_of(self, dataset: str) -> str | None:
        """Return the key that a data set had when it was recorded; None if it was not."""
        record = self.read(dataset)
        return None if record is None else record.key

    def all(self) -> Iterator[OutputRecord]:
        """Yield all records, by name."""
        for path in sorted(self._records.glob("*.json")):
            record = self.read(path.stem)
            if record is not None:
                yield record

    def write(self, dataset: str, run: str, key: str, made_from: dict[str, Any], file: Path | None) -> None:
        """Record an output that was just made."""
        record = OutputRecord(dataset, run, key, made_from)
        if file is not None:
            status, sha256 = file.stat(), file_digest(file)
            record = replace(record, sha256=sha256, size=status.st_size, modified=status.st_mtime_ns)
            record = replace(record, file=os.path.relpath(file, self.folder))
        path = self._path(dataset)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(vars(record)), encoding="utf-8")
        os.replace(partial, path)

    def remove(self, dataset: str) -> None:
        """Forget what made an output, before it is made anew."""
        self._path(dataset).unlink(missing_ok=True)
