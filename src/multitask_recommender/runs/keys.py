"""Keys of outputs: digests of all that an output depends on, known before it is made.

The key of an output is the digest of the code of its node, the versions of the packages that compute, the values of its
parameters and the keys of its inputs; that of a raw table is the digest of its contents. Two outputs of one key are the
same, as derivations are in Nix (E. Dolstra, The Purely Functional Software Deployment Model, 2006).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline.node import Node

from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.models.variants import VARIANTS, Variant
from multitask_recommender.runs.files import file_digest, local_files

PACKAGE = "multitask_recommender"
COMPUTING_PACKAGES = ("duckdb", "ibis-framework", "matplotlib", "numpy", "pandas", "pyarrow", "scipy", "torch")
"""Installed packages whose version may change an output."""
PARAMETER = "params:"
RAW = "raw_"
LEFT_OUT = "left out"
"""Key of a data set in whose place a run reads an empty one."""


def digest(value: Any) -> str:
    """Return the SHA-256 of a plain value. The order of names counts, as that of the tasks does."""
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


_IMPORT = re.compile(
    rf"\bfrom[ \t]+{PACKAGE}[\w.]*[ \t]+import\b(?:[ \t]*\([^)]*\)|.*)|\bimport\b.*\b{PACKAGE}\b.*".encode()
)
"""Statements that import modules of this package. To find them takes a fraction of what parsing all source takes."""


@functools.cache
def _imports(module: str) -> tuple[str, frozenset[str]]:
    """Return the digest of a module's source and the modules of this package that it imports, wherever in it."""
    specification = importlib.util.find_spec(module)
    if specification is None or specification.origin is None:
        return "", frozenset()
    source = Path(specification.origin).read_bytes()
    found: set[str] = set()
    try:
        statements: list[ast.AST] = [
            statement for text in _IMPORT.findall(source) for statement in ast.parse(text).body
        ]
    except SyntaxError:
        # Something else looks like an import, or one goes on in the next line.
        statements = list(ast.walk(ast.parse(source)))
    for statement in statements:
        if isinstance(statement, ast.Import):
            found.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            # What is imported may be a module or a name inside one.
            found.add(statement.module)
            found.update(f"{statement.module}.{alias.name}" for alias in statement.names)
    own = {name for name in found if name.split(".")[0] == PACKAGE and _is_module(name)}
    return hashlib.sha256(source).hexdigest(), frozenset(own)


@functools.cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def code_digest(module: str) -> str:
    """Return a digest of the source of a module and of all modules of this package that it imports, however far."""
    sources: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in sources:
            sources[name], imported = _imports(name)
            waiting.extend(imported)
    return digest(sorted(sources.items()))


