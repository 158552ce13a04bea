"""The planted controls: the study finds a gain where tasks are related, and none where they are not.

Every repeat simulates a bookstore, trains both models with their own choice of parameters, compares them over users and
judges, as the study does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from multitask_recommender.foundation.figure_style import signed
from multitask_recommender.models.variants import Variant
from multitask_recommender.pipelines.when_multitask_helps import experiment
from multitask_recommender.pipelines.when_multitask_helps.experiment import Cell, gains_of_studies, run_repeat, simulate
from multitask_recommender.pipelines.when_multitask_helps.figures import plot_gain_by_relatedness, plot_sweep
from multitask_recommender.pipelines.when_multitask_helps.nodes import COLUMNS, VERDICTS, judge_repeat, run_sweep
from multitask_recommender.pipelines.when_multitask_helps.parameters import SweepSettings


def sweep(**values: Any) -> SweepSettings:
    training = {"learning_rate": 0.03, "epochs": 12, "batches": 6}
    return SweepSettings.model_validate(
        {
            "relatedness": [0.9],
            "sparsity": [0.8],
            "users": [250],
            "repeats": 10,
            "books": 150,
            "clicks_per_user": 30,
            "store": {"popularity_skew": 0.5, "activity_skew": 0.5, "feature_signal": 0, "taste": 0.9, "dimension": 4},
            "settings": {
                "dimension": 8,
                "history_exponent": 0.5,
                "user_features": False,
                "item_features": False,
                "training": training,
            },
            "search": {"penalise": ["identity", "task_vectors"], "penalty": [0.3]},
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

    return Counter(map(judged, range(settings.repeats)))


@pytest.fixture
def joint_models_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the joint model of a repeat once: with both controls it is the same."""
    known: dict[str, Any] = {}
    fit = experiment._fit_and_measure

    def remember(variant: Variant, tasks: list[str], settings: SweepSettings, *others: Any) -> Any:
        if variant is not experiment.MODEL:
            return fit(variant, tasks, settings, *others)
        seed = others[-1]
        key = f"{settings.model_dump_json(exclude={'equal_inputs'})} {seed}"
        if key not in known:
            known[key] = fit(variant, tasks, settings, *others)
        return known[key]

    monkeypatch.setattr(experiment, "_fit_and_measure", remember)


def with_both_controls(**values: Any) -> list[Counter[str]]:
    """Verdicts beside the control with the target's data alone, and beside the one with equal inputs."""
    return [verdicts(sweep(equal_inputs=equal, **values)) for equal in (False, True)]


@pytest.mark.usefixtures("joint_models_once")
def test_related_tasks_help_a_sparse_target_also_with_equal_inputs() -> None:
    alone, equal = with_both_controls()
    assert alone["helps"] >= 9
    assert equal["helps"] >= 8


@pytest.mark.usefixtures("joint_models_once")
def test_unrelated_tasks_do_not_help() -> None:
    assert [found["helps"] <= 1 for found in with_both_controls(relatedness=[0.0])] == [True, True]


@pytest.mark.usefixtures("joint_models_once")
def test_shuffled_labels_do_not_help() -> None:
    """At most 5 % of 40 repeats, although the true tasks are related."""
    training = {"learning_rate": 0.03, "epochs": 10, "batches": 4}
    found = with_both_controls(
        repeats=40,
        users=[120],
        books=80,
        clicks_per_user=16,
        auxiliary=["read", "rating"],
        shuffled=True,
        settings={
            "dimension": 6,
            "history_exponent": 0.5,
            "user_features": False,
            "item_features": False,
            "training": training,
        },
        search={"penalty": [0.15, 1.0]},
    )
    assert [own["helps"] <= 2 for own in found] == [True, True]


def tiny(**values: Any) -> SweepSettings:
    training = {"learning_rate": 0.03, "epochs": 2, "batches": 2}
    small = {"relatedness": [0.0, 0.9], "sparsity": [0.0, 0.5], "users": [40], "repeats": 2, "books": 40}
    towers = {"settings": {"dimension": 4, "training": training}, "search": {"penalty": [0.15]}}
    return sweep(**{**small, **towers, "clicks_per_user": 8, "resamples": 99, "workers": 1, **values})


