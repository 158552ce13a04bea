"""The way from a history to a user's vectors as an ONNX model, for whoever answers without Python.

What the towers do with rows (``towers.multi_task``) is done here with dense matrices, queries x items, in double
precision: an ONNX model has no sparse products, and no Cholesky factor.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from multitask_recommender.data.queries import Queries
from multitask_recommender.foundation.errors import RequestError
from multitask_recommender.models.per_task import PerTask
from multitask_recommender.models.recommender import Recommender
from multitask_recommender.models.state import array
from multitask_recommender.models.towers.fold_in import division
from multitask_recommender.models.towers.multi_task import FOLD_IN_STEPS, MultiTaskModule
from multitask_recommender.models.towers.two_tower import NeuralRecommender, TwoTowerModule
from multitask_recommender.models.towers.user_side import USER_SHRINKAGE, HistoryResiduals

if TYPE_CHECKING:
    from multitask_recommender.use.recommender import LoadedRecommender


def export_onnx(recommender: LoadedRecommender, path: str | Path) -> Path:
    """Write an ONNX model that turns histories into the vectors which ``export_vectors`` writes of users.

    Inputs, of which :func:`dense_inputs` makes some: ``position`` (B, items) int64, the place of an item in the history
    from 1 on, 0 where it is not in it; ``labels`` (B, items, tasks) float32, NaN where there is none; ``context`` (B,
    columns) float32. Outputs: one (B, d) per task, by its name. Items, tasks and columns are those of the run.

    Args:
        recommender: A model with linear towers and the squared loss for retrieval tasks, such as ``shared_bottom``,
            ``single_task`` or ``svd_plus_plus``.
        path: File to write.

    Raises:
        RequestError: If the model is another, or the packages of the extra ``onnx`` are missing.
    """
    module = DenseUserVectors(recommender)
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RequestError(
            f"The package '{error.name}' is not installed.", "export", "install the extra: pip install '.[onnx]'"
        ) from error
    position, labels, context = dense_inputs(recommender, recommender.every_user().take(np.arange(2))).values()
    batch = torch.export.Dim("queries", min=1, max=2**20)
    with warnings.catch_warnings():
        # Of the exporter's own making.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (torch.from_numpy(position), torch.from_numpy(labels), torch.from_numpy(context)),
            input_names=["position", "labels", "context"],
            output_names=module.names,
            dynamic_shapes=({0: batch}, {0: batch}, {0: batch}),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    program.save(str(partial), external_data=False)
    return partial.replace(path)


def dense_inputs(recommender: LoadedRecommender, queries: Queries) -> dict[str, np.ndarray]:
    """Return queries as the inputs of the ONNX model."""
    history, tasks, items = queries.history, list(recommender.run.tasks), recommender.run.side.items
    counts = np.bincount(history.user, minlength=len(queries))
    position = np.zeros((len(queries), items), np.int64)
    position[history.user, history.item] = np.arange(len(history)) - (np.cumsum(counts) - counts)[history.user] + 1
    labels = np.full((len(queries), items, len(tasks)), np.nan, np.float32)
    for number, task in enumerate(tasks):
        labels[history.user, history.item, number] = history.labels[task]
    return {"position": position, "labels": labels, "context": queries.context.toarray()}


class DenseUserVectors(nn.Module):
    """All tasks of a recommender: one :class:`DenseFoldIn`, or one per task.

    Args:
        recommender: The fitted model.

    Raises:
        RequestError: If it is not of the class that can be exported.
    """

    def __init__(self, recommender: LoadedRecommender) -> None:
        super().__init__()
        model, tasks = recommender.model, list(recommender.run.tasks)
        parts = list(model.parts.values()) if isinstance(model, PerTask) else [model]
        own = [DenseFoldIn(part, tasks, recommender.run.name) for part in parts]
        self.parts = nn.ModuleList(own)
        self.names = [name for part in own for name in part.names]

    def forward(self, position: Tensor, labels: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        """Return the (B, d) vectors of the tasks."""
        return tuple(vector for part in self.parts for vector in part(position, labels, context))


class DenseFoldIn(nn.Module):
    """``MultiTaskModule.query_vectors`` for linear towers, on dense matrices.

    With X_t (items, D + tasks) the items' vectors as they meet q = (identity, biases), the score of task t is
    X_t q + c, where c is what history, context and constants give. The losses are minimised in q.

    Args:
        model: The fitted recommender.
        tasks: Names of the tasks in the order of the labels.
        name: Name of the model, for errors.
    """

    def __init__(self, model: Recommender, tasks: list[str], name: str) -> None:
        super().__init__()
        module = _supported(model, name)
        assert isinstance(model, NeuralRecommender)
        self.names, self.settings, self.scales = list(module.tasks), module.settings, module.scales
        self.kinds = {task: own.kind for task, own in module.tasks.items()}
        self.place = {task: tasks.index(task) for task in self.names}
        # What a row counts, as in ``MultiTaskModule``.
        share = dict(zip(self.names, module.label_share.tolist(), strict=True))
        self.weights = {
            task: module.weights[task] / (1.0 if kind == "retrieval" else share[task])
            for task, kind in self.kinds.items()
        }
        reads = module.users.reads_rows
        self.number_of_parts, self.hidden = division(self.settings.history_dropout if reads else 0.0)
        self.width, self.number = module.users.tower.width, len(self.names)
        catalogue = torch.zeros(len(module.items.identity), dtype=torch.float64)
        catalogue[torch.from_numpy(array(model.state(), "catalogue"))] = 1.0
        maps, jacobians = module.last_maps(), module.users.tower.jacobians(torch.zeros(1, self.width))
        gram = torch.zeros(self.width + self.number, self.width + self.number, dtype=torch.float64)
        for place, (task, vectors) in enumerate(model.item_vectors.items()):
            through = (jacobians[task] @ maps[task])[0].double()  # (D, d)
            which = torch.eye(self.number, dtype=torch.float64)[place].expand(len(vectors), -1)
            design = torch.cat([vectors[:, : through.shape[1]].double() @ through.T, which], dim=1)
            self.register_buffer(f"through_{place}", through)
            self.register_buffer(f"design_{place}", design)
            self.register_buffer(f"offset_{place}", vectors[:, -self.number + place].double() + module.constant[place])
            if self.kinds[task] == "retrieval":
                gram = gram + 2.0 * self.weights[task] * (design * catalogue[:, None]).T @ design
        none, one = (
            module.penalty.curvature(torch.tensor([rows]), jacobians, module.users.tower) for rows in (0.0, 1.0)
        )
        fixed, per_row = (torch.block_diag(own[0][0], torch.diag(own[1][0])).double() for own in (none, one))
        self.users = copy.deepcopy(module.users).double()
        self.register_buffer("constant", module.constant.double())
        self.register_buffer("catalogue", catalogue)
        self.register_buffer("fixed", gram + fixed + 1e-6 * torch.eye(len(gram), dtype=torch.float64))
        self.register_buffer("per_row", per_row - fixed)

    constant: Tensor
    fixed: Tensor
    per_row: Tensor
    catalogue: Tensor

    def forward(self, position: Tensor, labels: Tensor, context: Tensor) -> list[Tensor]:
        """Return the (B, d) vectors of the tasks; arguments as in :func:`export_onnx`."""
        users = self.users
        present = position > 0
        counts = present.double().sum(1, keepdim=True)
        part = (position - 1) % self.number_of_parts
        # Sizes are never asked for as numbers: they would become part of the ONNX model.
        added = counts * counts.new_zeros(self.width)
        if users.context is not None:
            added = context.double() @ users.context.vectors
        residual = self._residuals(present, labels)
        turns = range(self.number_of_parts)
        told = [
            self._encode((part + turn) % self.number_of_parts >= self.hidden, present, residual, counts)
            for turn in turns
        ]
        if self.number_of_parts > 1:
            # As in ``crossed``: every part is told from the encodings that have not seen it.
            hides = [[(own + turn) % self.number_of_parts < self.hidden for turn in turns] for own in turns]
            told = [torch.stack([told[turn] for turn in turns if hides[own][turn]]).mean(0) for own in turns]
        told = [vector + added for vector in told]
        point = self._solve(told, part, present, labels, counts)
        known = counts > 0
        history = self._encode(present, present, residual, counts, whole=True)
        shared = torch.where(known, point[:, : self.width] + history, users.prior) + added
        bias = torch.where(known, point[:, self.width :], users.prior_bias) + self.constant
        which = torch.eye(self.number, dtype=torch.float64)
        return [
            torch.cat(
                [shared @ self._of("through", place), bias[:, place : place + 1], which[place] + 0.0 * bias], dim=1
            ).float()
            for place in range(self.number)
        ]

    def _of(self, what: str, place: int) -> Tensor:
        found = getattr(self, f"{what}_{place}")
        assert isinstance(found, Tensor)
        return found

    def _residuals(self, present: Tensor, labels: Tensor) -> Tensor:
        """Return (B, items) what the biases leave of the labels that the encoder reads, as ``HistoryResiduals``."""
        residuals = self.users.residuals
        if not isinstance(residuals, HistoryResiduals):
            return present.double() * 0.0
        assert self.users.history_task is not None
        label = labels[:, :, self.place[self.users.history_task]].double()
        asked = present & ~torch.isnan(label)
        mean, spread = residuals.scale
        item_bias = residuals.item_bias
        label = torch.where(asked, label, 0.0)
        standard = (label - mean) / spread
        total = torch.where(asked, standard - item_bias, 0.0).sum(1, keepdim=True)
        predicted = total / (USER_SHRINKAGE + asked.double().sum(1, keepdim=True)) + item_bias
        if residuals.binary:
            predicted, standard = torch.sigmoid(predicted + torch.logit(mean)), label
        return torch.where(asked, standard - predicted, 0.0)

    def _encode(self, seen: Tensor, present: Tensor, residual: Tensor, counts: Tensor, whole: bool = False) -> Tensor:
        """Return (B, D) the encodings of the seen parts of the histories, as ``UserSide.encode_history``."""
        users = self.users
        if users.history is None:
            return counts * counts.new_zeros(self.width)
        hidden = 0.0 if whole else self.hidden / self.number_of_parts
        factor = counts.clamp(min=1.0).pow(-self.settings.history_exponent) / (1.0 - hidden)
        weight = (seen & present).double() * factor
        summed = weight @ users.history
        if users.label_history is not None:
            summed = summed + (weight * residual) @ users.label_history
        encoded: Tensor = users.encoder(summed)
        return encoded

    def _solve(self, told: list[Tensor], part: Tensor, present: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        """Return (B, D + tasks) the identity vectors and biases, as ``MultiTaskModule.fold_in``."""
        hessian = self.fixed + counts[:, :, None] * self.per_row
        bound, start = hessian, torch.zeros_like(hessian[:, 0])
        logistic = []
        for place, task in enumerate(self.names):
            design, weight = self._of("design", place), self.weights[task]
            label = labels[:, :, self.place[task]].double()
            asked = (present & ~torch.isnan(label)).double()
            label = torch.where(asked > 0, label, 0.0)
            scores = [vector @ design[:, : self.width].T + self._of("offset", place) for vector in told]
            own = scores[0] * 0.0
            for number, score in enumerate(scores):
                own = own + torch.where(part == number, score, 0.0)
            if self.kinds[task] == "binary":
                bound = bound + _weighted_gram(design, 0.25 * weight * asked)
                logistic.append((design, weight, asked, own, label))
                continue
            if self.kinds[task] == "retrieval":
                positive = self.settings.positive_weight
                rows = 2.0 * positive * weight * asked
                slope = asked * (-2.0 * (1.0 + positive) * (1.0 - own) - 2.0 * own)
                everywhere = torch.stack(scores).mean(0) * self.catalogue
                slope = weight * (slope + 2.0 * everywhere)
            else:
                mean, spread, _, _ = self.scales.values[task]
                rows = 2.0 * weight * asked
                slope = weight * 2.0 * asked * (own - (label - mean) / spread)
            own_hessian = _weighted_gram(design, rows)
            hessian, bound, start = hessian + own_hessian, bound + own_hessian, start + slope @ design
        inverse = _inverse(bound)
        point = torch.zeros_like(start)
        for _ in range(FOLD_IN_STEPS if logistic else 1):
            slope = start + (hessian @ point[:, :, None])[:, :, 0]
            for design, weight, asked, offset, label in logistic:
                slope = slope + (weight * asked * (torch.sigmoid(point @ design.T + offset) - label)) @ design
            point = point - (inverse @ slope[:, :, None])[:, :, 0]
        return point


def _weighted_gram(design: Tensor, weight: Tensor) -> Tensor:
    """Return (B, k, k) X' diag(w) X for the rows of w (B, n)."""
    return (design.T * weight[:, None, :]) @ design


