from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace

import ibis
import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from conftest import TASKS, everyone, make_interactions, make_side
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.folds import Folding, SplitRule
from multitask_recommender.data.inputs import TrainingTables
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.evaluation import cross_validation
from multitask_recommender.evaluation.cross_validation import (
    Choice,
    CrossValidationSettings,
    Grid,
    Searched,
    best_candidates,
    candidates,
    cross_validate,
    usable_folds,
    validation_errors,
)
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.errors import StudyError, TrainingError
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.models import shared_parts
from multitask_recommender.models.architectures.shared_bottom import SharedBottom
from multitask_recommender.models.baselines.bayesian_factors import BayesianFactors, BayesianFactorsSettings
from multitask_recommender.models.shared_parts import Wanted, fit_slow_parts
from multitask_recommender.models.variants import VARIANTS, Variant, VariantParameters
from multitask_recommender.pipelines.recommender.nodes import tune


def rule(folds: int, folding: Folding = "random") -> SplitRule:
    return SplitRule("random", "trained", folding, folds)


BUDGET = CrossValidationSettings(candidates=4, workers=1)


def choose(
    variant: Variant,
    parameters: VariantParameters,
    rows: Interactions,
    side: SideInformation,
    split: SplitRule,
    budget: CrossValidationSettings = BUDGET,
) -> Choice:
    (choice,) = cross_validate(variant, [Searched(split, parameters, rows, lambda _: side)], budget, 1)
    return choice


def test_a_small_grid_is_tried_whole() -> None:
    assert candidates({"a": [1, 2], "b": [3]}, 5, 0) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


def test_a_large_grid_is_sampled_without_repetition() -> None:
    grid = candidates({"a": list(range(10)), "b": list(range(10))}, 20, 3)
    assert len({tuple(point.values()) for point in grid}) == 20
    assert grid == candidates({"a": list(range(10)), "b": list(range(10))}, 20, 3)


def test_the_best_candidate_has_the_smallest_mean_among_those_that_stayed() -> None:
    rows = [(0, 0, 0.2), (1, 0, 0.5), (2, 0, 0.4), (1, 1, 0.1), (2, 1, 0.3)]
    table = pd.DataFrame(rows, columns=["candidate", "fold", "error"])
    assert best_candidates(table, 1) == [1]  # Candidate 0 was measured on one fold alone.
    assert best_candidates(table, 2) == [1, 2]


def test_seeds_do_not_depend_on_other_models() -> None:
    assert derive_seed(7, "a", 0) == derive_seed(7, "a", 0)
    assert len({derive_seed(7, "a", 0), derive_seed(7, "a", 1), derive_seed(7, "b", 0), derive_seed(8, "a", 0)}) == 4


def test_it_chooses_the_better_candidate_per_task() -> None:
    rows, side = make_interactions(60, 30, 8, seed=2), make_side(60, 30)
    variant = VARIANTS["user_item_bias"]
    parameters = variant.parameters(search={"user_shrinkage": [1e6, 5.0]})
    choice = choose(variant, parameters, rows, side, rule(3))
    assert set(choice.chosen) == {"like", "rating"}
    for task, chosen in choice.chosen.items():
        errors = choice.table[choice.table["task"] == task].groupby("candidate")["error"].mean()
        assert chosen == parameters_at(errors.idxmin())
    assert set(choice.table["fold"]) == {0}  # One of two is left after the first fold.


def parameters_at(candidate: int) -> dict[str, float]:
    return [{"user_shrinkage": 1e6}, {"user_shrinkage": 5.0}][candidate]


def test_results_do_not_depend_on_the_number_of_workers() -> None:
    rows, side = make_interactions(60, 30, 8, seed=2), make_side(60, 30)
    variant = VARIANTS["shared_bottom"]
    settings = {"dimension": 4, "training": {"epochs": 2, "batches": 2}}
    parameters = variant.parameters(settings=settings, search={"penalty": [0.1, 10.0]})
    tables = [
        choose(variant, parameters, rows, side, rule(2), CrossValidationSettings(candidates=2, workers=n)).table
        for n in (1, 2)
    ]
    pd.testing.assert_frame_equal(*tables)


