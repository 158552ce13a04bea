"""Plain values and arrays in one file, from which exactly the same values are read: no pickle, no rounding."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file


class NotPlainError(TypeError):
    """A value that is no tree of texts, numbers, arrays, lists, tuples and dictionaries with texts as keys."""


def write_values(path: Path, value: Any) -> None:
    """Write a tree of values; the file appears when it is whole.

    Raises:
        NotPlainError: If something in the tree is of another type.
    """
    arrays: dict[str, np.ndarray] = {}
    tree = json.dumps(_encode(value, arrays))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(arrays, partial, {"tree": tree})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_values(path: Path) -> Any:
    """Read what :func:`write_values` wrote.

    Raises:
        OSError: If there is no such file, or it is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return _decode(json.loads(file.metadata()["tree"]), file.get_tensor)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise OSError(f"{path} is damaged: {error}") from error


def _encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    # A boolean is an int, a NumPy float a float: exact types alone are read back as they were.
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        name = str(len(arrays))
        array = np.asarray(value)
        arrays[name] = array.copy(order="C")
        return ["array" if isinstance(value, np.ndarray) else "scalar", name]
    if type(value) in (list, tuple):
        return [type(value).__name__, *(_encode(own, arrays) for own in value)]
    if type(value) is dict and all(type(name) is str for name in value):
        return {name: _encode(own, arrays) for name, own in value.items()}
    raise NotPlainError(f"a {type(value).__name__} is no plain value")


def _decode(value: Any, array: Any) -> Any:
    if isinstance(value, dict):
        return {name: _decode(own, array) for name, own in value.items()}
    if not isinstance(value, list):
        return value
    kind, *rest = value
    if kind == "array":
        return array(rest[0])
    if kind == "scalar":
        return array(rest[0])[()]
    values = [_decode(own, array) for own in rest]
    return tuple(values) if kind == "tuple" else values
