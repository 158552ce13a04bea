"""A loaded model answers as the study did, for known users, grown histories and newcomers, and refuses the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from conftest import Project
from multitask_recommender import load_recommender
from multitask_recommender.foundation.errors import RequestError
from multitask_recommender.use.recommender import UNKNOWN_ITEMS, LoadedRecommender

MODELS = ["shared_bottom", "single_task", "two_stage", "item_knn", "user_item_bias"]
RATED = [("1", 5), ("2", 2), ("10", 4)]


def features(project: Project, user_id: str) -> dict[str, object]:
    users = pd.read_parquet(project.outputs / "03_primary" / "users.parquet").set_index("user_id")
    return users.loc[user_id].drop("user").to_dict()


def history(events: pd.DataFrame, user_id: str) -> list[dict[str, object]]:
    return events.loc[events["user_id"] == user_id, ["item_id", "rating"]].to_dict("records")


@pytest.mark.parametrize("name", MODELS)
def test_lists_are_those_of_the_study(finished_project: Project, name: str) -> None:
    recommender = load_recommender(finished_project.outputs, model=name)
    stored = pd.read_parquet(finished_project.outputs / "07_model_output" / name / "recommendations.parquet")
    assert set(stored["task"]) == set(recommender.tasks)
    for task in recommender.tasks:
        found = recommender.recommend(user_ids=["1", "42", "7"], task=task, n=10)
        expected = stored[(stored["task"] == task) & stored["user_id"].isin(["1", "42", "7"])]
        for user_id, own in expected.groupby("user_id"):
            ours = found[found["user_id"] == user_id]
            assert ours["item_id"].tolist() == own["item_id"].tolist()
            assert ours["title"].tolist() == own["title"].tolist()
            np.testing.assert_allclose(ours["score"], own["score"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_known_user_described_as_a_newcomer_gets_the_same_scores(
    finished_project: Project, events: pd.DataFrame, name: str
) -> None:
    recommender = load_recommender(finished_project.outputs, model=name)
    for user_id in ("1", "42"):  # The age of the first is missing.
        known = recommender.predict(recommender.run.item_ids, user_id=user_id)
        told = recommender.predict(
            recommender.run.item_ids, history=history(events, user_id), context=features(finished_project, user_id)
        )
        pd.testing.assert_frame_equal(known, told, rtol=1e-4, atol=1e-5)


def test_contexts_are_those_of_the_study(finished_project: Project, shared_bottom: LoadedRecommender) -> None:
    """Bins, rare and missing values, and the activity counted from the history."""
    for user_id in shared_bottom.run.user_ids[:30]:
        number = shared_bottom.user_number(user_id)
        rows = shared_bottom.run.rows
        items = [shared_bottom.run.item_ids[item] for item in rows.item[rows.user == number]]
        queries, _ = shared_bottom.queries(None, items, features(finished_project, user_id))
        difference = queries.context - shared_bottom.run.side.user_features[number]
        assert abs(difference).max() < 1e-6, user_id


def test_context_values(shared_bottom: LoadedRecommender) -> None:
    def columns(**context: object) -> set[str]:
        queries, _ = shared_bottom.queries(None, [], context)
        names = {column: (f, v) for f, values in shared_bottom.run.vocabulary.items() for v, column in values.items()}
        return {f"{names[column][0]}={names[column][1]}" for column in queries.context.indices}

    assert {"gender=F", "consumption_level=(rare)"} <= columns(gender="F")  # Nobody trains without a history.
    edges = sorted(
        float(value.removeprefix("from ")) for value in shared_bottom.run.vocabulary["age"] if value.startswith("from")
    )
    assert f"age=from {edges[0]}" in columns(age=edges[0] - 1)
    assert f"age=from {edges[1]}" in columns(age=str(edges[1]))
    assert f"age=from {edges[-1]}" in columns(age=1e9)
    assert columns(gender="never seen") & columns(gender=None) == columns(gender=None) - {"gender=(missing)"}
    unknown = shared_bottom._contexts.unknown(1)
    assert set(unknown.data) <= {1.0}


def test_a_grown_history_is_the_whole_history(
    finished_project: Project, events: pd.DataFrame, shared_bottom: LoadedRecommender
) -> None:
    known = history(events, "42")
    fresh = next(item for item in shared_bottom.run.item_ids if item not in {event["item_id"] for event in known})
    grown = [(fresh, 1), (known[0]["item_id"], 5)]
    found = shared_bottom.predict(shared_bottom.run.item_ids, user_id="42", history=grown)
    whole = [*known[1:], {"item_id": fresh, "rating": 1}, {"item_id": known[0]["item_id"], "rating": 5}]
    told = shared_bottom.predict(shared_bottom.run.item_ids, history=whole, context=features(finished_project, "42"))
    pd.testing.assert_frame_equal(found, told, rtol=1e-4, atol=1e-5)
    before = shared_bottom.predict(shared_bottom.run.item_ids, user_id="42")
    assert (found["watch"] - before["watch"]).abs().max() > 1e-3
    assert fresh not in shared_bottom.recommend(user_id="42", history=grown, n=100)["item_id"].tolist()


def test_all_forms_of_a_history_say_the_same(shared_bottom: LoadedRecommender) -> None:
    expected = shared_bottom.recommend(history=RATED, task="rating")
    for form in (
        [{"item_id": item, "rating": rating} for item, rating in RATED],
        [(item, {"rating": rating}) for item, rating in RATED],
        [(int(item), str(rating)) for item, rating in RATED],
        pd.DataFrame(RATED, columns=["item_id", "rating"]),
    ):
        pd.testing.assert_frame_equal(shared_bottom.recommend(history=form, task="rating"), expected)
    other = shared_bottom.recommend(history=[item for item, _ in RATED], task="rating")
    assert not np.allclose(other["score"], expected["score"])


def test_labels_of_a_history(shared_bottom: LoadedRecommender) -> None:
    """What is not said is unknown; that there is an event says that the item was watched."""
    rows, _ = shared_bottom.history_reader.read(
        ["1", ("2", 3), {"item_id": "3", "like": 1}, {"item_id": "4", "watch": 1}]
    )
    np.testing.assert_array_equal(rows.labels["watch"], [1, 1, 1, 1])
    np.testing.assert_array_equal(rows.labels["like"], [np.nan, 0, 1, np.nan])
    np.testing.assert_array_equal(rows.labels["rating"], [np.nan, 3, np.nan, np.nan])
    np.testing.assert_array_equal(rows.relevant["like"], [False, False, True, False])


def test_an_item_that_comes_again_counts_once(shared_bottom: LoadedRecommender) -> None:
    again = shared_bottom.predict(["5"], history=[("1", 2), ("2", 4), ("1", 5)])
    once = shared_bottom.predict(["5"], history=[("2", 4), ("1", 5)])
    pd.testing.assert_frame_equal(again, once)


def test_choice_of_items(shared_bottom: LoadedRecommender) -> None:
    best = shared_bottom.recommend(user_id="42", n=5)
    assert best["rank"].tolist() == [1, 2, 3, 4, 5]
    assert best["score"].is_monotonic_decreasing
    first, second = best["item_id"][:2]
    assert first not in shared_bottom.recommend(user_id="42", n=5, exclude=[first])["item_id"].tolist()
    assert shared_bottom.recommend(user_id="42", candidates=[second, first])["item_id"].tolist() == [first, second]
    number = shared_bottom.user_number("42")
    rows = shared_bottom.run.rows
    own = {shared_bottom.run.item_ids[item] for item in rows.item[rows.user == number]}
    everything = shared_bottom.recommend(user_id="42", n=1000)
    assert not own & set(everything["item_id"])
    assert own <= set(shared_bottom.recommend(user_id="42", n=1000, include_known=True)["item_id"])


def test_many_users_get_what_each_gets_alone(shared_bottom: LoadedRecommender) -> None:
    table = shared_bottom.recommend(user_ids=[42, "7"], task="like", n=3)
    assert table.columns.tolist() == ["user_id", "rank", "item_id", "title", "score"]
    for user_id, own in table.groupby("user_id"):
        alone = shared_bottom.recommend(user_id=user_id, task="like", n=3)
        assert own["item_id"].tolist() == alone["item_id"].tolist()
    assert shared_bottom.recommend(user_ids=[]).empty


def test_predictions_of_pairs(shared_bottom: LoadedRecommender) -> None:
    pairs = pd.DataFrame({"user_id": ["42", "7", "42"], "item_id": ["1", "2", "3"]})
    found = shared_bottom.predict(pairs)
    assert found["user_id"].tolist() == pairs["user_id"].tolist()
    for row in found.itertuples():
        alone = shared_bottom.predict([row.item_id], user_id=row.user_id)
        np.testing.assert_allclose([row.watch, row.like, row.rating], alone.iloc[0, 1:].astype(float), rtol=1e-4)
    assert found["like"].between(0, 1).all()
    assert found["rating"].between(1, 5).all()


def test_tasks_that_a_model_does_not_score(finished_project: Project) -> None:
    biases = load_recommender(finished_project.outputs, model="user_item_bias")
    assert biases.tasks == ["like", "rating"]
    with pytest.raises(RequestError, match=r"does not score the task 'watch'(.|\n)*like, rating"):
        biases.recommend(user_id="42", task="watch")


@pytest.mark.parametrize("name", ["shared_bottom", "single_task", "two_stage", "item_knn"])
def test_similar_items(finished_project: Project, name: str) -> None:
    recommender = load_recommender(finished_project.outputs, model=name)
    found = recommender.similar_items("1", n=5)
    assert "1" not in found["item_id"].tolist()
    assert found["similarity"].is_monotonic_decreasing
    assert len(found) == 5
    if name != "item_knn":
        assert found["similarity"].between(-1 - 1e-5, 1 + 1e-5).all()
        back = recommender.similar_items(found["item_id"][0], n=1000).set_index("item_id")["similarity"]
        assert back["1"] == pytest.approx(found["similarity"][0], rel=1e-4)
    else:
        # The weight with which the item counts for another is its score for who knows it alone.
        scores = recommender.predict(found["item_id"], history=["1"])["watch"]
        np.testing.assert_allclose(scores, found["similarity"], rtol=1e-5)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda r: r.recommend(user_id="nobody"), "no user 'nobody'(.|\n)*history"),
        (lambda r: r.recommend(), "Nobody is named"),
        (lambda r: r.recommend(user_ids=["42", "nobody"]), "'nobody'"),
        (lambda r: r.recommend(user_id="42", task="buy"), "no task 'buy'(.|\n)*watch, like, rating"),
        (lambda r: r.recommend(user_id="42", n=0), "at least 1"),
        (lambda r: r.recommend(user_id="42", candidates=["1", "none"]), "no item 'none'"),
        (lambda r: r.recommend(history=["1", "none"]), "1 unknown item: 'none'"),
        (lambda r: r.recommend(history=[("1", 7)]), "'rating' is 7(.|\n)*item '1'(.|\n)*from 1 to 5"),
        (lambda r: r.recommend(history=[{"item_id": "1", "like": 2}]), "'like' is 2(.|\n)*from 0 to 1"),
        (lambda r: r.recommend(history=[("1", "good")]), "no number"),
        (lambda r: r.recommend(history=[{"item_id": "1", "stars": 2}]), "'stars' is neither(.|\n)*rating, watch, like"),
        (lambda r: r.recommend(history=[{"rating": 2}]), "names no item"),
        (lambda r: r.recommend(history="1"), "list of events"),
        (lambda r: r.recommend(context={"size": 2}), "'size'(.|\n)*age, gender"),
        (lambda r: r.recommend(context={"consumption_level": 2}), "counted from the history"),
        (lambda r: r.recommend(context={"age": "old"}), "'old' is not a number"),
        (lambda r: r.predict(pd.DataFrame({"user_id": ["42"]})), "'item_id'"),
        (lambda r: r.similar_items("none"), "no item 'none'"),
    ],
)
def test_what_is_unknown_is_refused(shared_bottom: LoadedRecommender, ask: object, said: str) -> None:
    with pytest.raises(RequestError, match=said) as error:
        ask(shared_bottom)  # type: ignore[operator]
    assert "what to do: " in str(error.value)


def test_unknown_items_are_ignored_and_counted_on_request(shared_bottom: LoadedRecommender) -> None:
    found = shared_bottom.recommend(history=[*RATED, "none", "nor this"], unknown_items="ignore")
    assert found.attrs[UNKNOWN_ITEMS] == 2
    pd.testing.assert_frame_equal(found, shared_bottom.recommend(history=RATED))
    assert shared_bottom.recommend(user_id="nobody", history=RATED)["item_id"].tolist() == found["item_id"].tolist()


def test_a_model_without_similarities_says_so(finished_project: Project) -> None:
    with pytest.raises(RequestError, match=r"'popularity' compares no items"):
        load_recommender(finished_project.outputs, model="popularity").similar_items("1")


def test_a_list_leaves_out_what_its_task_declares(shared_bottom: LoadedRecommender) -> None:
    own = shared_bottom.run.tasks["like"].model_copy(update={"known": "own_task"})
    declared = LoadedRecommender(replace(shared_bottom.run, tasks={**shared_bottom.run.tasks, "like": own}))
    rows = shared_bottom.run.rows
    mine = rows.where(rows.user == shared_bottom.user_number("42"))
    liked, met = (
        {shared_bottom.run.item_ids[item] for item in items} for items in (mine.item[mine.relevant["like"]], mine.item)
    )
    for ask in ({"user_id": "42"}, {"user_ids": ["42"]}):
        found = set(declared.recommend(**ask, task="like", n=1000)["item_id"])
        assert not found & liked
        assert met - liked <= found
        assert not set(shared_bottom.recommend(**ask, task="like", n=1000)["item_id"]) & met
