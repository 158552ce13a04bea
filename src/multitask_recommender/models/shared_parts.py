"""Slow parts that several models have in common are fitted once, see ``Recommender.slow_parts``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from multitask_recommender.data.digests import digest_arrays, digest_rows
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.foundation.errors import TrainingError
from multitask_recommender.foundation.jobs import run_jobs
from multitask_recommender.foundation.measuring import measured
from multitask_recommender.models.recommender import FittedPart, Part, Recommender
from multitask_recommender.models.state import State, size

_KEPT_NUMBERS = 2**26
"""Most numbers in the states that a run keeps for the models that follow."""


class Wanted(NamedTuple):
    """A model that is about to be fitted.

    Attributes:
        model: It.
        train: The rows it will be fitted on.
        side: What it may know beside them.
        seed: Seed of its slow parts. It is not the model's own, so that all models with the same part share it.
    """

    model: Recommender
    train: Interactions
    side: SideInformation
    seed: int


class _Job(NamedTuple):
    part: Part
    train: Interactions
    side: SideInformation
    seed: int


_fitted: dict[str, FittedPart] = {}


def fit_slow_parts(wanted: Sequence[Wanted], workers: int | None, title: str) -> list[dict[str, FittedPart]]:
    """Fit the slow parts of some models, each once, unless a model before them had the same.

    Args:
        wanted: The models.
        workers: Processes at the same time; None: as many as there are cores.
        title: What the progress bar says.

    Returns:
        For each model the parts by their names, see ``Recommender.take_parts``.

    Raises:
        TrainingError: If a part diverges; says in what.
    """
    jobs: dict[str, _Job] = {}
    keys: list[dict[str, str]] = []
    data: dict[tuple[int, int, int, tuple[str, ...]], str] = {}
    for model, train, side, seed in wanted:
        own: dict[str, str] = {}
        for name, part in model.slow_parts(side).items():
            seen = id(train), id(side.user_features), id(side.item_features), tuple(part.tasks)
            rows, known = train.with_tasks(part.tasks), side.with_tasks(part.tasks)
            if seen not in data:
                data[seen] = _digest(rows, known)
            own[name] = f"{name} {known.tasks} {data[seen]} {seed}"
            jobs.setdefault(own[name], _Job(part, rows, known, seed))
        keys.append(own)
    # Those that are there stay jobs: what a killed run kept of its jobs is told apart by their order.
    todo = [_fitted.get(key, job) for key, job in jobs.items()]
    efforts = [job.part.recommender.effort * len(job.train) if isinstance(job, _Job) else 0.0 for job in todo]
    waiting = sum(effort > 0 for effort in efforts)
    try:
        results = run_jobs(_fit, todo, workers if waiting > 1 else 1, title, efforts) if todo else []
    except TrainingError as error:
        raise error.within(title) from error
    fitted = {key: FittedPart(*result) for key, result in zip(jobs, results, strict=True)}
    _keep(fitted)
    return [{name: fitted[key] for name, key in own.items()} for own in keys]


def _digest(rows: Interactions, side: SideInformation) -> str:
    times = [] if rows.time is None else [rows.time]
    return " ".join([*digest_rows(rows, side).values(), digest_arrays(times)])


def _fit(job: _Job | FittedPart) -> tuple[State, list[dict[str, float]], float, float]:
    if isinstance(job, FittedPart):
        return job.state, job.epochs, job.seconds, job.peak_mb
    recommender = job.part.recommender
    with measured() as cost:
        curve = recommender.fit(job.train, job.side, job.seed)
    return recommender.state(), curve.epochs, cost.seconds, cost.peak_mb


def _keep(fitted: dict[str, FittedPart]) -> None:
    """Keep what was fitted, and of what was kept before so much as has room."""
    for key, part in fitted.items():
        _fitted.pop(key, None)
        _fitted[key] = part  # The last one asked for is the last in the order.
    numbers = {key: size(part.state) for key, part in _fitted.items()}
    total = sum(numbers.values())
    for key in list(_fitted):
        if total <= _KEPT_NUMBERS:
            break
        total -= numbers[key]
        del _fitted[key]
