"""Experts, gates and heads: the parts that the architectures are put together from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Generic, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from multitask_recommender.foundation.settings_base import Settings

N = TypeVar("N", bound=nn.Module)


class ExpertSettings(Settings):
    """What experts and gates are made of.

    Attributes:
        expert_layers: Widths of the hidden layers of an expert; empty: linear experts.
        gate_layers: The same of a gate.
    """

    expert_layers: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = ()
    gate_layers: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = ()


class _HiddenLayers(nn.Module):
    """h_k = tanh(... tanh(x A_k1 + a_k1) A_k2 ...) for K networks of one shape at once.

    Args:
        number: K.
        widths: Lengths of the input and of the hidden layers.
        generator: Source of the initial A, normal with standard deviation 1 / sqrt(length of the input of a layer).
    """

    def __init__(self, number: int, widths: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.maps = nn.ParameterList(
            torch.randn(number, own, after, generator=generator) * own**-0.5 for own, after in pairwise(widths)
        )
        self.biases = nn.ParameterList(torch.zeros(number, 1, width) for width in widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, D) to (K, n, width of the last layer)."""
        hidden = x[None]
        for own, bias in zip(self.maps, self.biases, strict=True):
            hidden = torch.tanh(hidden @ own + bias)
        return hidden


class Experts(nn.Module):
    """Residual experts: z_k = x + h_k(x) E_k with hidden layers h, or z_k = x + x E_k without.

    They start near the identity and apart from each other. The inner product of two linear maps stays one.

    Args:
        number: K, the number of experts.
        dimension: D, length of the vectors.
        generator: Source of the initial E_k, normal with standard deviation 0.1 / sqrt(length of their input), and of
            the hidden layers.
        layers: Widths of the hidden layers.
    """

    def __init__(self, number: int, dimension: int, generator: torch.Generator, layers: Sequence[int] = ()) -> None:
        super().__init__()
        self.hidden = _HiddenLayers(number, [dimension, *layers], generator) if layers else None
        width = layers[-1] if layers else dimension
        self.maps = nn.Parameter(torch.randn(number, width, dimension, generator=generator) * 0.1 * width**-0.5)

    def whole_maps(self) -> Tensor:
        """Return (K, D, D) maps I + E_k of linear experts, so that z_k = x (I + E_k)."""
        assert self.hidden is None
        return self.maps + torch.eye(self.maps.shape[1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (n, D) to K outputs (n, D)."""
        if self.hidden is not None:
            return list(x + self.hidden(x) @ self.maps)
        maps = self.whole_maps()
        return list((x @ torch.cat(list(maps), dim=1)).split(maps.shape[2], dim=1))


class Gate(nn.Module):
    """Softmax weights of the experts: g(x) = softmax(h(x) W + b), which start equal; h is x without hidden layers.

    Args:
        dimension: D, length of the vectors.
        experts: K, the number of experts that it weighs.
        generator: Source of the initial hidden layers.
        layers: Their widths.
    """

    def __init__(self, dimension: int, experts: int, generator: torch.Generator, layers: Sequence[int] = ()) -> None:
        super().__init__()
        self.hidden = _HiddenLayers(1, [dimension, *layers], generator) if layers else None
        self.weight = nn.Parameter(torch.zeros(layers[-1] if layers else dimension, experts))
        self.bias = nn.Parameter(torch.zeros(experts))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, D) to (n, K) weights that sum to one."""
        seen = x if self.hidden is None else self.hidden(x)[0]
        return torch.softmax(seen @ self.weight + self.bias, dim=1)


def mix(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """Sum experts by their weights: (n, K) and K outputs (n, D) to (n, D)."""
    first, *others = zip(weights.split(1, dim=1), outputs, strict=True)
    total = first[0] * first[1]
    for weight, output in others:
        total = torch.addcmul(total, weight, output)
    return total


class PerTaskMatrices(nn.Module):
    """One matrix per task. The names of tasks are the user's, so they are not those of parameters.

    Args:
        tasks: Names of the tasks.
        matrices: Their initial matrices, in the same order.
    """

    def __init__(self, tasks: Iterable[str], matrices: Iterable[Tensor]) -> None:
        super().__init__()
        self.names = list(tasks)
        self.matrices = nn.ParameterList(nn.Parameter(matrix) for matrix in matrices)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Return the tasks with their matrices."""
        return zip(self.names, self.matrices, strict=True)

    def __getitem__(self, name: str) -> Tensor:
        """Return the matrix of a task."""
        return self.matrices[self.names.index(name)]


class PerTaskModules(nn.Module, Generic[N]):
    """One module per task; see :class:`PerTaskMatrices`.

    Args:
        modules: Task to its module.
    """

    def __init__(self, modules: Mapping[str, N]) -> None:
        super().__init__()
        self.names = list(modules)
        self.own = nn.ModuleList(modules.values())

    def items(self) -> Iterator[tuple[str, N]]:
        """Return the tasks with their modules."""
        return zip(self.names, cast(Iterable[N], self.own), strict=True)

    def __getitem__(self, name: str) -> N:
        """Return the module of a task."""
        return cast(N, self.own[self.names.index(name)])


def identity_heads(tasks: Iterable[str], dimension: int) -> PerTaskMatrices:
    """Make one linear head per task, starting at the identity."""
    names = list(tasks)
    return PerTaskMatrices(names, [torch.eye(dimension) for _ in names])
