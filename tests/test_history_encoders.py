"""Encoders start from the sum; the sequential one sees order and never the future."""

from __future__ import annotations

import pytest
import torch

from multitask_recommender.models.towers.history_encoders import (
    EncoderName,
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
    encoder = SequentialEncoder(D, 4, 2, new_generator(1))
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(encoder(torch.ones(2, D), none, lambda rows: VECTORS[rows]), torch.ones(2, D))


def test_positions_do_not_see_later_ones() -> None:
    encoder = SequentialEncoder(D, 4, 2, new_generator(1))
    vectors = torch.randn(2, 4, D, generator=new_generator(3)).requires_grad_()
    present = torch.ones(2, 4, dtype=torch.bool)
    for position in range(4):
        (gradient,) = torch.autograd.grad(encoder.outputs(vectors, present)[:, position].square().sum(), vectors)
        reached = gradient.abs().sum((0, 2)) > 0
        assert reached.tolist() == [place <= position for place in range(4)]


def test_latest_rows_are_the_last_ones() -> None:
    assert latest_rows(ROW_USER, 3, 2).tolist() == [[2, 3], [-1, -1], [4, 5]]
    assert latest_rows(ROW_USER, 3, 3).tolist() == [[1, 2, 3], [-1, -1, -1], [-1, 4, 5]]
