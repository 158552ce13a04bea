"""Feature tables: sparse design matrix times a table of vectors."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from scipy import sparse
from torch import Tensor, nn

_SMALLEST_SHARE = 10
"""Down to one entity in so many, the product with the whole matrix is faster than cutting rows out of it."""


def _to_torch(matrix: sparse.csr_matrix) -> Tensor:
    with warnings.catch_warnings():
        # The product with a dense matrix, the one operation used here, is stable.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype("int64")),
            torch.from_numpy(matrix.indices.astype("int64")),
            torch.from_numpy(matrix.data.astype("float32")),
            size=matrix.shape,
            check_invariants=False,
        )


class _ConstantProduct(torch.autograd.Function):
    """Constant sparse matrix times dense matrix; the gradient uses the transpose made once."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transpose: Tensor, dense: Tensor) -> Tensor:
        ctx.transpose = transpose
        return torch.sparse.mm(matrix, dense)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        return None, None, torch.sparse.mm(ctx.transpose, gradients[0].contiguous())


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
        self._features = features
        self._all = (_to_torch(features), _to_torch(features.T.tocsr()))

    def forward(self, entities: Tensor | None = None) -> Tensor:
        """Compute vectors.

        Args:
            entities: (B,) numbers of the entities; all of them if not given.

        Returns:
            (B, dimension).
        """
        if entities is None or _SMALLEST_SHARE * len(entities) >= self._features.shape[0]:
            everyone = _ConstantProduct.apply(*self._all, self.vectors)
            return everyone if entities is None else everyone.index_select(0, entities)
        some = self._features[entities.numpy()]
        return _ConstantProduct.apply(_to_torch(some), _to_torch(some.T.tocsr()), self.vectors)
