"""The one training loop: user-wise batches, any module, any loss, any optimiser of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from multitask_recommender.data.interactions import Interactions
from multitask_recommender.data.recency import Recency
from multitask_recommender.foundation.errors import TrainingError
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import LearningCurve
from multitask_recommender.models.training import optimisers
from multitask_recommender.models.training.devices import device_now
from multitask_recommender.models.training.loss_balancing import Balancing, GradientAggregation, make_loss_balancing
from multitask_recommender.models.training.peers import Alone, Share
from multitask_recommender.models.training.sparse_products import DesignMatrix, Pairs


class TrainingSettings(Settings):
    """How a module is trained.

    Attributes:
        optimiser: ``sgd`` (with momentum 0.9) or ``adam``.
        learning_rate: Peak learning rate of the one-cycle schedule (Smith and Topin, 2018).
        encoder_rate: Factor on the learning rate for the parameters that a module lists in ``slow_parameters``.
        expert_rate: The same for those in ``expert_parameters``.
        epochs: Passes over the training rows.
        batches: Batches of users an epoch.
        gradient_clip: Largest length of the gradient over all parameters; longer ones are scaled down to it.
            Null: no limit.
        balancing: How the tasks' losses are balanced beyond their static weights (see ``loss_balancing``).
        averaging: Decay per step of an exponential moving average of the weights over the last 40 % of the steps, which
            replaces them in the end (Polyak and Juditsky, 1992). Null: the last weights are kept.
    """

    optimiser: Literal["sgd", "adam"] = "adam"
    learning_rate: float = Field(default=0.01, gt=0, le=1e38)
    encoder_rate: float = Field(default=0.1, gt=0, le=1e6)
    expert_rate: float = Field(default=0.015, gt=0, le=1e6)
    epochs: int = Field(default=30, ge=1, le=100_000)
    batches: int = Field(default=8, ge=1, le=10**6)
    gradient_clip: float | None = Field(default=None, gt=0, le=1e9)
    balancing: Balancing = "static"
    averaging: float | None = Field(default=None, gt=0, lt=1)


@dataclass(frozen=True)
class UserBatch:
    """Some users with their rows.

    Attributes:
        source: All rows that the batch is taken from.
        users: (B,) numbers of the users.
        row: (n,) numbers of the rows among all rows.
        row_user: (n,) place of each row's user within ``users``; ascending.
        row_item: (n,) items.
        generator: Source of the batch's randomness, such as dropout; None: nothing is random.
        share: What a user counts in sums over users and all items: less than 1 where a user's rows are divided among
            several places in ``users``.
        weight: (n,) what each row counts, where it is not what the source says.
        whole: Where the users stand in the batch of all processes, in a training by several; None: they are all of it.
    """

    source: UserRows
    users: Tensor
    row: Tensor
    row_user: Tensor
    row_item: Tensor
    generator: torch.Generator | None
    share: float = 1.0
    weight: Tensor | None = None
    whole: Share | None = None

    @cached_property
    def pairs(self) -> Pairs:
        """The rows as pairs (place of the user, item)."""
        return Pairs.of(self.row_user, self.row_item, len(self.users))

    @property
    def catalogue(self) -> Tensor:
        """(m,) numbers of the items with training rows, ascending."""
        return self.source.catalogue

    @cached_property
    def counts(self) -> Tensor:
        """(B,) numbers of the users' rows."""
        return torch.bincount(self.row_user, minlength=len(self.users))

    @cached_property
    def row_weight(self) -> Tensor | None:
        """(n,) what each row of a history counts; None: all count alike."""
        if self.weight is not None:
            return self.weight
        return None if self.source.weight is None else self.source.weight.index_select(0, self.row)

    @cached_property
    def position(self) -> Tensor:
        """(n,) place of each row among those of its user."""
        return torch.arange(len(self.row)) - (self.counts.cumsum(0) - self.counts)[self.row_user]

    def label(self, task: str) -> Tensor:
        """Return (n,) the rows' labels of a task, NaN where it does not ask."""
        return self.source.labels[task].index_select(0, self.row)

    def weighted(self, recency: Recency) -> UserBatch:
        """Return the batch with its rows weighed by their age among those of the batch."""
        time = None if self.source.time is None else self.source.time[self.row].cpu().numpy()
        weights = recency.weights(self.row_user.cpu().numpy(), len(self.users), time)
        return self if weights is None else replace(self, weight=torch.from_numpy(weights).to(self.row.device))

    def part(self, chosen: Tensor) -> UserBatch:
        """Return the same users with those of their rows alone for which ``chosen`` (n,) is true."""
        rows = torch.nonzero(chosen).squeeze(1)
        return replace(
            self,
            row=self.row.index_select(0, rows),
            row_user=self.row_user.index_select(0, rows),
            row_item=self.row_item.index_select(0, rows),
            weight=None if self.weight is None else self.weight.index_select(0, rows),
            whole=None if self.whole is None else self.whole.of_users,
        )

    def divided(self, part: Tensor, parts: int) -> UserBatch:
        """Return the batch in which a user stands ``parts`` times, each time with the rows of one ``part`` (n,)."""
        owner = self.row_user * parts + part
        order = torch.argsort(owner, stable=True)
        return replace(
            self,
            users=self.users.repeat_interleave(parts),
            row=self.row[order],
            row_user=owner[order],
            row_item=self.row_item[order],
            share=self.share / parts,
            weight=None if self.weight is None else self.weight[order],
            whole=None,
        )

    def of_catalogue(self, items: Tensor) -> Tensor:
        """Return the rows of a table of all items (items, d) that belong to the catalogue (m, d).

        That an item without training rows was never chosen says nothing about it: nobody was shown it.
        """
        return items if len(self.catalogue) == len(items) else items.index_select(0, self.catalogue)

    def observed(self, place: Tensor, item: Tensor) -> Tensor:
        """Return (k,) whether the batch has a row of the user at a place (k,) with an item (k,)."""
        items = int(max(item.max(), self.row_item.max())) + 1 if len(item) and len(self.row_item) else 1
        return torch.isin(self.users[place] * items + item, self.users[self.row_user] * items + self.row_item)

    def within(self, whole: Share) -> UserBatch:
        """Return the batch as a part of that of all processes."""
        return replace(self, whole=whole)

    def total(self, count: Tensor | int) -> Tensor | int:
        """Return the sum of a count over the batches of all processes that train together."""
        return self.source.peers.total(count)

    def random_per_user(self) -> Tensor:
        """Draw (B,) numbers from 0 to 1, the same for a user however the batch is divided among processes."""
        number = len(self.users) if self.whole is None else self.whole.user_number
        drawn = self.random(number)
        return drawn if self.whole is None else drawn[self.whole.users]

    def integers_per_user(self, high: int) -> Tensor:
        """Draw (B,) whole numbers below ``high``, in the same way."""
        number = len(self.users) if self.whole is None else self.whole.user_number
        drawn = self._integers(high, number)
        return drawn if self.whole is None else drawn[self.whole.users]

    def random_per_row(self) -> Tensor:
        """Draw (n,) numbers from 0 to 1, the same for a row however the batch is divided among processes."""
        number = len(self.row) if self.whole is None else self.whole.row_number
        drawn = self.random(number)
        return drawn if self.whole is None else drawn[self.whole.places_of_rows()]

    def random(self, *shape: int) -> Tensor:
        """Draw numbers from 0 to 1. They are drawn on the CPU, so that they are the same on every device."""
        return torch.rand(shape, generator=self.generator, device="cpu").to(self.row.device)

    def _integers(self, high: int, number: int) -> Tensor:
        return torch.randint(high, (number,), generator=self.generator, device="cpu").to(self.row.device)

    def draw_items(self, number: int) -> Tensor:
        """Draw (n number,) items of the catalogue, so many for every row.

        Without a generator they are spread over the catalogue by the row's place in its history (a Kronecker sequence
        of the golden ratio), so that they depend on nothing else.
        """
        assert self.whole is None, "what is drawn per row of a part is not the same for all divisions"
        if self.generator is not None:
            place = self._integers(len(self.catalogue), len(self.row) * number)
        else:
            point = (self.position[:, None] * number + torch.arange(number)).flatten().double()
            place = ((point * _GOLDEN % 1.0) * len(self.catalogue)).long()
        return self.catalogue[place]

    def sample_items(self, number: int) -> Tensor:
        """Draw (number,) items of the catalogue for all rows together; without a generator, spread evenly over it."""
        if self.generator is not None:
            return self.catalogue[self._integers(len(self.catalogue), number)]
        return self.catalogue[torch.arange(number) * len(self.catalogue) // number]


_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def _shared(array: np.ndarray) -> Tensor:
    """Return a tensor of the same memory; of a copy where the array is read-only, as one of a table may be."""
    return torch.from_numpy(array) if array.flags.writeable else torch.tensor(array)


class UserRows:
    """Rows as flat arrays with offsets per user: the histories, and what else is known of the users.

    Args:
        rows: Rows sorted by user.
        users: Number of users.
        context: Features of the users, or None.
        frozen: (users, k) vectors of a user embedding model that is not trained any more, or None.
        catalogue: (m,) items with training rows; None: those of the rows.

    Attributes:
        weight: (rows,) what a row of a history counts; None: all count alike.
        time: (rows,) seconds; None where the data has no times.
        residuals: (rows,) what biases leave of the label that the history encoder reads; None where it reads none.
        grams: Task to the Gram matrix of the item vectors over the catalogue, where these are not in training.
        peers: The processes that train together; in this one alone unless :mod:`division
            <multitask_recommender.models.training.division>` says otherwise.
    """

    def __init__(
        self,
        rows: Interactions,
        users: int,
        context: DesignMatrix | None = None,
        frozen: Tensor | None = None,
        catalogue: Tensor | None = None,
    ) -> None:
        self.user = _shared(rows.user)
        self.counts = torch.bincount(self.user, minlength=users)
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), self.counts.cumsum(0)])
        self.item = _shared(rows.item)
        self.labels = {task: _shared(label) for task, label in rows.labels.items()}
        self.weight = None if rows.weight is None else _shared(rows.weight)
        self.time = None if rows.time is None else _shared(rows.time)
        self.context, self.frozen = context, frozen
        self.catalogue = torch.unique(self.item) if catalogue is None else catalogue
        self.present = torch.nonzero(self.counts > 0).squeeze(1)
        self.residuals: Tensor | None = None
        self.grams: dict[str, Tensor] = {}
        self.peers = Alone()

    @property
    def population(self) -> int:
        """Number of users, those of other processes included."""
        return len(self.counts)

    def batch(self, users: Tensor, generator: torch.Generator | None = None) -> UserBatch:
        """Gather all rows of some users."""
        counts = self.counts[users]
        row_user = torch.repeat_interleave(torch.arange(len(users)), counts)
        begins = (self.offsets[users] - (counts.cumsum(0) - counts)).index_select(0, row_user)
        row = begins + torch.arange(len(row_user))
        return UserBatch(self, users, row, row_user, self.item.index_select(0, row), generator)

    def everyone(self) -> UserBatch:
        """All users in one batch, without randomness."""
        return self.batch(torch.arange(len(self.counts)))

    def shuffled_batches(self, number: int, generator: torch.Generator) -> Iterator[UserBatch]:
        """Divide the users with rows into ``number`` random batches."""
        for users in self.shuffled(generator).tensor_split(min(number, len(self.present))):
            yield self.batch(users, generator)

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """Return the users with rows in a random order."""
        order = torch.randperm(len(self.present), generator=generator, device="cpu")
        return self.present[order.to(self.present.device)]

    def move(self, device: torch.device) -> None:
        """Bring all tensors to a device."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        self.labels = {task: label.to(device) for task, label in self.labels.items()}

    def blocks(self, size: int) -> Iterator[UserBatch]:
        """The users with rows in order, ``size`` at a time, without randomness."""
        for users in self.present.split(size):
            yield self.batch(users)


class TrainableModule(nn.Module):
    """A module that may name parameters to train with the slower rate."""

    def slow_parameters(self) -> list[nn.Parameter]:
        """Return the parameters trained with ``encoder_rate`` times the learning rate."""
        return []

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return the parameters trained with ``expert_rate`` times the learning rate."""
        return []


