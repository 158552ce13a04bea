"""Parameters of the multi-task towers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from multitask_recommender.data.recency import Recency
from multitask_recommender.models.recommender import ShrunkSettings
from multitask_recommender.models.training.loop import TrainingSettings
from multitask_recommender.models.training.losses import RetrievalLoss


class MultiTaskSettings(ShrunkSettings):
    """Parameters of the multi-task towers.

    Attributes:
        dimension: Length of the shared vectors and of every task's vectors.
        user_features: Whether the users' features are used.
        item_features: Whether the items' features are used.
        user_embedding: ``joint``: the history encoder is trained with the tasks; ``pretrained``: the frozen vectors of
            the user embedding model take its place; ``none``: a user has an identity vector and context alone.
        encoder: The history encoder where it is trained jointly (see ``history_encoders``).
        history_exponent: The sum over a history of n items is divided by n to this power.
        history_dropout: Share of a user's rows hidden from the encoder in a step; the pointwise losses are taken on
            the hidden rows alone (a denoising encoder).
        hidden: Which rows those are. ``random``: any, and a retrieval task is trained on all rows. ``later``: those
            after a moment that is drawn for every user and step, and all tasks are trained on them, as when the future
            is asked for; the encoder sees what lies before.
        seen_recency: With ``later``, how much more the latest of the rows that the encoder sees count.
        item_dropout: Share of the items that show nothing but their features in a step, so that the features learn to
            stand for an item on their own, as they have to for a new one (DropoutNet: Volkovs et al., NeurIPS 2017).
        retrieval_loss: Loss of the retrieval tasks.
        positive_weight: Additional weight of an observed pair in the squared loss of a retrieval task.
        retrieval_penalty: Weight of the squared length of the identity vectors, per user or item, that a retrieval
            task asks for.
        penalty: The same per row of the user or item, that the other tasks ask for.
        penalise: Whether these penalties fall on the shared identity vectors themselves (``identity``) or on what the
            towers make of them for each task (``task_vectors``).
        bias_penalty: Weight of the squared biases, per row.
        encoder_penalty: Weight of the squared length of the history and feature vectors.
        retrieval_weight: Weight of the loss of a retrieval task.
        binary_weight: Weight of the loss of a binary task.
        regression_weight: Weight of the loss of a regression task.
        task_weights: Weights of single tasks by name, instead of those of their kind.
        training: Optimiser and schedule; ``encoder_rate`` also holds for the towers.
    """

    dimension: int = Field(default=64, ge=1, le=8192)
    user_features: bool = True
    item_features: bool = True
    user_embedding: Literal["joint", "pretrained", "none"] = "joint"
    encoder: Literal["linear", "nonlinear"] = "linear"
    history_exponent: float = Field(default=0.75, ge=0, le=1)
    history_dropout: float = Field(default=0.5, ge=0, lt=1)
    hidden: Literal["random", "later"] = "random"
    seen_recency: Recency = Recency()
    item_dropout: float = Field(default=0.0, ge=0, lt=1)
    retrieval_loss: RetrievalLoss = "squared"
    positive_weight: float = Field(default=4.0, ge=0, le=1e9)
    retrieval_penalty: float = Field(default=30.0, ge=0, le=1e9)
    penalty: float = Field(default=0.12, ge=0, le=1e9)
    penalise: Literal["identity", "task_vectors"] = "identity"
    bias_penalty: float = Field(default=0.02, ge=0, le=1e9)
    encoder_penalty: float = Field(default=1.0, ge=0, le=1e9)
    retrieval_weight: float = Field(default=1.0, gt=0, le=1e9)
    binary_weight: float = Field(default=0.5, gt=0, le=1e9)
    regression_weight: float = Field(default=1.25, gt=0, le=1e9)
    task_weights: dict[str, Annotated[float, Field(gt=0, le=1e9)]] = Field(default_factory=dict)
    training: TrainingSettings = TrainingSettings(learning_rate=0.015, encoder_rate=0.1, epochs=25, batches=8)
