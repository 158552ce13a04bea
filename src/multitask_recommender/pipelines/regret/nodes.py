"""Steps of the pipeline ``regret``."""

from __future__ import annotations

from typing import Any

import ibis.expr.types as ir
import numpy as np
import pandas as pd

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.interactions import IntArray, pair_matrix
from multitask_recommender.data.splits import candidate_items
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.foundation.errors import DataError
from multitask_recommender.models import ranking
from multitask_recommender.simulation.bookstore import TASKS, Arrays, GroundTruth
from multitask_recommender.simulation.regret import list_values

COLUMNS = ["dataset", "split", "model", "task", "k", "seed", "oracle", "value", "regret", "users"]


def _pairs(table: ir.Table, split: str) -> tuple[IntArray, IntArray]:
    rows = table.filter(table.split == split).select("user", "item").to_pyarrow()
    return rows["user"].to_numpy(), rows["item"].to_numpy()


def truth_places(table: ir.Table, key: str) -> IntArray:
    """Return (n,) the place in the ground truth, whose rows are in the order of identifiers, of each number.

    Args:
        table: The canonical users or items.
        key: ``user`` or ``item``.
    """
    names = table.order_by(key).select(f"{key}_id").to_pandas()[f"{key}_id"].to_numpy(str)
    return np.unique(names, return_inverse=True)[1]


def measure_regret(
    models: list[str],
    dataset: DatasetSettings,
    settings: EvaluationSettings,
    splits: SplitSettings,
    ground_truth: Arrays,
    users: ir.Table,
    items: ir.Table,
    behaviour_sequences: ir.Table,
    validation_rows: ir.Table,
    *ranked_lists: pd.DataFrame,
) -> pd.DataFrame:
    """Compare the models' lists with those of an oracle that ranks by the true expected labels.

    The oracle chooses from the books that the models may recommend, for the users that have lists.

    Args:
        models: Names of the models.
        dataset: The tasks; those that the simulation does not know are left out, and those whose lists hold what was
            met before: for them the value of an item depends on that.
        settings: Lengths of the lists.
        splits: Which items may be recommended.
        ground_truth: What is true of every reader and book.
        users: The canonical users.
        items: The canonical items.
        behaviour_sequences: Training rows.
        validation_rows: Validation rows, whose items are not recommended either.
        ranked_lists: The models' lists, in the order of the names.

    Returns:
        Table with ``COLUMNS``: mean expected label of the oracle's list, of the model's list, and their difference.

    Raises:
        DataError: If the ground truth is of another bookstore.
    """
    truth = GroundTruth.from_arrays(ground_truth)
    shape = (int(users.count().execute()), int(items.count().execute()))
    known_shape = tuple(len(side) for side in truth.vectors["click"])
    if shape != known_shape:
        raise DataError(
            "ground_truth",
            f"It knows {known_shape[0]} users and {known_shape[1]} items, the study has {shape[0]} and {shape[1]}.",
            "simulate again, then run the study again: kedro run --env bookstore --pipelines simulated_study",
        )
    truth = truth.take(truth_places(users, "user"), truth_places(items, "item"))
    everything = pd.concat(
        [table.assign(model=name) for name, table in zip(models, ranked_lists, strict=True) if len(table)]
    )
    rows: list[dict[str, Any]] = []
    for split, of_split in everything.groupby("split", sort=False):
        train = _pairs(behaviour_sequences, str(split))
        known = pair_matrix(*train, shape) + pair_matrix(*_pairs(validation_rows, str(split)), shape)
        catalogue = candidate_items(splits.candidates_of(str(split)), train[1], shape[1])
        judged = np.unique(of_split["user"])
        for task, of_task in of_split.groupby("task", sort=False):
            if task not in TASKS or dataset.tasks[str(task)].known == "own_task":
                continue
            keys, lists = [], []
            for key, own in of_task.groupby(["model", "seed"], sort=False):
                table = np.full((len(judged), max(settings.ks)), ranking.PADDING, dtype=np.int64)
                table[np.searchsorted(judged, own["user"]), own["rank"] - 1] = own["item"]
                keys.append(key)
                lists.append(table)
            for k in settings.ks:
                oracle, values = list_values(truth, str(task), judged, lists, known, catalogue, k)
                rows += [
                    {
                        "dataset": dataset.name,
                        "split": split,
                        "model": model,
                        "task": task,
                        "k": k,
                        "seed": seed,
                        "oracle": oracle.mean(),
                        "value": value.mean(),
                        "regret": (oracle - value).mean(),
                        "users": len(judged),
                    }
                    for (model, seed), value in zip(keys, values, strict=True)
                ]
    place = {name: number for number, name in enumerate(models)}
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(
        ["split", "task", "model", "k", "seed"],
        key=lambda column: column.map(place) if column.name == "model" else column,
        ignore_index=True,
    )
