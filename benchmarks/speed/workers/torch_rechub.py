"""torch-rechub: one epoch of MMoE and of PLE."""

from __future__ import annotations

import numpy as np
import torch
from torch_rechub.models.multi_task import MMOE, PLE
from torch_rechub.trainers import MTLTrainer

from peers.common import read_training
from peers.torch_rechub import TYPES, Batches, features_of, model_inputs
from workers.common import Arguments, Run, serve


def epoch(arguments: Arguments) -> Run:
    """Train for one epoch with the library's own loop, and with batches that are cut out of arrays."""
    torch.set_num_threads(arguments["threads"])
    training = read_training(arguments["training"])
    features = features_of(training, arguments["embedding"], 0.05)
    sizes = {
        "expert_params": {"dims": list(arguments["expert_layers"])},
        "tower_params_list": [{"dims": [64]} for _ in TYPES],
    }
    if arguments["kind"] == "mmoe":
        model = MMOE(features, TYPES, n_expert=4, **sizes)
    else:
        model = PLE(features, TYPES, n_level=1, n_expert_specific=2, n_expert_shared=2, **sizes)
    trainer = MTLTrainer(model, TYPES, optimizer_params={"lr": 0.002, "weight_decay": 1e-5})
    labels = np.stack([training.rating - training.rating.mean(), training.rating >= 4], axis=1).astype(np.float32)
    loader = Batches(model_inputs(training, training.user, training.item), labels, arguments["batch"], 0)

    def run() -> None:
        trainer.train_one_epoch(loader)

    return run


if __name__ == "__main__":
    serve({"epoch": epoch})
