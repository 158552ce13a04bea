from __future__ import annotations

import ibis
import pytest

from multitask_recommender.data.label_expressions import evaluate_label_expression
from multitask_recommender.foundation.errors import SettingsError

TABLE = ibis.memtable({"rating": [1.0, 4.0, 5.0], "kind": ["a", "b", "a"]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rating >= 4", [False, True, True]),
        ("1 < rating < 5", [False, True, False]),
        ("rating > 4 or kind == 'b'", [False, True, True]),
        ("not (kind == 'a')", [False, True, False]),
        ("(rating - 1) / 4", [0.0, 0.75, 1.0]),
        ("-rating", [-1.0, -4.0, -5.0]),
    ],
)
def test_values(text: str, expected: list[object]) -> None:
    column = evaluate_label_expression(text, TABLE, "label")
    assert TABLE.select(value=column).execute()["value"].tolist() == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ratng >= 4", "'ratng'"),
        ("rating >=", "not an expression"),
        ("__import__('os').system('true')", "other than columns"),
        ("rating.__class__", "other than columns"),
        ("[r for r in rating]", "other than columns"),
        ("rating ** 9", "other than columns"),
    ],
)
def test_refusals(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=r"tasks\.like\.label") as error:
        evaluate_label_expression(text, TABLE, "tasks.like.label")
    assert said in str(error.value)
