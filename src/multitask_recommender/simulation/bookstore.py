"""A simulated bookstore with a known answer.

**Utility.** Task t has a vector p_tu and a bias a_tu per reader, a vector q_ti and a bias b_ti per book, and the true
utility

    v_t(u, i) = sqrt(w) <p_tu, q_ti> / sqrt(d) + sqrt((1 - w) / 2) (a_tu + b_ti),     w = ``taste``,

which has mean 0 and expected variance 1. Vectors and biases mix one part that all tasks share with a part of their own,

    p_tu = rho^(1/4) p_u + sqrt(1 - rho^(1/2)) p'_tu   (q_ti alike),      a_tu = rho^(1/2) a_u + sqrt(1 - rho) a'_tu,

so that the utilities of any two tasks correlate by rho over readers and books: with rho = 1 they are the same, with
rho = 0 independent. Every part is sqrt(s) times the scaled sum of the effects of the reader's or book's features plus
sqrt(1 - s) times a standard normal number, s = ``feature_signal``, less its mean.

With ``conflict`` the utilities of the tasks ``rating`` and ``purchase`` have the opposite sign for readers with a
bachelor's degree or more: what the tasks have to do with each other then depends on the reader, as gates can tell.

**What is observed.** Readers are shown books at random by popularity, weight rank^(-skew), one after the other. A shown
book is clicked with probability P_click(v) and joins the reader's history, unless it is there already, until the
reader's number of clicks is reached; activity is lognormal. A clicked book is read with probability P_read(v) and, on
its own, bought with P_purchase(v). A book that was read is rated round(3.2 + v + noise e), e standard normal, within 1
to 5. Of the labels that exist, a share ``sparsity`` per task is lost at random. The probabilities are

    P_t(v) = 1 / (1 + exp(-(v + c_t) pi / (sqrt(3) noise))),

a latent response v + c_t + logistic noise with standard deviation ``noise`` that is above 0.

**Visits.** With ``most_visits`` above 1 a reader may come back to a clicked book: after every visit with probability
P_come_back(v), until there are so many, each time after up to twice ``days_between`` days, any time alike. A click is
the first visit, and has the labels ``read`` and ``rating``; a book that is bought is bought at the last visit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import expit, ndtr

from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.foundation.settings_base import Settings

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Arrays = dict[str, np.ndarray]

TASKS = ("click", "read", "rating", "purchase", "come_back")
_INTERCEPTS = {"click": -1.0, "read": -0.4, "purchase": -1.0, "come_back": -0.8}
_RATING_CENTRE = 3.2
_SMALLEST_PART = 4
"""A reader has at most one book in so many, so that drawing without repetition comes to an end."""
_BLOCK_ROWS = 2**17
"""About so many interactions share a random generator, whatever the size of the chunks that are handed out."""
_MOST_ROUNDS = 12
_MOST_SHOWN = 2**20
_GUIDE = 2**20
_BEGIN, _END = 1_420_070_400, 1_735_689_600  # 2015-01-01 and 2025-01-01 in seconds since 1970.

EDUCATION = np.array(["primary", "secondary", "vocational", "bachelor", "master", "doctorate"])
_TURNED = ("bachelor", "master", "doctorate")
_CONFLICTING = ("rating", "purchase")
"""Whose utilities turn around for which tasks, where tasks conflict."""
REGIONS = np.array([f"region {letter}" for letter in "ABCDEFGHIJKL"])
GENRES = np.array(
    ["biography", "children", "crime", "essay", "fantasy", "history", "poetry", "romance", "science", "travel"]
)


class Sparsity(Settings):
    """Shares of the labels that are missing, per task.

    Attributes:
        read: Of the clicked pairs.
        rating: Of the pairs that were read.
        purchase: Of the clicked pairs.
    """

    read: float = Field(default=0.0, ge=0, lt=1)
    rating: float = Field(default=0.0, ge=0, lt=1)
    purchase: float = Field(default=0.0, ge=0, lt=1)


class StoreKnobs(Settings):
    """What kind of bookstore is simulated, whatever its size.

    Attributes:
        popularity_skew: Exponent of the weights rank^(-skew) by which books are shown; 0: all alike.
        activity_skew: Standard deviation of the logarithm of the readers' numbers of clicks; 0: all alike.
        feature_signal: s, the share of the variance of vectors and biases that the features explain.
        taste: w, the share of the variance of the utility that is a matter of taste instead of biases.
        noise: Standard deviation of the noise of every label, where the utility has 1.
        dimension: d, length of the vectors.
        conflict: Whether two tasks are turned around for some readers.
    """

    popularity_skew: float = Field(default=0.8, ge=0, le=2)
    activity_skew: float = Field(default=0.8, ge=0, le=2)
    feature_signal: float = Field(default=0.3, ge=0, le=1)
    taste: float = Field(default=0.6, ge=0, le=1)
    noise: float = Field(default=0.7, gt=0, le=1e6)
    dimension: int = Field(default=8, ge=1, le=8192)
    conflict: bool = False


class BookstoreSettings(StoreKnobs):
    """All knobs of the simulated bookstore.

    Attributes:
        users: Number of readers.
        books: Number of books.
        interactions: Number of clicks.
        relatedness: rho, the correlation of the true utilities of any two tasks, from 0 to 1.
        sparsity: Shares of missing labels.
        most_visits: Most visits of a reader to a book; 1: a click is all there is.
        days_between: Mean time from one visit of a book to the next, in days.
        chunk_rows: About so many interactions are in memory at a time. The number changes no result.
        seed: Seed of everything random.
    """

    users: int = Field(ge=2, le=10**8)
    books: int = Field(ge=8, le=10**7)
    interactions: int = Field(ge=1, le=10**9)
    relatedness: float = Field(default=0.7, ge=0, le=1)
    sparsity: Sparsity = Sparsity()
    most_visits: int = Field(default=1, ge=1, le=100)
    days_between: float = Field(default=30.0, gt=0, le=1e6)
    chunk_rows: int = Field(default=2**20, ge=1, le=10**9)
    seed: int = Field(ge=0, le=2**63 - 1)

    @model_validator(mode="after")
    def _check(self) -> BookstoreSettings:
        most = self.users * (self.books // _SMALLEST_PART)
        if self.interactions > most:
            raise ValueError(
                f"{self.interactions} interactions are too many for {self.users} users and {self.books} books: at most "
                f"{most}, a part of 1 in {_SMALLEST_PART} of the books for every user"
            )
        if 2 * (self.most_visits - 1) * self.days_between > 365:
            raise ValueError(
                f"{self.most_visits} visits with {self.days_between:g} days between them on average may take more than "
                "a year: lower most_visits or days_between"
            )
        return self


@dataclass(frozen=True)
class GroundTruth:
    """What is true of every reader and every book.

    Attributes:
        vectors: Task to ((users, d + 2), (books, d + 2)) vectors whose inner product is the utility: the scaled p and
            q, and the biases as two more coordinates.
        noise: Standard deviation of the labels' noise.
    """

    vectors: dict[str, tuple[Floats, Floats]]
    noise: float

    def utility(self, task: str, user: Ints, book: Ints) -> Floats:
        """Return the true utilities v_t of pairs (n,)."""
        users, books = self.vectors[task]
        return np.einsum("nd,nd->n", users[user], books[book])

    def utilities(self, task: str, user: Ints) -> Floats:
        """Return the true utilities (B, books) of all books for some readers (B,)."""
        users, books = self.vectors[task]
        return users[user] @ books.T

    def take(self, users: Ints, books: Ints) -> GroundTruth:
        """Return what is true of some readers and books, given by their places, in this order."""
        taken = {task: (own[users], other[books]) for task, (own, other) in self.vectors.items()}
        return GroundTruth(taken, self.noise)

    def value(self, task: str, utility: Floats) -> Floats:
        """Turn utilities into expected labels: a probability, or for ``rating`` the expected rating."""
        if task == "rating":
            cuts = (np.arange(1.5, 5.0) - _RATING_CENTRE)[:, *(None,) * utility.ndim]
            return 1 + ndtr((utility - cuts) / self.noise).sum(axis=0)
        return expit((utility + _INTERCEPTS[task]) * (np.pi / np.sqrt(3) / self.noise))

    def arrays(self) -> Arrays:
        """Return the named arrays to store."""
        sides = {
            f"{side}.{task}": vectors
            for task, pair in self.vectors.items()
            for side, vectors in zip(("user", "book"), pair, strict=True)
        }
        return {**sides, "noise": np.array([self.noise])}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> GroundTruth:
        """Take stored arrays back."""
        return cls(
            {task: (arrays[f"user.{task}"], arrays[f"book.{task}"]) for task in TASKS}, float(arrays["noise"][0])
        )


@dataclass(frozen=True)
class Chunk:
    """Some interactions, sorted by reader and, within a reader, by time.

    Attributes:
        user: (n,) readers.
        book: (n,) books; no pair occurs twice, but for several visits.
        timestamp: (n,) seconds since 1970.
        visit: (n,) number of the visit of the pair, from 1.
        labels: ``read``, ``rating`` and ``purchase`` to (n,) labels, NaN where there is none.
    """

    user: Ints
    book: Ints
    timestamp: Ints
    visit: Ints
    labels: dict[str, Floats]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, places: Ints) -> Chunk:
        """Return the interactions at some places, in their order."""
        labels = {task: label[places] for task, label in self.labels.items()}
        return Chunk(self.user[places], self.book[places], self.timestamp[places], self.visit[places], labels)


class Bookstore:
    """A simulated bookstore: features, ground truth and a stream of interactions.

    Args:
        settings: The knobs.

    Attributes:
        user_features: Feature to (users,) codes; the codes of ``age`` are years, -1 where it is missing.
        book_features: Feature to (books,) codes or numbers; ``translator`` is -1 where there is none.
        truth: The ground truth.
        counts: (users,) clicks of every reader.
    """

    def __init__(self, settings: BookstoreSettings) -> None:
        self.settings = settings
        activity = self._random("activity").normal(size=settings.users)
        self.user_features = _user_features(activity, self._random("user features"))
        self.book_features = _book_features(settings.books, self._random("book features"))
        self.truth = self._ground_truth()
        self.counts = _click_counts(np.exp(settings.activity_skew * activity), settings)
        rank = self._random("popularity").permutation(settings.books) + 1.0
        weight = rank**-settings.popularity_skew
        self._shown_below = np.cumsum(weight / weight.sum())
        self._shown_below[-1] = 1.0
        self._guide = np.searchsorted(self._shown_below, np.arange(_GUIDE) / _GUIDE, side="right").astype(np.int32)

    def _random(self, *purpose: object) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.settings.seed, "bookstore", *purpose))

    def _ground_truth(self) -> GroundTruth:
        settings = self.settings
        rho, width = settings.relatedness, settings.dimension + 1
        # The last column is the bias, which is not multiplied with another random number and so mixes otherwise.
        shared, scale = np.empty(width, np.float32), np.empty(width, np.float32)
        shared[:-1], shared[-1] = rho**0.25, rho**0.5
        scale[:-1], scale[-1] = (settings.taste / settings.dimension) ** 0.25, ((1 - settings.taste) / 2) ** 0.5
        own = np.sqrt(1 - shared**2)

        def side(name: str, effects: list[Ints], count: int) -> dict[str, Floats]:
            common = self._part(effects, count, width, name, "shared")
            return {
                task: (scale * (shared * common + own * self._part(effects, count, width, name, task))).astype(
                    np.float32
                )
                for task in TASKS
            }

        users = side("user", _user_effects(self.user_features), settings.users)
        books = side("book", _book_effects(self.book_features), settings.books)
        turned = settings.conflict & np.isin(EDUCATION[self.user_features["education"]], _TURNED)
        sign = np.where(turned, np.float32(-1), np.float32(1))[:, None]
        vectors = {
            task: (
                np.insert(users[task], width, 1.0, axis=1) * (sign if task in _CONFLICTING else 1),  # p, a, 1
                np.insert(books[task], width - 1, 1.0, axis=1),  # q, 1, b
            )
            for task in TASKS
        }
        return GroundTruth(vectors, settings.noise)

    def _part(self, effects: list[Ints], count: int, width: int, *purpose: str) -> Floats:
        """Vectors (count, width) of mean 0 and variance 1, a share of which the features explain."""
        random = self._random("vectors", *purpose)
        signal = self.settings.feature_signal
        part = random.standard_normal((count, width), np.float32) * np.float32(np.sqrt(1 - signal))
        for codes in effects:
            table = random.standard_normal((int(codes.max()) + 1, width), np.float32)
            part += np.float32(np.sqrt(signal / len(effects))) * table[codes]
        return part - part.mean(axis=0)

    def chunks(self) -> Iterator[Chunk]:
        """Yield all interactions in order, about ``chunk_rows`` at a time.

        Raises:
            SettingsError: If readers cannot find as many different books as they should click on.
        """
        ends = np.cumsum(self.counts)
        edges = np.searchsorted(ends, np.arange(_BLOCK_ROWS, ends[-1] + _BLOCK_ROWS, _BLOCK_ROWS)) + 1
        waiting: list[Chunk] = []
        first = 0
        for number, last in enumerate(np.minimum(edges, len(ends))):
            waiting.append(self._block(np.arange(first, last), self._random("interactions", number)))
            first = int(last)
            if sum(map(len, waiting)) >= self.settings.chunk_rows:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)

    def everything(self) -> Chunk:
        """Return all interactions at once, for small stores."""
        return _joined(list(self.chunks()))

    def _block(self, users: Ints, random: np.random.Generator) -> Chunk:
        user, book = self._clicks(users, random)
        labels: dict[str, Floats] = {}
        for task in ("read", "purchase"):
            probability = self.truth.value(task, self.truth.utility(task, user, book))
            labels[task] = (random.random(len(user), np.float32) < probability).astype(np.float32)
        response = self.truth.utility("rating", user, book)
        response += np.float32(self.settings.noise) * random.standard_normal(len(user), np.float32)
        rating = np.clip(np.rint(_RATING_CENTRE + response), 1, 5)
        labels["rating"] = np.where(labels["read"] > 0, rating, np.nan).astype(np.float32)
        for task, label in labels.items():
            label[random.random(len(user), np.float32) < getattr(self.settings.sparsity, task)] = np.nan
        chunk = Chunk(user, book, self._timestamps(users, random), np.ones(len(user), np.int64), labels)
        return chunk if self.settings.most_visits == 1 else self._with_visits(chunk, random)

    def _with_visits(self, clicks: Chunk, random: np.random.Generator) -> Chunk:
        """Let readers come back to what they clicked."""
        again = self.truth.value("come_back", self.truth.utility("come_back", clicks.user, clicks.book))
        visits = np.ones(len(clicks), np.int64)
        returning = np.ones(len(clicks), dtype=bool)
        for _ in range(1, self.settings.most_visits):
            returning &= random.random(len(clicks), np.float32) < again
            visits += returning
        row = np.repeat(np.arange(len(clicks)), visits)
        first = np.repeat(np.cumsum(visits) - visits, visits)
        visit = np.arange(len(row)) - first + 1
        gaps = np.where(visit > 1, 2.0 * random.random(len(row)) * self.settings.days_between * 86_400, 0.0)
        passed = np.cumsum(gaps)
        time = clicks.timestamp[row] + (passed - passed[first]).astype(np.int64)
        labels = {task: np.where(visit == 1, label[row], np.nan) for task, label in clicks.labels.items()}
        bought = clicks.labels["purchase"][row]
        # Who buys, buys at the last visit; of a pair whose label is lost, nothing is known at any visit.
        labels["purchase"] = np.where(visit == visits[row], bought, np.where(np.isnan(bought), np.nan, 0.0))
        labels = {task: label.astype(np.float32) for task, label in labels.items()}
        order = np.lexsort((visit, time, clicks.user[row]))
        chunk = Chunk(clicks.user[row], clicks.book[row], time, visit, labels)
        return chunk.take(order)

    def _clicks(self, users: Ints, random: np.random.Generator) -> tuple[Ints, Ints]:
        """Show books until every reader has clicked on so many different ones as the counts say."""
        books = self.settings.books
        wanted = self.counts[users]
        missing = wanted.copy()
        taken = np.zeros(0, np.int64)  # place of the reader * books + book, in the order of the clicks
        per_click = 4.0
        for _ in range(_MOST_ROUNDS):
            if not missing.any():
                break
            shown = np.ceil(missing * min(per_click, _MOST_SHOWN / missing.sum())).astype(np.int64)
            place = np.repeat(np.arange(len(users)), shown)
            book = self._show(len(place), random)
            click = self.truth.value("click", self.truth.utility("click", users[place], book))
            clicked = random.random(len(place), np.float32) < click
            keys = np.concatenate([taken, place[clicked] * books + book[clicked]])
            # The first click on a book counts; keys stay in their order within a reader.
            keys = keys[np.sort(np.unique(keys, return_index=True)[1])]
            keys = keys[np.argsort(keys // books, kind="stable")]
            place = keys // books
            begins = np.searchsorted(place, np.arange(len(users)))
            taken = keys[np.arange(len(keys)) - begins[place] < wanted[place]]
            missing = wanted - np.bincount(taken // books, minlength=len(users))
            per_click *= 2
        if missing.any():
            raise SettingsError(
                f"{int((missing > 0).sum())} readers of the simulated bookstore do not find enough different books.\n"
                "  where: 'simulation' in parameters_simulation.yml\n"
                "  what to do: lower interactions, popularity_skew or activity_skew, or raise users or books."
            )
        return users[taken // books], taken % books

    def _show(self, count: int, random: np.random.Generator) -> Ints:
        """Draw books by popularity."""
        place = random.random(count)
        # Most cells of the guide lie within one book's part of the line from 0 to 1; the others are searched.
        book = self._guide[(place * _GUIDE).astype(np.int32)].astype(np.int64)
        beyond = np.nonzero(place >= self._shown_below[book])[0]
        book[beyond] = np.searchsorted(self._shown_below, place[beyond], side="right")
        return book

    def _timestamps(self, users: Ints, random: np.random.Generator) -> Ints:
        """Ascending times between a reader's first day and the end, one per click."""
        counts = self.counts[users]
        begin = _BEGIN + random.random(len(users)) * 0.8 * (_END - _BEGIN)
        gaps = np.cumsum(random.standard_exponential(int(counts.sum())))
        place = np.repeat(np.arange(len(users)), counts)
        ends = np.cumsum(counts)
        before = np.concatenate([[0.0], gaps])[ends - counts]
        whole = np.concatenate([[0.0], gaps])[ends] - before
        return (begin[place] + (gaps - before[place]) / whole[place] * (_END - begin[place])).astype(np.int64)


