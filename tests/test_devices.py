"""A training makes and meets every tensor on its device, and ends on the CPU with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from conftest import make_interactions, make_side
from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.models.architectures.mmoe import MMoE, MMoESettings
from multitask_recommender.models.architectures.shared_bottom import SharedBottom, SharedBottomSettings
from multitask_recommender.models.baselines.next_items import NextItems, NextItemsSettings
from multitask_recommender.models.document.document_system import DocumentSystemSettings, JointSystem
from multitask_recommender.models.training.devices import VARIABLE, choose_device, trained_on
from multitask_recommender.models.training.loop import TrainingSettings

GPU = torch.device("meta")
"""Stands for a GPU: a device that is not the CPU."""


class OnGPU(torch.Tensor):
    """A tensor that says it is on the GPU, and is calculated with on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGPU:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=GPU, requires_grad=inner.requires_grad
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return calculate(function, args, kwargs or {})


def calculate(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Calculate, and refuse tensors of both devices at once, save single numbers, as PyTorch does."""
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = [value for value in given if isinstance(value, OnGPU) or value.layout == torch.sparse_csr]
    here = [value for value in given if not any(value is other for other in there) and value.dim() > 0]
    name = str(function)
    moves = "_to_copy" in name
    assert moves or not (there and here), f"{name} meets tensors of two devices: {[t.shape for t in here]}"
    target = kwargs.get("device")
    on_gpu = bool(there) if target is None else torch.device(target).type == GPU.type
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    own, named = tree_map(lambda value: value.inner if isinstance(value, OnGPU) else value, (args, kwargs))
    found = function(*own, **named)
    if not function._schema.returns:
        return None
    if function._schema.name.endswith("_") and isinstance(given[0], OnGPU):
        if given[0].shape != given[0].inner.shape:  # Such as of squeeze_, which changes the tensor itself.
            with torch._C._DisableTorchDispatch():
                function(*args, **kwargs)
        return given[0]

    def placed(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.layout != torch.sparse_csr:
            return OnGPU(value) if on_gpu else value
        return value

    return tree_map(placed, found)


class PretendGPU(TorchDispatchMode):
    """Lets tensors be made on the GPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return calculate(function, args, kwargs or {})


TRAINING = TrainingSettings(epochs=2, batches=3, averaging=0.9, gradient_clip=1.0)
MODELS = {
    "shared_bottom": lambda: SharedBottom(SharedBottomSettings(dimension=4, item_dropout=0.2, training=TRAINING)),
    "softmax": lambda: SharedBottom(SharedBottomSettings(dimension=4, retrieval_loss="softmax", training=TRAINING)),
    "next_items": lambda: NextItems(NextItemsSettings(dimension=4, training=TRAINING)),
    "later": lambda: SharedBottom(SharedBottomSettings(dimension=4, hidden="later", training=TRAINING)),
    "mmoe": lambda: MMoE(MMoESettings(dimension=4, training=TRAINING)),
    "document": lambda: JointSystem(DocumentSystemSettings(dimension=4, training=TRAINING)),
}


@pytest.mark.parametrize("name", MODELS)
def test_training_stays_on_its_device(name: str) -> None:
    rows, side = make_interactions(40, 30, 8, 1), make_side(40, 30)
    here, there = MODELS[name](), MODELS[name]()
    usual = here.fit(rows, side, 5)
    with PretendGPU(), trained_on(GPU):
        curve = there.fit(rows, side, 5)
    assert len(curve.epochs) == len(usual.epochs)
    for own, other in zip(curve.epochs, usual.epochs, strict=True):
        assert own == pytest.approx(other, rel=1e-4, abs=1e-6)
    weights, others = there.state()["weights"], here.state()["weights"]
    for table in weights:
        assert isinstance(weights[table], np.ndarray)
        np.testing.assert_allclose(weights[table], others[table], atol=1e-3)


def test_two_devices_at_once_are_noticed() -> None:
    with PretendGPU():
        there = torch.ones(3, device=GPU)
        assert there.device == GPU
        with pytest.raises(AssertionError, match="two devices"):
            there + torch.ones(3)


def test_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="PyTorch sees none"):
        choose_device("cuda")
    with pytest.raises(SettingsError, match="no device 'gpu'"):
        choose_device("gpu")
