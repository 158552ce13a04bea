"""Exported vectors give the lists of the recommender in an index, and ONNX gives the vectors."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import onnxruntime
import pandas as pd
import pytest
from scipy.special import expit

from conftest import Project
from multitask_recommender import load_recommender
from multitask_recommender.data.queries import Queries
from multitask_recommender.foundation.errors import RequestError
from multitask_recommender.use.onnx_export import dense_inputs
from multitask_recommender.use.recommender import LoadedRecommender


def vectors(path: Path, task: str) -> tuple[list[str], np.ndarray]:
    table = pd.read_parquet(path, filters=[("task", "=", task)])
    return table.iloc[:, 1].tolist(), np.stack(table["vector"].to_numpy())


@pytest.mark.parametrize("name", ["shared_bottom", "single_task", "two_stage"])
def test_an_index_of_the_vectors_gives_the_exact_lists(finished_project: Project, tmp_path: Path, name: str) -> None:
    recommender = load_recommender(finished_project.outputs, model=name)
    items_file, users_file = recommender.export(tmp_path / "vectors")
    for task in recommender.tasks:
        item_ids, items = vectors(items_file, task)
        user_ids, users = vectors(users_file, task)
        assert user_ids == recommender.run.user_ids
        index = faiss.IndexFlatIP(items.shape[1])
        index.add(items)
        products, found = index.search(users[:20], len(item_ids))
        for user_id, product, order in zip(user_ids, products, found, strict=False):
            exact = recommender.recommend(user_id=user_id, task=task, n=1000, include_known=True)
            score = recommender.predict([item_ids[item] for item in order], user_id=user_id)[task].to_numpy()
            # Where clipping or rounding makes scores equal, their order is free.
            np.testing.assert_allclose(score[: len(exact)], exact["score"], atol=1e-4)
            if task != "rating":
                np.testing.assert_allclose(expit(product) if task == "like" else product, score, atol=1e-4)
                assert np.mean([item_ids[a] == b for a, b in zip(order, exact["item_id"], strict=False)]) > 0.95


def test_scores_that_are_no_inner_products(finished_project: Project, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"'item_knn' are not inner products(.|\n)*shared_bottom"):
        load_recommender(finished_project.outputs, model="item_knn").export(tmp_path)


def asked(recommender: LoadedRecommender) -> list[Queries]:
    """Known users, a history alone, features alone, and nothing."""
    return [
        recommender.every_user().take(np.arange(20)),
        recommender.queries(None, [("1", 5), "2", {"item_id": "10", "like": 0}], None)[0],
        recommender.queries(None, [], {"age": 30, "gender": "F"})[0],
        recommender.queries(None, [], {})[0],
    ]


@pytest.mark.parametrize("name", ["shared_bottom", "single_task"])
def test_onnx_gives_the_vectors(finished_project: Project, tmp_path: Path, name: str) -> None:
    recommender = load_recommender(finished_project.outputs, model=name)
    session = onnxruntime.InferenceSession(str(recommender.export_onnx(tmp_path / "users.onnx")))
    names = [output.name for output in session.get_outputs()]
    assert names == recommender.tasks
    for queries in asked(recommender):
        expected = recommender.model.inner_products(queries)
        for task, found in zip(names, session.run(None, dense_inputs(recommender, queries)), strict=True):
            np.testing.assert_allclose(found, expected[task][0], atol=1e-5)


@pytest.mark.parametrize("name", ["two_stage", "item_knn"])
def test_models_that_are_not_exported(finished_project: Project, tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=f"'{name}' cannot be exported(.|\n)*shared_bottom"):
        load_recommender(finished_project.outputs, model=name).export_onnx(tmp_path / "users.onnx")
