"""Cross-stitch towers: a layer per task, mixed between tasks by learnt weights."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from multitask_recommender.data.tasks import Task
from multitask_recommender.models.towers.experts import Experts, identity_heads
from multitask_recommender.models.towers.multi_task import MultiTaskRecommender
from multitask_recommender.models.towers.settings import MultiTaskSettings
from multitask_recommender.models.towers.tower import Tower
from multitask_recommender.models.towers.two_tower import Vectors


class CrossStitchSettings(MultiTaskSettings):
    """Parameters of the cross-stitch towers.

    Attributes:
        own_share: Initial weight of a task's own layer; the others share the rest.
    """

    own_share: float = Field(default=0.9, ge=0, le=1)


class CrossStitchTower(Tower):
    """z_k = x + x E_k per task k, t_k = (sum_l a_kl z_l) H_k.

    Source: Misra et al., Cross-stitch Networks for Multi-task Learning, CVPR 2016, equation 1, with one stitch per pair
    of tasks. With a = identity no task sees another's layer.

    Args:
        tasks: The tasks.
        dimension: D, length of the shared and of the task vectors.
        own_share: Initial a_kk.
        generator: Source of the initial weights.
    """

    linear = True

    def __init__(self, tasks: dict[str, Task], dimension: int, own_share: float, generator: torch.Generator) -> None:
        super().__init__()
        self.width = dimension
        number = len(tasks)
        self.layers = Experts(number, dimension, generator)
        stitch = torch.full((number, number), (1.0 - own_share) / max(number - 1, 1))
        stitch.fill_diagonal_(own_share if number > 1 else 1.0)
        self.stitch = nn.Parameter(stitch)
        self.heads = identity_heads(tasks, dimension)

    def before_heads(self, shared: Tensor) -> Vectors:
        """Return the shared vectors, for the whole tower is linear."""
        return dict.fromkeys(self.heads.names, shared)

    def head_maps(self) -> Vectors:
        """Return task to (sum_l a_kl (I + E_l)) H_k."""
        mixed = torch.einsum("kl,lde->kde", self.stitch, self.layers.whole_maps())
        return {name: mixed[place] @ head for place, (name, head) in enumerate(self.heads.items())}

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return layers and stitch."""
        return [*self.layers.parameters(), self.stitch]


class CrossStitch(MultiTaskRecommender[CrossStitchSettings]):
    """Cross-stitch towers on shared representations."""

    def tower(self, tasks: dict[str, Task], generator: torch.Generator) -> Tower:
        """Make a tower."""
        return CrossStitchTower(tasks, self.settings.dimension, self.settings.own_share, generator)
