"""The contract of every recommender, as checks to run on a model of your own with pytest.

    from multitask_recommender.testing import ModelUnderTest, parametrize_with_checks

    @parametrize_with_checks([ModelUnderTest("my_model", lambda tasks: MyModel(MySettings()))])
    def test_my_model(model, check):
        check(model)

The checks ask for what holds for every model: newcomers, empty histories and new items get what the model declares to
know of them (see :class:`Knowledge`), never noise; the scores of a query depend on it alone; what is stored gives the
same scores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from multitask_recommender.data.interactions import FloatArray, Interactions, SideInformation
from multitask_recommender.data.queries import NEW_USER, Histories, Queries
from multitask_recommender.data.tasks import Task
from multitask_recommender.models.document.user_embedding import UserEmbeddingModel, UserEmbeddingSettings
from multitask_recommender.models.recommender import Recommender
from multitask_recommender.models.stored import StoredModel, read_model, write_model
from multitask_recommender.models.training.loop import TrainingSettings

USERS, ITEMS = 40, 30
NEW_ITEMS = (27, 28, 29)
"""Items of :func:`example_study` without training rows; the first two have the same features."""
_ROWS = 8

TASKS = {
    "watch": Task(kind="retrieval"),
    "like": Task(kind="binary", label="rating >= 4", after="watch"),
    "rating": Task(kind="regression", label="rating", relevant="rating >= 4"),
}


def example_study(seed: int = 1) -> tuple[Interactions, SideInformation]:
    """Make a small study: 40 users who watch, like and rate 27 of 30 items, by two factors.

    Args:
        seed: Seed of everything.

    Returns:
        Training rows, and side information with a user embedding model that was trained on them.
    """
    random = np.random.default_rng(seed)
    taste, vector = random.normal(size=(USERS, 2)), random.normal(size=(ITEMS, 2))
    user = np.repeat(np.arange(USERS), _ROWS)
    score = taste @ vector.T + random.gumbel(size=(USERS, ITEMS))
    score[:, NEW_ITEMS] = -np.inf
    item = np.argsort(-score, axis=1)[:, :_ROWS].ravel()
    rating = np.clip(np.rint(3.5 + (taste[user] * vector[item]).sum(1)), 1, 5).astype(np.float32)
    like = rating >= 4
    rows = Interactions(
        user,
        item,
        labels={"watch": np.ones(len(user), np.float32), "like": like.astype(np.float32), "rating": rating},
        relevant={"watch": np.ones(len(user), bool), "like": like, "rating": like},
    )
    genre = random.integers(0, 4, ITEMS)
    genre[list(NEW_ITEMS)] = 0, 0, 1
    side = SideInformation(
        tasks=TASKS,
        users=USERS,
        items=ITEMS,
        user_features=sparse.csr_matrix(np.eye(3, dtype=np.float32)[random.integers(0, 3, USERS)]),
        item_features=sparse.csr_matrix(np.eye(4, dtype=np.float32)[genre]),
    )
    training = TrainingSettings(learning_rate=0.02, epochs=10, batches=2)
    encoder = UserEmbeddingModel(UserEmbeddingSettings(dimension=5, training=training))
    encoder.fit(rows, side, seed)
    return rows, replace(side, user_encoder=encoder)


@dataclass(frozen=True)
class ModelUnderTest:
    """A model to be checked.

    Attributes:
        name: Its name in reports.
        make: Makes the untrained model for some tasks.
        tolerance: By how much two ways to ask the same may differ, relative to the largest score.
    """

    name: str
    make: Callable[[dict[str, Task]], Recommender]
    tolerance: float = 1e-4

    @cached_property
    def study(self) -> tuple[Interactions, SideInformation]:
        """The study that it is fitted on."""
        return example_study()

    @cached_property
    def fitted(self) -> Recommender:
        """The model, fitted once for all checks."""
        rows, side = self.study
        model = self.make(side.tasks)
        model.fit(rows, side, seed=5)
        return model

    def ask(self, *histories: Sequence[int], user: int = NEW_USER, context: bool = False) -> Queries:
        """Make queries with histories of some items: every other one liked and rated 5, the rest rated 2."""
        _, side = self.study
        owner = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        item = np.array([item for history in histories for item in history], dtype=np.int64)
        place = np.concatenate([np.arange(len(history)) for history in histories]) if len(item) else item
        like, every = place % 2 == 0, np.ones(len(item), bool)
        labels = {"watch": every, "like": like, "rating": np.where(like, 5.0, 2.0)}
        history = Interactions(
            owner,
            item,
            labels={task: label.astype(np.float32) for task, label in labels.items()},
            relevant={"watch": every, "like": like, "rating": like},
        )
        features = np.zeros((len(histories), side.user_features.shape[1]), np.float32)
        features[:, 0] = context
        return Queries(np.full(len(histories), user), history, sparse.csr_matrix(features))

    def known(self, users: Sequence[int]) -> Queries:
        """Make queries of training users with their training rows."""
        rows, side = self.study
        return Histories(rows, side.user_features).of(np.array(users))


def _same(model: ModelUnderTest, one: dict[str, FloatArray], other: dict[str, FloatArray], what: str) -> None:
    assert list(one) == list(other), what
    for task, score in one.items():
        scale = max(1.0, float(np.abs(score).max()))
        gap = float(np.abs(score - other[task]).max())
        assert gap <= model.tolerance * scale, f"{model.name}, {task}: {what}: they differ by {gap:g}"


def _differ(one: dict[str, FloatArray], other: dict[str, FloatArray], what: str) -> None:
    assert any(not np.allclose(one[task], other[task], atol=1e-7) for task in one), what


def check_scores(model: ModelUnderTest) -> None:
    """Scores have a row a query and a column an item, are finite, and predictions lie in the range of the label."""
    _, side = model.study
    queries = model.known(range(5))
    scores = model.fitted.score(queries)
    assert list(scores) == model.fitted.scored_tasks(side.tasks)
    for task, score in scores.items():
        assert score.shape == (5, ITEMS)
        assert np.isfinite(score).all()
        if side.tasks[task].kind in model.fitted.predicts:
            low, high = {"like": (0, 1), "rating": (1, 5)}.get(task, (-np.inf, np.inf))
            assert low <= score.min()
            assert score.max() <= high
    for task, order in model.fitted.ranking_scores(scores).items():
        assert order.shape == (5, ITEMS)
        assert np.isfinite(order).all(), task
        assert np.array_equal(model.fitted.orders(queries, [task])[task], order), f"{task} is ordered otherwise alone"


def check_nothing_known(model: ModelUnderTest) -> None:
    """A newcomer of whom nothing is known gets the model's prior: finite, and the same for every such user."""
    scores = model.fitted.score(model.ask([], []))
    for score in scores.values():
        assert np.isfinite(score).all()
        assert np.abs(score[0] - score[1]).max() <= model.tolerance * max(1.0, float(np.abs(score).max()))


