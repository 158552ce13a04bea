"""PyTorch's optimisers without its compiler, whose import takes longer than that of PyTorch itself.

Some methods of optimisers import ``torch._dynamo`` to tell it what not to compile. Nothing here is compiled, so that
the methods below them can be called directly; the arithmetic is PyTorch's. Where a version of PyTorch has no such
methods, its own are used.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch


class _WithoutCompiler(torch.optim.Optimizer):
    """Calls what the compiler's guards are wrapped around."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        inspect.unwrap(torch.optim.Optimizer.zero_grad)(self, set_to_none)

    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        with torch.no_grad():
            step: Any = super().step
            return inspect.unwrap(step.__func__)(self, closure)


class SGD(_WithoutCompiler, torch.optim.SGD):
    """Stochastic gradient descent."""


class Adam(_WithoutCompiler, torch.optim.Adam):
    """Adam."""
