"""The user side of the multi-task towers: identity, history and context to a shared vector."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from multitask_recommender.data.interactions import SideInformation
from multitask_recommender.data.tasks import Task
from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.models.towers.biases import solve_biases, solve_user_biases
from multitask_recommender.models.towers.history_encoders import LinearEncoder, NonlinearEncoder
from multitask_recommender.models.towers.settings import MultiTaskSettings
from multitask_recommender.models.towers.sparse_features import FeatureTable
from multitask_recommender.models.towers.tower import Tower
from multitask_recommender.models.training.loop import UserBatch, UserRows
from multitask_recommender.models.training.sparse_products import weighted_sums

USER_SHRINKAGE, ITEM_SHRINKAGE = 15.0, 10.0
"""Of the biases that the labels in the histories are compared with, in rows."""


def history_task(tasks: dict[str, Task]) -> str | None:
    """Return the task whose labels the history encoder sees: the first regression task, else binary, else none."""
    for kind in ("regression", "binary"):
        for name, task in tasks.items():
            if task.kind == kind:
                return name
    return None


class HistoryResiduals(nn.Module):
    """e_uj = y_uj - (b_u + c_j): how much the labels of a history differ from what the biases predict.

    The items' biases c are those of the training; the user's b is solved from the history itself. For a binary task the
    biases are logits, one Newton step away from the base rate, and the residual is one of probabilities.

    Args:
        items: Number of items.
        binary: Whether the task is binary.
    """

    item_bias: Tensor
    scale: Tensor

    def __init__(self, items: int, binary: bool) -> None:
        super().__init__()
        self.binary = binary
        self.register_buffer("item_bias", torch.zeros(items))
        self.register_buffer("scale", torch.zeros(2))  # Mean and standard deviation; rate and slope for a binary task.

    def forward(self, rows: UserRows, label: Tensor) -> Tensor:
        """Return (rows,) residuals of the labels, NaN where there is none; 0 for these."""
        asked = ~torch.isnan(label)
        mean, spread = self.scale
        standard = (label - mean) / spread
        bias = solve_user_biases(
            rows.user[asked].numpy(),
            rows.item[asked].numpy(),
            standard[asked].numpy(),
            len(rows.counts),
            self.item_bias.numpy(),
            USER_SHRINKAGE,
            None if rows.weight is None else rows.weight[asked].numpy(),
        )
        predicted = torch.from_numpy(bias)[rows.user] + self.item_bias[rows.item]
        if self.binary:
            predicted, standard = torch.sigmoid(predicted + torch.logit(mean)), label
        residual = standard - predicted
        return residual.nan_to_num(0.0)


class UserSide(nn.Module):
    """x_u = p_u + R(n_u^-c sum_{j in h_u} (a_j + e_uj b_j)) + C c_u, a tower on it, and a bias per task.

    See :class:`MultiTaskModule` for the symbols.

    Args:
        side: Tasks, sizes and features.
        settings: Parameters.
        tower: The tower.
        scale: Standard deviation of the initial p.
        generator: Source of the initial weights.
    """

    prior: Tensor
    prior_bias: Tensor

    def __init__(
        self, side: SideInformation, settings: MultiTaskSettings, tower: Tower, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.settings, self.tower = settings, tower
        self.identity = nn.Parameter(torch.randn(side.users, tower.width, generator=generator) * scale)
        self.bias = nn.Parameter(torch.zeros(side.users, len(side.tasks)))
        self.history = self.label_history = self.projection = self.residuals = None
        self.history_task = history_task(side.read_tasks)
        if settings.user_embedding == "joint":
            self.history = nn.Parameter(torch.zeros(side.items, tower.width))
            if self.history_task is not None:
                self.label_history = nn.Parameter(torch.zeros(side.items, tower.width))
                self.residuals = HistoryResiduals(side.items, side.read_tasks[self.history_task].kind == "binary")
            self.encoder = (
                NonlinearEncoder(tower.width, generator) if settings.encoder == "nonlinear" else LinearEncoder()
            )
        elif settings.user_embedding == "pretrained":
            if side.user_encoder is None:
                raise SettingsError("'user_embedding: pretrained' needs a variant that reads the user embedding model.")
            self.projection = nn.Parameter(torch.zeros(side.user_encoder.dimension, tower.width))
            self.register_buffer("frozen_scale", torch.ones(()))
        self.context = FeatureTable(side.user_features.shape[1], tower.width) if settings.user_features else None
        self.register_buffer("prior", torch.zeros(tower.width))
        self.register_buffer("prior_bias", torch.zeros(len(side.tasks)))

    def describe(self, rows: UserRows) -> None:
        """Compute the residuals of the labels that the history encoder reads."""
        if self.residuals is not None and self.history_task is not None:
            rows.residuals = self.residuals(rows, rows.labels[self.history_task])

    def start(self, rows: UserRows) -> None:
        """Set the scale of frozen vectors: mean square 1 per coordinate, so that one learning rate suits all."""
        if self.projection is not None:
            assert rows.frozen is not None
            self.frozen_scale = rows.frozen.square().mean().sqrt().clamp(min=1e-12)

    def finish(self, rows: UserRows) -> None:
        """Keep the mean of the training users, which stands in for a user without history."""
        parts = [self.identity[batch.users] + self.encode_history(batch) for batch in rows.blocks(1024)]
        self.prior = torch.cat(parts).mean(0)
        self.prior_bias = self.bias[rows.present].mean(0)

    @property
    def reads_rows(self) -> bool:
        """Whether the encoding of a history is trained with the tasks, so that rows are hidden from it in training."""
        return self.history is not None

    def encode_history(self, batch: UserBatch, seen: UserBatch | None = None, hidden: float = 0.0) -> Tensor:
        """Encode the histories.

        Args:
            batch: Users with their rows.
            seen: The part of the batch that is shown to the encoder; None: all of it.
            hidden: The share of the rows that is not, if any of them could be; 0: what is shown is a whole history.

        Returns:
            (B, D).
        """
        if self.projection is not None:
            assert batch.source.frozen is not None
            return batch.source.frozen[batch.users] / self.frozen_scale @ self.projection
        if self.history is None:
            return self.prior.new_zeros(len(batch.users), self.tower.width)
        rows = batch if seen is None else seen
        counts = (batch if hidden > 0 else rows).counts
        factor = counts.clamp(min=1).to(self.history.dtype).pow(-self.settings.history_exponent)
        value = (factor / (1.0 - hidden)).index_select(0, rows.row_user)
        if rows.row_weight is not None:
            value = value * rows.row_weight
        summed = weighted_sums(rows.pairs, value, self.history)
        if self.label_history is not None:
            assert rows.source.residuals is not None
            residual = rows.source.residuals.index_select(0, rows.row)
            summed = summed + weighted_sums(rows.pairs, value * residual, self.label_history)
        return self.encoder(summed)

    def encode_context(self, batch: UserBatch) -> Tensor:
        """Return (B, D) what the features of the users add; 0 without them."""
        if self.context is None or batch.source.context is None:
            return self.prior.new_zeros(len(batch.users), self.tower.width)
        return self.context(batch.source.context, batch.users)

    def tables(self) -> list[Tensor]:
        """Return the tables of the encoder and of the features, for their penalty."""
        own = (self.history, self.label_history, self.projection)
        tables: list[Tensor] = [table for table in own if table is not None]
        return tables if self.context is None else [*tables, self.context.vectors]


def start_biases(
    task: Task, label: np.ndarray, rows: UserRows, scale: tuple[float, float], sizes: tuple[int, int]
) -> tuple[float, np.ndarray, np.ndarray, tuple[float, float]]:
    """Solve the biases of a pointwise task without factors.

    Args:
        task: The task.
        label: (rows,) labels, NaN where it does not ask.
        rows: The training rows.
        scale: Mean and standard deviation of the labels.
        sizes: Numbers of users and items.

    Returns:
        Constant, (users,) and (items,) biases, and what labels are standardised by for them: label minus the first
        number over the second.
    """
    asked = ~np.isnan(label)
    constant = 0.0
    if task.kind == "binary":
        rate = float(np.clip(label[asked].mean(), 1e-3, 1 - 1e-3))
        # One Newton step from the base rate turns differences of probability into differences of logits.
        constant, scale = float(np.log(rate / (1 - rate))), (rate, rate * (1 - rate))
    standard = ((label[asked].astype(np.float64) - scale[0]) / scale[1]).astype(np.float32)
    user, item = rows.user.numpy()[asked], rows.item.numpy()[asked]
    return constant, *solve_biases(user, item, standard, *sizes, (USER_SHRINKAGE, ITEM_SHRINKAGE)), scale
