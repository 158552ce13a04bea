"""The planted control of experts: gates win where what tasks have to do with each other depends on the reader.

In the bookstore with ``conflict`` purchases and ratings follow the same taste as reading for some readers, and the
opposite for those with a degree. A linear bottom has one relation of the tasks for all; a gate reads the degree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.data.tasks import Task
from multitask_recommender.evaluation.metrics import log_loss
from multitask_recommender.foundation.jobs import single_threaded
from multitask_recommender.models.variants import VARIANTS, with_values
from multitask_recommender.simulation.bookstore import Bookstore, BookstoreSettings

USERS, BOOKS, CLICKS = 400, 250, 50
TASKS = {
    "read": Task(kind="binary", label="read"),
    "purchase": Task(kind="binary", label="purchase"),
    "rating": Task(kind="regression", label="rating", relevant="rating > 3"),
}
GATED: dict[str, dict[str, Any]] = {
    "shared_bottom": {},
    "mmoe": {"experts": 3, "expert_layers": (16,), "gate_layers": (16,)},
    "ple": {"levels": 1, "expert_layers": (16,), "gate_layers": (16,)},
}


def store(seed: int, conflict: bool) -> Bookstore:
    return Bookstore(
        BookstoreSettings(
            users=USERS,
            books=BOOKS,
            interactions=USERS * CLICKS,
            relatedness=1.0,
            taste=1.0,
            noise=0.25,
            dimension=4,
            feature_signal=0.0,
            popularity_skew=0.0,
            activity_skew=0.0,
            conflict=conflict,
            seed=seed,
        )
    )


def losses(seed: int, conflict: bool) -> dict[str, float]:
    """Return model to the mean log loss of both binary tasks on held-out rows."""
    own = store(seed, conflict)
    clicks = own.everything()
    labels = {task: clicks.labels[task] for task in TASKS}
    relevant = {task: np.nan_to_num(label) > 0 for task, label in labels.items()}
    rows = Interactions(clicks.user, clicks.book, labels, relevant)
    held_out = np.random.default_rng(seed).random(len(clicks)) < 0.3
    train, test = rows.where(~held_out), rows.where(held_out)
    degrees = sparse.csr_matrix(np.eye(6, dtype=np.float32)[own.user_features["education"]])
    side = SideInformation(TASKS, USERS, BOOKS, degrees, sparse.csr_matrix((BOOKS, 0), dtype=np.float32))
    training = {"optimiser": "adam", "learning_rate": 0.03, "encoder_rate": 0.1, "expert_rate": 0.2}
    common = {"dimension": 8, "penalty": 0.1, "training": {**training, "epochs": 30, "batches": 6}}
    found = {}
    for name, values in GATED.items():
        settings = with_values(VARIANTS[name].settings(), {**common, **values})
        with single_threaded():
            model = VARIANTS[name].make(settings, TASKS)
            model.fit(train, side, seed=1)
            scores = model.score(Histories(train, degrees).of(np.arange(USERS)))
        each = [log_loss(test.labels[task], scores[task][test.user, test.item]) for task in ("read", "purchase")]
        found[name] = float(np.mean(each))
    return found


def test_utilities_turn_around_for_readers_with_a_degree() -> None:
    plain, turned = store(3, False), store(3, True)
    users = np.arange(USERS)
    degree = plain.user_features["education"] >= 3
    for task, conflicts in (("click", False), ("read", False), ("rating", True), ("purchase", True)):
        one, other = (own.truth.utilities(task, users) for own in (plain, turned))
        assert np.array_equal(one[~degree], other[~degree])
        assert np.allclose(one[degree], (-1 if conflicts else 1) * other[degree], atol=1e-6)
    assert 0.3 < degree.mean() < 0.6


@pytest.mark.parametrize("seed", [0, 1])
def test_gates_win_where_tasks_conflict_for_some_readers(seed: int) -> None:
    found = losses(seed, conflict=True)
    assert found["mmoe"] < 0.99 * found["shared_bottom"]
    assert found["ple"] < 0.99 * found["shared_bottom"]


def test_gates_win_nothing_where_tasks_agree() -> None:
    found = losses(0, conflict=False)
    assert found["shared_bottom"] < min(found["mmoe"], found["ple"])
