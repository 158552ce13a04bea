"""DeepCTR-Torch: one epoch of MMoE and of PLE."""

from __future__ import annotations

import numpy as np
import torch

from peers.common import read_training
from peers.deepctr_torch import MMOE, PLE, feature_columns, model_inputs
from workers.common import Arguments, Run, serve


def epoch(arguments: Arguments) -> Run:
    """Train for one epoch with the library's own loop."""
    torch.set_num_threads(arguments["threads"])
    training = read_training(arguments["training"])
    size = {"mmoe": {"num_experts": 4}, "ple": {"num_levels": 1, "shared_expert_num": 2, "specific_expert_num": 2}}
    model = {"mmoe": MMOE, "ple": PLE}[arguments["kind"]](
        feature_columns(training, arguments["embedding"]),
        expert_dnn_hidden_units=tuple(arguments["expert_layers"]),
        tower_dnn_hidden_units=(64,),
        init_std=0.05,
        task_types=("regression", "binary"),
        task_names=("rating", "like"),
        **size[arguments["kind"]],
    )
    model.compile(torch.optim.Adam(model.parameters(), lr=0.002), loss=["mse", "binary_crossentropy"], metrics=[])
    labels = np.stack([training.rating, training.rating >= 4], axis=1).astype(np.float32)
    labels[:, 0] -= labels[:, 0].mean()

    def run() -> None:
        given = model_inputs(training, training.user, training.item)
        model.fit(given, labels, batch_size=arguments["batch"], epochs=1, verbose=0)

    return run


if __name__ == "__main__":
    serve({"epoch": epoch})