def test_a_diverging_candidate_loses_and_all_diverging_is_an_error() -> None:
    rows, side = make_interactions(60, 30, 8, seed=2), make_side(60, 30)
    variant = VARIANTS["two_stage"]
    settings = {"dimension": 4, "training": {"epochs": 3, "batches": 2, "gradient_clip": None}}
    parameters = variant.parameters(settings=settings, search={"training.learning_rate": [1e30, 0.01]})
    choice = choose(variant, parameters, rows, side, rule(2))
    assert choice.chosen == {"training.learning_rate": 0.01}
    assert math.isinf(choice.table["error"].max())
    hopeless = variant.parameters(settings=settings, search={"training.learning_rate": [1e30, 1e31]})
    with pytest.raises(TrainingError, match=r"two_stage.*random"):
        choose(variant, hopeless, rows, side, rule(2))


def test_a_constant_model_has_error_one() -> None:
    rows, side = make_interactions(60, 30, 8, seed=2), make_side(60, 30)
    variant = VARIANTS["global_mean"]
    model = variant.make(variant.settings(), TASKS)
    model.fit(rows, side, 1)
    (errors,) = validation_errors(variant, model, rows, rows, side)
    assert errors == pytest.approx({"like": 1.0, "rating": 1.0}, rel=1e-5)


def test_a_perfect_ranker_has_error_zero() -> None:
    rows, side = make_interactions(20, 30, 8, seed=2), make_side(20, 30)
    inside, held_out = rows.where(rows.fold != 0), rows.where(rows.fold == 0)
    truth = np.zeros((20, 30), np.float32)
    truth[held_out.user, held_out.item] = 1
    model = VARIANTS["popularity"].make(VARIANTS["popularity"].settings(), side.tasks)
    model.score = lambda queries: {"watch": truth[queries.user]}  # type: ignore[method-assign]
    (errors,) = validation_errors(VARIANTS["popularity"], model, inside, held_out, side)
    assert errors["watch"] == pytest.approx(0.0, abs=1e-12)