def _module(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(function.__module__)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute."""
    found = {name: importlib.metadata.version(name) for name in COMPUTING_PACKAGES}
    return {"python": platform.python_version(), **found}


def variant_of(node: Node) -> Variant | None:
    """Return the model that a node is a step of."""
    found = VARIANTS.get((node.namespace or "").rpartition(".")[2])
    return found if found is not None and found.namespace == node.namespace else None


def plain(value: Any) -> Any:
    """Return a parameter as plain values, without the settings that change no output."""
    if isinstance(value, Mapping):
        return {name: plain(own) for name, own in value.items()}
    if not hasattr(value, "model_dump"):
        return value
    return value.model_dump(mode="json", exclude=set(value.without_effect))


@dataclass(frozen=True)
class Ingredients:
    """What an output is made from.

    Attributes:
        node: Name of the node that makes it.
        code: Digest of the code of the node.
        versions: Versions of the packages that compute.
        parameters: Values of the parameters that the node reads.
        inputs: Keys of the data sets that the node reads.
        outputs: How the catalog writes what the node makes.
    """

    node: str
    code: str
    versions: dict[str, str]
    parameters: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """The key of what is made from them."""
        return digest(self.told())

    def told(self) -> dict[str, Any]:
        """Return them by name, as a record holds them."""
        return {own.name: getattr(self, own.name) for own in fields(self)}


class Keys:
    """The keys of all data sets, as the parameters, the code and the raw tables are now.

    Args:
        catalog: Where parameters and raw tables are.
        nodes: All nodes of the project.
        remembered: Raw table to the key that it had when it was last read, for one that is no longer there.
        left_out: Data sets in whose place a run reads empty ones.
    """

    def __init__(
        self,
        catalog: CatalogProtocol,
        nodes: Iterable[Node],
        remembered: Callable[[str], str | None],
        left_out: Iterable[str] = (),
    ) -> None:
        self._catalog = catalog
        self._remembered = remembered
        self._left_out = frozenset(left_out)
        self.makers: dict[str, Node] = {output: node for node in nodes for output in node.outputs}
        self._ingredients: dict[str, Ingredients | None] = {}
        self._raw: dict[str, str | None] = {}
        self._parameters: dict[str, Any] = {}
        self._plain: dict[str, Any] = {}

    def of(self, name: str) -> str | None:
        """Return the key of a data set; None if it depends on a raw table that never was there.

        Args:
            name: Name of the data set in the catalog.
        """
        if name in self._left_out:
            return LEFT_OUT
        if name.startswith(RAW) or name not in self.makers:
            return self._of_contents(name)
        ingredients = self.ingredients(self.makers[name])
        return None if ingredients is None else ingredients.key

    def ingredients(self, node: Node) -> Ingredients | None:
        """Return what the outputs of a node are made from; None if it depends on a raw table that never was there."""
        if node.name not in self._ingredients:
            inputs = {name: self.of(name) for name in node.inputs if not name.startswith(PARAMETER)}
            known = {name: key for name, key in inputs.items() if key is not None}
            parameters = {name: self._parameter(name, node) for name in node.inputs if name.startswith(PARAMETER)}
            self._ingredients[node.name] = (
                Ingredients(
                    node.name,
                    code_digest(_module(node.func)),
                    versions(),
                    parameters,
                    known,
                    {name: described(own) for name in node.outputs if local_files(own := self._catalog.get(name))},
                )
                if len(known) == len(inputs)
                else None
            )
        return self._ingredients[node.name]

    def forget_contents(self) -> None:
        """Look at the raw tables anew: nodes that ran may have written some."""
        self._raw.clear()
        self._ingredients.clear()

    def _read(self, name: str) -> Any:
        """Read parameters once: the catalog copies them every time."""
        if name not in self._parameters:
            # A pipeline that the environment does not describe has no parameters.
            self._parameters[name] = self._catalog.load(name) if name in self._catalog else None
        return self._parameters[name]

    def _parameter(self, name: str, node: Node) -> Any:
        value = self._read(name)
        if isinstance(value, StudySettings) and node.tags & {"user_embedding", "recommender"}:
            # A model does not change with the list of models that are studied, but with being on it.
            variant = variant_of(node)
            runs = variant is None or value.runs(variant, self._read("params:dataset"))
            return {
                "runs": runs,
                **value.model_dump(mode="json", exclude={*value.without_effect, *value.not_of_models}),
            }
        if name not in self._plain:
            self._plain[name] = plain(value)
        return self._plain[name]

    def _of_contents(self, name: str) -> str | None:
        if name not in self._raw:
            dataset = self._catalog.get(name)
            paths = local_files(dataset)
            if all(path.is_file() for path in paths):
                contents = {path.name: file_digest(path) for path in paths}
                self._raw[name] = digest([described(dataset), contents])
            else:
                self._raw[name] = self._remembered(name)
        return self._raw[name]


_PLACES = frozenset({"connection", "filepath", "metadata", "version", "credentials", "storage_options", "fs_args"})
"""Arguments of a data set that do not change what it holds."""


def described(dataset: Any) -> list[Any]:
    """Return how a data set reads and writes, as plain values."""

    def told(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(name): told(own) for name, own in value.items() if name not in _PLACES and own is not None}
        return [told(own) for own in value] if isinstance(value, list | tuple) else str(value)

    return [type(dataset).__name__, told(getattr(dataset, "_init_args", None) or {})]
