"""What comes next: scores of retrieval tasks from the order of a history, trained on every position of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from multitask_recommender.data.interactions import SideInformation
from multitask_recommender.data.tasks import retrieval_tasks
from multitask_recommender.models.towers.experts import identity_heads
from multitask_recommender.models.towers.history_encoders import CausalAttention, Pieces, latest_rows
from multitask_recommender.models.towers.settings import MultiTaskSettings
from multitask_recommender.models.towers.two_tower import Vectors, at_least_one
from multitask_recommender.models.training.loop import UserBatch, UserRows
from multitask_recommender.models.training.sparse_products import Pairs, weighted_sums

_SCALE = 0.1
_TARGET = 5.0
"""Factor on what is to be predicted: the larger, the fewer steps of Adam lead there, and the less penalties count."""


class NextItems(nn.Module):
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

    Attributes:
        weight: What its scores count; no part of the training.
    """

    def __init__(self, side: SideInformation, settings: MultiTaskSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.settings, self.dimension = settings, settings.sequence_dimension
        self.weight = settings.next_items_weight
        self.read, self.expected = (
            nn.Parameter(torch.randn(side.items, self.dimension, generator=generator) * _SCALE) for _ in range(2)
        )
        self.attention = CausalAttention(self.dimension, settings.sequence_blocks, settings.sequence_heads, generator)
        self.heads = identity_heads(retrieval_tasks(side.tasks), self.dimension)

    def start(self, rows: UserRows) -> None:
        """Set the vectors of the items without training rows to 0: no loss moves them."""
        for table in self.tables():
            table.data[torch.bincount(rows.item, minlength=len(table)) == 0] = 0.0

    def tables(self) -> list[nn.Parameter]:
        """Return r and w, the vectors of the items as they are read and as they are expected."""
        return [self.read, self.expected]

    def outputs(self, batch: UserBatch) -> Tensor:
        """Return (n, D) the outputs z at all rows of a batch.

        A long history is cut into pieces. With a generator it is cut anywhere, and a share of the items is hidden.
        """
        length, shift, vectors = self.settings.sequence_length, None, self.read[batch.row_item]
        if batch.generator is not None:
            hidden = batch.random_per_row()[:, None] < self.settings.sequence_hidden
            vectors = vectors * ~hidden
            shift = batch.integers_per_user(length)
        return self.attention(vectors, Pieces.of(batch.row_user, len(batch.users), length, shift))

    def user_vectors(self, batch: UserBatch) -> Vectors:
        """Return task to (B, D), z H_t at the latest row of every user, times the weight of these scores; else 0."""
        near = latest_rows(batch.row_user, len(batch.users), self.settings.sequence_length)
        latest = batch.part(torch.zeros(len(batch.row), dtype=torch.bool).index_fill(0, near, True))
        known = torch.nonzero(latest.counts > 0).squeeze(1)
        last = self.outputs(latest)[latest.counts.cumsum(0)[known] - 1]
        ends = last.new_zeros(len(batch.users), self.dimension).index_copy(0, known, last)
        return {name: self.weight * ends @ head for name, head in self.heads.items()}

    def losses(self, batch: UserBatch) -> dict[str, Tensor]:
        """Return the loss of every retrieval task per row, without the sum of the squares of f, which is constant."""
        outputs = self.outputs(batch)
        pairs, weight, later = followers(batch, self.settings.sequence_reach)
        # Sums of geometric series: the weights of the rows that follow, over those of all that could.
        reach = self.settings.sequence_reach
        known = (1.0 - torch.exp(-pairs.offsets.diff() / reach)) / (1.0 - math.exp(-span(reach) / reach))
        catalogue = batch.of_catalogue(self.expected)
        gram = catalogue.T @ catalogue
        result = {}
        for name, head in self.heads.items():
            own, positive = outputs @ head, batch.label(name)[later] > 0
            sums = weighted_sums(pairs, _TARGET * weight * positive, self.expected)
            total = ((own.T @ (known[:, None] * own)) * gram).sum() - 2.0 * (own * sums).sum()
            result[name] = total / at_least_one(batch.total(len(batch.row)))
        return result


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
