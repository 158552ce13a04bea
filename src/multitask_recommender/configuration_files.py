"""YAML files of the configuration, checked before they are read, so that a fault is said with its file and line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf.errors import OmegaConfBaseException

from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.foundation.resources import lacking

_LARGEST = 10_000_000
"""Bytes of the largest file that is taken for a configuration."""
_DEEPEST = 50
"""Most mappings and lists inside each other."""
_MOST_VALUES = 20_000
"""Most values of a file after its aliases are written out."""
_MERGE = "tag:yaml.org,2002:merge"
# The parser in C, where PyYAML has it, because files are parsed once more by Kedro.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_files(folder: Path, patterns: Iterable[str]) -> None:
    """Check the YAML files of one folder of the configuration.

    Args:
        folder: Such as ``conf/base``.
        patterns: Which files of it, such as ``parameters*``.

    Raises:
        SettingsError: If a file is no text in UTF-8, no YAML, not a mapping, has a key twice, is nested too deeply, or
            grows beyond all measure when its aliases are written out. Names file, line and column.
    """
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    for path in sorted(found):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix in (".yml", ".yaml", ".json") and not hidden:
            check_file(path)


def check_file(path: Path) -> None:
    """Check one YAML file; see :func:`check_files`."""
    if not path.is_file():
        raise _error(path, "It is no regular file", "put a text file in its place.")
    if path.stat().st_size > _LARGEST:
        raise _error(path, f"The file has more than {_LARGEST / 1e6:g} MB", "a configuration is a short text.")
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        what = f"The file is not text in UTF-8 (byte 0x{content[error.start]:02x})"
        raise _error(path, what, "save it in UTF-8.", line) from None
    except OSError as error:
        raise (lacking(error, f"reading {path}") or error) from error
    _check_depth(path, text)
    try:
        tree = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = f"The file is not YAML: {error.problem or error.context}"
        remedy = "correct the line."
        if "\t" in error_line(text, mark.line if mark else 0):
            remedy = "indent by spaces: the line has a tab."
        place = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise _error(path, what, remedy, *place) from None
    except (yaml.YAMLError, RecursionError) as error:
        said = (str(error).splitlines() or ["too deep"])[0]
        raise _error(path, f"The file is not YAML: {said}", "remove what no text holds.") from None
    if tree is None:
        return
    if not isinstance(tree, yaml.MappingNode):
        kind = "a list" if isinstance(tree, yaml.SequenceNode) else "a single value"
        raise _error(path, f"The file holds {kind}, and not names with values", "write 'name: value' lines.")
    _check_keys(path, tree)
    if _size(tree, {}) > _MOST_VALUES:
        what = f"The file has more than {_MOST_VALUES:,} values once its aliases (*name) are written out"
        raise _error(path, what, "remove aliases of aliases.")


def error_line(text: str, number: int) -> str:
    """Return a line of a text by its number from 0, or nothing."""
    lines = text.splitlines()
    return lines[number] if number < len(lines) else ""


def _check_depth(path: Path, text: str) -> None:
    """Refuse deep nesting before a parser that calls itself meets it."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                what = f"More than {_DEEPEST} lists and mappings stand inside each other"
                raise _error(path, what, "write it flatter.", event.start_mark.line + 1)
    except yaml.YAMLError:
        return  # Said with its place when the tree is made.


def _check_keys(path: Path, tree: yaml.Node) -> None:
    for node in _nodes(tree, set()):
        if not isinstance(node, yaml.MappingNode):
            continue
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _error(path, "A key is a list or a mapping", "put texts with braces in quotes.", line)
            if key.value in seen and key.tag != _MERGE:
                what = f"The key '{key.value}' stands twice, first in line {seen[key.value]}"
                raise _error(path, what, "keep one of the two.", line)
            seen[key.value] = line


def _nodes(node: yaml.Node, seen: set[int]) -> Iterator[yaml.Node]:
    if id(node) in seen:
        return
    seen.add(id(node))
    yield node
    for part in _parts(node):
        yield from _nodes(part, seen)


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values, those of an aliased node counted as often as it stands."""
    if id(node) not in known:
        known[id(node)] = 0  # An alias of what it stands in counts nothing.
        known[id(node)] = 1 + sum(_size(part, known) for part in _parts(node))
    return known[id(node)]


def _error(path: Path, problem: str, remedy: str, line: int | None = None, column: int | None = None) -> SettingsError:
    place = f", line {line}" if line is not None else ""
    place += f", column {column}" if column is not None else ""
    return SettingsError(f"{problem}.\n  where: {path}{place}\n  what to do: {remedy}")


def explain(kind: str, error: Exception, folders: Iterable[Path]) -> SettingsError:
    """Say what is wrong with configuration that is YAML and yet cannot be put together.

    Args:
        kind: ``parameters``, ``catalog`` or another key of the loader.
        error: What was raised.
        folders: Folders of the configuration that were read.
    """
    key = getattr(error, "full_key", None) if isinstance(error, OmegaConfBaseException) else None
    said = (str(error).splitlines() or [type(error).__name__])[0]
    place = ", ".join(f"{folder}/{kind}*" for folder in folders)
    remedy = "correct it; a text with '${' in it, which is no reference, is written '\\${'."
    if "oc.env" in said:
        remedy = "write the value itself: environment variables are read in credentials*.yml alone."
    where = f"'{key}' in {place}" if key else place
    return SettingsError(f"The {kind} cannot be read: {said}.\n  where: {where}\n  what to do: {remedy}")


def check_mappings(parameters: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse a group of parameters that is no mapping, such as one that is empty.

    Raises:
        SettingsError: Names the group.
    """
    for name in names:
        value = parameters.get(name, {})
        if not isinstance(value, Mapping):
            kind = "nothing" if value is None else "a list" if isinstance(value, list) else f"'{value}'"
            raise SettingsError(
                f"The group of parameters '{name}' holds {kind}, and not names with values.\n"
                f"  where: '{name}' in conf/*/parameters*.yml or --params\n"
                "  what to do: write 'name: value' lines below it, or remove it."
            )
