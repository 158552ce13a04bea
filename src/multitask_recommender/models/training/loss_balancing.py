"""Loss balancing: what makes one gradient of several tasks' losses.

Losses come weighted by the static weights of the settings, and balancing works on top of them. Penalties are not
balanced. Static weights are the reference: on equal tuning they match the others (Kurin et al., NeurIPS 2022; Xin et
al., NeurIPS 2022), and random weighting is the litmus test for every other method.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from multitask_recommender.foundation.errors import SettingsError

Balancing = Literal[
    "static",
    "uncertainty",
    "dynamic_weight_average",
    "random",
    "famo",
    "pcgrad",
    "cagrad",
    "nash_mtl",
    "aligned_mtl",
    "upgrad",
]


_NASH_EVERY = 10
"""Steps between two bargains of Nash-MTL, as its authors propose to save time."""


class LossBalancing(nn.Module):
    """Static weights: the losses as they are.

    Attributes:
        looks_again: Whether :meth:`after_step` is called, which costs another pass over the batch.
    """

    looks_again = False

    def forward(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weigh the tasks' losses of one batch.

        Args:
            losses: Task to scalar loss.

        Returns:
            Scalars whose sum is to be minimised, by task or by what they stand for.
        """
        return losses

    def after_step(self, losses: dict[str, Tensor]) -> None:
        """Learn of the losses of the same batch, with what was drawn for it, after the step."""

    def end_epoch(self, means: Mapping[str, float]) -> None:
        """Learn of the tasks' mean losses in an epoch, before this module's weights."""


class UncertaintyWeighting(LossBalancing):
    """sum_t exp(-s_t) L_t + s_t / 2, with one trained s_t per task, the logarithm of its variance.

    Source: Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018, equation 10. The
    factor 1/2 of squared losses is left to the static weights.

    Args:
        tasks: Names of the tasks.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.places = {name: place for place, name in enumerate(tasks)}
        self.log_variance = nn.Parameter(torch.zeros(len(tasks)))

    def forward(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weigh by the inverse variances."""
        s = self.log_variance
        return {
            name: torch.exp(-s[self.places[name]]) * loss + 0.5 * s[self.places[name]] for name, loss in losses.items()
        }


