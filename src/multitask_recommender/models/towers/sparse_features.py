"""Feature tables: one vector per value of a feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multitask_recommender.models.training.sparse_products import DesignMatrix


class FeatureTable(nn.Module):
    """phi: the features of users or items to vectors, the weighted sum of one vector per feature value.

    Args:
        columns: Number of feature values.
        dimension: Length of the vectors.
        generator: Source of the initial vectors; without one they start at 0.
        scale: Standard deviation of the initial vectors.
    """

    def __init__(
        self,
        columns: int,
        dimension: int,
        generator: torch.Generator | None = None,
        scale: float = 0.01,
    ) -> None:
        super().__init__()
        vectors = torch.zeros(columns, dimension)
        if generator is not None:
            vectors.normal_(0.0, scale, generator=generator)
        self.vectors = nn.Parameter(vectors)

    def forward(self, features: DesignMatrix, entities: Tensor | None = None) -> Tensor:
        """Compute the vectors (B, dimension) of some entities (B,), or of all of them."""
        return features.times(self.vectors, entities)
