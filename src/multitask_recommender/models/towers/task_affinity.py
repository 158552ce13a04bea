"""Task affinity: how far tasks pull shared parameters in the same direction."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from multitask_recommender.models.towers.two_tower import TwoTowerModule


class GradientCosines:
    """Records, over training, the cosine of every two tasks' gradients on the parameters that both use.

    cos(g_s, g_t) = <g_s, g_t> / (|g_s| |g_t|), g_t the gradient of task t's weighted loss. Below 0 the tasks conflict
    (Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, definition 1).

    Attributes:
        rows: (epoch from 1, task, other task, cosine); without a cosine where a gradient is 0.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, str, float]] = []

    def __call__(self, module: TwoTowerModule, epoch: int, losses: Mapping[str, Tensor]) -> None:
        """Measure one batch.

        Args:
            module: The module in training.
            epoch: Number of the epoch, from 0.
            losses: The batch's losses by name, before their gradients.
        """
        parameters = list(module.parameters())
        gradients = {
            task: torch.autograd.grad(losses[task], parameters, retain_graph=True, allow_unused=True)
            for task in module.tasks
        }
        for task, other in combinations(module.tasks, 2):
            pairs = [
                (a.flatten(), b.flatten())
                for a, b in zip(gradients[task], gradients[other], strict=True)
                if a is not None and b is not None
            ]
            if pairs:
                one, two = (torch.cat(side).double() for side in zip(*pairs, strict=True))
                length = one.norm() * two.norm()
                if length > 0:
                    self.rows.append((epoch + 1, task, other, float(one @ two / length)))
