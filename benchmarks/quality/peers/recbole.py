"""MultiVAE and EASE of RecBole 1.2: peers on ranking."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataloader import UserDataLoader
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import EASE, MultiVAE
from recbole.trainer import Trainer
from recbole.utils import init_seed

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


def _prepare(name: str, training: Training, settings: Settings, seed: int, folder: str) -> tuple[Any, Any]:
    """Return RecBole's configuration and data set of the training rows; its files are gone after the fit."""
    own = Path(folder) / "benchmark"
    own.mkdir()
    rows = np.stack([training.user, training.item], axis=1)
    np.savetxt(
        own / "benchmark.inter", rows, fmt="%d", delimiter="\t", header="user_id:token\titem_id:token", comments=""
    )
    config = Config(
        model=name,
        dataset="benchmark",
        config_dict={
            "data_path": folder,
            "load_col": {"inter": ["user_id", "item_id"]},
            "eval_args": {"split": {"RS": [1.0, 0.0, 0.0]}, "order": "RO", "group_by": None, "mode": "full"},
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


def _predictor(model: Any, data: Any, training: Training) -> Predict:
    # RecBole numbers users and items anew, from 1 in the order of the file; 0 is a filler.
    users, items = np.unique(training.user), np.unique(training.item)
    own_user = data.token2id("user_id", users.astype(str))
    own_item = data.token2id("item_id", items.astype(str))

    def predict(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> Scores:
        model.eval()
        with torch.no_grad():
            scores = model.full_sort_predict(Interaction({"user_id": torch.from_numpy(own_user)}))
        table = np.asarray(scores).reshape(len(users), -1)
        matrix = np.full((training.users, training.items), -np.inf, dtype=np.float32)
        matrix[np.ix_(users, items)] = table[:, own_item]
        return {"matrix": matrix}

    return predict


def fit_multivae(training: Training, settings: Settings, seed: int) -> Iterator[tuple[Settings, Predict]]:
    """Train MultiVAE with RecBole's own trainer."""
    last, stops = checkpoints(settings)
    with tempfile.TemporaryDirectory() as folder:
        config, data = _prepare("MultiVAE", training, {**settings, "epochs": last}, seed, folder)
        loader = UserDataLoader(config, data, None, shuffle=True)
        model = MultiVAE(config, data)
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
    main({"multivae": (VAE_GRID, fit_multivae), "ease": (EASE_GRID, fit_ease)})
