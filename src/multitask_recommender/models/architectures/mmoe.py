"""Multi-gate mixture-of-experts towers."""

from __future__ import annotations

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


class MMoESettings(MultiTaskSettings, ExpertSettings):
    """Parameters of MMoE.

    Attributes:
        experts: Experts shared by all tasks.
    """

    experts: int = Field(default=3, ge=1, le=256)


class MMoETower(Tower):
    """t_k = (sum_e g_ke(x) z_e) H_k with shared experts z_e (:class:`Experts`) and one gate per task.

    Source: Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts, KDD 2018,
    equations 6 and 7. With one expert it is the shared-bottom tower.

    Args:
        tasks: The tasks.
        settings: Parameters; ``dimension`` is the length of the shared and of the task vectors.
        generator: Source of the initial weights.
    """

    def __init__(self, tasks: dict[str, Task], settings: MMoESettings, generator: torch.Generator) -> None:
        super().__init__()
        self.width = dimension = settings.dimension
        self.experts = Experts(settings.experts, dimension, generator, settings.expert_layers)
        self.task_gates = PerTaskModules(
            {name: Gate(dimension, settings.experts, generator, settings.gate_layers) for name in tasks}
        )
        self.heads = identity_heads(tasks, dimension)

    def before_heads(self, shared: Tensor) -> Vectors:
        """Map (n, D) shared vectors to task to its mixture (n, D) of the experts."""
        outputs = self.experts(shared)
        return {name: mix(weights, outputs) for name, weights in self.gates(shared).items()}

    def head_maps(self) -> Vectors:
        """Return task to H_k."""
        return dict(self.heads.items())

    def gates(self, shared: Tensor) -> dict[str, Tensor]:
        """Return task to (n, experts) gate weights."""
        return {name: gate(shared) for name, gate in self.task_gates.items()}

    def expert_names(self, task: str) -> list[str]:
        """Return the names of the experts that a task's gate weighs."""
        return [f"(shared) {number + 1}" for number in range(len(self.experts.maps))]

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return experts and gates."""
        return [*self.experts.parameters(), *self.task_gates.parameters()]


class MMoE(MultiTaskRecommender[MMoESettings]):
    """MMoE towers on shared representations."""

    def tower(self, tasks: dict[str, Task], generator: torch.Generator) -> Tower:
        """Make a tower."""
        return MMoETower(tasks, self.settings, generator)
