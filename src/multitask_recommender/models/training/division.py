"""One training divided among several processes: what each of them gets, does and gives back.

What starts the processes is not known here: a :class:`Launcher` does it (see ``spark/training.py``), by
:func:`train_share` in every process. :mod:`peers <multitask_recommender.models.training.peers>` says what is summed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from multitask_recommender.data.interactions import Interactions
from multitask_recommender.models.recommender import LearningCurve
from multitask_recommender.models.state import State, array, branch, read_matrix, store_matrix
from multitask_recommender.models.training.loop import TrainableModule, TrainingSettings, UserBatch, UserRows, train
from multitask_recommender.models.training.peers import Share, Together
from multitask_recommender.models.training.sparse_products import DesignMatrix

BALANCED = ("static", "dynamic_weight_average", "random")
"""Ways of loss balancing under which the gradient of a batch is the sum over its users."""


class DivisibleModule(TrainableModule, ABC):
    """A module whose losses can be taken user by user."""

    def user_tables(self) -> frozenset[str]:
        """Return the names of the parameters that hold a row per user of the training: they are not stored."""
        return frozenset()

    @abstractmethod
    def losses(self, batch: UserBatch) -> dict[str, Tensor]:
        """Return the losses of a batch, divided by the numbers of rows of the whole batch."""


@dataclass(frozen=True)
class Training:
    """A training that is to be divided.

    Attributes:
        name: Name of the model, for error messages.
        module: The module at its beginning; its user tables hold all users.
        rows: The training rows.
        settings: Optimiser, schedule and number of steps.
        generator: Source of all randomness, as it is before the first step.
        tasks: Which losses are those of tasks.
    """

    name: str
    module: DivisibleModule
    rows: UserRows
    settings: TrainingSettings
    generator: torch.Generator
    tasks: Sequence[str]

    def common(self) -> State:
        """Return what all processes get: the state of the generator, the users' numbers of rows, the catalogue."""
        return {
            "generator": self.generator.get_state().numpy(),
            "counts": self.rows.counts.numpy(),
            "catalogue": self.rows.catalogue.numpy(),
        }

    def share(self, rank: int, size: int) -> State:
        """Return what one process gets: every ``size``-th user, with rows, features and vectors."""
        rows, users = self.rows, torch.arange(rank, len(self.rows.counts), size)
        own = rows.batch(users)
        context = None if rows.context is None else rows.context.features[users.numpy()]
        state: State = {
            "user": own.row_user.numpy(),
            "item": own.row_item.numpy(),
            "labels": {name: label[own.row].numpy() for name, label in rows.labels.items()},
            "tables": {
                name: table[users].numpy()
                for name, table in self.module.state_dict().items()
                if name in self.module.user_tables()
            },
        }
        optional = {
            "weight": None if rows.weight is None else rows.weight[own.row].numpy(),
            "time": None if rows.time is None else rows.time[own.row].numpy(),
            "residuals": None if rows.residuals is None else rows.residuals[own.row].numpy(),
            "frozen": None if rows.frozen is None else rows.frozen[users].numpy(),
        }
        state |= {name: values for name, values in optional.items() if values is not None}
        if context is not None:
            state["context"] = store_matrix(context)
        return state

    def take(self, results: Sequence[State]) -> None:
        """Put what the processes give back into the module.

        Args:
            results: State by process: ``tables`` of its users and, from the first, ``weights``.
        """
        state = self.module.state_dict()
        for name, values in branch(results[0], "weights").items():
            state[name].copy_(torch.from_numpy(np.asarray(values)))
        for rank, result in enumerate(results):
            for name in self.module.user_tables():
                state[name][rank :: len(results)] = torch.from_numpy(array(branch(result, "tables"), name))


class Launcher(Protocol):
    """Starts processes that train together."""

    def __call__(self, training: Training) -> LearningCurve:
        """Train the module in several processes, put the result into it, and return the learning curve."""
        ...


_LAUNCHER: ContextVar[Launcher | None] = ContextVar("launcher", default=None)


