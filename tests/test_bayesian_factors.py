"""Bayesian factors: answers are the posterior means of a given draw, and what is planted is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import sparse

from conftest import everyone
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.queries import Histories, Queries
from multitask_recommender.data.recency import Recency
from multitask_recommender.data.tasks import Task
from multitask_recommender.models.baselines import bayesian_factors
from multitask_recommender.models.baselines.bayesian_factors import (
    BayesianFactors,
    BayesianFactorsSettings,
    Links,
    _wishart,
)
from multitask_recommender.models.baselines.calendar import keys_of
from multitask_recommender.models.baselines.simple import BiasSettings, UserItemBias
from multitask_recommender.models.baselines.windows import useful_windows
from multitask_recommender.models.recommender import FittedPart
from multitask_recommender.models.state import State, array, branch
from multitask_recommender.models.towers.fold_in import factorise

USERS, ITEMS, DAY = 60, 40, 86400
TASKS = {"rating": Task(kind="regression", label="rating", relevant="rating > 0")}


def _study(seed: int = 0, moods: float = 0.8, noise: float = 0.3) -> tuple[Interactions, Interactions, SideInformation]:
    """Make ratings of two factors, biases and a mood per user and day, divided into known rows and others."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(USERS), 24)
    item = np.concatenate([random.permutation(ITEMS)[:24] for _ in range(USERS)])
    day = np.tile(np.repeat(np.arange(4), 6), USERS)
    own, other = random.normal(size=(USERS, 2)), random.normal(size=(ITEMS, 2))
    mood = moods * random.normal(size=(USERS, 4))
    rating = (own[user] * other[item]).sum(1) + 0.5 * random.normal(size=ITEMS)[item] + mood[user, day]
    rating = (rating + noise * random.normal(size=len(user))).astype(np.float32)
    time = (day * DAY + np.tile(np.array([0, 7, 14, 50, 400, 407]), 4 * USERS)).astype(np.float64)
    rows = Interactions(user, item, {"rating": rating}, {"rating": rating > 0}, time=time)
    features = sparse.csr_matrix(random.random((USERS, 2)).astype(np.float32))
    side = SideInformation(TASKS, USERS, ITEMS, features, sparse.csr_matrix((ITEMS, 0), dtype=np.float32))
    held_out = random.random(len(user)) < 0.15
    return rows.where(~held_out), rows.where(held_out), side


def _error(
    model: BayesianFactors, known: Interactions, asked: Interactions, side: SideInformation, timed: bool
) -> float:
    queries = Histories(known, side.user_features).of(np.arange(side.users))
    time = asked.time if timed else None
    found = model.predict(queries, model.score(queries), asked.user, asked.item, time)["rating"]
    return float(np.sqrt(np.mean((found - asked.labels["rating"]) ** 2)))


def test_what_is_planted_is_found() -> None:
    known, asked, side = _study()
    settings = BayesianFactorsSettings(dimension=3, windows=(60, DAY), sweeps=60, burn_in=20)
    model = BayesianFactors(settings)
    curve = model.fit(known, side, seed=1)
    assert curve.epochs[-1]["rating"] < 0.3 * curve.epochs[0]["rating"]
    timeless = BayesianFactors(settings.model_copy(update={"windows": ()}))
    timeless.fit(known, side, seed=1)
    biases = UserItemBias(BiasSettings())
    biases.fit(known, side, seed=1)
    queries = Histories(known, side.user_features).of(np.arange(side.users))
    by_bias = biases.score(queries)["rating"][asked.user, asked.item]
    by_biases = float(np.sqrt(np.mean((by_bias - asked.labels["rating"]) ** 2)))
    with_time, without = _error(model, known, asked, side, True), _error(timeless, known, asked, side, True)
    # The noise is 0.3, and a mood of 0.8 cannot be known without its day.
    assert with_time < 0.65 < 0.9 * without
    assert without < 0.8 * by_biases


