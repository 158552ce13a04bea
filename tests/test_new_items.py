"""Items without training rows: what they are ranked by, and that nothing is learnt from their absence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from conftest import TASKS, FixedProjection, everyone
from multitask_recommender.data.description import SplitSettings
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.splits import candidate_items
from multitask_recommender.models.baselines.item_item import EaseSettings
from multitask_recommender.models.document.document_system import DocumentSystemSettings
from multitask_recommender.models.recommender import Recommender
from multitask_recommender.models.towers.settings import MultiTaskSettings
from multitask_recommender.models.towers.two_tower import task_loss
from multitask_recommender.models.training import losses
from multitask_recommender.models.training.loop import TrainingSettings, UserRows, new_generator
from multitask_recommender.models.variants import VARIANTS

USERS, ITEMS = 60, 32
NEW = np.array([30, 31])
"""The first has the features of the items that users with even numbers choose, the second of the others."""


@pytest.fixture
def divided() -> tuple[Interactions, SideInformation]:
    """Users with even numbers choose even items, the others odd ones; a feature says which an item is."""
    random = np.random.default_rng(1)
    user = np.repeat(np.arange(USERS), 6)
    item = np.concatenate([2 * random.choice(15, 6, replace=False) + number % 2 for number in range(USERS)])
    order = np.lexsort((item, user))
    user, item = user[order], item[order]
    rating = (1 + (user + item) % 5).astype(np.float32)
    always = np.ones(len(user), bool)
    rows = Interactions(
        user=user,
        item=item,
        labels={"watch": np.ones(len(user), np.float32), "like": (rating >= 4).astype(np.float32), "rating": rating},
        relevant={"watch": always, "like": rating >= 4, "rating": rating >= 4},
    )
    features = sparse.csr_matrix(np.eye(2, dtype=np.float32)[np.arange(ITEMS) % 2])
    encoder = FixedProjection(np.eye(2, dtype=np.float32)[np.arange(ITEMS) % 2] - 0.5)
    side = SideInformation(TASKS, USERS, ITEMS, sparse.csr_matrix((USERS, 0), dtype=np.float32), features, encoder)
    return rows, side


def model_of(name: str) -> Recommender:
    variant = VARIANTS[name]
    training = TrainingSettings(learning_rate=0.02, encoder_rate=1.0, epochs=40, batches=2)
    settings = variant.settings()
    if isinstance(settings, MultiTaskSettings):
        own = {"dimension": 8, "training": training, "item_dropout": 0.3, "retrieval_penalty": 1.0}
        if name == "wide_shared_bottom":
            own |= {"wide": EaseSettings(penalty=10.0, feature_weight=5.0)}
        settings = settings.model_copy(update=own)
    elif isinstance(settings, DocumentSystemSettings):
        settings = settings.model_copy(update={"item_identity": True, "training": training, "retrieval_weight": 10.0})
    return variant.make(settings, TASKS)


@pytest.mark.parametrize(
    "name",
    ["content_based", "two_stage", "joint_adam", "single_task", "shared_bottom", "wide_shared_bottom", "mmoe", "ple"],
)
def test_new_items_are_ranked_by_their_features(name: str, divided: tuple[Interactions, SideInformation]) -> None:
    rows, side = divided
    model = model_of(name)
    model.fit(rows, side, seed=1)
    watch = model.score(everyone(rows, side))["watch"][:, NEW]
    preferred = np.argmax(watch, axis=1)
    assert (preferred == np.arange(USERS) % 2).mean() > 0.9


def test_new_items_have_no_identity(divided: tuple[Interactions, SideInformation]) -> None:
    """Two new items with the same features get the same scores, however long the training."""
    rows, side = divided
    alike = side.item_features.tolil()
    alike[NEW[1]] = alike[NEW[0]]
    for name in ("shared_bottom", "joint_adam"):
        model = model_of(name)
        model.fit(rows, replace(side, item_features=alike.tocsr()), seed=1)
        for score in model.score(everyone(rows, side)).values():
            assert np.allclose(score[:, NEW[0]], score[:, NEW[1]], atol=1e-6)


@pytest.mark.parametrize("loss", ["squared", "softmax", "bpr"])
@pytest.mark.parametrize("block", [0, losses.DENSE_CATALOGUE])
def test_nothing_is_learnt_from_the_absence_of_new_items(
    loss: str, block: int, divided: tuple[Interactions, SideInformation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "DENSE_CATALOGUE", block)
    rows, _ = divided
    batch = UserRows(rows, USERS).batch(torch.arange(USERS), new_generator(1))
    assert batch.catalogue.tolist() == sorted(set(rows.item.tolist()))
    users = torch.randn(USERS, 4, generator=new_generator(2))
    items = torch.randn(ITEMS, 4, generator=new_generator(3), requires_grad=True)
    task_loss(TASKS["watch"], users, items, batch, batch.label("watch"), 4.0, loss).mean(batch).backward()  # type: ignore[arg-type]
    assert items.grad is not None
    assert torch.count_nonzero(items.grad[NEW]) == 0
    assert torch.count_nonzero(items.grad[:30].abs().sum(1)) == 30


def test_retrieval_tasks_weigh_as_their_errors_do(divided: tuple[Interactions, SideInformation]) -> None:
    """The loss is the sum over all pairs divided by the rows of the batch, not by the positives of the task."""
    rows, _ = divided
    batch = UserRows(rows, USERS).batch(torch.arange(USERS), new_generator(1))
    users, items = (torch.randn(n, 4, generator=new_generator(n)) for n in (USERS, ITEMS))
    label = torch.where(torch.arange(len(rows)) % 10 == 0, 1.0, torch.nan)
    target = torch.zeros(USERS, ITEMS)
    target[batch.row_user[::10], batch.row_item[::10]] = 1.0
    scores = users @ items.T
    expected = ((1 + 4 * target) * (target - scores) ** 2)[:, :30].sum() / len(rows)
    loss = task_loss(TASKS["watch"], users, items, batch, label, 4.0).mean(batch)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_the_split_says_which_items_are_candidates() -> None:
    trained = np.array([0, 0, 2])
    splits = SplitSettings(
        strategies=["random", "temporal", "cold_items"], seed=1, folds=2, candidates={"temporal": "all"}
    )
    found = [candidate_items(splits.candidates_of(name), trained, 4).tolist() for name in (*splits.names, "everything")]
    known = [True, False, True, False]
    assert found == [known, [True] * 4, [not own for own in known], known]