def check_history_alone(model: ModelUnderTest) -> None:
    """A newcomer's history changes the scores if the model declares to read it, and nothing if not."""
    empty, one = model.fitted.score(model.ask([])), model.fitted.score(model.ask([3, 7, 11]))
    assert all(np.isfinite(score).all() for score in one.values())
    chance = model.fitted.stochastic and model.fitted.knowledge.cold_users == "chance"
    if model.fitted.knowledge.history is not None:
        _differ(empty, one, "the history is declared to be read, and changes nothing")
    elif not chance:
        _same(model, empty, one, "the history is declared not to be read")


def check_context_alone(model: ModelUnderTest) -> None:
    """A newcomer's features change the scores only if the model declares to read them; scores stay finite."""
    empty, known = model.fitted.score(model.ask([])), model.fitted.score(model.ask([], context=True))
    assert all(np.isfinite(score).all() for score in known.values())
    if not model.fitted.knowledge.user_features:
        _same(model, empty, known, "the features of users are declared not to be read")


def check_odd_histories(model: ModelUnderTest) -> None:
    """One item, the same item twice, a new item, and rows without labels are scored like any other history."""
    queries = model.ask([3], [3, 3], [NEW_ITEMS[0]], list(range(ITEMS)), [3, NEW_ITEMS[2]])
    silent = replace(
        queries,
        history=replace(
            queries.history,
            labels={task: np.full_like(label, np.nan) for task, label in queries.history.labels.items()},
            relevant={task: np.zeros_like(own) for task, own in queries.history.relevant.items()},
        ),
    )
    for asked in (queries, silent):
        for task, score in model.fitted.score(asked).items():
            assert np.isfinite(score).all(), task


def check_new_items(model: ModelUnderTest) -> None:
    """Items without training rows get the same score as each other, but for what their features say."""
    if model.fitted.knowledge.cold_items == "chance":
        return
    first, second, other = NEW_ITEMS
    for task, score in model.fitted.score(model.known(range(USERS))).items():
        scale = max(1.0, float(np.abs(score).max()))
        assert np.abs(score[:, first] - score[:, second]).max() <= model.tolerance * scale, task
        if not model.fitted.knowledge.item_features:
            assert np.abs(score[:, first] - score[:, other]).max() <= model.tolerance * scale, task


