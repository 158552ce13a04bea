"""The explorer: its lists are those of the models, and every change of a widget is answered."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Project
from multitask_recommender.foundation.errors import RequestError
from multitask_recommender.use.explorer import NOBODY, Explorer, find_studies
from multitask_recommender.use.recommender import LoadedRecommender


@pytest.fixture(scope="module")
def opened(finished_project: Project) -> Explorer:
    return Explorer(find_studies(finished_project.folder / "data"))


@pytest.fixture
def explorer(opened: Explorer) -> Iterator[Explorer]:
    """The explorer with a user of the training, two models and no changes."""
    opened.model.value, opened.other.value, opened.task.value = "shared_bottom", "single_task", "watch"
    opened.length.value = 10
    opened.user.value = "42"
    opened.reset.click()
    yield opened
    opened.reset.click()


def titles(text: str) -> list[str]:
    """Titles of the first list in the HTML."""
    return re.findall(r"<tr><td>\d+</td><td>([^<]+?)(?: <b|<br)", text.split("</table>")[0])


def test_lists_are_those_of_the_models(explorer: Explorer, shared_bottom: LoadedRecommender) -> None:
    for task in shared_bottom.tasks:
        explorer.task.value = task
        expected = shared_bottom.recommend("42", task=task, n=10)
        assert explorer.ranking("shared_bottom", 10)["item_id"].tolist() == expected["item_id"].tolist()
        assert titles(explorer.lists.value) == expected["title"].tolist()
        for score in expected["score"]:
            assert f"{score:.3f}" in explorer.lists.value
    assert [item for _, item in explorer.reason.options[1:]] == expected["item_id"].tolist()


def test_history_is_the_users_latest_first(explorer: Explorer, shared_bottom: LoadedRecommender) -> None:
    queries, _ = shared_bottom.queries("42", None, None)
    expected = [shared_bottom.run.item_ids[item] for item in queries.history.item[::-1]]
    assert [item for _, item in explorer.history.options] == expected
    label = queries.history.labels["rating"][-1]
    assert f"rating {label:g}" in explorer.history.options[0][0]


def test_both_lists_are_compared(explorer: Explorer) -> None:
    own, other = (set(explorer.ranking(name, 10)["item_id"]) for name in ("shared_bottom", "single_task"))
    assert f"{len(own & other)} of 10 items stand in both lists" in explorer.lists.value
    explorer.other.value = "shared_bottom"
    assert "10 of 10 items stand in both lists" in explorer.lists.value


def test_a_removed_event_is_forgotten(explorer: Explorer, shared_bottom: LoadedRecommender) -> None:
    before = explorer.lists.value
    item = explorer.history.options[0][1]
    explorer.history.value = (item,)
    explorer.remove.click()
    assert item not in [known for _, known in explorer.history.options]
    assert explorer.lists.value != before
    # As a newcomer with what is left of the history, and the same features.
    queries = shared_bottom.edited("42", without=[item])
    assert len(queries.history) == len(explorer.history.options)
    assert "in the list" in explorer.message.value or "stays" in explorer.message.value
    explorer.reset.click()
    assert explorer.lists.value == before


def test_an_added_event_is_answered(explorer: Explorer, shared_bottom: LoadedRecommender) -> None:
    first = explorer.ranking("shared_bottom", 1).iloc[0]
    explorer.item.value = f"{first['title']} [{first['item_id']}]"
    explorer.values["rating"].value = 1.0
    explorer.add.click()
    assert explorer.history.options[0][0].startswith("+ ")
    assert "rating 1" in explorer.history.options[0][0]
    expected = shared_bottom.recommend("42", history=[{"item_id": first["item_id"], "rating": 1.0}], task="watch")
    assert titles(explorer.lists.value) == expected["title"].tolist()
    assert first["item_id"] not in expected["item_id"].tolist()
    assert explorer.item.value == ""
    explorer.history.value = (first["item_id"],)
    explorer.remove.click()
    assert explorer.ranking("shared_bottom", 1).iloc[0]["item_id"] == first["item_id"]


def test_a_newcomer_starts_from_nothing(explorer: Explorer, shared_bottom: LoadedRecommender) -> None:
    explorer.user.value = NOBODY
    assert explorer.history.options == ()
    expected = shared_bottom.recommend(history=[], context={}, task="watch")
    assert titles(explorer.lists.value) == expected["title"].tolist()


def test_reasons_add_up_to_the_score(explorer: Explorer, shared_bottom: LoadedRecommender) -> None:
    item = explorer.reason.options[1][1]
    explorer.reason.value = item
    score = shared_bottom.predict([item], user_id="42")["watch"].iloc[0]
    assert re.search(rf"<b>score</b>.*\+?{re.escape(f'{score:+.3f}')}", explorer.why.value)
    explorer.length.value = 5
    assert explorer.why.value == ""  # The list is another one.


def test_slips_are_said_and_change_nothing(explorer: Explorer) -> None:
    before = explorer.lists.value
    explorer.remove.click()
    assert "No event is selected" in explorer.message.value
    explorer.item.value = "no such film"
    explorer.add.click()
    assert "no item &#x27;no such film&#x27;" in explorer.message.value
    explorer.item.value = ""
    assert explorer.lists.value == before
    explorer.user.value = "nobody"
    assert "no user &#x27;nobody&#x27;" in explorer.message.value
    assert explorer.lists.value == before


def test_a_model_without_the_task_says_so(explorer: Explorer) -> None:
    explorer.model.value = "user_item_bias"
    assert explorer.task.value in explorer.task.options
    explorer.task.value = "rating"
    assert titles(explorer.lists.value)
    explorer.model.value, explorer.task.value, explorer.other.value = "shared_bottom", "watch", "user_item_bias"
    assert "gives no scores for this task" in explorer.lists.value


def test_titles_are_text_and_no_markup(explorer: Explorer) -> None:
    titles_of_run = explorer._recommender("shared_bottom").run.titles
    original = list(titles_of_run)
    try:
        titles_of_run[:] = ["<i>Film</i>"] * len(original)
        explorer.length.value = 4
    finally:
        titles_of_run[:] = original
    assert "&lt;i&gt;Film&lt;/i&gt;" in explorer.lists.value
    assert "<i>" not in explorer.lists.value


def test_without_a_run_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="kedro run"):
        find_studies(tmp_path)
