"""Experts, gates and heads: the parts that the architectures are put together from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)


class Experts(nn.Module):
    """Residual linear experts: z_k = x + x E_k.

    They start near the identity and apart from each other, and the inner product of two linear maps stays one.

    Args:
        number: K, the number of experts.
        dimension: D, length of the vectors.
        generator: Source of the initial E_k, normal with standard deviation 0.1 / sqrt(D).
    """

    def __init__(self, number: int, dimension: int, generator: torch.Generator) -> None:
        super().__init__()
        initial = torch.randn(number, dimension, dimension, generator=generator)
        self.maps = nn.Parameter(initial * 0.1 * dimension**-0.5)

    def whole_maps(self) -> Tensor:
        """Return (K, D, D) maps I + E_k, so that z_k = x (I + E_k)."""
        return self.maps + torch.eye(self.maps.shape[1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (n, D) to K outputs (n, D)."""
        maps = self.whole_maps()
        return list((x @ torch.cat(list(maps), dim=1)).split(maps.shape[2], dim=1))


class Gate(nn.Module):
    """Softmax weights of the experts: g(x) = softmax(x W + b), which start equal.

    Args:
        dimension: D, length of the vectors.
        experts: K, the number of experts that it weighs.
    """

    def __init__(self, dimension: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dimension, experts))
        self.bias = nn.Parameter(torch.zeros(experts))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, D) to (n, K) weights that sum to one."""
        return torch.softmax(x @ self.weight + self.bias, dim=1)


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
