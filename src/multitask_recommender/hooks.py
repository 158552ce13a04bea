"""What happens around a run: parameter names are checked, errors made readable, and the run recorded."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import click
from kedro.config import MissingConfigException
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DatasetError, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.validation import ParameterValidationError

from multitask_recommender.configuration_files import check_mappings
from multitask_recommender.datasets import StreamedOutput
from multitask_recommender.duckdb_engine import renew_limits
from multitask_recommender.foundation.errors import DataError, SettingsError, did_you_mean, find_study_error
from multitask_recommender.foundation.resources import lacking, limit_memory
from multitask_recommender.runs.files import file_digest, local_files
from multitask_recommender.runs.reuse import Reuse, run_folder
from multitask_recommender.runs.tracking import Tracking, TrackingError, store_of

logger = logging.getLogger(__name__)

PARAMETER_GROUPS = frozenset(
    {
        "dataset",
        "splits",
        "study",
        "user_embedding",
        "cross_validation",
        "models",
        "evaluation",
        "simulation",
        "sweep",
        "engine",
        "spark",
        "training",
        "tracking",
    }
)
"""Every top-level name of the ``parameters`` files."""

_OF_PYDANTIC = re.compile(r" \[type=\w+, input_value=.*, input_type=\w+\]|\n *For further information visit \S+")
"""What a message of pydantic says to programmers."""

_UNKNOWN_NAMESPACES = re.compile(r"Pipeline does not contain nodes with the following namespaces: (.*)")
"""What Kedro says of names in ``--namespaces`` that are no box of the pipeline map."""
_UNKNOWN_NODES = re.compile(r"Pipeline does not contain nodes named \[(.*?)\]")
"""What it says of names in ``--nodes``, ``--from-nodes`` and ``--to-nodes`` that are no node."""

_RECORDED_PACKAGES = ("duckdb", "ibis-framework", "kedro", "numpy", "pandas", "scipy", "torch")


class ParameterNames:
    """Refuses parameters that nothing reads: groups, and models; names inside are checked by their settings class."""

    def __init__(self) -> None:
        self._models: list[str] = []

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Check the names of the top-level parameters.

        Raises:
            SettingsError: If one is unknown.
        """
        parameters = context.config_loader["parameters"]
        # What was read stays: Kedro would read and merge all files again.
        context.config_loader["parameters"] = parameters
        given = {**parameters, **(context._runtime_params or {})}
        unknown = sorted(map(str, set(given) - PARAMETER_GROUPS))
        if unknown:
            raise SettingsError(
                f"Unknown parameter '{unknown[0]}'{did_you_mean(unknown[0], PARAMETER_GROUPS)}\n"
                "  where: conf/*/parameters*.yml or --params\n"
                f"  what to do: remove it; known groups are {', '.join(sorted(PARAMETER_GROUPS))}."
            )
        check_mappings(given, PARAMETER_GROUPS - {"engine"})
        # The numbers themselves are checked by their settings class, before any node runs.
        limit = given.get("study", {}).get("memory_gb")
        limit_memory(limit if isinstance(limit, int | float) and 0 < limit < math.inf else None)
        renew_limits()
        self._models = list(map(str, given.get("models", {})))

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Refuse parameters of a model that does not exist, which nothing would read.

        Raises:
            SettingsError: Names the nearest model.
        """
        # Here, because the models need PyTorch, and other commands of Kedro do not.
        from multitask_recommender.models.variants import VARIANTS

        known = {variant.block for variant in VARIANTS.values()}
        for name in self._models:
            if name not in known:
                raise SettingsError(
                    f"'models.{name}' holds parameters of no model{did_you_mean(name, known)}\n"
                    "  where: 'models' in conf/*/parameters*.yml or --params\n"
                    "  what to do: correct the name, or remove the block; the models are listed in models/variants.py."
                )


class TrainingDevice:
    """Lets a run train where ``training.device`` says."""

    @hook_impl
    def before_pipeline_run(self, catalog: Any) -> None:
        """Choose the device.

        Raises:
            SettingsError: If there is no such device, or ``training`` has another name in it.
        """
        # Here, because it needs PyTorch, and other commands of Kedro do not.
        from multitask_recommender.models.training.devices import choose_device

        given = dict(catalog.load("params:training")) if catalog.exists("params:training") else {}
        device = given.pop("device", "auto")
        if given:
            raise SettingsError(
                f"Unknown parameter 'training.{min(given)}'.\n  where: conf/*/parameters*.yml or --params\n"
                "  what to do: remove it; 'training' has 'device' alone."
            )
        choose_device(str(device))


class Runners:
    """Refuses runners that the tables cannot be read with: a connection of DuckDB belongs to one thread."""

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, run_params: dict[str, Any]) -> None:
        """Check the runner.

        Raises:
            SettingsError: If it is not the sequential one, or loads and saves in threads.
        """
        runner = str(run_params.get("runner"))
        for name in ("ThreadRunner", "ParallelRunner"):
            if name in runner:
                _refuse_runner(f"--runner {name}")
        command = click.get_current_context(silent=True)
        if command is not None and command.params.get("is_async"):
            _refuse_runner("--async")

    @hook_impl
    def before_node_run(self, is_async: bool) -> None:
        """Check the same of a runner that was made in Python."""
        if is_async:
            _refuse_runner("is_async=True")


def _refuse_runner(name: str) -> NoReturn:
    raise SettingsError(
        f"The pipelines cannot be run with '{name}': their tables are read through one connection, in one thread.\n"
        "  where: the options of kedro run\n"
        "  what to do: leave it out; fits already run on 'cross_validation.workers' processes at the same time."
    )


class FreeDatasets:
    """Spares a run the time of listing all data sets of the pipeline again whenever the runner releases one of them."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        """Keep the pipeline's inputs and outputs, which do not change."""
        for name in ("inputs", "outputs"):
            setattr(pipeline, name, getattr(pipeline, name)().copy)


