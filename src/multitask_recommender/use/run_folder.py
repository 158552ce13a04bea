"""The outputs of one run, as far as a fitted model needs them to answer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multitask_recommender.data.events import as_pairs, pair_rules
from multitask_recommender.data.interactions import (
    EVERYTHING,
    NO_FOLD,
    Interactions,
    SideInformation,
    features_of,
    interactions_of,
)
from multitask_recommender.data.tasks import Task
from multitask_recommender.foundation.errors import RequestError
from multitask_recommender.foundation.resources import lacking
from multitask_recommender.models.fitted import restored, start_record
from multitask_recommender.models.recommender import Recommender
from multitask_recommender.models.stored import StoredModel, read_model, read_record
from multitask_recommender.models.variants import VARIANTS

_PREFERRED = "wide_shared_bottom"
_TABLES = {
    "users": "03_primary/users.parquet",
    "items": "03_primary/items.parquet",
    "behaviour_sequences": "04_feature/behaviour_sequences.parquet",
    "user_features": "04_feature/user_features.parquet",
    "item_features": "04_feature/item_features.parquet",
    "user_vocabulary": "04_feature/user_vocabulary.parquet",
}


@dataclass(frozen=True)
class FittedRun:
    """A model fitted on all interactions of a run, with what it was fitted on.

    Attributes:
        name: Name of the model.
        folder: Folder of the run.
        model: The model.
        record: What made it, see ``models.fitted``.
        tasks: The tasks by name.
        rows: The training rows, sorted by user and time.
        side: Sizes, tasks and features.
        user_ids: Identifiers of the users, in the order of their numbers.
        item_ids: The same of the items.
        titles: Titles of the items.
        vocabulary: Feature of the users to its values with their columns.
    """

    name: str
    folder: Path
    model: Recommender
    record: dict[str, Any]
    tasks: dict[str, Task]
    rows: Interactions
    side: SideInformation
    user_ids: list[str]
    item_ids: list[str]
    titles: list[str]
    vocabulary: dict[str, dict[str, int]]


def read_run(folder: Path, name: str | None) -> FittedRun:
    """Read the model that was fitted on all interactions, and the tables that it needs.

    Args:
        folder: Folder of the outputs of one run, such as ``data``.
        name: Name of the model; None: ``wide_shared_bottom`` or, without it, the first multi-task model there is.

    Raises:
        RequestError: If the folder is no whole run, or the model was not run or recommends nothing.
        StaleModelError: If the settings or the data in the folder are not those that made the model.
    """
    _check_folder(folder)
    name = _choose(folder, name)
    path = _model_file(folder, name)
    variant = VARIANTS[name]
    part = read_model(path, EVERYTHING, "0")
    stored = StoredModel({EVERYTHING: {"0": part.state}}, part.made_from)
    tasks = {task: Task.model_validate(values) for task, values in part.made_from["tasks"].items()}
    user_ids = _table(folder, "users", ["user", "user_id"], "user")["user_id"].to_pylist()
    items = _table(folder, "items", ["item", "item_id", "title"], "item")
    item_ids = items["item_id"].to_pylist()
    columns = ["user", "position", "item", "time", *tasks, *(f"relevant_{task}" for task in tasks)]
    events = interactions_of(_table(folder, "behaviour_sequences", columns, "user", "position"), tasks)
    rows = as_pairs(events, pair_rules(tasks))
    features = [
        features_of(_table(folder, f"{key}_features", [key, "column", "weight"], key, "column"), key, count)
        for key, count in (("user", len(user_ids)), ("item", len(item_ids)))
    ]
    side = SideInformation(tasks, len(user_ids), len(item_ids), *features)
    record = start_record({**part.made_from["dataset"], "tasks": part.made_from["tasks"]}, user_ids, item_ids)
    encoder = None
    if variant.user_encoder:
        own = read_model(_model_file(folder, "user_embedding"), EVERYTHING, str(NO_FOLD))
        encoder = StoredModel({EVERYTHING: {str(NO_FOLD): own.state}}, own.made_from)
    models, side = restored(
        variant, _json(path.with_name("chosen_settings.json")), stored, record, side, encoder, EVERYTHING, rows
    )
    vocabulary: dict[str, dict[str, int]] = {}
    for row in _table(folder, "user_vocabulary", ["feature", "value", "column"]).to_pylist():
        vocabulary.setdefault(row["feature"], {})[row["value"]] = row["column"]
    titles = items["title"].to_pylist()
    made_from = part.made_from
    return FittedRun(name, folder, models["0"], made_from, tasks, rows, side, user_ids, item_ids, titles, vocabulary)


def fitted_models(folder: Path) -> list[str]:
    """Return the names of the models in a folder that were fitted to recommend, in the order of the study."""
    return [name for name in VARIANTS if _recommends(folder, name)]


def _model_file(folder: Path, name: str) -> Path:
    return folder / "06_models" / name / "weights.safetensors"


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise RequestError(
            "There is no such folder.", str(folder), "name the folder of the outputs of a run, such as 'data'."
        )
    missing = [path for path in (*_TABLES.values(), "06_models") if not (folder / path).exists()]
    if len(missing) == len(_TABLES) + 1:
        raise RequestError(
            "The folder is not that of a run: it has none of the outputs.",
            str(folder),
            "name the folder of the outputs of a run, such as 'data', or make one: kedro run",
        )
    if missing:
        raise RequestError(
            f"The run is not whole: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.",
            str(folder),
            "run it to its end: kedro run",
        )


def _choose(folder: Path, name: str | None) -> str:
    """Return the name of a model that is there."""
    if name is not None and name in VARIANTS and _recommends(folder, name):
        return name
    there = fitted_models(folder)
    instead = f"choose one of those that are there: {', '.join(there)}." if there else "fit one: kedro run"
    if name is None:
        core = [own for own in there if VARIANTS[own].kind == "multi_task" and VARIANTS[own].core]
        if not there:
            raise RequestError("No model was fitted to recommend.", str(folder / "06_models"), instead)
        return _PREFERRED if _PREFERRED in there else (core or there)[0]
    if name not in VARIANTS:
        raise RequestError(f"There is no model '{name}'.", str(folder / "06_models"), instead)
    if not VARIANTS[name].recommends:
        problem = f"The model '{name}' recommends nothing: the study only compares with it."
    else:
        problem = f"The model '{name}' was not run."
    raise RequestError(problem, str(folder / "06_models" / name), instead)


def _recommends(folder: Path, name: str) -> bool:
    path = _model_file(folder, name)
    return path.exists() and EVERYTHING in read_record(path).get("settings", ())


def _table(folder: Path, key: str, columns: Iterable[str], *order: str) -> pa.Table:
    """Read some columns of a table, sorted; of the split of all interactions, where it has splits."""
    path = folder / _TABLES[key]
    try:
        filters = None if key in ("users", "items") else [("split", "=", EVERYTHING)]
        table = pq.read_table(path, columns=list(columns), filters=filters)
        return table.sort_by([(column, "ascending") for column in order]) if order else table
    except (OSError, MemoryError, pa.ArrowException) as error:
        if (lack := lacking(error, f"reading {path}")) is not None:
            raise lack from error
        raise RequestError(
            f"The table cannot be read: {str(error).splitlines()[0]}", str(path), "make it again: kedro run"
        ) from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if (lack := lacking(error, f"reading {path}")) is not None:
            raise lack from error
        raise RequestError(
            f"The settings of the model cannot be read: {error}",
            str(path),
            f"fit it again: kedro run --namespaces {VARIANTS[path.parent.name].namespace}",
        ) from error