@contextmanager
def trained_by(launcher: Launcher | None) -> Iterator[None]:
    """Let a launcher train every module that can be divided, for the time of a ``with`` statement."""
    token = _LAUNCHER.set(launcher)
    try:
        yield
    finally:
        _LAUNCHER.reset(token)


def launcher_now() -> Launcher | None:
    """Return the launcher that :func:`trained_by` names; None: modules are trained in this process."""
    return _LAUNCHER.get()


class SharedRows(UserRows):
    """The rows of the users of one process, which takes its users' part of every batch.

    Args:
        state: See :meth:`Training.share`.
        common: See :meth:`Training.common`.
        rank: Number of the process.
        size: Number of processes.
    """

    def __init__(self, state: State, common: State, rank: int, size: int) -> None:
        counts = torch.from_numpy(array(common, "counts"))
        self._all_counts, self._rank, self._size = counts, rank, size
        own = len(range(rank, len(counts), size))
        labels = {name: array(branch(state, "labels"), name) for name in branch(state, "labels")}
        rows = Interactions(
            user=array(state, "user"),
            item=array(state, "item"),
            labels=labels,
            relevant={},
            time=array(state, "time") if "time" in state else None,
            weight=array(state, "weight") if "weight" in state else None,
        )
        context = None
        if "context" in state:
            features = read_matrix(branch(state, "context"))
            assert isinstance(features, sparse.csr_matrix)
            context = DesignMatrix(features)
        frozen = torch.from_numpy(array(state, "frozen")) if "frozen" in state else None
        super().__init__(rows, own, context, frozen, torch.from_numpy(array(common, "catalogue")))
        # What the schedule counts are the users with rows of all processes.
        self.present = torch.nonzero(counts > 0).squeeze(1)
        if "residuals" in state:
            self.residuals = torch.from_numpy(array(state, "residuals"))

    @property
    def population(self) -> int:
        """Number of users of all processes."""
        return len(self._all_counts)

    def shuffled_batches(self, number: int, generator: torch.Generator) -> Iterator[UserBatch]:
        """Divide the users as one process alone would, and take those of this process from every batch."""
        for users in self.shuffled(generator).tensor_split(min(number, len(self.present))):
            places = torch.nonzero(users % self._size == self._rank).squeeze(1)
            counts = self._all_counts[users]
            own = self.batch((users[places] - self._rank) // self._size, generator)
            begins = (counts.cumsum(0) - counts)[places]
            whole = Share(places, len(users), begins, counts[places], int(counts.sum()))
            yield own.within(whole)


def train_share(
    name: str,
    module: DivisibleModule,
    settings: TrainingSettings,
    tasks: Sequence[str],
    common: State,
    state: State,
    rank: int,
    size: int,
) -> tuple[State, LearningCurve]:
    """Train one process's share, inside a ``torch.distributed`` group.

    Args:
        name: Name of the model.
        module: The module, whose user tables are those of no user.
        settings: Optimiser, schedule and number of steps.
        tasks: Which losses are those of tasks.
        common: See :meth:`Training.common`.
        state: See :meth:`Training.share`.
        rank: Number of the process.
        size: Number of processes.

    Returns:
        What :meth:`Training.take` takes, and the learning curve, which all processes know.
    """
    tables = branch(state, "tables")
    parameters = dict(module.named_parameters())
    for table in module.user_tables():
        parameters[table].data = torch.from_numpy(array(tables, table))
    rows = SharedRows(state, common, rank, size)
    rows.peers = Together([parameters[table] for table in module.user_tables()])
    generator = torch.Generator()
    generator.set_state(torch.from_numpy(array(common, "generator")))
    curve = train(name, module, module.losses, rows, settings, generator, tasks)
    found = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    own = {name: found.pop(name) for name in module.user_tables()}
    return {"tables": own, **({"weights": found} if rank == 0 else {})}, curve


def without_users(module: DivisibleModule) -> dict[str, Tensor]:
    """Take the users' tables out of a module, so that it is small enough to travel, and return them."""
    parameters = dict(module.named_parameters())
    taken = {name: parameters[name].data for name in module.user_tables()}
    for name, table in taken.items():
        parameters[name].data = table[:0]
    return taken
