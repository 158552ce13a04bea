"""A training divided among processes is the training of one process, up to the order of summation."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from conftest import make_interactions, make_side
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.models.architectures.ple import PLE, PLESettings
from multitask_recommender.models.architectures.shared_bottom import SharedBottom, SharedBottomSettings
from multitask_recommender.models.baselines.next_items import NextItems, NextItemsSettings
from multitask_recommender.models.recommender import LearningCurve, Recommender
from multitask_recommender.models.training.division import Training, train_share, trained_by, without_users
from multitask_recommender.models.training.loop import TrainingSettings

TOLERANCE = 1e-5
"""Largest difference of losses, over the largest loss."""
TRAINING = TrainingSettings(epochs=3, batches=8)
CLIPPED = TrainingSettings(epochs=3, batches=4, gradient_clip=0.3, averaging=0.9, balancing="dynamic_weight_average")


def of(training: TrainingSettings = TRAINING, **settings: Any) -> Callable[[], Recommender]:
    return lambda: SharedBottom(SharedBottomSettings(dimension=4, training=training, **settings))


MODELS = {
    "squared": of(),
    "clipped and balanced": of(CLIPPED),
    "softmax": of(retrieval_loss="softmax", item_dropout=0.2),
    "next items": lambda: NextItems(NextItemsSettings(dimension=4, training=TRAINING)),
    "later": of(hidden="later", penalise="task_vectors"),
    "ple": lambda: PLE(PLESettings(dimension=4, training=TRAINING)),
}


def study() -> tuple[Interactions, SideInformation]:
    # Five users a batch, so that now and then a process has none of them.
    return make_interactions(40, 30, 8, 1), make_side(40, 30)


def _share(rank: int, size: int, port: int, jobs: list[Any], results: Any) -> None:
    """One process: trains its share of every job."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    found = []
    for name, module, settings, tasks, common, shares in jobs:
        # A copy, because tensors that come from another process are shared with it.
        own = copy.deepcopy(module)
        found.append(train_share(name, own, settings, tasks, common, shares[rank], rank, size))
    results[rank] = found
    dist.destroy_process_group()


def together(jobs: list[Any], size: int) -> list[list[Any]]:
    """Train shares in processes of their own; per process, the result of every job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(_share, (size, port, jobs, results), nprocs=size)
        return [results[rank] for rank in range(size)]


class Collector:
    """A launcher that only notes what is to be trained, so that few processes do the work of many tests."""

    def __init__(self, size: int) -> None:
        self.size, self.jobs, self.trainings = size, [], []

    def __call__(self, training: Training) -> LearningCurve:
        shares = [training.share(rank, self.size) for rank in range(self.size)]
        common, module = training.common(), copy.deepcopy(training.module)
        without_users(module)
        self.trainings.append(training)
        self.jobs.append((training.name, module, training.settings, training.tasks, common, shares))
        return LearningCurve([{"(none)": 0.0}])


@pytest.fixture(scope="module")
def divided() -> dict[str, tuple[LearningCurve, dict[str, Any]]]:
    """Model to learning curve and weights of a training by two processes."""
    collector = Collector(2)
    for make in MODELS.values():
        with trained_by(collector):
            make().fit(*study(), 5)
    by_rank = together(collector.jobs, 2)
    found = {}
    for place, (name, training) in enumerate(zip(MODELS, collector.trainings, strict=True)):
        own = [results[place] for results in by_rank]
        # A fitted module is frozen; it is put back to what it learnt.
        training.take([state for state, _ in own])
        assert own[0][1].epochs == own[1][1].epochs
        found[name] = own[0][1], {key: value.numpy().copy() for key, value in training.module.state_dict().items()}
    return found


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_learn_what_one_does(name: str, divided: dict[str, tuple[LearningCurve, dict[str, Any]]]) -> None:
    curve, weights = divided[name]
    model = MODELS[name]()
    usual = model.fit(*study(), 5)
    largest = max(abs(value) for epoch in usual.epochs for value in epoch.values())
    for own, other in zip(curve.epochs, usual.epochs, strict=True):
        assert own == pytest.approx(other, abs=TOLERANCE * largest, rel=0)
    kept = ("users.prior", "users.prior_bias")  # Found after the training, by whoever has all users.
    for table, values in model.state()["weights"].items():
        if table not in kept:
            # Adam divides by the length of gradients, which makes much of rounding where they vanish.
            np.testing.assert_allclose(weights[table], values, atol=0.01)


def test_a_share_holds_no_row_of_other_users() -> None:
    collector = Collector(3)
    with trained_by(collector):
        MODELS["squared"]().fit(*study(), 5)
    ((_, module, _, _, _, shares),) = collector.jobs
    rows, side = study()
    assert sum(len(share["user"]) for share in shares) == len(rows)
    for rank, share in enumerate(shares):
        users = np.arange(rank, side.users, 3)
        own = np.isin(rows.user, users)
        np.testing.assert_array_equal(users[share["user"]], rows.user[own])
        np.testing.assert_array_equal(share["item"], rows.item[own])
        assert share["tables"]["users.identity"].shape == (len(users), 4)
    assert len(dict(module.named_parameters())["users.identity"]) == 0


def test_what_is_no_sum_over_users_is_trained_as_ever() -> None:
    collector = Collector(2)
    with trained_by(collector):
        curve = of(retrieval_loss="bpr")().fit(*study(), 5)
        of(TrainingSettings(epochs=1, batches=2, balancing="uncertainty"))().fit(*study(), 5)
    assert not collector.jobs
    assert curve.epochs == of(retrieval_loss="bpr")().fit(*study(), 5).epochs
