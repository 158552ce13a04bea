"""Catalog data sets that write whole files or nothing, and one for named arrays."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Protocol

import ibis.expr.types as ir
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from kedro.io import AbstractDataset, DatasetError
from kedro_datasets.json import JSONDataset
from kedro_datasets.matplotlib import MatplotlibDataset
from kedro_datasets.pandas import CSVDataset, ParquetDataset
from matplotlib.figure import Figure

from multitask_recommender.engines import EngineFile
from multitask_recommender.models.state import State
from multitask_recommender.models.stored import StoredModel, read_model, write_model
from multitask_recommender.raw_tables import RawTable
from multitask_recommender.use.recommender import LoadedRecommender, load_recommender


class TableStream(Protocol):
    """Tables of one schema, one after the other.

    Attributes:
        schema: The columns of every table.
    """

    schema: pa.Schema

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the tables."""
        ...


class _WholeFile:
    """Mixin: the file appears under its name only when it is complete, so that a killed run leaves no half."""

    _filepath: Any

    def _replace(self, write: Callable[[], None]) -> None:
        original = self._filepath
        target = PurePosixPath(original)
        partial = target.with_name(f".partial-{target.name}")
        self._filepath = partial
        try:
            write()
            _move(Path(partial), Path(target))
        finally:
            self._filepath = original
            _remove(Path(partial))


def _remove(path: Path) -> None:
    """Remove a file, or a folder with its files, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _move(source: Path, target: Path) -> None:
    """Let a file or a folder take the place of another."""
    if source.is_dir() or target.is_dir():
        # A folder takes no other's place in one step.
        old = target.with_name(f".old-{target.name}")
        _remove(old)
        if target.exists():
            os.replace(target, old)
        os.replace(source, target)
        _remove(old)
    else:
        os.replace(source, target)


class IbisTable(_WholeFile, EngineFile):
    """``ibis.FileDataset`` that writes whole files, and opens a file once for all nodes that read it.

    Spark writes a folder with a file per partition; both engines read both.
    """

    _read: tuple[tuple[int, int, int], ir.Table] | None = None

    def load(self) -> ir.Table:
        """Return the table."""
        read = self._read_parts if Path(self._filepath).is_dir() and not self.on_spark else super().load
        try:
            status = os.stat(self._filepath)
        except OSError:
            return read()
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._read is None or self._read[0] != stamp:
            self._read = stamp, read()
        return self._read[1]

    def save(self, data: ir.Table) -> None:
        """Write the table."""
        write = super().save
        self._replace(lambda: write(data))

    def _read_parts(self) -> ir.Table:
        return self.connection.read_parquet(f"{self._filepath}/*.parquet", table_name=self._table_name)


class PandasTable(_WholeFile, ParquetDataset):
    """``pandas.ParquetDataset`` that writes whole files."""

    def save(self, data: pd.DataFrame) -> None:
        """Write the table."""
        write = super().save
        self._replace(lambda: write(data))


_NAMES = ("dataset", "task", "other", "trained_with", "expert", "loss")
"""Columns of names that are the user's: ``NA`` and ``1`` are names too."""


class CsvTable(_WholeFile, CSVDataset):
    """``pandas.CSVDataset`` that writes whole files, and reads names as they were written."""

    DEFAULT_LOAD_ARGS: ClassVar[dict[str, Any]] = {
        "dtype": dict.fromkeys(_NAMES, str),
        "keep_default_na": False,
        "na_values": [""],
    }

    def save(self, data: pd.DataFrame) -> None:
        """Write the table."""
        write = super().save
        self._replace(lambda: write(data))


class JsonFile(_WholeFile, JSONDataset):
    """``json.JSONDataset`` that writes whole files."""

    def save(self, data: Any) -> None:
        """Write the value."""
        write = super().save
        self._replace(lambda: write(data))


class FigureFile(_WholeFile, MatplotlibDataset):
    """``matplotlib.MatplotlibDataset`` that writes whole files."""

    def save(self, data: Figure) -> None:
        """Write the figure."""
        write = super().save
        with warnings.catch_warnings():
            # What signs the fonts lack is said once, where the figure is made.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self._replace(lambda: write(data))


class ArraysFile(_WholeFile, AbstractDataset[State, State]):
    """Arrays in a tree of names, in one safetensors file: no code runs when a stranger's file is read.

    Args:
        filepath: Where the file is.
        metadata: Not used by the data set; for other tools such as Kedro-Viz.
    """

    def __init__(self, filepath: str, metadata: Mapping[str, Any] | None = None) -> None:
        self._filepath = PurePosixPath(filepath)
        self.metadata = metadata

    def load(self) -> State:
        """Read the arrays."""
        return read_model(Path(self._filepath)).state

    def save(self, data: State) -> None:
        """Write the arrays."""
        self._write(StoredModel(data))

    def _write(self, stored: StoredModel) -> None:
        Path(self._filepath).parent.mkdir(parents=True, exist_ok=True)
        self._replace(lambda: write_model(Path(self._filepath), stored))

    def _exists(self) -> bool:
        return Path(self._filepath).exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class ModelFile(ArraysFile):
    """A model's arrays together with what made them."""

    def load(self) -> StoredModel:  # type: ignore[override]
        """Read the model."""
        return read_model(Path(self._filepath))

    def save(self, data: StoredModel) -> None:  # type: ignore[override]
        """Write the model."""
        self._write(data)


class FittedModels(AbstractDataset[None, "Callable[[str | None], LoadedRecommender]"]):
    """The models that a run fitted, to be loaded by name: ``load()("shared_bottom")``; see ``load_recommender``.

    Args:
        filepath: Folder of the outputs of the run.
        metadata: Not used by the data set; for other tools such as Kedro-Viz.
    """

    def __init__(self, filepath: str, metadata: Mapping[str, Any] | None = None) -> None:
        self._filepath = PurePosixPath(filepath)
        self.metadata = metadata

    def load(self) -> Callable[[str | None], LoadedRecommender]:
        """Return what loads a model by its name; without one, the preferred model."""
        return partial(load_recommender, Path(self._filepath))

    def save(self, data: None) -> None:
        """Refuse: models are saved one by one."""
        raise DatasetError("the models of a run are saved one by one")

    def _exists(self) -> bool:
        return Path(self._filepath).exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


_ROW_GROUP = 2**17


def _write_stream(path: str, data: TableStream | pa.Table) -> None:
    """Write tables one after the other; the file's row groups do not depend on their sizes."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, data.schema, compression="zstd") as writer:
        waiting = data.schema.empty_table()
        for table in [data] if isinstance(data, pa.Table) else data:
            waiting = pa.concat_tables([waiting, table])
            whole = len(waiting) // _ROW_GROUP * _ROW_GROUP
            if whole:
                writer.write_table(waiting.slice(0, whole), row_group_size=_ROW_GROUP)
                waiting = waiting.slice(whole)
        if len(waiting):
            writer.write_table(waiting)


class StreamedTable(_WholeFile, RawTable):
    """A raw table in parquet that a simulation writes, table by table, so that it need not fit into memory.

    It takes a table of pyarrow, or an object with a ``schema`` that yields such tables, and loads as an Ibis
    expression like any raw table.
    """

    def save(self, data: TableStream | pa.Table) -> None:
        """Write all tables."""
        self._replace(lambda: _write_stream(self._filepath, data))


class StreamedOutput(_WholeFile, ParquetDataset):
    """An output that is written table by table, as :class:`StreamedTable`, and loads with pandas."""

    def save(self, data: TableStream | pa.Table) -> None:
        """Write all tables."""
        self._replace(lambda: _write_stream(self._filepath, data))
