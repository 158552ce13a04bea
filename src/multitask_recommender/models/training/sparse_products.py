"""Products with matrices that are 0 but at some pairs: sums over histories and features, and scores of rows.

They cost one multiplication per pair and coordinate, where a whole block of users x items would cost one per user, item
and coordinate.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional


class Pairs:
    """Pairs (row, column), sorted by row: where the entries of a sparse matrix stand.

    Args:
        offsets: (rows + 1,) number of the first pair of each row, and at the end the number of pairs, n.
        column: (n,) column of each pair.
    """

    def __init__(self, offsets: Tensor, column: Tensor) -> None:
        self.offsets, self.column = offsets, column
        self._turned: tuple[Tensor, Pairs] | None = None

    @classmethod
    def of(cls, row: Tensor, column: Tensor, rows: int) -> Pairs:
        """Make pairs from (n,) rows, ascending and below ``rows``, and (n,) columns."""
        ends = torch.bincount(row, minlength=rows).cumsum(0)
        return cls(functional.pad(ends, (1, 0)), column)

    def turned(self, columns: int) -> tuple[Tensor, Pairs]:
        """Return the order (n,) of the pairs by column, and the pairs (column, row) in that order; found once.

        Args:
            columns: Number of columns, always the same.
        """
        if self._turned is None:
            shape, numbers = (len(self.offsets) - 1, columns), np.arange(len(self.column), dtype=np.int32)
            # SciPy sorts entries by column in linear time.
            column, offsets = self.column.cpu().numpy(), self.offsets.cpu().numpy()
            turned = sparse.csr_matrix((numbers, column, offsets), shape=shape).tocsc()
            order, row, ends = (
                torch.from_numpy(part.astype(np.int64)).to(self.column.device)
                for part in (turned.data, turned.indices, turned.indptr)
            )
            self._turned = order, Pairs(ends, row)
        return self._turned


def _sum_rows(pairs: Pairs, weight: Tensor, table: Tensor) -> Tensor:
    # Without a gradient of its own the sum takes a shorter way.
    return functional.embedding_bag(
        pairs.column, table.detach(), pairs.offsets, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
        ctx.pairs, ctx.weight, ctx.columns = pairs, weight, len(table)
        return _sum_rows(pairs, weight, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        order, turned = ctx.pairs.turned(ctx.columns)
        return _sum_rows(turned, ctx.weight[order], gradients[0].contiguous()), None, None


def weighted_sums(pairs: Pairs, weight: Tensor, table: Tensor) -> Tensor:
    """Multiply a sparse matrix, which has no gradient, with a table.

    Args:
        pairs: Where the matrix has entries.
        weight: (n,) the entries.
        table: (columns, d) vectors.

    Returns:
        (rows, d): for every row, the sum of the weighted vectors of its columns.
    """
    return _WeightedSums.apply(table, weight.to(table.dtype), pairs)


_SMALLEST_SHARE = 10
"""Down to one entity in so many, the product with the whole matrix is faster than cutting rows out of it."""


class DesignMatrix:
    """The features of users or items: a sparse matrix without gradient, to be multiplied with tables of vectors.

    Args:
        features: (entities, columns).
    """

    def __init__(self, features: sparse.csr_matrix) -> None:
        self.features = features
        self._made: tuple[Pairs, Tensor] | None = None

    def _all(self, device: torch.device) -> tuple[Pairs, Tensor]:
        if self._made is None or self._made[1].device != device:
            self._made = _as_pairs(self.features, device)
        return self._made

    @cached_property
    def with_unit_rows(self) -> DesignMatrix:
        """The same with every row scaled to length 1."""
        length = np.sqrt(np.asarray(self.features.multiply(self.features).sum(axis=1)).ravel())
        return DesignMatrix((sparse.diags(1.0 / np.where(length > 0, length, 1.0)) @ self.features).tocsr())

    def times(self, vectors: Tensor, entities: Tensor | None = None) -> Tensor:
        """Return (B, d), the weighted sums of the (columns, d) vectors of some entities (B,), or of all of them."""
        if entities is None or _SMALLEST_SHARE * len(entities) >= self.features.shape[0]:
            everyone = weighted_sums(*self._all(vectors.device), vectors)
            return everyone if entities is None else everyone.index_select(0, entities)
        return weighted_sums(*_as_pairs(self.features[entities.cpu().numpy()], vectors.device), vectors)


def _as_pairs(matrix: sparse.csr_matrix, device: torch.device) -> tuple[Pairs, Tensor]:
    parts = (matrix.indptr.astype("int64"), matrix.indices.astype("int64"), matrix.data.astype("float32"))
    offsets, columns, values = (torch.from_numpy(part).to(device) for part in parts)
    return Pairs(offsets, columns), values


class _PairScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(users, items)
        ctx.pairs = pairs
        shape = (len(users), len(items))
        if len(pairs.column) > len(users) * len(items):
            # Pairs that repeat, more than there are different ones: PyTorch refuses such a matrix.
            row = torch.repeat_interleave(torch.arange(len(users)), pairs.offsets.diff())
            return (users[row] * items[pairs.column]).sum(1)
        with warnings.catch_warnings():
            # The one operation that is used here is stable.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            zeros = users.new_zeros(len(pairs.column))
            matrix = torch.sparse_csr_tensor(pairs.offsets, pairs.column, zeros, size=shape, check_invariants=False)
        return torch.sparse.sampled_addmm(matrix, users, items.T, beta=0.0).values()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        users, items = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        order, turned = ctx.pairs.turned(len(items))
        return _sum_rows(ctx.pairs, gradient, items), _sum_rows(turned, gradient[order], users), None


def pair_scores(user_vectors: Tensor, item_vectors: Tensor, pairs: Pairs) -> Tensor:
    """Score pairs of users and items.

    Args:
        user_vectors: (B, d), the rows of the pairs.
        item_vectors: (items, d), the columns of the pairs.
        pairs: The n pairs.

    Returns:
        (n,) inner products.
    """
    return _PairScores.apply(user_vectors, item_vectors, pairs)


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor) -> Tensor:
        ctx.save_for_backward(table)
        return table.T @ table

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (table,) = ctx.saved_tensors
        return table @ (gradients[0] + gradients[0].T)


def gram(table: Tensor) -> Tensor:
    """Return V'V (d, d) of a table V (n, d); its gradient takes one product, where that of a product takes two."""
    return _Gram.apply(table)