class UnreadParts:
    """Leaves unread what a node puts into a bundle, of which names alone count: lists for all users take gigabytes."""

    def __init__(self) -> None:
        self._catalog: Any = None

    @hook_impl
    def before_pipeline_run(self, catalog: Any) -> None:
        """Keep the catalog."""
        self._catalog = catalog

    @hook_impl
    def before_dataset_loaded(self, dataset_name: str, node: Node) -> None:
        """Let an output that is only handed over stay unread."""
        # Here, because the models need PyTorch, and other commands of Kedro do not.
        from multitask_recommender.pipelines.bundles import bundle

        if node.func is bundle:
            dataset = self._catalog.get(dataset_name)
            if isinstance(dataset, StreamedOutput):
                dataset.stay_unread()


class ReadableErrors:
    """Shows an error that the user can settle as its message alone, and names the file of a faulty table."""

    def __init__(self) -> None:
        self._datasets: dict[str, Any] = {}
        # At once, because the configuration is read before any hook is called.
        if sys.excepthook is sys.__excepthook__:
            sys.excepthook = _show_error

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: Any) -> None:
        """Remember where the raw tables lie, and refuse to start without one.

        An evaluation goes on without the models that have not been run.

        Raises:
            DataError: If the local file of an input does not exist.
        """
        missing = {}
        for name in sorted(pipeline.inputs()):
            dataset = catalog.get(name)
            self._datasets[name] = dataset
            absent = [path for path in local_files(dataset) if not path.exists()]
            if absent:
                missing[name] = str(absent[0])
        for name in _leave_out(set(missing), pipeline, catalog):
            missing.pop(name, None)
        for name, path in missing.items():
            error = DataError(name, "The file does not exist.", _remedy(name, path))
            error.file = path
            raise error

    @hook_impl
    def on_node_error(self, error: Exception, node: Node) -> None:
        """Complete the error with the node, and with the file of its table."""
        error.add_note(f"node '{node.name}'")
        found = find_study_error(error)
        dataset = self._datasets.get(found.table) if isinstance(found, DataError) else None
        if isinstance(found, DataError) and dataset is not None:
            found.file = str(getattr(dataset, "_filepath", "")) or None
            found.locate = getattr(dataset, "locate", found.locate)


def _remedy(name: str, path: str) -> str:
    """Say how to come by a file that does not exist."""
    if name.startswith("raw_"):
        wheel = "recbole" in path or "is not installed)" in path
        own = "put the file there, or name another one in conf/*/catalog*.yml."
        return f"run 'make data' for MovieLens-100k; for data of your own, {own}" if wheel else own
    makers = [node.name for node in pipelines["__default__"].nodes if name in node.outputs]
    if not makers:
        return "run the pipeline that makes it first."
    return f"run first what makes it, with all before it: kedro run --to-nodes {makers[0]}"


