"""Never stale: what did not change is reused, and what no longer fits is refused or made anew."""

from __future__ import annotations

import functools
import gc
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.io import CatalogProtocol, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner
from pluggy import PluginManager

from multitask_recommender.datasets import Bundle
from multitask_recommender.foundation.errors import StudyError
from multitask_recommender.foundation.jobs import keep_results
from multitask_recommender.models.stored import differences
from multitask_recommender.runs.files import local_files
from multitask_recommender.runs.keys import PARAMETER, RAW, Ingredients, Keys
from multitask_recommender.runs.records import OutputRecord, Records

logger = logging.getLogger(__name__)


class StaleOutputError(StudyError):
    """An output of an earlier run that is not what the run at hand would make."""


def run_folder(catalog: CatalogProtocol) -> Path | None:
    """Return the folder of the outputs of a run: that in which ``08_reporting`` with the run records lies."""
    target = getattr(catalog.get("run_records"), "_filepath", None)
    return None if target is None else Path(target).parents[1]


def every_node() -> list[Node]:
    """Return the nodes of all pipelines, each once."""
    return list({node.name: node for pipeline in pipelines.values() for node in pipeline.nodes}.values())


@dataclass
class Freshness:
    """Which outputs of a folder are those that the parameters, the code and the raw tables of now would make.

    Attributes:
        keys: What every output would be made from now.
        records: What the outputs were made from.
        catalog: Where the outputs are.
    """

    keys: Keys
    records: Records
    catalog: CatalogProtocol
    _checked: dict[str, bool] = field(default_factory=dict)
    _files: dict[str, Path | None] = field(default_factory=dict)
    _found: dict[str, list[str]] = field(default_factory=dict)

    def file(self, dataset: str) -> Path | None:
        """Return the file of an output; None for one that is kept in memory, or elsewhere than in a local file."""
        if dataset not in self._files:
            files = local_files(self.catalog.get(dataset))
            self._files[dataset] = files[0] if len(files) == 1 else None
        return self._files[dataset]

    def is_fresh(self, dataset: str) -> bool:
        """Return whether an output is there, as it was made, from what it would be made from now."""
        if dataset not in self._checked:
            record, file = self.records.read(dataset), self.file(dataset)
            now = self.keys.ingredients(self.keys.makers[dataset])
            same = record is not None and now is not None and record.key == now.key
            whole = same and record is not None and file is not None and record.holds(file)
            self._checked[dataset] = whole and all(map(self.is_fresh, self._parts(dataset)))
        return self._checked[dataset]

    def _parts(self, dataset: str) -> list[str]:
        """Return the outputs that a bundle hands over with itself."""
        return self.keys.makers[dataset].inputs if isinstance(self.catalog.get(dataset), Bundle) else []

    def reusable(self, nodes: Iterable[Node]) -> list[Node]:
        """Return the nodes of a pipeline that need not run.

        Args:
            nodes: The nodes, what makes something before what reads it.
        """
        nodes = list(nodes)
        written: set[str] = set()
        fresh: dict[str, bool] = {}
        for node in nodes:
            kept = [name for name in node.outputs if self.file(name) is not None]
            # A raw table that is about to be written anew tells nothing of what it will hold.
            pending = written.intersection(node.inputs)
            fresh[node.name] = bool(kept) and not pending and all(map(self.is_fresh, kept))
            if not fresh[node.name]:
                written.update(name for name in node.outputs if name.startswith(RAW) or pending)
        asked: set[str] = set()
        reused: list[Node] = []
        for node in reversed(nodes):
            kept = [name for name in node.outputs if self.file(name) is not None]
            # What is kept in memory is made for those who read it.
            idle = not asked.intersection(node.outputs) and (fresh[node.name] if kept else self._is_read(node, nodes))
            if idle:
                reused.append(node)
            else:
                asked.update(name for name in node.inputs if not name.startswith(PARAMETER) and self.file(name) is None)
        return reused[::-1]

    @staticmethod
    def _is_read(node: Node, nodes: list[Node]) -> bool:
        return any(set(node.outputs).intersection(other.inputs) for other in nodes)

    def differs(self, dataset: str) -> list[str]:
        """Return what an output was made from that is no longer the same, in words; nothing for a fresh one."""
        record = self.records.read(dataset)
        now = self.keys.ingredients(self.keys.makers[dataset])
        if record is None:
            return ["nothing says what made it"]
        if now is None:
            return ["a raw table that it depends on is not there"]
        file = self.file(dataset)
        if record.key == now.key:
            if file is None or not record.holds(file):
                return [f"its file{'' if file is None else f' {file.name}'} is gone or was changed afterwards"]
            return [reason for part in self._parts(dataset) for reason in self.differs(part)]
        return self._roots(record, now)

    def _roots(self, record: OutputRecord, now: Ingredients) -> list[str]:
        if record.dataset not in self._found:
            self._found[record.dataset] = list(dict.fromkeys(self._find_roots(record, now)))
        return self._found[record.dataset]

    def _find_roots(self, record: OutputRecord, now: Ingredients) -> Iterable[str]:
        before = record.made_from
        yield from differences(
            {name.removeprefix(PARAMETER): value for name, value in before["parameters"].items()},
            {name.removeprefix(PARAMETER): value for name, value in now.parameters.items()},
        )
        yield from differences(before["versions"], now.versions)
        if before["outputs"] != now.outputs:
            yield "the catalog entry"
        for name, key in now.inputs.items():
            if before["inputs"].get(name) == key:
                continue
            maker = None if name.startswith(RAW) else self.keys.makers.get(name)
            own = self.records.read(name)
            found = self.keys.ingredients(maker) if maker is not None else None
            if own is None or found is None or own.key == found.key:
                yield f"{'contents' if maker is None else 'values'} of '{name}'"
            else:
                yield from self._roots(own, found)
        if before["code"] != now.code:
            yield "the code"

    def stale(self, names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
        """Yield the outputs that are there and were made from something else, with what differs.

        Args:
            names: Names of data sets; those that no node makes are passed over.
        """
        for name in names:
            file = self.file(name) if name in self.keys.makers else None
            if file is None or not file.exists():
                continue
            record = self.records.read(name)
            if name.startswith(RAW) and (record is None or not record.made_from):
                continue  # A file of the user's own.
            found = [] if self.is_fresh(name) else self.differs(name)
            if found:
                yield name, found

    def check(self, inputs: Iterable[str]) -> None:
        """Refuse inputs that other nodes of the project made from something else.

        Args:
            inputs: Names of the data sets that a run would read and does not make.

        Raises:
            StaleOutputError: Names the first of them, what differs, and what to do.
        """
        for name, found in self.stale(inputs):
            shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
            raise StaleOutputError(
                f"The output '{name}' does not fit the run: {shown}.\n"
                f"  where: {self.file(name)}\n"
                "  what to do: make it again with all that changed before it, and nothing else: "
                f"kedro run --to-nodes {self.keys.makers[name].name}"
            )


class _SettledPipeline(Pipeline):
    """A pipeline that finds its free inputs and outputs once: Kedro's runner asks for them after every node."""

    @functools.cached_property
    def _ends(self) -> tuple[set[str], set[str]]:
        return super().inputs(), super().outputs()

    def inputs(self) -> set[str]:
        return self._ends[0]

    def outputs(self) -> set[str]:
        return self._ends[1]


class Reuse:
    """Hook: refuses stale inputs, finds the nodes that need not run, and records what makes every output.

    Attributes:
        reused: Nodes whose outputs are those of an earlier run, with the number of that run.
    """

    def __init__(self) -> None:
        self.reused: dict[str, str] = {}
        self._freshness: Freshness | None = None
        self._saved: set[str] = set()
        self._run = ""

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Refuse stale inputs.

        Raises:
            StaleOutputError: If an input was made from something else.
        """
        self.reused, self._freshness, self._run = {}, None, str(run_params["run_id"])
        folder = run_folder(catalog)
        if folder is not None:
            inputs = sorted(name for name in pipeline.inputs() if not name.startswith(PARAMETER))
            # An evaluation goes on without the models that have not been run, see ReadableErrors.
            left_out = [name for name in inputs if isinstance(catalog.get(name), MemoryDataset)]
            records = Records(folder)
            self._freshness = Freshness(Keys(catalog, every_node(), records.key_of, left_out), records, catalog)
            self._freshness.check(inputs)

    def without_reused(self, pipeline: Pipeline) -> Pipeline:
        """Return the part of a pipeline that has to run."""
        if self._freshness is None:
            return _SettledPipeline(pipeline.nodes)
        reused = self._freshness.reusable(pipeline.nodes)
        for node in reused:
            records = map(self._freshness.records.read, node.outputs)
            self.reused[node.name] = next((record.run for record in records if record is not None), self._run)
        if reused:
            logger.info("Reusing the outputs of %d of %d nodes: nothing has changed", len(reused), len(pipeline.nodes))
        return _SettledPipeline([node for node in pipeline.nodes if node.name not in self.reused])

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Forget the outputs' records, and keep the results of the node's jobs until its outputs are written."""
        self._saved = set()
        if self._freshness is None:
            return
        raw = [name for name in node.inputs if name.startswith(RAW)]
        if raw:
            self._freshness.keys.forget_contents()
        for name in raw:
            key, record = self._freshness.keys.of(name), self._freshness.records.read(name)
            if key is not None and (record is None or not record.made_from):
                self._freshness.records.write(name, self._run, key, {}, self._freshness.file(name))
        for name in node.outputs:
            self._freshness.records.remove(name)
        made_from = self._freshness.keys.ingredients(node)
        keep_results(None if made_from is None else self._freshness.records.unfinished / made_from.key)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """Record what made an output."""
        if self._freshness is None:
            return
        file = self._freshness.file(dataset_name)
        made_from = self._freshness.keys.ingredients(node)
        if made_from is not None:
            self._freshness.records.write(dataset_name, self._run, made_from.key, made_from.told(), file)
        self._saved.add(dataset_name)
        if made_from is not None and self._saved.issuperset(node.outputs):
            keep_results(None)
            shutil.rmtree(self._freshness.records.unfinished / made_from.key, ignore_errors=True)

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Remove what killed runs with other parameters have kept."""
        if self._freshness is not None:
            shutil.rmtree(self._freshness.records.unfinished, ignore_errors=True)

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Keep no results of what this process does next; those of the node that failed stay for the next run."""
        keep_results(None)


class ReusingSequentialRunner(SequentialRunner):
    """Runs the nodes whose outputs are not there, or were made from something else."""

    @property
    def _logger(self) -> logging.Logger:
        """What Kedro says of every node is not said of the project's own accord."""
        return logging.getLogger(SequentialRunner.__module__)

    def run(
        self,
        pipeline: Pipeline,
        catalog: Any,
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
        only_missing_outputs: bool = False,
    ) -> dict[str, Any]:
        """Run what has to run; ``only_missing_outputs`` asks for nothing more."""
        hooks = hook_manager.get_plugins() if hook_manager is not None else ()
        for hook in hooks:
            if isinstance(hook, Reuse):
                pipeline = hook.without_reused(pipeline)
        gc.freeze()  # Once more, with the pipelines and what was read of the configuration, see ReusingSession.
        return super().run(pipeline, catalog, hook_manager, run_id)


class StudyContext(KedroContext):
    """A context that validates the parameters of all pipelines, whichever runs: keys are made of all of them."""

    def _get_validated_params(self) -> dict[str, Any]:
        self._pipelines_to_validate = None
        return super()._get_validated_params()


class ReusingSession(KedroSession):
    """A session whose runs reuse what has not changed."""

    def run(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Run a pipeline; without a runner, or with the sequential one, by :class:`ReusingSequentialRunner`."""
        runner = options.get("runner")
        if runner is None or type(runner) is SequentialRunner:
            options["runner"] = ReusingSequentialRunner(is_async=getattr(runner, "_is_async", False))
        # Modules outlive the run: to look again and again whether they are garbage takes a sixth of a command that has
        # nothing to do. Afterwards this process, a notebook's perhaps, is as it was.
        gc.freeze()
        try:
            return super().run(*args, **options)
        finally:
            gc.unfreeze()
