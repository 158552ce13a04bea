"""One repeat of the experiment: simulate a bookstore, train with and without the other tasks, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import sparse

from multitask_recommender.data.interactions import FloatArray, Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.data.tasks import Task
from multitask_recommender.evaluation.cross_validation import candidates
from multitask_recommender.evaluation.metric_records import METRICS, ROW_METRICS, RowMetric, ScoredRows, Totals
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.models.variants import VARIANTS, Variant
from multitask_recommender.pipelines.when_multitask_helps.parameters import SweepSettings
from multitask_recommender.simulation.bookstore import Bookstore, BookstoreSettings, Sparsity

CONTROLS = {False: VARIANTS["single_task"], True: VARIANTS["single_task_equal_inputs"]}
"""Whether inputs are equal, to the control."""
MODEL = VARIANTS["shared_bottom"]
TASKS = {
    "click": Task(kind="retrieval"),
    "read": Task(kind="binary", label="read"),
    "rating": Task(kind="regression", label="rating", relevant="rating >= 4"),
    "purchase": Task(kind="binary", label="purchase"),
}

_SIMULATED = ("tiny", "bookstore", "bookstore-visits")
"""Names of data sets whose truth is known."""
MetricTotals = dict[str, Totals]
"""Metric to users (ascending), their totals and their counts."""


def main_metric(task: str) -> RowMetric:
    """Return the metric by which both models choose their parameters, and the gain on a task is mapped."""
    return next(metric for metric in ROW_METRICS if TASKS[task].kind in metric.chooses)


@dataclass(frozen=True)
class Cell:
    """A combination of the sweep.

    Attributes:
        relatedness: rho.
        sparsity: Share of the target's training labels that are missing.
        users: Number of readers.
    """

    relatedness: float
    sparsity: float
    users: int


@dataclass(frozen=True)
class Repeat:
    """What one repeat gave.

    Attributes:
        labels: Number of training labels of the target task.
        control: The single-task control's totals per metric.
        model: The multi-task model's.
        chosen: The parameters that the control and the model chose.
    """

    labels: int
    control: MetricTotals
    model: MetricTotals
    chosen: tuple[dict[str, object], dict[str, object]]


def simulate(
    settings: SweepSettings, cell: Cell, repeat: int
) -> tuple[Interactions, Interactions, Interactions, SideInformation]:
    """Simulate a bookstore and divide its clicks at random.

    Labels of the target task are missing from the training and validation rows alone: the test rows measure the same
    at every sparsity. Bookstores of the same repeat and size share their random numbers.

    Returns:
        Training, validation and test rows; tasks and sizes, without features.
    """
    store = BookstoreSettings(
        **settings.store.model_dump(),
        users=cell.users,
        books=settings.books,
        interactions=cell.users * settings.clicks_per_user,
        relatedness=cell.relatedness,
        sparsity=Sparsity(**{settings.target: cell.sparsity}),
        seed=derive_seed(settings.seed, "sweep", cell.users, repeat),
    )
    thinned = Bookstore(store).everything()
    complete = Bookstore(store.model_copy(update={"sparsity": Sparsity()})).everything()
    random = np.random.default_rng(derive_seed(settings.seed, "sweep split", cell.users, repeat))
    place = random.random(len(thinned))
    test = place < settings.test_share
    validation = ~test & (place < settings.test_share + settings.validation_share)
    names: list[str] = [*settings.auxiliary, settings.target]
    rows = []
    for chunk, part in ((thinned, ~test & ~validation), (thinned, validation), (complete, test)):
        labels = {"click": np.ones(len(chunk), np.float32), **chunk.labels}
        relevant = {task: labels[task] >= (4 if task == "rating" else 1) for task in names}
        rows.append(Interactions(chunk.user, chunk.book, {t: labels[t] for t in names}, relevant).where(part))
    if settings.shuffled:
        rows[0] = _with_shuffled_labels(rows[0], settings.auxiliary, random)
    side = SideInformation(
        tasks={task: TASKS[task] for task in names},
        users=cell.users,
        items=settings.books,
        user_features=sparse.csr_matrix((cell.users, 0), dtype=np.float32),
        item_features=sparse.csr_matrix((settings.books, 0), dtype=np.float32),
    )
    return rows[0], rows[1], rows[2], side


def _with_shuffled_labels(rows: Interactions, tasks: Sequence[str], random: np.random.Generator) -> Interactions:
    """Permute the labels of some tasks among the rows that have one."""
    labels = dict(rows.labels)
    for task in tasks:
        asked = ~np.isnan(labels[task])
        labels[task] = labels[task].copy()
        labels[task][asked] = random.permutation(labels[task][asked])
    return replace(rows, labels=labels)


def _scored(score: FloatArray, rows: Interactions, target: str) -> ScoredRows:
    """Rows that have a label of the target, with the scores of a model (users, items)."""
    label = rows.labels[target]
    return ScoredRows(rows.user, rows.item, label, score[rows.user, rows.item]).where(~np.isnan(label))


def _target_totals(score: FloatArray, rows: Interactions, target: str) -> MetricTotals:
    own = _scored(score, rows, target)
    totals = {metric.name: metric.totals(own) for metric in ROW_METRICS if TASKS[target].kind in metric.compared}
    return {name: total for name, total in totals.items() if total is not None and len(total[0])}


def _fit_and_measure(
    variant: Variant,
    tasks: list[str],
    settings: SweepSettings,
    rows: tuple[Interactions, Interactions, Interactions],
    side: SideInformation,
    seed: int,
) -> tuple[MetricTotals, dict[str, object]]:
    """Fit every candidate, keep the one with the smallest validation error on the target, measure it on the test."""
    train, validation, test = rows
    own = train if variant.equal_inputs else train.with_tasks(tasks)
    own_side = side.with_tasks(tasks, variant.equal_inputs)
    metric = main_metric(settings.target)
    best: tuple[float, FloatArray, dict[str, object]] | None = None
    for values in candidates(settings.search, 2**10, 0):
        model = variant.make(settings.towers.with_values(values), own_side.tasks)
        model.fit(own, own_side, seed)
        histories = Histories(own, own_side.user_features)
        score = model.score(histories.of(np.arange(side.users)))[settings.target]
        value = metric.value(_scored(score, validation, settings.target))
        if best is None or value < best[0]:
            best = value, score, values
    assert best is not None
    return _target_totals(best[1], test, settings.target), best[2]


def run_repeat(settings: SweepSettings, cell: Cell, repeat: int) -> Repeat:
    """Train the control on the target task alone and the model on all tasks, and measure both on the test rows."""
    train, validation, test, side = simulate(settings, cell, repeat)
    rows = (train, validation, test)
    seed = derive_seed(settings.seed, "sweep fit", cell.users, repeat)
    alone = CONTROLS[settings.equal_inputs]
    control, control_values = _fit_and_measure(alone, [settings.target], settings, rows, side, seed)
    model, model_values = _fit_and_measure(MODEL, list(side.tasks), settings, rows, side, seed)
    labels = int((~np.isnan(train.labels[settings.target])).sum())
    return Repeat(labels, control, model, (control_values, model_values))


def gains_of_studies(comparisons: pd.DataFrame, settings: SweepSettings) -> pd.DataFrame:
    """Return the gains of the sweep's two architectures in studies of data sets that were not simulated.

    Args:
        comparisons: Comparisons of any number of studies; one without rows may lack columns.
        settings: Says which control is meant.

    Returns:
        Table (dataset, split, task, metric, gain, ci_low, ci_high, verdict): one metric a task, that by which
        parameters are chosen where the task has a label per pair, else NDCG. The gain is relative; positive is better.
    """
    columns = ["dataset", "split", "task", "metric", "gain", "ci_low", "ci_high", "verdict"]
    if not len(comparisons):
        return pd.DataFrame(columns=columns)
    pair = (comparisons["model"] == MODEL.name) & (comparisons["control"] == CONTROLS[settings.equal_inputs].name)
    own = comparisons[pair & ~comparisons["dataset"].isin(_SIMULATED)]
    errors = [metric.name for metric in ROW_METRICS if metric.chooses]
    pointwise = set(own.loc[own["metric"].isin(errors), ["dataset", "task"]].itertuples(index=False, name=None))
    keys = zip(own["dataset"], own["task"], own["metric"], strict=True)
    kept = [m in errors or (m == "ndcg" and (d, t) not in pointwise) for d, t, m in keys]
    shown = own[np.array(kept, dtype=bool)]
    sign = shown["metric"].map(lambda name: METRICS[name].sign).to_numpy(float)
    base = (shown["difference"] / shown["relative"]).abs().to_numpy(float)
    ends = np.sort(np.stack([sign * shown["ci_low"] / base, sign * shown["ci_high"] / base]), axis=0)
    return shown.assign(gain=sign * shown["relative"], ci_low=ends[0], ci_high=ends[1])[columns].reset_index(drop=True)
