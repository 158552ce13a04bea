"""Catalog data sets that write whole files or nothing, and one for named arrays."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Protocol

import ibis.expr.types as ir
import matplotlib as mpl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from kedro.io import AbstractDataset, DatasetError
from kedro_datasets._typing import JSONPreview, TablePreview
from kedro_datasets.json import JSONDataset
from kedro_datasets.matplotlib import MatplotlibDataset
from kedro_datasets.pandas import CSVDataset, ParquetDataset
from matplotlib.figure import Figure
from PIL import Image

from multitask_recommender.duckdb_engine import EngineFile
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
            os.replace(partial, target)
        finally:
            self._filepath = original
            Path(partial).unlink(missing_ok=True)


def _first_rows(path: str, count: int) -> TablePreview:
    """Read the first rows of a parquet file, for the viewer of the pipeline map."""
    with pq.ParquetFile(path) as file:
        batch = next(file.iter_batches(batch_size=count), None)
        table = file.schema_arrow.empty_table() if batch is None else pa.table(batch)
    rows = table.to_pandas()
    data = json.loads(rows.to_json(orient="split", date_format="iso", default_handler=str))
    return TablePreview(data)


class IbisTable(_WholeFile, EngineFile):
    """``ibis.FileDataset`` that writes whole files, and opens a file once for all nodes that read it."""

    _read: tuple[tuple[int, int, int], ir.Table] | None = None

    def load(self) -> ir.Table:
        """Return the table."""
        read = super().load
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

    def preview(self, nrows: int = 10) -> TablePreview:
        """Show the first rows."""
        return _first_rows(str(self._filepath), nrows)


class PandasTable(_WholeFile, ParquetDataset):
    """``pandas.ParquetDataset`` that writes whole files."""

    def save(self, data: pd.DataFrame) -> None:
        """Write the table."""
        write = super().save
        self._replace(lambda: write(data))


_NAMES = (
    *("dataset", "task", "other", "trained_with", "expert", "loss", "feature", "taste", "title", "examples"),
    *("user_id", "item_id", "neighbour_id"),
)
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


class SavedFigure:
    """A figure as it was saved, which notebooks show with the words that stand for it.

    Attributes:
        png: The picture.
        words: What it says, in words (its alternative text).
        width: Width at which it is meant to be shown, in pixels of 1/96 inch.
    """

    def __init__(self, png: bytes) -> None:
        self.png = png
        with Image.open(io.BytesIO(png)) as picture:
            self.words = str(getattr(picture, "text", {}).get("Description", ""))
            dots = float(picture.info.get("dpi", (96.0, 96.0))[0])
            self.width = round(picture.width / dots * 96.0)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle = {"image/png": base64.b64encode(self.png).decode("ascii"), "text/plain": self.words or "figure"}
        return bundle, {"image/png": {"alt": self.words, "width": self.width}}


class FigureFile(_WholeFile, MatplotlibDataset):
    """``matplotlib.MatplotlibDataset`` that writes a PNG, and an SVG of the same name beside it, whole files both.

    Title and alternative text of the figure (see ``foundation.figure_style.finished``) are written into both files. The
    same figure gives the same bytes: neither file holds a date or a random name.
    """

    DEFAULT_SAVE_ARGS: ClassVar[dict[str, Any]] = {"format": "png", "dpi": 144}
    _save_args: dict[str, Any]

    def save(self, data: Figure) -> None:
        """Write the figure."""
        write, png, original = super().save, self._filepath, dict(self._save_args)
        words = {"Title": data.get_suptitle(), "Description": str(data.get_label())}
        with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": "multitask-recommender"}):
            # What signs the fonts lack is said once, where the figure is made.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            # The layout is settled once, and not again for each file.
            if data.axes and (layout := data.get_layout_engine()) is not None:
                layout.execute(data)
            data.set_layout_engine(None)
            try:
                self._save_args = {**original, "metadata": words}
                self._replace(lambda: write(data))
                self._filepath = PurePosixPath(png).with_suffix(".svg")
                self._save_args = {"format": "svg", "dpi": 144, "metadata": {**words, "Date": None}}
                self._replace(lambda: write(data))
            finally:
                self._filepath, self._save_args = png, original

    def load(self) -> SavedFigure:
        """Read the picture."""
        return SavedFigure(Path(self._filepath).read_bytes())


class Parts(Mapping[str, Any]):
    """The parts of a bundle: each is read when it is asked for, and none is kept.

    Args:
        names: Names of the parts.
        read: Reads a part by its name.
    """

    def __init__(self, names: Sequence[str], read: Callable[[str], Any]) -> None:
        self._names = tuple(names)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        """Read a part.

        Raises:
            KeyError: If there is no such part.
        """
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a part, without reading it."""
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self._names)


class Bundle(_WholeFile, AbstractDataset[Mapping[str, Any], Parts]):
    """Several data sets that go as one from a box of the pipeline map to another.

    The file is JSON and lists the names of the parts. They are saved by themselves, before; only their names count when
    the bundle is saved. It loads as a mapping that reads a part when it is asked for.

    Args:
        filepath: Where the file is.
        parts: Name of a part to its catalog entry.
        each: Catalog entry of every part, if all are alike: ``{model}`` stands for the name of the part.
        metadata: Not used by the data set; for other tools such as Kedro-Viz.
    """

    def __init__(
        self,
        filepath: str,
        parts: Mapping[str, dict[str, Any]] | None = None,
        each: dict[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._filepath = PurePosixPath(filepath)
        self._parts = parts
        self._each = each
        self._made: dict[str, AbstractDataset[Any, Any]] = {}
        self.metadata = metadata

    def _part(self, name: str) -> AbstractDataset[Any, Any]:
        if name not in self._made:
            entry = _named(self._each, name) if self._parts is None else copy.deepcopy(self._parts[name])
            self._made[name] = AbstractDataset.from_config(name, entry)
        return self._made[name]

    def load(self) -> Parts:
        """Return the parts, unread."""
        return Parts(self._listed(), lambda name: self._part(name).load())

    def save(self, data: Mapping[str, Any]) -> None:
        """List the parts."""
        Path(self._filepath).parent.mkdir(parents=True, exist_ok=True)
        self._replace(lambda: self._write(json.dumps(list(data), indent=2) + "\n"))

    def _write(self, text: str) -> None:
        Path(self._filepath).write_text(text)

    def preview(self) -> JSONPreview:
        """Show the list."""
        return JSONPreview(json.dumps(self._listed()))

    def _listed(self) -> list[str]:
        found: list[str] = json.loads(Path(self._filepath).read_text())
        return found

    def _exists(self) -> bool:
        return Path(self._filepath).exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


def _named(entry: Any, name: str) -> Any:
    """Return a catalog entry with a name in the places that are meant for it."""
    if isinstance(entry, Mapping):
        return {key: _named(value, name) for key, value in entry.items()}
    return entry.replace("{model}", name) if isinstance(entry, str) else entry


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

    _stays_unread = False

    def stay_unread(self) -> None:
        """Let the next loading give no row."""
        self._stays_unread = True

    def load(self) -> pd.DataFrame:
        """Read the table."""
        if self._stays_unread:
            self._stays_unread = False
            return pd.DataFrame()
        return super().load()

    def count(self) -> int:
        """Return the number of rows, without reading them."""
        return int(pq.read_metadata(self._filepath).num_rows)

    def save(self, data: TableStream | pa.Table) -> None:
        """Write all tables."""
        self._replace(lambda: _write_stream(self._filepath, data))

    def preview(self, nrows: int = 10) -> TablePreview:
        """Show the first rows."""
        return _first_rows(str(self._filepath), nrows)