def test_nobody_without_held_out_rows_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a slice of time these are most; asked in blocks of any size, the others tell the same."""
    rows, side = make_interactions(40, 30, 8, seed=2), make_side(40, 30)
    few = np.isin(rows.user, [3, 4, 17, 30, 39]) & (rows.fold == 0)
    inside, held_out = rows.where(~few), rows.where(few)
    variant = VARIANTS["shared_bottom"]
    settings = variant.settings.model_validate({"dimension": 3, "training": {"epochs": 2, "batches": 2}})
    model = variant.make(settings, side.tasks)
    model.fit(inside, side, 1)
    asked: list[int] = []
    score = model.score
    monkeypatch.setattr(model, "score", lambda queries: asked.extend(queries.user) or score(queries))
    (errors,) = validation_errors(variant, model, inside, held_out, side)
    assert asked == sorted({*held_out.user})
    everyone_asked = score(everyone(inside, side))
    queries = Histories(inside, side.user_features).of(np.arange(side.users))
    predicted = model.predict(queries, everyone_asked, held_out.user, held_out.item, None)["rating"]
    spread = float(np.std(inside.labels["rating"]))
    rmse = float(np.sqrt(np.mean((predicted - held_out.labels["rating"]) ** 2)))
    assert errors["rating"] == pytest.approx(rmse / spread, rel=1e-5)
    assert validation_errors(variant, model, inside, rows.where(rows.user < 0), side) == [{}]  # Nobody to ask.
    monkeypatch.setattr(cross_validation, "_BLOCK", 2)
    (in_blocks,) = validation_errors(variant, model, inside, held_out, side)
    assert in_blocks == pytest.approx(errors, rel=1e-5)


@pytest.mark.parametrize(
    "block",
    [
        {"settings": {"dimensions": 3}},
        {"search": {"dimensions": [3]}},
        {"search": {"training.rate": [3]}},
        {"search": {"trainings.learning_rate": [0.1]}},
        {"search": {"dimension": []}},
        {"search": {"dimension": [0]}},
    ],
)
def test_bad_blocks_are_refused(block: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VARIANTS["shared_bottom"].parameters.model_validate(block)


def test_a_task_without_positives_in_a_fold_is_refused() -> None:
    rows = make_interactions(20, 30, 8, seed=2)
    usable_folds(rows, TASKS, "shared_bottom", rule(3))
    assert rows.fold is not None
    rows.labels["like"][rows.fold == 1] = 0.0
    with pytest.raises(
        StudyError, match=r"'like' has no positive label .* in fold 2 of 3[\s\S]*'shared_bottom', random"
    ):
        usable_folds(rows, TASKS, "shared_bottom", rule(3))
    rows.labels["like"][:] = 0.0
    rows.labels["like"][np.flatnonzero(rows.fold == 0)[0]] = 1.0
    with pytest.raises(StudyError, match="outside fold 1 of 3"):
        usable_folds(rows, {"like": TASKS["like"]}, "shared_bottom", rule(3))


def test_an_error_of_training_survives_another_process_and_says_where() -> None:
    error = pickle.loads(pickle.dumps(TrainingError("It is nan in epoch 2.", "lower it").within("fold 2 of 5")))
    assert str(error) == "It is nan in epoch 2.\n  where: fold 2 of 5\n  what to do: lower it"


def test_slices_of_time_without_a_label_are_passed_over() -> None:
    rows = make_interactions(20, 30, 8, seed=2)
    assert rows.fold is not None
    rows.labels["like"][rows.fold == 1] = 0.0
    assert usable_folds(rows, TASKS, "shared_bottom", rule(2, "forward")) == [0]
    rows.labels["like"][:] = 0.0
    with pytest.raises(StudyError, match="'like' has no positive label"):
        usable_folds(rows, TASKS, "shared_bottom", rule(2, "forward"))


def test_ways_to_ask_cost_no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, side = make_interactions(60, 30, 8, seed=2), make_side(60, 30)
    variant = VARIANTS["item_knn"]
    parameters = variant.parameters(
        search={"normalisation": [0.4, 0.5], "recency.weight": [0.0, 5.0], "recency.reach": [1.0, 3.0]}
    )
    grid = Grid.of(parameters.search or {}, 4, 0)
    assert len(grid.fits) == 2
    # Where no row counts more, the reach does not matter.
    assert [list(way.values()) for way in grid.ways] == [[0.0, 1.0], [5.0, 1.0], [5.0, 3.0]]
    fits = []
    fit = variant.recommender.fit
    monkeypatch.setattr(variant.recommender, "fit", lambda self, *args: fits.append(1) or fit(self, *args))
    choice = choose(variant, parameters, rows, side, rule(3))
    assert len(fits) == 2 * (len(TASKS) - 1)  # Two tasks have the same relevant rows.
    assert len(choice.table) == 6 * len(TASKS)
    for task, chosen in choice.chosen.items():
        own = choice.table[choice.table["task"] == task]
        assert json.loads(own.loc[own["error"].idxmin(), "parameters"]) == chosen


@pytest.mark.parametrize("name", ["ease", "single_task", "wide_shared_bottom", "user_item_bias"])
def test_a_model_asked_in_another_way_is_one_that_was_made_so(name: str) -> None:
    rows, side = make_interactions(40, 30, 8, seed=2), make_side(40, 30)
    variant = VARIANTS[name]
    parameters = variant.parameters()
    changed = parameters.with_values({"recency": {"weight": 8.0, "reach": 2.0}})
    scores = []
    for first in (parameters.settings, changed):
        model = variant.make(first, side.tasks)
        model.fit(rows, side, 3)
        model.ask_with(changed)
        scores.append(model.score(everyone(rows, side)))
    for task in scores[0]:
        np.testing.assert_array_equal(scores[0][task], scores[1][task])


def test_a_task_whose_held_out_pairs_are_all_known_takes_the_first_candidate() -> None:
    rows = make_interactions(40, 30, 8, seed=2)
    # Every pair was met before: lists leave out all that is held out.
    again = [rows.where(np.repeat(np.arange(len(rows)), 2))]
    fold = np.tile([2, 0], len(rows))
    events = replace(
        again[0], fold=fold, labels={"watch": again[0].labels["watch"]}, relevant={"watch": again[0].relevant["watch"]}
    )
    side, variant = make_side(40, 30).with_tasks(["watch"]), VARIANTS["item_knn"]
    parameters = variant.parameters(search={"normalisation": [0.5, 0.4]})
    choice = choose(variant, parameters, events, side, rule(2, "forward"))
    assert choice.chosen == {"watch": {"normalisation": 0.5}}
    assert choice.table.empty


def test_slow_parts_are_fitted_once_for_all_candidates_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, side = make_interactions(60, 30, 8, seed=2), make_side(60, 30)
    small = {"dimension": 3, "training": {"epochs": 2, "batches": 2}, "wide": {"penalty": 5.0}}
    factors = {"dimension": 2, "sweeps": 4, "burn_in": 1}
    fitted: list[BayesianFactorsSettings] = []
    fit = BayesianFactors.fit
    monkeypatch.setattr(BayesianFactors, "fit", lambda self, *data: fitted.append(self.settings) or fit(self, *data))

    def chosen(name: str) -> Choice:
        fitted.clear()
        variant = VARIANTS[name]
        parameters = variant.parameters(
            settings={**small, "wide_labels": factors},
            search={"penalty": [0.1, 1.0], "wide_labels.dimension": [2, 3], "wide_labels_share": [0.2, 0.5]},
        )
        return choose(variant, parameters, rows, side, rule(2))

    monkeypatch.setattr(shared_parts, "_fitted", {})
    first = chosen("wide_shared_bottom")
    # On the first fold two lengths for each of two tasks, on the second at most as many again.
    assert 4 < len(fitted) <= 8
    chosen("wide_single_task")
    assert len(fitted) <= 4
    # As a baseline they are the same ones.
    known, baseline = set(shared_parts._fitted), VARIANTS["bayesian_factors"]
    parameters = baseline.parameters(settings=factors, search={"dimension": [2, 3]})
    alone = choose(baseline, parameters, rows, side, rule(2))
    assert set(shared_parts._fitted) == known
    with monkeypatch.context() as patch:
        patch.setattr(shared_parts, "_fitted", {})
        again = choose(baseline, parameters, rows, side, rule(2))
        assert len(shared_parts._fitted) == 4
    pd.testing.assert_frame_equal(again.table, alone.table)
    monkeypatch.setattr(shared_parts, "_KEPT_NUMBERS", 0)
    shared_parts._fitted.clear()
    again = chosen("wide_shared_bottom")
    assert 4 < len(fitted) <= 8
    assert not shared_parts._fitted
    assert again.chosen == first.chosen
    pd.testing.assert_frame_equal(again.table, first.table)
    monkeypatch.setattr(VARIANTS["wide_shared_bottom"].recommender, "take_parts", lambda self, states: None)
    chosen("wide_shared_bottom")
    assert len(fitted) > 8


def test_splits_are_searched_together_as_each_would_be_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that take fewer rounds wait for nothing, and the fits of a round of all splits are one lot of jobs."""
    rows, side = make_interactions(60, 30, 8, seed=2), make_side(60, 30)
    lots: list[int] = []
    run = cross_validation.run_jobs
    monkeypatch.setattr(
        cross_validation, "run_jobs", lambda call, jobs, *rest: lots.append(len(jobs)) or run(call, jobs, *rest)
    )
    variant = VARIANTS["item_knn"]
    searches = [
        Searched(split, variant.parameters(search=search), rows, lambda _: side)
        for split, search in (
            (rule(2), {"normalisation": [0.4, 0.5, 0.6, 0.7]}),
            (rule(2)._replace(name="other"), {"normalisation": [0.3, 0.5]}),
            (rule(3)._replace(name="third"), {"normalisation": [0.3, 0.4, 0.5, 0.6]}),
        )
    ]
    together = cross_validate(variant, searches, BUDGET, 1)
    tasks = len(TASKS) - 1  # Two have the same relevant rows.
    assert lots == [tasks * (4 + 2 + 4), tasks * (2 + 2)]
    for search, choice in zip(searches, together, strict=True):
        (alone,) = cross_validate(variant, [search], BUDGET, 1)
        assert choice.chosen == alone.chosen
        pd.testing.assert_frame_equal(choice.table, alone.table)