class DynamicWeightAverage(LossBalancing):
    """w_t = T softmax_t(r_t / temperature), r_t the ratio of the task's mean losses of the last two epochs.

    A task whose loss falls slowly gets more weight; the first two epochs have equal weights.
    Source: Liu, Johns and Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019, equation 7.

    Args:
        temperature: How equal the weights are; the paper's value is 2.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.history: list[dict[str, float]] = []

    def weights(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return the weights of the present epoch."""
        if len(self.history) < 2:
            return dict.fromkeys(tasks, 1.0)
        before, last = self.history[-2:]
        ratios = torch.tensor([last[name] / max(before[name], 1e-12) for name in tasks], dtype=torch.float64)
        shares = torch.softmax(ratios / self.temperature, dim=0) * len(tasks)
        return dict(zip(tasks, shares.tolist(), strict=True))

    def forward(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weigh by the epoch's weights."""
        weights = self.weights(list(losses))
        return {name: weights[name] * loss for name, loss in losses.items()}

    def end_epoch(self, means: Mapping[str, float]) -> None:
        """Remember the epoch's losses."""
        self.history.append(dict(means))


class RandomWeighting(LossBalancing):
    """w_t = T softmax_t(e_t), e_t standard normal, drawn anew in every step.

    Source: Lin et al., Reasonable Effectiveness of Random Weighting, TMLR 2022, section 3.

    Args:
        generator: Source of the weights.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weigh at random."""
        weights = torch.softmax(torch.randn(len(losses), generator=self.generator, device="cpu"), dim=0) * len(losses)
        return {name: weight * loss for weight, (name, loss) in zip(weights, losses.items(), strict=True)}


class FastAdaptive(LossBalancing):
    """FAMO: weights under which the logarithms of all losses fall alike, learnt from losses before and after a step.

    Source: Liu et al., FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023, algorithm 1, by TorchJD. Its weights
    sum to 1; they are scaled by the number of tasks, so that all methods agree where the losses do.

    Args:
        tasks: Number of tasks.

    Raises:
        SettingsError: If TorchJD is not installed.
    """

    looks_again = True

    def __init__(self, tasks: int) -> None:
        super().__init__()
        _require_torchjd("famo")
        from torchjd.scalarization import FAMO

        self.tasks, self.scalarizer = tasks, FAMO(tasks)
        # It has an optimiser of its own.
        self.scalarizer.requires_grad_(True)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Return none: the weights are not trained with the model."""
        return iter(())

    def forward(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return one scalar for all."""
        return {"famo": self.tasks * self.scalarizer(torch.stack(list(losses.values())))}

    def after_step(self, losses: dict[str, Tensor]) -> None:
        """Learn the weights."""
        self.scalarizer.update(torch.stack(list(losses.values())))


def _require_torchjd(name: str) -> None:
    if importlib.util.find_spec("torchjd") is None:
        raise SettingsError(
            f"'balancing: {name}' needs TorchJD.\n  where: training.balancing of the model\n"
            "  what to do: pip install -c constraints.txt -e '.[balancing]'"
        )


class GradientAggregation(LossBalancing):
    """One gradient out of the tasks' gradients, by an aggregator of TorchJD.

    PCGrad: Yu et al., NeurIPS 2020. CAGrad: Liu et al., NeurIPS 2021. Nash-MTL: Navon et al., ICML 2022. Aligned-MTL:
    Senushkin et al., CVPR 2023. UPGrad: Quinton and Rey, Jacobian Descent, 2024. The tasks' gradients over the shared
    coordinates of the parameters form the rows of a Jacobian; a coordinate that one task alone moves, as in its head or
    its column of the biases, keeps that task's gradient, for there is nothing to settle. An aggregator that returns a
    mean of gradients is scaled by the number of tasks, so that all methods agree where the gradients do.

    Args:
        name: Name of the method.
        tasks: Number of tasks.
        generator: Source of the order in which PCGrad projects.

    Raises:
        SettingsError: If TorchJD is not installed.
    """

    def __init__(self, name: Balancing, tasks: int, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        _require_torchjd(name)
        from torchjd import aggregation

        self.scale = 1.0 if name == "pcgrad" else float(tasks)  # PCGrad sums the projected gradients.
        if name == "pcgrad":
            self.aggregate: nn.Module = aggregation.PCGrad()
        elif name == "cagrad":
            self.aggregate = aggregation.CAGrad(c=0.5)
            self.scale /= 1.5  # It returns 1 + c times the mean where the gradients agree.
        elif name == "nash_mtl":
            self.aggregate = aggregation.NashMTL(n_tasks=tasks, max_norm=0.0, update_weights_every=_NASH_EVERY)
            self.scale = 1.0
        elif name == "aligned_mtl":
            self.aggregate = aggregation.AlignedMTL()
        else:
            self.aggregate = aggregation.UPGrad()

    def backward(self, losses: dict[str, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        """Add the aggregated gradient of the tasks' losses to the parameters' gradients."""
        rows = []
        for loss in losses.values():
            own = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([gradient.flatten() for gradient in own]))
        # TorchJD draws from the global generator, and the solver of Nash-MTL warns of its own formulation.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=self.generator, device="cpu")))
            warnings.simplefilter("ignore")
            jacobian = torch.stack(rows)
            shared = torch.count_nonzero(jacobian, dim=0) > 1
            total = jacobian.sum(dim=0)
            if bool(shared.any()):
                total[shared] = self.scale * self.aggregate(jacobian[:, shared])
        at = 0
        for parameter in parameters:
            part = total[at : at + parameter.numel()].view_as(parameter)
            parameter.grad = part.clone() if parameter.grad is None else parameter.grad + part
            at += parameter.numel()


def make_loss_balancing(name: Balancing, tasks: Sequence[str], generator: torch.Generator) -> LossBalancing:
    """Make the method of this name.

    Args:
        name: The method.
        tasks: Names of the tasks.
        generator: Source of random weights.
    """
    if name == "static" or len(tasks) < 2:
        return LossBalancing()
    if name == "uncertainty":
        return UncertaintyWeighting(tasks)
    if name == "dynamic_weight_average":
        return DynamicWeightAverage()
    if name == "random":
        return RandomWeighting(generator)
    if name == "famo":
        return FastAdaptive(len(tasks))
    return GradientAggregation(name, len(tasks), generator)
