"""What comes next: trained on every row, from earlier rows alone, and read at the latest one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import everyone, make_interactions, make_side
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.models.architectures.shared_bottom import WideSharedBottom, WideSharedBottomSettings
from multitask_recommender.models.baselines.next_items import NextItems, NextItemsModule, NextItemsSettings, followers
from multitask_recommender.models.per_task import PerTask
from multitask_recommender.models.training.loop import UserBatch, UserRows, new_generator
from multitask_recommender.testing import ModelUnderTest, parametrize_with_checks

USERS, ITEMS, ROWS = 20, 15, 7


@pytest.fixture(scope="module")
def rows() -> Interactions:
    made = make_interactions(USERS, ITEMS, ROWS, seed=2)
    label = made.labels["watch"].copy()
    label[::5] = 0.0  # Rows of sequences that nobody is to be shown for.
    return replace(made, labels={**made.labels, "watch": label})


@pytest.fixture(scope="module")
def side() -> SideInformation:
    return make_side(USERS, ITEMS)


def awake(side: SideInformation, **settings: float) -> NextItemsModule:
    own = NextItemsSettings.model_validate({"dimension": 6, "length": 4, **settings})
    module = NextItemsModule(side, own, new_generator(1))
    for place, parameter in enumerate(module.parameters()):
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=new_generator(place)))
    return module


def batch_of(rows: Interactions, seed: int | None = None) -> UserBatch:
    generator = None if seed is None else new_generator(seed)
    return UserRows(rows, USERS).batch(torch.arange(USERS), generator)


@pytest.mark.parametrize("seed", [None, 3])
def test_a_later_item_changes_no_earlier_output(seed: int | None, rows: Interactions, side: SideInformation) -> None:
    module, place = awake(side), np.arange(len(rows)) % ROWS
    before = module.outputs(batch_of(rows, seed))
    changed = replace(rows, item=np.where(place >= 4, (rows.item + 1) % ITEMS, rows.item))
    after = module.outputs(batch_of(changed, seed))
    same = (before == after).all(dim=1).numpy()
    assert same[place < 4].all()
    assert not same[place >= 4].all()


def test_every_row_that_another_follows_is_trained(
    rows: Interactions, side: SideInformation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That nothing follows the latest row is not known, so nothing is learnt from it."""
    kept: list[torch.Tensor] = []
    module = awake(side, hidden=0.0)
    outputs = module.outputs

    def watched(batch: UserBatch) -> torch.Tensor:
        kept.append(outputs(batch))
        kept[-1].retain_grad()
        return kept[-1]

    monkeypatch.setattr(module, "outputs", watched)
    module.losses(batch_of(rows, 3))["watch"].backward()
    assert kept[0].grad is not None
    reached = kept[0].grad.abs().sum(1) > 0
    assert reached.tolist() == [*[True] * (ROWS - 1), False] * USERS


def test_the_loss_equals_its_definition(rows: Interactions, side: SideInformation) -> None:
    """Up to the sum of squares of what is to be predicted; items without rows do not count."""
    reach, target, span = 1.5, 5.0, 4  # Three times the reach.
    module, batch = awake(side, reach=reach), batch_of(rows)
    scores = (module.outputs(batch) @ module.heads["watch"] @ module.expected.T).detach().double()
    catalogue, total = np.unique(rows.item), 0.0
    for row in range(len(rows)):
        expected, known = torch.zeros(ITEMS, dtype=torch.float64), 0.0
        weights = np.exp(-np.arange(span) / reach)
        for later, weight in enumerate(weights / weights.sum(), start=row + 1):
            if later < len(rows) and rows.user[row] == rows.user[later]:
                known += weight
                expected[rows.item[later]] += target * weights.sum() * weight * (rows.labels["watch"][later] > 0)
        if known > 0:
            errors = (expected / known - scores[row])[catalogue].square().sum() - (expected / known).square().sum()
            total += known * errors.item()
    assert module.losses(batch)["watch"].item() == pytest.approx(total / len(rows), rel=1e-4)


def test_rows_are_followed_by_those_of_their_user_alone(rows: Interactions) -> None:
    pairs, weight, later = followers(batch_of(rows), reach=1.0)
    row = np.repeat(np.arange(len(rows)), pairs.offsets.diff().numpy())
    assert (rows.user[row] == rows.user[later.numpy()]).all()
    assert np.allclose(weight, np.exp(1.0 + row - later.numpy()))
    assert np.bincount(row, minlength=len(rows)).tolist() == [3, 3, 3, 3, 2, 1, 0] * USERS


