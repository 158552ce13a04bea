"""What comes next: scores of retrieval tasks from the order of a history, trained on every position of it."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from multitask_recommender.data.interactions import SideInformation
from multitask_recommender.data.tasks import retrieval_tasks
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import PENALTY, Knowledge
from multitask_recommender.models.towers.experts import identity_heads
from multitask_recommender.models.towers.history_encoders import CausalAttention, Pieces, latest_rows
from multitask_recommender.models.towers.two_tower import (
    LabelScales,
    NeuralRecommender,
    TwoTowerModule,
    Vectors,
    at_least_one,
    count_positives,
)
from multitask_recommender.models.training.loop import TrainingSettings, UserBatch, UserRows
from multitask_recommender.models.training.sparse_products import Pairs, gram, weighted_sums

_SCALE = 0.1
_TARGET = 5.0
"""Factor on what is to be predicted: the larger, the fewer steps of Adam lead there, and the less penalties count."""


class NextItemsSettings(Settings):
    """Parameters of what comes next.

    Attributes:
        dimension: D, length of the vectors.
        length: How many of the latest items of a history are read.
        reach: How far ahead it is trained to look, in positions: an item so far on counts e times less.
        blocks: Number of self-attention blocks.
        heads: Number of heads of each.
        hidden: Share of a user's rows hidden in a step.
        penalty: Weight of the squared length of the items' vectors.
        training: Optimiser and schedule; ``encoder_rate`` holds for all but the items' vectors.
    """

    dimension: int = Field(default=64, ge=1, le=8192)
    length: int = Field(default=32, ge=1, le=100_000)
    reach: float = Field(default=5.0, gt=0, le=1e9)
    blocks: int = Field(default=1, ge=1, le=64)
    heads: int = Field(default=2, ge=1, le=256)
    hidden: float = Field(default=0.5, ge=0, lt=1)
    penalty: float = Field(default=2.0, ge=0, le=1e9)
    training: TrainingSettings = TrainingSettings(
        learning_rate=0.025, encoder_rate=0.08, epochs=9, batches=32, averaging=0.97
    )


class NextItemsModule(TwoTowerModule):
    """n_t(l, i) = (z_l H_t) . w_i: how soon item i is expected after row l of a sequence, for retrieval task t.

    z_l is the output of :class:`CausalAttention` at row l, over the vectors r of the items up to l. It is trained on
    every row, against the whole catalogue: with f_l(i) = sum_{k > l} [row k is of item i and positive for t]
    exp(-(k - l - 1) / reach), the loss is sum_l m_l sum_i (g f_l(i) / m_l - n_t(l, i))^2 with a constant g. m_l is the
    share of these weights that falls on rows before the end of the sequence: what comes after it is not known, and not
    nothing. Written out, the sum over the catalogue is one of Gram matrices, as in :func:`whole_data_squared_loss`.
    SASRec (Kang and McAuley, ICDM 2018, section 3.6) is trained on every row as well, but to tell the next item alone
    from one that is drawn.

    Args:
        side: Tasks and sizes.
        settings: Parameters.
        generator: Source of the initial weights.
    """

    divisible = True
    popularity: Tensor

    def __init__(self, side: SideInformation, settings: NextItemsSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.settings, names = settings, retrieval_tasks(side.tasks)
        self.tasks = {name: side.tasks[name] for name in names}
        self.read, self.expected = (
            nn.Parameter(torch.randn(side.items, settings.dimension, generator=generator) * _SCALE) for _ in range(2)
        )
        self.attention = CausalAttention(settings.dimension, settings.blocks, settings.heads, generator)
        self.heads = identity_heads(names, settings.dimension)
        self.register_buffer("popularity", torch.zeros(len(names), side.items))

    def start(self, rows: UserRows) -> None:
        """Set the vectors of items without training rows to 0, for no loss moves them; note how popular items are."""
        for table in (self.read, self.expected):
            table.data[torch.bincount(rows.item, minlength=len(table)) == 0] = 0.0
        counts = count_positives(rows, self.tasks, len(self.expected))
        self.popularity = counts / counts.sum(1, keepdim=True).clamp(min=1)

    def priors(self) -> Vectors:
        """Let popular items stand in for a user without history."""
        return dict(zip(self.tasks, self.popularity, strict=True))

    def outputs(self, batch: UserBatch) -> Tensor:
        """Return (n, D) the outputs z at all rows of a batch.

        A long history is cut into pieces. With a generator it is cut anywhere, and a share of the items is hidden.
        """
        length, shift, vectors = self.settings.length, None, self.read[batch.row_item]
        if batch.generator is not None:
            hidden = batch.random_per_row()[:, None] < self.settings.hidden
            vectors = vectors * ~hidden
            shift = batch.integers_per_user(length)
        return self.attention(vectors, Pieces.of(batch.row_user, len(batch.users), length, shift))

    def user_vectors(self, batch: UserBatch) -> Vectors:
        """Return task to (B, D), z H_t at the latest row of every user; 0 without a row."""
        near = latest_rows(batch.row_user, len(batch.users), self.settings.length)
        latest = batch.part(torch.zeros(len(batch.row), dtype=torch.bool).index_fill(0, near, True))
        known = torch.nonzero(latest.counts > 0).squeeze(1)
        last = self.outputs(latest)[latest.counts.cumsum(0)[known] - 1]
        ends = last.new_zeros(len(batch.users), self.settings.dimension).index_copy(0, known, last)
        return {name: ends @ head for name, head in self.heads.items()}

    def item_vectors(self) -> Vectors:
        """Return w, the same for every task."""
        return dict.fromkeys(self.tasks, self.expected)

    def slow_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the attention and the heads."""
        return [*self.attention.parameters(), *self.heads.parameters()]

    def losses(self, batch: UserBatch) -> dict[str, Tensor]:
        """Return the penalty and the tasks' losses per row, without the sum of the squares of f, which is constant."""
        outputs = self.outputs(batch)
        pairs, weight, later = followers(batch, self.settings.reach)
        # Sums of geometric series: the weights of the rows that follow, over those of all that could.
        reach = self.settings.reach
        known = (1.0 - torch.exp(-pairs.offsets.diff() / reach)) / (1.0 - math.exp(-span(reach) / reach))
        of_items, share_known = gram(batch.of_catalogue(self.expected)), known.sqrt()[:, None]
        rows = at_least_one(batch.total(len(batch.row)))
        share = self.settings.penalty * len(batch.users) / batch.source.population
        result = {PENALTY: share * (self.read.square().sum() + self.expected.square().sum()) / rows}
        for name, head in self.heads.items():
            own, positive = outputs @ head, batch.label(name)[later] > 0
            sums = weighted_sums(pairs, _TARGET * weight * positive, self.expected)
            total = (gram(share_known * own) * of_items).sum() - 2.0 * (own * sums).sum()
            result[name] = total / rows
        return result


