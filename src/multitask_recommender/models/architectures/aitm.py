"""AITM towers: in a funnel, every step hands information on to the next."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from multitask_recommender.data.tasks import Task, funnel_chain
from multitask_recommender.models.architectures.revisiting import Revisiting, RevisitingSettings
from multitask_recommender.models.recommender import CALIBRATOR
from multitask_recommender.models.towers.experts import Experts, PerTaskMatrices, PerTaskModules, identity_heads, mix
from multitask_recommender.models.towers.multi_task import (
    MultiTaskModule,
    MultiTaskRecommender,
    MultiTaskSettings,
    Tower,
)
from multitask_recommender.models.towers.two_tower import LossSum, Vectors
from multitask_recommender.models.training.loop import UserBatch
from multitask_recommender.models.training.sparse_products import pair_scores


class AITMSettings(MultiTaskSettings):
    """Parameters of AITM.

    Attributes:
        calibrator_weight: Weight of the calibrator, which keeps a step from being likelier than the one before it.
    """

    calibrator_weight: float = Field(default=0.6, ge=0, le=1e9)


def _map_of(expert: Experts) -> Tensor:
    """Return the matrix (D, D) of a single expert."""
    return expert.whole_maps()[0]


class AITMTower(Tower):
    """z_k = sum_{v in {p, q_k}} w_v h1(v), w = softmax(h2(v) . h3(v) / sqrt(D)), for every step k after the first.

    q_k = (x + x E_k) H_k is the step's own vector and p = z_{k-1} + z_{k-1} G_k what the step before hands on; z = q
    for a first step and for a task outside a funnel. Source: Xi et al., Modeling the Sequential Dependence among
    Audience Multi-step Conversions with Multi-task Learning in Targeted Display Advertising (AITM), KDD 2021,
    equations 4 to 6,
    here in both towers.

    Args:
        tasks: The tasks; their ``after`` makes the funnel.
        dimension: D, length of the shared and of the task vectors.
        generator: Source of the initial weights.
    """

    def __init__(self, tasks: dict[str, Task], dimension: int, generator: torch.Generator) -> None:
        super().__init__()
        self.width = dimension
        self.before = {name: chain[-2] for name in tasks if len(chain := funnel_chain(tasks, name)) > 1}
        # Steps before those that they lead to.
        self.order = sorted(tasks, key=lambda name: len(funnel_chain(tasks, name)))
        self.own = PerTaskModules({name: Experts(1, dimension, generator) for name in tasks})
        self.heads = identity_heads(tasks, dimension)
        self.handed = PerTaskModules({name: Experts(1, dimension, generator) for name in self.before})
        self.values = PerTaskModules({name: Experts(1, dimension, generator) for name in self.before})
        self.attention = PerTaskMatrices(
            self.before,
            [torch.randn(2, dimension, dimension, generator=generator) * dimension**-0.5 for _ in self.before],
        )

    def transfer_weights(self, task: str, sources: Tensor) -> Tensor:
        """Return the (n, 2) weights of what is handed on and of the task's own vector, given both as (n, 2, D)."""
        query, key = self.attention[task]
        agreement = ((sources @ (query @ key.T)) * sources).sum(-1)
        return torch.softmax(agreement * self.width**-0.5, dim=1)

    def before_heads(self, shared: Tensor) -> Vectors:
        """Return task to (n, D): a first step's shared vectors, else sum_v w_v v, before h1 is put on it."""
        heads = self.head_maps()
        result: Vectors = {}
        for name in self.order:
            if name not in self.before:
                result[name] = shared
                continue
            earlier = self.before[name]
            handed = result[earlier] @ (heads[earlier] @ _map_of(self.handed[name]))
            own = shared @ (_map_of(self.own[name]) @ self.heads[name])
            weights = self.transfer_weights(name, torch.stack([handed, own], dim=1))
            result[name] = mix(weights, [handed, own])
        return result

    def head_maps(self) -> Vectors:
        """Return task to (I + E_k) H_k for a first step, else to the matrix of h1, which is linear."""
        return {
            name: _map_of(self.values[name]) if name in self.before else _map_of(self.own[name]) @ head
            for name, head in self.heads.items()
        }

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return all maps but the heads."""
        heads = {id(head) for head in self.heads.matrices}
        return [parameter for parameter in self.parameters() if id(parameter) not in heads]


class AITMModule(MultiTaskModule):
    """The multi-task module with the calibrator: mean over the rows of max(0, y_k - y_{k-1}).

    Source: as above, equation 8. It stands between steps of one kind, which share a sample space; a step asked of the
    rows of the step before it predicts a conditional probability, which may be higher.
    """

    def task_sums(self, users: Vectors, items: Vectors, batch: UserBatch, asked: UserBatch) -> dict[str, LossSum]:
        """Add the calibrator to the tasks' losses."""
        result = super().task_sums(users, items, batch, asked)
        assert isinstance(self.settings, AITMSettings)
        parts = []
        for name, task in self.tasks.items():
            before = task.after
            if before is None or before not in self.tasks or self.tasks[before].kind != task.kind:
                continue
            later, earlier = (pair_scores(users[step], items[step], batch.pairs) for step in (name, before))
            if task.kind == "binary":
                later, earlier = torch.sigmoid(later), torch.sigmoid(earlier)
            parts.append(torch.relu(later - earlier).sum())
        if parts and self.settings.calibrator_weight > 0:
            total = self.settings.calibrator_weight * torch.stack(parts).sum()
            result[CALIBRATOR] = LossSum(total, len(batch.row), labelled=False)
        return result


class AITM(MultiTaskRecommender[AITMSettings]):
    """AITM towers on shared representations."""

    module: ClassVar[type[MultiTaskModule]] = AITMModule

    def tower(self, tasks: dict[str, Task], generator: torch.Generator) -> Tower:
        """Make a tower."""
        return AITMTower(tasks, self.settings.dimension, generator)


class RevisitingAITMSettings(AITMSettings, RevisitingSettings):
    """Parameters of AITM with revisits."""


class RevisitingAITM(Revisiting[RevisitingAITMSettings]):
    """AITM with revisits."""

    towers = AITM
