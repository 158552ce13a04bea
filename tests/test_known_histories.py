"""Test rows are scored with what was known before them, and stored weights refuse other data."""

from __future__ import annotations

import json
import shutil

import ibis
import pandas as pd
import pytest
from kedro.config import OmegaConfigLoader

from conftest import Project
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.inputs import TrainingTables
from multitask_recommender.data.queries import Queries
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.spool import Spool
from multitask_recommender.models.baselines.simple import Popularity
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.pipelines.recommender import nodes

SPLITS = ["random", "chronological", "temporal", "cold_items"]


def frame(table: Spool) -> pd.DataFrame:
    return pd.concat([part.to_pandas() for part in table], ignore_index=True)


def test_no_test_row_stands_in_the_history_that_scores_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every split a user is asked with exactly the training and validation rows, in the order of time."""
    path = project.folder / "conf" / "test" / "parameters.yml"
    path.write_text(path.read_text().replace("strategies: [random]", f"strategies: [{', '.join(SPLITS)}]"))
    result = project.run("--pipelines", "data_engineering")
    assert result.returncode == 0, result.stderr
    read = {file.stem: ibis.read_parquet(file) for file in project.outputs.rglob("*.parquet")}
    parameters = OmegaConfigLoader(
        str(project.folder / "conf"), base_env="base", default_run_env="test", merge_strategy={"parameters": "soft"}
    )["parameters"]
    dataset = DatasetSettings.model_validate(parameters["dataset"])
    splits = SplitSettings.model_validate(parameters["splits"])
    data = ("behaviour_sequences", "users", "items", "user_features", "item_features")
    tables = TrainingTables(dataset, *(read[name] for name in data))
    asked: list[Queries] = []
    score = Popularity.score
    monkeypatch.setattr(Popularity, "score", lambda self, queries: asked.append(queries) or score(self, queries))
    variant = VARIANTS["popularity"]
    study = StudySettings(seed=1, repeats=1)
    chosen = {split: variant.settings().model_dump() for split in SPLITS}
    stored, *_ = nodes.fit(
        variant, chosen, CrossValidationSettings(candidates=1, workers=1), study, splits, tables, None
    )
    everything = read["splits"].execute().merge(read["labelled_interactions"].execute(), on="row")
    for split in SPLITS:
        asked.clear()
        own = {split: chosen[split]}
        predictions, lists, _ = nodes.predict(
            variant, own, splits, tables, stored, None, [10], read["validation_rows"], read["test_pairs"]
        )
        del asked[0]  # The first asks whether the stored weights fit, of one user with training rows.
        rows = everything[everything["split"] == split]
        test = rows[rows["part"] == "test"]
        known = set(rows.loc[rows["part"] != "test", ["user", "item"]].itertuples(index=False, name=None))
        seen = {
            (int(queries.user[place]), int(item))
            for queries in asked
            for place, item in zip(queries.history.user, queries.history.item, strict=True)
        }
        pairs = set(test[["user", "item"]].itertuples(index=False, name=None))
        assert not seen & pairs
        assert seen == {pair for pair in known if pair[0] in set(test["user"])}
        order = rows[rows["part"] != "test"].sort_values(["user", "timestamp", "row"])
        for queries in asked:
            for place, user in enumerate(queries.user):
                own_items = queries.history.item[queries.history.user == place]
                assert own_items.tolist() == order.loc[order["user"] == user, "item"].tolist()
        assert len(frame(predictions)) == len(test) * len(dataset.tasks)
        shown = frame(lists)
        assert not {pair for pair in shown[["user", "item"]].itertuples(index=False, name=None) if pair in known}
        # Halves of the users at a time, or all in turn where their lists are too long to be kept.
        with monkeypatch.context() as changed:
            changed.setattr(nodes, "_KEPT_ROWS", 0)
            in_turn = nodes.predict(
                variant, own, splits, tables, stored, None, [10], read["validation_rows"], read["test_pairs"]
            )
        for kept, streamed in zip((predictions, lists), in_turn, strict=False):
            keys = ["task", "user"]
            pd.testing.assert_frame_equal(
                *(frame(table).sort_values(keys, kind="stable", ignore_index=True) for table in (kept, streamed))
            )
        trained = set(rows.loc[rows["part"] == "train", "item"])
        assert set(shown["item"]) <= (set(rows["item"]) - trained if split == "cold_items" else trained)


@pytest.fixture(scope="module")
def fitted(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished study to change."""
    folder = tmp_path_factory.mktemp("changed") / "study"
    shutil.copytree(finished_project.folder, folder)
    return Project.at(folder)


def outputs(project: Project, model: str) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in (project.outputs / "07_model_output" / model).rglob("*.parquet")}


def test_stored_weights_refuse_other_settings(fitted: Project) -> None:
    path = fitted.outputs / "06_models" / "shared_bottom" / "chosen_settings.json"
    before = path.read_text()
    changed = json.loads(before)
    changed["random"]["penalty"] = 99.0
    path.write_text(json.dumps(changed))
    kept = outputs(fitted, "shared_bottom")
    result = fitted.run("--nodes", "recommender.multi_task.shared_bottom.predict")
    path.write_text(before)
    assert result.returncode != 0
    assert "'shared_bottom.chosen_settings' does not fit" in result.stderr
    assert "chosen_settings.json is gone or was changed afterwards" in result.stderr
    assert "Traceback" not in result.stderr
    assert outputs(fitted, "shared_bottom") == kept


@pytest.mark.parametrize(
    ("option", "model"),
    [
        (["--nodes", "recommender.multi_task.shared_bottom.recommend"], "shared_bottom"),
        (["--nodes", "recommender.baselines.item_knn.predict,recommender.baselines.item_knn.recommend"], "item_knn"),
        (["--nodes", "recommender.multi_task.two_stage.predict"], "two_stage"),
    ],
)
def test_stored_weights_refuse_other_users(fitted: Project, option: list[str], model: str) -> None:
    """After one user got another identifier, no part of a run goes on with the weights of before."""
    text = (fitted.raw / "users.tsv").read_text()
    first = text.splitlines()[1].split("\t")[0]
    if not first.startswith("renamed"):
        for table in ("interactions", "users"):
            fitted.edit(table, lambda whole: whole.replace(f"\n{first}\t", f"\nrenamed{first}\t"))
        assert fitted.run("--pipelines", "data_engineering").returncode == 0
    kept = outputs(fitted, model)
    result = fitted.run(*option)
    assert result.returncode != 0, result.stdout
    assert f"'{model}.chosen_settings' does not fit" in result.stderr
    assert "'training_data'" in result.stderr
    assert "Traceback" not in result.stderr
    assert outputs(fitted, model) == kept
