"""The architectures reduce to each other where their formulas do, and keep gradients where they belong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from conftest import TASKS, everyone, make_interactions, make_side
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.models.architectures.aitm import AITM, AITMSettings, AITMTower
from multitask_recommender.models.architectures.cross_stitch import CrossStitchTower
from multitask_recommender.models.architectures.esmm import ESMM, ESMMModule, ESMMSettings, funnel_steps, log_complement
from multitask_recommender.models.architectures.mmoe import MMoESettings, MMoETower
from multitask_recommender.models.architectures.ple import PLESettings, PLETower
from multitask_recommender.models.architectures.shared_bottom import (
    SharedBottom,
    SharedBottomSettings,
    SharedBottomTower,
    UnsharedEmbeddingsTower,
    WideSharedBottom,
    WideSharedBottomSettings,
)
from multitask_recommender.models.architectures.stem import STEMSettings, STEMTower
from multitask_recommender.models.baselines.bayesian_factors import BayesianFactors, BayesianFactorsSettings
from multitask_recommender.models.baselines.item_item import (
    Ease,
    EaseSettings,
    FirstStepEase,
    ImplicitALS,
    ImplicitALSSettings,
    RandomWalk,
    RandomWalkSettings,
    normalisers,
    sequence_nearness,
)
from multitask_recommender.models.baselines.item_ridge import ItemRidge, ItemRidgeSettings, item_ridge_weights
from multitask_recommender.models.state import State, array, branch
from multitask_recommender.models.towers.experts import Experts, Gate, mix
from multitask_recommender.models.towers.multi_task import MultiTaskModule
from multitask_recommender.models.towers.settings import MultiTaskSettings
from multitask_recommender.models.towers.tower import Tower
from multitask_recommender.models.towers.two_tower import LabelScales, TwoTowerModule, as_rows
from multitask_recommender.models.training.loop import TrainingSettings, UserBatch, UserRows, new_generator
from multitask_recommender.pipelines.recommender.nodes import expert_utilisation

D = 6
FUNNEL = {
    "watch": TASKS["watch"],
    "like": TASKS["like"].model_copy(update={"after": "watch"}),
    "rating": TASKS["rating"],
}
X = torch.randn(9, D, generator=new_generator(5))


def towers() -> dict[str, Tower]:
    made: dict[str, Tower] = {
        "shared_bottom": SharedBottomTower(TASKS, D, new_generator(1)),
        "cross_stitch": CrossStitchTower(TASKS, D, 0.9, new_generator(1)),
        "mmoe": MMoETower(TASKS, MMoESettings(dimension=D), new_generator(1)),
        "cgc": PLETower(TASKS, PLESettings(dimension=D), new_generator(1)),
        "ple": PLETower(TASKS, PLESettings(dimension=D, levels=2), new_generator(1)),
        "deep_mmoe": MMoETower(
            TASKS, MMoESettings(dimension=D, expert_layers=(5, 3), gate_layers=(4,)), new_generator(1)
        ),
        "deep_ple": PLETower(
            TASKS, PLESettings(dimension=D, levels=2, expert_layers=(5,), gate_layers=(4,)), new_generator(1)
        ),
        "stem": STEMTower(TASKS, STEMSettings(dimension=D), new_generator(1)),
        "aitm": AITMTower(FUNNEL, D, new_generator(1)),
        "unshared": UnsharedEmbeddingsTower(TASKS, D, new_generator(1)),
    }
    for tower in made.values():
        # Away from the special values that they start at.
        for place, parameter in enumerate(tower.parameters()):
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=new_generator(place)))
    return made


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_experts_and_their_mixture_equal_the_formulas() -> None:
    experts = Experts(3, 4, new_generator(1))
    x, weights = torch.randn(5, 4), torch.softmax(torch.randn(5, 3), dim=1)
    outputs = experts(x)
    for output, own in zip(outputs, experts.maps, strict=True):
        assert torch.allclose(output, x + x @ own, atol=1e-6)
    expected = torch.einsum("nk,knd->nd", weights, torch.stack(outputs))
    assert torch.allclose(mix(weights, outputs), expected, atol=1e-6)


def test_deep_experts_and_gates_equal_the_formulas() -> None:
    experts = Experts(2, 4, new_generator(1), (6, 3))
    x = torch.randn(5, 4, generator=new_generator(2))
    assert experts.hidden is not None
    for bias in experts.hidden.biases:
        bias.data.normal_(generator=new_generator(3))
    (first, second), (bias, other) = experts.hidden.maps, experts.hidden.biases
    for place, output in enumerate(experts(x)):
        hidden = torch.tanh(torch.tanh(x @ first[place] + bias[place]) @ second[place] + other[place])
        assert torch.allclose(output, x + hidden @ experts.maps[place], atol=1e-6)
    gate = Gate(4, 3, new_generator(1), (5,))
    assert torch.allclose(gate(x), torch.full((5, 3), 1 / 3))
    gate.weight.data.normal_(generator=new_generator(4))
    assert gate.hidden is not None
    seen = torch.tanh(x @ gate.hidden.maps[0][0])
    assert torch.allclose(gate(x), torch.softmax(seen @ gate.weight, dim=1), atol=1e-6)


def test_cross_stitch_equals_layer_by_layer() -> None:
    tower = CrossStitchTower(TASKS, 4, 0.7, new_generator(1))
    x = torch.randn(5, 4)
    layers = torch.stack(tower.layers(x))
    for place, (name, head) in enumerate(tower.heads.items()):
        stitched = (tower.stitch[place][:, None, None] * layers).sum(0)
        assert torch.allclose(tower(x)[name], stitched @ head, atol=1e-6)


def test_mmoe_with_one_expert_is_shared_bottom() -> None:
    mmoe, shared = (
        MMoETower(TASKS, MMoESettings(dimension=D, experts=1), new_generator(1)),
        SharedBottomTower(TASKS, D, new_generator(2)),
    )
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
        for one, all_tasks in zip(alone.levels, together.levels, strict=True):
            one.own[name].load_state_dict(all_tasks.own[name].state_dict())
            one.task_gates[name].load_state_dict(all_tasks.task_gates[name].state_dict())
        alone.heads[name].data.copy_(together.heads[name].data)
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


@pytest.mark.parametrize("name", list(towers()))
def test_a_score_is_the_inner_product_of_the_towers_vectors_and_biases(
    name: str, rows: Interactions, side: SideInformation
) -> None:
    """The item side's last matrix is multiplied on the side of the users, which changes no score."""
    pair = (towers()[name], towers()[name])
    for place, parameter in enumerate(pair[1].parameters()):
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=new_generator(place)))
    side = replace(side, tasks=FUNNEL if name == "aitm" else TASKS)
    scales = LabelScales.of(side.tasks, rows.labels)
    module = MultiTaskModule(side, MultiTaskSettings(dimension=D), scales, pair, new_generator(1))
    for bias in (module.users.bias, module.items.bias, module.constant):
        bias.data.normal_(generator=new_generator(2))
    batch = started(module, rows, side).everyone()
    users, items = module.user_vectors(batch), module.item_vectors()
    shared, item_bias = module.items.encode()
    own, other = module.users.tower(module.encode_users(batch)), module.items.tower(shared)
    for place, task in enumerate(side.tasks):
        biases = module.users.bias[:, [place]] + item_bias[:, place] + module.constant[place]
        assert torch.allclose(users[task] @ items[task].T, own[task] @ other[task].T + biases, atol=1e-4)


