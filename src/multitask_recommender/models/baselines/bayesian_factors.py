"""Bayesian factorisation of labels, sampled by Gibbs' method: factors, biases, links from histories, and moods.

Its answers need no sampling: what is drawn belongs to the items, and the vector of anybody is solved from a history.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation
from multitask_recommender.data.queries import Queries
from multitask_recommender.data.recency import Recency
from multitask_recommender.models.baselines.calendar import CalendarEffects, Period, calendar_at
from multitask_recommender.models.baselines.windows import Level, WindowRows, useful_windows
from multitask_recommender.models.recommender import (
    FittedPart,
    HistorySettings,
    InnerProducts,
    Knowledge,
    LearningCurve,
    Part,
    Recommender,
    TimeEffect,
    cosines,
    part_key,
)
from multitask_recommender.models.state import State, array, branch
from multitask_recommender.models.towers.fold_in import factorise
from multitask_recommender.models.training.loop import new_generator
from multitask_recommender.models.training.sparse_products import DesignMatrix, Pairs, pair_scores, weighted_sums

_CERTAIN = 0.98
"""Largest probability that is predicted: the model is linear, and would reach 1."""
_START = 0.25
"""Standard deviation of the vectors that the sampling starts from, for labels of variance 1."""
_ROWS = 2**17
"""Most numbers of rows x samples that are solved at a time."""
_KEPT = 2**23
"""Most numbers in the answers of a task that are kept for what is asked next."""
_PRODUCTS, _REPEATED = 2**20, 4
"""Most products of coordinates that the processor's cache holds, and how often each has to be met to be worth it."""


