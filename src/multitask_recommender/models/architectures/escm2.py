"""ESCM2: ESMM with a counterfactual loss, so that conditional probabilities hold on the entire space."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from multitask_recommender.data.interactions import SideInformation
from multitask_recommender.models.architectures.esmm import ESMM, ESMMModule, ESMMSettings, funnel_steps
from multitask_recommender.models.architectures.revisiting import Revisiting, RevisitingSettings
from multitask_recommender.models.towers.experts import PerTaskMatrices
from multitask_recommender.models.towers.multi_task import MultiTaskModule
from multitask_recommender.models.towers.tower import Tower
from multitask_recommender.models.towers.two_tower import LabelScales, LossSum, Vectors
from multitask_recommender.models.training.loop import UserBatch
from multitask_recommender.models.training.sparse_products import pair_scores


class ESCM2Settings(ESMMSettings):
    """Parameters of ESCM2.

    Attributes:
        debiasing: ``ips``, inverse propensity, or ``doubly_robust``, with an imputed error where nothing is known.
        counterfactual_weight: Weight of the counterfactual loss beside that of ESMM.
        smallest_propensity: A probability that the step before happens is taken as at least so large.
    """

    debiasing: Literal["ips", "doubly_robust"] = "ips"
    counterfactual_weight: float = Field(default=0.5, ge=0, le=1e9)
    smallest_propensity: float = Field(default=0.05, gt=0, le=1)


class ESCM2Module(ESMMModule):
    """ESMM, and for every step k after another the error of sigmoid(s_k) on the entire space D.

    With o = 1 where the step before happened, p its probability under the model (without gradient), w = o / p scaled to
    mean 1 over D, e the cross-entropy of step k given the step before, and an imputed error d:

        inverse propensity   mean_D w e
        doubly robust        mean_D (d + w (e - d)) + mean_D w (e - d)^2

    Scaling w (self-normalisation) keeps the loss on the scale of one per row. d = softplus(sum_c a_c u_c v_c + b) reads
    the vectors of the step. Folding in needs no counterfactual loss: it is about the rows of a history alone.
    Source: Wang et al., ESCM2: Entire Space Counterfactual Multi-Task Model, SIGIR 2022, equations 9 to 13.
    """

    def __init__(
        self,
        side: SideInformation,
        settings: ESCM2Settings,
        scales: LabelScales,
        towers: tuple[Tower, Tower],
        generator: torch.Generator,
    ) -> None:
        super().__init__(side, settings, scales, towers, generator)
        later = [name for name, chain in funnel_steps(self.tasks).items() if len(chain) > 1]
        imputes = settings.debiasing == "doubly_robust"
        self.imputation = (
            PerTaskMatrices(later, [torch.zeros(settings.dimension + 1) for _ in later]) if imputes else None
        )

    def task_sums(self, users: Vectors, items: Vectors, batch: UserBatch, asked: UserBatch) -> dict[str, LossSum]:
        """Add the counterfactual losses, in training."""
        result = super().task_sums(users, items, batch, asked)
        assert isinstance(self.settings, ESCM2Settings)
        if not self.training or not len(asked.row):
            return result
        for name, chain in funnel_steps(self.tasks).items():
            if len(chain) > 1:
                own = result[name]
                extra = self.settings.counterfactual_weight * own.rows * self._error(name, chain, users, items, asked)
                result[name] = LossSum(own.total + extra, own.rows, own.labelled)
        return result

    def _error(self, name: str, chain: list[str], users: Vectors, items: Vectors, asked: UserBatch) -> Tensor:
        """Return the estimate of the mean error of a step's conditional probability over the entire space."""
        assert isinstance(self.settings, ESCM2Settings)
        logits = {step: pair_scores(users[step], items[step], asked.pairs) for step in chain}
        before = torch.stack([functional.logsigmoid(logits[step]) for step in chain[:-1]]).sum(0)
        propensity = before.detach().exp().clamp(min=self.settings.smallest_propensity)
        label = asked.label(name)
        happened = torch.stack([asked.label(step).nan_to_num(0.0) > 0 for step in chain[:-1]]).all(0)
        counted = (happened & ~torch.isnan(label)).to(propensity.dtype)
        error = functional.binary_cross_entropy_with_logits(
            logits[name], (label.nan_to_num(0.0) > 0).to(propensity.dtype), reduction="none"
        )
        weight = counted / propensity
        weight = weight / weight.sum().clamp(min=1e-6)
        if self.imputation is None:
            return (weight * error).sum()
        drawn = asked.draw_items(1)
        imputed = self._imputed(name, users, items, asked.row_user, asked.row_item)
        elsewhere = self._imputed(name, users, items, asked.row_user, drawn)
        # Observed rows are a small part of the space, of which the drawn pairs are a sample.
        robust = elsewhere.mean() + (weight * (error - imputed)).sum()
        return robust + (weight * (error.detach() - imputed).square()).sum()

    def _imputed(self, name: str, users: Vectors, items: Vectors, place: Tensor, item: Tensor) -> Tensor:
        """Return (n,) errors that are expected of pairs."""
        assert self.imputation is not None
        weights, width = self.imputation[name], self.settings.dimension
        products = users[name][place, :width] * items[name][item, :width]
        return functional.softplus(products @ weights[:-1] + weights[-1])


class ESCM2(ESMM):
    """ESCM2 on shared-bottom towers."""

    module: ClassVar[type[MultiTaskModule]] = ESCM2Module


class RevisitingESCM2Settings(ESCM2Settings, RevisitingSettings):
    """Parameters of ESCM2 with revisits."""


class RevisitingESCM2(Revisiting[RevisitingESCM2Settings]):
    """ESCM2 with the bonus of what was met, as ESMM has it."""

    towers = ESCM2
    knowledge = ESCM2.knowledge
