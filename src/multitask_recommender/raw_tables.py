"""Raw files of many layouts as tables of text, read by configuration alone."""

from __future__ import annotations

import codecs
import csv
import html
import io
import itertools
import json
import math
import mmap
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NamedTuple, NoReturn

import duckdb
import fsspec
import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from kedro.io import AbstractDataset, DatasetError
from pydantic import ConfigDict, Field, StrictBool, field_validator

from multitask_recommender.data.raw_columns import FAULT, FILE, ROW
from multitask_recommender.duckdb_engine import EngineFile, connect, spill_folder
from multitask_recommender.foundation.errors import DataError
from multitask_recommender.foundation.resources import lacking
from multitask_recommender.foundation.settings_base import Settings

_CHUNK = 1 << 20
_ROWS = 1 << 17
"""So many rows are in memory at a time."""
_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")
_INVISIBLE = "\u200b\u2060\ufeff\u00ad \u00a0\t"
_NO_NUMBERS = np.empty(0, np.int64)
_ARCHIVE = re.compile(r"\.(zip|tar|t[gbx]z2?|tar\.(gz|bz2|xz))$", re.IGNORECASE)
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_SIGNATURES = {
    b"\x1f\x8b": ("packed by gzip", "give the file the ending .gz or .tar.gz in 'filepath'"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "save a spreadsheet as CSV, or end .zip, in 'filepath'"),
    b"PAR1": ("parquet", "set 'file_format: parquet'"),
    b"\xff\xfe": ("text in UTF-16", "set 'encoding: utf-16'"),
    b"\xfe\xff": ("text in UTF-16", "set 'encoding: utf-16'"),
}
"""How files begin that are often taken for text: what they are, and what to do."""
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
"""How packed files begin, and what fsspec calls the packing."""
_GRACE = 64 * 10**6
"""Bytes that may be unpacked from a file of any size: the ratio is that of large files."""
_DEEPEST = 100
"""Most arrays and objects of JSON inside each other; the engine's stack has an end."""
_NO_TEXTS = frozenset({"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"})
"""Encodings of Python that no table is written in."""
_UNREADABLE = (
    duckdb.Error,
    pa.ArrowException,
    csv.Error,
    UnicodeError,
    ValueError,
    LookupError,
    RuntimeError,
    ImportError,
    AttributeError,
)
"""What libraries raise on a file or an option that they cannot work with."""
FileFormat = Literal["csv", "json_lines", "parquet"]


class NoTable(AbstractDataset[None, None]):
    """Stands for a raw table that a data set does not have, such as ``raw_users`` where nothing is known of users.

    Args:
        metadata: Not used by the data set; for other tools such as Kedro-Viz.
    """

    def __init__(self, metadata: Mapping[str, Any] | None = None) -> None:
        self.metadata = metadata

    def load(self) -> None:
        """Return None."""

    def save(self, data: None) -> None:
        """Refuse: there is nothing to save."""
        raise DatasetError("a raw table is never written")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {}


class _Layout(Settings):
    """The options of :class:`RawTable` that say how a file is read, checked."""

    model_config = ConfigDict(title="the options of the raw table")

    file_format: FileFormat
    delimiter: str = Field(min_length=1, max_length=4)
    encoding: str
    quote: str = Field(max_length=1)
    escape: str | None = Field(max_length=1)
    columns: Annotated[list[str], Field(min_length=1)] | None
    skip_lines: int = Field(ge=0, le=10**6)
    unescape_html: StrictBool
    unreadable: Literal["refuse", "drop"]
    largest_unpacked_gb: float = Field(gt=0, le=10**6)
    largest_ratio: float = Field(ge=1, le=10**6)

    @field_validator("delimiter", "quote", "escape")
    @classmethod
    def _no_line_end(cls, value: str | None) -> str | None:
        if value is not None and not {"\n", "\r", "\0"}.isdisjoint(value):
            raise ValueError("a line break or a null byte ends a line or a file, and divides no values")
        return value

    @field_validator("encoding")
    @classmethod
    def _of_text(cls, value: str) -> str:
        try:
            found = codecs.lookup(value)
        except (LookupError, ValueError):
            raise ValueError(f"'{value}' is no encoding that is known; common are utf-8, latin-1 and cp1252") from None
        if not found._is_text_encoding or found.name in _NO_TEXTS:
            raise ValueError(f"'{value}' is no encoding of texts; common are utf-8, latin-1 and cp1252")
        return value


