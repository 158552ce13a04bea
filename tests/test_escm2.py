"""The counterfactual losses estimate the error on all pairs from those that the step before let see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from conftest import everyone
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.tasks import Task
from multitask_recommender.models.architectures.escm2 import ESCM2, ESCM2Module, ESCM2Settings
from multitask_recommender.models.architectures.esmm import ESMM, ESMMSettings
from multitask_recommender.models.towers.two_tower import as_rows
from multitask_recommender.models.training.loop import TrainingSettings, new_generator

USERS, ITEMS, WIDTH = 300, 120, 3
TASKS = {"click": Task(kind="retrieval"), "buy": Task(kind="binary", label="buy", after="click")}
TRAINING = TrainingSettings(epochs=2, batches=3)


@pytest.fixture(scope="module")
def world() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Interactions, SideInformation, float]:
    """Vectors whose scores give the true chance of a click, clicks drawn from it, and the error on all pairs.

    The vectors say that most is bought, and so it is where a click is likely: what is seen is no fair sample of the
    errors.
    """
    random = np.random.default_rng(1)
    users = {task: 0.6 * random.normal(size=(USERS, WIDTH)) for task in TASKS}
    items = {task: random.normal(size=(ITEMS, WIDTH)) for task in TASKS}
    logit = {task: users[task] @ items[task].T for task in TASKS}
    logit["click"] -= 0.5
    logit["buy"] += 2.0
    users["click"] = np.column_stack([users["click"], np.full(USERS, -0.5)])
    items["click"] = np.column_stack([items["click"], np.ones(ITEMS)])
    users["buy"], items["buy"] = (
        np.column_stack([own["buy"], np.full(len(own["buy"]), 2.0**0.5)]) for own in (users, items)
    )
    chance = 1 / (1 + np.exp(-logit["click"]))
    clicked = random.random((USERS, ITEMS)) < chance
    bought = random.random((USERS, ITEMS)) < 1 / (1 + np.exp(-1.5 * logit["click"]))
    error = np.log1p(np.exp(-np.where(bought, 1, -1) * logit["buy"])).mean()
    user, item = np.nonzero(clicked)
    label = bought[clicked].astype(np.float32)
    labels = {"click": np.ones(len(user), np.float32), "buy": label}
    rows = Interactions(user, item, labels, {task: own > 0 for task, own in labels.items()})
    none = sparse.csr_matrix((USERS, 0), dtype=np.float32), sparse.csr_matrix((ITEMS, 0), dtype=np.float32)
    side = SideInformation(TASKS, USERS, ITEMS, *none)
    vectors = [{task: torch.from_numpy(own).float() for task, own in part.items()} for part in (users, items)]
    return vectors[0], vectors[1], rows, side, float(error)


@pytest.mark.parametrize("debiasing", ["ips", "doubly_robust"])
def test_the_error_on_all_pairs_is_estimated_from_the_clicked_ones(world: tuple, debiasing: str) -> None:  # type: ignore[type-arg]
    users, items, rows, side, error = world
    settings = ESCM2Settings.model_validate(
        {"dimension": WIDTH + 1, "debiasing": debiasing, "smallest_propensity": 1e-4, "training": TRAINING.model_dump()}
    )
    model = ESCM2(settings)
    model.fit(rows, side, seed=1)
    module = model.fitted_module
    assert isinstance(module, ESCM2Module)
    if module.imputation is not None:
        # Whatever is imputed, the estimate stays right where propensities are; the imputation's own loss is left out.
        module.imputation["buy"].data[:] = torch.tensor([0.3, -0.2, 0.1, 0.0, 0.4])
    batch = replace(as_rows(everyone(rows, side), None).everyone(), generator=new_generator(1))
    estimate = module._error("buy", ["click", "buy"], users, items, batch)
    if module.imputation is not None:
        estimate = estimate - imputation_loss(module, users, items, batch, rows)
    seen = torch.nn.functional.binary_cross_entropy_with_logits(
        (users["buy"][rows.user] * items["buy"][rows.item]).sum(1), torch.from_numpy(rows.labels["buy"])
    )
    assert abs(float(seen) - error) > 0.1  # Of the clicked pairs alone it would be another.
    assert float(estimate) == pytest.approx(error, abs=0.03)


def imputation_loss(module: ESCM2Module, users: dict, items: dict, batch, rows: Interactions) -> torch.Tensor:  # type: ignore[no-untyped-def, type-arg]
    imputed = module._imputed("buy", users, items, batch.row_user, batch.row_item)
    logit = (users["buy"][rows.user] * items["buy"][rows.item]).sum(1)
    error = torch.nn.functional.binary_cross_entropy_with_logits(
        logit, torch.from_numpy(rows.labels["buy"]), reduction="none"
    )
    weight = 1 + torch.exp(-(users["click"][rows.user] * items["click"][rows.item]).sum(1))
    return (weight / weight.sum() * (error - imputed).square()).sum()


def test_without_weight_it_is_esmm(world: tuple) -> None:  # type: ignore[type-arg]
    _, _, rows, side, _ = world
    common = {"dimension": 4, "training": TRAINING.model_dump()}
    esmm = ESMM(ESMMSettings.model_validate(common))
    escm2 = ESCM2(ESCM2Settings.model_validate({**common, "counterfactual_weight": 0.0}))
    both = []
    for model in (esmm, escm2):
        model.fit(rows, side, seed=3)
        both.append(model.score(everyone(rows, side)))
    for task in TASKS:
        assert np.allclose(both[0][task], both[1][task], atol=1e-5)
    other = ESCM2(ESCM2Settings.model_validate({**common, "counterfactual_weight": 1.0}))
    other.fit(rows, side, seed=3)
    assert not np.allclose(other.score(everyone(rows, side))["buy"], both[0]["buy"], atol=1e-3)
