"""History encoders: what is made of a user's history, as a bag of items or as a sequence.

Every encoder starts from the weighted sum of the item vectors of the history (the linear encoder) and may add to it.
The sequential one is for the user embedding model. Beside the multi-task towers the order of a history is read by a
recommender of its own, ``next_items``, with the same self-attention.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

EncoderName = Literal["linear", "nonlinear", "sequential"]
RowVectors = Callable[[Tensor], Tensor]
_RATES = 0.3, 0.03
"""Initial rates at which the first and the last head forget, per position."""


class HistoryEncoder(nn.Module, ABC):
    """Refines the linear encoding of histories."""

    @abstractmethod
    def forward(self, summed: Tensor, row_user: Tensor, row_vectors: RowVectors) -> Tensor:
        """Encode the histories of a batch.

        Args:
            summed: (B, D) weighted sums of the item vectors of the histories.
            row_user: (n,) place of each row's user, from 0 to B - 1, ascending; a user's rows are in order of time.
            row_vectors: (m,) places of rows to their (m, D) item vectors.

        Returns:
            (B, D).
        """


class LinearEncoder(HistoryEncoder):
    """x = s: the sum itself, as in the source document's linear autoencoder and in SVD++ (Koren, KDD 2008)."""

    def forward(self, summed: Tensor, row_user: Tensor | None = None, row_vectors: RowVectors | None = None) -> Tensor:
        """Return ``summed``."""
        return summed