def _inverse(matrix: Tensor) -> Tensor:
    """Return the inverses of positive definite matrices (B, k, k) by sweeping one row after the other.

    Source: Beaton, The Use of Special Matrix Operators in Statistical Calculus, 1964. With u = a_k - e_k a sweep is
    A - u u' / a_kk - 2 e_k e_k'; after all of them A is the negative inverse.
    """
    unit = torch.eye(matrix.shape[1], dtype=matrix.dtype)
    for place in range(matrix.shape[1]):
        row = matrix[:, place]
        pivot, step = row[:, place], row - unit[place]
        outer = step[:, :, None] * step[:, None, :] / pivot[:, None, None]
        matrix = matrix - outer - 2.0 * torch.outer(unit[place], unit[place])
    return -matrix


def _supported(model: Recommender, name: str) -> MultiTaskModule:
    """Return the module of a model that can be exported.

    Raises:
        RequestError: Says why it cannot.
    """
    module: TwoTowerModule | None = model.fitted_module if isinstance(model, NeuralRecommender) else None
    problem = None
    if not isinstance(module, MultiTaskModule):
        problem = "it has no multi-task towers, or others beside them"
    elif not module.has_closed_fold_in:
        problem = "its towers are not linear, or its losses are others than squared and logistic"
    elif module.settings.user_embedding == "pretrained":
        problem = "it reads the vectors of another model"
    if problem is not None or not isinstance(module, MultiTaskModule):
        raise RequestError(
            f"The model '{name}' cannot be exported: {problem}.",
            "model",
            "export one with linear towers, such as shared_bottom, single_task or svd_plus_plus.",
        )
    return module
