"""The whole of ``kedro run`` on the tiny study: outputs, repeatability, leaks, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from safetensors.numpy import load_file

from conftest import Project
from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.datasets import ArraysFile, CsvTable
from multitask_recommender.evaluation.comparisons import is_control
from multitask_recommender.evaluation.groups import overall
from multitask_recommender.evaluation.metric_records import METRICS
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.models.variants import VARIANTS

CORE = [name for name, variant in VARIANTS.items() if variant.core and variant.quick]


def test_metrics_table(finished_project: Project) -> None:
    table = pd.read_csv(finished_project.outputs / "08_reporting" / "metrics.csv")
    assert list(table.columns) == [
        "dataset",
        "split",
        "model",
        "kind",
        "task",
        "metric",
        "k",
        "group",
        "seed",
        "value",
        "users",
        "rows",
    ]
    assert set(table["metric"]) == set(METRICS)
    for name, metric in METRICS.items():
        own = table[table["metric"] == name]
        assert set(own["k"]) == ({10, 20} if metric.of_lists else {0})
    assert list(table["model"].drop_duplicates()) == CORE
    assert set(table["split"]) == {"random"}
    assert not table.duplicated(["split", "model", "task", "metric", "k", "group", "seed"]).any()
    assert table["value"].notna().all()
    bounded = table[table["metric"].isin(set(METRICS) - {"rmse", "mae", "log_loss", "novelty"})]
    assert bounded["value"].between(0, 1).all()
    # Every user and item of this split has training rows, and groups that nobody is in have no row.
    assert set(table["group"]) == {"all", "hot_users", "hot_items"}
    keys = ["model", "task", "metric", "k", "seed"]
    assert table.groupby(keys)[["value", "users", "rows"]].nunique().eq(1).all(axis=None)
    tested = pd.read_parquet(finished_project.outputs / "05_model_input" / "test_pairs.parquet")
    assert set(table.loc[table["task"] == "watch", "rows"]) == {len(tested)}


def test_costs_and_cross_validation(finished_project: Project) -> None:
    folder = finished_project.outputs / "08_reporting"
    costs = pd.read_csv(folder / "costs.csv")
    assert list(costs.columns) == ["model", "parameters", "fit_seconds", "predict_seconds", "peak_mb"]
    assert list(costs["model"]) == CORE
    results = pd.read_csv(folder / "cv_results.csv")
    assert {"user_embedding", "two_stage", "shared_bottom", "single_task"} <= set(results["model"])
    assert results["parameters"].map(json.loads).map(len).min() >= 1


def test_comparisons(finished_project: Project) -> None:
    table = pd.read_csv(finished_project.outputs / "08_reporting" / "comparisons.csv")
    columns = "dataset,split,model,control,task,metric,k,difference,relative,ci_low,ci_high,p_value,p_holm,verdict"
    assert ",".join(table.columns) == f"{columns},p_primary,primary_verdict"
    assert {VARIANTS[name].kind for name in table["model"]} == {"multi_task"}
    assert {VARIANTS[name].kind for name in table["control"]} == {"single_task", "baseline"}
    assert (table["p_holm"] >= table["p_value"]).all()
    assert (table["ci_low"] <= table["ci_high"]).all()
    assert set(table["verdict"]) <= {"helps", "harms", "equivalent", "undecided"}
    assert not table.duplicated(["split", "model", "control", "task", "metric", "k"]).any()


def test_every_model_meets_its_controls() -> None:
    def controls(model: str, kind: str) -> set[str]:
        return {name for name, other in VARIANTS.items() if other.kind == kind and is_control(model, name)}

    both = {"single_task", "single_task_equal_inputs"}
    assert controls("shared_bottom", "single_task") == controls("pcgrad", "single_task") == both
    wide = {"single_task", "wide_single_task", "wide_single_task_equal_inputs"}
    assert controls("wide_shared_bottom", "single_task") == wide
    assert controls("joint_adam", "single_task") == {"single_task", "joint_adam_single_task"}
    assert controls("shared_bottom", "baseline") == {
        name for name, other in VARIANTS.items() if other.kind == "baseline"
    }
    assert controls("shared_bottom", "ablation") == {
        name for name, other in VARIANTS.items() if other.kind == "ablation" and other.based_on == "shared_bottom"
    }
    assert controls("mmoe", "ablation") == {"linear_experts"}
    assert controls("pcgrad", "multi_task") == {"shared_bottom"}
    assert controls("single_task_equal_inputs", "single_task") == {"single_task"}
    assert not any(is_control(name, "popularity") for name, one in VARIANTS.items() if one.kind != "multi_task")


def test_comparisons_are_differences_of_the_metrics(finished_project: Project) -> None:
    folder = finished_project.outputs / "08_reporting"
    metrics = overall(pd.read_csv(folder / "metrics.csv"))
    metrics = metrics.groupby(["split", "model", "task", "metric", "k"])["value"].mean()
    table = pd.read_csv(folder / "comparisons.csv")
    # AUC is compared as the mean of the users' own, and lies elsewhere than the AUC over all rows.
    for row in table[table["metric"] != "auc"].itertuples():
        own, other = (metrics[row.split, name, row.task, row.metric, row.k] for name in (row.model, row.control))
        assert row.difference == pytest.approx(own - other, abs=1e-6)


def test_groups_average_to_the_whole(finished_project: Project) -> None:
    folder = finished_project.outputs / "08_reporting"
    groups = pd.read_csv(folder / "group_metrics.csv")
    metrics = overall(pd.read_csv(folder / "metrics.csv"))
    metrics = metrics.set_index(["split", "model", "task", "metric", "k", "seed"])["value"]
    assert set(groups["side"]) == {"user", "item"}
    users = groups[(groups["side"] == "user") & groups["metric"].isin(["ndcg", "mae", "recall"])]
    for key, part in users.groupby(["split", "model", "task", "metric", "k", "seed"]):
        assert np.average(part["value"], weights=part["count"]) == pytest.approx(metrics[key], rel=1e-6)


@pytest.mark.parametrize("model", ["shared_bottom", "item_knn", "popularity"])
def test_recommendations_are_new_to_the_user(finished_project: Project, model: str) -> None:
    table = pd.read_parquet(finished_project.outputs / "07_model_output" / model / "recommendations.parquet")
    assert list(table.columns) == ["user_id", "task", "rank", "item_id", "title", "score"]
    known = pd.read_parquet(finished_project.outputs / "03_primary" / "interactions.parquet")
    assert table.merge(known, on=["user_id", "item_id"]).empty
    for _, own in table.groupby(["user_id", "task"]):
        assert own["rank"].tolist() == list(range(1, len(own) + 1))
        assert own["score"].is_monotonic_decreasing
    assert table["title"].str.startswith("Film ").all()
    assert table["user_id"].nunique() == 100


def test_ranked_lists_hold_no_known_item(finished_project: Project) -> None:
    outputs = finished_project.outputs
    lists = pd.read_parquet(outputs / "07_model_output" / "shared_bottom" / "ranked_lists.parquet")
    for name in ("04_feature/behaviour_sequences", "05_model_input/validation_rows"):
        known = pd.read_parquet(outputs / f"{name}.parquet")
        assert lists.merge(known[["split", "user", "item"]], on=["split", "user", "item"]).empty


def test_stored_scores_are_the_lists_scores(finished_project: Project) -> None:
    """What is evaluated pair by pair and what is ranked come from the same scores."""
    folder = finished_project.outputs / "07_model_output" / "shared_bottom"
    keys = ["split", "seed", "task", "user", "item"]
    both = pd.read_parquet(folder / "predictions.parquet").merge(
        pd.read_parquet(folder / "ranked_lists.parquet"), on=keys, suffixes=("", "_list")
    )
    assert len(both) > 100
    assert (both["score"] == both["score_list"]).all()


def test_run_record(finished_project: Project) -> None:
    lines = (finished_project.outputs / "08_reporting" / "runs.jsonl").read_text().splitlines()
    record = json.loads(lines[-1])
    assert set(record["data_sha256"]) >= {"raw_interactions", "raw_users", "raw_items"}
    assert record["seeds"] == {"splits": 42, "study": 7, "repeats": 1}
    assert len(record["parameters_sha256"]) == 64
    assert record["seconds_per_node"]["recommender.multi_task.shared_bottom.fit"] > 0
    assert record["packages"]["kedro"].startswith("1.7")


def test_two_runs_give_the_same_bytes(finished_project: Project, project: Project) -> None:
    result = project.run(fresh=True)
    assert result.returncode == 0, result.stderr
    assert "shared_bottom" in result.stdout
    assert "wrote" in result.stdout
    first, second = finished_project.files(), project.files()
    assert list(first) == list(second)
    assert [name for name in first if first[name] != second[name]] == []


def test_measures_do_not_depend_on_the_number_of_workers(few_models: Project, few_models_to_change: Project) -> None:
    project = few_models_to_change
    measured = [project.outputs / "08_reporting" / name for name in ("metrics.csv", "group_metrics.csv")]
    for path in measured:
        path.unlink()
    result = project.run("--nodes", "evaluation.measure_models", "--params", "cross_validation.workers=2")
    assert result.returncode == 0, result.stderr
    for path in measured:
        assert path.read_bytes() == (few_models.outputs / "08_reporting" / path.name).read_bytes()


def test_other_splits_run_end_to_end(other_splits: Project) -> None:
    table = pd.read_csv(other_splits.outputs / "08_reporting" / "metrics.csv")
    assert set(table["split"]) == {"chronological", "temporal", "cold_items"}
    assert set(table["model"]) == set(CORE)
    groups = table.groupby("split")["group"].agg(set)
    assert groups["cold_items"] == {"all", "hot_users", "warm_items"}
    ndcg = table.query("split == 'cold_items' and task == 'watch' and metric == 'ndcg' and k == 10")
    ndcg = ndcg[ndcg["group"] == "warm_items"].set_index("model")["value"]
    # Only item features can rank items without interactions: to item kNN they are all alike.
    assert ndcg["content_based"] > ndcg["random"]
    lists = pd.read_parquet(other_splits.outputs / "07_model_output" / "item_knn" / "ranked_lists.parquet")
    assert (lists.query("split == 'cold_items' and task == 'watch'")["score"] == 0).all()


def test_every_model_runs_end_to_end(every_model: Project) -> None:
    project = every_model
    folder = project.outputs / "08_reporting"
    metrics = pd.read_csv(folder / "metrics.csv")
    # No list of this data keeps what was met.
    assert list(metrics["model"].drop_duplicates()) == [name for name in VARIANTS if name != "revisit"]
    for kind in ("retrieval", "binary", "regression"):
        left_out = {"retrieval": "watch", "binary": "like", "regression": "rating"}[kind]
        tasks = set(metrics.loc[metrics["model"] == f"without_{kind}", "task"])
        assert tasks == {"watch", "like", "rating"} - {left_out}

    # A derived model differs from its base in what its name says alone.
    chosen = {
        name: json.loads((project.outputs / "06_models" / name / "chosen_settings.json").read_text())["random"]
        for name in ("shared_bottom", "nonlinear_encoder", "upgrad")
    }
    assert chosen["nonlinear_encoder"] == {
        **chosen["shared_bottom"],
        "encoder": "nonlinear",
    }
    training = {**chosen["shared_bottom"]["training"], "balancing": "upgrad"}
    assert chosen["upgrad"] == {**chosen["shared_bottom"], "training": training}

    used = pd.read_csv(folder / "expert_utilisation.csv")
    assert set(used["model"]) == {"mmoe", "linear_experts", "cgc", "ple", "stem", "mmoe_pairwise", "ple_pairwise"}
    sums = used.groupby(["model", "split", "seed", "side", "task"])["weight"].sum()
    assert np.allclose(sums, 1.0, atol=1e-5)

    affinity = pd.read_csv(folder / "task_affinity.csv")
    assert set(zip(affinity["task"], affinity["other"], strict=True)) == {
        ("watch", "like"),
        ("watch", "rating"),
        ("like", "rating"),
    }
    assert affinity["cosine"].between(-1, 1).all()
    gains = pd.read_csv(folder / "task_pair_gains.csv")
    assert len(gains) == 9  # Six for pairs, three for all together.
    assert np.allclose(gains["gain"], 1 - gains["error"] / gains["error_alone"])

    compared = pd.read_csv(folder / "comparisons.csv")
    pairs = set(zip(compared["model"], compared["control"], strict=True))
    assert ("upgrad", "shared_bottom") in pairs
    assert ("upgrad", "ease") not in pairs
    assert ("shared_bottom", "no_user_embedding") in pairs
    assert ("wide_shared_bottom", "no_user_embedding") not in pairs


def test_a_study_of_the_core_models_leaves_the_others_out() -> None:
    dataset = DatasetSettings.model_validate(
        {
            "name": "films",
            "interactions": {"user_id": "u", "item_id": "i", "signals": {"rating": {"column": "r"}}},
            "tasks": {
                "watch": {"kind": "retrieval"},
                "rating": {"kind": "regression", "label": "rating", "relevant": "rating >= 4"},
            },
        }
    )
    whole, core = (StudySettings(seed=1, repeats=1, core_only=only) for only in (False, True))
    for variant in VARIANTS.values():
        assert core.runs(variant, dataset) == (variant.core and whole.runs(variant, dataset))
    assert core.runs(VARIANTS["wide_shared_bottom"], dataset)
    assert whole.runs(VARIANTS["mmoe"], dataset)
    assert not core.runs(VARIANTS["mmoe"], dataset)


def test_test_labels_change_no_weight(finished_project: Project, project: Project) -> None:
    """Permuting the labels of the test rows of a split changes no weight fitted and no parameter chosen on it."""
    before = pd.read_parquet(finished_project.outputs / "05_model_input" / "test_labels.parquet")
    project.shuffle_test_labels("random", divided=finished_project)
    result = project.run("--pipelines", "data_engineering,user_embedding,recommender")
    assert result.returncode == 0, result.stderr
    after = pd.read_parquet(project.outputs / "05_model_input" / "test_labels.parquet")
    moved = (
        before.query("split == 'random'")["rating"].to_numpy() != after.query("split == 'random'")["rating"].to_numpy()
    )
    assert moved.mean() > 0.3
    for model in ["user_embedding", *CORE]:
        folders = [p.outputs / "06_models" / model for p in (finished_project, project)]
        first, second = (load_file(folder / "weights.safetensors") for folder in folders)
        own = [name for name in first if name.startswith("random/")]
        assert own
        for name in own:
            assert np.array_equal(first[name], second[name]), (model, name)
        chosen = [json.loads((folder / "chosen_settings.json").read_text())["random"] for folder in folders]
        assert chosen[0] == chosen[1]


def test_no_dataset_falls_back_to_memory(finished_project: Project) -> None:
    bootstrap_project(finished_project.folder)
    with KedroSession.create(project_path=finished_project.folder, env="test") as session:
        catalog = session.load_context().catalog
        from kedro.framework.project import pipelines

        pipeline = pipelines["__default__"]
        for name in pipeline.datasets():
            if not name.startswith(("params:", "standardised_", "split_notes")):
                assert getattr(catalog.get(name), "_filepath", None) is not None, name


def replace_in(column_text: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(column_text, new, 1)


def bad_rating(text: str) -> str:
    lines = text.splitlines(keepends=True)
    fields = lines[3].split("\t")
    fields[2] = "11"
    lines[3] = "\t".join(fields)
    return "".join(lines)


@pytest.mark.parametrize(
    ("table", "change", "options", "said"),
    [
        ("interactions", bad_rating, [], ["interactions.tsv", "rating:float", "row 3 (line 4)", "'11'"]),
        ("users", replace_in("age:token", "years"), [], ["users.tsv", "age:token", "missing"]),
        ("interactions", lambda text: text.splitlines()[0] + "\n", [], ["interactions.tsv", "empty"]),
        (None, None, ["--params", "stduy.seed=3"], ["stduy", "known groups"]),
        (None, None, ["--params", "study.sed=3"], ["sed", "params"]),
        (None, None, ["--params", "splits.folds=5000"], ["splits.folds", "5000"]),
        (None, None, ["--params", "dataset.tasks.like.label=ratng > 3"], ["dataset.tasks.like.label", "'ratng'"]),
        (None, None, ["--params", "models.shared_bottom.settings.dimensions=3"], ["dimensions"]),
    ],
)
def test_bad_input_is_one_clear_message(
    project: Project,
    table: str | None,
    change: Callable[[str], str] | None,
    options: list[str],
    said: list[str],
) -> None:
    kept = project.outputs / "08_reporting" / "metrics.csv"
    kept.parent.mkdir(parents=True)
    kept.write_text("earlier")
    if table is not None and change is not None:
        project.edit(table, change)
    result = project.run(*options)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    for text in said:
        assert text in result.stderr
    assert list(project.files()) == ["08_reporting/metrics.csv"]
    assert kept.read_text() == "earlier"


def test_a_missing_data_wheel_is_one_clear_message(project: Project) -> None:
    catalog = project.folder / "conf" / "test" / "catalog.yml"
    text = catalog.read_text().replace("tests/data/tiny_study/users.tsv", "${package_file:no_such_wheel,users.tsv}")
    catalog.write_text(text)
    result = project.run()
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "no_such_wheel" in result.stderr
    assert "make data" in result.stderr


def test_a_missing_raw_file_is_one_clear_message(project: Project) -> None:
    (project.raw / "users.tsv").unlink()
    result = project.run()
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "users.tsv" in result.stderr
    assert "raw_users" in result.stderr
    assert not list(project.outputs.rglob("*.parquet"))


class WriteError(Exception):
    pass


class Halfway(pd.DataFrame):
    """A table that fails while it is written."""

    def to_csv(self, path: object, *args: object, **options: object) -> None:  # type: ignore[override]
        path.write("half of a li")  # type: ignore[attr-defined]
        raise WriteError


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    dataset = CsvTable(filepath=path.as_posix(), save_args={"index": False})
    dataset.save(pd.DataFrame({"a": [1]}))
    with pytest.raises(Exception, match="Failed while saving"):
        dataset.save(Halfway({"a": [2]}))
    assert path.read_text() == "a\n1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_arrays_survive_their_file(tmp_path: Path) -> None:
    dataset = ArraysFile((tmp_path / "new" / "weights.safetensors").as_posix())
    arrays = {"b": np.arange(6.0).reshape(2, 3).T, "a": np.array([3])}
    dataset.save(arrays)
    assert all(np.array_equal(arrays[name], loaded) for name, loaded in dataset.load().items())
