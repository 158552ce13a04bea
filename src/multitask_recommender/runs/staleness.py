"""What of the outputs in a folder is stale, in words for those who only read them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kedro.framework.project import pipelines
from kedro.io import CatalogProtocol
from kedro.validation import ParameterValidationError

from multitask_recommender.datasets import Bundle
from multitask_recommender.foundation.errors import StudyError
from multitask_recommender.runs.files import local_files
from multitask_recommender.runs.keys import LEFT_OUT, Keys
from multitask_recommender.runs.records import Records
from multitask_recommender.runs.reuse import Freshness, every_node, run_folder

_SHOWN = 5
"""Names and differences that are shown; of the others the number is."""


def describe_stale(
    catalog: CatalogProtocol, with_params: Callable[[dict[str, Any]], CatalogProtocol], command: str
) -> list[str]:
    """Return what is stale in the folder of a study, what differs and how to make it anew; nothing where all fits.

    An output fits if the last run that made it or found it unchanged would do so again: what that run was told by
    ``--params`` holds beside the configuration.

    Args:
        catalog: The study as it is configured.
        with_params: Returns the same study with some parameters of ``--params``.
        command: The command that runs the study.

    Returns:
        Paragraphs in Markdown, one for every command that is needed.
    """
    folder = run_folder(catalog)
    if folder is None:
        return []
    stale = _stale(catalog, folder)
    if not stale:
        return []
    nodes = {output: node.name for node in every_node() for output in node.outputs}
    told = _params_of_nodes(folder / "08_reporting" / "runs.jsonl")
    groups: dict[str, dict[str, list[str]]] = {}
    for text in dict.fromkeys(told.get(nodes[name], "{}") for name in stale):
        params = json.loads(text)
        try:
            found = _stale(with_params(_without_limit(params)), folder) if params else stale
        except (StudyError, ParameterValidationError):  # They are no longer parameters of this study.
            found, params = stale, {}
        for name in (one for one in stale if told.get(nodes[one], "{}") == text and one in found):
            full = f"{command}{_pipeline_option(nodes[name])}{_params_option(params)}"
            groups.setdefault(full, {})[name] = found[name]
    return [_paragraph(full, reasons) for full, reasons in groups.items()]


def _stale(catalog: CatalogProtocol, folder: Path) -> dict[str, list[str]]:
    """Return the stale outputs in a folder, with what differs; those of the whole study before those of models."""
    records, nodes = Records(folder), every_node()
    # An evaluation of the models that there are is one as long as the others are not there.
    inputs = [record.made_from.get("inputs", {}) for record in records.all()]
    without = {name for own in inputs for name, key in own.items() if key == LEFT_OUT}
    left_out = [name for name in without if not all(path.exists() for path in local_files(catalog.get(name)))]
    freshness = Freshness(Keys(catalog, nodes, records.key_of, left_out), records, catalog)
    # What is made last is what is shown most. A bundle is as stale as its parts, which are named by themselves.
    names = [name for name in list(freshness.keys.makers)[::-1] if not isinstance(catalog.get(name), Bundle)]
    names.sort(key=lambda name: "." in name)
    return dict(freshness.stale(names))


def _params_of_nodes(records: Path) -> dict[str, str]:
    """Return the ``--params`` of the last run that made or reused the outputs of a node, as JSON."""
    found: dict[str, str] = {}
    if records.is_file():
        for line in records.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
                nodes = [*record["seconds_per_node"], *record["reused_from_run"]]
                found.update(dict.fromkeys(nodes, json.dumps(record["params"])))
            except (ValueError, KeyError, TypeError):
                continue
    return found


def _without_limit(params: dict[str, Any]) -> dict[str, Any]:
    """Leave out how much memory the run was allowed: that is not for the reader of its outputs."""
    study = {name: value for name, value in params.get("study", {}).items() if name != "memory_gb"}
    return {**params, "study": study} if study else {name: own for name, own in params.items() if name != "study"}


def _pipeline_option(node: str) -> str:
    """Return the option that names the pipeline of a node; nothing for the study itself."""
    owners = [name for name, pipeline in pipelines.items() if node in {own.name for own in pipeline.nodes}]
    return "" if "__default__" in owners else f" --pipelines {owners[0]}"


def _params_option(params: Mapping[str, Any]) -> str:
    """Return the option that says parameters, as ``--params`` of Kedro reads them."""

    def leaves(tree: Mapping[str, Any], path: str) -> Iterator[str]:
        for name, value in tree.items():
            if isinstance(value, Mapping):
                yield from leaves(value, f"{path}{name}.")
            else:
                yield f"{path}{name}={value if isinstance(value, str) else json.dumps(value)}"

    return f" --params {shlex.quote(','.join(leaves(params, '')))}" if params else ""


def _paragraph(command: str, stale: Mapping[str, Iterable[str]]) -> str:
    by_reason: dict[str, list[str]] = {}
    for name, reasons in stale.items():
        for reason in reasons:
            by_reason.setdefault(reason, []).append(f"`{name}`")
    lines = [f"> - {reason}: {_some(names)}" for reason, names in list(by_reason.items())[:_SHOWN]]
    if len(by_reason) > _SHOWN:
        lines.append(f"> - and {len(by_reason) - _SHOWN} more differences")
    return "\n".join([*lines, ">", f"> Make them anew: `{command}`"])


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
