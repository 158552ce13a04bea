"""L_UserEmb: the expanded form equals the definition, and training reaches the known optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import everyone, make_interactions, make_side
from multitask_recommender.data.interactions import Interactions, pair_matrix
from multitask_recommender.models.document.user_embedding import (
    UserEmbedding,
    UserEmbeddingModel,
    UserEmbeddingSettings,
    optimal_loss,
)
from multitask_recommender.models.state import array
from multitask_recommender.models.towers.history_encoders import EncoderName
from multitask_recommender.models.training.loop import TrainingSettings, UserRows, new_generator
from multitask_recommender.models.training.sparse_products import DesignMatrix

USERS, ITEMS = 60, 40


def history(rows: Interactions) -> torch.Tensor:
    """The history matrix H as the model sees it: rows of length 1."""
    matrix = torch.from_numpy(pair_matrix(rows.user, rows.item, (USERS, ITEMS)).toarray())
    return matrix / matrix.norm(dim=1, keepdim=True).clamp(min=1e-12)


@pytest.mark.parametrize("context", [False, True])
def test_expanded_loss_equals_its_definition(context: bool) -> None:
    rows, side = make_interactions(USERS, ITEMS, 7, seed=2), make_side(USERS, ITEMS)
    settings = UserEmbeddingSettings(dimension=5, penalty=0.3)
    columns = side.user_features.shape[1] if context else None
    module = UserEmbedding(ITEMS, columns, settings, new_generator(1))
    if module.context is not None:
        module.context.vectors.data.normal_(generator=new_generator(2))
    batch = UserRows(rows, USERS, DesignMatrix(side.user_features)).batch(torch.arange(10, 30), new_generator(3))
    h = history(rows)[10:30]
    z = h @ module.weight
    if module.context is not None:
        z = z + torch.from_numpy(side.user_features.toarray()[10:30]) @ module.context.vectors
    expected = ((h - z @ module.weight.T) ** 2).sum(1) + 0.3 * (z**2).sum(1)
    assert module.loss(batch).item() == pytest.approx(expected.mean().item(), rel=1e-5)
    assert torch.allclose(module(batch), z, atol=1e-6)


@pytest.mark.parametrize("encoder", ["nonlinear", "sequential"])
def test_other_encoders_reconstruct_the_whole_history(encoder: EncoderName) -> None:
    """Without dropout the loss is its definition; with dropout the hidden part is still to be reconstructed."""
    rows = make_interactions(USERS, ITEMS, 7, seed=2)
    batch = UserRows(rows, USERS).batch(torch.arange(USERS), new_generator(3))
    losses = []
    for dropout in (0.0, 0.9):
        settings = UserEmbeddingSettings(dimension=5, penalty=0.3, encoder=encoder, history_dropout=dropout)
        module = UserEmbedding(ITEMS, None, settings, new_generator(1))
        assert isinstance(module.encoder.outward, torch.nn.Parameter)
        module.encoder.outward.data.normal_(0.0, 0.3, generator=new_generator(5))
        z = module(batch)
        expected = ((history(rows) - z @ module.weight.T) ** 2).sum(1) + 0.3 * (z**2).sum(1)
        losses.append((module.loss(batch).item(), expected.mean().item()))
    assert losses[0][0] == pytest.approx(losses[0][1], rel=1e-5)
    assert losses[1][0] != pytest.approx(losses[1][1], rel=1e-2)


@pytest.mark.parametrize("penalty", [0.0, 0.1, 0.5, 1.0, 1.5])
def test_training_reaches_the_known_optimum(penalty: float) -> None:
    rows, side = make_interactions(USERS, ITEMS, 7, seed=2), make_side(USERS, ITEMS)
    training = TrainingSettings(optimiser="sgd", learning_rate=0.5, epochs=500, batches=2)
    settings = UserEmbeddingSettings(dimension=6, penalty=penalty, context=False, training=training)
    model = UserEmbeddingModel(settings)
    model.fit(rows, side, seed=4)
    h = history(rows)
    weight = torch.from_numpy(array(model.state(), "weight"))
    reached = ((h - h @ weight @ weight.T) ** 2).sum() + penalty * ((h @ weight) ** 2).sum()
    best = optimal_loss(torch.linalg.svdvals(h), 6, penalty)
    assert best - 1e-3 <= reached.item() <= 1.01 * best


def test_for_a_large_penalty_nothing_is_best() -> None:
    h = torch.eye(4)
    assert optimal_loss(torch.linalg.svdvals(h), 2, 2.5) == pytest.approx(4.0)


def test_a_user_without_history_has_a_vector_from_context_alone() -> None:
    rows, side = make_interactions(USERS, ITEMS, 7, seed=2), make_side(USERS, ITEMS)
    fewer = rows.where(rows.user != 0)
    training = TrainingSettings(optimiser="sgd", learning_rate=0.3, epochs=3, batches=2)
    model = UserEmbeddingModel(UserEmbeddingSettings(dimension=4, training=training))
    model.fit(fewer, side, seed=1)
    # The mean of the encoded histories stands in for the history.
    h = history(fewer)[1:]
    prior = (h @ torch.from_numpy(array(model.state(), "weight"))).mean(0).numpy()
    expected = prior + side.user_features[0].toarray()[0] @ array(model.state(), "context.vectors")
    assert np.allclose(model.encode(everyone(fewer, side))[0], expected, atol=1e-5)
