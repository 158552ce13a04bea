"""History encoders: what is made of a user's history, as a bag of items or as a sequence.

Every encoder starts from the weighted sum of the item vectors of the history (the linear encoder) and may add to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

EncoderName = Literal["linear", "nonlinear", "sequential"]
RowVectors = Callable[[Tensor], Tensor]


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

    def forward(self, summed: Tensor, row_user: Tensor, row_vectors: RowVectors) -> Tensor:
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

    def forward(self, summed: Tensor, row_user: Tensor, row_vectors: RowVectors) -> Tensor:
        """Add the hidden layer's output to the sum."""
        return summed + torch.tanh(summed @ self.inward + self.bias) @ self.outward


class _SelfAttentionBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); one head."""

    def __init__(self, dimension: int, generator: torch.Generator) -> None:
        super().__init__()

        def weight(width: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(dimension, width, generator=generator) * dimension**-0.5)

        self.query, self.key, self.value = weight(dimension), weight(dimension), weight(dimension)
        self.inward, self.outward = weight(dimension), weight(dimension)
        self.dimension = dimension

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D); ``allowed`` (B, L, L) says which positions a position may look at."""
        normed = functional.layer_norm(x, (self.dimension,))
        x = x + functional.scaled_dot_product_attention(
            normed @ self.query, normed @ self.key, normed @ self.value, attn_mask=allowed
        )
        normed = functional.layer_norm(x, (self.dimension,))
        return x + torch.relu(normed @ self.inward) @ self.outward


class SequentialEncoder(HistoryEncoder):
    """x = s + z_L O: causal self-attention over the latest items, read at the last position.

    The input of position l is the item's vector plus a vector of the position, counted back from the latest item; z_L
    is the output at the latest one. Source: Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018,
    section 3. Differences: hidden rows are left out of the sequence instead of being predicted one after the other,
    the result is added to the sum over the whole history, and O starts at 0, so that training starts from the linear
    encoder.

    Args:
        dimension: D.
        length: L, how many of the latest seen items are read.
        blocks: Number of self-attention blocks.
        generator: Source of the initial weights.
    """

    def __init__(self, dimension: int, length: int, blocks: int, generator: torch.Generator) -> None:
        super().__init__()
        self.length = length
        self.position = nn.Parameter(torch.randn(length, dimension, generator=generator) * dimension**-0.5)
        self.blocks = nn.ModuleList(_SelfAttentionBlock(dimension, generator) for _ in range(blocks))
        self.outward = nn.Parameter(torch.zeros(dimension, dimension))

    def outputs(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Encode sequences.

        Args:
            vectors: (B, L, D) item vectors, the latest last; anything where there is none.
            present: (B, L) whether there is an item.

        Returns:
            (B, L, D) outputs z of all positions; position l depends on positions up to l alone.
        """
        length = vectors.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        # A position without an item sees itself, so that no row of the attention is empty.
        allowed = (causal & present[:, None, :]) | torch.eye(length, dtype=torch.bool)
        x = vectors * present[:, :, None] + self.position
        for block in self.blocks:
            x = block(x, allowed)
        return x

    def forward(self, summed: Tensor, row_user: Tensor, row_vectors: RowVectors) -> Tensor:
        """Add the encoded sequence to the sum; nothing for a user without rows."""
        rows = latest_rows(row_user, len(summed), self.length)
        present = rows >= 0
        vectors = row_vectors(rows.clamp(min=0).flatten()) if len(row_user) else summed.new_zeros(rows.numel(), 1)
        last = self.outputs(vectors.view(*rows.shape, -1), present)[:, -1]
        return summed + (last @ self.outward) * present[:, -1:]


def latest_rows(row_user: Tensor, users: int, length: int) -> Tensor:
    """Return (users, length) places of every user's latest rows, the latest last; -1 where there are fewer.

    Args:
        row_user: (n,) place of each row's user, ascending.
        users: Number of users.
        length: How many rows of a user at most.
    """
    rows = torch.arange(len(row_user))
    ends = torch.bincount(row_user, minlength=users).cumsum(0)
    from_end = ends[row_user] - 1 - rows
    table = torch.full((users, length), -1, dtype=torch.int64)
    near = from_end < length
    table[row_user[near], length - 1 - from_end[near]] = rows[near]
    return table


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
        return SequentialEncoder(dimension, sequence_length, 2, generator)
    return LinearEncoder()
