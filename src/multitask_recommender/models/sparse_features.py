"""Feature tables: sparse design matrix times a table of vectors."""

from __future__ import annotations

import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional


class FeatureTable(nn.Module):
    """phi: the features of users or items to vectors, the weighted sum of one vector per feature value.

    Args:
        features: (entities, columns) sparse design matrix.
        dimension: Length of the vectors.
        generator: Source of the initial vectors; without one they start at 0.
        scale: Standard deviation of the initial vectors.
    """

    def __init__(
        self,
        features: sparse.csr_matrix,
        dimension: int,
        generator: torch.Generator | None = None,
        scale: float = 0.01,
    ) -> None:
        super().__init__()
        vectors = torch.zeros(features.shape[1], dimension)
        if generator is not None:
            vectors.normal_(0.0, scale, generator=generator)
        self.vectors = nn.Parameter(vectors)
        self._indptr = torch.from_numpy(features.indptr.astype("int64"))
        self._columns = torch.from_numpy(features.indices.astype("int64"))
        self._weights = torch.from_numpy(features.data.astype("float32"))

    def forward(self, entities: Tensor | None = None) -> Tensor:
        """Compute vectors.

        Args:
            entities: (B,) numbers of the entities; all of them if not given.

        Returns:
            (B, dimension).
        """
        if entities is None:
            return self._sum(self._columns, self._indptr[:-1], self._weights)
        begin, count = self._indptr[entities], self._indptr[entities + 1] - self._indptr[entities]
        offsets = count.cumsum(0) - count
        place = torch.repeat_interleave(begin - offsets, count) + torch.arange(int(count.sum()))
        return self._sum(self._columns[place], offsets, self._weights[place])

    def _sum(self, columns: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        return functional.embedding_bag(
            columns, self.vectors, offsets, mode="sum", per_sample_weights=weights.to(self.vectors.dtype)
        )
