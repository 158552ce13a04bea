"""Which models a study runs and compares, and what it says of the others."""

from __future__ import annotations

import re

import click
import ibis
import numpy as np
import pandas as pd
import pytest
from kedro.runner import SequentialRunner, ThreadRunner
from pydantic import ValidationError

from conftest import Project
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.evaluation.comparisons import COLUMNS, comparable, compare_models, left_out_of_comparisons
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.metric_records import METRICS
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.evaluation.statistics import holm
from multitask_recommender.evaluation.study import StudySettings, left_out_of_tests
from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.hooks import Runners
from multitask_recommender.models.variants import VARIANTS


def books(*kinds: str) -> DatasetSettings:
    tasks = {
        "retrieval": {"kind": "retrieval"},
        "binary": {"kind": "binary", "label": "score > 3"},
        "regression": {"kind": "regression", "label": "score", "relevant": "score > 3"},
    }
    return DatasetSettings.model_validate(
        {
            "name": "books",
            "interactions": {"user_id": "u", "item_id": "i", "signals": {"score": {"column": "s"}}},
            "tasks": {
                {"retrieval": "read", "binary": "rate", "regression": "rating"}[kind]: tasks[kind] for kind in kinds
            },
        }
    )


def chosen(models: object, dataset: DatasetSettings | None = None) -> list[str]:
    study = StudySettings.model_validate({"seed": 1, "repeats": 1, "quick": True, "models": models})
    return study.running(dataset or books("retrieval", "binary", "regression"))


def test_models_are_chosen_by_name_and_family() -> None:
    assert chosen(["ease", "ials", "shared_bottom"]) == ["ease", "ials", "shared_bottom"]
    assert chosen("ease pcgrad") == ["ease", "shared_bottom", "pcgrad"]  # What it is based on runs too.
    assert chosen(["controls"]) == [
        "joint_adam_single_task",
        "single_task",
        "single_task_equal_inputs",
        "wide_single_task",
        "wide_single_task_equal_inputs",
    ]
    core = {name for name, variant in VARIANTS.items() if variant.core} - {
        "content_based",
        "ease_first_step",
        "revisit",
    }
    assert set(chosen(["core", "mmoe"])) == core | {"mmoe"}


@pytest.mark.parametrize(
    ("name", "meant"), [("shared_botom", "'shared_bottom'"), ("baseline", "'baselines'"), ("qqqqq", "Families are")]
)
def test_unknown_models_are_refused_with_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(meant)):
        chosen(["ease", name])


def test_a_study_without_a_model_that_can_run_is_refused() -> None:
    with pytest.raises(SettingsError, match="content_based: the data set has no item features"):
        chosen(["content_based"])


def left_out(dataset: DatasetSettings, **settings: object) -> dict[str, str]:
    study = StudySettings.model_validate({"seed": 1, "repeats": 1, **settings})
    table = left_out_of_comparisons(dataset, study)
    return dict(zip(table["what"], table["reason"], strict=True))


def test_controls_that_are_not_run_are_named() -> None:
    everything = books("retrieval", "binary", "regression")
    alone = left_out(everything, models=["wide_shared_bottom", "joint_adam"])
    assert "comparison of wide_shared_bottom with its control wide_single_task" in alone
    assert "comparison of joint_adam with its control joint_adam_single_task" in alone
    assert not any(what.startswith("comparison of") for what in left_out(everything, core_only=True))
    own = left_out(everything, models=["ease", "mmoe"])
    assert [what for what in own if what.startswith("comparison of")] == [
        "comparison of mmoe with its control single_task"
    ]
    assert not any(what.startswith("comparison of") for what in left_out(everything))


def test_lists_are_not_compared_with_controls_that_never_learnt_to_rank() -> None:
    tasks = books("retrieval", "binary").tasks
    ndcg, auc = METRICS["ndcg"], METRICS["auc"]
    for control in ("single_task", "item_mean", "item_ridge", "matrix_factorisation", "without_retrieval"):
        assert not comparable("shared_bottom", control, "rate", ndcg, tasks)
        assert comparable("shared_bottom", control, "rate", auc, tasks)
    for control in ("ease", "popularity", "random", "no_features"):
        assert comparable("shared_bottom", control, "rate", ndcg, tasks)
    assert comparable("upgrad", "shared_bottom", "rate", ndcg, tasks)
    assert comparable("shared_bottom", "single_task", "read", ndcg, tasks)
    # Where neither learns to rank they are alike.
    assert comparable("shared_bottom", "single_task", "rate", ndcg, books("binary", "regression").tasks)
    said = left_out(books("retrieval", "binary"), models=["single_task", "shared_bottom", "ease"])
    assert list(said) == ["comparisons by ndcg of task rate with single_task"]


