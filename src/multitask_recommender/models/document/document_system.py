"""The source document's system: user vectors into ``f_theta(u) . g(phi(v))``, trained with ``L_Rec``."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from scipy import sparse
from torch import Tensor, nn

from multitask_recommender.data.interactions import SideInformation
from multitask_recommender.data.tasks import retrieval_tasks
from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.models.document.user_embedding import UserEmbedding, UserEmbeddingSettings
from multitask_recommender.models.recommender import PENALTY, USER_EMBEDDING, Knowledge, ShrunkSettings
from multitask_recommender.models.towers.sparse_features import FeatureTable
from multitask_recommender.models.towers.two_tower import (
    LabelScales,
    NeuralRecommender,
    TwoTowerModule,
    Vectors,
    count_positives,
    task_loss,
)
from multitask_recommender.models.training.loop import TrainingSettings, UserBatch, UserRows
from multitask_recommender.models.training.sparse_products import DesignMatrix

_ACTIVATIONS = {"identity": nn.Identity, "tanh": nn.Tanh, "relu": nn.ReLU}


class DocumentSystemSettings(ShrunkSettings):
    """Parameters of the document's recommender.

    Attributes:
        dimension: Length of the vectors whose inner product is the prediction.
        hidden: Width of the user tower's hidden layer.
        activation: g, the activation of the item side.
        alpha: Weight of the penalty on f_theta.
        item_identity: Whether the item's identifier counts among its features.
        positive_weight: Additional weight of an observed pair in a retrieval task.
        retrieval_weight: Weight of the loss of a retrieval task.
        binary_weight: Weight of the loss of a binary task.
        regression_weight: Weight of the loss of a regression task.
        user_embedding: Parameters of the user embedding model where it is trained jointly.
        user_embedding_weight: Weight of L_UserEmb where it is trained jointly.
        training: Optimiser and schedule; the document asks for stochastic gradient descent.
    """

    dimension: int = Field(default=32, ge=1, le=8192)
    hidden: int = Field(default=64, ge=1, le=65_536)
    activation: Literal["identity", "tanh", "relu"] = "tanh"
    alpha: float = Field(default=1e-3, ge=0, le=1e9)
    item_identity: bool = False
    positive_weight: float = Field(default=5.0, ge=0, le=1e9)
    retrieval_weight: float = Field(default=1.0, gt=0, le=1e9)
    binary_weight: float = Field(default=1.0, gt=0, le=1e9)
    regression_weight: float = Field(default=1.0, gt=0, le=1e9)
    user_embedding: UserEmbeddingSettings = UserEmbeddingSettings()
    user_embedding_weight: float = Field(default=1.0, gt=0, le=1e9)
    training: TrainingSettings = TrainingSettings(
        optimiser="sgd", learning_rate=0.5, epochs=25, batches=8, gradient_clip=0.3
    )


class DocumentSystemModule(TwoTowerModule):
    """r_hat_t(i, j) = f_theta,t(u_i) . g(phi(v_j)), one output of the user tower per task.

    L_Rec = sum_t w_t (1/m) sum_i sum_j l_t(r_ij, r_hat_t(i, j)) + alpha ||f_theta||^2, where m counts the rows on
    which task t asks, l_t is the task's loss, and ||f_theta||^2 is the mean squared length of the user tower's outputs.
    A retrieval task sums over all items j, as the document writes; the others over the observed pairs.

    Args:
        side: Tasks, features and, for frozen user vectors, the ``user_encoder``.
        settings: Parameters.
        scales: Scales of the regression labels.
        joint: Whether the user embedding model is trained together with the recommender.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        side: SideInformation,
        settings: DocumentSystemSettings,
        scales: LabelScales,
        joint: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.tasks, self.settings, self.scales = side.tasks, settings, scales
        self.user_embedding: UserEmbedding | None = None
        if joint:
            columns = side.user_features.shape[1] if settings.user_embedding.context else None
            retrieval = retrieval_tasks(side.tasks)
            self.user_embedding = UserEmbedding(side.items, columns, settings.user_embedding, generator, retrieval)
            width = settings.user_embedding.dimension
        else:
            if side.user_encoder is None:
                raise SettingsError("The two-stage system needs the user embedding model.")
            width = side.user_encoder.dimension
            self.register_buffer("frozen_scale", torch.ones(()))
        self.hidden = nn.Linear(width, settings.hidden)
        self.output = nn.Linear(settings.hidden, settings.dimension * len(side.tasks))
        for layer in (self.hidden, self.output):
            layer.weight.data.normal_(0.0, layer.in_features**-0.5, generator=generator)
            layer.bias.data.zero_()
        features = [side.item_features, sparse.csr_matrix(np.ones((side.items, 1), dtype=np.float32))]
        if settings.item_identity:
            features.append(sparse.identity(side.items, dtype=np.float32, format="csr"))
        self._features = DesignMatrix(sparse.hstack(features, format="csr"))
        self.phi = FeatureTable(self._features.features.shape[1], settings.dimension, generator, scale=0.1)
        if settings.item_identity:
            # An item without training rows stays at what its features say.
            self.phi.vectors.data[-side.items :] = 0.0
        self.g = _ACTIVATIONS[settings.activation]()
        self.register_buffer("popularity", torch.zeros(len(side.tasks), side.items))

    popularity: Tensor

    def start(self, rows: UserRows) -> None:
        """Note which share of the users every item is a positive of, and set the scale of frozen vectors.

        The scale is mean square 1 per coordinate, so that one learning rate suits all.
        """
        counts = count_positives(rows, self.tasks, self.popularity.shape[1])
        self.popularity = (counts / max(len(rows.present), 1)).clamp(max=1.0)
        if self.user_embedding is None:
            assert rows.frozen is not None
            self.frozen_scale = rows.frozen.square().mean().sqrt().clamp(min=1e-12)

    def finish(self, rows: UserRows) -> None:
        """Keep what stands in for a user without history."""
        if self.user_embedding is not None:
            self.user_embedding.finish(rows)

    def priors(self) -> Vectors:
        """Return what the loss of a retrieval task makes of an item for users that nothing tells apart.

        The formula has no biases, so what the user tower makes of a short history says little of items. One score for
        all users has the least loss at (1 + a) p / (1 + a p), for the item's share p of the users and a the weight of
        a positive.
        """
        a = self.settings.positive_weight
        scores = (1.0 + a) * self.popularity / (1.0 + a * self.popularity)
        named = dict(zip(self.tasks, scores, strict=True))
        return {name: named[name] for name in retrieval_tasks(self.tasks)}

    def embed(self, batch: UserBatch) -> Tensor:
        """Return (B, k) user vectors u, frozen or of the embedding model in training."""
        if self.user_embedding is None:
            assert batch.source.frozen is not None
            return batch.source.frozen[batch.users] / self.frozen_scale
        return self.user_embedding(batch)

    def f_theta(self, u: Tensor) -> Tensor:
        """Map (B, k) user vectors to (B, tasks, dimension)."""
        hidden = torch.tanh(self.hidden(u))
        return self.output(hidden).view(len(u), len(self.tasks), -1)

    def user_vectors(self, batch: UserBatch) -> Vectors:
        """Return the user tower's output per task."""
        return dict(zip(self.tasks, self.f_theta(self.embed(batch)).unbind(1), strict=True))

    def item_vectors(self) -> Vectors:
        """Return g(phi(v)), the same for every task."""
        vectors = self.g(self.phi(self._features))
        return dict.fromkeys(self.tasks, vectors)

    def losses(self, batch: UserBatch) -> dict[str, Tensor]:
        """Return the tasks' losses, the penalty and, if trained jointly, L_UserEmb."""
        result: dict[str, Tensor] = {}
        if self.user_embedding is None:
            u = self.embed(batch)
        else:
            u, embedding_loss = self.user_embedding.vectors_and_loss(batch)
            result[USER_EMBEDDING] = self.settings.user_embedding_weight * embedding_loss
        outputs, items = self.f_theta(u), self.g(self.phi(self._features))
        for place, (name, task) in enumerate(self.tasks.items()):
            label = self.scales.standardise(name, batch.label(name))
            loss = task_loss(task, outputs[:, place], items, batch, label, self.settings.positive_weight).mean(batch)
            if task.kind == "retrieval":
                # Its rows are all pairs (i, j) of the batch, as in the document's double sum.
                loss = loss * len(label) / (len(outputs) * len(batch.catalogue))
            result[name] = getattr(self.settings, f"{task.kind}_weight") * loss
        result[PENALTY] = self.settings.alpha * outputs.square().sum((1, 2)).mean()
        return result


class TwoStageSystem(NeuralRecommender[DocumentSystemSettings]):
    """The document's system as it stands: the user embedding model is trained first and frozen."""

    knowledge = Knowledge("encoded", "popularity, for labels the mean training user", "features", True, True)

    def build(self, side: SideInformation, scales: LabelScales, generator: torch.Generator) -> TwoTowerModule:
        """Make the untrained module."""
        return DocumentSystemModule(side, self.settings, scales, joint=False, generator=generator)

    def training_settings(self) -> TrainingSettings:
        """Return how the module is trained."""
        return self.settings.training


class JointSystem(TwoStageSystem):
    """The document's system with the user embedding model trained together with the recommender."""

    def build(self, side: SideInformation, scales: LabelScales, generator: torch.Generator) -> TwoTowerModule:
        """Make the untrained module."""
        return DocumentSystemModule(side, self.settings, scales, joint=True, generator=generator)
