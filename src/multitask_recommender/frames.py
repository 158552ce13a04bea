"""The study from Python, on tables in memory."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from multitask_recommender.foundation.errors import DataError, SettingsError, find_study_error

_ENVIRONMENT = "frames"


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        metrics: Every metric of every model.
        headline: The headline table.
        comparisons: The models against their controls, with verdicts.
        left_out: What was not computed and why.
        left_out_models: Models without metrics and why.
        dropped_rows: Rows that were dropped and values that were taken as missing, and why.
        recommendations: Model to its lists per user and task.
    """

    metrics: pd.DataFrame
    headline: pd.DataFrame
    comparisons: pd.DataFrame
    left_out: pd.DataFrame
    left_out_models: pd.DataFrame
    dropped_rows: pd.DataFrame
    recommendations: dict[str, pd.DataFrame]


def study(
    interactions: pd.DataFrame,
    users: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
    description: Mapping[str, Any] | None = None,
    project: str | Path | None = None,
) -> Study:
    """Run the study on tables in memory: the pipelines of ``kedro run`` in a temporary folder, which is removed.

    Args:
        interactions: The interactions.
        users: The users; None: those of the interactions.
        items: The items; None: those of the interactions.
        description: What an overlay's ``parameters.yml`` holds: ``dataset``, which describes the tables, and what is to
            differ from ``conf/base``, such as ``study: {models: [ease, shared_bottom]}``.
        project: Folder of the project, whose ``conf/base`` is read; None: that of the working directory, or of this
            package.

    Returns:
        The results.

    Raises:
        StudyError: If the tables or the description are at fault.
    """
    if not description or "dataset" not in description:
        raise SettingsError(
            "The tables are not described.\n  where: the argument 'description'\n"
            "  what to do: give what an overlay's parameters.yml holds, as in docs/bring_your_own_data.md."
        )
    tables = {"raw_interactions": interactions, "raw_users": users, "raw_items": items}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(_base(project), folder / "conf" / "base")
        overlay = folder / "conf" / _ENVIRONMENT
        overlay.mkdir()
        catalog = {}
        for table, frame in tables.items():
            if frame is not None:
                path = folder / f"{table}.parquet"
                _write(frame, table, path)
                catalog[table] = {
                    "type": "multitask_recommender.raw_tables.RawTable",
                    "filepath": path.as_posix(),
                    "file_format": "parquet",
                }
        # JSON is YAML; a date or a number of NumPy is read from its text.
        (overlay / "catalog.yml").write_text(json.dumps(catalog))
        (overlay / "parameters.yml").write_text(json.dumps(dict(description), default=str))
        (folder / ".telemetry").write_text("consent: false")  # Nor does this study send anything to anybody.
        (overlay / "globals.yml").write_text(json.dumps({"folder": (folder / "data").as_posix()}))
        return _run(folder)


def _write(frame: pd.DataFrame, table: str, path: Path) -> None:
    if not isinstance(frame, pd.DataFrame):
        raise DataError(
            table,
            f"The table is a {type(frame).__name__}, not a DataFrame of pandas.",
            f"make one of it, such as pandas.DataFrame({table.removeprefix('raw_')}).",
        )
    try:
        # An index with a name, as 'groupby' and 'set_index' leave it, is a column.
        (frame.reset_index() if any(frame.index.names) else frame).to_parquet(path, index=False)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            table,
            f"The table cannot be written as parquet: {error}",
            "give every column one type, such as frame.astype({'user': str}), and a name that is a text.",
        ) from error


def _base(project: str | Path | None) -> Path:
    """Return the folder of the parameters that all studies start from."""
    from kedro.utils import find_kedro_project

    here = find_kedro_project(Path.cwd()) if project is None else Path(project)
    for folder in (here, Path(__file__).parents[2]):
        if folder is not None and (folder / "conf" / "base").is_dir():
            return folder / "conf" / "base"
    raise SettingsError(
        "There is no folder conf/base with the parameters of the models.\n  where: the argument 'project'\n"
        "  what to do: name the folder of a copy of the project."
    )


def _run(folder: Path) -> Study:
    # Here, so that importing the package costs nothing.
    from kedro.framework.project import configure_project
    from kedro.framework.session import KedroSession

    configure_project("multitask_recommender")
    # What a run prints and logs names files that are gone in a moment.
    with (
        contextlib.redirect_stdout(io.StringIO()),
        KedroSession.create(project_path=folder, env=_ENVIRONMENT, conf_source=str(folder / "conf")) as session,
    ):
        assert isinstance(session, KedroSession)
        try:
            session.run()
        except Exception as error:
            found = find_study_error(error)
            if found is None:
                raise
            if isinstance(found, DataError):
                found.file = None
            raise found from None
        catalog = session.load_context().catalog
        tables = {name: catalog.load(name) for name in Study.__dataclass_fields__ if name != "recommendations"}
        lists = {
            model: catalog.load(f"{model}.recommendations")
            for model in tables["metrics"]["model"].unique()
            if catalog.exists(f"{model}.recommendations")
        }
    return Study(**tables, recommendations=lists)