def totals(model: str, users: int, task: str, metric: str, value: float) -> pd.DataFrame:
    user = np.arange(users)
    return pd.DataFrame(
        {
            "split": "random",
            "model": model,
            "task": task,
            "metric": metric,
            "k": 10 if METRICS[metric].of_lists else 0,
            "seed": 0,
            "user": user,
            "total": value + user / 100,
            "count": 1.0,
        }
    )


def compared(*tables: pd.DataFrame) -> pd.DataFrame:
    return compare_models(
        books("retrieval", "binary"),
        StudySettings(seed=1, repeats=1),
        SplitSettings(strategies=["random"], seed=1, folds=2),
        EvaluationSettings(ks=[10], resamples=99),
        CrossValidationSettings(candidates=1, workers=1),
        *tables,
    )


def test_one_user_and_untrained_controls_have_no_verdict() -> None:
    found = compared(
        *(totals(model, 1, "rate", "auc", value) for model, value in (("shared_bottom", 0.9), ("single_task", 0.2))),
        *(totals(model, 9, "rate", "ndcg", value) for model, value in (("shared_bottom", 0.9), ("single_task", 0.01))),
        *(totals(model, 20, "read", "ndcg", value) for model, value in (("shared_bottom", 0.9), ("single_task", 0.2))),
    )
    assert list(zip(found["task"], found["metric"], found["verdict"], strict=True)) == [
        ("read", "ndcg", "helps"),
        ("rate", "auc", "undecided"),
    ]
    assert found.set_index("metric").loc["auc", ["ci_low", "ci_high"]].isna().all()
    nothing = compared(totals("ease", 9, "read", "ndcg", 0.2))
    assert list(nothing.columns) == COLUMNS
    assert nothing.empty


def test_the_primary_family_is_adjusted_as_one() -> None:
    """Main metrics of the core joint models against their own control and the best baseline, over all tasks."""
    random, tables = np.random.default_rng(3), []
    values = {"popularity": 0.3, "ease": 0.5, "ials": 0.4, "single_task": 0.5, "mmoe": 0.6, "shared_bottom": 0.56}
    values |= {"wide_shared_bottom": 0.6, "wide_single_task": 0.59, "single_task_equal_inputs": 0.55}
    for model, value in values.items():
        for metric, task in (("ndcg", "read"), ("recall", "read"), ("auc", "rate")):
            if model not in ("ease", "ials") or task == "read":
                own = totals(model, 40, task, metric, value)
                tables.append(own.assign(total=own["total"] + 0.1 * random.normal(size=40)))
    found = compared(*tables)
    family = found[found["p_primary"].notna()]
    assert set(zip(family["model"], family["control"], family["task"], family["metric"], strict=True)) == {
        ("shared_bottom", "single_task", "read", "ndcg"),
        ("shared_bottom", "single_task", "rate", "auc"),
        ("shared_bottom", "ease", "read", "ndcg"),
        ("shared_bottom", "popularity", "rate", "auc"),
        ("wide_shared_bottom", "wide_single_task", "read", "ndcg"),
        ("wide_shared_bottom", "wide_single_task", "rate", "auc"),
        ("wide_shared_bottom", "ease", "read", "ndcg"),
        ("wide_shared_bottom", "popularity", "rate", "auc"),
    }
    assert family["p_primary"].to_numpy() == pytest.approx(holm(family["p_value"].to_numpy()))
    assert (family["primary_verdict"].notna() == found["p_primary"].notna()[family.index]).all()
    assert found.loc[found["p_primary"].isna(), "primary_verdict"].isna().all()
    # What more to read gives, and what training together gives, are compared as well.
    pairs = set(zip(found["model"], found["control"], strict=True))
    assert {
        ("single_task_equal_inputs", "single_task"),
        ("shared_bottom", "single_task_equal_inputs"),
        ("mmoe", "single_task_equal_inputs"),
    } <= pairs
    assert ("wide_shared_bottom", "single_task_equal_inputs") not in pairs
    assert ("single_task_equal_inputs", "popularity") not in pairs


