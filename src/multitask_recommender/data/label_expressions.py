"""Label expressions of the configuration, such as ``rating >= 4``, turned into Ibis expressions.

The text is parsed, never executed: only comparisons, arithmetic, ``and`` / ``or`` / ``not``, numbers, strings
and the names of columns are known.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

import ibis
import ibis.expr.types as ir

from multitask_recommender.foundation.errors import SettingsError

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def evaluate_label_expression(text: str, table: ir.Table, key: str) -> ir.Value:
    """Build the Ibis expression that ``text`` describes over the columns of ``table``.

    Args:
        text: The expression, for example ``rating >= 4 and rating < 6``.
        table: The table whose columns the names stand for.
        key: The configuration key that holds the text, for the error message.

    Returns:
        A boolean or numeric column of ``table``.

    Raises:
        SettingsError: If the text is not such an expression or names an unknown column.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise SettingsError(f"'{key}: {text}' is not an expression: {error.msg}.") from error
    return _build(tree, table, text, key)


def _build(node: ast.expr, table: ir.Table, text: str, key: str) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            return ibis.literal(node.value)
        case ast.Name():
            if node.id not in table.columns:
                raise SettingsError(
                    f"'{key}: {text}' names the column '{node.id}', which the table does not have. "
                    f"Known columns: {', '.join(table.columns)}."
                )
            return table[node.id]
        case ast.UnaryOp(op=ast.Not()):
            return ~_build(node.operand, table, text, key)
        case ast.UnaryOp(op=ast.USub()):
            return -_build(node.operand, table, text, key)
        case ast.BinOp() if type(node.op) in _BINARY:
            return _BINARY[type(node.op)](_build(node.left, table, text, key), _build(node.right, table, text, key))
        case ast.BoolOp():
            parts = [_build(value, table, text, key) for value in node.values]
            join = ibis.and_ if isinstance(node.op, ast.And) else ibis.or_
            return join(*parts)
        case ast.Compare() if all(type(op) in _COMPARISONS for op in node.ops):
            values = [_build(value, table, text, key) for value in (node.left, *node.comparators)]
            pairs = zip(node.ops, values[:-1], values[1:], strict=True)
            return ibis.and_(*[_COMPARISONS[type(op)](left, right) for op, left, right in pairs])
    raise SettingsError(
        f"'{key}: {text}' uses something other than columns, numbers, strings, comparisons, "
        "+ - * / and 'and' / 'or' / 'not'."
    )
