"""The architectures reduce to each other where their formulas do, and keep gradients where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import TASKS, make_interactions, make_side
from multitask_recommender.baselines.item_item import (
    Ease,
    EaseSettings,
    ImplicitALS,
    ImplicitALSSettings,
    RandomWalk,
    RandomWalkSettings,
)
from multitask_recommender.interactions import Interactions, SideInformation
from multitask_recommender.models.cross_stitch import CrossStitchTower
from multitask_recommender.models.mmoe import MMoETower
from multitask_recommender.models.multi_task import MultiTaskModule, MultiTaskSettings, Tower
from multitask_recommender.models.ple import PLESettings, PLETower
from multitask_recommender.models.shared_bottom import SharedBottom, SharedBottomTower
from multitask_recommender.models.stem import STEMTower
from multitask_recommender.models.two_tower import LabelScales
from multitask_recommender.training import TrainingSettings, UserRows, new_generator

D = 6
X = torch.randn(9, D, generator=new_generator(5))


def towers() -> dict[str, Tower]:
    made: dict[str, Tower] = {
        "shared_bottom": SharedBottomTower(TASKS, D, new_generator(1)),
        "cross_stitch": CrossStitchTower(TASKS, D, 0.9, new_generator(1)),
        "mmoe": MMoETower(TASKS, D, 3, new_generator(1)),
        "cgc": PLETower(TASKS, PLESettings(dimension=D), new_generator(1)),
        "ple": PLETower(TASKS, PLESettings(dimension=D, levels=2), new_generator(1)),
        "stem": STEMTower(TASKS, D, new_generator(1)),
    }
    for tower in made.values():
        # Away from the special values that they start at.
        for place, parameter in enumerate(tower.parameters()):
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=new_generator(place)))
    return made


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_mmoe_with_one_expert_is_shared_bottom() -> None:
    mmoe, shared = MMoETower(TASKS, D, 1, new_generator(1)), SharedBottomTower(TASKS, D, new_generator(2))
    mmoe.task_gates["like"].weight.data.normal_(generator=new_generator(3))
    mmoe.experts.maps.data.copy_(shared.bottom.maps.data)
    for name in TASKS:
        shared.heads[name].data.normal_(generator=new_generator(4))
        mmoe.heads[name].data.copy_(shared.heads[name].data)
    assert same(mmoe(X), shared(X))


def test_identity_cross_stitch_is_single_task() -> None:
    stitched = towers()["cross_stitch"]
    assert isinstance(stitched, CrossStitchTower)
    stitched.stitch.data.copy_(torch.eye(len(TASKS)))
    for place, (name, task) in enumerate(TASKS.items()):
        single = SharedBottomTower({name: task}, D, new_generator(1))
        single.bottom.maps.data.copy_(stitched.layers.maps.data[place : place + 1])
        single.heads[name].data.copy_(stitched.heads[name].data)
        assert torch.allclose(single(X)[name], stitched(X)[name], atol=1e-5)


@pytest.mark.parametrize("levels", [1, 2])
def test_ple_without_shared_experts_is_single_task(levels: int) -> None:
    settings = PLESettings(dimension=D, levels=levels, shared_experts=0, own_experts=2)
    together = PLETower(TASKS, settings, new_generator(1))
    for place, parameter in enumerate(together.parameters()):
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=new_generator(place)))
    for name, task in TASKS.items():
        alone = PLETower({name: task}, settings, new_generator(1))
        own = {key: value for key, value in together.state_dict().items() if key in alone.state_dict()}
        alone.load_state_dict(own)
        assert torch.allclose(alone(X)[name], together(X)[name], atol=1e-5)


@pytest.mark.parametrize("name", ["mmoe", "cgc", "ple", "stem"])
def test_gate_weights_sum_to_one(name: str) -> None:
    tower = towers()[name]
    gates = tower.gates(torch.randn(9, tower.width, generator=new_generator(5)))
    assert list(gates) == list(TASKS)
    for weights in gates.values():
        assert torch.allclose(weights.sum(1), torch.ones(9))
        assert weights.min() > 0


def test_stem_gives_other_tasks_tables_no_gradient() -> None:
    tower = towers()["stem"]
    shared = torch.randn(9, tower.width, generator=new_generator(5)).requires_grad_()
    for place, name in enumerate(TASKS, start=1):
        (gradient,) = torch.autograd.grad(tower(shared)[name].square().sum(), shared)
        reached = [part.abs().sum().item() > 0 for part in gradient.split(D, dim=1)]
        assert reached == [table in (0, place) for table in range(4)]


def test_stem_reads_other_tasks_tables() -> None:
    tower = towers()["stem"]
    shared = torch.randn(9, tower.width, generator=new_generator(5))
    changed = shared.clone()
    changed[:, 2 * D : 3 * D] += 1.0
    assert not torch.allclose(tower(shared)["watch"], tower(changed)["watch"])


@pytest.mark.parametrize("name", list(towers()))
def test_gradients_are_right(name: str) -> None:
    tower = towers()[name].double()
    shared = torch.randn(4, tower.width, generator=new_generator(5)).double().requires_grad_()
    if name == "stem":
        # Finite differences see through the stop of the gradient, so only the parameters' gradients are compared.
        shared.requires_grad_(False)
    parameters = [p for key, p in tower.named_parameters() if not (name == "stem" and key.startswith("experts"))]
    inputs = [*([shared] if shared.requires_grad else []), *parameters]

    def output(*_: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(tower(shared).values()))

    assert torch.autograd.gradcheck(output, inputs)


@pytest.mark.parametrize("name", list(towers()))
def test_item_order_is_only_a_name(name: str) -> None:
    tower = towers()[name]
    shared = torch.randn(9, tower.width, generator=new_generator(5))
    order = torch.randperm(9, generator=new_generator(6))
    assert same(tower(shared[order]), {task: vectors[order] for task, vectors in tower(shared).items()})


def test_collapsed_gates_can_be_seen(rows: Interactions, side: SideInformation) -> None:
    scales = LabelScales(TASKS, rows.labels)
    pair = (MMoETower(TASKS, D, 3, new_generator(1)), MMoETower(TASKS, D, 3, new_generator(1)))
    pair[0].task_gates["like"].bias.data.copy_(torch.tensor([20.0, 0.0, 0.0]))
    module = MultiTaskModule(rows, side, MultiTaskSettings(dimension=D), scales, pair, new_generator(1))
    used = module.expert_utilisation(UserRows(rows, side.users).batch(torch.arange(40), new_generator(1)))
    assert used["user.like"].tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    assert used["item.like"].tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_wide_part_is_added_to_retrieval_alone(rows: Interactions, side: SideInformation) -> None:
    training = TrainingSettings(epochs=2, batches=2)
    plain = SharedBottom(MultiTaskSettings(dimension=4, training=training))
    wide = SharedBottom(MultiTaskSettings(dimension=4, training=training, wide_penalty=10.0))
    ease = Ease(EaseSettings(penalty=10.0))
    for model in (plain, wide, ease):
        model.fit(rows, side, seed=1)
    users = np.arange(5)
    assert np.allclose(wide.score(users)["watch"], plain.score(users)["watch"] + ease.score(users)["watch"], atol=1e-5)
    assert np.array_equal(wide.score(users)["rating"], plain.score(users)["rating"])


def test_ease_solves_its_problem() -> None:
    """The gradient of the penalised error is zero off the diagonal, up to the multipliers of the zero diagonal."""
    rows, side = make_interactions(60, 20, 6, seed=2), make_side(60, 20)
    model = Ease(EaseSettings(penalty=5.0, feature_weight=0.7))
    model.fit(rows, side, seed=0)
    x = np.zeros((60, 20))
    x[rows.user, rows.item] = 1
    f = side.item_features.toarray()
    b = model.state()["watch.weights"].astype(np.float64)
    gram = x.T @ x + 0.7 * f @ f.T
    gradient = gram @ b - gram + 5.0 * b
    assert np.allclose(gradient - np.diag(np.diag(gradient)), 0, atol=1e-3)
    assert np.allclose(np.diag(b), 0)
    assert np.allclose(model.score(np.arange(60))["watch"], x @ b, atol=1e-4)


def test_random_walk_equals_the_dense_formula(rows: Interactions, side: SideInformation) -> None:
    model = RandomWalk(RandomWalkSettings(alpha=0.7, beta=0.3, neighbours=30))
    model.fit(rows, side, seed=0)
    x = np.zeros((side.users, side.items))
    x[rows.user, rows.item] = 1
    n_user, n_item = np.maximum(x.sum(1), 1), np.maximum(x.sum(0), 1)
    walk = (x / n_user[:, None] ** 0.7).T @ (x / n_item[None, :] ** 0.7)
    walk /= n_item[:, None] ** 0.3
    np.fill_diagonal(walk, 0)
    assert np.allclose(model.score(np.arange(side.users))["watch"], x @ walk.T, atol=1e-4)


def test_ials_lowers_its_objective(rows: Interactions, side: SideInformation) -> None:
    x = np.zeros((side.users, side.items))
    x[rows.user, rows.item] = 1

    def objective(iterations: int) -> float:
        settings = ImplicitALSSettings(dimension=4, positive_weight=4.0, penalty=0.5, iterations=iterations)
        model = ImplicitALS(settings)
        model.fit(rows, side, seed=3)
        p, q = model.state()["watch.user"], model.state()["watch.item"]
        return float(((1 + 4 * x) * (x - p @ q.T) ** 2).sum() + 0.5 * ((p**2).sum() + (q**2).sum()))

    assert objective(20) < objective(1)
    assert objective(20) == pytest.approx(objective(40), rel=0.02)
