"""Label expressions of the configuration, such as ``rating >= 4``, turned into Ibis expressions.

The text is parsed, never executed: only comparisons, arithmetic, ``and`` / ``or`` / ``not``, numbers, a few functions
and the names of columns are known. A name that is no plain word stands between backticks: ```` `add.to.cart` > 0 ````.
"""

from __future__ import annotations

import ast
import keyword
import operator
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ibis
import ibis.expr.types as ir

from multitask_recommender.foundation.errors import SettingsError

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    # Nothing divided by zero is defined, whatever the engine makes of it.
    ast.Div: lambda left, right: left / right.nullif(0.0),
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def _unless_missing(pick: Callable[..., ir.Value]) -> Callable[..., ir.Value]:
    """Of several values; missing where one of them is."""
    return lambda *values: ibis.or_(*[value.isnull() for value in values]).ifelse(None, pick(*values))


_FUNCTIONS: dict[str, tuple[int, Callable[..., ir.Value]]] = {
    "log": (1, lambda value: (value > 0).ifelse(value, None).ln()),
    "log1p": (1, lambda value: (value > -1).ifelse(value + 1, None).ln()),
    "exp": (1, lambda value: (value < 700).ifelse(value, None).exp()),
    "abs": (1, lambda value: value.abs()),
    "min": (2, _unless_missing(ibis.least)),
    "max": (2, _unless_missing(ibis.greatest)),
    "is_missing": (1, lambda value: value.isnull()),
}
_LARGEST = sys.float_info.max
_LONGEST = 2000
"""Most characters of an expression."""
_DEEPEST = 60
"""Most operations inside each other: what turns them into SQL calls itself for each."""
_WORDS = re.compile(r"`([^`]*)`|'[^']*'|\"[^\"]*\"|\d[\w.]*|[^\W\d]\w*")
_KNOWN = (
    "columns, numbers, comparisons, + - * /, 'and' / 'or' / 'not' and the functions "
    "log, log1p, exp, abs, min, max, is_missing"
)
NOT_NAMES = frozenset({"and", "or", "not", "True", "False"})
"""Words of an expression that no column can be called by."""


@dataclass
class LabelExpression:
    """A parsed label expression over a table.

    Attributes:
        text: The expression as it stands in the configuration.
        key: The configuration key that holds it.
        value: What it stands for, a boolean or float64 column of the table; null where it is undefined, as in a
            division by zero.
        columns: The columns that it names, in the order of the text.
        flags: Its parts that are numbers used as yes or no, by their text: they must be 0 or 1.
    """

    text: str
    key: str
    value: ir.Value = field(init=False)
    columns: list[str] = field(default_factory=list)
    flags: dict[str, ir.NumericValue] = field(default_factory=dict)

    def truth(self) -> ir.BooleanValue:
        """Return the value as yes or no; a number must be 0 or 1.

        Raises:
            SettingsError: If the value is a text.
        """
        if self.value.type().is_boolean():
            return self.value
        self.flags[self.text] = self.number()
        return self.number() != 0

    def number(self) -> ir.NumericValue:
        """Return the value as a number; yes is 1 and no is 0.

        Raises:
            SettingsError: If the value is a text.
        """
        if self.value.type().is_string():
            raise SettingsError(
                f"'{self.key}: {self.text}' is a text.\n  where: '{self.key}'\n"
                "  what to do: compare it with something, or write numbers without quotes."
            )
        return self.value.cast("float64")


def parse_label_expression(text: str, table: ir.Table, key: str) -> LabelExpression:
    """Build the Ibis expression that ``text`` describes over the columns of ``table``.

    Args:
        text: The expression, for example ``rating >= 4 and rating < 6``.
        table: The table whose columns the names stand for.
        key: The configuration key that holds the text, for the error message.

    Raises:
        SettingsError: If the text is not such an expression, names an unknown column or compares what cannot be
            compared; says where in the text.
    """
    expression = LabelExpression(text, key)
    expression.value = _Reader(table, expression).read()
    return expression


def evaluate_label_expression(text: str, table: ir.Table, key: str) -> ir.Value:
    """Return the column that ``text`` describes; see :func:`parse_label_expression`."""
    return parse_label_expression(text, table, key).value


_SHORTER = "make a signal of it in the table, or write it shorter."


def _shortened(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:100]} ... {text[-40:]}"