def new_generator(seed: int) -> torch.Generator:
    """Return a generator of its own, so that no global random state is read or changed."""
    return torch.Generator().manual_seed(seed)


def train(
    name: str,
    module: TrainableModule,
    losses: Callable[[UserBatch], Mapping[str, Tensor]],
    rows: UserRows,
    settings: TrainingSettings,
    generator: torch.Generator,
    tasks: Sequence[str] = (),
    observe: Callable[[int, Mapping[str, Tensor]], None] | None = None,
) -> LearningCurve:
    """Minimise the sum of the losses, those of tasks balanced as the settings say.

    It runs on the device that :func:`trained_on <multitask_recommender.models.training.devices.trained_on>` names. All
    that is random is drawn on the CPU, so that devices differ by the rounding of sums alone.

    Args:
        name: Name of the model, for error messages.
        module: The module to train.
        losses: Batch to named scalar losses, already weighted.
        rows: The training rows.
        settings: Optimiser, schedule and number of steps.
        generator: Source of all randomness.
        tasks: Which losses are those of tasks.
        observe: Called on the first batch of every epoch with its number and the losses, before their gradients.

    Returns:
        The mean of every loss per epoch.

    Raises:
        TrainingError: If a loss is not finite, or a weight in the end; names model, loss, epoch and step.
    """
    device = device_now()
    if device.type == "cpu":
        return _train(name, module, losses, rows, settings, generator, tasks, observe)
    module.to(device)
    rows.move(device)
    try:
        with device:
            return _train(name, module, losses, rows, settings, generator, tasks, observe)
    finally:
        module.cpu()
        rows.move(torch.device("cpu"))