def started(module: TwoTowerModule, rows: Interactions, side: SideInformation) -> UserRows:
    """The training rows as the module reads them."""
    flat = as_rows(everyone(rows, side), side.user_encoder)
    module.start(flat)
    module.describe(flat)
    return flat


def test_collapsed_gates_can_be_seen(rows: Interactions, side: SideInformation) -> None:
    scales = LabelScales.of(TASKS, rows.labels)
    pair = (
        MMoETower(TASKS, MMoESettings(dimension=D), new_generator(1)),
        MMoETower(TASKS, MMoESettings(dimension=D), new_generator(1)),
    )
    pair[0].task_gates["like"].bias.data.copy_(torch.tensor([20.0, 0.0, 0.0]))
    module = MultiTaskModule(side, MultiTaskSettings(dimension=D), scales, pair, new_generator(1))
    used = module.expert_utilisation(started(module, rows, side).everyone())
    assert [used["user"]["like"][f"(shared) {n}"][0].item() for n in (1, 2, 3)] == pytest.approx([1, 0, 0], abs=1e-6)
    assert [used["item"]["like"][f"(shared) {n}"][0].item() for n in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_an_expert_that_no_task_uses_is_reported() -> None:
    used = {
        "user": {"watch": (0.99, 0.01), "like": (0.97, 0.03)},
        "item": {"watch": (0.99, 0.01), "like": (0.5, 0.5)},
    }
    state: State = {
        "utilisation": {
            side: {
                task: {f"(shared) {place + 1}": np.array([weight, 0.0]) for place, weight in enumerate(weights)}
                for task, weights in tasks.items()
            }
            for side, tasks in used.items()
        },
        "experts_moved": np.array([1.5]),
        "weights": {"other": np.zeros(3)},
    }
    table = expert_utilisation(state)
    assert set(table["moved"]) == {1.5}
    assert len(table) == 8
    assert set(map(tuple, table.loc[table["collapsed"], ["side", "expert"]].to_numpy())) == {("user", "(shared) 2")}


def test_wide_parts_are_for_their_own_tasks(rows: Interactions, side: SideInformation) -> None:
    settings = SharedBottomSettings(dimension=4, training=TrainingSettings(epochs=2, batches=2))
    ease, factors = EaseSettings(penalty=10.0), BayesianFactorsSettings(dimension=2, sweeps=4, burn_in=1)
    plain = SharedBottom(settings)
    own = settings.model_dump()
    wide = WideSharedBottom(WideSharedBottomSettings(**own, wide=ease, wide_weight=1.5))
    mixed = WideSharedBottom(WideSharedBottomSettings(**own, wide_labels=factors, wide_labels_share=0.3))
    scores = []
    for model in (plain, wide, mixed, Ease(ease), BayesianFactors(factors)):
        model.fit(rows, side, seed=1)
        scores.append(model.score(everyone(rows, side)))
    towers, with_ease, with_factors, ease_alone, factors_alone = scores
    assert np.allclose(with_ease["watch"], towers["watch"] + 1.5 * ease_alone["watch"], atol=1e-5)
    assert np.array_equal(with_factors["watch"], towers["watch"])
    for task in ("like", "rating"):
        assert np.array_equal(with_ease[task], towers[task])
        assert np.allclose(with_factors[task], 0.7 * towers[task] + 0.3 * factors_alone[task], atol=1e-5)


def test_item_ridge_solves_its_problem(rows: Interactions, side: SideInformation) -> None:
    """The gradient of every item's penalised error is zero off the diagonal."""
    model = ItemRidge(ItemRidgeSettings(penalty=0.7))
    model.fit(rows, side, seed=1)
    state = branch(model.state(), "rating")
    label = rows.labels["rating"].astype(np.float64)
    standard = (label - label.mean()) / label.std()
    item_bias = array(state, "item_bias")
    user_bias = np.bincount(rows.user, standard - item_bias[rows.item]) / (15 + 8)
    e = np.zeros((side.users, side.items))
    biases = user_bias[rows.user] + item_bias[rows.item]
    e[rows.user, rows.item] = (label - label.mean()) / label.std() - biases
    z = e / np.sqrt(8)  # Every user has 8 rows.
    weights = array(branch(state, "weights"), "dense").astype(np.float64)
    assert np.array_equal(np.diag(weights), np.zeros(side.items))
    for item in range(side.items):
        users = rows.user[rows.item == item]
        others = np.arange(side.items) != item
        error = z[users] @ weights[:, item] - e[users, item]
        gradient = z[users].T @ error + 0.7 * weights[:, item]
        assert np.allclose(gradient[others], 0, atol=1e-5)
    expected = label.mean() + label.std() * (z @ weights + user_bias[:, None] + item_bias)
    assert np.allclose(model.score(everyone(rows, side))["rating"], np.clip(expected, 1, 5), atol=1e-5)


def test_item_ridge_learns_from_the_users_with_most_rows() -> None:
    profiles = sparse.csr_matrix(np.array([[1, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=np.float32))
    labels = sparse.csc_matrix(np.array([[0.5, 0, 0], [0.2, 0, 0], [0.9, 0, 0]], dtype=np.float32))
    chosen = sparse.csc_matrix(np.array([[0, 0, 0], [0.2, 0, 0], [0.9, 0, 0]], dtype=np.float32))
    chosen.eliminate_zeros()
    two = item_ridge_weights(profiles, labels, 1.0, most=2)
    assert np.allclose(two, item_ridge_weights(profiles, chosen, 1.0, most=3))
    assert not np.allclose(two, item_ridge_weights(profiles, labels, 1.0, most=1))


def test_nearness_in_sequences_equals_its_definition() -> None:
    user, item = np.array([0, 0, 0, 2, 2, 2, 2]), np.array([3, 1, 0, 1, 3, 2, 4])
    expected = np.zeros((5, 5))
    for first in range(7):
        for second in range(7):
            if user[first] == user[second]:
                expected[item[first], item[second]] += np.exp(-abs(first - second) / 2.0)
    nearness = sequence_nearness(user, item, 5, reach=2.0).toarray()
    assert np.allclose(nearness, expected, atol=1e-6)
    assert np.linalg.eigvalsh(nearness).min() > 0


def test_ease_with_sequences_sees_order(rows: Interactions, side: SideInformation) -> None:
    backwards = np.lexsort((-np.arange(len(rows)), rows.user))
    shuffled = np.lexsort((np.random.default_rng(1).random(len(rows)), rows.user))
    for weight, sees_order in ((0.0, False), (2.0, True)):
        scores = []
        for order in (np.arange(len(rows)), backwards, shuffled):
            model = Ease(EaseSettings(penalty=5.0, sequence_weight=weight))
            model.fit(rows.where(order), side, seed=1)
            scores.append(model.score(everyone(rows, side))["watch"])
        # Nearness has no direction.
        assert np.allclose(scores[0], scores[1], atol=1e-4)
        assert np.allclose(scores[0], scores[2], atol=1e-4) != sees_order


def test_ease_solves_its_problem() -> None:
    """The gradient of the penalised error is zero off the diagonal, up to the multipliers of the zero diagonal."""
    rows, side = make_interactions(60, 20, 6, seed=2), make_side(60, 20)
    model = Ease(EaseSettings(penalty=5.0, feature_weight=0.7))
    model.fit(rows, side, seed=0)
    x = np.zeros((60, 20))
    x[rows.user, rows.item] = 1
    f = side.item_features.toarray()
    b = array(branch(branch(model.state(), "watch"), "weights"), "dense").astype(np.float64)
    gram = x.T @ x + 0.7 * f @ f.T
    gradient = gram @ b - gram + 5.0 * b
    assert np.allclose(gradient - np.diag(np.diag(gradient)), 0, atol=1e-3)
    assert np.allclose(np.diag(b), 0)
    assert np.allclose(model.score(everyone(rows, side))["watch"], x @ b, atol=1e-4)


def test_ease_solves_its_problem_between_normalised_rows_and_columns() -> None:
    """Users are weighted, columns are scaled, and so are the histories that are asked about."""
    rows, side = make_interactions(60, 20, 6, seed=2), make_side(60, 22)
    rows = rows.where(np.flatnonzero((rows.user > 30) | (rows.item < 15)))  # Users and items of different counts.
    settings = EaseSettings(
        penalty=5.0, user_exponent=0.6, item_exponent=0.3, feature_weight=0.7, sequence_weight=0.4, sequence_reach=2.0
    )
    model = Ease(settings)
    model.fit(rows, side, seed=0)
    x = np.zeros((60, 22))
    x[rows.user, rows.item] = 1
    of_users, of_items = x.sum(1), x.sum(0)
    assert len(np.unique(of_users[of_users > 0])) > 1
    weight = (of_users[of_users > 0].mean() / np.maximum(of_users, 1)) ** 0.6
    column = (of_items[of_items > 0].mean() / np.maximum(of_items, 1)) ** 0.3
    near = sum(
        weight[user] * sequence_nearness(np.zeros(own.sum(), int), rows.item[own], 22, 2.0).toarray()
        for user in range(60)
        if (own := rows.user == user).any()
    )
    f = side.item_features.toarray()
    gram = column[:, None] * (x.T @ (weight[:, None] * x) + 0.7 * f @ f.T + 0.4 * near) * column
    b = array(branch(branch(model.state(), "watch"), "weights"), "dense").astype(np.float64) / column[:, None]
    gradient = gram @ b - gram + 5.0 * b
    assert np.allclose(gradient - np.diag(np.diag(gradient)), 0, atol=2e-3)
    assert np.allclose(np.diag(b), 0)
    asked = everyone(rows, side)
    some = of_users > 0
    assert np.allclose(model.score(asked)["watch"][some], ((x * column) @ b)[some], atol=1e-4)


def test_normalisers_leave_what_is_not_asked_for_and_what_has_no_rows() -> None:
    history = sparse.csr_matrix(np.array([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=np.float32))
    assert [own.tolist() for own in normalisers(history, 0.0, 0.0)] == [[1.0] * 3, [1.0] * 4]
    of_users, of_items = normalisers(history, 1.0, 0.5)
    assert np.allclose(of_users**2, [2 / 3, 2, 2])  # A mean of 2 rows, over 3, 1 and none, which counts as 1.
    assert np.allclose(of_items**2, [4 / 3 / 2, 4 / 3, 4 / 3, 4 / 3])


def test_random_walk_equals_the_dense_formula(rows: Interactions, side: SideInformation) -> None:
    model = RandomWalk(RandomWalkSettings(alpha=0.7, beta=0.3, neighbours=30))
    model.fit(rows, side, seed=0)
    x = np.zeros((side.users, side.items))
    x[rows.user, rows.item] = 1
    n_user, n_item = np.maximum(x.sum(1), 1), np.maximum(x.sum(0), 1)
    walk = (x / n_user[:, None] ** 0.7).T @ (x / n_item[None, :] ** 0.7)
    walk /= n_item[:, None] ** 0.3
    np.fill_diagonal(walk, 0)
    assert np.allclose(model.score(everyone(rows, side))["watch"], x @ walk.T, atol=1e-4)


def test_ials_lowers_its_objective(rows: Interactions, side: SideInformation) -> None:
    x = np.zeros((side.users, side.items))
    x[rows.user, rows.item] = 1

    def objective(iterations: int) -> float:
        settings = ImplicitALSSettings(dimension=4, positive_weight=4.0, penalty=0.5, iterations=iterations)
        model = ImplicitALS(settings)
        model.fit(rows, side, seed=3)
        q = array(branch(model.state(), "watch"), "item").astype(np.float64)
        # The users' factors that minimise the objective, given those of the items.
        p = np.stack([np.linalg.solve((q.T * (1 + 4 * own)) @ q + 0.5 * np.eye(4), q.T @ (5 * own)) for own in x])
        assert np.allclose(model.score(everyone(rows, side))["watch"], p @ q.T, atol=1e-4)
        return float(((1 + 4 * x) * (x - p @ q.T) ** 2).sum() + 0.5 * ((p**2).sum() + (q**2).sum()))

    assert objective(20) < objective(1)
    assert objective(20) == pytest.approx(objective(40), rel=0.02)


def test_unshared_embeddings_keep_tasks_apart() -> None:
    tower = towers()["unshared"]
    shared = torch.randn(9, tower.width, generator=new_generator(5)).requires_grad_()
    for place, name in enumerate(TASKS):
        (gradient,) = torch.autograd.grad(tower(shared)[name].square().sum(), shared)
        assert [part.abs().sum().item() > 0 for part in gradient.split(D, dim=1)] == [t == place for t in range(3)]


def test_aitm_equals_its_formula_step_by_step() -> None:
    tower = towers()["aitm"]
    assert isinstance(tower, AITMTower)

    def through(expert: torch.nn.Module, vectors: torch.Tensor) -> torch.Tensor:
        assert isinstance(expert, Experts)
        return vectors + vectors @ expert.maps[0]

    first, own = (through(tower.own[name], X) @ tower.heads[name] for name in ("watch", "like"))
    sources = torch.stack([through(tower.handed["like"], first), own], dim=1)
    query, key = tower.attention["like"]
    weights = torch.softmax(((sources @ query) * (sources @ key)).sum(-1) / D**0.5, dim=1)
    expected = (weights[:, :, None] * through(tower.values["like"], sources)).sum(1)
    assert torch.allclose(tower(X)["watch"], first, atol=1e-5)
    assert torch.allclose(tower(X)["like"], expected, atol=1e-4)


def test_aitm_hands_information_down_the_funnel_alone() -> None:
    tower = towers()["aitm"]
    assert isinstance(tower, AITMTower)
    before = tower(X)
    tower.own["watch"].maps.data.add_(0.5)
    after = tower(X)
    changed = {name for name in FUNNEL if not torch.allclose(before[name], after[name])}
    assert changed == {"watch", "like"}
    weights = tower.transfer_weights("like", torch.randn(9, 2, D, generator=new_generator(3)))
    assert torch.allclose(weights.sum(1), torch.ones(9))


def test_aitm_calibrator_measures_steps_likelier_than_the_one_before() -> None:
    tasks = {"view": TASKS["watch"], "cart": TASKS["watch"].model_copy(update={"after": "view"})}
    rows = make_interactions(30, 20, 6, seed=1)
    rows = Interactions(
        rows.user,
        rows.item,
        dict.fromkeys(tasks, rows.labels["watch"]),
        dict.fromkeys(tasks, rows.relevant["watch"]),
    )
    side = replace(make_side(30, 20), tasks=tasks)
    model = AITM(AITMSettings(dimension=4, calibrator_weight=2.0))
    module = model.build(side, LabelScales.of(tasks, rows.labels), new_generator(1))
    assert isinstance(module, MultiTaskModule)
    batch = UserRows(rows, side.users).everyone()
    users = {"view": torch.zeros(30, 3), "cart": torch.full((30, 3), 0.5)}
    items = {"view": torch.zeros(20, 3), "cart": torch.ones(20, 3)}
    assert float(module.task_sums(users, items, batch, batch)["(calibrator)"].mean(batch)) == pytest.approx(2.0 * 1.5)
    swapped = {"view": users["cart"], "cart": users["view"]}, {"view": items["cart"], "cart": items["view"]}
    assert float(module.task_sums(*swapped, batch, batch)["(calibrator)"].mean(batch)) == 0.0


def test_log_complement_is_exact_at_both_ends() -> None:
    log_p = torch.log(torch.tensor([1e-12, 1e-3, 0.3, 0.7, 0.999], dtype=torch.float64)).requires_grad_()
    assert torch.allclose(log_complement(log_p), torch.log1p(-log_p.exp()), atol=1e-12)
    assert torch.autograd.gradcheck(log_complement, (log_p,))


def esmm_module(rows: Interactions, side: SideInformation) -> ESMMModule:
    model = ESMM(ESMMSettings(dimension=4, history_dropout=0.0, negatives=3))
    module = model.build(side, LabelScales.of(side.tasks, rows.labels), new_generator(1))
    assert isinstance(module, ESMMModule)
    return module


def test_esmm_loss_is_the_cross_entropy_of_the_joint_steps(rows: Interactions, side: SideInformation) -> None:
    """Without scores every conditional probability is one half: one step has p = 1/2, two steps have p = 1/4."""
    side = replace(side, tasks=FUNNEL)
    module = esmm_module(rows, side)
    batch = UserRows(rows, side.users).batch(torch.arange(side.users), new_generator(1))
    flat = {name: torch.zeros(side.users, 3) for name in FUNNEL}, {name: torch.zeros(side.items, 3) for name in FUNNEL}
    losses = {name: float(loss.mean(batch)) for name, loss in module.task_sums(*flat, batch, batch).items()}
    assert list(losses) == list(FUNNEL)
    key = batch.row_user * side.items + batch.row_item
    assert len(torch.unique(key)) == len(rows)
    positives = float((rows.labels["like"] > 0).sum())
    # The number of drawn pairs that were not observed follows from the first step, whose p is 1/2 everywhere.
    pairs = losses["watch"] * len(rows) / np.log(2)
    assert len(rows) < pairs < 4 * len(rows)
    expected = (positives * np.log(4) + (pairs - positives) * np.log(4 / 3)) / len(rows)
    assert losses["like"] == pytest.approx(expected, rel=1e-4)


def test_esmm_judges_all_steps_on_the_same_space(rows: Interactions, side: SideInformation) -> None:
    """With flat scores the loss per judged row of a later step does not depend on which rows it is judged on."""
    side = replace(side, tasks=FUNNEL)
    module = esmm_module(rows, side)
    flat = {name: torch.zeros(side.users, 3) for name in FUNNEL}, {name: torch.zeros(side.items, 3) for name in FUNNEL}
    losses = []
    for share in (1.0, 0.25):
        batch = UserRows(rows, side.users).batch(torch.arange(side.users), new_generator(1))
        asked = batch.part(torch.rand(len(rows), generator=new_generator(2)) < share)
        losses.append(float(module.task_sums(*flat, batch, asked)["like"].mean(batch)))
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_esmm_orders_by_the_product_and_predicts_the_condition(rows: Interactions, side: SideInformation) -> None:
    side = replace(side, tasks=FUNNEL)
    model = ESMM(ESMMSettings(dimension=4, training=TrainingSettings(epochs=2, batches=2)))
    model.fit(rows, side, seed=1)
    scores = model.score(everyone(rows, side))
    order = model.ranking_scores(scores)
    assert funnel_steps(FUNNEL) == {"watch": ["watch"], "like": ["watch", "like"]}
    assert np.allclose(order["like"], scores["watch"] * scores["like"])
    assert np.array_equal(order["rating"], scores["rating"])
    assert scores["watch"].min() >= 0
    assert scores["watch"].max() <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "nonlinear"},
        {"user_embedding": "pretrained"},
        {"user_embedding": "none"},
        {"retrieval_loss": "softmax"},
        {"retrieval_loss": "bpr"},
        {"share_embeddings": False},
        {"item_dropout": 0.5},
    ],
)
def test_gradients_of_every_choice_are_right(
    changes: dict[str, object], rows: Interactions, side: SideInformation
) -> None:
    model = SharedBottom(SharedBottomSettings.model_validate({"dimension": 3, **changes}))
    check_gradient(model.build(side, LabelScales.of(TASKS, rows.labels), new_generator(1)), rows, side)


def test_later_steps_of_a_funnel_learn_item_weights_from_the_first(rows: Interactions, side: SideInformation) -> None:
    bought = rows.labels["rating"] >= 4
    tasks = {"watch": TASKS["watch"], "buy": TASKS["watch"].model_copy(update={"after": "watch"})}
    labels = {"watch": rows.labels["watch"], "buy": np.where(bought, 1.0, np.nan).astype(np.float32)}
    rows = replace(rows, labels=labels, relevant={"watch": rows.relevant["watch"], "buy": bought})
    side = replace(side, tasks=tasks)
    users = everyone(rows, side)
    plain, first = Ease(EaseSettings(penalty=10.0)), FirstStepEase(EaseSettings(penalty=10.0))
    for model in (plain, first):
        model.fit(rows, side, seed=1)
    assert np.array_equal(first.score(users)["buy"], plain.score(users)["watch"])
    assert not np.allclose(first.score(users)["buy"], plain.score(users)["buy"])
    assert first.parameter_count() == plain.parameter_count() // 2
    training = TrainingSettings(epochs=1, batches=2)
    scores = []
    for part in (None, EaseSettings(penalty=10.0)):
        towers = WideSharedBottom(WideSharedBottomSettings(dimension=4, wide=part, training=training))
        towers.fit(rows, side, seed=1)
        scores.append(towers.score(users))
    for task in tasks:
        wide = scores[1][task] - scores[0][task]
        assert np.allclose(wide, plain.score(users)["watch"], atol=1e-5)


@pytest.mark.parametrize("encoder", ["linear", "nonlinear"])
def test_labels_are_predicted_from_the_other_rows_alone(
    encoder: str, rows: Interactions, side: SideInformation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that a pointwise loss is taken on leave no trace in the users' vectors of that step, and none is left out."""
    model = SharedBottom(SharedBottomSettings.model_validate({"dimension": 3, "encoder": encoder}))
    module = model.build(side, LabelScales.of(TASKS, rows.labels), new_generator(1))
    assert isinstance(module, MultiTaskModule)
    given: list[UserBatch] = []
    vectors, losses = module.user_vectors, module.task_sums
    monkeypatch.setattr(module, "user_vectors", lambda batch, seen: given.append(seen) or vectors(batch, seen))
    monkeypatch.setattr(
        module,
        "task_sums",
        lambda users, items, batch, asked: given.append(asked) or losses(users, items, batch, asked),
    )
    flat = started(module, rows, side)
    for place, parameter in enumerate(module.parameters()):
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=new_generator(place)))
    batch = flat.batch(torch.arange(side.users), new_generator(3))
    module.losses(batch)
    seen, asked = given
    assert sorted([*seen.row.tolist(), *asked.row.tolist()]) == batch.row.tolist()
    assert min(len(seen.row), len(asked.row)) > 0
    before = vectors(batch, seen)["rating"]
    assert flat.residuals is not None
    flat.residuals[asked.row] += 1.0
    hidden = torch.isin(batch.row, asked.row)
    other = replace(batch, row_item=torch.where(hidden, (batch.row_item + 1) % side.items, batch.row_item))
    assert torch.equal(before, vectors(other, other.part(~hidden))["rating"])
    flat.residuals[seen.row[:1]] += 1.0
    assert not torch.equal(before, vectors(batch, seen)["rating"])


