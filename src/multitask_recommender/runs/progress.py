"""How far a run is: one bar over the whole of it, with the time left."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.jobs import after_each_job
from multitask_recommender.models.variants import VariantParameters
from multitask_recommender.runs.keys import variant_of
from multitask_recommender.runs.reuse import Reuse

logger = logging.getLogger(__name__)

_RUNS = 5
"""Earlier runs that tell how long a node takes: the longest of them counts, since a model may have been left out."""
_TRUST = 0.1
"""Share of a run after which its own speed counts as much as that of earlier runs."""
_FIRST = 0.03
"""Share of a first run, of which nothing is known, after which its speed tells the time left."""
_ALONE = 0.6
"""What a fit for one task alone takes, next to one for all, where a first run is estimated."""
_LITTLE, _EVALUATION, _ANSWERS = 0.1, 3.0, 0.15
"""The same for steps that fit no model: any, one of the evaluation, and, next to a fit, its answers for the test."""
_NOTHING = 0.01
"""Seconds for an effort of 1 that no step takes which does something."""
_SILENCE = 30.0
"""Seconds after which a line says how far the run is, where there is no terminal."""


def seconds_of_runs(records: Path) -> dict[str, float]:
    """Return how long every node took in the last runs, by the file of run records; a torn line is passed over."""
    found: dict[str, deque[float]] = {}
    if records.is_file():
        for line in records.read_text(encoding="utf-8").splitlines():
            try:
                seconds = json.loads(line)["seconds_per_node"]
            except (ValueError, KeyError, TypeError):
                continue
            for name, own in seconds.items():
                found.setdefault(name, deque(maxlen=_RUNS)).append(float(own))
    return {name: max(own) for name, own in found.items()}


def effort(node: Node, load: Callable[[str], Any]) -> float:
    """Return about how long a node takes, next to one fit of the shared-bottom model.

    Args:
        node: The node.
        load: Loads a parameter by its name in the catalog.
    """
    variant = variant_of(node)
    if variant is None:
        return _EVALUATION if box_of(node) == "evaluation" else _LITTLE
    dataset, study, splits = (load(f"params:{name}") for name in ("dataset", "study", "splits"))
    assert isinstance(dataset, DatasetSettings)
    assert isinstance(study, StudySettings)
    assert isinstance(splits, SplitSettings)
    if not study.runs(variant, dataset):
        return 0.0
    per_fit = variant.recommender.effort
    if variant.per_task:
        per_fit *= _ALONE * len(variant.scored_tasks(variant.trained_tasks(dataset.tasks)))
    if node.short_name == "tune":
        budget = load("params:cross_validation")
        assert isinstance(budget, CrossValidationSettings)
        return per_fit * len(splits.names) * _fits_of_choice(load(f"params:models.{variant.block}"), budget)
    repeats = study.repeats if variant.recommender.stochastic else 1
    if node.short_name == "fit":
        return per_fit * (len(splits.names) * repeats + variant.recommends)
    return per_fit * len(splits.names) * repeats * _ANSWERS if node.short_name == "predict" else _LITTLE


def _fits_of_choice(parameters: VariantParameters, budget: CrossValidationSettings) -> int:
    grid = 1
    for values in (parameters.search or {}).values():
        grid *= len(values)
    tried = min(grid, budget.candidates)
    # Halving: all candidates meet on the first fold, half of them on the next.
    return 2 * tried - 1 if tried > 1 else 0


def box_of(node: Node) -> str:
    """Return what a node is a step of: a model, or else one of the boxes at the top of the pipeline map."""
    variant = variant_of(node)
    return (node.namespace or node.name).split(".")[0] if variant is None else variant.name


class Estimate:
    """How long the nodes of a run are expected to take, and what time is left.

    The expectation is the time that a node took in earlier runs; for one that never ran, its :func:`effort` at the
    speed of the others. How fast the run itself is corrects it.

    Args:
        nodes: The nodes that will run.
        earlier: Node to its seconds in earlier runs.
        load: Loads a parameter by its name in the catalog.

    Attributes:
        boxes: What has something to do (see :func:`box_of`); a model that the study leaves out is not among them.
    """

    def __init__(self, nodes: Sequence[Node], earlier: Mapping[str, float], load: Callable[[str], Any]) -> None:
        counted = {node.name: effort(node, load) for node in nodes}
        self.boxes = {box_of(node) for node in nodes if counted[node.name]}
        # A time of next to nothing is that of a run which left the model out.
        known = {name: earlier.get(name, 0.0) for name, own in counted.items() if own}
        known = {name: seconds for name, seconds in known.items() if seconds > _NOTHING * counted[name]}
        self.first = not known
        unit = 1.0 if self.first else sum(known.values()) / sum(counted[name] for name in known)
        self.expected = {name: known.get(name, own * unit) for name, own in counted.items()}
        self.total = sum(self.expected.values())
        self.done = 0.0

    def finish(self, node: str) -> None:
        """Note that a node is done."""
        self.done += self.expected.get(node, 0.0)

    def reached(self, node: str | None, seconds: float, elapsed: float) -> float:
        """Return how far the run is, between 0 and 1.

        Args:
            node: The node that runs now.
            seconds: For how long it has been running.
            elapsed: For how long the run has been running.
        """
        # A node that takes longer than expected does not count as done.
        own = self.expected.get(node or "", 0.0)
        within = min(seconds / self._pace(elapsed - seconds), 0.95 * own)
        return min((self.done + within) / self.total, 1.0) if self.total else 1.0

    def left(self, node: str | None, seconds: float, elapsed: float) -> float | None:
        """Return the seconds that are left; None while nothing tells. The arguments are those of :meth:`reached`."""
        share = self.reached(node, seconds, elapsed)
        if self.first and share < _FIRST:
            return None
        return (1.0 - share) * self.total * self._pace(elapsed - seconds)

    def _pace(self, elapsed: float) -> float:
        """Return seconds that pass for every second that was expected, by the nodes that are done."""
        trust = 0.0 if self.first else _TRUST * self.total
        return (elapsed + trust) / (self.done + trust) if elapsed > 0 and self.done + trust > 0 else 1.0


def in_words(seconds: float | None) -> str:
    """Return a time left in words."""
    if seconds is None:
        return "time left not known yet"
    if seconds < 55:
        return f"about {max(round(seconds / 5) * 5, 5)} s left"
    if seconds < 3600:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


class Progress:
    """Hook: shows how far a run is. At a terminal it is one bar; elsewhere a line for every model and pipeline.

    Args:
        reuse: Knows the nodes that need not run.
    """

    def __init__(self, reuse: Reuse) -> None:
        self._reuse = reuse
        self._open = ExitStack()
        self._prepare: Callable[[], None] | None = None

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Remember what will be run: what is reused is known when the first node begins."""
        self._prepare = lambda: self._begin(pipeline.nodes, catalog)

    def _begin(self, nodes: Iterable[Node], catalog: CatalogProtocol) -> None:
        own = [node for node in nodes if node.name not in self._reuse.reused]
        records = getattr(catalog.get("run_records"), "_filepath", None)
        loaded: dict[str, Any] = {}

        def load(name: str) -> Any:
            if name not in loaded:
                loaded[name] = catalog.load(name)
            return loaded[name]

        earlier = seconds_of_runs(Path(records)) if records is not None else {}
        self._estimate = Estimate(own, earlier, load)
        self._steps, self._finished = len(own), 0
        self._waiting = Counter(map(box_of, own))
        self._seconds: dict[str, float] = {}
        self._started = self._said = time.perf_counter()
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._open.enter_context(logging_redirect_tqdm())
            self._bar = tqdm(
                total=1.0,
                leave=False,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}% |{bar:25}| {desc}",
            )
            self._open.callback(self._bar.close)
        after_each_job(self._show)
        self._open.callback(after_each_job, None)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Show the node."""
        if self._prepare is not None:
            self._prepare()
            self._prepare = None
        self._node, self._since = node, time.perf_counter()
        self._show()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Count the node; say that a model or a pipeline is done."""
        box, now = box_of(node), time.perf_counter()
        self._finished += 1
        self._estimate.finish(node.name)
        self._waiting[box] -= 1
        self._seconds[box] = self._seconds.get(box, 0.0) + now - self._since
        self._since = now
        ended = self._waiting[box] == 0 and box in self._estimate.boxes
        if self._bar is None and (ended or now - self._said > _SILENCE):
            what = f"{box}: done in {self._seconds[box]:.1f} s" if ended else f"{box}, {node.short_name}: done"
            logger.info("%s; step %d of %d, %s", what, self._finished, self._steps, self._time_left(None))
            self._said = now

    def _time_left(self, node: str | None) -> str:
        now = time.perf_counter()
        if self._finished == self._steps:
            return "nothing left"
        return in_words(self._estimate.left(node, now - self._since, now - self._started))

    def _show(self) -> None:
        if self._bar is None:
            return
        now, name = time.perf_counter(), self._node.name
        self._bar.n = self._estimate.reached(name, now - self._since, now - self._started)
        steps = f"step {self._finished + 1} of {self._steps}"
        self._bar.set_description_str(
            f"{self._time_left(name)}, {steps}: {box_of(self._node)}, {self._node.short_name}"
        )

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Remove the bar."""
        self._open.close()

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Remove the bar."""
        self._open.close()