def test_one_user_to_compare_is_said() -> None:
    rows = pd.DataFrame(
        {
            "split": "random",
            "user": [0, 0, 1, 1, 2],
            "item": [0, 1, 0, 1, 0],
            "read": 1.0,
            "rate": [0.0, 1.0, 1.0, 1.0, 0.0],
            "relevant_read": True,
            "relevant_rate": [False, True, True, True, False],
        }
    )
    table = left_out_of_tests(
        ibis.memtable(rows.assign(user=9)),
        ibis.memtable(rows.assign(user=8)),
        ibis.memtable(rows),
        books("retrieval", "binary"),
        SplitSettings(strategies=["random"], seed=1, folds=2),
    )
    assert table["what"].tolist() == ["comparisons by auc of task rate on the random split"]
    assert "one user" in table["reason"].iloc[0]
    assert "undecided" in table["reason"].iloc[0]


def test_an_evaluation_takes_the_models_that_have_run(project: Project) -> None:
    early = project.run("--pipelines", "evaluation")
    assert early.returncode != 0
    assert "kedro run --to-nodes" in early.stderr
    assert "MovieLens" not in early.stderr
    trained = project.run(
        "--namespaces",
        "data_engineering,recommender.baselines.popularity,recommender.single_task.single_task,"
        "recommender.multi_task.shared_bottom",
    )
    assert trained.returncode == 0, trained.stderr
    result = project.run("--pipelines", "evaluation")
    assert result.returncode == 0, result.stderr
    folder = project.outputs / "08_reporting"
    ran = {"popularity", "single_task", "shared_bottom"}
    assert set(pd.read_csv(folder / "metrics.csv")["model"]) == ran
    assert set(pd.read_csv(folder / "costs.csv")["model"]) == ran
    assert set(pd.read_csv(folder / "comparisons.csv")["control"]) == ran - {"shared_bottom"}
    said = pd.read_csv(folder / "left_out_models.csv").set_index("what")["reason"]
    assert "kedro run --namespaces recommender.multi_task.two_stage" in said["model two_stage"]
    assert said["model mmoe"] == "'study.quick' leaves it out"
    assert "two_stage" in result.stderr


def test_a_study_of_some_models_runs_end_to_end(project: Project) -> None:
    result = project.run("--params", "study.models=ease popularity")
    assert result.returncode == 0, result.stderr
    folder = project.outputs / "08_reporting"
    assert set(pd.read_csv(folder / "metrics.csv")["model"]) == {"ease", "popularity"}
    assert pd.read_csv(folder / "comparisons.csv").empty


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--env", "tets"), r"conf/tets\n  what to do: name a folder of conf/"),
        (("--namespaces", "shared_bottom"), r"--namespaces recommender\.multi_task\.shared_bottom\n"),
        (("--nodes", "shared_bottm.fit"), r"did you mean '[\w.]*shared_bottom\.fit'\?"),
        (("--namespaces", "no_such_model"), r"data_engineering, evaluation, recommender, recommender\.ablations"),
        (("--params", "splits.folds=1"), r"folds\n +Input should be greater than or equal to 2\n  what to do"),
    ],
)
def test_slips_of_the_command_line_are_a_few_lines(project: Project, options: tuple[str, str], said: str) -> None:
    result = project.run(*options)
    assert result.returncode != 0
    assert re.search(said, result.stderr)
    assert "Traceback" not in result.stderr
    assert "pydantic" not in result.stderr.split("Error: ")[-1]  # Before it stands what Kedro logs.


def test_a_runner_that_cannot_read_the_tables_is_refused_at_the_start(project: Project) -> None:
    result = project.run("--runner", "ParallelRunner")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "'--runner ParallelRunner'" in result.stderr
    assert "what to do: leave it out" in result.stderr
    assert not project.outputs.exists()


def test_other_runners_are_refused_by_name() -> None:
    Runners().before_pipeline_run({"runner": str(SequentialRunner())})
    with pytest.raises(SettingsError, match="'--runner ThreadRunner'"):
        Runners().before_pipeline_run({"runner": str(ThreadRunner())})
    command = click.Context(click.Command("run"))
    command.params["is_async"] = True
    with command, pytest.raises(SettingsError, match="'--async'"):
        Runners().before_pipeline_run({"runner": str(SequentialRunner(is_async=True))})
    with pytest.raises(SettingsError, match="'is_async=True'"):
        Runners().before_node_run(is_async=True)
