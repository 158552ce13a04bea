"""The planted controls: the study finds a gain where tasks are related, and none where they are not.

Every repeat simulates a bookstore, trains both models with their own choice of parameters, compares them over users and
judges, as the study does.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from multitask_recommender.jobs import run_jobs
from multitask_recommender.pipelines.when_multitask_helps.experiment import Cell, run_repeat
from multitask_recommender.pipelines.when_multitask_helps.nodes import judge_repeat
from multitask_recommender.pipelines.when_multitask_helps.parameters import SweepSettings


def sweep(**values: Any) -> SweepSettings:
    training = {"learning_rate": 0.03, "epochs": 20, "batches": 6}
    return SweepSettings.model_validate(
        {
            "relatedness": [0.9],
            "sparsity": [0.8],
            "users": [300],
            "repeats": 10,
            "books": 150,
            "clicks_per_user": 30,
            "store": {"popularity_skew": 0.5, "activity_skew": 0.5, "feature_signal": 0, "taste": 0.9, "dimension": 4},
            "settings": {"dimension": 8, "user_features": False, "item_features": False, "training": training},
            "search": {"penalise": ["identity", "task_vectors"], "penalty": [0.15, 1.0]},
            "seed": 3,
            **values,
        }
    )


def verdicts(settings: SweepSettings) -> Counter[str]:
    """Verdicts on the main metric of the target task, one a repeat, after Holm over the target's metrics."""
    cell = Cell(settings.relatedness[0], settings.sparsity[0], settings.users[0])

    def judged(number: int) -> str:
        rows = judge_repeat(settings, cell, number, run_repeat(settings, cell, number))
        return next(row["verdict"] for row in rows if row["metric"] == "log_loss")

    return Counter(run_jobs(judged, range(settings.repeats), 2, "repeats"))


def test_related_tasks_help_a_sparse_target() -> None:
    assert verdicts(sweep())["helps"] >= 9


def test_unrelated_tasks_do_not_help() -> None:
    assert verdicts(sweep(relatedness=[0.0]))["helps"] <= 1


def test_shuffled_labels_do_not_help() -> None:
    """At most 5 % of 40 repeats, although the true tasks are related."""
    training = {"learning_rate": 0.03, "epochs": 10, "batches": 4}
    found = verdicts(
        sweep(
            repeats=40,
            users=[120],
            books=80,
            clicks_per_user=16,
            auxiliary=["read", "rating"],
            shuffled=True,
            settings={"dimension": 6, "user_features": False, "item_features": False, "training": training},
            search={"penalty": [0.15, 1.0]},
        )
    )
    assert found["helps"] <= 2