@pytest.mark.parametrize(
    ("name", "search"),
    [
        ("item_knn", {"normalisation": [0.3, 0.5, 0.7]}),
        ("content_based", {"neighbours": [3, 9, 27]}),
        ("rp3beta", {"alpha": [0.3, 0.6, 0.9]}),
        ("markov", {"skip": [0.0, 2.0, 5.0]}),
        ("ease", {"penalty": [1.0, 10.0, 100.0]}),
        ("ials", {"penalty": [1.0, 10.0, 100.0], "dimension": [4]}),
    ],
)
def test_tasks_with_the_same_relevant_rows_are_searched_once(
    name: str, search: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found for one is what would be found for the other, and a task that differs is searched by itself."""
    rows, side = make_interactions(60, 30, 8, seed=2), make_side(60, 30)
    fitted: list[list[str]] = []
    variant = VARIANTS[name]
    fit = variant.recommender.fit
    monkeypatch.setattr(
        variant.recommender,
        "fit",
        lambda self, rows, side, seed: fitted.append([*side.tasks]) or fit(self, rows, side, seed),
    )

    def chosen(**other: str) -> Choice:
        fitted.clear()
        tasks = {**side.tasks, "like": side.tasks["like"].model_copy(update=other)}
        return choose(variant, variant.parameters(search=search), rows, replace(side, tasks=tasks), rule(2))

    once = chosen()
    assert {task for own in fitted for task in own} == {"watch", "like"}
    for other in ({"known": "own_task"}, {"of_pair": "maximum"}):
        chosen(**other)
        assert {task for own in fitted for task in own} == set(TASKS)
    monkeypatch.setattr(variant.recommender, "by_relevance", False)
    apart = chosen()
    assert {task for own in fitted for task in own} == set(TASKS)
    assert once.chosen == apart.chosen
    pd.testing.assert_frame_equal(once.table, apart.table)


def test_what_is_solved_beside_a_training_is_no_reason_to_train_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates that differ in closed-form parts alone share a training, and are measured as if each had its own."""
    rows, side = make_interactions(60, 30, 8, seed=2), make_side(60, 30)
    trained: list[int] = []
    fit = SharedBottom.fit
    monkeypatch.setattr(SharedBottom, "fit", lambda self, *data: trained.append(1) or fit(self, *data))

    def chosen(name: str) -> Choice:
        trained.clear()
        variant = VARIANTS[name]
        parameters = variant.parameters(
            settings={"dimension": 3, "training": {"epochs": 2, "batches": 2}, "wide": {"penalty": 5.0}},
            search={"wide.penalty": [0.5, 500.0], "penalty": [0.1, 1.0], "wide_weight": [5.0, 50.0]},
        )
        return choose(variant, parameters, rows, side, rule(2))

    for name, tasks in (("wide_shared_bottom", 1), ("wide_single_task", len(TASKS))):
        with monkeypatch.context() as patch:
            together, number = chosen(name), len(trained)
            patch.setattr(VARIANTS[name].recommender, "solved", frozenset())
            apart = chosen(name)
        assert 2 * tasks <= number < len(trained) <= 6 * tasks
        assert together.chosen == apart.chosen
        pd.testing.assert_frame_equal(together.table, apart.table)
        errors = together.table[together.table["task"] == "watch"]
        assert errors["error"].nunique() >= len(errors) / 2  # The penalty of labels does nothing to it alone.


def test_parts_of_other_rows_seeds_or_tasks_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_parts, "_fitted", {})
    rows, side = make_interactions(40, 20, 6, seed=2), make_side(40, 20)
    variant = VARIANTS["wide_shared_bottom"]
    settings = {"wide_labels": {"dimension": 2, "sweeps": 4, "burn_in": 1}}
    model = variant.make(variant.read_settings(settings), side.tasks)
    later = replace(rows, time=np.arange(len(rows), dtype=np.float64))
    fewer = rows.where(rows.fold != 0)
    other_features = replace(side, user_features=side.user_features.multiply(2.0).tocsr())
    wanted = [
        Wanted(model, rows, side, 1),
        Wanted(model, rows, side, 1),
        Wanted(model, rows, side, 2),
        Wanted(model, later, side, 1),
        Wanted(model, fewer, side, 1),
        Wanted(model, rows, other_features, 1),
    ]
    found = fit_slow_parts(wanted, 1, "test")
    states = [tuple(id(part.state) for part in own.values()) for own in found]
    assert len(found[0]) == 2
    assert states[0] == states[1]
    assert len({state for own in states for state in own}) == 10


