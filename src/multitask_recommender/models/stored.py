"""Model files: what models learnt, together with what made it."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from multitask_recommender.foundation.errors import StudyError
from multitask_recommender.foundation.resources import lacking
from multitask_recommender.models.state import State

_FORMAT = "2"
_PACKAGES = ("multitask-recommender", "numpy", "scipy", "torch")


class StaleModelError(StudyError):
    """A stored model whose settings or data are no longer those that it is asked to work with."""


@dataclass(frozen=True)
class StoredModel:
    """The states of a model's fits.

    Attributes:
        state: Split to seed number (or left-out fold) to the state.
        made_from: What made them: ``settings`` by split, ``data`` (what to digest), ``versions`` of packages.
    """

    state: State
    made_from: dict[str, Any] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """Return the versions of the packages that a fit depends on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def flatten(state: State, prefix: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of a tree by their path; a slash inside a name is escaped as in addresses."""
    result: dict[str, np.ndarray] = {}
    for name, value in state.items():
        path = prefix + name.replace("%", "%25").replace("/", "%2F")
        result |= flatten(value, f"{path}/") if isinstance(value, dict) else {path: np.ascontiguousarray(value)}
    return result


def unflatten(arrays: Mapping[str, np.ndarray]) -> State:
    """Undo :func:`flatten`."""
    tree: State = {}
    for path, array in arrays.items():
        *branches, leaf = (part.replace("%2F", "/").replace("%25", "%") for part in path.split("/"))
        place = tree
        for name in branches:
            place = place.setdefault(name, {})  # type: ignore[assignment]
        place[leaf] = array
    return tree


def write_model(path: Path, stored: StoredModel) -> None:
    """Write a model file (safetensors: no code runs when a stranger's file is read)."""
    arrays = flatten(stored.state)
    # One entry, because several would be written in any order. That of the tasks is theirs, so names are not sorted.
    record = json.dumps({"format": _FORMAT, "made_from": stored.made_from})
    save_file({name: arrays[name] for name in sorted(arrays)}, path, {"record": record})


def read_model(path: Path, *under: str) -> StoredModel:
    """Read a model file, or the part of its tree under some names.

    Raises:
        StaleModelError: If the file is of another version of this project, or is no whole model file.
    """
    prefix = "".join(name.replace("%", "%25").replace("/", "%2F") + "/" for name in under)
    made_from, arrays = _read(path, lambda name: name.startswith(prefix))
    return StoredModel(unflatten({name.removeprefix(prefix): array for name, array in arrays.items()}), made_from)


def read_record(path: Path) -> dict[str, Any]:
    """Read what made a model, without its arrays; errors as of :func:`read_model`."""
    return _read(path, lambda name: False)[0]


def _read(path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with safe_open(path, framework="numpy") as file:
            record = json.loads((file.metadata() or {}).get("record", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118
    except (SafetensorError, OSError, MemoryError, ValueError) as error:
        if (lack := lacking(error, f"reading {path}")) is not None:
            raise lack from error
        raise StaleModelError(
            f"The model file cannot be read: {error}.\n  where: {path}\n  what to do: fit the model again."
        ) from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise StaleModelError(
            "The model file was written by another version of this project.\n"
            f"  where: {path}\n  what to do: fit the model again."
        )
    return record["made_from"], arrays


def differences(stored: Any, asked: Any, path: str = "") -> list[str]:
    """Return the paths at which two trees of plain values differ, with both values where they are short."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        names = [*stored, *(name for name in asked if name not in stored)]
        return [
            line
            for name in names
            for line in differences(stored.get(name), asked.get(name), f"{path}.{name}" if path else str(name))
        ]
    if stored == asked:
        return []
    if any(isinstance(value, str) and len(value) == 64 for value in (stored, asked)):
        return [path]
    return [f"{path} ({json.dumps(stored)}, now {json.dumps(asked)})"]


def check_fit(namespace: str, where: str, made_from: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a stored model that was made from something else.

    Args:
        namespace: The box of the model on the pipeline map, which ends with its name.
        where: The file or catalog entry.
        made_from: See :class:`StoredModel`.
        asked: The same as it is now; what it does not name is not compared.

    Raises:
        StaleModelError: Names what differs.
    """
    found: list[str] = []
    for group, now in asked.items():
        found += differences({name: made_from.get(group, {}).get(name) for name in now}, now, group)
    if found:
        shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        model = namespace.rpartition(".")[2]
        raise StaleModelError(
            f"The stored weights of model '{model}' do not fit: they were made from other {shown}.\n"
            f"  where: {where}\n"
            f"  what to do: fit it again: kedro run --namespaces {namespace}, or with the nodes before it: kedro run"
        )