def _depth(tree: ast.expr) -> int:
    """Number of operations inside each other, counted without calling itself."""
    deepest, waiting = 0, [(tree, 1)]
    while waiting:
        node, depth = waiting.pop()
        deepest = max(deepest, depth)
        parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        # Of 'a or b or c', SQL is made one step after the other.
        steps = len(parts) if isinstance(node, ast.BoolOp | ast.Compare) else 1
        deepest = max(deepest, depth + steps // 8)
        waiting += [(part, depth + 1) for part in parts]
    return deepest


class _Reader:
    """Reads one expression. Names are exchanged for placeholders first, so that ``return`` or ``a.b`` can be a name."""

    def __init__(self, table: ir.Table, expression: LabelExpression) -> None:
        self.table, self.expression = table, expression
        self.names: dict[str, str] = {}

    def read(self) -> ir.Value:
        if len(self.expression.text) > _LONGEST:
            length = len(self.expression.text)
            raise self._error(f"is too long: {length:,} characters, of which {_LONGEST:,} are allowed", "", _SHORTER)
        text = _WORDS.sub(self._placeholder, " ".join(self.expression.text.split()))
        try:
            tree = ast.parse(text, mode="eval").body
            if _depth(tree) > _DEEPEST:
                raise self._error(f"has more than {_DEEPEST} operations inside each other", "", _SHORTER)
            return self._build(tree)
        except SyntaxError as error:
            # At the end of the text, the offset may be 0.
            before = self._shown(text[: (error.offset or len(text) + 1) - 1])
            raise self._error(
                f"is not an expression: {_shortened(str(error.msg))}", before and f"after '{_shortened(before)}'"
            ) from None
        except (ValueError, RecursionError, MemoryError):
            raise self._error("is not an expression", "") from None

    def _placeholder(self, match: re.Match[str]) -> str:
        word, quoted = match[0], match[1]
        name = word if quoted is None else quoted
        called = re.match(r"\s*\(", match.string[match.end() :]) and word in _FUNCTIONS
        if quoted is None and (word in NOT_NAMES or called or word[0] in "'\"0123456789"):
            return word
        if quoted is None and keyword.iskeyword(word) and name not in self.table.columns:
            return word
        placeholder = next((known for known, own in self.names.items() if own == name), f"name_{len(self.names)}")
        self.names[placeholder] = name
        return placeholder

    def _shown(self, text: str) -> str:
        return re.sub(r"\bname_\d+\b", lambda match: self.names.get(match[0], match[0]), text).strip()

    def _error(self, problem: str, place: str | ast.expr, remedy: str = "correct the expression.") -> SettingsError:
        where = f"in '{self._shown(ast.unparse(place))}'" if isinstance(place, ast.expr) else place
        key, text = self.expression.key, self.expression.text
        text, where = _shortened(text), _shortened(where)
        return SettingsError(
            f"'{key}: {text}' {problem}{where and ', ' + where}.\n  where: '{key}'\n  what to do: {remedy}"
        )

    def _build(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool()):
                return ibis.literal(node.value)
            case ast.Constant(value=int() | float() as number) if abs(number) < _LARGEST:
                return ibis.literal(float(number))
            case ast.Constant(value=str()):
                return ibis.literal(node.value)
            case ast.Name():
                return self._column(node)
            case ast.UnaryOp(op=ast.Not()):
                return ~self._truth(node.operand)
            case ast.UnaryOp(op=ast.USub()):
                return -self._number(node.operand)
            case ast.BinOp() if type(node.op) in _BINARY:
                return _BINARY[type(node.op)](self._number(node.left), self._number(node.right))
            case ast.BoolOp():
                parts = [self._truth(value) for value in node.values]
                return ibis.and_(*parts) if isinstance(node.op, ast.And) else ibis.or_(*parts)
            case ast.Compare() if all(type(op) in _COMPARISONS for op in node.ops):
                return self._comparison(node)
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
                least, function = _FUNCTIONS[name]
                if len(node.args) < least or (least == 1 and len(node.args) > 1):
                    wanted = "one value" if least == 1 else "two values or more"
                    raise self._error(f"gives {name} {len(node.args)} values; it takes {wanted}", node)
                return function(*[self._number(value) for value in node.args])
        raise self._error(f"uses something other than {_KNOWN}", node)

    def _column(self, node: ast.Name) -> ir.Value:
        name = self.names.get(node.id, node.id)
        if name not in self.table.columns:
            raise self._error(
                f"names the column '{name}', which the table does not have",
                "",
                f"name one of {', '.join(self.table.columns)}; a name that is no plain word stands between backticks.",
            )
        if name not in self.expression.columns:
            self.expression.columns.append(name)
        column = self.table[name]
        return column.cast("float64") if column.type().is_numeric() else column

    def _number(self, node: ast.expr) -> ir.NumericValue:
        value = self._build(node)
        if value.type().is_boolean():
            return value.cast("float64")
        if not value.type().is_numeric():
            raise self._error("calculates with a text", node, "write numbers without quotes.")
        return value

    def _truth(self, node: ast.expr) -> ir.BooleanValue:
        value = self._build(node)
        if value.type().is_boolean():
            return value
        if not value.type().is_numeric():
            raise self._error("takes a text for yes or no", node, "compare it with something.")
        self.expression.flags[self._shown(ast.unparse(node))] = value
        return value != 0

    def _comparison(self, node: ast.Compare) -> ir.BooleanValue:
        sides = [node.left, *node.comparators]
        values = [self._build(side) for side in sides]
        texts = [value.type().is_string() for value in values]
        if any(texts) and not all(texts):
            raise self._error("compares a number with a text", node, "write numbers without quotes.")
        if not any(texts):
            values = [value.cast("float64") if value.type().is_boolean() else value for value in values]
        pairs = zip(node.ops, values[:-1], values[1:], strict=True)
        return ibis.and_(*[_COMPARISONS[type(op)](left, right) for op, left, right in pairs])