def test_the_vector_of_a_user_is_the_posterior_mean_with_moods_integrated_out() -> None:
    known, _, side = _study()
    model = BayesianFactors(
        BayesianFactorsSettings(dimension=2, windows=(10, 60, 7200), sweeps=5, samples=1, burn_in=2)
    )
    model.fit(known, side, seed=3)
    state = branch(model.state(), "rating")
    rows = known.where(known.user == 7)
    assert rows.time is not None
    mean, spread = array(state, "scale")[:2]
    (items,), (prior,), (precision,), (link,) = (array(state, name) for name in ("items", "mean", "precision", "link"))
    (alpha,), (moods,) = array(state, "noise_precision").reshape(1), array(state, "mood_precision")
    vectors = items[rows.item].astype(np.float64)
    design = np.column_stack([vectors[:, :-1], np.ones(len(vectors))])
    label = (rows.labels["rating"] - mean) / spread - vectors[:, -1]
    history = np.zeros(ITEMS)
    history[rows.item] = len(rows) ** -0.5
    expected = prior + np.concatenate([history, side.user_features[7].toarray()[0]]) @ link
    lengths = array(state, "windows")
    assert lengths.tolist() == [10, 60, 7200]
    shared = [
        (rows.time[:, None] // length == rows.time // length) / strength
        for length, strength in zip(lengths, moods, strict=True)
    ]
    covariance = np.eye(len(rows)) / alpha + sum(shared)
    weighted = np.linalg.solve(covariance, design)
    solution = np.linalg.solve(design.T @ weighted + precision, label @ weighted + precision @ expected)
    users, table = model.inner_products(Histories(known, side.user_features).of(np.array([7])))["rating"]
    assert np.allclose(users[0, :3], solution, atol=2e-4)
    assert np.allclose(table[:, :2], items[:, :2])
    # The mood at a moment is what its windows have in common with those of the rows.
    queries = Histories(known, side.user_features).of(np.array([7]))
    left = np.linalg.solve(covariance, label - design @ solution)
    for time in (float(rows.time[3]), float(rows.time[3]) + 1, 3.0 * DAY + 5000, 900.0 * DAY):
        together = sum(
            (time // length == rows.time // length) / strength for length, strength in zip(lengths, moods, strict=True)
        )
        effect = model.time_effects(queries, np.array([0]), np.array([0]), np.array([time]))["rating"]
        assert np.isclose(effect.values[0], spread * together @ left, atol=2e-4)
    assert effect.values[0] == 0.0


@pytest.mark.parametrize("period", ["weekday", "hour", "item_month"])
def test_the_calendar_is_found_and_kept(period: str) -> None:
    """An effect of the weekday, of the hour, or of an item's month is predicted for pairs at their moment."""
    known, asked, side = _study(moods=0.0)
    random = np.random.default_rng(5)
    moved = []
    for rows in (known, asked):
        assert rows.time is not None
        spread = np.random.default_rng(len(rows)).integers(0, 7 * 24, len(rows)) * 3600.0
        time = rows.time + (spread if period != "item_month" else 40 * DAY * (spread // 36_000 % 3))
        moved.append(replace(rows, time=time))
    effects = 1.2 * random.normal(size=(ITEMS + 10) * 200)

    def planted(rows: Interactions) -> Interactions:
        assert rows.time is not None
        key = keys_of(period, rows.item, rows.time)  # type: ignore[arg-type]
        place = key if period != "item_month" else rows.item * 3 + key % 2**20 % 3
        label = (rows.labels["rating"] + effects[place]).astype(np.float32)
        order = np.lexsort((rows.time, rows.user))
        return replace(rows, labels={"rating": label}).where(order)

    known, asked = map(planted, moved)
    settings = BayesianFactorsSettings(dimension=3, windows=())
    errors = []
    for calendar in ((), (period,)):
        model = BayesianFactors(settings.model_copy(update={"calendar": calendar}))
        model.fit(known, side, seed=1)
        errors.append(_error(model, known, asked, side, True))
        again = BayesianFactors(model.settings)
        again.restore(model.state(), side)
        assert _error(again, known, asked, side, True) == errors[-1]
    assert errors[1] < 0.8 * errors[0]
    # Of a time that was never seen, and without times, nothing is known.
    queries = Histories(known, side.user_features).of(np.arange(2))
    unseen = model.time_effects(queries, np.array([0]), np.array([3]), np.array([1e12 + 0.5]))["rating"]
    assert unseen.values[0] == 0 or period != "item_month"
    timeless = replace(known, time=None)
    plain = BayesianFactors(model.settings)
    plain.fit(timeless, side, seed=1)
    assert "calendar" not in branch(plain.state(), "rating")


def test_weekdays_and_hours_are_those_of_the_calendar() -> None:
    # A Monday at 23:30, and the Tuesday after it at 0:30.
    time = np.array([1_704_151_800.0, 1_704_155_400.0])
    item = np.zeros(2, np.int64)
    assert keys_of("weekday", item, time).tolist() == [0, 1]
    assert keys_of("hour", item, time).tolist() == [23, 0]
    months = keys_of("item_month", np.array([0, 1, 1]), np.array([0.0, 0.0, 31.0 * DAY]))
    assert len(set(months.tolist())) == 3


def test_links_are_solved_from_the_smaller_side() -> None:
    random = np.random.default_rng(4)
    for shape in ((9, 4), (4, 9)):
        matrix = random.normal(size=shape).astype(np.float32)
        matrix[:, -1] = matrix[:, 0]  # One direction that the owners do not feel, whichever side is smaller.
        links = Links(sparse.csr_matrix(matrix))
        rows, noise = random.normal(size=(shape[0], 3)), random.normal(size=(shape[1], 3))
        x = matrix.astype(np.float64)
        felt = np.linalg.pinv(x) @ x
        more = links.told(torch.tensor(x @ noise).float()) / links._values[:, None]
        found = links.solve(torch.tensor(rows).float(), more, 0.7)
        wanted = np.linalg.solve(x.T @ x + 0.7 * np.eye(shape[1]), x.T @ rows + noise)
        assert links.rank == min(shape) - (shape == (9, 4))
        assert np.allclose(links.expected(found), x @ wanted, atol=1e-4)
        # The rest of the links is noise.
        whole = links.links(found, torch.tensor(noise).float()).numpy()
        assert np.allclose(whole, felt @ wanted + (noise - felt @ noise), atol=1e-4)


def test_wishart_draws_have_their_mean() -> None:
    scale = torch.tensor([[0.5, 0.1], [0.1, 0.2]])
    generator, rng = torch.Generator().manual_seed(1), np.random.default_rng(1)
    mean = torch.stack([_wishart(scale, 8, generator, rng) for _ in range(4000)]).mean(0)
    assert torch.allclose(mean, 8 * scale, atol=0.08)


def test_an_item_without_rows_has_no_random_vector() -> None:
    known, _, side = _study()
    known = known.where(known.item != 5)
    model = BayesianFactors(BayesianFactorsSettings(dimension=2, sweeps=60, burn_in=20, history_links=False))
    model.fit(known, side, seed=1)
    items = array(branch(model.state(), "rating"), "items")
    # It has no features either, so that nothing but the mean of all items is expected of it, draw for draw.
    assert np.abs(items[:, 5] - items.mean(1)).mean() < 0.25 * items.std(1).mean()


def test_windows_are_nested_and_useful() -> None:
    with pytest.raises(ValidationError, match="multiple of the one before"):
        BayesianFactorsSettings(windows=(60, 90))
    known, _, _ = _study()
    # All rows of a day lie within two hours, which a day divides as two hours do.
    assert useful_windows((10, 60, 7200, DAY), known) == (10, 60, 7200)
    assert useful_windows((DAY, 40 * DAY), known) == (DAY, 40 * DAY)
    timeless = Interactions(known.user, known.item, known.labels, known.relevant)
    assert useful_windows((60, DAY), timeless) == ()


def test_a_matrix_that_rounding_made_indefinite_is_factorised() -> None:
    design = torch.randn(3, 40, 6, generator=torch.Generator().manual_seed(1))
    good = design.transpose(1, 2) @ design
    # Of rank 1, so that its smallest eigenvalues are what rounding makes of 0, here below it.
    poor = 1e4 * torch.outer(design[0, 0], design[0, 0]) - 1e-3 * torch.eye(6)
    factors = factorise(torch.stack([good[0], poor, good[1]]))
    assert torch.equal(factors[[0, 2]], torch.linalg.cholesky(good[:2]))
    assert torch.allclose(factors[1] @ factors[1].T, poor, atol=1e-3 * float(poor.max()))
    with pytest.raises(RuntimeError, match="not positive-definite"):
        factorise(-good)


def test_equal_links_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds and candidates of a study share the links of their rows; other rows have others."""
    known, asked, side = _study(seed=4)
    made: list[Links] = []
    monkeypatch.setattr(bayesian_factors, "_links_made", {})
    monkeypatch.setattr(bayesian_factors, "Links", lambda design: made.append(Links(design)) or made[-1])
    settings = BayesianFactorsSettings(dimension=2, windows=(), sweeps=4, burn_in=1)
    states = []
    for rows in (known, known, asked):
        model = BayesianFactors(settings)
        model.fit(rows, side, seed=1)
        states.append(array(branch(model.state(), "rating"), "items"))
    assert len(made) == 4  # Of users and of items, for the known and for the other rows.
    assert np.array_equal(states[0], states[1])
    assert len(bayesian_factors._links_made) <= 4


def test_the_last_queries_are_solved_once_and_others_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and moods rest on the same answers; another weight of the histories, query or state has its own."""
    known, asked, side = _study(seed=5)
    settings = BayesianFactorsSettings(dimension=2, sweeps=6, burn_in=2, samples=2)
    later = settings.model_copy(update={"recency": Recency(weight=5.0, reach=3.0)})
    models = [BayesianFactors(settings) for _ in range(2)]
    for model, seed in zip(models, (1, 2), strict=True):
        model.fit(known, side, seed=seed)
    states = [model.state() for model in models]
    solved: list[str] = []
    solve = BayesianFactors._answer
    monkeypatch.setattr(BayesianFactors, "_answer", lambda *args: solved.append(args[1]) or solve(*args))

    def answer(model: BayesianFactors, queries: Queries) -> np.ndarray:
        return model.predict(queries, model.score(queries), asked.user, asked.item, asked.time)["rating"]

    def alone(state: State, own: BayesianFactorsSettings, rows: Interactions) -> np.ndarray:
        fresh = BayesianFactors(own)
        fresh.restore(state, side)
        return answer(fresh, Histories(rows, side.user_features).of(np.arange(USERS)))

    model, queries = models[0], Histories(known, side.user_features).of(np.arange(USERS))
    first = answer(model, queries)
    assert len(solved) == 1
    assert np.array_equal(answer(model, queries), first)
    assert len(solved) == 1
    half = known.where(np.arange(len(known)) % 2 == 0)
    other = Histories(half, side.user_features).of(np.arange(USERS))
    assert np.array_equal(answer(model, other), alone(states[0], settings, half))
    model.ask_with(later)
    assert np.array_equal(answer(model, other), alone(states[0], later, half))
    model.ask_with(settings)
    assert np.array_equal(answer(model, other), alone(states[0], settings, half))
    model.restore(states[1], side)
    assert np.array_equal(answer(model, other), alone(states[1], settings, half))
    # Of more than is kept, nothing is kept, and the numbers are the same.
    monkeypatch.setattr(bayesian_factors, "_KEPT", 0)
    model.restore(states[0], side)
    assert np.array_equal(answer(model, queries), first)
    solved.clear()
    answer(model, queries)
    assert len(solved) == 2


def test_what_was_fitted_as_a_part_of_others_is_taken(rows: Interactions, side: SideInformation) -> None:
    """With its learning curve, and for a fit with these settings and tasks alone."""
    own, known = rows.with_tasks(["rating"]), side.with_tasks(["rating"])
    settings = BayesianFactorsSettings(dimension=2, sweeps=5, burn_in=1)
    fitted = BayesianFactors(settings)
    curve = fitted.fit(own, known, 3)
    taken = {name: FittedPart(fitted.state(), curve.epochs, 1.0, 1.0) for name in fitted.slow_parts(known)}
    queries = everyone(own, known)
    for other, same in ((settings, True), (settings.model_copy(update={"dimension": 3}), False)):
        model = BayesianFactors(other)
        model.take_parts(taken)
        assert (model.fit(own, known, 4).epochs == curve.epochs) == same
        assert np.array_equal(model.score(queries)["rating"], fitted.score(queries)["rating"]) == same
    # It is taken once.
    model.fit(own, known, 4)
    assert not np.array_equal(model.score(queries)["rating"], fitted.score(queries)["rating"])
