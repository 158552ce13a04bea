"""Parameters of the pipeline ``user_embedding``."""

from __future__ import annotations

from multitask_recommender.models.document.user_embedding import UserEmbeddingSettings
from multitask_recommender.models.variants import VariantParameters


class UserEmbeddingParameters(VariantParameters):
    """Settings and search space of the user embedding model."""

    settings: UserEmbeddingSettings = UserEmbeddingSettings()
