"""ESMM: the steps of a funnel as a product of conditional probabilities, trained on the entire space."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from scipy.special import expit
from torch import Tensor
from torch.nn import functional

from multitask_recommender.data.interactions import FloatArray
from multitask_recommender.data.queries import Queries
from multitask_recommender.data.tasks import Task, funnel_chain, retrieval_tasks
from multitask_recommender.models.architectures.revisiting import Revisiting, RevisitingSettings
from multitask_recommender.models.architectures.shared_bottom import SharedBottomTower
from multitask_recommender.models.recommender import InnerProducts
from multitask_recommender.models.towers.multi_task import (
    DRAWN,
    MultiTaskModule,
    MultiTaskRecommender,
    MultiTaskSettings,
    Tower,
)
from multitask_recommender.models.towers.two_tower import LossSum, Vectors
from multitask_recommender.models.training.loop import UserBatch
from multitask_recommender.models.training.losses import Curvature
from multitask_recommender.models.training.sparse_products import Pairs, pair_scores


class ESMMSettings(MultiTaskSettings):
    """Parameters of ESMM.

    Attributes:
        negatives: Pairs drawn at random per observed row, on which every step is taken not to have happened.
    """

    negatives: int = Field(default=4, ge=1, le=10_000)


def funnel_steps(tasks: dict[str, Task]) -> dict[str, list[str]]:
    """Return every task that is part of a funnel, with the chain of steps that leads to it."""
    led_from = {task.after for task in tasks.values()}
    chains = {name: funnel_chain(tasks, name) for name in tasks}
    return {name: chain for name, chain in chains.items() if len(chain) > 1 or name in led_from}


def log_complement(log_probability: Tensor) -> Tensor:
    """Return log(1 - p) for log p < 0, without loss of digits at either end (Maechler, 2012)."""
    log_p = log_probability.clamp(max=-1e-6)
    small = log_p < -0.6931
    # Both branches are kept finite, since the gradient goes through both.
    low = torch.log1p(-torch.exp(torch.where(small, log_p, -1.0)))
    high = torch.log(-torch.expm1(torch.where(small, -0.1, log_p)))
    return torch.where(small, low, high)


class ESMMModule(MultiTaskModule):
    """p(step k) = prod_{j <= k} sigmoid(s_j), and every step's label is judged on the entire space.

    The loss of step k is the cross-entropy of "all steps up to k happened" against p(step k), over the observed rows
    and over random pairs, per observed row. The conditional probabilities sigmoid(s_k) have no loss of their own, and
    so no selection bias. Source: Ma et al., Entire Space Multi-Task Model, SIGIR 2018, equations 3 and 4, here over
    pairs of users and items with drawn negatives. Tasks outside a funnel have their usual losses.
    """

    sums_over_rows = False

    @property
    def negatives_per_positive(self) -> int:
        """Pairs drawn per row."""
        assert isinstance(self.settings, ESMMSettings)
        return self.settings.negatives

    @property
    def drawn_tasks(self) -> list[str]:
        """Names of the retrieval tasks that are steps of a funnel, and others whose negatives are drawn."""
        drawn = {*funnel_steps(self.tasks), *super().drawn_tasks}
        return [name for name in retrieval_tasks(self.tasks) if name in drawn]

    def task_sums(self, users: Vectors, items: Vectors, batch: UserBatch, asked: UserBatch) -> dict[str, LossSum]:
        """Replace the losses of the funnels' steps."""
        assert isinstance(self.settings, ESMMSettings)
        steps = funnel_steps(self.tasks)
        result = {name: self.usual_loss(name, users, items, batch, asked) for name in self.tasks if name not in steps}
        number = len(batch.row_item)
        owner = batch.row_user.repeat_interleave(self.settings.negatives)
        other = batch.draw_items(self.settings.negatives)
        # A drawn pair that was observed is left out.
        unobserved = ~batch.observed(owner, other)
        every_pair = (batch.pairs, Pairs.of(owner[unobserved], other[unobserved], len(batch.users)))
        pairs = number + int(unobserved.sum())
        # The encoder saw the labels of the other rows. Their drawn pairs are left out with them: with more drawn pairs
        # to an observed row than the step before has, the conditional probability would come out too small.
        own = torch.isin(batch.row, asked.row)
        judged = torch.cat([own, own.repeat_interleave(self.settings.negatives)[unobserved]])
        logs = {
            name: functional.logsigmoid(torch.cat([pair_scores(users[name], items[name], some) for some in every_pair]))
            for name in steps
        }
        happened = {
            name: functional.pad((batch.label(name).nan_to_num(0.0) > 0).float(), (0, pairs - number)) for name in steps
        }
        for name, chain in steps.items():
            log_joint = torch.stack([logs[step] for step in chain]).sum(0)
            label = torch.stack([happened[step] for step in chain]).amin(0)
            loss = -(label * log_joint + (1.0 - label) * log_complement(log_joint))
            if self.tasks[name].kind != "retrieval":
                loss = loss[judged]
            count = number if self.tasks[name].kind == "retrieval" else len(asked.row)
            result[name] = LossSum(loss.sum(), count, labelled=False)
        return {name: result[name] for name in self.tasks}

    def curvature(self, name: str, batch: UserBatch) -> Curvature:
        """Return a bound for a step of a funnel, which stands in the product of every step that it leads to.

        In the logits of a chain of L steps, -log p and -log(1 - p) have second derivatives of at most L / 4.
        """
        assert isinstance(self.settings, ESMMSettings)
        chains = [len(chain) for chain in funnel_steps(self.tasks).values() if name in chain]
        if not chains:
            return super().curvature(name, batch)
        bound = 0.25 * sum(chains)
        drawn = bound * self.settings.negatives / len(batch.catalogue)
        rows = self.constant.new_full((len(batch.row),), bound)
        return Curvature(rows, drawn * batch.counts.to(rows.dtype))

    @property
    def has_closed_fold_in(self) -> bool:
        """Whether no task is a step of a funnel, and what else it takes."""
        return not funnel_steps(self.tasks) and super().has_closed_fold_in

    def _is_quadratic(self, name: str) -> bool:
        return name not in funnel_steps(self.tasks) and super()._is_quadratic(name)