def test_a_tuned_model_may_leave_out_a_kind_of_task() -> None:
    """Whether the study runs it is asked of all tasks; what it is tuned on are its own."""
    rows = make_interactions(40, 20, 6, seed=2)
    columns = {"split": "random", "user": rows.user, "item": rows.item, "position": np.arange(len(rows))}
    labels = {**rows.labels, **{f"relevant_{name}": values for name, values in rows.relevant.items()}}
    sequences = ibis.memtable(pd.DataFrame({**columns, **labels, "fold": rows.fold % 2}))
    users, items = (
        ibis.memtable({side: range(count), f"{side}_id": [str(number) for number in range(count)]})
        for side, count in (("user", 40), ("item", 20))
    )
    nothing = [
        ibis.memtable(pd.DataFrame({"split": ["random"], side: [0], "column": [0], "weight": [1.0]}))
        for side in ("user", "item")
    ]
    dataset = DatasetSettings.model_validate(
        {"name": "small", "interactions": {"user_id": "u", "item_id": "i"}, "tasks": TASKS}
    )
    variant = replace(VARIANTS["shared_bottom"], leaves_out="binary")
    own = dataset.model_copy(update={"tasks": variant.trained_tasks(dataset.tasks)})
    parameters = variant.parameters(
        settings={"dimension": 3, "training": {"epochs": 2, "batches": 2}}, search={"penalty": [0.1, 1.0]}
    )
    splits = SplitSettings(strategies=["random"], seed=1, folds=2)
    tables = TrainingTables(own, sequences, users, items, *nothing)
    table, chosen = tune(variant, parameters, BUDGET, StudySettings(seed=1, repeats=1), splits, dataset, tables, None)
    assert set(table["task"]) == {"watch", "rating"}
    assert chosen["random"]["penalty"] in (0.1, 1.0)