def _leave_out(missing: set[str], pipeline: Pipeline, catalog: Any) -> list[str]:
    """Put nothing in the place of outputs of models that have not been run, for an evaluation of the others.

    Args:
        missing: Inputs whose files do not exist.
        pipeline: The pipeline to run.
        catalog: Where the empty outputs go.

    Returns:
        The inputs that are empty now.
    """
    if not missing:
        return []
    # Here, because the models need PyTorch, and other commands of Kedro do not.
    from multitask_recommender.models.variants import VARIANTS
    from multitask_recommender.pipelines.recommender.task_affinity import NOT_MEASURED

    outputs = {f"{model}.outputs": model for model in VARIANTS if f"{model}.outputs" in pipeline.inputs()}
    absent = [name for name in outputs if name in missing]
    if not outputs or len(absent) == len(outputs):
        return []
    empty: dict[str, Any] = {**{name: {} for name in [*outputs, "user_embedding.outputs"]}, **NOT_MEASURED}
    found = [name for name in empty if name in missing]
    for name in found:
        catalog[name] = MemoryDataset(empty[name])
    if found:
        logger.warning("Left out, since it has not been run: %s", ", ".join(outputs.get(name, name) for name in found))
    return found


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    found = find_study_error(error)
    if found is not None:
        print(f"Error: {found}", file=sys.stderr)
    elif (lack := lacking(error, _doing(error))) is not None:
        print(f"Error: {lack}", file=sys.stderr)
    elif isinstance(error, DatasetError):
        said = _OF_PYDANTIC.sub("", str(error)).strip()
        print(f"Error: {said}\n  what to do: check the file, and its entry in conf/*/catalog*.yml.", file=sys.stderr)
    elif isinstance(error, ParameterValidationError):
        said = _OF_PYDANTIC.sub("", str(error))
        print(f"Error: {said}\n  what to do: correct conf/*/parameters_*.yml or --params.", file=sys.stderr)
    elif isinstance(error, MissingConfigException):
        print(f"Error: {error}\n  what to do: name a folder of conf/ in '--env'.", file=sys.stderr)
    elif (unknown := _UNKNOWN_NAMESPACES.search(str(error))) is not None:
        print(f"Error: {error}\n  what to do: {_known_namespaces(unknown[1])}", file=sys.stderr)
    elif (unknown := _UNKNOWN_NODES.search(str(error))) is not None:
        print(f"Error: {error}\n  what to do: {_nearest_nodes(unknown[1])}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _known_namespaces(unknown: str) -> str:
    """Say which boxes of the pipeline map were meant: those whose last name was given, or else those at the top."""
    known = {prefix for node in pipelines["__default__"].nodes for prefix in node.namespace_prefixes}
    asked = set(re.findall(r"[^\s',\[\]]+", unknown))
    meant = sorted(name for name in known if name.rpartition(".")[2] in asked)
    if meant:
        return f"write them with the boxes around them: --namespaces {','.join(meant)}"
    return f"name boxes of the pipeline map, as {', '.join(sorted(name for name in known if name.count('.') < 2))}"


def _nearest_nodes(unknown: str) -> str:
    """Say which nodes of the study were meant."""
    known = [node.name for node in pipelines["__default__"].nodes]
    asked = re.findall(r"[^\s',]+", unknown)
    return "correct the names; " + " ".join(f"'{name}'{did_you_mean(name, known)}" for name in asked)


def _doing(error: BaseException) -> str:
    """Say what failed: the node, or the data set that was loaded or saved."""
    if isinstance(error, DatasetError):
        return str(error).strip().splitlines()[0]
    return ", ".join(getattr(error, "__notes__", [])) or "starting the run"


class RunReport:
    """Ends a run with the headline table and the files that a reader wants next."""

    _SHOWN = (
        "metrics",
        "headline",
        "comparisons",
        "group_metrics",
        "expert_utilisation",
        "task_affinity",
        "task_pair_gains",
        "costs",
        "regret",
        "sweep",
        "cv_results",
        "accuracy_figure",
        "verdicts_figure",
        "trade_off_figure",
        "cost_figure",
        "affinity_figure",
        "dropped_rows",
        "left_out",
        "left_out_models",
        "sweep_figure",
        "new_recommendations",
        "update_report",
    )

    def __init__(self, reuse: Reuse) -> None:
        self._reuse = reuse

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: Any) -> None:
        """Print the table and the paths, if this run made them."""
        outputs = pipeline.all_outputs()
        written = {name for node in pipeline.nodes if node.name not in self._reuse.reused for name in node.outputs}
        if "headline" in outputs:
            # Here, because the models need PyTorch, and other commands of Kedro do not.
            from multitask_recommender.runs.headline import headline_lines, shown_models

            table = catalog.load("headline")
            print("\n".join(headline_lines(table, shown_models(table))), end="\n\n")
        shown = [name for name in self._SHOWN if name in outputs]
        lists = (name for name in sorted(outputs) if name.endswith(".recommendations"))
        # A model that the study left out has an empty table.
        example = next((name for name in lists if catalog.get(name).count()), None)
        for name in [*shown, *([example] if example else [])]:
            print(f"{'wrote' if name in written else 'unchanged:'} {catalog.get(name)._filepath}")
        if example:
            print("(one file of recommendations per model, in the folder named after it)")