def check_history_is_the_user(model: ModelUnderTest) -> None:
    """A training user asked with the training history gets the scores of a newcomer with the same history."""
    if model.fitted.knowledge.history is None:
        return
    queries = model.known(range(USERS))
    newcomers = replace(queries, user=np.full(USERS, NEW_USER))
    _same(model, model.fitted.score(queries), model.fitted.score(newcomers), "a number of the user changes the scores")


def check_inner_products(model: ModelUnderTest) -> None:
    """Vectors, where a model gives some, order the items as the scores do, for known users and for newcomers."""
    for queries in (model.known(range(5)), model.ask([], [3], [3, 7, 11])):
        order = model.fitted.ranking_scores(model.fitted.score(queries))
        for task, (users, items) in model.fitted.inner_products(queries).items():
            least = -model.tolerance * max(1.0, float(np.abs(order[task]).max()))
            for own, product in zip(order[task], users @ items.T, strict=True):
                assert np.diff(own[np.argsort(product)]).min() >= least, f"{task}: the products order items otherwise"


def check_queries_are_independent(model: ModelUnderTest) -> None:
    """Who else is asked about, in which order and with which history, changes no score."""
    queries = model.known(range(12))
    order = np.array([7, 3, 11, 0])
    together, some = model.fitted.score(queries), model.fitted.score(queries.take(order))
    _same(model, {task: score[order] for task, score in together.items()}, some, "other queries change the scores")
    rows, side = model.study
    others = replace(rows, item=np.where(rows.user == 3, rows.item, (rows.item + 1) % (ITEMS - len(NEW_ITEMS))))
    changed = model.fitted.score(Histories(others, side.user_features).of(np.array([5, 3, 6])))
    alone = model.fitted.score(model.known([3]))
    _same(model, alone, {task: score[1:2] for task, score in changed.items()}, "other histories change the scores")


def check_asking_changes_nothing(model: ModelUnderTest) -> None:
    """Asking twice gives the same bytes, and leaves the queries as they were."""
    queries = model.known(range(6))
    before = queries.history.item.copy(), {task: label.copy() for task, label in queries.history.labels.items()}
    first, second = model.fitted.score(queries), model.fitted.score(queries)
    for task, score in first.items():
        assert np.array_equal(score, second[task]), task
        assert np.array_equal(queries.history.labels[task], before[1][task], equal_nan=True), task
    assert np.array_equal(queries.history.item, before[0])


def check_fitting_repeats(model: ModelUnderTest) -> None:
    """Two fits with one seed give the same bytes."""
    rows, side = model.study
    again = model.make(side.tasks)
    again.fit(rows, side, seed=5)
    one, other = model.fitted.score(model.known(range(5))), again.score(model.known(range(5)))
    for task, score in one.items():
        assert np.array_equal(score, other[task]), task


def check_storing(model: ModelUnderTest) -> None:
    """What is stored in a file gives the same bytes, and knows no user."""
    _, side = model.study
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        write_model(path, StoredModel(model.fitted.state()))
        restored = model.make(side.tasks)
        restored.restore(read_model(path).state, side)
    queries = model.known(range(USERS))
    one, other = model.fitted.score(queries), restored.score(queries)
    for task, score in one.items():
        assert np.array_equal(score, other[task]), task
    assert restored.parameter_count() == model.fitted.parameter_count()


CHECKS: tuple[Callable[[ModelUnderTest], None], ...] = (
    check_scores,
    check_nothing_known,
    check_history_alone,
    check_context_alone,
    check_odd_histories,
    check_new_items,
    check_history_is_the_user,
    check_inner_products,
    check_queries_are_independent,
    check_asking_changes_nothing,
    check_fitting_repeats,
    check_storing,
)
"""All checks; each raises an AssertionError that says what a model breaks."""


def parametrize_with_checks(models: Iterable[ModelUnderTest]) -> Any:
    """Return a decorator that gives a test the arguments ``model`` and ``check``, once per model and check.

    Args:
        models: The models to check; each is fitted once.

    Raises:
        ImportError: If pytest is not installed.
    """
    import pytest

    return pytest.mark.parametrize(
        ("model", "check"),
        [
            pytest.param(model, check, id=f"{model.name}-{check.__name__.removeprefix('check_')}")
            for model in models
            for check in CHECKS
        ],
    )