class RawTable(AbstractDataset[None, ir.Table]):
    """One raw table, in one file or in several. Every value is text, as it stands in the file, or a list of texts.

    Points in time of parquet files that have a time zone are written in UTC.

    Nothing is guessed: an identifier keeps its leading zeros, and a row that does not fit the heading is refused, or
    set aside and counted, but never bent into shape.

    Args:
        filepath: A local path or any address that fsspec knows; a zip or tar archive with ``member``, or, with
            ``files``, the folder or archive that they lie in. ``.gz``, ``.bz2`` and ``.xz`` are unpacked. Where an
            archive is absent and ``member`` lies unpacked beside it, that file is read.
        member: Path of the file inside the archive; may be left out where it holds one file.
        files: Name to path inside ``filepath``, for a table in several files; the name fills the column ``(file)``, and
            a column that one of the files does not have is null in its rows.
        file_format: ``csv`` (any text with delimiters), ``json_lines`` (an object a line, or one array of objects) or
            ``parquet``.
        delimiter: What divides the values; up to four characters.
        encoding: Name of the text's encoding. A byte order mark is skipped.
        quote: What encloses a value that holds a delimiter; empty for files without quoting.
        escape: What stands before a quote inside a quoted value; the quote itself where it is doubled.
        columns: Names of the columns of a file without a heading.
        skip_lines: Lines of a text before its heading, or before its first row where ``columns`` are named. A first
            line such as ``sep=;``, which spreadsheets write, is passed over by itself.
        rename: Name in the file to another name, for columns that differ in case alone: engines do not tell them apart.
        missing_values: Texts that stand for no value, such as ``NULL``; an empty value always does.
        unescape_html: Whether ``&amp;`` and the like become the character they stand for.
        unreadable: ``refuse`` a text with rows that do not fit, or ``drop`` (and count) such rows.
        largest_unpacked_gb: Most GB (10^9 bytes) that a packed file or an archive is unpacked to.
        largest_ratio: Most bytes that a byte of a packed file may become, beyond the first 64 MB: a few thousand bytes
            can be made to unpack without end.
        storage_options: Arguments of the fsspec file system.
        connection: The engine, as for ``ibis.FileDataset``; DuckDB in memory by default.
        metadata: Not used by the data set; for other tools such as Kedro-Viz.
    """

    def __init__(
        self,
        *,
        filepath: str,
        member: str | None = None,
        files: Mapping[str, str] | None = None,
        file_format: FileFormat = "csv",
        delimiter: str = ",",
        encoding: str = "utf-8",
        quote: str = '"',
        escape: str | None = None,
        columns: Sequence[str] | None = None,
        skip_lines: int = 0,
        rename: Mapping[str, str] | None = None,
        missing_values: Sequence[str | int | float] = (),
        unescape_html: bool = False,
        unreadable: Literal["refuse", "drop"] = "refuse",
        largest_unpacked_gb: float = 100.0,
        largest_ratio: float = 250.0,
        storage_options: Mapping[str, Any] | None = None,
        connection: dict[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if member is not None and files is not None:
            raise ValueError("a raw table has either 'member' or 'files'")
        columns = _no_other_types("columns", columns, str) if isinstance(columns, list | tuple) else columns
        layout = _Layout(
            file_format=file_format,
            delimiter=delimiter,
            encoding=encoding,
            quote=quote,
            escape=escape,
            columns=columns,
            skip_lines=skip_lines,
            unescape_html=unescape_html,
            unreadable=unreadable,
            largest_unpacked_gb=largest_unpacked_gb,
            largest_ratio=largest_ratio,
        )
        if "\0" in filepath or not filepath:
            raise ValueError(f"'filepath' names no file: {filepath!r}")
        self._fs_prefix = "" if "://" not in filepath else filepath.split("://", 1)[0] + "://"
        if member and not self._fs_prefix and not Path(filepath).exists() and (Path(filepath).parent / member).exists():
            filepath, member = str(Path(filepath).parent / member), None
        self._filepath = filepath
        self._files = dict(files or {"": member or ""})
        self._file_format = file_format
        self._delimiter, self._quote = delimiter, quote
        self._escape = quote if escape is None else escape
        self._encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
        self._columns, self._skip_lines = layout.columns, layout.skip_lines
        self._most_bytes, self._largest_ratio = layout.largest_unpacked_gb * 1e9, layout.largest_ratio
        if not isinstance(rename or {}, Mapping):
            raise ValueError("'rename' is a name to another name, such as {Id: id_2}")
        self._rename = dict(rename or {})
        _no_other_types("rename", [*self._rename, *self._rename.values()], str)
        self._missing_values = _no_other_types("missing_values", missing_values, str | int | float)
        self._unescape_html, self._unreadable = unescape_html, unreadable
        self._storage_options = dict(storage_options or {})
        self.metadata = metadata
        # Tables of one engine can be joined: the connection is the one that all ``ibis.FileDataset`` share.
        self._engine = EngineFile(filepath, connection=connection)
        self._table = ibis.util.gen_name("raw_table")
        self._places: list[tuple[int, str, int | None]] = []

    @property
    def paths(self) -> list[str]:
        """Where the files lie: local paths or addresses, without members of archives."""
        inside = [path for path in self._files.values() if path]
        return [self._filepath] if self._is_archive() or not inside else [f"{self._filepath}/{path}" for path in inside]

    def locate(self, row: int) -> str:
        """Say where a row stands: its file, its number counted from 1 and, where lines are rows, its line."""
        first, name, line = next((place for place in reversed(self._places) if place[0] <= row), (0, "", None))
        shown = f"row {row - first + 1}" + ("" if line is None else f" (line {row - first + line})")
        return f"{shown} of {name}" if len(self._files) > 1 else shown

    def load(self) -> ir.Table:
        """Read the table.

        Returns:
            The file's columns as text and ``(row)``, ``(file)`` and ``(fault)``; null where a value is missing.

        Raises:
            DataError: If a file is missing, empty, in another encoding or has rows that do not fit and are not to be
                dropped.
        """
        self._places = []
        start = 0
        folder = spill_folder()
        parts = [folder / f"{self._table}.{number}.parquet" for number in range(len(self._files))]
        for target, (name, inside) in zip(parts, self._files.items(), strict=True):
            try:
                with self._local_copy(inside) as path:
                    found = self._read(path, inside, _Rows(target, start, name or None))
            except (OSError, MemoryError, *_UNREADABLE) as error:
                self._refuse(error, inside)
            # Lines are rows as long as no value holds a line break.
            self._places.append((start, inside or Path(self._filepath).name, None if found.broken else found.line))
            start += found.rows
        path = _concatenate(parts, folder / f"{self._table}.parquet")
        names = pq.read_schema(path).names
        absent = [name for name, other in self._rename.items() if other not in names]
        if absent:
            raise self._error(f"'rename' names the column '{absent[0]}', which no file has.", "correct 'rename'")
        try:
            return self._engine.read_file(path, self._table)
        except (OSError, MemoryError, *_UNREADABLE) as error:
            self._refuse(error, "")

    def save(self, data: None) -> None:
        """Refuse: raw tables are never written."""
        raise DatasetError("a raw table is never written")

    def _is_archive(self) -> bool:
        return _ARCHIVE.search(self._filepath) is not None

    def _error(self, problem: str, remedy: str, inside: str = "", **where: Any) -> DataError:
        error = DataError("", problem, f"{remedy} of its entry in conf/*/catalog*.yml, or correct the file.", **where)
        error.file = f"{self._filepath}{' > ' if self._is_archive() else '/'}{inside}" if inside else self._filepath
        return error

    def _refuse(self, error: BaseException, inside: str) -> NoReturn:
        """Say why a file cannot be read: what the computer lacks, or what is wrong with the file or its description."""
        place = f"{self._filepath}{' > ' if self._is_archive() else '/'}{inside}" if inside else self._filepath
        lack = lacking(error, f"reading {place} (unpacked in {tempfile.gettempdir()})")
        if lack is not None:
            raise lack from error
        said = (str(error).splitlines() or [type(error).__name__])[0][:300]
        remedy = "correct the options"
        raise self._error(f"The file cannot be read: {said}", remedy, inside) from error

    def _check_regular(self, address: str) -> None:
        """Refuse what never ends, such as a pipe or a device, and folders."""
        if self._fs_prefix not in ("", "file://", "local://"):
            return
        path = Path(address.removeprefix(self._fs_prefix))
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise self._error("It is a folder.", "name a file in 'filepath', or files inside the folder in 'files'")
        if not stat.S_ISREG(mode):
            raise self._error("It is no regular file, but a pipe, a socket or a device.", "name a file in 'filepath'")

    @contextmanager
    def _local_copy(self, inside: str) -> Iterator[Path]:
        """Give a local copy of a file, unpacked and, if it is text, in UTF-8 with plain line ends."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "table"
            address = self._filepath if self._is_archive() or not inside else f"{self._filepath}/{inside}"
            try:
                self._check_regular(address)
                if self._is_archive():
                    self._unpack_member(address, target, inside)
                else:
                    opened = fsspec.open(address, "rb", compression="infer", **self._storage_options)
                    with opened as file:
                        source = self._bounded(file, _size(opened), inside) if opened.compression else file
                        self._write_copy(source, target, inside)
            except (FileNotFoundError, NotADirectoryError):
                raise self._error("The file does not exist.", "correct 'filepath'", inside) from None
            except (zipfile.BadZipFile, tarfile.TarError) as error:
                raise self._error(f"The archive cannot be read: {error}.", "correct 'filepath'", inside) from None
            except (DataError, MemoryError, *_UNREADABLE):
                raise
            except Exception as error:
                # Every packing has a library with errors of its own.
                if lacking(error, "") is not None:
                    raise
                raise self._error(f"The file cannot be unpacked: {error}.", "correct 'filepath'", inside) from None
            yield target

    def _unpack_member(self, address: str, target: Path, inside: str) -> None:
        """Copy one regular file out of an archive."""
        with fsspec.open(address, "rb", **self._storage_options) as file:
            begin = file.read(6)
            file.seek(0)
            if self._filepath.lower().endswith(".zip"):
                with zipfile.ZipFile(file) as archive:
                    regular = {entry.filename: entry for entry in archive.infolist() if _is_regular(entry)}
                    member = self._member(list(regular), inside)
                    with archive.open(member) as source:
                        packed = regular[member].compress_size
                        self._write_copy(self._bounded(source, packed, inside), target, inside)
                return
        packing = next((name for sign, name in _PACKED.items() if begin.startswith(sign)), None)
        opened = fsspec.open(address, "rb", compression=packing, **self._storage_options)
        with opened as file:
            # Of the whole archive, because all of it is unpacked on the way to a member.
            bounded = self._bounded(file, _size(opened), inside) if packing else file
            with tarfile.open(fileobj=bounded, mode="r:") as archive:
                names = [entry.name for entry in archive if entry.isreg()]
                found = archive.extractfile(self._member(names, inside))
                assert found is not None
                with found:
                    self._write_copy(found, target, inside)

    def _bounded(self, source: Any, packed: float, inside: str) -> Any:
        """Return what reads a packed file of some bytes and refuses to go beyond the limits."""
        beyond = self._largest_ratio * packed
        limits = [
            (self._most_bytes, f"{self._most_bytes / 1e9:g} GB", "largest_unpacked_gb"),
            (max(beyond, _GRACE), f"{self._largest_ratio:g} times its size", "largest_ratio"),
        ]
        most, said, option = min(limits)

        def refuse() -> NoReturn:
            raise self._error(
                f"The packed file unpacks to more than {said} ({most / 1e6:,.0f} MB).",
                f"make sure that it is what you think it is, and raise '{option}'",
                inside,
            )

        return _Bounded(source, int(most), refuse)

    def _member(self, names: list[str], inside: str) -> str:
        names = [name for name in names if not name.endswith("/")]
        if inside:
            found = [name for name in names if name.removeprefix("./") == inside.removeprefix("./")]
        else:
            # What a Mac packs beside every file is no file of the table.
            found = [name for name in names if not name.startswith("__MACOSX/") and "._" not in name]
        if len(found) == 1:
            return found[0]
        problem = f"The archive has no member '{inside}'" if inside else f"The archive has {len(found)} members"
        raise self._error(f"{problem}; it holds: {', '.join(names[:20])}.", "name one of them in 'member'")

    def _write_copy(self, source: IO[bytes], target: Path, inside: str) -> None:
        if self._file_format == "parquet":
            with target.open("wb") as binary:
                shutil.copyfileobj(source, binary)
            return
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(self._encoding)(), translate=True)
        lines, chunk = 0, source.read(_CHUNK)
        for begin, (what, remedy) in _SIGNATURES.items():
            if chunk.startswith(begin) and self._encoding == "utf-8-sig":
                raise self._error(f"The file is no text in UTF-8: it is {what}.", remedy, inside)
        with target.open("w", encoding="utf-8", newline="\n") as text:
            while True:
                try:
                    decoded = decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    line = lines + error.object[: error.start].count(b"\n") + 1
                    raise self._error(
                        f"Line {line} is not text in the encoding '{self._encoding.removesuffix('-sig')}' "
                        f"(byte 0x{error.object[error.start]:02x}).",
                        "name the encoding of the file, such as latin-1, in 'encoding'",
                        inside,
                    ) from None
                if "\0" in decoded:
                    line = lines + decoded[: decoded.index("\0")].count("\n") + 1
                    raise self._error(
                        f"Line {line} is no text: it holds a null byte, as files in UTF-16 and archives do.",
                        "name the encoding of the file in 'encoding', or give an archive the ending .tar.gz or .zip in "
                        "'filepath'",
                        inside,
                    )
                text.write(decoded)
                lines += decoded.count("\n")
                if not chunk:
                    return
                chunk = source.read(_CHUNK)

    def _read(self, path: Path, inside: str, target: _Rows) -> _FileRead:
        """Read one file, a part of its rows at a time, and write them to ``target``."""
        if path.stat().st_size == 0:
            raise self._error("The file is empty.", "name a file that holds rows in 'filepath'", inside)
        connection = connect()
        try:
            if self._file_format == "csv":
                return self._read_csv(connection, path, inside, target)
            return self._read_typed(connection, path, inside, target)
        finally:
            connection.close()

    def _read_typed(self, connection: duckdb.DuckDBPyConnection, path: Path, inside: str, target: _Rows) -> _FileRead:
        lines = False
        try:
            if self._file_format == "parquet":
                # The same text of a point in time on every machine.
                connection.execute("SET TimeZone = 'UTC'")
                # Without parameters: a query that has some is answered at once, and as a whole in memory.
                found = connection.sql(f"SELECT * FROM read_parquet({_sql(str(path))})")
                names = pq.read_schema(path).names
                kinds = ["VARCHAR[]" if kind.id in ("list", "array") else "VARCHAR" for kind in found.types]
                columns = [f"{_name(column)}::{kind}" for column, kind in zip(found.columns, kinds, strict=True)]
            else:
                deep = _line_of_nesting(path, _DEEPEST)
                if deep is not None:
                    raise self._error(
                        f"Line {deep} holds JSON of more than {_DEEPEST} arrays and objects inside each other.",
                        "correct 'file_format'",
                        inside,
                    )
                with path.open(encoding="utf-8") as file:
                    lines = not file.read(_CHUNK).lstrip().startswith("[")
                layout = "newline_delimited" if lines else "array"
                found = connection.sql(f"SELECT json FROM read_json_objects({_sql(str(path))}, format='{layout}')")
                names, columns = _json_columns(found)
            names = self._renamed(names, inside)
            broken = self._write(found.project(", ".join([*columns, "1"])), names, target)
        except (duckdb.Error, pa.ArrowException) as error:
            if lacking(error, "") is not None:
                raise
            if lines:
                self._refuse_first_bad_json(path, inside)
            message = str(error).replace(str(path), "the file").splitlines()[0]
            raise self._error(f"The file cannot be read: {message}", "correct 'file_format'", inside) from None
        return _FileRead(target.rows, 1 if lines and not _has_blank_lines(path) else None, broken)

    def _write(self, relation: duckdb.DuckDBPyRelation, names: list[str], target: _Rows) -> bool:
        """Write the first columns of a relation under some names; return whether a value holds a line break."""
        reader = relation.to_arrow_reader(_ROWS)
        broken = False
        with target.open():
            for batch in itertools.chain([reader.schema.empty_table()], map(_as_table, reader)):
                table = self._finish(batch.select(range(len(names))).rename_columns(names))
                broken = broken or any(pc.any(pc.match_substring(text, "\n")).as_py() for text in _texts(table))
                target.add(table)
        return broken

    def _renamed(self, names: list[str], inside: str) -> list[str]:
        """Give the columns their other names, and refuse names that are equal or differ in case alone."""
        names = [self._rename.get(name, name) for name in names]
        seen: dict[str, str] = {}
        if not names:
            raise self._error("The file has no columns.", "correct 'file_format' or 'skip_lines'", inside)
        for place, name in enumerate(names, start=1):
            if not name or name in (ROW, FILE, FAULT):
                what = f"is called '{name}', a name that the project's own tables use" if name else "has no name"
                raise self._error(
                    f"Column {place} {what}.",
                    "give it another name in 'rename'" if name else "correct 'file_format'",
                    inside,
                )
        for name in names:
            other = seen.setdefault(name.casefold(), name)
            if seen[name.casefold()] is not name:
                twice = other == name
                raise self._error(
                    f"The heading has the column '{name}' twice."
                    if twice
                    else f"The columns '{other}' and '{name}' differ in case alone, which engines do not tell apart.",
                    "name the columns apart in 'columns' and pass the heading over by 'skip_lines: 1'"
                    if twice
                    else f"give one another name, such as 'rename: {{{name}: {name}_2}}', in 'rename'",
                    inside,
                )
        return names

    def _refuse_first_bad_json(self, path: Path, inside: str) -> None:
        with path.open(encoding="utf-8") as file:
            rows = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            for row, (number, line) in enumerate(rows):
                try:
                    json.loads(line)
                except json.JSONDecodeError as error:
                    problem = f"The line is not JSON: {error.msg}."
                    fault = self._error(problem, "correct 'file_format'", inside, rows=[row])
                    fault.locate = partial(_row_and_line, number)
                    raise fault from None

    def _heading(self, path: Path, inside: str) -> list[str]:
        with path.open(encoding="utf-8", newline="") as file:
            line = file.readline().rstrip("\n")
            if self._quote and len(self._delimiter) == 1:
                file.seek(0)
                names = next(csv.reader(file, delimiter=self._delimiter, quotechar=self._quote), [])
            else:
                names = line.split(self._delimiter)
        return [name.strip().strip(_INVISIBLE) or f"column_{place}" for place, name in enumerate(names, start=1)]

    def _pass_over(self, path: Path, inside: str) -> int:
        """Take the lines before the heading off a text; return how many there were."""
        with path.open(encoding="utf-8", newline="") as file:
            skipped = 0
            while skipped < self._skip_lines and file.readline():
                skipped += 1
            begin = file.tell()
            declared = _SEPARATOR_LINE.fullmatch(file.readline())
            if declared is not None:
                if declared[1] != self._delimiter:
                    raise self._error(
                        f"Line {skipped + 1} says that '{declared[1]}' divides the values, and 'delimiter' is "
                        f"{self._delimiter!r}.",
                        f"set 'delimiter: \"{declared[1]}\"'",
                        inside,
                    )
                skipped, begin = skipped + 1, file.tell()
        if skipped:
            rest = path.with_name("rest")
            with path.open("rb") as source, rest.open("wb") as target:
                source.seek(begin)
                shutil.copyfileobj(source, target)
            rest.replace(path)
        return skipped

    def _read_csv(self, connection: duckdb.DuckDBPyConnection, path: Path, inside: str, target: _Rows) -> _FileRead:
        skipped = self._pass_over(path, inside)
        if path.stat().st_size == 0:
            raise self._error("The file is empty after the lines that are passed over.", "correct 'skip_lines'", inside)
        names = self._renamed(self._columns or self._heading(path, inside), inside)
        heading = self._columns is None
        options = {
            "delim": self._delimiter,
            "quote": self._quote,
            "escape": self._escape,
            "nullstr": ["", *self._missing_values],
            "header": heading,
            "auto_detect": False,
            "strict_mode": True,
            "null_padding": False,
            "store_rejects": True,
            "columns": dict.fromkeys(names, "VARCHAR"),
        }
        if not self._quote:
            del options["escape"]
        shown = ", ".join(f"{name}={_sql(value)}" for name, value in options.items())
        try:
            relation = connection.sql(f"SELECT * FROM read_csv({_sql(str(path))}, {shown})")
            broken = self._write(relation, names, target)
        except (duckdb.Error, pa.ArrowException) as error:
            if lacking(error, "") is not None:
                raise
            message = str(error).replace(str(path), "the file").splitlines()[0]
            raise self._error(
                f"The file cannot be read: {message}", "correct 'delimiter', 'quote' or 'escape'", inside
            ) from None
        faults = connection.sql(
            "SELECT line, any_value(error_type) AS kind, any_value(column_name) AS name, any_value(csv_line) AS text, "
            "min(line_byte_position) AS place FROM reject_errors GROUP BY line ORDER BY line"
        ).fetchall()
        first_line = 2 if heading else 1
        breaks, blank = self._line_breaks(path, len(names)) if faults else (_NO_NUMBERS, _NO_NUMBERS)
        # Of a row, DuckDB gives the number among the rows and blank lines, and the place of the byte, from 1, at which
        # it begins, or the blank lines before it.
        begins = np.array(
            [place - 1 + len(text) - len(text.lstrip("\n")) for *_, text, place in faults], dtype=np.int64
        )
        rows = np.array([line for line, *_ in faults], dtype=np.int64) - first_line - np.searchsorted(blank, begins)
        lines = np.searchsorted(breaks, begins) + 1 + skipped
        for row, line, (_, kind, name, text, _) in zip(rows.tolist(), lines.tolist(), faults, strict=True):
            # A quote that is never closed swallows the rows that follow, so it cannot be dropped alone.
            swallowed = kind == "UNQUOTED VALUE" and "\n" in text.strip("\n")
            if self._unreadable == "refuse" or swallowed:
                fault = self._error(
                    f"{_explain(kind, len(names))} It begins: {[*text.lstrip()[:60].splitlines(), ''][0]!r}.",
                    "set 'quote' to the character that encloses values, or to '' if none does,"
                    if swallowed
                    else "correct 'delimiter', 'quote' or 'escape', or set 'unreadable: drop'",
                    inside,
                    column=name,
                    rows=[row],
                    count=len(rows),
                )
                fault.locate = partial(_row_and_line, line)
                raise fault
        if len(rows):
            target.set_aside(rows, [_explain(kind, len(names)) for _, kind, *_ in faults])
        no_lines = len(names) > 1 and _has_blank_lines(path)
        return _FileRead(target.rows, None if no_lines else first_line + skipped, broken)

    def _line_breaks(self, path: Path, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the bytes that end a line, and of those that end a blank line, which is no row."""
        text = np.fromfile(path, np.uint8)
        ends = np.flatnonzero(text == ord("\n"))
        if columns == 1:
            return ends, _NO_NUMBERS
        blank = ends[np.diff(ends, prepend=-1) == 1]
        if len(self._quote) == 1 and self._quote.isascii():
            quotes = text == ord(self._quote)
            if self._escape != self._quote:
                quotes[1:] &= text[:-1] != ord(self._escape)
            # A line that lies inside a quoted value has an odd number of quotes before it.
            blank = blank[np.searchsorted(np.flatnonzero(quotes), blank) % 2 == 0]
        return ends, blank

    def _finish(self, table: pa.Table) -> pa.Table:
        """Make every column text or lists of text, and HTML entities the characters they stand for."""
        columns = []
        for column in table.itercolumns():
            if pa.types.is_list(column.type):
                lists = column.combine_chunks()
                texts = self._clean(lists.values.cast(pa.string()))
                columns.append(pa.ListArray.from_arrays(lists.offsets, texts, mask=lists.is_null()))
            else:
                columns.append(self._clean(column.cast(pa.string())))
        return pa.table(columns, names=table.column_names)

    def _clean(self, text: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        if self._file_format != "csv" and self._missing_values:
            missing = pc.is_in(text, value_set=pa.array(self._missing_values))
            text = pc.if_else(missing, pa.scalar(None, pa.string()), text)
        if self._unescape_html:
            coded = (text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text).dictionary_encode()
            words = [html.unescape(word) if _ENTITY.search(word) else word for word in coded.dictionary.to_pylist()]
            text = pa.array(words, pa.string()).take(coded.indices)
        return text

    def _exists(self) -> bool:
        return all(Path(path).exists() for path in self.paths)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "files": self._files, "file_format": self._file_format}


class _Bounded(io.RawIOBase):
    """A file that is read up to a limit.

    Args:
        source: The file.
        most: Number of bytes after which nothing more is read.
        refuse: What raises the error then.
    """

    def __init__(self, source: Any, most: int, refuse: Callable[[], NoReturn]) -> None:
        self._source, self._most, self._refuse, self._place = source, most, refuse, 0

    def readable(self) -> bool:
        """Return true."""
        return True

    def seekable(self) -> bool:
        """Return true: of packed files everything before the place is read again."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read at most ``size`` bytes, and never many more than are allowed."""
        room = self._most - self._place + 1
        found = self._source.read(room if size is None or size < 0 else min(size, room))
        self._place += len(found)
        if self._place > self._most:
            self._refuse()
        return found

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place counted from the beginning or from here."""
        place = offset + (self._place if whence == os.SEEK_CUR else 0)
        if place > self._most:
            self._refuse()
        self._place = self._source.seek(place)
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place


def _size(opened: Any) -> float:
    """Return the size in bytes of a file as it is stored.

    Without end where its system does not tell: the ratio cannot be judged then, the limit of the unpacked size holds.
    """
    try:
        size = opened.fs.size(opened.path)
    except (OSError, NotImplementedError):
        size = None
    return math.inf if size is None else float(size)


def _is_regular(entry: zipfile.ZipInfo) -> bool:
    """Return whether an entry of a zip archive is a file: no folder, and no link to another place."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    return not entry.is_dir() and kind in (0, stat.S_IFREG)


_ESCAPED = re.compile(rb"\\.", re.DOTALL)


def _line_of_nesting(path: Path, most: int) -> int | None:
    """Return the first line of a JSON text at which more than ``most`` arrays and objects are open, or None."""
    depth, in_text, lines, rest = 0, False, 0, b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            chunk = rest + chunk
            # A backslash at the end belongs to what follows.
            odd = (len(chunk) - len(chunk.rstrip(b"\\"))) % 2
            chunk, rest = chunk[: len(chunk) - odd], chunk[len(chunk) - odd :]
            signs = np.frombuffer(_ESCAPED.sub(b"  ", chunk), np.uint8)
            quotes = np.cumsum(signs == ord('"')) + in_text
            outside = quotes % 2 == 0
            opening = ((signs == ord("[")) | (signs == ord("{"))) & outside
            closing = ((signs == ord("]")) | (signs == ord("}"))) & outside
            open_ = depth + np.cumsum(opening.astype(np.int64) - closing)
            over = np.flatnonzero(open_ > most)
            if len(over):
                return lines + int((signs[: over[0]] == ord("\n")).sum()) + 1
            if len(signs):
                depth, in_text = int(open_[-1]), bool(quotes[-1] % 2)
            lines += int((signs == ord("\n")).sum())
    return None


def _row_and_line(line: int, row: int) -> str:
    return f"row {row + 1} (line {line})"


def _texts(table: pa.Table) -> list[pa.ChunkedArray]:
    return [column for column in table.itercolumns() if pa.types.is_string(column.type)]


def _has_blank_lines(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(b"\n\n") >= 0 or text[:1] == b"\n"


def _no_other_types(option: str, values: Iterable[Any], allowed: Any) -> list[str]:
    """Return texts, and refuse what YAML has made of words such as NO and NULL."""
    for value in (values := list(values)):
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise ValueError(
                f"'{option}' holds {json.dumps(value)}, which is what YAML makes of an unquoted word such as no, NO, "
                "yes, NULL or ~: put the word in quotes"
            )
    return [str(value) for value in values]


def _json_columns(objects: duckdb.DuckDBPyRelation) -> tuple[list[str], list[str]]:
    """Keys of objects in the order in which they appear, and the SQL that takes each as text or as a list of texts."""
    keys = objects.project("row_number() OVER () AS row, json_keys(json) AS keys, json")
    keys = keys.project("row, unnest(keys) AS key, generate_subscripts(keys, 1) AS place, json")
    keys = keys.project("*, json_type(json, '/' || replace(replace(key, '~', '~0'), '/', '~1')) = 'ARRAY' AS several")
    found = keys.aggregate("key, min(row) AS first, arg_min(place, row) AS place, bool_or(several) AS several", "key")
    names, columns = [], []
    for name, _, _, several in found.order("first, place").fetchall():
        pointer = _sql("/" + name.replace("~", "~0").replace("/", "~1"))
        text = f"json ->> {pointer}"
        lists = f"from_json(json_extract(json, {pointer}), '[\"VARCHAR\"]')"
        one = f"CASE WHEN {text} IS NULL THEN NULL ELSE [{text}] END"
        names.append(name)
        columns.append(
            f"CASE WHEN json_type(json, {pointer}) = 'ARRAY' THEN {lists} ELSE {one} END" if several else text
        )
    return names, columns


def _as_table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


class _FileRead(NamedTuple):
    """What is known of a file that was read: its rows, the line of the first one, whether a value has a line break."""

    rows: int
    line: int | None
    broken: bool


class _Rows:
    """The rows of one raw file as they are read, in a parquet file with the columns of every raw table.

    Args:
        path: Where the file goes.
        start: Number of its first row among those of all files.
        name: What fills the column ``(file)``.
    """

    def __init__(self, path: Path, start: int, name: str | None) -> None:
        self.path, self.rows = path, 0
        self._start, self._name = start, name
        self._writer: pq.ParquetWriter | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Write the tables that are added meanwhile."""
        try:
            yield
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def add(self, table: pa.Table) -> None:
        """Add rows, with their place, the name of the file and no fault."""
        count = len(table)
        place = np.arange(self.rows, self.rows + count) + self._start
        self._add(table, place, pa.nulls(count, pa.string()))
        self.rows += count

    def _add(self, table: pa.Table, place: np.ndarray, fault: pa.Array) -> None:
        table = table.append_column(ROW, pa.array(place, pa.int64())).append_column(FAULT, fault)
        table = table.append_column(FILE, pa.repeat(pa.scalar(self._name, pa.string()), len(table)))
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, table.schema, compression="zstd")
        self._writer.write_table(table)

    def set_aside(self, rows: np.ndarray, reasons: list[str]) -> None:
        """Move the rows that were written to their places among all, and add those that could not be read.

        Args:
            rows: (n,) places of the rows that could not be read, ascending.
            reasons: Why.
        """
        before = self.path.with_suffix(".read")
        self.path.replace(before)
        passed = rows - np.arange(len(rows))
        with self.open(), pq.ParquetFile(before) as file:
            schema = file.schema_arrow
            own = [name for name in schema.names if name not in (ROW, FAULT, FILE)]
            for batch in file.iter_batches(_ROWS):
                place = batch.column(ROW).to_numpy() - self._start
                place = place + np.searchsorted(passed, place, side="right") + self._start
                self._add(_as_table(batch).select(own), place, batch.column(FAULT))
            none = {name: pa.nulls(len(rows), schema.field(name).type) for name in own}
            self._add(pa.table(none), rows + self._start, pa.array(reasons, pa.string()))
        before.unlink()
        self.rows += len(rows)


def _concatenate(parts: list[Path], target: Path) -> Path:
    """Make one file of several, in ``target``, and return it; the only one stays where it is.

    A column that is missing in one is null there, and a text among lists is a list of one.
    """
    if len(parts) == 1:
        return parts[0]
    schemas = [pq.read_schema(part) for part in parts]
    lists = pa.unify_schemas([pa.schema([f for f in own if pa.types.is_list(f.type)]) for own in schemas])
    kinds: dict[str, pa.DataType] = {}
    for own in schemas:
        kinds |= {f.name: lists.field(f.name).type if f.name in lists.names else f.type for f in own}
    schema = pa.schema(list(kinds.items()))
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(_ROWS):
                    columns = [_of_kind(batch, field) for field in schema]
                    writer.write_table(pa.table(columns, schema=schema))
            part.unlink()
    return target


def _of_kind(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    if field.name not in batch.schema.names:
        return pa.nulls(len(batch), field.type)
    column = batch.column(field.name)
    if pa.types.is_list(field.type) and not pa.types.is_list(column.type):
        offsets = pa.array(np.arange(len(column) + 1, dtype=np.int32))
        return pa.ListArray.from_arrays(offsets, column, mask=column.is_null())
    return column


def _explain(kind: str, columns: int) -> str:
    reasons = {
        "MISSING COLUMNS": f"The row has fewer values than the {columns} columns.",
        "TOO MANY COLUMNS": f"The row has more values than the {columns} columns.",
        "UNQUOTED VALUE": "The row has a stray quote.",
    }
    return reasons.get(kind, f"The row cannot be read ({kind.lower()}).")


def _name(column: str) -> str:
    """Write the name of a column as SQL."""
    return '"' + column.replace('"', '""') + '"'


def _sql(value: object) -> str:
    """Write a value as an SQL literal."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_sql, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_sql(name)}: {_sql(kind)}' for name, kind in value.items())}}}"
    return "'" + str(value).replace("'", "''") + "'"
