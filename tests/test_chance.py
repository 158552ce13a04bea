"""Where there is nothing to learn, nothing is learnt: no model beats chance on labels that are random or constant."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from conftest import Project, everyone, made_once
from multitask_recommender.evaluation.metrics import auc
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.testing import example_study
from test_contract import quick_settings

USERS, ROWS = 250, 24
ERRORS = 4.0
"""Standard errors within which chance lies."""


def with_random_interactions(project: Project) -> Project:
    """The tiny study with more users, who meet items by the items' popularity alone and rate them by the dice."""
    random = np.random.default_rng(11)
    users = pd.read_csv(project.raw / "users.tsv", sep="\t", dtype=str)
    users = users.sample(USERS, replace=True, random_state=1).reset_index(drop=True)
    users["user_id:token"] = users.index.astype(str)
    users.to_csv(project.raw / "users.tsv", sep="\t", index=False)
    items = pd.read_csv(project.raw / "items.tsv", sep="\t", dtype=str)["item_id:token"].to_numpy()
    popularity = random.pareto(1.5, len(items)) + 0.3
    popularity /= popularity.sum()
    met = [random.choice(items, ROWS, replace=False, p=popularity) for _ in range(USERS)]
    table = pd.DataFrame(
        {"user_id:token": np.repeat(users["user_id:token"], ROWS), "item_id:token": np.concatenate(met)}
    )
    table["rating:float"] = random.choice([2, 3, 4, 5], len(table))
    table["timestamp:float"] = 887_000_000 + random.permutation(len(table))
    table.sample(frac=1, random_state=2).to_csv(project.raw / "interactions.tsv", sep="\t", index=False)
    return project


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Metrics of the quick study of random interactions, after a run from raw tables to measurements."""
    project = made_once(
        tmp_path_factory,
        "chance",
        "--to-nodes",
        "evaluation.measure_models",
        prepare=with_random_interactions,
    )
    table = pd.read_csv(project.outputs / "08_reporting" / "metrics.csv")
    return table[table["group"] == "all"]


def test_no_model_predicts_random_labels(measured: pd.DataFrame) -> None:
    """From the raw tables to the metrics, no feature, history or choice of parameters carries a test label."""
    table = measured[(measured["task"] == "like") & (measured["metric"] == "auc")]
    assert table["model"].nunique() >= 10
    # The error of the AUC over n rows, of which half are positive, where scores and labels are independent.
    error = (table["rows"] / 12).map(math.sqrt) * 2 / table["rows"]
    assert (abs(table["value"] - 0.5) < ERRORS * error).all(), table[["model", "value", "rows"]]


def test_no_model_predicts_random_ratings(measured: pd.DataFrame) -> None:
    """Not better than the expected squared error of the mean, which is the variance of the dice: 1.25."""
    table = measured[(measured["task"] == "rating") & (measured["metric"] == "rmse")]
    assert table["model"].nunique() >= 5
    # Squared errors of the dice are 2.25 or 0.25 with equal chances, so their standard deviation is 1.
    least = 1.25 - ERRORS / table["rows"].map(math.sqrt)
    assert (table["value"] ** 2 > least).all(), table[["model", "value"]]


def test_no_model_ranks_random_choices_better_than_popularity(measured: pd.DataFrame) -> None:
    table = measured[(measured["task"] == "watch") & (measured["metric"] == "ndcg") & (measured["k"] == 10)]
    value = table.set_index("model")["value"]
    assert len(value) >= 5
    assert value["popularity"] > value["random"] + 0.1
    # The NDCG of a user lies between 0 and 1, so its standard deviation is at most 0.5.
    assert (value < value["popularity"] + ERRORS * 0.5 / math.sqrt(table["users"].min())).all(), value


@pytest.mark.parametrize("constant", [False, True], ids=["shuffled", "constant"])
@pytest.mark.parametrize("name", VARIANTS)
def test_shuffled_and_constant_labels_teach_no_model(name: str, constant: bool) -> None:
    """A label may be constant in the training rows of a split; of the whole table it is refused when it is read."""
    rows, side = example_study()
    random = np.random.default_rng(4)
    like = random.permutation(np.arange(len(rows)) % 2).astype(np.float32)
    is_test = random.random(len(rows)) < 0.5
    learnt = np.where(is_test | (not constant), like, 1.0).astype(np.float32)
    rows = replace(rows, labels={**rows.labels, "like": learnt, "rating": 3 + learnt})
    train, test = rows.where(~is_test), rows.where(is_test)
    variant = VARIANTS[name]
    model = variant.make(quick_settings(variant), variant.trained_tasks(side.tasks))
    model.fit(train, side, seed=5)
    scores = model.score(everyone(train, side))
    for task in scores.keys() & {"like", "rating"}:
        own = scores[task][test.user, test.item]
        assert np.isfinite(own).all()
        positives = (test.labels["like"] > 0).sum()
        error = math.sqrt((len(test) + 1) / (12 * positives * (len(test) - positives)))
        assert abs(auc(test.labels["like"], own) - 0.5) < ERRORS * error
