"""No figure depends on the spelling of an identifier, nor on the order of rows where the split does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from conftest import OTHER_SPLITS, Project, with_other_splits
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.numbering import refine
from multitask_recommender.evaluation import metrics
from multitask_recommender.models import ranking
from multitask_recommender.pipelines.data_engineering import nodes

Frames = dict[str, pd.DataFrame]
KEYS = ["split", "model", "task", "metric", "k", "group", "seed"]
RANDOM_FIRST = ["random", *OTHER_SPLITS]


def made(times: str, described: bool) -> Frames:
    """Users and items with popular and active ones, whose names are in the order of popularity."""
    random = np.random.default_rng(4)
    pairs = [
        (user, item)
        for user in range(60)
        for item in random.choice(45, size=random.integers(8, 16), replace=False, p=np.arange(45, 0, -1) / 1035)
    ]
    user, item = np.array(pairs).T
    # As texts, they are in the same order as the numbers.
    names = np.array([f"{number:02}" for number in range(62)])
    table = pd.DataFrame({"user_id": names[user], "item_id": names[item], "rating": random.integers(1, 6, len(user))})
    if times:
        table["timestamp"] = 1e9 + random.integers(0, 10**7, len(user)) // (86400 if times == "days" else 1)
    frames = {"interactions": table.sample(frac=1, random_state=1).reset_index(drop=True)}
    if described:
        frames["users"] = pd.DataFrame({"user_id": names, "age": random.integers(18, 70, 62)})
        titles = [f"Film {number}" for number in random.integers(0, 30, 50)]
        frames["items"] = pd.DataFrame(
            {"item_id": names[:50], "title": titles, "genre": random.choice(list("abc"), 50)}
        )
    return frames


def renamed(frames: Frames, seed: int, rows: bool = False) -> Frames:
    """The same with other identifiers, which sort otherwise, and where wanted with all rows in another order."""
    random = np.random.default_rng(seed)
    columns = [f"{side}{ending}" for side in ("user", "item") for ending in ("_id", "_id:token")]
    changed = {name: frame.copy() for name, frame in frames.items()}
    for column in columns:
        own = [frame for frame in changed.values() if column in frame]
        known = sorted({str(value) for frame in own for value in frame[column]})
        names = dict(zip(known, (f"{'xA9'[n % 3]}{n}" for n in random.permutation(len(known))), strict=True))
        for frame in own:
            frame[column] = frame[column].astype(str).map(names)
    if rows:
        changed = {name: frame.sample(frac=1, random_state=seed) for name, frame in changed.items()}
    return changed


def description(frames: Frames) -> dict[str, Any]:
    interactions: dict[str, Any] = {"user_id": "user_id", "item_id": "item_id"}
    interactions["signals"] = {"rating": {"column": "rating", "minimum": 1, "maximum": 5}}
    if "timestamp" in frames["interactions"]:
        interactions["timestamp"] = "timestamp"
    found: dict[str, Any] = {"name": "names", "interactions": interactions}
    found["tasks"] = {
        "watch": {"kind": "retrieval"},
        "like": {"kind": "binary", "label": "rating >= 4", "after": "watch"},
        "rating": {"kind": "regression", "label": "rating", "relevant": "rating >= 4"},
    }
    if "users" in frames:
        age = {"kind": "numeric", "column": "age", "bins": 4}
        found["users"] = {"user_id": "user_id", "features": {"age": age}}
        genre = {"kind": "category", "column": "genre"}
        found["items"] = {"item_id": "item_id", "title": "title", "features": {"genre": genre}}
    return found


def model_inputs(frames: Frames) -> Frames:
    """All that the later pipelines read, except for identifiers."""
    dataset = DatasetSettings.model_validate(description(frames))
    strategies = RANDOM_FIRST if dataset.interactions.timestamp else ["random", "cold_items"]
    settings = SplitSettings.model_validate({"strategies": strategies, "seed": 42, "folds": 3})
    raw = {name: ibis.memtable(frame.astype(str)) for name, frame in frames.items()}
    interactions, users, items, *_ = nodes.validate_tables(
        nodes.standardise_interactions(raw["interactions"], dataset),
        nodes.standardise_users(raw.get("users"), dataset),
        nodes.standardise_items(raw.get("items"), None, None, dataset),
        dataset,
        settings,
    )
    splits = nodes.assign_splits(interactions, settings)
    parts = nodes.separate_parts(nodes.label_interactions(interactions, dataset), splits, dataset)
    names = ["behaviour_sequences", "validation_rows", "test_pairs", "test_labels"]
    tables = {name: part.cache() for name, part in zip(names, parts, strict=True)}
    for build, entities in ((nodes.build_user_features, users), (nodes.build_item_features, items)):
        names = [f"{build.__name__}.{part}" for part in ("vocabulary", "matrix")]
        tables |= dict(zip(names, build(entities, tables["behaviour_sequences"], dataset), strict=True))
    tables |= {"users": users.order_by("user").drop("user_id"), "items": items.order_by("item").drop("item_id")}
    tables["items"] = tables["items"].drop("title")
    return {name: table.execute().reset_index(drop=True) for name, table in tables.items()}


def assert_same(first: Frames, second: Frames, apart_from: list[str] | None = None) -> None:
    assert list(first) == list(second)
    for name, table in first.items():
        own, other = table, second[name]
        if "split" in table:
            own, other = (
                frame[~frame["split"].isin(apart_from or [])].reset_index(drop=True) for frame in (own, other)
            )
        pd.testing.assert_frame_equal(own, other, obj=name)


@pytest.mark.parametrize(("times", "described"), [("seconds", False), ("days", True), ("", True), ("", False)])
def test_what_models_read_depends_on_no_name(times: str, described: bool) -> None:
    frames = made(times, described)
    before = model_inputs(frames)
    assert_same(before, model_inputs(renamed(frames, 1)))
    # Apart from the split that is declared over the order of the rows, and the one of which nothing is measured.
    other = model_inputs(renamed(frames, 2, rows=True))
    assert_same(before, other, apart_from=["random", "everything"])


def twins() -> pd.DataFrame:
    """Many users whom nothing but a name and a label tells apart, as in data with one interaction each."""
    random = np.random.default_rng(3)
    item = np.repeat(np.arange(16), 8)
    rating = random.integers(1, 6, len(item))
    return pd.DataFrame({"user_id": np.arange(len(item)), "item_id": item, "rating": rating})


def test_users_without_a_difference_have_numbers_that_no_name_changes() -> None:
    frames = {"interactions": twins().sample(frac=1, random_state=5).reset_index(drop=True)}
    assert_same(model_inputs(frames), model_inputs(renamed(frames, 1)))


@pytest.mark.parametrize("frames", [made("days", True), made("", False), {"interactions": twins()}])
def test_no_label_changes_a_number(frames: Frames) -> None:
    table = frames["interactions"]
    changed = {**frames, "interactions": table.assign(rating=np.roll(table["rating"], 7))}
    first, second = (model_inputs(own)["test_pairs"] for own in (frames, changed))
    pd.testing.assert_frame_equal(first, second)


def test_colours_come_apart_by_what_is_known() -> None:
    none = (np.zeros(3, np.uint64), np.zeros(3, np.uint64))
    # A path from user 0 to item 2, whose mirror image is the path from item 2 to user 0.
    user, item = np.array([0, 1, 1, 2, 2], np.int32), np.array([0, 0, 1, 1, 2], np.int32)
    users, items = refine(user, item, np.full(5, np.nan), none)
    assert len(set(users)) == 3
    assert np.array_equal(users, items[::-1])
    circle = (np.array([0, 0, 1, 1], np.int32), np.array([0, 1, 0, 1], np.int32))
    alike = refine(*circle, np.zeros(4), (none[0][:2], none[1][:2]))
    assert [len(set(side)) for side in alike] == [1, 1]
    timed = refine(*circle, np.array([0.0, 0, 0, 1]), (none[0][:2], none[1][:2]))
    assert [len(set(side)) for side in timed] == [2, 2]


# Whole runs ------------------------------------------------------------------------------------------------------------


def rename_files(project: Project, rows: bool) -> None:
    files = sorted(project.raw.glob("*.tsv"))
    frames = {file.stem: pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False) for file in files}
    for name, frame in renamed(frames, 1, rows).items():
        frame.to_csv(project.raw / f"{name}.tsv", sep="\t", index=False)


def figures(project: Project) -> pd.Series:
    table = pd.read_csv(project.outputs / "08_reporting" / "metrics.csv")
    return table.set_index(KEYS)["value"].sort_index()


def assert_same_figures(first: Project, second: Project) -> None:
    pd.testing.assert_series_equal(figures(first), figures(second), rtol=1e-6, atol=1e-9)


def ran(project: Project, *options: str) -> Project:
    """Run as far as to the metrics."""
    result = project.run(*options, "--to-nodes", "evaluation.measure_models")
    assert result.returncode == 0, result.stderr
    return project


def test_names_move_no_figure_of_any_model(every_model: Project, project: Project) -> None:
    rename_files(project, rows=False)
    assert_same_figures(every_model, ran(project, "--params", "study.quick=false"))


def test_names_and_rows_move_no_figure_of_other_splits(other_splits: Project, project: Project) -> None:
    rename_files(project, rows=True)
    assert_same_figures(other_splits, ran(with_other_splits(project)))


def bring(project: Project, frames: Frames, strategies: list[str]) -> Project:
    """Put a data set of its own in the place of the tiny study."""
    columns = {name: frame.astype(str) for name, frame in frames.items()}
    for name, frame in columns.items():
        frame.to_csv(project.raw / f"{name}.tsv", sep="\t", index=False)
    catalog = project.folder / "conf" / "test" / "catalog.yml"
    for name in {"users", "items", "item_links", "item_graph"} - set(frames):
        pattern = rf"raw_{name}:\n(  .*\n)+"
        catalog.write_text(re.sub(pattern, "", catalog.read_text()))

    def change(text: dict[str, Any]) -> None:
        text["dataset"] = description(frames)
        text["splits"]["strategies"] = strategies

    return project.configure(change)


WITHOUT_TIMES = ["random", "popularity", "item_mean", "user_item_bias", "item_knn", "content_based", "two_stage"]
WITHOUT_TIMES += ["shared_bottom", "markov", "ease", "next_items", "wide_shared_bottom"]
"""Models with many ties, and those that the order of the rows can mean something to where there are no times."""


def test_names_move_no_figure_without_times(tmp_path: Path) -> None:
    frames = made("", described=False)
    tables = [frames, renamed(frames, 1)]
    few = ("--params", f"study.models={' '.join(WITHOUT_TIMES)}")
    projects = [
        ran(bring(Project(tmp_path / str(number)), own, ["random", "cold_items"]), *few)
        for number, own in enumerate(tables)
    ]
    assert_same_figures(*projects)


KNOW_NOTHING = ["random", "global_mean", "user_mean"]
KNOW_NO_NEW_ITEM = ["popularity", "item_mean", "user_item_bias", "item_knn", "rp3beta", "ease"]


def chance(project: Project, split: str, task: str, relevant: str) -> tuple[float, float]:
    """Expected NDCG@10 of a random order, and its standard error over the users, by 2000 draws."""
    rows = {}
    for name in ("behaviour_sequences", "validation_rows", "test_labels"):
        rows[name] = pd.read_parquet(next(project.outputs.rglob(f"{name}.parquet"))).query("split == @split")
    test = rows["test_labels"][rows["test_labels"][relevant]]
    items = 1 + max(frame["item"].max() for frame in rows.values())
    trained = np.isin(np.arange(items), rows["behaviour_sequences"]["item"])
    catalogue = ~trained if split == "cold_items" else trained
    random, draws = np.random.default_rng(1), []
    for user, own in test.groupby("user"):
        candidates = catalogue.copy()
        for name in ("behaviour_sequences", "validation_rows"):
            candidates[rows[name].loc[rows[name]["user"] == user, "item"]] = False
        scores = random.random((2000, items), np.float32)
        none = sparse.csr_matrix(scores.shape)
        lists = ranking.top_items(scores, none, candidates, 10, np.arange(2000))
        draws.append(metrics.ndcg(np.isin(lists, own["item"]), np.full(2000, len(own))))
    means = np.mean(draws, axis=0)
    return float(means.mean()), float(means.std())


def test_models_that_know_nothing_are_at_chance(project: Project) -> None:
    ran(
        bring(project, made("seconds", described=False), RANDOM_FIRST),
        "--params",
        f"study.models={' '.join([*KNOW_NOTHING, *KNOW_NO_NEW_ITEM])}",
    )
    found = figures(project)
    for split in RANDOM_FIRST:
        # New items have no interactions, and these have no features either.
        names = [*KNOW_NOTHING, *(KNOW_NO_NEW_ITEM if split == "cold_items" else [])]
        for task, relevant in (("watch", "relevant_watch"), ("like", "relevant_like")):
            expected, error = chance(project, split, task, relevant)
            for name in names:
                if task == "watch" and name.endswith(("mean", "bias")):
                    continue  # They predict labels, and there is one.
                own = found.loc[(split, name, task, "ndcg", 10, "all", 0)]
                assert abs(own - expected) < 3.5 * error, (split, name, task, own, expected, error)