TRAINING = {"learning_rate": 0.03, "epochs": 20, "batches": 4, "averaging": None}


def fitted(rows: Interactions, side: SideInformation, **changes: object) -> NextItems:
    model = NextItems(NextItemsSettings.model_validate({"training": TRAINING, **changes}))
    model.fit(rows.with_tasks(["watch"]), side.with_tasks(["watch"]), seed=1)
    return model


def beside_towers(rows: Interactions, side: SideInformation) -> WideSharedBottom:
    settings = {"dimension": 4, "next_items": {"training": TRAINING}, "training": TRAINING}
    model = WideSharedBottom(WideSharedBottomSettings.model_validate(settings))
    model.fit(rows, side, seed=1)
    return model


def test_order_counts_for_retrieval_alone(rows: Interactions, side: SideInformation) -> None:
    model = beside_towers(rows, side)
    swapped = np.lexsort((-np.arange(len(rows)), rows.user))
    one, other = (model.score(everyone(asked, side)) for asked in (rows, rows.where(swapped)))
    for task, same in {"watch": False, "like": True, "rating": True}.items():
        assert np.allclose(one[task], other[task], atol=1e-4) == same, task


def test_towers_and_sequence_are_added(rows: Interactions, side: SideInformation) -> None:
    """A score is linear in the weight of the sequence, and without any that of the towers; labels know none of it."""
    model, queries = beside_towers(rows, side), everyone(rows, side)
    scores = []
    for weight in (0.0, 1.0, 3.0):
        model.ask_with(model.settings.model_copy(update={"next_items_weight": weight}))
        scores.append(model.score(queries))
    assert np.allclose(
        scores[2]["watch"] - scores[0]["watch"], 3 * (scores[1]["watch"] - scores[0]["watch"]), atol=1e-4
    )
    assert np.allclose(scores[0]["watch"], model.deep.score(queries)["watch"])
    assert not np.allclose(scores[0]["watch"], scores[1]["watch"], atol=1e-2)
    assert np.array_equal(scores[0]["rating"], scores[2]["rating"])


def test_models_with_the_same_retrieval_tasks_share_it(side: SideInformation) -> None:
    """What it becomes depends on the retrieval tasks alone, so that a joint model and its control have one of it."""
    settings = {"next_items": {"training": TRAINING}}
    names: dict[str, list[str]] = {}
    for dimension, tasks in ((4, ["watch", "like", "rating"]), (8, ["watch"]), (4, ["like", "rating"])):
        model = WideSharedBottom(WideSharedBottomSettings.model_validate({"dimension": dimension, **settings}))
        names[" ".join(tasks)] = list(model.slow_parts(side.with_tasks(tasks)))
    assert names["watch like rating"] == names["watch"]
    assert len(names["watch"]) == 1
    assert names["like rating"] == []


def test_it_finds_what_comes_next() -> None:
    """In sequences that go round a cycle of items, the next of the cycle is first."""
    users, items, length = 60, 20, 8
    rows, side = make_interactions(users, items, length, seed=2), make_side(users, items)
    place = np.arange(len(rows)) % length
    start = np.random.default_rng(3).integers(0, items, users)[rows.user]
    rows = replace(rows, item=(start + place) % items, labels={**rows.labels, "watch": np.ones(len(rows), np.float32)})
    score = fitted(rows, side, reach=1.0, hidden=0.0).score(everyone(rows, side))["watch"]
    first = np.where(everyone(rows, side).known(items).toarray() > 0, -np.inf, score).argmax(axis=1)
    assert (first == (rows.item[length - 1 :: length] + 1) % items).mean() > 0.9


_QUICK = {"dimension": 6, "length": 4, "training": {"epochs": 3, "batches": 2}}
_BLEND = {"dimension": 4, "next_items": _QUICK, "training": {"epochs": 3, "batches": 2}}


@parametrize_with_checks(
    [
        ModelUnderTest("blend", lambda tasks: WideSharedBottom(WideSharedBottomSettings.model_validate(_BLEND))),
        ModelUnderTest(
            "next_items",
            lambda tasks: PerTask(NextItems, {"watch": NextItemsSettings.model_validate(_QUICK)}),
        ),
    ]
)
def test_contract(model: ModelUnderTest, check: Callable[[ModelUnderTest], None]) -> None:
    check(model)
