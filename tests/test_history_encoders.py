"""Encoders start from the sum; the sequential one sees order and never the future."""

from __future__ import annotations

import pytest
import torch

from multitask_recommender.models.towers.history_encoders import (
    CausalAttention,
    EncoderName,
    Pieces,
    SequentialEncoder,
    latest_rows,
    make_history_encoder,
)
from multitask_recommender.models.training.loop import new_generator

D = 6
ROW_USER = torch.tensor([0, 0, 0, 0, 2, 2])
VECTORS = torch.randn(6, D, generator=new_generator(1))


def encoded(
    name: EncoderName, vectors: torch.Tensor, row_user: torch.Tensor = ROW_USER, awake: bool = True
) -> torch.Tensor:
    encoder = make_history_encoder(name, D, 4, new_generator(2))
    if awake:
        for place, parameter in enumerate(encoder.parameters()):
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=new_generator(place)))
    summed = torch.zeros(3, D).index_add(0, row_user, vectors)
    return encoder(summed, row_user, lambda rows: vectors[rows])


@pytest.mark.parametrize("name", ["linear", "nonlinear", "sequential"])
def test_every_encoder_starts_from_the_sum(name: EncoderName) -> None:
    assert torch.allclose(encoded(name, VECTORS, awake=False), encoded("linear", VECTORS))


@pytest.mark.parametrize(("name", "sees_order"), [("linear", False), ("nonlinear", False), ("sequential", True)])
def test_only_the_sequential_encoder_sees_order(name: EncoderName, sees_order: bool) -> None:
    swapped = VECTORS[torch.tensor([1, 0, 2, 3, 4, 5])]
    assert torch.allclose(encoded(name, VECTORS), encoded(name, swapped), atol=1e-5) != sees_order


@pytest.mark.parametrize("name", ["linear", "nonlinear", "sequential"])
def test_a_user_is_encoded_from_own_rows_alone(name: EncoderName) -> None:
    alone = encoded(name, VECTORS[4:], ROW_USER[4:])
    assert torch.allclose(alone[2], encoded(name, VECTORS)[2], atol=1e-5)


def test_a_user_without_history_gets_nothing_from_the_sequence() -> None:
    assert torch.equal(encoded("sequential", VECTORS)[1], torch.zeros(D))
    encoder = SequentialEncoder(D, 4, new_generator(1))
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(encoder(torch.ones(2, D), none, lambda rows: VECTORS[rows]), torch.ones(2, D))


def attention(blocks: int = 2) -> CausalAttention:
    module = CausalAttention(D, blocks, 2, new_generator(1))
    for place, parameter in enumerate(module.parameters()):
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=new_generator(place)))
    return module


@pytest.mark.parametrize("awake", [False, True])
def test_outputs_know_earlier_rows_of_their_user_and_no_other(awake: bool) -> None:
    module = attention() if awake else CausalAttention(D, 2, 2, new_generator(1))
    vectors = VECTORS.clone().requires_grad_()
    outputs = module(vectors, Pieces.of(ROW_USER, 3, 4))
    for row in range(6):
        (gradient,) = torch.autograd.grad(outputs[row].sum(), vectors, retain_graph=True)
        own = [other <= row and ROW_USER[other] == ROW_USER[row] for other in range(6)]
        assert (gradient.abs().sum(1) > 0).tolist() == own


def test_a_fresh_block_is_a_fading_mean() -> None:
    """Without content every head gives the mean of its part of the values, exp(-rate (l - k)) for each."""
    module = CausalAttention(D, 1, 2, new_generator(1))
    block = module.blocks[0]
    assert isinstance(block.value, torch.Tensor)
    assert isinstance(block.joined, torch.Tensor)
    rows = torch.randn(4, D, generator=new_generator(3))
    outputs = module(rows, Pieces.of(torch.zeros(4, dtype=torch.int64), 1, 4))
    age = (torch.arange(4)[:, None] - torch.arange(4)).float()
    parts = []
    for rate, value in zip((0.3, 0.03), (rows @ block.value).split(D // 2, dim=1), strict=True):
        weight = torch.exp(-rate * age).tril()
        parts.append(weight / weight.sum(1, keepdim=True) @ value)
    assert torch.allclose(outputs, rows + torch.cat(parts, dim=1) @ block.joined, atol=1e-5)


def test_pieces_are_cut_from_the_end() -> None:
    """Three places a piece: one row of user 0 is left over, unless two places are left free after the latest."""
    rows = torch.arange(1.0, 7.0)[:, None]
    filled = Pieces.of(ROW_USER, 3, 3).fill(rows)[:, :, 0]
    assert filled.tolist() == [[0, 0, 1], [2, 3, 4], [0, 5, 6]]
    shifted = Pieces.of(ROW_USER, 3, 3, torch.tensor([2, 0, 1]))
    assert shifted.fill(rows)[:, :, 0].tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
    assert torch.equal(shifted.rows(shifted.fill(rows)), rows)


def test_latest_rows_are_the_last_ones() -> None:
    assert latest_rows(ROW_USER, 3, 2).tolist() == [2, 3, 4, 5]
    assert latest_rows(ROW_USER, 3, 3).tolist() == [1, 2, 3, 4, 5]
