"""The device that models are trained on: a GPU where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from multitask_recommender.foundation.errors import SettingsError

DEVICES = ("auto", "cpu", "cuda")
VARIABLE = "MULTITASK_RECOMMENDER_DEVICE"
"""Environment variable with one of ``DEVICES``, which reaches the processes that fit at the same time."""

_DEVICE: ContextVar[torch.device | None] = ContextVar("device", default=None)


def choose_device(name: str) -> None:
    """Let this process and those that it starts train on a device.

    Args:
        name: ``auto`` (the first GPU where PyTorch sees one, else the CPU), ``cpu`` or ``cuda``.

    Raises:
        SettingsError: If there is no such device.
    """
    where = "\n  where: 'training.device' in conf/*/parameters*.yml or --params\n  what to do: "
    if name not in DEVICES:
        raise SettingsError(f"There is no device '{name}'.{where}write {', '.join(DEVICES[:-1])} or {DEVICES[-1]}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            f"A GPU is asked for, and PyTorch sees none.{where}write auto or cpu, or install a driver and a build of "
            "PyTorch for the GPU."
        )
    os.environ[VARIABLE] = name


@contextmanager
def trained_on(device: torch.device) -> Iterator[None]:
    """Let all modules be trained on a device, for the time of a ``with`` statement."""
    token = _DEVICE.set(device)
    try:
        yield
    finally:
        _DEVICE.reset(token)


def device_now() -> torch.device:
    """Return the device that :func:`trained_on` or else :func:`choose_device` names; without them as for ``auto``."""
    device = _DEVICE.get()
    if device is None:
        gpu = os.environ.get(VARIABLE) != "cpu" and torch.cuda.is_available()
        device = torch.device("cuda" if gpu else "cpu")
    return device
