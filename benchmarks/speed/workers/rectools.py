"""RecTools: its metrics, on lists that are cut out of the scores by NumPy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from rectools import Columns
from rectools import metrics as own
from rectools.metrics import calc_metrics
from threadpoolctl import threadpool_limits

from workers.common import METRICS_AT, Arguments, Run, read_arrays, serve, top_lists


def evaluate(arguments: Arguments) -> Run:
    """Make the lists and compute the library's metrics that need lists, test rows and training rows alone."""
    threadpool_limits(limits=arguments["threads"])
    given = read_arrays(arguments["file"])
    columns = [Columns.User, Columns.Item]
    train = pd.DataFrame({Columns.User: given["train_user"], Columns.Item: given["train_item"]})
    test = pd.DataFrame({Columns.User: given["test_user"], Columns.Item: given["test_item"]})
    catalogue = np.unique(train[Columns.Item])
    kinds = [
        own.Precision,
        own.Recall,
        own.HitRate,
        own.NDCG,
        own.MAP,
        own.MRR,
        own.MeanInvUserFreq,
        own.Serendipity,
        own.CatalogCoverage,
        own.AvgRecPopularity,
    ]
    wanted = {f"{kind.__name__}@{k}": kind(k=k) for kind in kinds for k in METRICS_AT}

    def run() -> None:
        users, lists = top_lists(given, max(METRICS_AT))
        reco = pd.DataFrame({Columns.User: np.repeat(users, lists.shape[1]), Columns.Item: lists.ravel()})
        reco[Columns.Rank] = np.tile(np.arange(1, lists.shape[1] + 1), len(users))
        calc_metrics(wanted, reco, test[columns], train[columns], catalogue)

    return run


if __name__ == "__main__":
    serve({"evaluate": evaluate})
