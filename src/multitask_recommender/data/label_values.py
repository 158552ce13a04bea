"""Label expressions on plain numbers: what ``label_expressions`` builds for tables, computed for one row.

It needs no engine, so that a request of one visitor can be labelled at once. Texts come from a data set that was fitted
on: what may stand in them was checked there.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from multitask_recommender.data.tasks import Task
from multitask_recommender.foundation.errors import SettingsError

Value = bool | int | float | str | None
"""None is a missing value, as null in a table: what is computed from it is missing, too."""


def _without_missing(function: Callable[..., Value]) -> Callable[..., Value]:
    def known(*values: Value) -> Value:
        return None if None in values else function(*values)

    return known


def _all(*values: Value) -> Value:
    """And of three values: no, where one is no, even if others are missing."""
    return False if any(v is not None and not v for v in values) else None if None in values else True


_OPERATORS: dict[type[ast.AST], Callable[..., Value]] = {
    ast.Not: _without_missing(operator.not_),
    ast.USub: _without_missing(operator.neg),
    ast.Add: _without_missing(operator.add),
    ast.Sub: _without_missing(operator.sub),
    ast.Mult: _without_missing(operator.mul),
    ast.Div: _without_missing(lambda left, right: None if right == 0 else left / right),
    ast.Eq: _without_missing(operator.eq),
    ast.NotEq: _without_missing(operator.ne),
    ast.Lt: _without_missing(operator.lt),
    ast.LtE: _without_missing(operator.le),
    ast.Gt: _without_missing(operator.gt),
    ast.GtE: _without_missing(operator.ge),
    ast.And: _all,
    ast.Or: lambda *values: _OPERATORS[ast.Not](_all(*map(_OPERATORS[ast.Not], values))),
}
_FUNCTIONS: dict[str, Callable[..., Value]] = {
    "log": _without_missing(lambda value: math.log(value) if value > 0 else None),
    "log1p": _without_missing(lambda value: math.log(value + 1) if value > -1 else None),
    "exp": _without_missing(lambda value: math.exp(value) if value < 700 else None),
    "abs": _without_missing(abs),
    "min": _without_missing(min),
    "max": _without_missing(max),
    "is_missing": lambda value: value is None,
}
_QUOTED = re.compile("`([^`]*)`")


def evaluate_on_values(text: str, values: Mapping[str, Value]) -> Value:
    """Compute a label expression.

    Args:
        text: The expression, for example ``rating >= 4``.
        values: Name of a column to its value; a column without a value is missing.

    Raises:
        SettingsError: If the text is not such an expression.
    """
    # A name between backticks may hold anything, so it is exchanged for a word first.
    names = {f"name_{number}": name for number, name in enumerate(dict.fromkeys(_QUOTED.findall(text)))}
    words = {name: word for word, name in names.items()}
    plain = _QUOTED.sub(lambda match: words[match[1]], " ".join(text.split()))
    known = {**values, **{word: values.get(name) for word, name in names.items()}}
    try:
        return _value(ast.parse(plain, mode="eval").body, known)
    except (SyntaxError, KeyError, TypeError) as error:
        raise SettingsError(
            f"'{text}' cannot be computed on single values: {error}.\n  where: a label expression of the data set\n"
            "  what to do: give the labels of the tasks themselves."
        ) from error


def _value(node: ast.expr, values: Mapping[str, Value]) -> Value:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as constant):
            return constant
        case ast.Name():
            return values.get(node.id)
        case ast.UnaryOp():
            return _OPERATORS[type(node.op)](_value(node.operand, values))
        case ast.BinOp():
            return _OPERATORS[type(node.op)](_value(node.left, values), _value(node.right, values))
        case ast.BoolOp():
            return _OPERATORS[type(node.op)](*[_value(part, values) for part in node.values])
        case ast.Compare():
            sides = [_value(side, values) for side in (node.left, *node.comparators)]
            pairs = zip(node.ops, sides[:-1], sides[1:], strict=True)
            return _all(*[_OPERATORS[type(op)](left, right) for op, left, right in pairs])
        case ast.Call(func=ast.Name(id=name), keywords=[]):
            return _FUNCTIONS[name](*[_value(part, values) for part in node.args])
    raise TypeError(f"'{ast.unparse(node)}' is unknown")


def label_values(signals: Mapping[str, float], given: Mapping[str, float], tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Compute the labels of one event, as ``label_interactions`` does for a table.

    A task without what its expression needs has no label, save that a retrieval task which comes after no other counts
    the event as positive: that there is an event says so.

    Args:
        signals: Signal to its value, those that are known.
        given: Task to its label, where it is given itself; goes before what the signals say.
        tasks: The tasks by name.

    Returns:
        Task to its label, NaN where there is none, and ``relevant_<task>``.
    """
    # Where a label is a signal as it stands, the one is the other.
    known: dict[str, Value] = {
        task.label: given[name]
        for name, task in tasks.items()
        if name in given and task.label is not None and task.label.isidentifier()
    }
    known |= signals
    result: dict[str, Any] = {}
    for name, task in tasks.items():
        label: Value = given.get(name)
        if label is None:
            label = 1.0 if task.label is None else evaluate_on_values(task.label, known)
            if task.asked is not None and not evaluate_on_values(task.asked, known):
                label = None
            elif label is None and task.kind == "retrieval" and task.after is None:
                label = 1.0
        number = math.nan if label is None else float(label)
        relevant = number > 0
        if task.kind == "retrieval":
            number = 1.0 if relevant else math.nan
        elif task.kind == "regression" and task.relevant is not None:
            relevant = not math.isnan(number) and bool(evaluate_on_values(task.relevant, known))
        result |= {name: number, f"relevant_{name}": relevant}
    return result
