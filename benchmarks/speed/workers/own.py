"""This project's workers; they run in the project's own environment."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse
from threadpoolctl import threadpool_limits

from multitask_recommender.data.interactions import SideInformation, pair_matrix
from multitask_recommender.data.tasks import Task
from multitask_recommender.evaluation import metrics
from multitask_recommender.evaluation.metric_records import LIST_METRICS, JudgedLists, Surroundings
from multitask_recommender.models import ranking
from multitask_recommender.models.architectures.mmoe import MMoESettings
from multitask_recommender.models.architectures.pairwise import PairwiseSettings
from multitask_recommender.models.architectures.ple import PLESettings
from multitask_recommender.models.training.loop import TrainingSettings, UserBatch, UserRows
from multitask_recommender.models.variants import VARIANTS
from peers.common import read_training
from peers.own import features_of_both, interactions
from workers.common import METRICS_AT, Arguments, Run, read_arrays, serve

_EPOCHS = 4
TASKS = {
    "rating": Task(kind="regression", label="rating", relevant="rating >= 4"),
    "like": Task(kind="binary", label="rating >= 4"),
}


def epoch(arguments: Arguments) -> Run:
    """Train a model of the same size as the peers': the seconds are the median of the epochs but the last."""
    _threads(arguments)
    training = read_training(arguments["training"])
    side = SideInformation(TASKS, training.users, training.items, *features_of_both(training))
    rows = interactions(training.user, training.item, training.rating, training.time).with_tasks(list(TASKS))
    experts = {"expert_layers": tuple(arguments["expert_layers"])}
    how = {"training": TrainingSettings(epochs=_EPOCHS, batches=arguments["batches"])}
    settings = {
        "mmoe": lambda: MMoESettings(dimension=arguments["embedding"], experts=4, **experts, **how),
        "ple": lambda: PLESettings(
            dimension=arguments["embedding"], levels=1, shared_experts=2, own_experts=2, **experts, **how
        ),
        "mmoe_pairwise": lambda: PairwiseSettings(
            embedding=arguments["embedding"], experts=4, tower_layers=(64,), **experts, **how
        ),
        "ple_pairwise": lambda: PairwiseSettings(
            embedding=arguments["embedding"], experts=2, tower_layers=(64,), **experts, **how
        ),
    }[arguments["kind"]]()
    begins: list[float] = []
    shuffled = UserRows.shuffled_batches

    def noted(self: UserRows, number: int, generator: torch.Generator) -> Iterator[UserBatch]:
        begins.append(time.perf_counter())
        return shuffled(self, number, generator)

    setattr(UserRows, "shuffled_batches", noted)  # noqa: B010

    def run() -> float:
        begins.clear()
        VARIANTS[arguments["kind"]].make(settings, TASKS).fit(rows, side, 0)
        return float(np.median(np.diff(begins)))

    return run


def evaluate(arguments: Arguments) -> Run:
    """Rank the catalogue for every user and compute every metric of lists, at several lengths."""
    _threads(arguments)
    given = read_arrays(arguments["file"])
    matrix = given["matrix"]
    users, items = matrix.shape
    features = sparse.csr_matrix(given["features"])
    known = pair_matrix(given["train_user"], given["train_item"], (users, items))

    def run() -> None:
        judged, positives = np.unique(given["test_user"], return_counts=True)
        counts = np.bincount(given["train_item"], minlength=items)
        catalogue = counts > 0
        lists = ranking.top_items(matrix[judged], known[judged], catalogue, max(METRICS_AT), judged, overwrite=True)
        hits = metrics.find_hits(lists, judged, given["test_user"], given["test_item"], items)
        around = Surroundings(counts, users, features)
        found = JudgedLists(judged, lists, hits, positives, catalogue, around)
        for k in METRICS_AT:
            first = found.first(k)
            for metric in LIST_METRICS:
                if metric.needs != "categories":
                    metric.value(first)

    return run


def top(arguments: Arguments) -> Run:
    """Make the lists."""
    _threads(arguments)
    given = read_arrays(arguments["file"])
    known = sparse.csr_matrix(
        (np.ones(len(given["indices"]), np.float32), given["indices"], given["indptr"]),
        shape=(len(given["users"]), len(given["items"])),
    )
    everything, numbers = np.ones(len(given["items"]), dtype=bool), np.arange(len(given["users"]))

    def run() -> None:
        ranking.top_items_by_vectors(given["users"], given["items"], known, everything, arguments["k"], numbers)

    return run


def product(arguments: Arguments) -> Run:
    """Multiply the matrices, block by block into the same memory, with the size of blocks that takes least time."""
    _threads(arguments)
    given = read_arrays(arguments["file"])
    users, items = torch.from_numpy(given["users"]), torch.from_numpy(given["items"]).t()

    def multiply(size: int, rows: int) -> float:
        held = torch.empty(size, items.shape[1])
        begin = time.perf_counter()
        for block in users[:rows].split(size):
            torch.mm(block, items, out=held[: len(block)])
        return time.perf_counter() - begin

    part = min(len(users), 4096)
    sizes = [size for size in (64, 128, 256, 512, 1024) if size <= part]
    multiply(sizes[0], part)
    best = min(sizes, key=lambda size: min(multiply(size, part) for _ in range(3)))
    return lambda: multiply(best, len(users))


def _threads(arguments: Arguments) -> None:
    torch.set_num_threads(arguments["threads"])
    threadpool_limits(limits=arguments["threads"])


if __name__ == "__main__":
    serve({"epoch": epoch, "evaluate": evaluate, "top": top, "product": product})
