"""MultiVAE and EASE of RecBole 1.2, peers on ranking, and its SASRec and GRU4Rec, peers on what comes next."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataloader import TrainDataLoader, UserDataLoader
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import EASE, MultiVAE
from recbole.model.sequential_recommender import GRU4Rec, SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed
from scipy import sparse

from peers.common import Predict, Scores, Settings, Training, checkpoints, main

VAE_GRID = [
    {
        "learning_rate": rate,
        "mlp_hidden_size": [600],
        "latent_dimension": latent,
        "dropout_prob": dropout,
        "anneal_cap": 0.2,
        "train_batch_size": batch,
        "epochs": epochs,
    }
    # A batch is of users: 2048, the library's own, takes all of them in one step.
    for rate, latent, dropout, batch, epochs in [
        (0.001, 128, 0.5, 2048, [50, 100, 150, 200]),
        (0.001, 256, 0.5, 2048, [50, 100, 150, 200]),
        (0.001, 256, 0.5, 128, [20, 25, 30, 35]),
        (0.0005, 256, 0.5, 128, [30, 40, 50, 60]),
        (0.001, 256, 0.7, 128, [20, 30, 40, 50]),
    ]
]
EASE_GRID: list[Settings] = [{"reg_weight": float(weight)} for weight in (100, 150, 200, 250, 300, 400, 500, 700)]
# With 50 latest items instead of 20 an epoch takes three times as long: 75 seconds of one thread for SASRec.
_SEQUENTIAL = {
    "MAX_ITEM_LIST_LENGTH": 20,
    "learning_rate": 0.001,
    "loss_type": "CE",
    "train_neg_sample_args": None,
    "train_batch_size": 1024,
}
SASREC_GRID: list[Settings] = [
    {
        **_SEQUENTIAL,
        "n_layers": layers,
        "n_heads": 2,
        "hidden_size": 64,
        "inner_size": 256,
        "hidden_dropout_prob": dropout,
        "attn_dropout_prob": dropout,
        "epochs": [5, 10, 15, 20],
    }
    for layers, dropout in [(1, 0.5), (2, 0.5)]
]
GRU4REC_GRID: list[Settings] = [
    {
        **_SEQUENTIAL,
        "embedding_size": 64,
        "hidden_size": hidden,
        "num_layers": 1,
        "dropout_prob": dropout,
        "epochs": [5, 10, 15, 20],
    }
    for hidden, dropout in [(128, 0.3), (128, 0.5)]
]


def _prepare(name: str, training: Training, settings: Settings, seed: int, folder: str) -> tuple[Any, Any]:
    """Return RecBole's configuration and data set of the training rows; its files are gone after the fit."""
    own = Path(folder) / "benchmark"
    own.mkdir()
    timed = name in ("SASRec", "GRU4Rec")
    # Equal times stay in the order of the rows: by place instead of by second.
    order = np.argsort(training.time, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    rows = np.stack([training.user, training.item, *([place] if timed else [])], axis=1)
    header = "user_id:token\titem_id:token" + ("\ttimestamp:float" if timed else "")
    np.savetxt(own / "benchmark.inter", rows, fmt="%d", delimiter="\t", header=header, comments="")
    config = Config(
        model=name,
        dataset="benchmark",
        config_dict={
            "data_path": folder,
            "load_col": {"inter": ["user_id", "item_id", *(["timestamp"] if timed else [])]},
            "eval_args": {
                "split": {"RS": [1.0, 0.0, 0.0]},
                "order": "TO" if timed else "RO",
                "group_by": None,
                "mode": "full",
            },
            "checkpoint_dir": folder,
            "use_gpu": False,
            "show_progress": False,
            "seed": seed,
            "state": "error",
            **settings,
        },
    )
    init_seed(seed, reproducibility=True)
    return config, create_dataset(config).build()[0]


def _history(training: Training, known: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return place of the user, number of the item and place in time of the rows that users are asked with.

    Args:
        training: With the history, or else its own rows are it.
        known: The users that RecBole knows, ascending.
        columns: (items,) RecBole's number of every item, 0 for one that it does not know, whose rows are left out.
    """
    names = [f"history_{name}" for name in ("user", "item", "time")]
    arrays = [training.arrays[name] for name in names] if names[0] in training.arrays else None
    user, item, time = arrays or (training.user, training.item, training.time)
    kept = np.isin(user, known) & (columns[item] > 0)
    return np.searchsorted(known, user[kept]), columns[item[kept]], time[kept]


def _predictor(model: Any, data: Any, training: Training) -> Predict:
    # RecBole numbers users and items anew, from 1 in the order of the file; 0 is a filler.
    users, items = np.unique(training.user), np.unique(training.item)
    own_item = data.token2id("item_id", items.astype(str))
    columns = np.zeros(training.items, dtype=np.int64)
    columns[items] = own_item

    def asked() -> np.ndarray:
        user, item, time = _history(training, users, columns)
        if hasattr(model, "ITEM_SEQ"):
            length = model.max_seq_length
            order = np.lexsort((np.arange(len(user)), time, user))
            sequences, lengths = np.zeros((len(users), length), np.int64), np.zeros(len(users), np.int64)
            for place, own in enumerate(np.split(item[order], np.cumsum(np.bincount(user, minlength=len(users)))[:-1])):
                last = own[-length:]
                sequences[place, : len(last)], lengths[place] = last, max(len(last), 1)
            question = {model.ITEM_SEQ: torch.from_numpy(sequences), model.ITEM_SEQ_LEN: torch.from_numpy(lengths)}
            return model.full_sort_predict(Interaction(question)).numpy()
        shape = (len(users), data.item_num)
        known = sparse.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape=shape)
        if isinstance(model, EASE):
            return np.asarray(known @ model.item_similarity)
        return model.forward(torch.from_numpy(known.toarray()))[0].numpy()

    def predict(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> Scores:
        model.eval()
        with torch.no_grad():
            table = asked()
        matrix = np.full((training.users, training.items), -np.inf, dtype=np.float32)
        matrix[np.ix_(users, items)] = table[:, own_item]
        return {"matrix": matrix}

    return predict


def _fit_by_epochs(
    model_class: Any, loader_class: Any, training: Training, settings: Settings, seed: int
) -> Iterator[tuple[Settings, Predict]]:
    """Train with RecBole's own trainer: batches are of users, or for models of sequences of their rows."""
    last, stops = checkpoints(settings)
    with tempfile.TemporaryDirectory() as folder:
        config, data = _prepare(model_class.__name__, training, {**settings, "epochs": last}, seed, folder)
        loader = loader_class(config, data, None, shuffle=True)
        model = model_class(config, data)
        trainer = Trainer(config, model)
        for epoch in range(1, last + 1):
            model.train()
            trainer._train_epoch(loader, epoch, show_progress=False)
            if epoch in stops:
                yield {**settings, "epochs": epoch}, _predictor(model, data, training)


def fit_ease(training: Training, settings: Settings, seed: int) -> Iterator[tuple[Settings, Predict]]:
    """Solve EASE^R."""
    with tempfile.TemporaryDirectory() as folder:
        config, data = _prepare("EASE", training, settings, seed, folder)
        yield settings, _predictor(EASE(config, data), data, training)


if __name__ == "__main__":
    main(
        {
            "multivae": (VAE_GRID, functools.partial(_fit_by_epochs, MultiVAE, UserDataLoader)),
            "ease": (EASE_GRID, fit_ease),
            "sasrec": (SASREC_GRID, functools.partial(_fit_by_epochs, SASRec, TrainDataLoader)),
            "gru4rec": (GRU4REC_GRID, functools.partial(_fit_by_epochs, GRU4Rec, TrainDataLoader)),
        }
    )
