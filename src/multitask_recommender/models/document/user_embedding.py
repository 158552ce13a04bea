"""The user embedding model: a user's history and context to one vector, trained with ``L_UserEmb``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from multitask_recommender.data.interactions import FloatArray, Interactions, SideInformation
from multitask_recommender.data.queries import Queries
from multitask_recommender.data.tasks import retrieval_tasks
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import Knowledge, LearningCurve, Recommender
from multitask_recommender.models.state import State, array
from multitask_recommender.models.towers.history_encoders import EncoderName, make_history_encoder
from multitask_recommender.models.towers.sparse_features import FeatureTable
from multitask_recommender.models.training.loop import (
    TrainableModule,
    TrainingSettings,
    UserBatch,
    UserRows,
    new_generator,
    train,
)
from multitask_recommender.models.training.sparse_products import DesignMatrix, weighted_sums

_BLOCK = 1024


class UserEmbeddingSettings(Settings):
    """Parameters of the user embedding model.

    Attributes:
        dimension: Length k of a user's vector.
        penalty: lambda, the weight of the vectors' squared norm.
        context: Whether the user's context features enter the encoder.
        encoder: What is made of the projected history (see ``history_encoders``); the document's is ``linear``.
        sequence_length: How many of the latest items the sequential encoder reads.
        history_dropout: Share of a history hidden from the encoder in a step, while the whole of it is to be
            reconstructed (a denoising autoencoder); the document's is 0.
        training: Optimiser and schedule; the source document asks for stochastic gradient descent.
    """

    dimension: int = Field(default=32, ge=1)
    penalty: float = Field(default=0.1, ge=0)
    context: bool = True
    encoder: EncoderName = "linear"
    sequence_length: int = Field(default=32, ge=1)
    history_dropout: float = Field(default=0.0, ge=0, lt=1)
    training: TrainingSettings = TrainingSettings(optimiser="sgd", learning_rate=1.0, epochs=40, batches=8)


class UserEmbedding(TrainableModule):
    """Autoencoder with tied weights over the user's history, linear unless the settings say otherwise.

    z_u = W h_u + C c_u, and the loss of a user is ||h_u - W' z_u||^2 + lambda ||z_u||^2. An encoder R other than the
    linear one makes it z_u = R(W h_u) + C c_u.

    ``h_u`` is the user's row of the history matrix (ones, or the weights of the rows) scaled to length 1, so that
    heavy users do not drown the others; ``c_u`` are the context features. The source document writes the loss
    as sum_u ||h_u - W'W||^2 + lambda ||h_u||^2 without saying what W multiplies. Our reading: the prime is a transpose,
    W'W projects the history onto k directions, and the penalty is on the embedding. Without context the minimum is
    known: :func:`optimal_loss`.

    Args:
        items: Number of items.
        context: Number of columns of the context features; None: they are not read.
        settings: Dimension and penalty.
        generator: Source of the initial weights.
        retrieval: Names of the retrieval tasks. Rows that one of them labels 0, and none positively, are no part of a
            history.
    """

    def __init__(
        self,
        items: int,
        context: int | None,
        settings: UserEmbeddingSettings,
        generator: torch.Generator,
        retrieval: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._retrieval = retrieval
        scale = items**-0.5
        initial = torch.randn(items, settings.dimension, generator=generator) * scale
        self.weight = nn.Parameter(initial)  # (items, k): W transposed, one row per item
        self.context = None if context is None else FeatureTable(context, settings.dimension)
        self.encoder = make_history_encoder(settings.encoder, settings.dimension, settings.sequence_length, generator)
        self.penalty, self.history_dropout = settings.penalty, settings.history_dropout
        self.register_buffer("prior", torch.zeros(settings.dimension))

    prior: Tensor

    def finish(self, rows: UserRows) -> None:
        """Keep the mean encoding of the training users' histories, which stands in for a user without one."""
        blocks = (self._history(batch) for batch in rows.blocks(_BLOCK))
        self.prior = torch.cat([self._encode_history(batch) for batch in blocks]).mean(0)

    def _history(self, batch: UserBatch) -> UserBatch:
        labels = [batch.label(task) for task in self._retrieval if task in batch.source.labels]
        if not labels:
            return batch
        every = torch.stack(labels)
        refused = (every == 0).any(0) & ~(every > 0).any(0)
        return batch.part(~refused) if bool(refused.any()) else batch

    def project_history(self, batch: UserBatch, seen: UserBatch | None = None) -> tuple[Tensor, Tensor]:
        """Compute W h_u from the rows of a batch.

        Args:
            batch: B users with their n rows.
            seen: The part of the batch that was drawn to be seen; None: all of it.

        Returns:
            (B, k) projections, and (B,) squared lengths of h: 1, or 0 without history.
        """
        count = torch.bincount(batch.row_user, minlength=len(batch.users))
        square = count.to(self.weight.dtype)
        if batch.row_weight is not None:
            square = torch.zeros_like(square).index_add(0, batch.row_user, batch.row_weight.square())
        value = torch.where(count > 0, square, 1.0).rsqrt()
        if seen is not None:
            value = value / (1.0 - self.history_dropout)
        rows = batch if seen is None else seen
        entries = value[rows.row_user] if rows.row_weight is None else value[rows.row_user] * rows.row_weight
        return weighted_sums(rows.pairs, entries, self.weight), (count > 0).to(self.weight.dtype)

    def forward(self, batch: UserBatch, seen: UserBatch | None = None) -> Tensor:
        """Embed users.

        Args:
            batch: B users with their n rows.
            seen: The part of the batch that was drawn to be seen; None: all of it.

        Returns:
            (B, k) vectors z.
        """
        if seen is None:
            batch = self._history(batch)
        encoded = self._encode_history(batch, seen)
        if seen is None:
            encoded = torch.where((batch.counts > 0)[:, None], encoded, self.prior)
        return self._with_context(encoded, batch)

    def _encode_history(self, batch: UserBatch, seen: UserBatch | None = None) -> Tensor:
        return self._encode(self.project_history(batch, seen)[0], batch if seen is None else seen)

    def _encode(self, projected: Tensor, seen: UserBatch) -> Tensor:
        return self.encoder(projected, seen.row_user, lambda rows: self.weight[seen.row_item[rows]])

    def _with_context(self, encoded: Tensor, batch: UserBatch) -> Tensor:
        if self.context is None or batch.source.context is None:
            return encoded
        return encoded + self.context(batch.source.context.with_unit_rows, batch.users)

    def loss(self, batch: UserBatch) -> Tensor:
        """Return L_UserEmb averaged over the users of a batch: the document's sum divided by the number of users."""
        return self.vectors_and_loss(batch)[1]

    def vectors_and_loss(self, batch: UserBatch) -> tuple[Tensor, Tensor]:
        """Return the vectors (B, k) that the whole histories give, and :meth:`loss`.

        ||h - W'z||^2 is expanded to ||h||^2 - 2 (W h)'z + z' (W W') z, so that no vector over all items is made.
        """
        batch = self._history(batch)
        projected, length = self.project_history(batch)
        vectors = z = self._with_context(self._encode(projected, batch), batch)
        if self.history_dropout > 0:
            seen = torch.rand(len(batch.row_item), generator=batch.generator) >= self.history_dropout
            z = self(batch, batch.part(seen))
        gram = self.weight.T @ self.weight  # (k, k)
        reconstruction = length - 2 * (projected * z).sum(1) + ((z @ gram) * z).sum(1)
        return vectors, (reconstruction + self.penalty * (z**2).sum(1)).mean()


