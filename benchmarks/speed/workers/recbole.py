"""RecBole: its evaluation over the whole catalogue, of scores that are there already."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.trainer import Trainer
from recbole.utils import InputType

from workers.common import METRICS_AT, Arguments, Run, read_arrays, serve

RANKING = ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP"]
OF_LISTS = ["ItemCoverage", "AveragePopularity", "GiniIndex", "ShannonEntropy", "TailPercentage"]


class Number(int):
    """A number that may be asked, as the library asks all that it collects, for its copy on the CPU."""

    def cpu(self) -> Number:
        """Return it."""
        return self


class Counts(Counter):
    """The same of counts by item."""

    def cpu(self) -> Counts:
        """Return it."""
        return self


class Scores(GeneralRecommender):
    """A model that looks its scores up."""

    input_type = InputType.PAIRWISE

    def __init__(self, config: Config, dataset: object, matrix: torch.Tensor) -> None:
        super().__init__(config, dataset)
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.matrix = matrix

    def full_sort_predict(self, interaction: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the scores of some users for all items."""
        return self.matrix[interaction[self.USER_ID]]


def evaluate(arguments: Arguments) -> Run:
    """Run the library's evaluation, with all users in one batch: the fewest steps."""
    torch.set_num_threads(arguments["threads"])
    given = read_arrays(arguments["file"])
    folder = Path(tempfile.mkdtemp())
    own = folder / "benchmark"
    own.mkdir()
    parts = {name: np.stack([given[f"{name}_user"], given[f"{name}_item"]], axis=1) for name in ("train", "test")}
    for name, rows in {"train": parts["train"], "valid": parts["test"], "test": parts["test"]}.items():
        header = "user_id:token\titem_id:token"
        path = own / f"benchmark.{name}.inter"
        np.savetxt(path, rows, fmt="%d", delimiter="\t", header=header, comments="")
    config = Config(
        model="BPR",
        dataset="benchmark",
        config_dict={
            "data_path": str(folder),
            "load_col": {"inter": ["user_id", "item_id"]},
            "benchmark_filename": ["train", "valid", "test"],
            "eval_args": {"split": None, "group_by": "user", "order": "RO", "mode": "full"},
            "metrics": RANKING + OF_LISTS,
            "topk": list(METRICS_AT),
            "valid_metric": "NDCG@10",
            "eval_batch_size": 2**31 - 1,
            "checkpoint_dir": str(folder),
            "use_gpu": False,
            "show_progress": False,
            "state": "error",
        },
    )
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    users, items = given["matrix"].shape
    # RecBole numbers users and items anew; 0 is a filler.
    matrix = np.full((dataset.user_num, dataset.item_num), -np.inf, np.float32)
    own_users, own_items = (
        np.unique(np.concatenate([parts["train"][:, place], parts["test"][:, place]])) for place in (0, 1)
    )
    rows = dataset.token2id("user_id", own_users.astype(str))
    columns = dataset.token2id("item_id", own_items.astype(str))
    matrix[np.ix_(rows, columns)] = given["matrix"][np.ix_(own_users, own_items)]
    assert len(own_users) <= users
    assert len(own_items) <= items
    trainer = Trainer(config, Scores(config, train.dataset, torch.from_numpy(matrix)))
    trainer.eval_collector.data_collect(train)
    collected = trainer.eval_collector.data_struct
    for name, value in list(collected._data_dict.items()):
        collected.set(name, Number(value) if isinstance(value, int) else Counts(value))

    def run() -> None:
        trainer.evaluate(test, load_best_model=False)

    return run


if __name__ == "__main__":
    serve({"evaluate": evaluate})
