"""MMoE and PLE over pairs: computed once per side as if pair by pair, with experts and gates that learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from conftest import TASKS, everyone, make_interactions, make_side
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.models.architectures import pairwise
from multitask_recommender.models.architectures.pairwise import (
    Extraction,
    Networks,
    PairGate,
    PairwiseMMoE,
    PairwiseModule,
    PairwisePLE,
    PairwiseSettings,
    Part,
)
from multitask_recommender.models.towers.two_tower import LabelScales, as_rows
from multitask_recommender.models.training.loop import TrainingSettings, new_generator

USERS, ITEMS = 40, 30
SMALL = PairwiseSettings(
    embedding=4,
    experts=2,
    expert_layers=(6, 5),
    tower_layers=(3,),
    training=TrainingSettings(learning_rate=0.01, expert_rate=1.0, epochs=3, batches=3),
)


@pytest.fixture(scope="module")
def rows() -> Interactions:
    return make_interactions(USERS, ITEMS, 8, seed=1)


@pytest.fixture(scope="module")
def side() -> SideInformation:
    return make_side(USERS, ITEMS)


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=new_generator(seed))


def test_the_first_layer_over_parts_is_that_over_pairs() -> None:
    """What users and items are multiplied with once is what the network over their concatenation would compute."""
    users, items = drawn(5, 4), drawn(7, 3, seed=2)
    place, item = torch.tensor([0, 0, 3, 4]), torch.tensor([6, 1, 1, 0])
    networks = Networks(3, [4, 3], [6, 2], new_generator(3))
    found = networks([Part(users, place), Part(items, item)])
    pairs = torch.cat([users[place], items[item]], dim=1)
    for number in range(3):
        first = torch.cat([own[number] for own in networks.first])
        hidden = torch.relu(pairs @ first + networks.biases[0][number])
        hidden = torch.relu(hidden @ networks.others[0][number] + networks.biases[1][number])
        assert torch.allclose(found[number], hidden, atol=1e-5)


def test_gates_start_equal_and_weigh_to_one() -> None:
    gate, parts = PairGate([4, 3], 5), [Part(drawn(6, 4), None), Part(drawn(6, 3, seed=2), None)]
    assert torch.allclose(gate(parts), torch.full((6, 5), 0.2))
    for weight in gate.weights:
        nn.init.normal_(weight, generator=new_generator(4))
    assert torch.allclose(gate(parts).sum(1), torch.ones(6))
    assert gate(parts).std() > 0.05


@pytest.mark.parametrize("own", [False, True])
def test_a_task_sees_its_own_experts_and_the_shared_ones(own: bool) -> None:
    """The gradient of a task's mixture reaches no expert of another task; that of the shared part reaches all."""
    level = Extraction(["a", "b"], [4], SMALL, own, last=False, generator=new_generator(1))
    x = [Part(drawn(6, 4), None)]
    for name, gate in level.gates.items():
        assert gate(x).shape[1] == len(level.expert_names(name)) == (4 if own else 2)

    def reached(value: torch.Tensor) -> dict[str, bool]:
        level.zero_grad()
        value.square().sum().backward()
        modules = {"shared": level.shared, **dict(level.specific.items())}
        return {name: bool(module.first[0].grad is not None) for name, module in modules.items()}

    mixed, common = level({"a": x, "b": x}, x)
    assert reached(mixed["a"]) == ({"shared": True, "a": True, "b": False} if own else {"shared": True})
    mixed, common = level({"a": x, "b": x}, x)
    assert reached(common) == ({"shared": True, "a": True, "b": True} if own else {"shared": True})