def _joined(chunks: list[Chunk]) -> Chunk:
    return Chunk(
        np.concatenate([chunk.user for chunk in chunks]),
        np.concatenate([chunk.book for chunk in chunks]),
        np.concatenate([chunk.timestamp for chunk in chunks]),
        np.concatenate([chunk.visit for chunk in chunks]),
        {task: np.concatenate([chunk.labels[task] for chunk in chunks]) for task in chunks[0].labels},
    )


def _click_counts(activity: NDArray[np.float64], settings: BookstoreSettings) -> Ints:
    """Divide the interactions among the readers in proportion to their activity, none above the limit."""
    limit = settings.books // _SMALLEST_PART - 1
    expected = activity * (settings.interactions / activity.sum())
    while (expected > limit).any():
        full = expected >= limit
        left = settings.interactions - limit * full.sum()
        if full.all() or left <= 0:
            expected = np.full(len(activity), settings.interactions / len(activity))
            break
        expected = np.where(full, limit, expected * (left / expected[~full].sum()))
    # Rounding the running total keeps the sum exact.
    return np.diff(np.rint(np.cumsum(expected)).astype(np.int64), prepend=0)


def _user_features(activity: NDArray[np.float64], random: np.random.Generator) -> dict[str, Ints]:
    count = len(activity)
    age = np.clip(np.rint(random.gamma(6.0, 7.0, count)), 12, 90).astype(np.int64)
    age[random.random(count) < 0.05] = -1
    # Who buys much is likely to be active: five levels of activity seen through noise.
    level = np.digitize(activity + random.normal(size=count), np.sqrt(2) * np.array([-0.84, -0.25, 0.25, 0.84]))
    return {
        "age": age,
        "education": random.choice(len(EDUCATION), count, p=[0.08, 0.27, 0.2, 0.27, 0.14, 0.04]),
        "consumption_level": level + 1,
        "region": np.minimum(random.geometric(0.2, count) - 1, len(REGIONS) - 1),
    }