class BayesianFactorsSettings(HistorySettings):
    """Parameters of Bayesian factorisation.

    Attributes:
        dimension: Length of the factors, without the bias.
        sweeps: Times that everything is drawn anew.
        burn_in: Sweeps at the beginning from which nothing is kept.
        samples: Sweeps that are kept, spread over the others.
        history_links: Whether who rated an item, and which items a user rated, moves where their vectors are expected.
        largest_link: Links are solved with the cube of the number of owners or of columns, whichever is smaller. Beyond
            this number, histories are not linked, and neither are features.
        windows: Lengths of the windows of time in which a user has moods, in seconds, each a multiple of the one before
            it; empty: a user has none.
        calendar: Periods whose labels have something in common, whoever they are of: ``weekday``, ``hour`` (UTC), and
            ``item_month``, 30 days of an item.
    """

    dimension: int = Field(default=12, ge=1, le=8192)
    sweeps: int = Field(default=100, ge=2, le=100_000)
    burn_in: int = Field(default=10, ge=0, le=100_000)
    samples: int = Field(default=16, ge=1, le=10_000)
    history_links: bool = True
    largest_link: int = Field(default=4000, ge=0, le=10**6)
    windows: tuple[Annotated[int, Field(ge=1, le=10**10)], ...] = (60, 300, 7200, 86400)
    calendar: tuple[Period, ...] = ()

    @field_validator("windows")
    @classmethod
    def _check(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for short, long in zip((1, *value), value, strict=False):
            if long < 1 or long % short:
                raise ValueError(f"'windows' is {list(value)}: each length has to be a multiple of the one before it")
        return value

    def kept(self) -> frozenset[int]:
        """Return the sweeps that are kept, the last one among them."""
        first = min(self.burn_in, self.sweeps - 1)
        places = np.linspace(self.sweeps - 1, first, min(self.samples, self.sweeps - first))
        return frozenset(int(place) for place in places)


class Links:
    """What links the owners of one side: a design matrix X = U S V' with its singular vectors.

    Of links B the owners feel X B alone, which the coordinates c = V' B tell. What B has beside V c is noise of its
    prior: it is left out of the sampling, and drawn where a draw is kept.

    Args:
        design: (owners, F) X.
    """

    def __init__(self, design: sparse.csr_matrix) -> None:
        self.owners, self.columns = design.shape
        turned = design.T.tocsr()
        self._design, self._turned = DesignMatrix(design), DesignMatrix(turned)
        self._wide = self.owners <= self.columns
        # Both Gram matrices have the same eigenvalues, beside 0; the smaller one is taken apart.
        fewer = design @ turned if self._wide else turned @ design
        values, vectors = torch.linalg.eigh(torch.from_numpy(fewer.toarray()))
        known = values > 1e-5 * values[-1:]
        self._values = values[known]
        self._vectors = vectors[:, known].contiguous()  # U or V
        self.rank = len(self._values)
        self._scaled = self._vectors * self._values.sqrt() if self._wide else self._vectors

    def told(self, rows: Tensor) -> Tensor:
        """Return (r, k), V' X' of rows (owners, k)."""
        return _slim(self._scaled.T, rows if self._wide else self._turned.times(rows))

    def expected(self, coordinates: Tensor) -> Tensor:
        """Return (owners, k), X B of coordinates (r, k)."""
        found = _slim(self._scaled, coordinates)
        return found if self._wide else self._design.times(found)

    def solve(self, rows: Tensor, more: Tensor, strength: float) -> Tensor:
        """Return (r, k), the coordinates of (X'X + strength I)^-1 (X' rows + more), with more (r, k) in coordinates."""
        return (self.told(rows) + more) / (self._values[:, None] + strength)

    def links(self, coordinates: Tensor, noise: Tensor) -> Tensor:
        """Return (F, k) links with such coordinates, and beside them what noise (F, k) has there."""
        if not self._wide:
            return noise + self._vectors @ (coordinates - self._vectors.T @ noise)
        inner = coordinates - self._scaled.T @ self._design.times(noise) / self._values[:, None]
        return noise + self._turned.times(self._vectors @ (inner * self._values.rsqrt()[:, None]))


def _slim(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return the product of a matrix (n, r) and few vectors (r, k): turned around it takes half the time."""
    return (vectors.T @ matrix.T).T


_KEPT_LINKS = 4
_links_made: dict[str, Links] = {}


def _links_once(design: sparse.csr_matrix) -> Links:
    """Return the links of a design matrix; those of the last few matrices are not made again.

    The tasks of a fit, its seeds and the candidates of a search have the same links, and taking the Gram matrices apart
    is a large part of a short fit.
    """
    digest = hashlib.sha256()
    for part in (np.array(design.shape), design.indptr, design.indices, design.data):
        digest.update(part.tobytes())
    key = digest.hexdigest()
    links = _links_made.pop(key, None) or Links(design)
    _links_made[key] = links  # The last one asked for is the last in the order.
    while len(_links_made) > _KEPT_LINKS:
        del _links_made[next(iter(_links_made))]
    return links


class Prior:
    """What the vectors of one side are expected to be: v ~ N(m + B' x, Lambda^-1), with all three drawn.

    m and Lambda have a normal-Wishart prior (Salakhutdinov and Mnih, Bayesian Probabilistic Matrix Factorization, ICML
    2008, equation 14), the link B a normal one (Simm et al., Macau, MLSP 2017, section 3).

    Args:
        links: x.
        width: Length k of the vectors.
    """

    def __init__(self, links: Links, width: int) -> None:
        self._links = links
        self.mean, self.precision = torch.zeros(width), 5.0 * torch.eye(width)
        self._coordinates = torch.zeros(links.rank, width)
        self.expected = torch.zeros(links.owners, width)
        self._strength = 1.0

    def draw(self, vectors: Tensor, generator: torch.Generator, rng: np.random.Generator) -> None:
        """Draw all anew, given the (n, k) vectors."""
        number, width = vectors.shape
        rest = vectors - (self.expected - self.mean)
        centre = rest.mean(0)
        scatter = (rest - centre).T @ (rest - centre) + (2.0 * number / (2.0 + number)) * torch.outer(centre, centre)
        scatter = scatter + torch.eye(width) + self._strength * self._coordinates.T @ self._coordinates
        freedom = width + number + self._links.rank
        self.precision = _wishart(torch.linalg.inv(scatter), freedom, generator, rng)
        self._root = torch.linalg.cholesky(self.precision)
        self.mean = (number * centre + (2.0 + number) ** 0.5 * self._noise(1, generator)[0]) / (2.0 + number)
        self.expected = self.mean.expand(number, width)
        if not self._links.rank:
            return
        more = self._strength**0.5 * self._noise(self._links.rank, generator)
        noisy = vectors - self.mean + self._noise(number, generator)
        self._coordinates = self._links.solve(noisy, more, self._strength)
        length = float(((self._coordinates @ self.precision) * self._coordinates).sum())
        self._strength = rng.gamma(0.5 * (1 + self._coordinates.numel())) / (0.5 * (1.0 + length))
        self.expected = self.mean + self._links.expected(self._coordinates)

    def link(self, generator: torch.Generator) -> Tensor:
        """Draw B (F, k), given all else."""
        noise = self._noise(self._links.columns, generator) / self._strength**0.5
        return self._links.links(self._coordinates, noise)

    def _noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw rows of N(0, Lambda^-1)."""
        drawn = torch.randn(len(self._root), rows, generator=generator)
        return torch.linalg.solve_triangular(self._root.T, drawn, upper=True).T


def _wishart(scale: Tensor, freedom: int, generator: torch.Generator, rng: np.random.Generator) -> Tensor:
    """Draw a matrix (k, k) by Bartlett's decomposition."""
    width = len(scale)
    lower = torch.tril(torch.randn(width, width, generator=generator), -1)
    diagonal = np.sqrt(rng.chisquare(freedom - np.arange(width))).astype(np.float32)
    root = torch.linalg.cholesky(scale) @ (lower + torch.diag(torch.from_numpy(diagonal)))
    return root @ root.T


class Solved(NamedTuple):
    """Normal distributions of vectors.

    Attributes:
        mean: (n, ..., k).
        root: (n, ..., k, k) Cholesky factors of the precisions.
    """

    mean: Tensor
    root: Tensor

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw (n, k) vectors."""
        noise = torch.randn(*self.mean.shape, 1, generator=generator)
        return self.mean + torch.linalg.solve_triangular(self.root.transpose(-1, -2), noise, upper=True)[..., 0]


def solve(precision: Tensor, told: Tensor) -> Solved:
    """Return the distributions with precisions (n, ..., k, k) and precision times mean (n, ..., k)."""
    root = factorise(precision)
    return Solved(torch.cholesky_solve(told[..., None], root)[..., 0], root)


def integrated_out(
    levels: list[Level], in_windows: _PaddedRows, precision: Tensor, told: Tensor
) -> tuple[Tensor, Tensor]:
    """Take the moods out of normal equations: rows of one window say less, because they share a mood.

    Args:
        levels: The moods.
        in_windows: The windows of all lengths together, by owner.
        precision: (owners, ..., k, k).
        told: (owners, ..., k) precision times mean.
    """
    scaled = torch.cat([level.vectors * level.certainty.rsqrt()[..., None] for level in levels])
    explained = torch.cat([level.label * level.certainty.rsqrt() for level in levels])
    return precision - in_windows.grams(scaled), told - in_windows.sums(explained[..., None] * scaled)


class _PaddedRows:
    """Gram matrices and sums over the rows of owners, for the same rows again and again.

    Args:
        pairs: The n pairs (owner, row of a table).
        columns: Rows of the table.
    """

    def __init__(self, pairs: Pairs, columns: int) -> None:
        self.pairs = pairs
        counts = pairs.offsets.diff()
        levels = torch.ceil(torch.log2(counts.clamp(min=1).double())).long()
        padded = functional.pad(pairs.column, (0, 1), value=columns)
        self._groups = []
        for level in torch.unique(levels[counts > 0]).tolist():
            owners = torch.nonzero((levels == level) & (counts > 0)).squeeze(1)
            place = torch.arange(2**level)
            entry = torch.where(place < counts[owners, None], pairs.offsets[owners, None] + place, len(pairs.column))
            # So many owners at a time that what is gathered stays small.
            for some in torch.arange(len(owners)).split(max(_ROWS >> level, 1)):
                self._groups.append((owners[some], padded[entry[some]]))

    def grams(self, table: Tensor) -> Tensor:
        """Return (owners, ..., k, k), the Gram matrices of the owners' rows of a table (columns, ..., k)."""
        width = table.shape[-1]
        products = len(table) * width * (width + 1) // 2
        if table.dim() == 2 and products <= _PRODUCTS and _REPEATED * len(table) <= len(self.pairs.column):
            return self._sums_of_products(table)
        padded = torch.cat([table, table.new_zeros(1, *table.shape[1:])])
        result = table.new_zeros(len(self.pairs.offsets) - 1, *table.shape[1:], width)
        for owners, entry in self._groups:
            vectors = padded.index_select(0, entry.flatten()).view(*entry.shape, *table.shape[1:]).movedim(1, -2)
            result[owners] = vectors.transpose(-1, -2) @ vectors
        return result

    def _sums_of_products(self, table: Tensor) -> Tensor:
        """Return the same by summing products of coordinates, which are made once for each row of the table."""
        width = table.shape[1]
        first, second = torch.triu_indices(width, width)
        products = table[:, first] * table[:, second]
        sums = functional.embedding_bag(
            self.pairs.column, products, self.pairs.offsets, mode="sum", include_last_offset=True
        )
        place = torch.empty(width, width, dtype=torch.long)
        place[first, second] = place[second, first] = torch.arange(len(first))
        return sums.index_select(1, place.flatten()).view(-1, width, width)

    def sums(self, table: Tensor) -> Tensor:
        """Return (owners, ..., k), the sums of the owners' rows of a table (columns, ..., k)."""
        ones = table.new_ones(len(self.pairs.column))
        return weighted_sums(self.pairs, ones, table.flatten(1)).view(-1, *table.shape[1:])


def by_owner(windows: WindowRows, owners: int) -> _PaddedRows:
    """Return the windows of all lengths, one after the other, by the one of so many owners whose they are."""
    owner = torch.cat(windows.owners)
    order = torch.argsort(owner, stable=True)
    return _PaddedRows(Pairs.of(owner[order], order, owners), len(owner))


class _Chain:
    """The Gibbs sampler of one task.

    Args:
        settings: Parameters.
        rows: The rows with a label: user, item, time.
        label: (n,) labels of variance 1 and mean 0.
        links: Those of the users and of the items.
        generator: Source of normal numbers.
        rng: Source of others.
    """

    def __init__(
        self,
        settings: BayesianFactorsSettings,
        rows: Interactions,
        label: FloatArray,
        links: tuple[Links, Links],
        generator: torch.Generator,
        rng: np.random.Generator,
    ) -> None:
        self._generator, self._rng = generator, rng
        width, users, items = settings.dimension + 1, links[0].owners, links[1].owners
        self.users, self.items = Prior(links[0], width), Prior(links[1], width)
        self.user, self.item = torch.tensor(rows.user), torch.tensor(rows.item)
        self.label = torch.tensor(label)
        self._own = _PaddedRows(Pairs.of(self.user, self.item, users), items)
        self._order, turned = self._own.pairs.turned(items)
        self._raters = _PaddedRows(turned, users)
        self.windows = useful_windows(settings.windows, rows)
        self._moods: tuple[WindowRows, _PaddedRows] | None = None
        if self.windows and rows.time is not None:
            moods = WindowRows(self.windows, rows.user, rows.time)
            self._moods = moods, by_owner(moods, users)
        self.mood_precision = torch.full((len(self.windows),), 20.0)
        self.calendar = CalendarEffects(settings.calendar, rows.item, rows.time)
        self.noise_precision = 1.0
        self.user_vectors, self.item_vectors = (
            _START * torch.randn(number, width, generator=generator) for number in (users, items)
        )
        self.user_vectors[:, -1] = self.item_vectors[:, -1] = 0.0
        self._rated = torch.bincount(self.item, minlength=items) > 0

    def sweep(self) -> float:
        """Draw everything anew, and return the mean squared error on the rows."""
        alpha, generator = self.noise_precision, self._generator
        self.users.draw(self.user_vectors, generator, self._rng)
        design = _with_one(self.item_vectors)
        label = self.label - self.calendar.of_rows()
        left = label - self.item_vectors[:, -1].index_select(0, self.item)
        precision = alpha * self._own.grams(design) + self.users.precision
        told = weighted_sums(self._own.pairs, alpha * left, design) + self.users.expected @ self.users.precision
        felt = torch.zeros(())
        if self._moods is None:
            self.user_vectors = solve(precision, told).draw(generator)
        else:
            windows, in_windows = self._moods
            weight = torch.full_like(left, alpha)
            levels = windows.gather(design.index_select(0, self.item), left, weight, self.mood_precision)
            precision, told = integrated_out(levels, in_windows, precision, told)
            self.user_vectors = solve(precision, told).draw(generator)
            moods = windows.effects(levels, self.user_vectors, generator)
            for place, mood in enumerate(moods):
                rate = 0.01 + 0.5 * float(mood.square().sum())
                self.mood_precision[place] = self._rng.gamma(1.0 + 0.5 * len(mood)) / rate
            felt = windows.of_rows(moods)
        self.items.draw(self.item_vectors, generator, self._rng)
        design = _with_one(self.user_vectors)
        left = (label - self.user_vectors[:, -1].index_select(0, self.user) - felt).index_select(0, self._order)
        precision = alpha * self._raters.grams(design) + self.items.precision
        told = weighted_sums(self._raters.pairs, alpha * left, design) + self.items.expected @ self.items.precision
        self.item_vectors = solve(precision, told).draw(generator)
        rest = self.label - felt - _products(self.user_vectors, self.item_vectors, self._own.pairs)
        self.calendar.draw(rest, alpha, generator, self._rng)
        error = rest - self.calendar.of_rows()
        squares = float(error.square().sum())
        self.noise_precision = self._rng.gamma(1.0 + 0.5 * len(error)) / (1.0 + 0.5 * squares)
        return squares / len(error)

    def sample(self) -> dict[str, np.ndarray]:
        """Return what the answers need of this sweep. An item without rows has the vector that is expected of it."""
        items = torch.where(self._rated[:, None], self.item_vectors, self.items.expected)
        return {
            "items": items.numpy(),
            "mean": self.users.mean.numpy(),
            "precision": self.users.precision.numpy(),
            "link": self.users.link(self._generator).numpy(),
            "noise_precision": np.array(self.noise_precision, np.float32),
            "mood_precision": self.mood_precision.numpy().copy(),
        }


def _with_one(vectors: Tensor) -> Tensor:
    """Return (n, ..., k) what the vectors (n, ..., k) of the other side meet: 1 in the place of the bias."""
    return torch.cat([vectors[..., :-1], torch.ones_like(vectors[..., -1:])], dim=-1)


def _products(users: Tensor, items: Tensor, pairs: Pairs) -> Tensor:
    """Return (n,) p . q + b + c of pairs, in one inner product."""
    return pair_scores(
        torch.cat([users, torch.ones_like(users[:, -1:])], 1), torch.cat([_with_one(items), items[:, -1:]], 1), pairs
    )


class BayesianFactors(Recommender[BayesianFactorsSettings]):
    """y_ui(t) = b_u + c_i + p_u . q_i + sum_l e_u,l(t) + d_i(t) + noise, averaged over draws of all but the users.

    (p_u, b_u) and (q_i, c_i) are normal around what the features and the histories of both sides let expect
    (:class:`Prior`); e_u,l(t) is the mood of the user in the window of length w_l that the time t falls into, the bias
    of a user's day (Koren, Collaborative Filtering with Temporal Dynamics, KDD 2009, section 3.2) on several scales;
    d_i(t) is what the calendar adds, if anything (:class:`CalendarEffects`). All strengths are drawn, none is searched.
    As a strong rating model: Rendle, Zhang and Koren, On the Difficulty of Evaluating Baselines, 2019.

    A kept draw holds the items' vectors and what is expected of users. Given these, the vector and the moods of a user
    have a normal distribution, whose mean is solved from the history that is asked with (Rao-Blackwell). A score is an
    inner product of S (k - 1) + 2 coordinates for S draws. Labels are standardised first, so that one prior fits all of
    them; predictions stay within the labels seen in training, probabilities within 0.02 and 0.98.
    """

    predicts = frozenset({"binary", "regression"})
    ranks = predicts
    stochastic = True
    effort = 4.0
    knowledge = Knowledge(
        "a vector solved from its labels", "expected vector", "vector expected by features", True, True
    )
    _asked: _Asked | None = None
    _taken: Mapping[str, FittedPart] = MappingProxyType({})

    def slow_parts(self, side: SideInformation) -> dict[str, Part]:
        """Return the model itself: it is a part of others."""
        tasks = list(side.tasks)
        return {part_key(self, tasks): Part(self, tasks)}

    def take_parts(self, parts: Mapping[str, FittedPart]) -> None:
        """Keep what the model becomes by the next fit."""
        self._taken = parts

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Sample; the learning curve is the mean squared error of the standardised labels by sweep."""
        taken, self._taken = self._taken.get(part_key(self, list(side.tasks))), {}
        if taken is not None:
            self.restore(taken.state, side)
            return LearningCurve(taken.epochs)
        settings, curve = self.settings, LearningCurve([{} for _ in range(self.settings.sweeps)])
        state: State = {}
        users, items = (side.users, side.items), (side.items, side.users)
        linked = self._linked(users, side.user_features), self._linked(items, side.item_features)
        links = (
            _links_once(_links(train.user, train.item, side.user_features, side.items, *linked[0])),
            _links_once(_links(train.item, train.user, side.item_features, side.users, *linked[1])),
        )
        for task in self.scored_tasks(side.tasks):
            rows = train.where(~np.isnan(train.labels[task]))
            label = rows.labels[task].astype(np.float64)
            scale = np.array([label.mean(), label.std() or 1.0, label.min(), label.max()])
            standard = ((label - scale[0]) / scale[1]).astype(np.float32)
            chain = _Chain(settings, rows, standard, links, new_generator(seed), np.random.default_rng(seed))
            kept: list[dict[str, np.ndarray]] = []
            effects: list[dict[str, np.ndarray]] = []
            for number in range(settings.sweeps):
                curve.epochs[number][task] = chain.sweep()
                if number in settings.kept():
                    kept.append(chain.sample())
                    effects.append(chain.calendar.sample())
            windows = np.array(chain.windows, np.int64)
            samples = {name: np.stack([sample[name] for sample in kept]) for name in kept[0]}
            own: State = {"scale": scale, "windows": windows, "linked": np.array(linked[0]), **samples}
            if chain.calendar.effects:
                own["calendar"] = chain.calendar.stored(effects)
            state[task] = own
        self.restore(state, side)
        return curve

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Solve the users' vectors and multiply; without moods."""
        products = self.inner_products(queries)
        return {task: self._to_label(task, users @ items.T) for task, (users, items) in products.items()}

    def time_effects(
        self, queries: Queries, place: IntArray, item: IntArray, time: NDArray[np.float64]
    ) -> dict[str, TimeEffect]:
        """Return the moods of the users at some times, and what the calendar adds."""
        found = {}
        for task in self._kinds:
            calendar, windows = self._calendar(task), array(branch(self._state, task), "windows")
            if not len(windows) and not calendar:
                continue
            _, spread, low, high = self._range(task)
            total = calendar_at(calendar, item, time, self._samples[task].items.shape[1]).mean(1).numpy()
            total *= np.float32(spread)
            for first, number, answer in self._answers(task, queries):
                own = np.flatnonzero((place >= first) & (place < first + number))
                if answer.windows is not None and len(own):
                    felt = answer.windows.at(answer.moods, place[own] - first, time[own])
                    total[own] += spread * felt.mean(1).numpy()
            found[task] = TimeEffect(total, low, high)
        return found

    def inner_products(self, queries: Queries) -> InnerProducts:
        """Return the vectors; their products are the standardised labels, before they are kept within their range."""
        found = {}
        for task in self._kinds:
            vectors = torch.cat([answer.vectors for _, _, answer in self._answers(task, queries)])
            bias, one = vectors[:, :, -1].mean(1, keepdim=True), vectors.new_ones(len(vectors), 1)
            own = torch.cat([vectors[:, :, :-1].flatten(1) / vectors.shape[1], bias, one], dim=1)
            found[task] = (own.numpy(), self._samples[task].table)
        return found

    def _answers(self, task: str, queries: Queries) -> Iterator[tuple[int, int, _Answer]]:
        """Yield the answers about so many queries at a time that little is held, with the number of the first.

        Those about the last queries are kept: scores and the moods at some times are asked for one after the other.
        """
        last = self._asked
        if last is None or last.queries is not queries or last.recency != self.settings.recency:
            last = self._asked = _Asked(queries, self.settings.recency, {})
        if task in last.answers:
            yield from last.answers[task]
            return
        weighted = queries.weighted(self.settings.recency)
        counts = np.bincount(weighted.history.user, minlength=len(queries))
        first, made, size = 0, [], 0
        while first < len(queries):
            fits = np.searchsorted(np.cumsum(counts[first:] + 8), _ROWS // 16)
            number = int(np.clip(fits, 1, len(queries) - first))
            answer = self._answer(task, weighted.take(np.arange(first, first + number)))
            yield first, number, answer
            size += answer.size
            if size <= _KEPT:
                made.append((first, number, answer))
            first += number
        if size <= _KEPT:
            last.answers[task] = made

    def _answer(self, task: str, queries: Queries) -> _Answer:
        samples, history = self._samples[task], queries.history
        links = _links(history.user, history.item, queries.context, samples.items.shape[0], *samples.linked)
        expected = samples.mean + DesignMatrix(links).times(samples.link).view(len(queries), *samples.mean.shape)
        rows = history.where(~np.isnan(history.labels[task]))
        mean, spread, _, _ = array(branch(self._state, task), "scale").tolist()
        label = torch.from_numpy(((rows.labels[task].astype(np.float64) - mean) / spread).astype(np.float32))
        vectors = samples.items[torch.tensor(rows.item)]  # (n, S, k)
        left = label[:, None] - vectors[:, :, -1]
        if rows.time is not None:
            left = left - calendar_at(self._calendar(task), rows.item, rows.time, left.shape[1])
        weight = samples.noise_precision.expand(len(left), -1)
        if rows.weight is not None:
            weight = weight * torch.tensor(rows.weight)[:, None]
        design = _with_one(vectors)
        own = _PaddedRows(Pairs.of(torch.tensor(rows.user), torch.arange(len(left)), len(queries)), len(left))
        precision = own.grams(weight.sqrt()[:, :, None] * design) + samples.precision
        told = own.sums((weight * left)[:, :, None] * design)
        told = told + (expected[:, :, None] @ samples.precision)[:, :, 0]
        lengths = array(branch(self._state, task), "windows").tolist()
        if not lengths or rows.time is None or not len(left):
            return _Answer(solve(precision, told).mean, None, [])
        windows = WindowRows(lengths, rows.user, rows.time)
        levels = windows.gather(design, left, weight, samples.mood_precision)
        in_windows = by_owner(windows, len(queries))
        solved = solve(*integrated_out(levels, in_windows, precision, told)).mean
        return _Answer(solved, windows, windows.effects(levels, solved))

    def similarities(self, item: int, task: str) -> FloatArray | None:
        """Return the cosines of the items' factors, those of all draws side by side."""
        return cosines(self._samples[task].table[:, :-2], item) if task in self._samples else None

    def state(self) -> State:
        """Return the draws that are kept."""
        return dict(self._state)

    def restore(self, state: State, side: SideInformation) -> None:
        """Take the draws back."""
        self._state, self._asked = dict(state), None
        self._kinds = {task: side.tasks[task].kind for task in self.scored_tasks(side.tasks)}
        self._samples = {task: _Samples.of(branch(state, task)) for task in self._kinds}

    def _calendar(self, task: str) -> State:
        own = branch(self._state, task)
        return branch(own, "calendar") if "calendar" in own else {}

    def _linked(self, sizes: tuple[int, int], features: sparse.csr_matrix) -> tuple[bool, bool]:
        """Return whether the histories and the features of so many owners, with so many others, are linked."""
        owners, others = sizes
        most, columns = self.settings.largest_link, features.shape[1]
        with_features = min(owners, columns) <= most
        histories = self.settings.history_links and min(owners, others + with_features * columns) <= most
        return histories, with_features

    def _to_label(self, task: str, standard: FloatArray) -> FloatArray:
        mean, spread, low, high = self._range(task)
        return np.clip(mean + spread * standard, low, high).astype(np.float32)

    def _range(self, task: str) -> tuple[float, float, float, float]:
        mean, spread, low, high = array(branch(self._state, task), "scale").tolist()
        return (mean, spread, 1.0 - _CERTAIN, _CERTAIN) if self._kinds[task] == "binary" else (mean, spread, low, high)


class _Samples(NamedTuple):
    """The S draws of a task, as answers need them.

    Attributes:
        items: (items, S, k).
        table: (items, S (k - 1) + 2) what the vectors of users are multiplied with.
        mean: (S, k) m of the users.
        precision: (S, k, k) Lambda of the users.
        link: (F, S k) B of the users.
        noise_precision: (S,).
        mood_precision: (lengths, S).
        linked: Whether histories and features of users are linked.
    """

    items: Tensor
    table: FloatArray
    mean: Tensor
    precision: Tensor
    link: Tensor
    noise_precision: Tensor
    mood_precision: Tensor
    linked: tuple[bool, bool]

    @classmethod
    def of(cls, state: State) -> _Samples:
        """Read what :class:`BayesianFactors` stores of a task."""
        read = {name: torch.from_numpy(array(state, name)) for name in ("items", "mean", "precision", "link")}
        items = read["items"].transpose(0, 1).contiguous()
        table = torch.cat(
            [items[:, :, :-1].flatten(1), items.new_ones(len(items), 1), items[:, :, -1].mean(1, keepdim=True)], dim=1
        )
        link = read["link"].transpose(0, 1).flatten(1).contiguous()
        noise, mood = (torch.from_numpy(array(state, f"{name}_precision")) for name in ("noise", "mood"))
        return cls(
            items,
            table.numpy(),
            read["mean"],
            read["precision"],
            link,
            noise,
            mood.T.contiguous(),
            tuple(array(state, "linked").tolist()),
        )


class _Answer(NamedTuple):
    """What is solved for some queries.

    Attributes:
        vectors: (B, S, k).
        windows: The windows of their histories; None: no times.
        moods: Per length (G, S).
    """

    vectors: Tensor
    windows: WindowRows | None
    moods: list[Tensor]

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return self.vectors.numel() + sum(mood.numel() for mood in self.moods)


class _Asked(NamedTuple):
    """The last answers.

    Attributes:
        queries: What was asked.
        recency: With which weights of the histories.
        answers: Task to the answers, as they were yielded.
    """

    queries: Queries
    recency: Recency
    answers: dict[str, list[tuple[int, int, _Answer]]]


def _links(
    owner: IntArray, other: IntArray, features: sparse.csr_matrix, columns: int, histories: bool, with_features: bool
) -> sparse.csr_matrix:
    """Return (owners, F) the columns that link owners: the histories, over the root of their lengths, and features."""
    if not with_features:
        features = features[:, :0]
    if not histories:
        return features
    lengths = np.bincount(owner, minlength=features.shape[0])
    values = (1.0 / np.sqrt(lengths[owner])).astype(np.float32)
    told = sparse.csr_matrix((values, (owner, other)), shape=(features.shape[0], columns))
    return sparse.hstack([told, features], format="csr", dtype=np.float32)
