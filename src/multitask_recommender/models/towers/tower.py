"""The interface of the towers: what an architecture makes of the shared vectors of one side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from multitask_recommender.models.towers.two_tower import Vectors


class Tower(nn.Module, ABC):
    """Turns the shared vectors of one side into one vector per task; the last step of every tower is a matrix per task.

    Attributes:
        width: Length of the shared vectors that it takes.
        linear: Whether it is a linear map.
    """

    width: int
    linear: ClassVar[bool] = False

    def forward(self, shared: Tensor) -> Vectors:
        """Map (n, width) shared vectors to task to (n, d)."""
        heads = self.head_maps()
        return {name: vector @ heads[name] for name, vector in self.before_heads(shared).items()}

    @abstractmethod
    def before_heads(self, shared: Tensor) -> Vectors:
        """Map (n, width) shared vectors to task to (n, d) vectors that only the task's matrix is still to be put on."""

    @abstractmethod
    def head_maps(self) -> Vectors:
        """Return task to its matrix (d, d), all that is linear at the end of the tower."""

    def jacobians(self, shared: Tensor) -> Vectors:
        """Return task to (n, width, d) derivatives of :meth:`before_heads` at (n, width) vectors; n = 1 if linear."""
        if self.linear:
            return {name: vectors[None] for name, vectors in self.before_heads(torch.eye(self.width)).items()}

        def of_one(x: Tensor) -> Vectors:
            return {name: vectors[0] for name, vectors in self.before_heads(x[None]).items()}

        found = torch.func.vmap(torch.func.jacfwd(of_one))(shared)
        return {name: jacobian.transpose(1, 2) for name, jacobian in found.items()}

    def gates(self, shared: Tensor) -> dict[str, Tensor]:
        """Return task to (n, experts) gate weights; empty for an architecture without gates."""
        return {}

    def expert_names(self, task: str) -> list[str]:
        """Return the names of the experts that a task's gate weighs, in order."""
        return []

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of experts and gates, which are trained slowest."""
        return []