def _user_effects(features: dict[str, Ints]) -> list[Ints]:
    return [features["age"] // 10 + 1, features["education"], features["consumption_level"], features["region"]]


def _book_features(count: int, random: np.random.Generator) -> dict[str, Ints]:
    authors = max(count // 6, 2)
    publishers = max(int(np.sqrt(count)), 2)
    translators = max(count // 30, 2)
    # Most authors keep to a genre and a publisher.
    author = (authors * random.random(count) ** 1.5).astype(np.int64)
    author_genre = random.integers(0, len(GENRES), authors)
    author_publisher = (publishers * random.random(authors) ** 1.5).astype(np.int64)
    genre = np.where(random.random(count) < 0.8, author_genre[author], random.integers(0, len(GENRES), count))
    moved = random.random(count) < 0.2
    translated = random.random(count) < 0.4
    pages = np.clip(np.rint(random.gamma(8.0, 35.0, count) * (1 + 0.05 * genre)), 24, 1500).astype(np.int64)
    return {
        "author": author,
        "publisher": np.where(moved, random.integers(0, publishers, count), author_publisher[author]),
        "translator": np.where(translated, random.integers(0, translators, count), -1),
        # Days since 1950-01-01; more books are young than old.
        "publication_date": (27_393 * np.sqrt(random.random(count))).astype(np.int64),
        "pages": pages,
        "words": np.rint(pages * random.normal(280, 25, count)).astype(np.int64),
        "genre": genre,
    }


def _book_effects(features: dict[str, Ints]) -> list[Ints]:
    decade = features["publication_date"] // 3653
    return [features["author"], features["publisher"], features["translator"] + 1, features["genre"], decade]