def optimal_loss(singular_values: Tensor, dimension: int, penalty: float, energy: float | None = None) -> float:
    """Minimum of sum_u L_UserEmb over W without context, for a history matrix with these singular values.

    sum_{j<=k} s_j^2 (lambda - lambda^2 / 4) + sum_{j>k} s_j^2 for lambda < 2; for larger lambda W = 0 is best.

    Args:
        singular_values: All of them, or the ``dimension`` largest together with the ``energy``.
        dimension: k.
        penalty: lambda.
        energy: Sum of the squares of all singular values; None: those that are given are all.
    """
    squares = singular_values.sort(descending=True).values ** 2
    kept = float(squares[:dimension].sum())
    factor = penalty - penalty**2 / 4 if penalty < 2 else 1.0
    return factor * kept + max((float(squares.sum()) if energy is None else energy) - kept, 0.0)


class UserEmbeddingModel(Recommender[UserEmbeddingSettings]):
    """Trains :class:`UserEmbedding` and scores an item by its place in the reconstructed history, W' z.

    The score lets cross-validation choose the parameters by how well hidden parts of histories are found.
    """

    stochastic = True
    knowledge = Knowledge("encoded", "mean training user", "0", user_features=True)

    def _build(self, side: SideInformation, generator: torch.Generator) -> UserEmbedding:
        columns = side.user_features.shape[1] if self.settings.context else None
        return UserEmbedding(side.items, columns, self.settings, generator, retrieval_tasks(side.tasks))

    def fit(self, train_rows: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Train the model."""
        generator = new_generator(seed)
        rows = UserRows(train_rows, side.users, DesignMatrix(side.user_features))
        module = self._build(side, generator)
        curve = train(
            "user_embedding",
            module,
            lambda batch: {"user_embedding": module.loss(batch)},
            rows,
            self.settings.training,
            generator,
        )
        with torch.no_grad():
            module.finish(rows)
        self._settle(module, side)
        return curve

    def _settle(self, module: UserEmbedding, side: SideInformation) -> None:
        self._module, self._tasks = module.eval().requires_grad_(False), list(side.tasks)

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self.settings.dimension

    def encode(self, queries: Queries) -> FloatArray:
        """Return (B, k) vectors z of some queries."""
        rows = UserRows(queries.history, len(queries), DesignMatrix(queries.context))
        with torch.no_grad():
            return self._module(rows.everyone()).numpy()

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Reconstruct histories, the same for every task."""
        return dict.fromkeys(self._tasks, self.encode(queries) @ self._module.weight.numpy().T)

    def state(self) -> State:
        """Return the weights."""
        return {name: value.numpy() for name, value in self._module.state_dict().items()}

    def restore(self, state: State, side: SideInformation) -> None:
        """Take the weights back."""
        module = self._build(side, new_generator(0))
        module.load_state_dict({name: torch.from_numpy(array(state, name)) for name in state})
        self._settle(module, side)
