"""Loss balancing and retrieval losses: closed forms, invariances, and agreement where all methods must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from conftest import TASKS, make_interactions
from multitask_recommender.models.towers.task_affinity import GradientCosines
from multitask_recommender.models.towers.two_tower import task_loss
from multitask_recommender.models.training import losses
from multitask_recommender.models.training.loop import (
    TrainableModule,
    TrainingSettings,
    UserBatch,
    UserRows,
    new_generator,
    train,
)
from multitask_recommender.models.training.loss_balancing import (
    Balancing,
    DynamicWeightAverage,
    GradientAggregation,
    UncertaintyWeighting,
    make_loss_balancing,
)

NAMES = ["a", "b", "c"]


def test_uncertainty_weighting_reaches_its_closed_form() -> None:
    """For fixed losses the minimum of exp(-s) L + s / 2 is at s = log 2 L, where every term is (1 + log 2 L) / 2."""
    weighting = UncertaintyWeighting(NAMES)
    fixed = {"a": torch.tensor(0.2), "b": torch.tensor(1.0), "c": torch.tensor(7.0)}
    optimiser = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(600):
        optimiser.zero_grad()
        total = torch.stack(list(weighting(fixed).values())).sum()
        total.backward()
        optimiser.step()
    expected = torch.log(2 * torch.stack(list(fixed.values())))
    assert torch.allclose(weighting.log_variance.detach(), expected, atol=1e-3)


def test_dynamic_weights_favour_the_slow_task_and_sum_to_the_number_of_tasks() -> None:
    weighting = DynamicWeightAverage()
    assert weighting.weights(NAMES) == dict.fromkeys(NAMES, 1.0)
    weighting.end_epoch({"a": 1.0, "b": 1.0, "c": 1.0})
    weighting.end_epoch({"a": 0.5, "b": 0.9, "c": 0.7})
    weights = weighting.weights(NAMES)
    assert weights["b"] > weights["c"] > weights["a"]
    assert sum(weights.values()) == pytest.approx(3.0)
    assert weights["b"] / weights["a"] == pytest.approx(np.exp((0.9 - 0.5) / 2))


def test_random_weights_follow_the_seed() -> None:
    unit = {name: torch.tensor(1.0) for name in NAMES}
    draws = [
        [float(v) for v in make_loss_balancing("random", NAMES, new_generator(s))(unit).values()] for s in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert sum(draws[0]) == pytest.approx(3.0, abs=1e-5)


def test_one_task_is_never_balanced() -> None:
    loss = {"a": torch.tensor(3.0)}
    for name in ("uncertainty", "random", "dynamic_weight_average", "upgrad"):
        assert make_loss_balancing(name, ["a"], new_generator(1))(loss) == loss


@pytest.mark.parametrize("name", ["pcgrad", "cagrad", "nash_mtl", "aligned_mtl", "upgrad"])
def test_aggregators_agree_with_the_sum_where_gradients_agree(name: Balancing) -> None:
    pytest.importorskip("torchjd")
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    unused = nn.Parameter(torch.ones(2))
    method = make_loss_balancing(name, NAMES, new_generator(1))
    assert isinstance(method, GradientAggregation)
    method.backward({task: weight.square().sum() for task in NAMES}, [weight, unused])
    assert torch.allclose(weight.grad, 3 * 2 * weight, rtol=1e-3)
    assert torch.equal(unused.grad, torch.zeros(2))


@pytest.mark.parametrize("name", ["pcgrad", "upgrad"])
def test_aggregators_settle_conflicts(name: Balancing) -> None:
    """Where two gradients conflict, a step along the result does not harm either task to first order."""
    pytest.importorskip("torchjd")
    weight = nn.Parameter(torch.zeros(2))
    gradients = {"a": torch.tensor([1.0, 0.1]), "b": torch.tensor([-2.0, 0.5])}
    method = make_loss_balancing(name, list(gradients), new_generator(1))
    assert isinstance(method, GradientAggregation)
    method.backward({task: (weight * g).sum() for task, g in gradients.items()}, [weight])
    assert all(float(weight.grad @ g) >= -1e-4 for g in gradients.values())
    assert any(float(sum(gradients.values()) @ g) < 0 for g in gradients.values())


@pytest.mark.parametrize("name", ["pcgrad", "upgrad", "aligned_mtl"])
def test_what_one_task_alone_moves_keeps_its_gradient(name: Balancing) -> None:
    """As TorchJD's own backward pass of multi-task learning does it, which is told the shared parameters."""
    torchjd = pytest.importorskip("torchjd")
    drawn = torch.randn(20, 6, generator=new_generator(3))
    labels = {task: torch.randn(20, generator=new_generator(place)) for place, task in enumerate(NAMES)}

    def network() -> tuple[nn.Parameter, dict[str, nn.Parameter]]:
        generator = new_generator(5)
        shared = nn.Parameter(torch.randn(6, 4, generator=generator))
        return shared, {task: nn.Parameter(10.0 * torch.randn(4, generator=generator)) for task in NAMES}

    def losses(features: torch.Tensor, heads: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
        return {task: (features @ head - labels[task]).square().mean() for task, head in heads.items()}

    shared, heads = network()
    method = make_loss_balancing(name, NAMES, new_generator(1))
    assert isinstance(method, GradientAggregation)
    method.backward(losses(drawn @ shared, heads), [shared, *heads.values()])
    other, other_heads = network()
    features = drawn @ other
    torchjd.autojac.mtl_backward(list(losses(features, other_heads).values()), features=features)
    torchjd.autojac.jac_to_grad([other], method.aggregate) if name != "pcgrad" else None
    for task in NAMES:
        assert torch.allclose(heads[task].grad, other_heads[task].grad, rtol=1e-4)
    if name != "pcgrad":  # It draws the order of its projections.
        assert torch.allclose(shared.grad, method.scale * other.grad, rtol=1e-3, atol=1e-4)


def test_famo_gives_more_weight_to_what_falls_slowly() -> None:
    pytest.importorskip("torchjd")
    method = make_loss_balancing("famo", NAMES, new_generator(1))
    assert list(method.parameters()) == []
    steps = {"a": 0.99, "b": 0.8, "c": 0.9}
    value = torch.tensor([1.0, 1.0, 1.0], requires_grad=True)

    def weights() -> torch.Tensor:
        (gradient,) = torch.autograd.grad(
            torch.stack(list(method(dict(zip(NAMES, value.unbind(), strict=True))).values())).sum(), value
        )
        return gradient

    assert torch.allclose(weights(), torch.ones(3))
    for _ in range(30):
        method(dict(zip(NAMES, value.unbind(), strict=True)))
        method.after_step({task: torch.tensor(step) for task, step in steps.items()})
    after = weights()
    assert float(after.sum()) == pytest.approx(3.0, rel=1e-4)
    assert after[0] > after[2] > after[1]


def test_a_second_look_at_a_batch_draws_the_same_and_disturbs_nothing() -> None:
    pytest.importorskip("torchjd")

    class Module(TrainableModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(3.0))

    def draws(balancing: Balancing) -> list[float]:
        module, seen = Module(), []

        def losses(batch: UserBatch) -> dict[str, torch.Tensor]:
            assert batch.generator is not None
            seen.append(float(torch.rand((), generator=batch.generator)))
            return {"a": module.weight.square() + 1.0, "b": (module.weight - 1.0).square() + 1.0}

        rows = UserRows(make_interactions(30, 12, 6, seed=1), 30)
        settings = TrainingSettings(epochs=3, batches=4, balancing=balancing)
        train("small", module, losses, rows, settings, new_generator(2), ["a", "b"])
        return seen

    once, twice = draws("static"), draws("famo")
    assert twice[::2] == twice[1::2] == once
    assert len(set(once)) == 12


def test_gradient_cosines_are_those_of_the_shared_parameters() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Parameter(torch.tensor([3.0, 4.0]))
            self.own = nn.Parameter(torch.tensor([1.0]))
            self.tasks = {"a": None, "b": None}

    module = Module()
    found = GradientCosines()
    parts = {
        "a": module.shared[0] + 10 * module.own.sum(),
        "b": module.shared.sum(),
        "penalty": module.own.square().sum(),
    }
    found(module, 4, parts)  # type: ignore[arg-type]
    assert found.rows == [(5, "a", "b", pytest.approx(2**-0.5))]


def vectors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = new_generator(4)
    users, items = (
        torch.randn(5, 3, generator=g, dtype=torch.float64),
        torch.randn(40, 3, generator=g, dtype=torch.float64),
    )
    return users, items, torch.tensor([0, 0, 2, 4]), torch.tensor([7, 9, 7, 39])


def all_of(items: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(items))


def sampler(items: torch.Tensor) -> Callable[[int], torch.Tensor]:
    return lambda number: torch.randint(len(items), (number,), generator=new_generator(1))


def test_softmax_loss_equals_cross_entropy_over_all_items() -> None:
    users, items, row_user, row_item = vectors()
    expected = nn.functional.cross_entropy((users @ items.T)[row_user], row_item, reduction="sum")
    assert torch.allclose(
        losses.softmax_loss(users, items, row_user, row_item, all_of(items), sampler(items)), expected
    )


def test_sampled_softmax_estimates_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items, row_user, row_item = vectors()
    whole = losses.softmax_loss(users, items, row_user, row_item, all_of(items), sampler(items))
    monkeypatch.setattr(losses, "DENSE_CATALOGUE", 0)
    sampled = losses.softmax_loss(users, items, row_user, row_item, all_of(items), sampler(items), sampled=40_000)
    # The positive is counted on top of the sample, which matters little among 40 items.
    assert float(sampled) == pytest.approx(float(whole), rel=0.15)


def test_bpr_compares_with_items_that_are_not_the_users() -> None:
    """Without scores every comparison costs log 2, so the loss counts them."""
    rows = make_interactions(30, 12, 6, seed=1)
    for items in (12, 6):
        own = rows.where(rows.item < items)
        batch = UserRows(own, 30).batch(torch.arange(30), new_generator(1))
        flat = torch.zeros(30, 2), torch.zeros(items, 2)
        drawn = batch.draw_items(1)
        taken = set(zip(own.user.tolist(), own.item.tolist(), strict=True))
        free = [pair not in taken for pair in zip(batch.row_user.tolist(), drawn.tolist(), strict=True)]
        loss = task_loss(TASKS["watch"], *flat, batch_again(batch), batch.label("watch"), 4.0, "bpr").total
        assert float(loss) / np.log(2) == pytest.approx(sum(free), abs=1e-3)
        assert 0 < sum(free) < len(own)


def batch_again(batch: UserBatch) -> UserBatch:
    """The same batch before anything was drawn for it."""
    return replace(batch, generator=new_generator(1))


def test_without_a_generator_drawn_items_are_spread_over_the_catalogue() -> None:
    rows = make_interactions(30, 20, 10, seed=1)
    source = UserRows(rows, 30)
    drawn = source.everyone().draw_items(4).view(30, 40)
    # They depend on the place in the history alone, and no item is drawn much more often than another.
    assert (drawn == drawn[0]).all()
    counts = torch.bincount(drawn[0], minlength=20)[source.catalogue]
    assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_retrieval_losses_have_right_gradients(loss: str) -> None:
    users, items, row_user, row_item = vectors()
    users.requires_grad_()
    items.requires_grad_()

    def value(u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        if loss == "bpr":
            return losses.bpr_loss(u, i, row_user, row_item, torch.tensor([1, 2, 3, 4]))
        return losses.softmax_loss(u, i, row_user, row_item, all_of(items), sampler(items))

    assert torch.autograd.gradcheck(value, (users, items))
