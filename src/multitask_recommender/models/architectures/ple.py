"""Customised gate control (CGC) and progressive layered extraction (PLE) towers."""

from __future__ import annotations

from itertools import chain

import torch
from pydantic import Field
from torch import Tensor, nn

from multitask_recommender.data.tasks import Task
from multitask_recommender.models.towers.experts import (
    Experts,
    ExpertSettings,
    Gate,
    PerTaskModules,
    identity_heads,
    mix,
)
from multitask_recommender.models.towers.multi_task import MultiTaskRecommender
from multitask_recommender.models.towers.settings import MultiTaskSettings
from multitask_recommender.models.towers.tower import Tower
from multitask_recommender.models.towers.two_tower import Vectors

SHARED = object()
"""Key of the stream that all tasks feed, beside the tasks' own names."""
Streams = dict[object, Tensor]


class PLESettings(MultiTaskSettings, ExpertSettings):
    """Parameters of PLE.

    Attributes:
        levels: Extraction levels; with one it is CGC.
        shared_experts: Experts that every task's gate sees, per level.
        own_experts: Experts of each task alone, per level.
    """

    levels: int = Field(default=1, ge=1, le=32)
    shared_experts: int = Field(default=2, ge=0, le=256)
    own_experts: int = Field(default=1, ge=1, le=256)


class ExtractionLevel(nn.Module):
    """One level: every task mixes its own experts with the shared ones; the shared stream mixes all of them.

    Args:
        tasks: Names of the tasks.
        settings: Parameters.
        last: Whether no level follows, so that no shared stream is needed.
        generator: Source of the initial weights.
    """

    def __init__(self, tasks: list[str], settings: PLESettings, last: bool, generator: torch.Generator) -> None:
        super().__init__()
        dimension, shared, own = settings.dimension, settings.shared_experts, settings.own_experts

        def experts(number: int) -> Experts:
            return Experts(number, dimension, generator, settings.expert_layers)

        def gate(number: int) -> Gate:
            return Gate(dimension, number, generator, settings.gate_layers)

        self.own = PerTaskModules({name: experts(own) for name in tasks})
        self.shared = experts(shared) if shared else None
        self.task_gates = PerTaskModules({name: gate(own + shared) for name in tasks})
        self.shared_gate = None if last or not shared else gate(own * len(tasks) + shared)

    def gates(self, streams: Streams) -> dict[str, Tensor]:
        """Return task to (n, own + shared) gate weights, own experts first."""
        return {name: gate(streams[name]) for name, gate in self.task_gates.items()}

    def forward(self, streams: Streams) -> Streams:
        """Map the streams (n, D) of the tasks and of ``SHARED`` to the next level's."""
        common = [] if self.shared is None else self.shared(streams[SHARED])
        own = {name: experts(streams[name]) for name, experts in self.own.items()}
        result: Streams = {name: mix(weights, [*own[name], *common]) for name, weights in self.gates(streams).items()}
        if self.shared_gate is not None:
            result[SHARED] = mix(self.shared_gate(streams[SHARED]), [*chain(*own.values()), *common])
        return result


class PLETower(Tower):
    """Levels of shared and own experts, then one head per task.

    Source: Tang et al., Progressive Layered Extraction (PLE), RecSys 2020, equations 1 to 7. Without shared experts no
    task sees another's.

    Args:
        tasks: The tasks.
        settings: Parameters.
        generator: Source of the initial weights.
    """

    def __init__(self, tasks: dict[str, Task], settings: PLESettings, generator: torch.Generator) -> None:
        super().__init__()
        self.width = settings.dimension
        self.levels = nn.ModuleList(
            ExtractionLevel(list(tasks), settings, last=level == settings.levels - 1, generator=generator)
            for level in range(settings.levels)
        )
        self.heads = identity_heads(tasks, settings.dimension)

    def _before_last(self, shared: Tensor) -> Streams:
        streams: Streams = dict.fromkeys((*self.heads.names, SHARED), shared)
        for level in self.levels[:-1]:
            streams = level(streams)
        return streams

    def before_heads(self, shared: Tensor) -> Vectors:
        """Map (n, D) shared vectors to task to (n, D), what the last level makes of them."""
        streams = self.levels[-1](self._before_last(shared))
        return {name: streams[name] for name in self.heads.names}

    def head_maps(self) -> Vectors:
        """Return task to H_k."""
        return dict(self.heads.items())

    def gates(self, shared: Tensor) -> dict[str, Tensor]:
        """Return task to (n, own + shared experts) gate weights of the last level."""
        last = self.levels[-1]
        assert isinstance(last, ExtractionLevel)
        return last.gates(self._before_last(shared))

    def expert_names(self, task: str) -> list[str]:
        """Return the names of the experts that a task's gate weighs."""
        last = self.levels[-1]
        assert isinstance(last, ExtractionLevel)
        shared = 0 if last.shared is None else len(last.shared.maps)
        own = len(last.own[task].maps)
        return [f"{task} {n + 1}" for n in range(own)] + [f"(shared) {n + 1}" for n in range(shared)]

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return experts and gates."""
        return list(self.levels.parameters())


class PLE(MultiTaskRecommender[PLESettings]):
    """PLE towers on shared representations; CGC with one level."""

    def tower(self, tasks: dict[str, Task], generator: torch.Generator) -> Tower:
        """Make a tower."""
        return PLETower(tasks, self.settings, generator)