class NonlinearEncoder(HistoryEncoder):
    """x = s + tanh(s A + a) B: a hidden layer over the sum.

    With a share of the history hidden in every step it is a denoising autoencoder (Vincent et al., ICML 2008; for
    recommendation Wu et al., Collaborative Denoising Auto-Encoders, WSDM 2016). B starts at 0, so that training starts
    from the linear encoder.

    Args:
        dimension: D.
        generator: Source of the initial A.
    """

    def __init__(self, dimension: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inward = nn.Parameter(torch.randn(dimension, dimension, generator=generator) * dimension**-0.5)
        self.bias = nn.Parameter(torch.zeros(dimension))
        self.outward = nn.Parameter(torch.zeros(dimension, dimension))

    def forward(self, summed: Tensor, row_user: Tensor | None = None, row_vectors: RowVectors | None = None) -> Tensor:
        """Add the hidden layer's output to the sum."""
        return summed + torch.tanh(summed @ self.inward + self.bias) @ self.outward


class Pieces(NamedTuple):
    """Sequences of rows, cut into pieces that are filled up to one length.

    Attributes:
        place: (n,) place of every row among those of all pieces.
        number: P, the number of pieces.
        length: L, places of a piece. The latest rows stand last.
    """

    place: Tensor
    number: int
    length: int

    @classmethod
    def of(cls, row_user: Tensor, users: int, length: int, shift: Tensor | None = None) -> Pieces:
        """Cut the sequences of some users, from their ends on.

        Args:
            row_user: (n,) place of each row's user, ascending.
            users: Number of users.
            length: L.
            shift: (users,) how many places are left free after a user's latest row; None: none.
        """
        counts = torch.bincount(row_user, minlength=users)
        filled = counts if shift is None else counts + shift
        pieces = (filled + length - 1) // length
        # Places from the end of the last piece that a user may have: row k of all rows is the k-th of its user.
        ends = (counts.cumsum(0) - counts + filled)[row_user]
        from_end = ends - 1 - torch.arange(len(row_user))
        piece = pieces.cumsum(0)[row_user] - 1 - from_end // length
        return cls(piece * length + length - 1 - from_end % length, int(pieces.sum()), length)

    def fill(self, rows: Tensor) -> Tensor:
        """Bring (n, d) rows to their places (P, L, d); 0 elsewhere."""
        places = rows.new_zeros(self.number * self.length, rows.shape[1])
        return places.index_copy(0, self.place, rows).view(self.number, self.length, rows.shape[1])

    def rows(self, filled: Tensor) -> Tensor:
        """Bring (P, L, d) places back to (n, d) rows."""
        return filled.flatten(0, 1).index_select(0, self.place)

    def seen(self) -> Tensor:
        """Return (P, L, L) whether a place sees another: itself, and earlier ones that have a row."""
        place = torch.arange(self.length)
        present = torch.zeros(self.number * self.length, dtype=torch.bool).index_fill(0, self.place, True)
        # A place without a row sees itself, so that no row of the attention is empty.
        return (place < place[:, None]) & present.view(self.number, 1, self.length) | (place == place[:, None])


class _SelfAttentionBlock(nn.Module):
    """x + attention(x), then x + MLP(norm(x)).

    The attention of place l to place k is the softmax of (norm(x_l) Q) . (norm(x_k) K) / sqrt(d) - r (l - k), with a
    rate r per head. Q and the last map of the MLP start at 0, so that training starts from means of the latest items
    that fade with their age.
    """

    def __init__(self, dimension: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()

        def weight() -> nn.Parameter:
            return nn.Parameter(torch.randn(dimension, dimension, generator=generator) * dimension**-0.5)

        self.query, self.outward = (nn.Parameter(torch.zeros(dimension, dimension)) for _ in range(2))
        self.key, self.value, self.joined, self.inward = (weight() for _ in range(4))
        self.log_rate = nn.Parameter(torch.linspace(math.log(_RATES[0]), math.log(_RATES[1]), heads))
        self.dimension = dimension

    def forward(self, x: Tensor, pieces: Pieces, allowed: Tensor) -> Tensor:
        """Map (n, D) rows to (n, D); ``allowed`` as :meth:`Pieces.seen`."""
        normed = functional.layer_norm(x, (self.dimension,))
        heads = len(self.log_rate)
        query, key, value = (
            pieces.fill(own).unflatten(2, (heads, self.dimension // heads)).transpose(1, 2)
            for own in (normed @ self.query, normed @ self.key, x @ self.value)
        )
        logits = query @ key.transpose(2, 3) * (self.dimension // heads) ** -0.5
        place = torch.arange(pieces.length)
        faded = logits - self.log_rate.exp()[:, None, None] * (place[:, None] - place)
        weights = torch.softmax(faded.masked_fill(~allowed[:, None], -torch.inf), dim=3)
        seen = pieces.rows((weights @ value).transpose(1, 2).flatten(2))
        x = x + seen @ self.joined
        return x + torch.relu(functional.layer_norm(x, (self.dimension,)) @ self.inward) @ self.outward


class CausalAttention(nn.Module):
    """Causal self-attention over sequences of items: the output at a row knows that row and earlier ones.

    Source: Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018, section 3. Differences: instead of
    position vectors the attention fades with the distance, as in Press, Smith and Lewis, Train Short, Test Long, ICLR
    2022, section 3, at rates that are trained; values are not normalised; and nothing is dropped inside.

    Args:
        dimension: D.
        blocks: Number of self-attention blocks.
        heads: Number of heads of a block; the largest number of which D is a multiple as well, if it is none of this.
        generator: Source of the initial weights.
    """

    def __init__(self, dimension: int, blocks: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        heads = math.gcd(dimension, heads)
        self.blocks = nn.ModuleList(_SelfAttentionBlock(dimension, heads, generator) for _ in range(blocks))

    def forward(self, x: Tensor, pieces: Pieces) -> Tensor:
        """Encode sequences.

        Args:
            x: (n, D) vectors of the rows, those of a sequence in order of time.
            pieces: The sequences.

        Returns:
            (n, D) outputs z; that at a row depends on the rows of its piece up to it alone.
        """
        allowed = pieces.seen()
        for block in self.blocks:
            x = block(x, pieces, allowed)
        return x


class SequentialEncoder(HistoryEncoder):
    """x = s + z O: causal self-attention over the latest seen items, read at the last one.

    O starts at 0, so that training starts from the linear encoder.

    Args:
        dimension: D.
        length: How many of the latest seen items are read.
        generator: Source of the initial weights.
    """

    def __init__(self, dimension: int, length: int, generator: torch.Generator) -> None:
        super().__init__()
        self.length = length
        self.attention = CausalAttention(dimension, 2, 2, generator)
        self.outward = nn.Parameter(torch.zeros(dimension, dimension))

    def forward(self, summed: Tensor, row_user: Tensor, row_vectors: RowVectors) -> Tensor:
        """Add the encoded sequence to the sum; nothing for a user without rows."""
        near = latest_rows(row_user, len(summed), self.length)
        if len(near) == 0:
            return summed
        owner = row_user[near]
        outputs = self.attention(row_vectors(near), Pieces.of(owner, len(summed), self.length))
        last = torch.nonzero(torch.diff(owner, append=owner.new_full((1,), -1)) != 0).squeeze(1)
        return summed.index_add(0, owner[last], outputs[last] @ self.outward)


def latest_rows(row_user: Tensor, users: int, length: int) -> Tensor:
    """Return (m,) the places of every user's latest rows, in their order.

    Args:
        row_user: (n,) place of each row's user, ascending.
        users: Number of users.
        length: How many rows of a user at most.
    """
    ends = torch.bincount(row_user, minlength=users).cumsum(0)[row_user]
    return torch.nonzero(ends - torch.arange(len(row_user)) <= length).squeeze(1)


def make_history_encoder(
    name: EncoderName, dimension: int, sequence_length: int, generator: torch.Generator
) -> HistoryEncoder:
    """Make the encoder of this name.

    Args:
        name: ``linear``, ``nonlinear`` or ``sequential``.
        dimension: D, length of the vectors.
        sequence_length: How many of the latest items the sequential encoder reads.
        generator: Source of the initial weights.
    """
    if name == "nonlinear":
        return NonlinearEncoder(dimension, generator)
    if name == "sequential":
        return SequentialEncoder(dimension, sequence_length, generator)
    return LinearEncoder()