def weighted_grams(pairs: Pairs, weight: Tensor, table: Tensor) -> Tensor:
    """Return, for every row, the weighted Gram matrix of the vectors of its columns. Without gradient.

    Rows are taken together by the power of two that their number of pairs reaches, so that they are filled up to at
    most twice their length, and a row's sum does not depend on the others.

    Args:
        pairs: Where the matrix has entries.
        weight: (n,) the entries.
        table: (columns, d) vectors.

    Returns:
        (rows, d, d): sum over the columns c of a row of weight v_c v_c'.
    """
    counts = pairs.offsets.diff()
    result = table.new_zeros(len(counts), table.shape[1], table.shape[1])
    levels = torch.ceil(torch.log2(counts.clamp(min=1).double())).long()
    for level in torch.unique(levels[counts > 0]).tolist():
        rows = torch.nonzero((levels == level) & (counts > 0)).squeeze(1)
        place = torch.arange(2**level)
        inside = place < counts[rows, None]
        entry = torch.where(inside, pairs.offsets[rows, None] + place, 0)
        vectors = table.detach()[pairs.column[entry]]
        weights = torch.where(inside, weight[entry], 0.0).to(table.dtype)
        result[rows] = (vectors * weights[:, :, None]).transpose(1, 2) @ vectors
    return result