class NextItems(NeuralRecommender[NextItemsSettings]):
    """Scores items by how soon they are expected after the latest row of a history."""

    ranks = frozenset({"retrieval"})
    predicts = frozenset()
    effort = 5.0
    knowledge = Knowledge("its latest items, in their order", "popularity", "0")

    def build(self, side: SideInformation, scales: LabelScales, generator: torch.Generator) -> TwoTowerModule:
        """Make the untrained module."""
        return NextItemsModule(side, self.settings, generator)

    def training_settings(self) -> TrainingSettings:
        """Return how the module is trained."""
        return self.settings.training


def span(reach: float) -> int:
    """Return how many of the rows that follow count: 3 times the reach, but at least one."""
    return max(int(3 * reach), 1)


def followers(batch: UserBatch, reach: float) -> tuple[Pairs, Tensor, Tensor]:
    """Return the rows that follow every row of a batch in the sequence of its user.

    Args:
        batch: Users with their n rows.
        reach: In positions; see :func:`span`.

    Returns:
        The m pairs (row, item of a later row), (m,) weights exp(-(distance - 1) / reach), and (m,) the later rows.
    """
    number = (batch.counts[batch.row_user] - 1 - batch.position).clamp(max=span(reach))
    row = torch.repeat_interleave(torch.arange(len(number)), number)
    skipped = torch.arange(len(row)) - (number.cumsum(0) - number)[row]
    later = row + 1 + skipped
    return Pairs.of(row, batch.row_item[later], len(number)), torch.exp(-skipped / reach), later