class RunRecord:
    """Appends a line on every finished run to the file behind ``run_records`` in the catalog.

    The same record goes to a tracking store, if ``tracking`` in the parameters asks for it.
    """

    def __init__(self, reuse: Reuse) -> None:
        self._reuse = reuse
        self._started: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._begin = 0.0
        self._tracking: Tracking | None = None

    @hook_impl
    def before_pipeline_run(self, catalog: Any) -> None:
        """Start the clock, and open the tracking store.

        Raises:
            TrackingError: If the tracking store cannot be used.
        """
        self._seconds.clear()
        self._begin = time.perf_counter()
        self._tracking = None
        folder = run_folder(catalog)
        settings = catalog.load("params:tracking") if "params:tracking" in catalog else None
        store = None if folder is None else store_of(settings, folder)
        if folder is not None and store is not None:
            self._tracking = Tracking(store, folder, str(_plain(catalog.load("params:dataset"))["name"]))

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Start the node's clock."""
        self._started[node.name] = time.perf_counter()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Stop the node's clock."""
        self._seconds[node.name] = round(time.perf_counter() - self._started.pop(node.name), 3)

    @hook_impl
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: Any) -> None:
        """Write the record: data checksums, commit, versions, parameter digest, seeds, what ran and what was reused."""
        target = getattr(catalog.get("run_records"), "_filepath", None)
        if target is None:
            return
        parameters = {
            name.removeprefix("params:"): _plain(catalog.load(name))
            for name in sorted(pipeline.inputs())
            if name.startswith("params:")
        }
        record = {
            "run": run_params.get("run_id"),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "environment": run_params.get("env"),
            "pipeline": run_params.get("pipeline_names") or "__default__",
            # The address of a tracking store may hold a password.
            "params": {
                name: value for name, value in (run_params.get("runtime_params") or {}).items() if name != "tracking"
            },
            "git_commit": _git_commit(Path(run_params.get("project_path", "."))),
            "data_sha256": _checksums(pipeline, catalog),
            "packages": {name: importlib.metadata.version(name) for name in _RECORDED_PACKAGES},
            "parameters_sha256": hashlib.sha256(
                json.dumps(parameters, sort_keys=True, default=str).encode()
            ).hexdigest(),
            "seeds": {
                "splits": parameters.get("splits", {}).get("seed"),
                "study": parameters.get("study", {}).get("seed"),
                "repeats": parameters.get("study", {}).get("repeats"),
            },
            "seconds": round(time.perf_counter() - self._begin, 3),
            "seconds_per_node": self._seconds,
            "reused_from_run": self._reuse.reused,
        }
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        # One write of one line to a file opened for appending cannot be torn by another run.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, (json.dumps(record) + "\n").encode())
        finally:
            os.close(descriptor)
        if self._tracking is not None:
            headline = catalog.load("headline") if "headline" in pipeline.all_outputs() else None
            try:
                self._tracking.send(record, parameters, headline)
            except TrackingError as error:
                logger.error("%s", error)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _checksums(pipeline: Pipeline, catalog: Any) -> dict[str, str]:
    checksums = {}
    for name in sorted(pipeline.inputs()):
        paths = [path for path in local_files(catalog.get(name)) if path.is_file()]
        for path in paths:
            checksums[name if len(paths) == 1 else f"{name}/{path.name}"] = file_digest(path)
    return checksums


def _git_commit(folder: Path) -> str | None:
    """Commit of the project, with ``+changes`` if files differ from it; None outside a repository."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes.strip() else "")