def _train(
    name: str,
    module: TrainableModule,
    losses: Callable[[UserBatch], Mapping[str, Tensor]],
    rows: UserRows,
    settings: TrainingSettings,
    generator: torch.Generator,
    tasks: Sequence[str],
    observe: Callable[[int, Mapping[str, Tensor]], None] | None,
) -> LearningCurve:
    slow, experts = module.slow_parameters(), module.expert_parameters()
    apart = {id(parameter) for parameter in (*slow, *experts)}
    balancing = make_loss_balancing(settings.balancing, tasks, generator)
    parameters = list(module.parameters())
    fast = [parameter for parameter in (*parameters, *balancing.parameters()) if id(parameter) not in apart]
    factors = (1.0, settings.encoder_rate, settings.expert_rate)
    groups = [
        {"params": parameters, "lr": settings.learning_rate * factor}
        for parameters, factor in zip((fast, slow, experts), factors, strict=True)
        if parameters
    ]
    optimiser: torch.optim.Optimizer
    if settings.optimiser == "sgd":
        optimiser = optimisers.SGD(groups, momentum=0.9)
    else:
        optimiser = optimisers.Adam(groups, betas=(0.9, 0.99), fused=rows.item.device.type in ("cpu", "cuda"))
    steps = settings.epochs * min(settings.batches, len(rows.present))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        [group["lr"] for group in optimiser.param_groups],
        total_steps=max(steps, 8),  # The schedule divides by the length of its warm-up less one.
        pct_start=0.25,
        cycle_momentum=False,
    )
    curve = LearningCurve()
    average: list[Tensor] = []
    step = 0
    module.train()
    for epoch in range(settings.epochs):
        totals: dict[str, float] = {}
        number = 0
        for batch in rows.shuffled_batches(settings.batches, generator):
            drawn = generator.get_state() if balancing.looks_again else None
            parts = losses(batch)
            if observe is not None and number == 0:
                observe(epoch, parts)
            optimiser.zero_grad(set_to_none=True)
            own = {name: loss for name, loss in parts.items() if name in tasks}
            others = [loss for name, loss in parts.items() if name not in tasks]
            if isinstance(balancing, GradientAggregation):
                torch.stack(others).sum().backward(retain_graph=True)
                balancing.backward(own, parameters)
            else:
                torch.stack([*balancing(own).values(), *others]).sum().backward()
            rows.peers.join_gradients(parameters)
            if settings.gradient_clip is not None:
                rows.peers.clip_gradients(parameters, settings.gradient_clip)
            optimiser.step()
            schedule.step()
            if drawn is not None:
                # The same is drawn once more, and what comes next does not notice.
                further = generator.get_state()
                generator.set_state(drawn)
                with torch.no_grad():
                    again = losses(batch)
                generator.set_state(further)
                balancing.after_step({name: loss for name, loss in again.items() if name in tasks})
            step += 1
            if settings.averaging is not None and step >= 0.6 * steps:
                weights = [parameter.detach() for parameter in parameters]
                if average:
                    torch._foreach_lerp_(average, weights, 1.0 - settings.averaging)
                else:
                    average = [weight.clone() for weight in weights]
            number += 1
            # All processes that train together see the same, and stop together.
            for part, loss in rows.peers.sums({part: value.item() for part, value in parts.items()}).items():
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"The loss of '{part}' in model '{name}' is {loss} in epoch {epoch + 1} of {settings.epochs}, "
                        f"step {number}.",
                        "lower the model's learning_rate, or check the labels of that task for extreme values.",
                    )
                totals[part] = totals.get(part, 0.0) + loss
        means = {part: total / number for part, total in totals.items()}
        balancing.end_epoch({name: mean for name, mean in means.items() if name in tasks})
        curve.epochs.append(means)
    for parameter, averaged in zip(parameters, average, strict=False):
        parameter.data.copy_(averaged)
    for weight, parameter in module.named_parameters():
        # The last step can lead astray, and no loss is computed after it.
        if not torch.isfinite(parameter).all():
            raise TrainingError(
                f"The weights '{weight}' of model '{name}' are not finite after epoch {settings.epochs}.",
                "lower the model's learning_rate, or check the labels for extreme values.",
            )
    module.eval()
    return curve
