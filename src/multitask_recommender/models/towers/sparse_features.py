"""Feature tables: sparse design matrix times a table of vectors."""

from __future__ import annotations

import torch
from scipy import sparse
from torch import Tensor, nn

from multitask_recommender.models.training.sparse_products import Pairs, weighted_sums

_SMALLEST_SHARE = 10
"""Down to one entity in so many, the product with the whole matrix is faster than cutting rows out of it."""


def _product(matrix: sparse.csr_matrix) -> tuple[Pairs, Tensor]:
    offsets, columns = (torch.from_numpy(part.astype("int64")) for part in (matrix.indptr, matrix.indices))
    return Pairs(offsets, columns), torch.from_numpy(matrix.data.astype("float32"))


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
        self._all = _product(features)

    def forward(self, entities: Tensor | None = None) -> Tensor:
        """Compute vectors.

        Args:
            entities: (B,) numbers of the entities; all of them if not given.

        Returns:
            (B, dimension).
        """
        if entities is None or _SMALLEST_SHARE * len(entities) >= self._features.shape[0]:
            everyone = weighted_sums(*self._all, self.vectors)
            return everyone if entities is None else everyone.index_select(0, entities)
        return weighted_sums(*_product(self._features[entities.numpy()]), self.vectors)
