"""Numbers of models that check themselves: what was learnt, stored and predicted is finite, and of the right shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from multitask_recommender.data.tasks import Task
from multitask_recommender.foundation.errors import TrainingError
from multitask_recommender.models.state import State
from multitask_recommender.models.stored import StaleModelError, flatten


def first_not_finite(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Return the name of the first array with a number that is not finite, with the number and its place; or None."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            place = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
            return f"'{name}' holds {array[place]} at place {list(place)}"
    return None


def check_learnt(state: State) -> None:
    """Refuse what a model learnt if not all of it is finite.

    Raises:
        TrainingError: Names the array and the place in it.
    """
    found = first_not_finite(flatten(state))
    if found is not None:
        raise TrainingError(
            f"What was learnt is no number: {found}.",
            "lower the model's learning rate or raise its penalty, or check labels and features for extreme values.",
        )


def check_stored(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse arrays of a model file if not all of them are finite.

    Raises:
        StaleModelError: Names the array and the place in it.
    """
    found = first_not_finite(arrays)
    if found is not None:
        raise StaleModelError(
            f"The model file holds something that is no number: {found}.\n"
            f"  where: {where}\n  what to do: fit the model again."
        )


def check_scores(scores: Mapping[str, np.ndarray], shape: tuple[int, int], model: str, where: str) -> None:
    """Refuse scores of another shape than (queries, items), which come of weights that belong to something else.

    Raises:
        StaleModelError: Names the task.
    """
    for task, values in scores.items():
        if values.shape != shape:
            raise StaleModelError(
                f"The stored weights of model '{model}' do not fit: they score {list(values.shape)} for task '{task}' "
                f"where {list(shape)} are asked for.\n  where: {where}\n  what to do: fit the model again."
            )


def check_predictions(
    predicted: Mapping[str, np.ndarray], tasks: Mapping[str, Task], probabilities: Iterable[str], where: str
) -> None:
    """Refuse predictions that are no numbers, and probabilities that are none.

    Args:
        predicted: Task to (n,) predictions.
        tasks: The tasks by name.
        probabilities: Those whose predictions are probabilities.
        where: Model, split and seed number.

    Raises:
        TrainingError: Names the task and the first offending place.
    """
    remedy = "fit the model again with a lower learning rate or a higher penalty; if it comes again, report it."
    likely = set(probabilities)
    for task, values in predicted.items():
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise TrainingError(
                f"{len(wrong)} of {len(values)} predictions of task '{task}' are no finite numbers, the first of them "
                f"({values[wrong[0]]}) at place {wrong[0]}.",
                remedy,
                where,
            )
        if task in likely and tasks[task].kind == "binary":
            wrong = np.flatnonzero((values < 0) | (values > 1))
            if len(wrong):
                raise TrainingError(
                    f"{len(wrong)} of {len(values)} probabilities of task '{task}' lie outside 0 to 1, the first of "
                    f"them ({values[wrong[0]]}) at place {wrong[0]}.",
                    remedy,
                    where,
                )