class ESMM(MultiTaskRecommender[ESMMSettings]):
    """Entire-space multi-task model on shared-bottom towers."""

    module: ClassVar[type[MultiTaskModule]] = ESMMModule
    knowledge = DRAWN

    def tower(self, tasks: dict[str, Task], generator: torch.Generator) -> Tower:
        """Make a tower."""
        return SharedBottomTower(tasks, self.settings.dimension, generator)

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Score; a step of a funnel gets its conditional probability, given that the step before happened."""
        scores = super().score(queries)
        for name in funnel_steps(self._module.tasks):
            if self._kinds[name] == "retrieval":
                scores[name] = expit(scores[name])
        return scores

    def inner_products(self, queries: Queries) -> InnerProducts:
        """Return those of the tasks outside a funnel: a step's order is that of a product of probabilities."""
        steps = funnel_steps(self._module.tasks)
        return {name: vectors for name, vectors in super().inner_products(queries).items() if name not in steps}

    def ranking_scores(self, scores: dict[str, FloatArray]) -> dict[str, FloatArray]:
        """Order the items of a funnel's step by the probability that all steps up to it happen."""
        joint = {
            name: np.prod([scores[step] for step in chain], axis=0)
            for name, chain in funnel_steps(self._module.tasks).items()
        }
        return {**scores, **joint}


class RevisitingESMMSettings(ESMMSettings, RevisitingSettings):
    """Parameters of ESMM with revisits."""


class RevisitingESMM(Revisiting[RevisitingESMMSettings]):
    """ESMM; the bonus is added to the conditional probability of a step before the steps are multiplied."""

    towers = ESMM
    knowledge = DRAWN
