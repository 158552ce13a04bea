"""ranx: its metrics, on lists that are cut out of the scores by NumPy. It has none of coverage or novelty."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numba import set_num_threads
from ranx import Qrels, Run
from ranx import evaluate as measure

from workers.common import METRICS_AT, Arguments, read_arrays, serve, top_lists
from workers.common import Run as Task

NAMES = ("ndcg", "precision", "recall", "hit_rate", "mrr", "map")


def evaluate(arguments: Arguments) -> Task:
    """Make the lists and compute all metrics of ranking."""
    set_num_threads(arguments["threads"])
    given = read_arrays(arguments["file"])
    wanted = [f"{name}@{k}" for name in NAMES for k in METRICS_AT]

    def run() -> None:
        users, lists = top_lists(given, max(METRICS_AT))
        relevant = Qrels.from_df(_names(given["test_user"], given["test_item"]).assign(score=1))
        places = lists.shape[1]
        found = _names(np.repeat(users, places), lists.ravel())
        scored = Run.from_df(found.assign(score=np.tile(np.arange(places, 0, -1), len(users)).astype(float)))
        measure(relevant, scored, wanted)

    return run


def _names(users: np.ndarray, items: np.ndarray) -> pd.DataFrame:
    """Return pairs as the library wants them: names, as objects."""
    return pd.DataFrame(
        {"q_id": users.astype(str).astype(object), "doc_id": items.astype(str).astype(object)}, dtype=object
    )


if __name__ == "__main__":
    serve({"evaluate": evaluate})
