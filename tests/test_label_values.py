"""Labels of single events are those that the same expressions give on tables."""

from __future__ import annotations

import itertools
import math

import ibis
import numpy as np
import pandas as pd
import pytest

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.data.label_expressions import evaluate_label_expression
from multitask_recommender.data.label_values import evaluate_on_values, label_values
from multitask_recommender.data.tasks import Task
from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.pipelines.data_engineering.nodes import label_interactions

VALUES = [None, 0.0, 1.0, 4.0]
PAIRS = list(itertools.product(VALUES, VALUES))
TABLE = ibis.memtable(pd.DataFrame(PAIRS, columns=["a", "b"]), schema=ibis.schema({"a": "float64", "b": "float64"}))


@pytest.mark.parametrize(
    "text",
    [
        "a >= 4",
        "a == b",
        "a != 1 and b < 4",
        "a > 0 or b > 0",
        "not (a > 0 or b > 0)",
        "0 < a <= b",
        "(a + b) * 2 - 1",
        "-a",
        "a / (b + 1)",
        "a / b",
        "log(a) + log1p(b)",
        "max(a, b) - min(a, b)",
        "is_missing(a) or exp(b) > 2",
        "abs(1 - `a`)",
    ],
)
def test_values_are_those_of_the_table(text: str) -> None:
    column = evaluate_label_expression(text, TABLE, "label")
    expected = TABLE.select("a", "b", value=column.cast("float64")).execute()
    for a, b, value in expected.itertuples(index=False):
        given = {name: None if math.isnan(number) else number for name, number in (("a", a), ("b", b))}
        found = evaluate_on_values(text, given)
        np.testing.assert_equal(math.nan if found is None else float(found), value)


@pytest.mark.parametrize("text", ["a >=", "__import__('os')", "a.real", "[a]"])
def test_what_is_no_label_expression_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="cannot be computed"):
        evaluate_on_values(text, {"a": 1.0})


def test_labels_of_events_are_those_of_the_interactions() -> None:
    tasks = {
        "view": Task(kind="retrieval", label="a"),
        "buy": Task(kind="retrieval", label="b", after="view"),
        "like": Task(kind="binary", label="a >= 4", asked="b > 0", after="buy"),
        "score": Task(kind="regression", label="a + b", relevant="a >= 1"),
    }
    signals = {name: {"column": name, "optional": True} for name in ("a", "b")}
    dataset = DatasetSettings.model_validate(
        {
            "name": "events",
            "interactions": {"user_id": "u", "item_id": "i", "signals": signals},
            "tasks": {name: task.model_dump() for name, task in tasks.items()},
        }
    )
    known = [pair for pair in PAIRS if pair[0] is not None]
    table = pd.DataFrame(known, columns=["a", "b"]).assign(row=range(len(known)), user=0, item=0, item_id="1")
    schema = {"a": "float64", "b": "float64", "row": "int64", "user": "int64", "item": "int64", "item_id": "string"}
    labelled = label_interactions(
        ibis.memtable(table, schema=ibis.schema(schema)).mutate(timestamp=ibis.null("float64")), dataset
    ).execute()
    for (a, b), expected in zip(known, labelled.to_dict("records"), strict=True):
        found = label_values({name: value for name, value in (("a", a), ("b", b)) if value is not None}, {}, tasks)
        for name in (*tasks, *(f"relevant_{task}" for task in tasks)):
            np.testing.assert_equal(found[name], expected[name], f"{name} of {a}, {b}")


def test_what_is_not_said() -> None:
    tasks = {
        "view": Task(kind="retrieval", label="view"),
        "buy": Task(kind="retrieval", label="buy", after="view"),
        "stars": Task(kind="regression", label="rating", relevant="rating >= 4"),
    }
    nothing = label_values({}, {}, tasks)
    assert nothing["view"] == 1.0
    assert math.isnan(nothing["buy"])
    assert math.isnan(nothing["stars"])
    given = label_values({}, {"stars": 5.0, "buy": 1.0}, tasks)
    assert given["stars"] == 5.0
    assert given["relevant_stars"]
    assert given["buy"] == 1.0
