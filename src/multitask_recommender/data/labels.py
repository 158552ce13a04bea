"""Labels of the tasks on every interaction, and the checks that something can be learnt of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.data.label_expressions import LabelExpression, parse_label_expression
from multitask_recommender.data.tables import refuse_rows
from multitask_recommender.data.tasks import Task, funnel_chain
from multitask_recommender.foundation.errors import SettingsError

_LARGEST = float(np.finfo(np.float32).max)
_KEPT = ("row", "user", "item", "item_id", "timestamp", "time", "given_part")


@dataclass(frozen=True)
class _TaskLabels:
    """What the expressions of one task make of the interactions.

    Attributes:
        parsed: The expressions by their place in the task: ``label``, ``asked`` and ``relevant``, if it has them.
        asked: Whether the question was asked.
        value: The number that ``label`` stands for, where the question was asked; null elsewhere.
        relevant: What ``relevant`` says, of a regression task; null otherwise.
    """

    parsed: dict[str, LabelExpression]
    asked: ir.BooleanValue
    value: ir.NumericValue
    relevant: ir.BooleanValue | None


def _task_labels(table: ir.Table, name: str, task: Task) -> _TaskLabels:
    texts = {place: getattr(task, place) for place in ("asked", "label", "relevant")}
    parsed = {
        place: parse_label_expression(text, table, f"dataset.tasks.{name}.{place}")
        for place, text in texts.items()
        if text is not None
    }
    asked = parsed["asked"].truth().fill_null(False) if "asked" in parsed else table.row.notnull()
    # Made from columns: a bare literal such as 1.0 would be stored as a decimal number.
    value = parsed["label"].number() if "label" in parsed else table.row.notnull().cast("float64")
    relevant = parsed["relevant"].truth() if task.kind == "regression" and "relevant" in parsed else None
    return _TaskLabels(parsed, asked, asked.ifelse(value, None), relevant)


def _contradictions(
    values: dict[str, ir.NumericValue], tasks: dict[str, Task], first: dict[str, ir.NumericValue] | None = None
) -> Iterator[tuple[str, str, ir.BooleanValue]]:
    """Where a task is positive and the task before it is not: (task, task before, where), the last steps first.

    Between two of them, ``values`` changes: where contradictions imply the step before, it becomes 1.

    Args:
        values: Task to its labels.
        tasks: The tasks by name.
        first: Where rows are events, task to the time of the first positive event of the row's pair, infinite without
            one: the step before has to be positive at that time or earlier, in a row of its own. None: rows are pairs.
    """
    for name in sorted(tasks, key=lambda name: -len(funnel_chain(tasks, name))):
        before = tasks[name].after
        if before is None or tasks[before].kind == "regression":
            continue
        if first is None:
            wrong = ((values[name] > 0) & (values[before] <= 0)).fill_null(False)
        else:
            wrong = ((values[name] > 0) & (first[before] > first[_OWN_TIME])).fill_null(False)
        yield name, before, wrong
        if tasks[name].contradictions == "imply":
            values[before] = wrong.ifelse(1.0, values[before])
            if first is not None:
                first[before] = ibis.least(first[before], first[name])


_OWN_TIME = ""
"""Stands in the place of a task for the time of the row itself."""


def _with_first_times(
    interactions: ir.Table, dataset: DatasetSettings
) -> tuple[ir.Table, dict[str, ir.NumericValue] | None]:
    """Add when every task was positive first for the pair of a row, where rows are events.

    Returns:
        The interactions, and task to the time (see :func:`_contradictions`); None where rows are pairs.
    """
    if not dataset.interactions.keeps_events or not any(task.after for task in dataset.tasks.values()):
        return interactions, None
    found = {name: _task_labels(interactions, name, task).value for name, task in dataset.tasks.items()}
    time = interactions.timestamp.fill_null(0.0).cast("float64")
    events = interactions.select(
        "user", "item", **{f"at_{n}": (value > 0).ifelse(time, None) for n, value in enumerate(found.values())}
    )
    pairs = events.group_by("user", "item").aggregate(
        **{f"first_{n}": events[f"at_{n}"].min().fill_null(math.inf) for n in range(len(found))}
    )
    joined = interactions.inner_join(pairs, ["user", "item"]).cache()
    times: dict[str, ir.NumericValue] = {name: joined[f"first_{n}"] for n, name in enumerate(found)}
    return joined, {**times, _OWN_TIME: joined.timestamp.fill_null(0.0).cast("float64")}


def label_interactions(interactions: ir.Table, dataset: DatasetSettings) -> ir.Table:
    """Compute the label of every task on every interaction.

    Returns:
        Table (row, user, item, timestamp, time, given_part, item_id, a float64 column per task, ``relevant_<task>``):
        null where the task does not ask.
    """
    interactions, first = _with_first_times(interactions, dataset)
    found = {name: _task_labels(interactions, name, task) for name, task in dataset.tasks.items()}
    values = {name: own.value for name, own in found.items()}
    for _ in _contradictions(values, dataset.tasks, first):
        pass
    # In one step, because a task may carry the name of the signal that it and others are made from, such as ``rating``.
    labels, relevance = {}, {}
    for name, task in dataset.tasks.items():
        value, relevant = values[name], found[name].relevant
        labels[name] = (value > 0).cast("float64").nullif(0) if task.kind == "retrieval" else value
        is_relevant = value > 0 if relevant is None else value.notnull() & relevant
        relevance[f"relevant_{name}"] = is_relevant.fill_null(False)
    kept = [name for name in _KEPT if name in interactions.columns]
    return interactions.select(*kept, **labels, **relevance).order_by("row")


def settle_contradictions(
    interactions: ir.Table, dataset: DatasetSettings
) -> tuple[ir.Table, list[tuple[str, str, int]]]:
    """Handle the rows that are positive in a task but not in the task that it comes ``after``, as the task declares.

    Returns:
        The interactions that are left, and what was done: (table, reason, rows).

    Raises:
        DataError: If there are such rows and the task refuses them.
    """
    columns_before = interactions.columns
    interactions, first = _with_first_times(interactions, dataset)
    found = {name: _task_labels(interactions, name, task) for name, task in dataset.tasks.items()}
    values = {name: own.value for name, own in found.items()}
    kept = interactions.row.notnull()
    done = []
    for name, before, contradicts in _contradictions(values, dataset.tasks, first):
        wrong = contradicts & kept
        handling = dataset.tasks[name].contradictions
        what = f"'{name}' is positive and '{before}', which it comes after, is not"
        what += " by then" if first is not None else ""
        if handling == "refuse":
            columns = [column for own in (name, before) for column in _columns(found[own].parsed)]
            _refuse(
                interactions,
                wrong,
                columns,
                f"The labels contradict the funnel: {what}.",
                f"correct the rows or the labels, or set 'dataset.tasks.{name}.contradictions' to drop such rows, to "
                f"imply (they count for '{before}' too) or to keep them as they are.",
            )
        count = int(interactions.filter(wrong).count().execute())
        if count:
            effect = {"drop": "the row is dropped", "imply": f"'{before}' set to 1", "keep": "kept as it is"}[handling]
            done.append(("raw_interactions", f"{what}: {effect}", count))
        if handling == "drop":
            kept = kept & ~contradicts
    if any("dropped" in reason for _, reason, _ in done):
        interactions = interactions.filter(kept)
    return interactions.select(columns_before), done


def _columns(parsed: dict[str, LabelExpression]) -> list[str]:
    return parsed["label"].columns if "label" in parsed else []


def _refuse(table: ir.Table, wrong: ir.BooleanValue, columns: list[str], problem: str, remedy: str) -> None:
    """Raise a DataError that shows the values of some columns in the rows where ``wrong`` holds, if there are any."""
    shown = [
        ibis.literal(f"{column}: ") + table[column].cast("string").fill_null("none")
        for column in dict.fromkeys(columns)
    ]
    values = ibis.literal(", ").join(shown) if shown else ibis.literal("")
    rows = table.filter(wrong).select("row", value_=values)
    refuse_rows(rows, "raw_interactions", None, problem, remedy, value="value_" if shown else None)


def _faults(table: ir.Table, dataset: DatasetSettings) -> Iterator[tuple[ir.BooleanValue, list[str], str, str]]:
    """Rows on which an expression has no meaning: (where, columns to show, problem, remedy)."""
    for name, task in dataset.tasks.items():
        own = _task_labels(table, name, task)
        for place, expression in own.parsed.items():
            says = f"'{expression.key}: {expression.text}'"
            for part, number in expression.flags.items():
                yield (
                    number.notnull() & (number != 0) & (number != 1),
                    expression.columns,
                    f"{says} takes '{part}' for yes or no, and it is not always 0 or 1.",
                    f"compare it with something in '{expression.key}', such as {part} > 0.",
                )
            if not expression.columns:
                continue
            asked = {"label": own.asked, "relevant": own.value.notnull()}.get(place, table.row.notnull())
            given = ibis.and_(*[table[column].notnull() for column in expression.columns])
            value = expression.number()
            undefined = value.isnull() | value.isnan() | (value.abs() > _LARGEST)
            yield (
                asked & given & undefined.fill_null(True),
                expression.columns,
                f"{says} is not a finite number, as in a division by zero.",
                "say on which rows the question is asked in "
                f"'dataset.tasks.{name}.asked', such as a divisor that is not 0, or correct the expression.",
            )


def check_labels(interactions: ir.Table, dataset: DatasetSettings) -> None:
    """Refuse labels that are not defined on a row, and a task that nothing can be learnt of.

    Raises:
        DataError: If an expression is not a finite number on a row that has its columns, or takes a number other than
            0 and 1 for yes or no.
        SettingsError: If an expression cannot be read, or a task has no label, one class or one number alone.
    """
    faults = list(_faults(interactions, dataset))
    if faults:
        counts = interactions.aggregate(**{str(n): fault[0].sum() for n, fault in enumerate(faults)}).execute().iloc[0]
        for number, fault in enumerate(faults):
            if counts[str(number)] > 0:
                _refuse(interactions, *fault)
    labelled = label_interactions(interactions, dataset)
    measures: dict[str, ir.Value] = {}
    for number, name in enumerate(dataset.tasks):
        label = labelled[name]
        measures |= {f"low_{number}": label.min(), f"high_{number}": label.max()}
        measures[f"other_{number}"] = ((label != 0) & (label != 1)).sum()
    found = labelled.aggregate(**measures).execute().iloc[0]
    for number, (name, task) in enumerate(dataset.tasks.items()):
        low, high, other = (found[f"{what}_{number}"] for what in ("low", "high", "other"))
        if pd.isna(low):
            problem = "no interaction has a label"
        elif task.kind == "binary" and (low == high or other > 0):
            problem = f"the labels must be both 0 and 1, and they range from {low:g} to {high:g}"
            problem += f" ({other:.0f} are neither)" if other > 0 else ""
        elif task.kind == "regression" and np.float32(low) == np.float32(high):
            problem = f"the label is {low:g} on every interaction that has one"
        else:
            continue
        raise SettingsError(
            f"The task '{name}' cannot be learnt: {problem}.\n  where: 'dataset.tasks.{name}.label'\n"
            "  what to do: correct the expression, or remove the task."
        )


def check_parts(training: ir.Table, test: ir.Table, dataset: DatasetSettings) -> None:
    """Refuse a task that nothing can be learnt of in the training rows of a split, and splits that measure nothing.

    Args:
        training: Training rows of all splits.
        test: Test rows of all splits.
        dataset: The tasks.

    Raises:
        SettingsError: If a task has no label, one class or one number alone in the training rows of a split, or no
            task has a label in the test rows of any split.
    """
    measures: dict[str, ir.Value] = {}
    for number, name in enumerate(dataset.tasks):
        measures |= {f"low_{number}": training[name].min(), f"high_{number}": training[name].max()}
    found = training.group_by("split").aggregate(**measures).order_by("split").execute()
    for _, row in found.iterrows():
        for number, (name, task) in enumerate(dataset.tasks.items()):
            low, high = row[f"low_{number}"], row[f"high_{number}"]
            if pd.isna(low):
                problem = "none of its training rows has a label"
            elif task.kind != "retrieval" and np.float32(low) == np.float32(high):
                problem = f"the label is {low:g} on every training row that has one"
            else:
                continue
            raise SettingsError(
                f"The task '{name}' cannot be learnt on the {row['split']} split: {problem}.\n"
                f"  where: 'dataset.tasks.{name}.label'\n"
                "  what to do: correct the expression, choose other shares in 'splits', remove the split from "
                "'splits.strategies', or remove the task."
            )
    if not test.aggregate(any=ibis.or_(*[test[name].notnull() for name in dataset.tasks]).any()).execute().iloc[0, 0]:
        raise SettingsError(
            "Nothing can be measured: no test row of any split has a label.\n  where: 'dataset.tasks'\n"
            "  what to do: correct the labels, or choose other shares or strategies in 'splits'."
        )