@pytest.mark.parametrize("model", [PairwiseMMoE, PairwisePLE])
@pytest.mark.parametrize("levels", [1, 2])
def test_lists_are_scored_as_pairs_are(
    model: type[pairwise.PairwiseRecommender],
    levels: int,
    rows: Interactions,
    side: SideInformation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks of lists, however small, give what the module gives for single pairs; and they are stored whole."""
    fitted = model(SMALL.model_copy(update={"levels": levels}))
    fitted.fit(rows, side, seed=3)
    queries = everyone(rows, side)
    whole = fitted.score(queries)
    monkeypatch.setattr(pairwise, "_NUMBERS", 1)
    again = model(fitted.settings)
    again.restore(fitted.state(), side)
    module = again._module
    flat = as_rows(queries, None)
    module.describe(flat)
    with torch.no_grad():
        users = module.users_of(flat.everyone())
        logits = module.logits(users, module.items_all(), torch.tensor([3, 5]), torch.tensor([7, 2]))
    for task, scores in again.score(queries).items():
        assert np.allclose(scores, whole[task], atol=1e-5)
    assert whole["watch"][3, 7] == pytest.approx(float(logits["watch"][0]), abs=1e-5)
    assert whole["like"][5, 2] == pytest.approx(float(torch.sigmoid(logits["like"][1])), abs=1e-5)
    assert np.isfinite(whole["rating"]).all()


@pytest.mark.parametrize("model", [PairwiseMMoE, PairwisePLE])
def test_experts_learn_and_gates_come_apart(
    model: type[pairwise.PairwiseRecommender], rows: Interactions, side: SideInformation
) -> None:
    long = SMALL.training.model_copy(update={"epochs": 40, "learning_rate": 0.02})
    fitted = model(SMALL.model_copy(update={"training": long}))
    curve = fitted.fit(rows, side, seed=3)
    assert curve.epochs[-1]["rating"] < 0.8 * curve.epochs[0]["rating"]
    state = fitted.state()
    assert float(state["experts_moved"][0]) > 0.1  # type: ignore[index]
    gates = state["utilisation"]["pair"]  # type: ignore[index,call-overload]
    for weights in gates.values():
        means = np.array([weight[0] for weight in weights.values()])  # type: ignore[union-attr]
        assert means.sum() == pytest.approx(1, abs=1e-5)
        assert np.abs(means * len(means) - 1).max() > 0.05


def test_losses_are_those_of_hidden_rows_and_negatives_are_no_rows_of_the_user(
    rows: Interactions, side: SideInformation
) -> None:
    generator = new_generator(1)
    module = PairwiseModule(side, SMALL, LabelScales.of(TASKS, rows.labels), own=False, generator=generator)
    flat = as_rows(everyone(rows, side), None)
    module.start(flat)
    module.describe(flat)
    with torch.no_grad():
        for _, tower in module.towers.items():
            tower.weight.zero_()
    batch = flat.batch(torch.arange(USERS), new_generator(5))
    losses = module.losses(batch)
    hidden = torch.rand(len(rows), generator=new_generator(5)) < SMALL.history_dropout
    rating = torch.tensor(rows.labels["rating"])
    standard = module.scales.standardise("rating", rating)[hidden]
    assert losses["rating"].item() == pytest.approx(standard.square().mean().item(), rel=1e-5)
    # All scores are 0, so that the retrieval loss counts pairs: log 2 each, and at most all drawn ones.
    pairs = losses["watch"].item() / np.log(2)
    assert 1 + 0.5 * SMALL.negatives < pairs < 1 + SMALL.negatives


def test_an_item_without_rows_is_known_by_its_features_alone(rows: Interactions, side: SideInformation) -> None:
    kept = rows.where(rows.item != 4)
    fitted = PairwiseMMoE(SMALL)
    fitted.fit(kept, side, seed=3)
    items = fitted._items.numpy()
    assert np.array_equal(items[4, : SMALL.embedding], np.zeros(SMALL.embedding))
    assert items[4, SMALL.embedding :].any()


def test_a_single_task_has_a_network_of_its_own(rows: Interactions, side: SideInformation) -> None:
    for task in TASKS:
        fitted = PairwisePLE(replace_levels(SMALL, 2))
        fitted.fit(rows.with_tasks([task]), side.with_tasks([task]), seed=3)
        scores = fitted.score(everyone(rows.with_tasks([task]), side))
        assert list(scores) == [task]
        assert np.isfinite(scores[task]).all()


def replace_levels(settings: PairwiseSettings, levels: int) -> PairwiseSettings:
    return settings.model_copy(update={"levels": levels})


def test_users_are_told_by_their_histories_alone(rows: Interactions, side: SideInformation) -> None:
    fitted = PairwiseMMoE(SMALL)
    fitted.fit(rows, side, seed=3)
    known = everyone(rows, side)
    as_new = replace(known, user=np.full(USERS, -1))
    for task, scores in fitted.score(known).items():
        assert np.array_equal(scores, fitted.score(as_new)[task])