def test_sweep_table_and_figure() -> None:
    settings = tiny()
    table, repeats = run_sweep(settings)
    assert list(table) == COLUMNS
    assert len(table) == 4 * 2  # log loss and AUC
    assert len(repeats) == len(table) * 2
    assert (table[VERDICTS].sum(axis=1) == settings.repeats).all()
    assert (table["ci_low"] <= table["ci_high"]).all()
    assert (table["p_holm"] >= table["p_value"]).all()
    main = table[table["metric"] == "log_loss"].set_index(["relatedness", "sparsity"])
    # The users of both repeats are pooled: the gain lies between those of the repeats.
    own = repeats[repeats["metric"] == "log_loss"].groupby(["relatedness", "sparsity"])["gain"]
    assert (main["gain"] >= own.min() - 1e-12).all()
    assert (main["gain"] <= own.max() + 1e-12).all()
    texts = [text.get_text() for text in plot_sweep(table).axes[0].texts]
    assert len(texts) == 4
    assert any(f"{signed(100 * main.loc[(0.9, 0.5), 'gain'])} %" in text for text in texts)
    by_relatedness = plot_gain_by_relatedness(table)
    assert len(by_relatedness.axes) == main.index.size // main.groupby(level=[0, 1]).ngroups
    assert "missing" in by_relatedness.get_label()


def test_positive_gain_is_better() -> None:
    settings = tiny()
    cell = Cell(0.9, 0.0, 40)
    repeat = run_repeat(settings, cell, 0)
    users, total, count = repeat.control["log_loss"]
    better = replace(repeat, model={"log_loss": (users, 0.5 * total, count)})
    (row,) = judge_repeat(settings, cell, 0, better)
    assert row["gain"] == pytest.approx(0.5)
    assert row["ci_low"] <= 0.5 <= row["ci_high"]
    assert row["verdict"] == "helps"


def test_gains_of_studies_are_those_of_the_sweeps_own_models_on_data_that_was_not_simulated() -> None:
    def row(dataset: str, task: str, metric: str, model: str = "shared_bottom", control: str = "single_task") -> Any:
        difference = {"rmse": -0.1, "ndcg": 0.05}.get(metric, 0.3)
        ends = {"ci_low": difference - 0.02, "ci_high": difference + 0.03}
        own = {
            "dataset": dataset,
            "split": "random",
            "task": task,
            "metric": metric,
            "model": model,
            "control": control,
        }
        return {**own, "difference": difference, "relative": difference / 0.5, **ends, "verdict": "helps"}

    rows = [
        row("films", "rating", "rmse"),
        row("films", "rating", "ndcg"),  # Chosen by its error.
        row("films", "watch", "ndcg"),
        row("films", "watch", "recall"),
        row("films", "watch", "ndcg", control="single_task_equal_inputs"),
        row("films", "watch", "ndcg", model="mmoe"),
        row("bookstore", "click", "ndcg"),
    ]
    found = gains_of_studies(pd.DataFrame(rows), tiny()).set_index("task")
    assert dict(found["metric"]) == {"rating": "rmse", "watch": "ndcg"}
    # An error that falls by a fifth is a gain of a fifth, and its interval is turned around with it.
    np.testing.assert_allclose(found.loc["rating", ["gain", "ci_low", "ci_high"]].astype(float), [0.2, 0.14, 0.24])
    np.testing.assert_allclose(found.loc["watch", ["gain", "ci_low", "ci_high"]].astype(float), [0.1, 0.06, 0.16])
    assert gains_of_studies(pd.DataFrame(), tiny()).empty


def test_sparsity_thins_the_labels_that_models_learn_from_alone() -> None:
    settings = tiny(clicks_per_user=9)
    full, thin = (simulate(settings, Cell(0.5, share, 40), 1) for share in (0.0, 0.5))
    for place, fewer in ((0, True), (1, True), (2, False)):
        before, after = (~np.isnan(rows[place].labels["purchase"]) for rows in (full, thin))
        assert np.array_equal(full[place].item, thin[place].item)
        assert (after.sum() < 0.7 * before.sum()) == fewer
        assert np.array_equal(full[place].labels["read"], thin[place].labels["read"])


def test_shuffling_moves_training_labels_of_auxiliary_tasks_alone() -> None:
    plain, shuffled = (
        simulate(tiny(auxiliary=["read", "rating"], shuffled=value), Cell(0.9, 0.0, 40), 0) for value in (False, True)
    )
    for task in ("read", "rating"):
        assert not np.array_equal(plain[0].labels[task], shuffled[0].labels[task], equal_nan=True)
        before, after = (np.sort(rows[0].labels[task]) for rows in (plain, shuffled))
        assert np.array_equal(before, after, equal_nan=True)
    for place in range(3):
        assert np.array_equal(plain[place].labels["purchase"], shuffled[place].labels["purchase"], equal_nan=True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"target": "click"}, "label per pair"),
        ({"auxiliary": ["purchase"]}, "different"),
        ({"shuffled": True}, "no labels to shuffle"),
        ({"search": {"penalties": [1.0]}}, "penalties"),
        ({"test_share": 0.9, "validation_share": 0.2}, "no training rows"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sweep(**values)
