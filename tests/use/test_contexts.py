"""Contexts of newcomers: a feature of every kind becomes the columns that the training gave it."""

from __future__ import annotations

import ibis
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.data.features import build_features
from multitask_recommender.data.tables import standardise_users
from multitask_recommender.use.contexts import Contexts

USERS = {
    "city": ["Oslo", "Bergen", "Oslo", "Rome", ""],
    "wants": ["crime|art", "art", "", "art|war|crime", "crime"],
    "about": ["Reads a lot", "reads CRIME, and art!", "a lot", "", "Art a"],
    "born": ["1960", "1971", "1984", "", "2001"],
}
SOME = ["Oslo", ["crime", "art"], "Crime, and ART", 1975]


def described(hash_columns: int | None) -> DatasetSettings:
    features = {
        "city": {"kind": "category", "column": "city", "minimum_count": 2},
        "wants": {"kind": "categories", "column": "wants", "separator": "|"},
        "about": {"kind": "text", "column": "about", "hash_columns": hash_columns},
        "born": {"kind": "numeric", "column": "born", "bins": 3},
    }
    return DatasetSettings.model_validate(
        {
            "name": "contexts",
            "interactions": {"user_id": "user_id", "item_id": "item_id"},
            "users": {"user_id": "user_id", "features": features},
            "tasks": {"read": {"kind": "retrieval"}},
        }
    )


def trained(dataset: DatasetSettings) -> tuple[Contexts, sparse.csr_matrix]:
    """What answers for newcomers, and the design matrix of the five users that it comes from."""
    raw = ibis.memtable(pd.DataFrame({"user_id": [f"u{n}" for n in range(5)], **USERS}))
    users = standardise_users(raw, dataset).order_by("user_id").mutate(user=ibis.row_number().cast("int64")).cache()
    training = ibis.memtable({"split": ["random"] * 5, "user": np.arange(5), "item": np.zeros(5, int)})
    built = build_features(users, "user", training, dataset)
    assert built is not None
    vocabulary, matrix = (table.execute() for table in built)
    shape = (5, len(vocabulary))
    columns: dict[str, dict[str, int]] = {}
    for row in vocabulary.itertuples():
        columns.setdefault(row.feature, {})[row.value] = row.column
    design = sparse.csr_matrix((matrix["weight"], (matrix["user"], matrix["column"])), shape=shape)
    return Contexts(columns, dataset.model_dump()["users"], shape[1]), design


@pytest.mark.parametrize("hash_columns", [None, 7])
def test_what_is_told_of_a_newcomer_becomes_what_it_is_in_the_training(hash_columns: int | None) -> None:
    contexts, design = trained(described(hash_columns))
    for user in range(5):
        told = {name: values[user] for name, values in USERS.items()}
        made = contexts.changed(contexts.unknown(1), told, np.array([0]))
        np.testing.assert_allclose(made.toarray()[0], design[user].toarray()[0], atol=1e-6, err_msg=str(told))
    # A list says the same as a text that its separator divides, and empty values are none.
    listed, divided = (
        contexts.changed(contexts.unknown(1), {"wants": value}, np.array([0])).toarray()
        for value in (["crime", "", "art"], "crime|art")
    )
    np.testing.assert_array_equal(listed, divided)


def test_what_nobody_had_in_the_training_is_rare() -> None:
    contexts, design = trained(described(7))
    made = contexts.changed(contexts.unknown(2), dict(zip(USERS, SOME, strict=True)), np.array([0, 3]))
    assert made.shape == (2, design.shape[1])
    np.testing.assert_allclose(made.toarray().sum(axis=1), len(USERS), rtol=1e-6)
    np.testing.assert_array_equal(made.toarray()[0], made.toarray()[1])
    rare = contexts.changed(contexts.unknown(1), {"city": "Paris", "wants": ["music"]}, np.array([0])).toarray()
    same = contexts.changed(contexts.unknown(1), {"city": "Rome", "wants": "dance|swimming"}, np.array([0])).toarray()
    np.testing.assert_allclose(rare, same)
