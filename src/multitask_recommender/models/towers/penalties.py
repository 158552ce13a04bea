"""What the identity vectors and biases of users and items cost."""

from __future__ import annotations

import torch
from torch import Tensor

from multitask_recommender.data.tasks import Task
from multitask_recommender.models.towers.settings import MultiTaskSettings
from multitask_recommender.models.towers.tower import Tower

_BIAS_SHARE = 0.1
"""Of the penalty of identity vectors, in a retrieval task's penalty of its biases."""


class IdentityPenalty:
    """Penalties of one side: uniform for retrieval (Hu et al., ICDM 2008), per row for others (Zhou et al., AAIM 2008).

    Args:
        tasks: The tasks.
        weights: Task to the weight of its loss.
        settings: Parameters.
    """

    def __init__(self, tasks: dict[str, Task], weights: dict[str, float], settings: MultiTaskSettings) -> None:
        self.settings = settings
        # A retrieval task asks for everyone alike, a pointwise task per row.
        self._retrieval = {name: weights[name] * (task.kind == "retrieval") for name, task in tasks.items()}
        self._pointwise = {name: weights[name] * (task.kind != "retrieval") for name, task in tasks.items()}

    def measure(self, identity: Tensor, bias: Tensor, tower: Tower) -> tuple[Tensor, Tensor]:
        """Return the penalties.

        Args:
            identity: (n, D) identity vectors.
            bias: (n, tasks) biases.
            tower: The tower of their side.

        Returns:
            (n,) what everyone pays, and (n,) what is paid per row.
        """
        uniform, per_row = (own @ bias.square().T for own in self._bias_weights(bias))
        for vector, strong, weak in self._penalised(identity, tower):
            length = vector.square().sum(1)
            uniform, per_row = uniform + strong * length, per_row + weak * length
        return uniform, per_row

    def curvature(self, rows: Tensor, jacobians: dict[str, Tensor], tower: Tower) -> tuple[Tensor, Tensor]:
        """Return the second derivatives of the penalties of users with some numbers of rows (B,).

        Args:
            rows: (B,) numbers of rows.
            jacobians: Task to (B or 1, D, d), see :meth:`Tower.jacobians`.
            tower: The tower of the users.

        Returns:
            (B, D, D) in the identity vectors and (B, tasks), the diagonal, in the biases.
        """
        identity = rows.new_zeros(1, tower.width, tower.width)
        if self.settings.penalise == "identity":
            ((_, strong, weak),) = self._penalised(rows.new_zeros(1, tower.width), tower)
            identity = 2 * (strong + weak * rows)[:, None, None] * torch.eye(tower.width)
        else:
            heads = tower.head_maps()
            for name, jacobian in jacobians.items():
                through = jacobian @ heads[name]
                weight = self.settings.retrieval_penalty * self._retrieval[name]
                weights = weight + self.settings.penalty * self._pointwise[name] * rows
                identity = identity + 2 * weights[:, None, None] * (through @ through.transpose(1, 2))
        uniform, per_row = self._bias_weights(rows)
        return identity, 2 * (uniform + rows[:, None] * per_row)

    def _bias_weights(self, like: Tensor) -> tuple[Tensor, Tensor]:
        retrieval, pointwise = (
            torch.tensor(list(own.values()), dtype=like.dtype, device="cpu").to(like.device)
            for own in (self._retrieval, self._pointwise)
        )
        return retrieval * _BIAS_SHARE * self.settings.retrieval_penalty, pointwise * self.settings.bias_penalty

    def _penalised(self, identity: Tensor, tower: Tower) -> list[tuple[Tensor, float, float]]:
        """Return the vectors whose length costs something, with the weight for everyone and that per row."""
        strong, weak = self.settings.retrieval_penalty, self.settings.penalty
        if self.settings.penalise == "identity":
            # The vectors are shared, so tasks of one sort ask for one penalty, not for one each.
            return [(identity, strong * max(self._retrieval.values()), weak * max(self._pointwise.values()))]
        return [
            (vector, strong * self._retrieval[name], weak * self._pointwise[name])
            for name, vector in tower(identity).items()
        ]
