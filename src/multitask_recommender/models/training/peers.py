"""The processes that train one module together, as one of them sees them.

Users are divided among the processes, with all their rows. A step takes the batch that one process alone would take:
each process computes its own users' part of the losses, which are sums over rows (and over users, for a retrieval
task) divided by the numbers of rows of the whole batch. So what has to be summed over processes is, per step:

* the numbers of rows that the losses are divided by, before they are used;
* the gradients of what all users share: the item side, the history and feature tables, towers and heads. The
  whole-data squared loss needs nothing beyond that: it is <U'U, V'V> with U'U a sum over users, every process has the
  whole item side V, and the gradient 2 V (U'U) that reaches V through the Gram matrix is a sum over users as well;
* for a limit of the gradient, the squared length of the gradients of the users' own tables.

The users' identity vectors and biases are moved by their own rows alone: each process keeps those of its users, and
neither they nor their gradients travel. All processes then take the same step with the same optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Share:
    """Where some users stand in the batch of all processes.

    Attributes:
        users: (B,) places of the users among those of the whole batch.
        user_number: Number of users of the whole batch.
        row_begins: (B,) place of each user's first row among the rows of the whole batch.
        row_counts: (B,) numbers of their rows; None for a part of the rows, of which no process knows the whole.
        row_number: Number of rows of the whole batch.
    """

    users: Tensor
    user_number: int
    row_begins: Tensor
    row_counts: Tensor | None
    row_number: int

    @property
    def of_users(self) -> Share:
        """The same for a part of the users' rows."""
        return replace(self, row_counts=None)

    def places_of_rows(self) -> Tensor:
        """Return (n,) places of the users' rows among those of the whole batch."""
        assert self.row_counts is not None, "of a part of the rows no process knows the whole"
        ends = self.row_counts.cumsum(0)
        begins = torch.repeat_interleave(self.row_begins - (ends - self.row_counts), self.row_counts)
        return begins + torch.arange(len(begins))


class Alone:
    """One process that trains alone: nothing has to be summed."""

    def total(self, count: Tensor | int) -> Tensor | int:
        """Return the sum of a count over the processes."""
        return count

    def sums(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """Return the sums of named values over the processes."""
        return values

    def join_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients of what all users share over the processes."""

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float) -> None:
        """Scale the gradient down to a length."""
        nn.utils.clip_grad_norm_(parameters, limit)


class Together(Alone):
    """One of the processes of a ``torch.distributed`` group, which train together.

    Args:
        own: The parameters that hold a row per user of this process.
    """

    def __init__(self, own: Sequence[nn.Parameter]) -> None:
        self._own = {id(parameter) for parameter in own}

    def total(self, count: Tensor | int) -> Tensor | int:
        """Return the sum of a count over the processes."""
        number = torch.as_tensor(count).clone()
        dist.all_reduce(number)
        return number

    def sums(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """Return the sums of named values over the processes."""
        numbers = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(numbers)
        return dict(zip(values, numbers.tolist(), strict=True))

    def join_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients of what all users share, in one message."""
        shared = [parameter for parameter in parameters if id(parameter) not in self._own]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in shared]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for parameter, part in zip(shared, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float) -> None:
        """Scale the gradient down to a length, which is that over the users of all processes."""
        parts = {True: torch.zeros(()), False: torch.zeros(())}
        for parameter in parameters:
            if parameter.grad is not None:
                own = id(parameter) in self._own
                parts[own] = parts[own] + parameter.grad.square().sum()
        dist.all_reduce(parts[True])
        length = (parts[True] + parts[False]).sqrt()
        factor = (limit / (length + 1e-6)).clamp(max=1.0)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