@pytest.mark.parametrize("model", [ESMM(ESMMSettings(dimension=3)), AITM(AITMSettings(dimension=3))])
def test_gradients_of_funnel_models_are_right(model: ESMM | AITM, rows: Interactions, side: SideInformation) -> None:
    side = replace(side, tasks=FUNNEL)
    check_gradient(model.build(side, LabelScales.of(FUNNEL, rows.labels), new_generator(1)), rows, side)


def check_gradient(module: TwoTowerModule, rows: Interactions, side: SideInformation) -> None:
    """The gradient of the whole loss equals central differences along random directions."""
    flat = started(module, rows, side)
    parameters = list(module.parameters())
    for place, parameter in enumerate(parameters):
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=new_generator(place)))

    def loss() -> torch.Tensor:
        batch = flat.batch(torch.arange(side.users), new_generator(3))
        return torch.stack(list(module.losses(batch).values())).sum()

    total = loss()
    total.backward()
    for seed in range(3):
        direction = [torch.randn(p.shape, generator=new_generator(seed + 50)) for p in parameters]
        slope = sum((p.grad * d).sum().item() for p, d in zip(parameters, direction, strict=True) if p.grad is not None)
        values = []
        with torch.no_grad():
            for sign in (1e-3, -2e-3, 1e-3):
                for parameter, own in zip(parameters, direction, strict=True):
                    parameter.add_(sign * own)
                values.append(float(loss()))
        assert slope == pytest.approx((values[0] - values[1]) / 2e-3, rel=2e-2, abs=2e-2)
