"""The user embedding model: a user's history and context to one vector, trained with ``L_UserEmb``."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from scipy import sparse
from torch import Tensor, nn

from multitask_recommender.interactions import FloatArray, Interactions
from multitask_recommender.models.sparse_features import FeatureTable
from multitask_recommender.recommender import Arrays, LearningCurve
from multitask_recommender.settings_base import Settings
from multitask_recommender.training import TrainingSettings, UserBatch, UserRows, new_generator, train


class UserEmbeddingSettings(Settings):
    """Parameters of the user embedding model.

    Attributes:
        dimension: Length k of a user's vector.
        penalty: lambda, the weight of the vectors' squared norm.
        context: Whether the user's context features enter the encoder.
        training: Optimiser and schedule; the source document asks for stochastic gradient descent.
    """

    dimension: int = Field(default=32, ge=1)
    penalty: float = Field(default=0.1, ge=0)
    context: bool = True
    training: TrainingSettings = TrainingSettings(optimiser="sgd", learning_rate=1.0, epochs=40, batches=8)


def _unit_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return (sparse.diags(1.0 / np.where(length > 0, length, 1.0)) @ matrix).tocsr()


class UserEmbedding(nn.Module):
    """Linear autoencoder with tied weights over the user's history.

    z_u = W h_u + C c_u, and the loss of a user is ||h_u - W' z_u||^2 + lambda ||z_u||^2.

    ``h_u`` is the user's row of the history matrix scaled to length 1 (one over the root of the number of items), so
    that heavy users do not drown the others; ``c_u`` are the context features. The source document writes the loss
    as sum_u ||h_u - W'W||^2 + lambda ||h_u||^2 without saying what W multiplies. Our reading: the prime is a transpose,
    W'W projects the history onto k directions, and the penalty is on the embedding. Without context the minimum is
    known: :func:`optimal_loss`.

    Args:
        items: Number of items.
        context: (users, columns) context features, or None.
        settings: Dimension and penalty.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        items: int,
        context: sparse.csr_matrix | None,
        settings: UserEmbeddingSettings,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        scale = items**-0.5
        initial = torch.randn(items, settings.dimension, generator=generator) * scale
        self.weight = nn.Parameter(initial)  # (items, k): W transposed, one row per item
        self.context = None if context is None else FeatureTable(_unit_rows(context), settings.dimension)
        self.penalty = settings.penalty

    def project_history(self, row_user: Tensor, row_item: Tensor, users: int) -> tuple[Tensor, Tensor]:
        """Compute W h_u from the rows of a batch.

        Args:
            row_user: (n,) place of each row's user.
            row_item: (n,) items.
            users: B, the number of users.

        Returns:
            (B, k) projections, and (B,) squared lengths of h: 1, or 0 without history.
        """
        count = torch.bincount(row_user, minlength=users)
        value = count.clamp(min=1).to(self.weight.dtype).rsqrt()
        total = self.weight.new_zeros(users, self.weight.shape[1])
        total = total.index_add(0, row_user, self.weight[row_item])
        return total * value[:, None], (count > 0).to(self.weight.dtype)

    def forward(self, users: Tensor, row_user: Tensor, row_item: Tensor) -> Tensor:
        """Embed users.

        Args:
            users: (B,) numbers of the users.
            row_user: (n,) place of each history row's user.
            row_item: (n,) items of the histories.

        Returns:
            (B, k) vectors z.
        """
        projected, _ = self.project_history(row_user, row_item, len(users))
        return projected if self.context is None else projected + self.context(users)

    def loss(self, batch: UserBatch) -> Tensor:
        """Return L_UserEmb averaged over the users of a batch: the document's sum divided by the number of users.

        ||h - W'z||^2 is expanded to ||h||^2 - 2 (W h)'z + z' (W W') z, so that no vector over all items is made.
        """
        projected, length = self.project_history(batch.row_user, batch.row_item, len(batch.users))
        z = projected if self.context is None else projected + self.context(batch.users)
        gram = self.weight.T @ self.weight  # (k, k)
        reconstruction = length - 2 * (projected * z).sum(1) + ((z @ gram) * z).sum(1)
        return (reconstruction + self.penalty * (z**2).sum(1)).mean()


def optimal_loss(singular_values: Tensor, dimension: int, penalty: float) -> float:
    """Minimum of sum_u L_UserEmb over W without context, for a history matrix with these singular values.

    sum_{j<=k} s_j^2 (lambda - lambda^2 / 4) + sum_{j>k} s_j^2 for lambda < 2; for larger lambda W = 0 is best.
    """
    energy = singular_values.sort(descending=True).values ** 2
    factor = penalty - penalty**2 / 4 if penalty < 2 else 1.0
    return float(factor * energy[:dimension].sum() + energy[dimension:].sum())


class FittedUserEmbedding:
    """A user embedding model trained on some rows.

    Args:
        train_rows: Training rows, sorted by user.
        context: (users, columns) context features.
        items: Number of items.
        settings: Parameters.
        seed: Seed of everything random.
    """

    def __init__(
        self,
        train_rows: Interactions,
        context: sparse.csr_matrix,
        items: int,
        settings: UserEmbeddingSettings,
        seed: int,
    ) -> None:
        generator = new_generator(seed)
        rows = UserRows(train_rows, context.shape[0])
        self.module = UserEmbedding(items, context if settings.context else None, settings, generator)
        self.curve: LearningCurve = train(
            "user_embedding",
            self.module,
            lambda batch: {"user_embedding": self.module.loss(batch)},
            rows,
            settings.training,
            generator,
        )
        with torch.no_grad():
            blocks = [self.module(b.users, b.row_user, b.row_item) for b in rows.blocks(1024, generator)]
        self.vectors: FloatArray = torch.cat(blocks).numpy()

    def state(self) -> Arrays:
        """Return the weights by name."""
        return {name: value.numpy() for name, value in self.module.state_dict().items()}

    def reconstruct(self) -> FloatArray:
        """Return W' z for every user: (users, items), how strongly each item belongs to the user's history."""
        return self.vectors @ self.module.weight.detach().numpy().T
