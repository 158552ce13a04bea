"""STEM towers: an embedding table per task beside the shared one, the other tasks' read without gradient."""

from __future__ import annotations

import torch
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


class STEMSettings(MultiTaskSettings, ExpertSettings):
    """Parameters of STEM."""


class STEMTower(Tower):
    """t_k = (g_k . [own_k, shared, stop(own_l) for l != k]) H_k over K + 1 embedding tables.

    The shared vector holds one slice of length D per table, first the shared table's, then one per task; each has one
    expert. A task's gate weighs all of them, but its gradient reaches only the shared table and its own. The gate reads
    the sum of the task's own and the shared vector, as in the authors' code (``models/STEM.py``).
    Source: Su et al., STEM: Unleashing the Power of Embeddings for Multi-Task Recommendation, AAAI 2024, section 4
    (all-forward, task-specific-backward gating).

    Args:
        tasks: The tasks.
        settings: Parameters; ``dimension`` is the length D of a table's and of the task vectors.
        generator: Source of the initial weights.
    """

    def __init__(self, tasks: dict[str, Task], settings: STEMSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.dimension = dimension = settings.dimension
        self.tables = len(tasks) + 1
        self.width = dimension * self.tables
        self.experts = nn.ModuleList(
            Experts(1, dimension, generator, settings.expert_layers) for _ in range(self.tables)
        )
        self.task_gates = PerTaskModules(
            {name: Gate(dimension, self.tables, generator, settings.gate_layers) for name in tasks}
        )
        self.heads = identity_heads(tasks, dimension)

    def _slices(self, shared: Tensor) -> list[Tensor]:
        return list(shared.split(self.dimension, dim=1))

    def before_heads(self, shared: Tensor) -> Vectors:
        """Map (n, (tasks + 1) D) shared vectors to task to its mixture (n, D) of the tables' experts."""
        outputs = [expert(part)[0] for expert, part in zip(self.experts, self._slices(shared), strict=True)]
        detached = [output.detach() for output in outputs]
        result = {}
        for place, (name, weights) in enumerate(self.gates(shared).items(), start=1):
            seen = [outputs[t] if t in (0, place) else detached[t] for t in range(self.tables)]
            result[name] = mix(weights, seen)
        return result

    def head_maps(self) -> Vectors:
        """Return task to H_k."""
        return dict(self.heads.items())

    def gates(self, shared: Tensor) -> dict[str, Tensor]:
        """Return task to (n, tables) gate weights, computed from the task's own and the shared table."""
        common, *own = self._slices(shared)
        return {name: gate(part + common) for part, (name, gate) in zip(own, self.task_gates.items(), strict=True)}

    def expert_names(self, task: str) -> list[str]:
        """Return the names of the experts that a task's gate weighs."""
        return ["(shared)", *self.heads.names]

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return experts and gates."""
        return [*self.experts.parameters(), *self.task_gates.parameters()]


class STEM(MultiTaskRecommender[STEMSettings]):
    """STEM towers on split representations."""

    def tower(self, tasks: dict[str, Task], generator: torch.Generator) -> Tower:
        """Make a tower."""
        return STEMTower(tasks, self.settings, generator)
