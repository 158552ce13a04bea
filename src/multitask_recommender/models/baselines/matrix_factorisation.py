"""Matrix factorisation with biases, for tasks that have a label per observed pair."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation
from multitask_recommender.data.queries import Queries
from multitask_recommender.models.recommender import PENALTY, HistorySettings, Knowledge, LearningCurve, Recommender
from multitask_recommender.models.state import State, array, branch
from multitask_recommender.models.towers.biases import solve_biases
from multitask_recommender.models.training.loop import (
    TrainableModule,
    TrainingSettings,
    UserBatch,
    UserRows,
    new_generator,
    train,
)
from multitask_recommender.models.training.sparse_products import Pairs, pair_scores, weighted_grams, weighted_sums


class MatrixFactorisationSettings(HistorySettings):
    """Parameters of matrix factorisation.

    Attributes:
        dimension: Number of factors.
        penalty: Weight of the squared length of a user's or an item's factors, per row of the user or item.
        bias_penalty: The same for the biases.
        training: Optimiser and schedule.
    """

    dimension: int = Field(default=64, ge=1, le=8192)
    penalty: float = Field(default=0.105, ge=0, le=1e9)
    bias_penalty: float = Field(default=0.02, ge=0, le=1e9)
    training: TrainingSettings = TrainingSettings(learning_rate=0.01, epochs=30, batches=8)


class BiasedFactors(TrainableModule):
    """Factors and biases of one task.

    Args:
        biases: (users,) and (items,) initial biases.
        settings: Parameters.
        task: The task whose labels are factorised.
        generator: Source of the initial factors.
    """

    def __init__(
        self,
        biases: tuple[FloatArray, FloatArray],
        settings: MatrixFactorisationSettings,
        task: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.task, self.settings = task, settings
        self.user_bias, self.item_bias = (nn.Parameter(torch.from_numpy(bias)) for bias in biases)
        users, items = len(self.user_bias), len(self.item_bias)
        self.user = nn.Parameter(torch.randn(users, settings.dimension, generator=generator) * 0.03)
        self.item = nn.Parameter(torch.randn(items, settings.dimension, generator=generator) * 0.03)

    def losses(self, batch: UserBatch) -> dict[str, Tensor]:
        """Return the mean squared error over the rows, and the penalty."""
        p, q, b, c = self.user[batch.users], self.item, self.user_bias[batch.users], self.item_bias
        score = pair_scores(p, q, batch.pairs) + b[batch.row_user] + c[batch.row_item]
        # Summed over rows, so that a row of the factors is penalised once per observation.
        by_user = torch.bincount(batch.row_user, minlength=len(p)).to(p.dtype)
        by_item = torch.bincount(batch.row_item, minlength=len(q)).to(q.dtype)
        user = self.settings.penalty * p.square().sum(1) + self.settings.bias_penalty * b.square()
        item = self.settings.penalty * q.square().sum(1) + self.settings.bias_penalty * c.square()
        penalty = (by_user @ user + by_item @ item) / len(score)
        return {self.task: (batch.label(self.task) - score).square().mean(), PENALTY: penalty}


class MatrixFactorisation(Recommender[MatrixFactorisationSettings]):
    """y_hat(u, i) = mean + b_u + b_i + p_u . q_i on standardised labels, one factorisation per task.

    Minimises the mean over rows of (y - y_hat)^2 + penalty (|p_u|^2 + |q_i|^2) + bias_penalty (b_u^2 + b_i^2).
    Source: Koren, Bell and Volinsky, Matrix Factorization Techniques for Recommender Systems, IEEE Computer 2009,
    equation 5; binary labels are predicted as numbers and clipped to [0, 1]. The users' factors and biases are solved
    anew from the history that they are asked with.
    """

    predicts = frozenset({"binary", "regression"})
    ranks = predicts
    stochastic = True
    effort = 0.7
    knowledge = Knowledge("factors and bias solved from its labels", "item biases", "user bias")

    def fit(self, train_rows: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Factorise the labels of every task."""
        state: State = {}
        curves = []
        for task in self.scored_tasks(side.tasks):
            generator = new_generator(seed)
            rows = train_rows.with_tasks([task]).where(~np.isnan(train_rows.labels[task]))
            label = rows.labels[task]
            mean, spread = float(label.mean()), float(label.std()) or 1.0
            rows.labels[task] = ((label - mean) / spread).astype(np.float32)
            biases = solve_biases(rows.user, rows.item, rows.labels[task], side.users, side.items, (15.0, 10.0))
            module = BiasedFactors(biases, self.settings, task, generator)
            # Nothing is known of an item without labels.
            module.item.data[np.bincount(rows.item, minlength=side.items) == 0] = 0.0
            flat = UserRows(rows, side.users)
            curves.append(train(type(self).__name__, module, module.losses, flat, self.settings.training, generator))
            state[task] = {
                "item": module.item.detach().numpy(),
                "item_bias": module.item_bias.detach().numpy(),
                "scale": np.array([mean, spread, label.min(), label.max()]),
            }
        self.restore(state, side)
        merged = [
            {k: v for part in parts for k, v in part.items()} for parts in zip(*[c.epochs for c in curves], strict=True)
        ]
        return LearningCurve(merged)

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Fold the users in, and predict labels in their own units."""
        scores = {}
        for task in self._tasks:
            own = branch(self._state, task)
            item, item_bias = array(own, "item"), array(own, "item_bias")
            mean, spread, low, high = array(own, "scale")
            history = queries.weighted(self.settings.recency).history
            known = ~np.isnan(history.labels[task])
            rows = (history.user[known], history.item[known], (history.labels[task][known] - mean) / spread)
            weight = None if history.weight is None else history.weight[known]
            user, user_bias = self._fold_in(rows, len(queries), item, item_bias, weight)
            product = user @ item.T
            product += user_bias[:, None] + item_bias[None, :]
            scores[task] = np.clip(mean + spread * product, low, high).astype(np.float32)
        return scores

    def _fold_in(
        self,
        rows: tuple[IntArray, IntArray, FloatArray],
        users: int,
        item: FloatArray,
        item_bias: FloatArray,
        weight: FloatArray | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """Solve the users' factors and biases by ridge regression on those of the items: the minimum of the loss.

        Args:
            rows: Users (ascending), items and standardised labels of the histories.
            users: Number of users.
            item: (items, d) factors.
            item_bias: (items,) biases.
            weight: What every row counts; None: 1.

        Returns:
            (users, d) and (users,); 0 for a user without labels.
        """
        user, rated, label = (torch.from_numpy(np.ascontiguousarray(part)) for part in rows)
        table = torch.from_numpy(np.column_stack([item, np.ones_like(item_bias)]))
        pairs = Pairs.of(user, rated, users)
        target = (label - torch.from_numpy(item_bias)[rated]).to(table.dtype)
        counts = pairs.offsets.diff().to(table.dtype)
        penalty = table.new_full((table.shape[1],), self.settings.penalty)
        penalty[-1] = self.settings.bias_penalty
        # A user without labels has no equations, and any penalty makes the solution 0.
        ridge = torch.where(counts[:, None] > 0, counts[:, None] * penalty, 1.0).clamp(min=1e-6)
        own = torch.ones_like(target) if weight is None else torch.from_numpy(weight)
        gram = weighted_grams(pairs, own, table) + torch.diag_embed(ridge)
        right = weighted_sums(pairs, own * target, table)
        solution = torch.linalg.solve(gram, right).numpy()
        return solution[:, :-1], solution[:, -1]

    def state(self) -> State:
        """Return the items' factors and biases, and scales, per task."""
        return dict(self._state)

    def restore(self, state: State, side: SideInformation) -> None:
        """Take factors, biases and scales back."""
        self._state, self._tasks = dict(state), self.scored_tasks(side.tasks)