def test_ways_are_measured_as_if_each_were_alone(rows, side):
    """Parts that a way does not change are not asked again, and it makes no difference to what is measured."""
    base = {
        "dimension": 3,
        "training": {"epochs": 2, "batches": 2},
        "wide": {"penalty": 5.0},
        "wide_labels": {"dimension": 2, "sweeps": 4, "burn_in": 1},
    }
    for name in ("wide_shared_bottom", "wide_single_task"):
        variant = VARIANTS[name]
        changes = [{"wide_weight": 1.0}, {"wide_weight": 8.0}, {"wide_labels_share": 0.2}, {"recency": {"weight": 9.0}}]
        ways = [variant.settings.model_validate({**base, **change}) for change in changes]
        model = variant.make(ways[0], side.tasks)
        model.fit(rows, side, 1)
        together = validation_errors(variant, model, rows, rows, side, "all", rows.where(rows.item % 2 == 0), ways)
        alone = []
        for way in ways:
            again = variant.make(ways[0], side.tasks)
            again.restore(model.state(), side)
            again.ask_with(way)
            alone += validation_errors(variant, again, rows, rows, side, "all", rows.where(rows.item % 2 == 0))
        assert together == alone
        assert len({json.dumps(errors) for errors in together}) == len(ways)


def test_a_part_that_diverges_is_named_with_its_model() -> None:
    """It would for every candidate, so that none is left to go on with."""
    rows, side = make_interactions(60, 30, 8, seed=2), make_side(60, 30)
    variant = VARIANTS["wide_shared_bottom"]
    after = {"dimension": 2, "training": {"learning_rate": 1e30, "epochs": 3, "batches": 2}}
    settings = {"dimension": 3, "training": {"epochs": 2, "batches": 2}, "next_items": after}
    parameters = variant.parameters(settings=settings, search={"penalty": [0.1, 1.0]})
    with pytest.raises(TrainingError, match=r"(?s)NextItems.*wide_shared_bottom: cross-validation"):
        choose(variant, parameters, rows, side, rule(2))
