"""Every number of every settings class is finite and bounded; names of models are checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import annotated_types
import numpy as np
import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from conftest import TASKS, Project
from multitask_recommender import pipeline_registry
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.foundation.errors import TrainingError
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.soundness import check_learnt, check_predictions, check_stored
from multitask_recommender.models.stored import StaleModelError
from multitask_recommender.models.variants import VARIANTS

assert pipeline_registry  # Imports all settings classes.
UNBOUNDED = {"minimum", "maximum", "missing_values", "config"}
"""What is compared with the user's own numbers alone, and properties of Spark, which has bounds of its own."""


def classes(of: type[Settings]) -> Iterator[type[Settings]]:
    for own in of.__subclasses__():
        yield own
        yield from classes(own)


def numbers(annotation: Any, limits: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if get_origin(annotation) is Annotated:
        inner, *further = get_args(annotation)
        known = [limit for one in further for limit in (one.metadata if isinstance(one, FieldInfo) else [one])]
        yield from numbers(inner, (*limits, *known))
    elif annotation in (int, float):
        yield limits
    else:
        for part in get_args(annotation):
            yield from numbers(part, limits)


def test_every_number_has_an_upper_bound() -> None:
    without = [
        f"{own.__name__}.{name}"
        for own in classes(Settings)
        if own.__module__.startswith("multitask_recommender")
        for name, field in own.model_fields.items()
        if name not in UNBOUNDED
        for limits in numbers(field.annotation, tuple(field.metadata))
        if not any(isinstance(limit, annotated_types.Le | annotated_types.Lt) for limit in limits)
    ]
    assert without == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ks": [10, 10]}, "twice"),
        ({"ks": [10, 10**9]}, "less than or equal to 10000"),
        ({"ks": [10, True]}, "true"),
        ({"smallest_effect": float("inf")}, "finite"),
        ({"smallest_effect": float("nan")}, "finite"),
        ({"resamples": 10**12}, "resamples"),
    ],
)
def test_what_was_accepted_once_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EvaluationSettings.model_validate({"ks": [10], **changed})


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"dimension": [4, 4]}, "twice"),
        ({"dimension": [*range(1, 130)], "epochs": [1], "training.epochs": [*range(1, 130)]}, "unknown|extra|Extra"),
        ({name: [*range(1, 102)] for name in ("dimension", "training.epochs", "training.batches")}, "combinations"),
    ],
)
def test_searches_that_do_not_end_are_refused(search: dict[str, list[Any]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        VARIANTS["shared_bottom"].parameters.model_validate({"search": search})


def test_parameters_of_unknown_models_are_refused_with_the_nearest(project: Project) -> None:
    result = project.configure(lambda parameters: parameters["models"].update(shared_botom={})).run()
    assert result.returncode != 0
    assert "did you mean 'shared_bottom'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not project.outputs.exists()


def test_numbers_of_models_check_themselves() -> None:
    check_learnt({"a": {"b": np.ones(3)}, "n": np.arange(3)})
    with pytest.raises(TrainingError, match=r"'a/b' holds nan at place \[1\]"):
        check_learnt({"a": {"b": np.array([1.0, np.nan])}})
    with pytest.raises(StaleModelError, match="inf"):
        check_stored({"a": np.array([[np.inf]])}, "weights.safetensors")
    good = {"like": np.array([0.0, 1.0]), "rating": np.array([7.0, -1.0])}
    check_predictions(good, TASKS, ["like", "rating"], "m")
    check_predictions({"like": np.array([2.0])}, TASKS, [], "m")
    with pytest.raises(TrainingError, match=r"1 of 2 probabilities of task 'like'.*1.5.*place 1"):
        check_predictions({"like": np.array([0.5, 1.5])}, TASKS, ["like"], "m")
    with pytest.raises(TrainingError, match=r"1 of 2 predictions of task 'rating'.*nan.*place 0"):
        check_predictions({"rating": np.array([np.nan, 1.0])}, TASKS, [], "m")
