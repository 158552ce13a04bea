"""The multi-task towers: shared representations of users and items, and what each task makes of them.

Users and items are first represented by vectors that all tasks share (the bottom). A tower per side turns them into
one vector per task; a task's score is the inner product of its two vectors plus biases. With one task alone the same
module is the single-task control.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from multitask_recommender.data.interactions import SideInformation
from multitask_recommender.data.tasks import Task, retrieval_tasks
from multitask_recommender.models.recommender import PENALTY, Knowledge
from multitask_recommender.models.towers.fold_in import (
    LogisticRows,
    crossed,
    division,
    gradient,
    minimise,
    minimise_logistic,
)
from multitask_recommender.models.towers.item_side import ItemSide
from multitask_recommender.models.towers.penalties import IdentityPenalty
from multitask_recommender.models.towers.settings import MultiTaskSettings
from multitask_recommender.models.towers.tower import Tower
from multitask_recommender.models.towers.two_tower import (
    LabelScales,
    LossSum,
    NeuralRecommender,
    TwoTowerModule,
    Vectors,
    at_least_one,
    log_odds_of_positives,
    task_loss,
)
from multitask_recommender.models.towers.user_side import UserSide, start_biases
from multitask_recommender.models.training.loop import TrainingSettings, UserBatch, UserRows
from multitask_recommender.models.training.losses import Curvature, retrieval_curvature
from multitask_recommender.models.training.sparse_products import Pairs, weighted_grams

M = TypeVar("M", bound=MultiTaskSettings)

FOLD_IN_STEPS = 5


class RowGrams:
    """Weighted Gram matrices of the item vectors of histories; one is made for tasks that weigh the rows alike.

    Args:
        batch: Users with their rows.
    """

    def __init__(self, batch: UserBatch) -> None:
        self._batch = batch
        self._made: list[tuple[Tensor, Tensor, Tensor]] = []

    def of(self, key: Tensor, table: Tensor, weight: Tensor) -> Tensor:
        """Return (B, d, d), see :func:`weighted_grams`.

        Args:
            key: What the table is cut out of; equal tables have one key.
            table: (items, d).
            weight: (n,) at least 0.
        """
        largest = weight.max() if len(weight) else weight.new_zeros(())
        if largest == 0:
            return table.new_zeros(len(self._batch.users), table.shape[1], table.shape[1])
        shape = weight / largest
        for other, own, gram in self._made:
            if other is key and torch.equal(own, shape):
                return largest * gram
        self._made.append((key, shape, weighted_grams(self._batch.pairs, shape, table)))
        return largest * self._made[-1][2]


class MultiTaskModule(TwoTowerModule):
    """Shared bottom, towers and biases.

    x_u = p_u + R(n_u^-c sum_{j in h_u} (a_j + e_uj b_j)) + C c_u              (users)
    y_i = q_i + phi(v_i)                                                       (items)
    s_t(u, i) = U_t(x_u) . V_t(y_i) + user bias + item bias + constant, per task t
              = (a_t A_t B_t') . b_t + biases, with U_t(x_u) = a_t A_t and V_t(y_i) = b_t B_t

    h_u is the user's history, n_u its length, e_uj how much the user's label of item j differs from what the biases
    predict (for the first regression or else binary task), R the history encoder (the identity for the linear one), c_u
    the context, v_i the item's features, U_t and V_t the towers, A_t and B_t their last matrices, multiplied on the
    side of the users because a batch has fewer of them. The linear encoder follows SVD++ (Koren, KDD 2008, equation
    15), with a share of the history hidden in every step as in a denoising autoencoder (Vincent et al., ICML
    2008). Only the identity vectors p and q carry a strong penalty.

    In training every user has a p. Afterwards it is solved from the history that a user is asked with, whoever it is,
    by minimising the same losses and penalties on the frozen item side (:meth:`fold_in`). On held-out rows that
    predicts better than the trained p, which stop before their minimum.

    Args:
        side: Tasks, sizes and features.
        settings: Parameters.
        scales: Scales of the regression labels.
        towers: The towers of the users and of the items.
        generator: Source of the initial weights.
    """

    label_share: Tensor
    log_odds: Tensor
    sums_over_rows: ClassVar[bool] = True
    """Whether all losses are sums over the rows of users, with nothing drawn per row of a part."""

    def __init__(
        self,
        side: SideInformation,
        settings: MultiTaskSettings,
        scales: LabelScales,
        towers: tuple[Tower, Tower],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.tasks, self.settings, self.scales, self._read = side.tasks, settings, scales, side.read_tasks
        self.weights = {
            name: settings.task_weights.get(name, getattr(settings, f"{task.kind}_weight"))
            for name, task in side.tasks.items()
        }
        retrieves = any(task.kind == "retrieval" for task in side.tasks.values())
        scale = 0.1 if retrieves else 0.03
        self.users = UserSide(side, settings, towers[0], scale, generator)
        self.items = ItemSide(side, settings, towers[1], scale, generator)
        self.constant = nn.Parameter(torch.zeros(len(side.tasks)))
        self.penalty = IdentityPenalty(side.tasks, self.weights, settings)
        self.register_buffer("label_share", torch.ones(len(side.tasks)))
        if self.drawn_tasks:
            self.register_buffer("log_odds", torch.zeros(len(self.drawn_tasks), side.items))

    @property
    def divisible(self) -> bool:
        """Whether the losses are sums over users; BPR draws items for the rows of a part, which no process knows."""
        return self.sums_over_rows and self.settings.retrieval_loss != "bpr"

    @property
    def drawn_tasks(self) -> list[str]:
        """Names of the retrieval tasks whose negatives are drawn, so that biases learn little of what is popular."""
        return retrieval_tasks(self.tasks) if self.settings.retrieval_loss == "bpr" else []

    @property
    def negatives_per_positive(self) -> int:
        """Items drawn per positive of :attr:`drawn_tasks`."""
        return 1

    def priors(self) -> Vectors:
        """Return the logarithms of odds of :attr:`drawn_tasks`; the others' biases and vectors say it."""
        return dict(zip(self.drawn_tasks, self.log_odds if self.drawn_tasks else (), strict=True))

    def start(self, rows: UserRows) -> None:
        """Set the pointwise tasks' biases to their solution without factors, and what depends on the rows alone."""
        self.users.start(rows)
        self.items.start(rows)
        if self.drawn_tasks:
            items = len(self.items.bias)
            self.log_odds = log_odds_of_positives(rows, self.drawn_tasks, items, self.negatives_per_positive)
        sizes, places = (len(self.users.bias), len(self.items.bias)), {name: at for at, name in enumerate(self.tasks)}
        read = self.users.history_task
        for name, task in {**({} if read is None else {read: self._read[read]}), **self.tasks}.items():
            label, place = rows.labels[name].numpy(), places.get(name)
            if place is not None:
                self.label_share[place] = float((label == label).mean())
            if task.kind == "retrieval":
                continue
            scale = self.scales.values[name][:2] if task.kind == "regression" else (0.0, 1.0)
            constant, user, item, scale = start_biases(task, label, rows, scale, sizes)
            if place is not None:
                self.users.bias.data[:, place] = torch.from_numpy(user)
                self.items.bias.data[:, place] = torch.from_numpy(item)
                self.constant.data[place] = constant
            if name == read and self.users.residuals is not None:
                self.users.residuals.item_bias = torch.from_numpy(item)
                self.users.residuals.scale = torch.tensor(scale)

    def describe(self, rows: UserRows) -> None:
        """Compute the residuals of the labels that the history encoder reads."""
        self.users.describe(rows)

    def finish(self, rows: UserRows) -> None:
        """Keep the mean of the training users."""
        self.users.finish(rows)

    def user_tables(self) -> frozenset[str]:
        """Return the names of the users' identity vectors and biases."""
        return frozenset({"users.identity", "users.bias"})

    def encode_users(self, batch: UserBatch, seen: UserBatch | None = None) -> Tensor:
        """Return the shared vectors x (B, D) of users in training; ``seen`` as in :meth:`UserSide.encode_history`."""
        random = seen is not None and self.settings.hidden == "random"
        hidden = self.settings.history_dropout if random else 0.0
        history = self.users.encode_history(batch, seen, hidden)
        return self.users.identity[batch.users] + history + self.users.encode_context(batch)

    def last_maps(self) -> Vectors:
        """Return task to A_t B_t' (d, d)."""
        own, other = self.users.tower.head_maps(), self.items.tower.head_maps()
        return {name: own[name] @ other[name].T for name in self.tasks}

    def task_vectors(self, shared: Tensor, bias: Tensor, maps: Vectors | None = None) -> Vectors:
        """Turn shared vectors x (B, D) and biases (B, tasks) of users into what meets the items' vectors.

        Args:
            shared: x.
            bias: The biases.
            maps: :meth:`last_maps`, where they are known.

        Returns:
            Task to (B, d + 1 + tasks): a_t A_t B_t', the bias, and which item bias counts.
        """
        maps = self.last_maps() if maps is None else maps
        vectors = self.users.tower.before_heads(shared)
        bias, which = bias + self.constant, torch.eye(len(self.tasks))
        return {
            name: torch.cat(
                [vectors[name] @ maps[name], bias[:, place, None], which[place].expand(len(bias), -1)],
                dim=1,
            )
            for place, name in enumerate(self.tasks)
        }

    def user_vectors(self, batch: UserBatch, seen: UserBatch | None = None) -> Vectors:
        """Return :meth:`task_vectors` of users in training."""
        return self.task_vectors(self.encode_users(batch, seen), self.users.bias[batch.users])

    def item_vectors(self, shown: Tensor | None = None) -> Vectors:
        """Return task to (items, d + 1 + tasks): b_t, 1, all item biases; ``shown`` as in :meth:`ItemSide.encode`."""
        shared, bias = self.items.encode(shown)
        vectors = self.items.tower.before_heads(shared)
        ends = torch.cat([torch.ones(len(bias), 1), bias], dim=1)
        # Tasks that read the same vectors share one table.
        tables = {id(vector): torch.cat([vector, ends], dim=1) for vector in vectors.values()}
        return {name: tables[id(vectors[name])] for name in self.tasks}

    def compared_vectors(self) -> Vectors:
        """Return V_t(y) of the items."""
        return self.items.tower(self.items.encode()[0])

    def query_vectors(self, batch: UserBatch, items: Vectors) -> Vectors:
        """Return :meth:`task_vectors` of anybody; of a user without history those of the mean training user."""
        return self.task_vectors(*self.fold_in(batch, items))

    def fold_in(self, batch: UserBatch, items: Vectors) -> tuple[Tensor, Tensor]:
        """Solve the identity vectors p and the biases from the histories of a batch.

        They minimise, per user, the sum of the tasks' losses over the rows of the history, weighted as in training,
        plus the penalties of p and biases, with everything else fixed. As in training a row is predicted from an
        encoding that has not seen it: the history is divided into parts, and each is told from the others.

        Args:
            batch: Users with their rows.
            items: Task to the items' vectors.

        Returns:
            (B, D) shared vectors x and (B, tasks) biases.
        """
        users, width, number = self.users, self.users.tower.width, len(self.tasks)
        context = users.encode_context(batch)
        parts, hidden = division(self.settings.history_dropout if users.reads_rows else 0.0)
        part = batch.position % parts
        told = crossed(lambda seen, share: users.encode_history(batch, batch.part(seen), share), part, parts, hidden)
        told = told + context[:, None]
        divided = batch.divided(part, parts)
        counts = batch.counts.to(context.dtype)
        maps = self.last_maps()

        def objective(solution: Tensor, quadratic: bool = False) -> Tensor:
            """The whole objective, or the losses alone that are quadratic."""
            identity, bias = solution.split([width, number], dim=1)
            shared = (identity[:, None] + told).flatten(0, 1)
            vectors = self.task_vectors(shared, bias.repeat_interleave(parts, 0), maps)
            if quadratic:
                names = [name for name in self.tasks if self._is_quadratic(name)]
                losses = {name: self.usual_loss(name, vectors, items, divided, divided) for name in names}
            else:
                losses = self.task_sums(vectors, items, divided, divided)
            total = torch.stack([self._per_row(name, loss) for name, loss in losses.items()]).sum()
            if quadratic:
                return total
            uniform, per_row = self.penalty.measure(identity, bias, users.tower)
            return total + (uniform + counts * per_row).sum()

        jacobians, grams = users.tower.jacobians(told.mean(1)), RowGrams(batch)
        if self.has_closed_fold_in:
            # Everything but the binary tasks is quadratic, and they are logistic regressions on the items' vectors.
            rest = [name for name in self.tasks if not self._is_quadratic(name)]
            quadratic = [name for name in self.tasks if self._is_quadratic(name)]
            hessian = self._curvature(batch, items, jacobians, maps, counts, grams, quadratic, penalised=True)
            bound = hessian
            if rest:
                bound = bound + self._curvature(batch, items, jacobians, maps, counts, grams, rest, penalised=False)
            through = {name: (jacobians[name] @ maps[name])[0] for name in rest}
            shared = told.flatten(0, 1)
            vectors = self.task_vectors(shared, shared.new_zeros(len(shared), number), maps)
            rows = [
                self._logistic_rows(name, vectors[name], items[name], through[name], batch, part, parts)
                for name in rest
            ]
            start = hessian.new_zeros(hessian.shape[:2])
            if quadratic:
                start = gradient(partial(objective, quadratic=True), start)
            solution = minimise_logistic(start, hessian, bound, rows, FOLD_IN_STEPS if rest else 1)
        else:
            names = list(self.tasks)
            curvature = self._curvature(batch, items, jacobians, maps, counts, grams, names, penalised=True)
            solution = minimise(objective, curvature, FOLD_IN_STEPS)
        identity, bias = solution.split([width, number], dim=1)
        history = users.encode_history(batch)
        known = (batch.counts > 0)[:, None]
        shared = torch.where(known, identity + history, users.prior) + context
        return shared, torch.where(known, bias, users.prior_bias)

    def _logistic_rows(
        self, name: str, vectors: Tensor, items: Tensor, through: Tensor, batch: UserBatch, part: Tensor, parts: int
    ) -> LogisticRows:
        """Return the rows of a binary task as a logistic regression in the identity vectors and the biases.

        Args:
            name: The task.
            vectors: (B parts, d + 1 + tasks) vectors of the users without identity and bias.
            items: (items, d + 1 + tasks) vectors of the items.
            through: (D, d) what an identity vector is multiplied with before it meets the items' vectors.
            batch: Users with their rows.
            part: (n,) part of each row.
            parts: Number of parts.
        """
        asked = torch.nonzero(~torch.isnan(batch.label(name))).squeeze(1)
        place, owner = list(self.tasks).index(name), batch.row_user[asked]
        item = batch.row_item[asked]
        offset = (vectors[owner * parts + part[asked]] * items[item]).sum(1)
        which = torch.eye(len(self.tasks))[place].expand(len(items), -1)
        design = torch.cat([items[:, : through.shape[1]] @ through.T, which], dim=1)
        weight: float | Tensor = self.weights[name] / float(self.label_share[place])
        if batch.row_weight is not None:
            weight = weight * batch.row_weight[asked]
        pairs = Pairs.of(owner, item, len(batch.users))
        return LogisticRows(pairs, design, offset, batch.label(name)[asked], weight)

    @property
    def has_closed_fold_in(self) -> bool:
        """Whether all losses are quadratic or logistic in the identity vectors and biases."""
        return self.users.tower.linear and self.settings.retrieval_loss == "squared"

    def _per_row(self, name: str, loss: LossSum) -> Tensor:
        """Weigh a task's loss so that its sum over all rows of the training is that of the mean loss times the rows."""
        share = self.label_share[list(self.tasks).index(name)] if loss.labelled else 1.0
        return self.weights.get(name, 1.0) * loss.total / share

    def _is_quadratic(self, name: str) -> bool:
        return self.tasks[name].kind != "binary"

    def _curvature(
        self,
        batch: UserBatch,
        items: Vectors,
        jacobians: Vectors,
        maps: Vectors,
        counts: Tensor,
        grams: RowGrams,
        names: list[str],
        penalised: bool,
    ) -> Tensor:
        """Return (B, D + tasks, D + tasks), a bound of the second derivatives of some tasks' part of the objective.

        With ``penalised`` those of the penalties are added, and a little more, so that the sum can be inverted.
        """
        tower, number = self.users.tower, len(self.tasks)
        width = tower.width
        total = counts.new_zeros(len(counts), width + number, width + number)
        if penalised:
            identity, biases = self.penalty.curvature(counts, jacobians, tower)
            total[:, :width, :width] = identity
            # A user without history and without penalties has no equations.
            total[:, width:, width:] = torch.diag_embed(biases)
            total += 1e-6 * torch.eye(width + number)
        for name in names:
            place = list(self.tasks).index(name)
            # The vectors that the user's own meet, and 1 for the bias.
            table, through = items[name][:, :-number], jacobians[name] @ maps[name]
            mapped = number == 1 and len(through) == 1
            if mapped:
                # Nobody else needs the Gram matrices of these vectors: they are mapped once, and not for every user.
                table = torch.cat([table[:, :-1] @ through[0].T, table[:, -1:]], dim=1)
            bound = self.curvature(name, batch)
            if bound.weights is None and not mapped:
                gram = batch.source.grams[name][: table.shape[1], : table.shape[1]]
            else:
                catalogue = batch.of_catalogue(table)
                gram = catalogue.T @ (catalogue if bound.weights is None else catalogue * bound.weights[:, None])
            share = self.label_share[place] if self.tasks[name].kind != "retrieval" else 1.0
            weight = self.weights[name] / share
            hessian = weight * grams.of(items[name], table, bound.rows)
            hessian += (weight * bound.catalogue)[:, None, None] * gram
            if mapped:
                total += hessian
                continue
            moved = through @ hessian[:, :-1]  # (B, D, d + 1)
            total[:, :width, :width] += moved[:, :, :-1] @ through.transpose(1, 2)
            total[:, :width, width + place] += moved[:, :, -1]
            total[:, width + place, :width] += moved[:, :, -1]
            total[:, width + place, width + place] += hessian[:, -1, -1]
        return total

    def curvature(self, name: str, batch: UserBatch) -> Curvature:
        """Return the bound of the second derivatives of a task's loss, summed over rows, in the users' vectors."""
        label, kind = batch.label(name), self.tasks[name].kind
        if kind != "retrieval":
            asked = ~torch.isnan(label)
            counted = asked.to(self.constant.dtype) if batch.row_weight is None else asked * batch.row_weight
            rows = (0.25 if kind == "binary" else 2.0) * counted
            return Curvature(rows, rows.new_zeros(len(batch.users)))
        positive = label > 0
        own = None if batch.row_weight is None else batch.row_weight[positive]
        counts = torch.bincount(batch.row_user[positive], own, minlength=len(batch.users))
        popularity = batch.of_catalogue(self.items.popularity)
        settings = self.settings
        return retrieval_curvature(
            settings.retrieval_loss,
            positive,
            counts,
            batch.share,
            settings.positive_weight,
            popularity,
            batch.row_weight,
        )

    def losses(self, batch: UserBatch) -> dict[str, Tensor]:
        """Return the tasks' losses on a batch with a part of the histories and identities hidden, and the penalties."""
        seen, asked, retrieved = None, batch, batch
        if self.settings.hidden == "later":
            moment = 0.05 + 0.9 * batch.random_per_user()
            hidden = batch.position >= (moment * batch.counts)[batch.row_user]
            seen = batch.part(~hidden).weighted(self.settings.seen_recency)
            asked = retrieved = batch.part(hidden)
        elif self.settings.history_dropout > 0:
            hidden = batch.random_per_row() < self.settings.history_dropout
            seen, asked = batch.part(~hidden), batch.part(hidden)
        shown = None
        if self.settings.item_dropout > 0 and self.items.features is not None:
            shown = (batch.random(len(self.items.identity), 1) >= self.settings.item_dropout).float()
        sums = self.task_sums(self.user_vectors(batch, seen), self.item_vectors(shown), retrieved, asked)
        result = {name: self.weights.get(name, 1.0) * loss.mean(batch) for name, loss in sums.items()}
        result[PENALTY] = self._penalty(batch, asked)
        return result

    def task_sums(self, users: Vectors, items: Vectors, batch: UserBatch, asked: UserBatch) -> dict[str, LossSum]:
        """Return the tasks' losses, before their weights.

        Args:
            users: Task to (B, d) vectors.
            items: Task to (items, d) vectors.
            batch: The rows that retrieval tasks are trained on.
            asked: The rows that pointwise losses are taken on: what the history encoder did not see.
        """
        return {name: self.usual_loss(name, users, items, batch, asked) for name in self.tasks}

    def usual_loss(self, name: str, users: Vectors, items: Vectors, batch: UserBatch, asked: UserBatch) -> LossSum:
        """Return the loss of one task by its kind; arguments as in :meth:`task_sums`."""
        task = self.tasks[name]
        rows = batch if task.kind == "retrieval" else asked
        return task_loss(
            task,
            users[name],
            items[name],
            rows,
            self.scales.standardise(name, rows.label(name)),
            self.settings.positive_weight,
            self.settings.retrieval_loss,
            batch.source.grams.get(name),
        )

    def _penalty(self, batch: UserBatch, asked: UserBatch) -> Tensor:
        """Return the penalties of a batch; each part in the same unit as the loss it belongs to.

        A retrieval task asks for ``retrieval_penalty`` |p|^2 per user and item, over the number of rows; a pointwise
        task for ``penalty`` (|p_u|^2 + |q_i|^2) on average over the rows that its loss is taken on.
        """
        users, items = self.users, self.items
        share = len(batch.users) / batch.source.population
        user = self.penalty.measure(users.identity[batch.users], users.bias[batch.users], users.tower)
        item = self.penalty.measure(items.identity, items.bias, items.tower)
        by_user = asked.counts.to(share_dtype := users.identity.dtype)
        by_item = torch.bincount(asked.row_item, minlength=len(items.identity)).to(share_dtype)
        asked_rows = at_least_one(batch.total(len(asked.row_item)))
        total = (user[0].sum() + share * item[0].sum()) / at_least_one(batch.total(len(batch.row_item)))
        total = total + (by_user @ user[1] + by_item @ item[1]) / asked_rows
        tables = [*users.tables(), *items.tables()]
        if not tables:
            return total
        encoder = torch.stack([table.square().sum() for table in tables]).sum()
        return total + self.settings.encoder_penalty * share * encoder / asked_rows

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the towers' experts and gates."""
        return [*self.users.tower.expert_parameters(), *self.items.tower.expert_parameters()]

    def slow_parameters(self) -> list[nn.Parameter]:
        """Return the encoder's and the heads' parameters."""
        tables = (self.users.identity, self.items.identity, self.users.bias, self.items.bias)
        others = {id(p) for p in (*tables, *self.expert_parameters())}
        return [p for p in self.parameters() if id(p) not in others]

    def expert_utilisation(self, batch: UserBatch) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Return side to task to expert to the mean and the standard deviation of its gate weight.

        They are over the batch's users, or over all items.
        """
        sides = {
            "user": (self.users.tower, self.encode_users(batch)),
            "item": (self.items.tower, self.items.encode()[0]),
        }
        return {
            side: {
                task: dict(
                    zip(tower.expert_names(task), torch.stack([weights.mean(0), weights.std(0)], 1), strict=True)
                )
                for task, weights in tower.gates(shared).items()
            }
            for side, (tower, shared) in sides.items()
        }


DRAWN = Knowledge(
    "encoded, and an identity vector solved from it",
    "popularity, for labels the mean training user",
    "features",
    user_features=True,
    item_features=True,
)
"""What architectures know whose retrieval tasks are trained with drawn negatives."""


class MultiTaskRecommender(NeuralRecommender[M]):
    """A multi-task architecture over shared representations: what its towers are, subclasses say."""

    module: ClassVar[type[MultiTaskModule]] = MultiTaskModule
    knowledge = Knowledge(
        "encoded, and an identity vector solved from it", "mean training user", "features", True, True
    )

    @abstractmethod
    def tower(self, tasks: dict[str, Task], generator: torch.Generator) -> Tower:
        """Make a tower; called once for the users and once for the items."""

    def build(self, side: SideInformation, scales: LabelScales, generator: torch.Generator) -> TwoTowerModule:
        """Make the untrained module."""
        towers = (self.tower(side.tasks, generator), self.tower(side.tasks, generator))
        return self.module(side, self.settings, scales, towers, generator)

    def training_settings(self) -> TrainingSettings:
        """Return how the module is trained."""
        return self.settings.training
