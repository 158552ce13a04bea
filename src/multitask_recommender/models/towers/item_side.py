"""The item side of the multi-task towers: identity and features to a shared vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multitask_recommender.data.interactions import SideInformation
from multitask_recommender.models.towers.settings import MultiTaskSettings
from multitask_recommender.models.towers.sparse_features import FeatureTable
from multitask_recommender.models.towers.tower import Tower
from multitask_recommender.models.training.loop import UserRows
from multitask_recommender.models.training.sparse_products import DesignMatrix


class ItemSide(nn.Module):
    """y_i = q_i + phi(v_i), a tower on it, and a bias per task, which has a part from the features too.

    Args:
        side: Tasks, sizes and features.
        settings: Parameters.
        tower: The tower.
        scale: Standard deviation of the initial q.
        generator: Source of the initial weights.
    """

    popularity: Tensor

    def __init__(
        self, side: SideInformation, settings: MultiTaskSettings, tower: Tower, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.tower = tower
        self.identity = nn.Parameter(torch.randn(side.items, tower.width, generator=generator) * scale)
        self.bias = nn.Parameter(torch.zeros(side.items, len(side.tasks)))
        self._features = DesignMatrix(side.item_features)
        # The additional columns are the feature part of the biases, one per task.
        width = tower.width + len(side.tasks)
        self.features = FeatureTable(side.item_features.shape[1], width) if settings.item_features else None
        self.register_buffer("popularity", torch.zeros(side.items))

    def start(self, rows: UserRows) -> None:
        """Learn which items have training rows: another one has nothing but its features, and no loss moves it."""
        counts = torch.bincount(rows.item, minlength=len(self.popularity)).to(self.popularity.dtype)
        self.identity.data[counts == 0] = 0.0
        self.popularity = counts / counts.sum().clamp(min=1)

    def encode(self, shown: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the shared vectors y (items, D) and the biases (items, tasks).

        Args:
            shown: (items, 1) 1 for an item that shows its identity, 0 for one that shows its features alone; None: all
                show it.
        """
        item: Tensor = self.identity
        bias: Tensor = self.bias
        if shown is not None:
            item, bias = item * shown, bias * shown
        if self.features is None:
            return item, bias
        encoded = self.features(self._features)
        return item + encoded[:, : self.tower.width], bias + encoded[:, self.tower.width :]

    def tables(self) -> list[Tensor]:
        """Return the table of the features, for its penalty."""
        return [] if self.features is None else [self.features.vectors]
