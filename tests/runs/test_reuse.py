"""Outputs that are never stale: what has not changed is reused, what no longer fits is made anew or refused by name."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from conftest import ROOT, Project, with_few_models
from multitask_recommender.runs import keys, provenance
from multitask_recommender.runs.records import FOLDER, Records


def last_run(project: Project) -> dict[str, Any]:
    lines = (project.outputs / "08_reporting" / "runs.jsonl").read_text().splitlines()
    record: dict[str, Any] = json.loads(lines[-1])
    return record


def ran(project: Project) -> list[str]:
    """Nodes that the last run ran, in order."""
    return list(last_run(project)["seconds_per_node"])


def test_a_second_run_makes_nothing_and_says_so(few_models_to_change: Project) -> None:
    before, first = few_models_to_change.files(), last_run(few_models_to_change)["run"]
    result = few_models_to_change.run()
    assert result.returncode == 0, result.stderr
    record = last_run(few_models_to_change)
    assert record["seconds_per_node"] == {}
    assert set(record["reused_from_run"].values()) == {first}
    assert few_models_to_change.files() == before
    assert "wrote" not in result.stdout
    assert "unchanged: " in result.stdout


def test_a_change_of_one_model_fits_that_model_alone_and_ends_with_the_bytes_of_a_full_run(
    few_models_to_change: Project, tmp_path: Path
) -> None:
    def change(parameters: dict[str, Any]) -> None:
        parameters["models"]["shared_bottom"] = {
            **parameters["models"]["shared_bottom"],
            "settings": {"training": {"epochs": 3, "batches": 2}},
        }

    result = few_models_to_change.configure(change).run()
    assert result.returncode == 0, result.stderr
    nodes = ran(few_models_to_change)
    fitted = {name.split(".")[-2] for name in nodes if name.endswith(".fit")}
    assert "shared_bottom" in fitted
    # Models that are based on it take over its settings; no other model is fitted.
    assert not fitted & {"ease", "item_mean", "user_embedding"}
    assert not [name for name in nodes if name.startswith("data_engineering")]
    whole = with_few_models(Project(tmp_path / "whole")).configure(change)
    assert whole.run().returncode == 0
    assert few_models_to_change.files() == whole.files()


def test_the_list_of_models_changes_no_model(few_models_to_change: Project) -> None:
    result = few_models_to_change.run("--params", "study.models=item_mean ease shared_bottom popularity")
    assert result.returncode == 0, result.stderr
    assert {name.split(".")[-2] for name in ran(few_models_to_change) if name.endswith(".fit")} == {"popularity"}


def test_the_number_of_processes_changes_nothing(few_models_to_change: Project) -> None:
    assert few_models_to_change.run("--params", "cross_validation.workers=3").returncode == 0
    assert ran(few_models_to_change) == []


PARTIAL = [
    ("--pipelines", "evaluation"),
    ("--nodes", "PREDICT"),
    ("--namespaces", "MODEL"),
    ("--from-nodes", "PREDICT"),
]


@pytest.mark.parametrize("options", PARTIAL, ids=lambda options: options[0])
def test_a_partial_run_refuses_what_other_splits_have_made(
    few_models_to_change: Project, options: tuple[str, str]
) -> None:
    before = few_models_to_change.files()
    fit = next(
        name
        for name in (record.made_from.get("node", "") for record in Records(few_models_to_change.outputs).all())
        if name.endswith("shared_bottom.fit")
    )
    named = {"MODEL": fit.rpartition(".")[0], "PREDICT": fit.replace(".fit", ".predict")}
    few_models_to_change.configure(lambda parameters: parameters["splits"].update(seed=7))
    result = few_models_to_change.run(options[0], named.get(options[1], options[1]))
    assert result.returncode != 0
    assert "splits.seed (42, now 7)" in result.stderr
    assert "kedro run --to-nodes" in result.stderr
    assert "Traceback" not in result.stderr
    assert few_models_to_change.files() == before


def test_only_missing_outputs_makes_stale_ones_anew(few_models_to_change: Project) -> None:
    weights = next((few_models_to_change.outputs / "06_models" / "shared_bottom").glob("weights*")).read_bytes()
    result = few_models_to_change.run("--only-missing-outputs", "--params", "study.seed=5")
    assert result.returncode == 0, result.stderr
    assert next((few_models_to_change.outputs / "06_models" / "shared_bottom").glob("weights*")).read_bytes() != weights
    assert last_run(few_models_to_change)["seeds"]["study"] == 5
    assert [name for name in ran(few_models_to_change) if name.endswith("shared_bottom.fit")]


def test_a_raw_table_that_changed_is_read_anew(few_models_to_change: Project) -> None:
    few_models_to_change.edit(
        "interactions", lambda text: text + "\n".join(text.splitlines()[-1:]).replace("\t", "\t", 1) + "\n"
    )
    result = few_models_to_change.run("--pipelines", "evaluation")
    assert result.returncode != 0
    assert "contents of 'raw_interactions'" in result.stderr


def test_an_output_that_was_changed_by_hand_is_refused_and_made_anew(few_models_to_change: Project) -> None:
    path = few_models_to_change.outputs / "07_model_output" / "ease" / "predictions.parquet"
    good = path.read_bytes()
    table = pd.read_parquet(path)
    table["score"] = table["score"] + 1
    table.to_parquet(path)
    refused = few_models_to_change.run("--pipelines", "evaluation")
    assert refused.returncode != 0
    assert "predictions.parquet is gone or was changed afterwards" in refused.stderr
    assert few_models_to_change.run().returncode == 0
    assert path.read_bytes() == good


def test_an_evaluation_without_some_models_is_not_taken_for_a_whole_one(few_models_to_change: Project) -> None:
    whole = (few_models_to_change.outputs / "08_reporting" / "metrics.csv").read_bytes()
    shutil.rmtree(few_models_to_change.outputs / "07_model_output" / "ease")
    assert few_models_to_change.run("--pipelines", "evaluation").returncode == 0
    assert (few_models_to_change.outputs / "08_reporting" / "metrics.csv").read_bytes() != whole
    assert few_models_to_change.run().returncode == 0
    assert (few_models_to_change.outputs / "08_reporting" / "metrics.csv").read_bytes() == whole


def test_outputs_of_before_there_were_records_are_refused(few_models_to_change: Project) -> None:
    shutil.rmtree(few_models_to_change.outputs / FOLDER)
    result = few_models_to_change.run("--pipelines", "evaluation")
    assert result.returncode != 0
    assert "nothing says what made it" in result.stderr


def test_the_digest_of_code_changes_with_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / keys.PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "below.py").write_text("VALUE = 1\n")
    (package / "aside.py").write_text("VALUE = 1\n")
    (package / "above.py").write_text(f"def f():\n    from {keys.PACKAGE} import below\n    return below.VALUE\n")
    origins = {f"{keys.PACKAGE}.{name}": package / f"{name}.py" for name in ("below", "aside", "above")}

    class Found:
        def __init__(self, origin: Path) -> None:
            self.origin = str(origin)

    monkeypatch.setattr(
        keys.importlib.util, "find_spec", lambda name: Found(origins[name]) if name in origins else None
    )

    def digest_now() -> str:
        for function in (keys._imports, keys._is_module, keys.code_digest):
            function.cache_clear()
        return keys.code_digest(f"{keys.PACKAGE}.above")

    first = digest_now()
    (package / "aside.py").write_text("VALUE = 2\n")
    assert digest_now() == first
    (package / "below.py").write_text("VALUE = 2\n")
    assert digest_now() != first
    monkeypatch.undo()
    for function in (keys._imports, keys._is_module, keys.code_digest):
        function.cache_clear()


def test_every_import_of_the_package_is_found() -> None:
    for path in (ROOT / "src" / keys.PACKAGE).rglob("*.py"):
        place = path.relative_to(ROOT / "src").with_suffix("")
        module = ".".join(part for part in place.parts if part != "__init__")
        wanted = set()
        for statement in ast.walk(ast.parse(path.read_text())):
            if isinstance(statement, ast.Import):
                wanted |= {alias.name for alias in statement.names}
            elif isinstance(statement, ast.ImportFrom) and statement.module:
                wanted |= {statement.module, *(f"{statement.module}.{alias.name}" for alias in statement.names)}
        own = {name for name in wanted if name.split(".")[0] == keys.PACKAGE and keys._is_module(name)}
        assert own <= keys._imports(module)[1], module


@pytest.mark.parametrize(
    "source",
    [
        "from {package} import below\n",
        "from {package} import (\n    below,  # a word\n)\n",
        "from {package} import \\\n    below\n",
        "if True: from {package} import below\n",
        "import os; import {package}.below\n",
        "TEXT = 'import {package} and see'\nfrom {package} import below\n",
        '"""Then\nimport {package} and see.\n"""\nfrom {package} import below\n',
    ],
)
def test_an_import_is_found_however_it_is_written(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "above.py"
    path.write_text(source.format(package=keys.PACKAGE))

    class Found:
        origin = str(path)

    monkeypatch.setattr(keys.importlib.util, "find_spec", lambda name: Found)
    monkeypatch.setattr(keys, "_is_module", lambda name: True)
    try:
        keys._imports.cache_clear()
        assert f"{keys.PACKAGE}.below" in keys._imports("above")[1]
    finally:
        keys._imports.cache_clear()


def test_provenance_leads_from_a_figure_to_the_raw_tables(
    few_models: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(few_models.outputs)
    assert provenance.main(["metrics", "--folder", folder, "--model", "shared_bottom"]) == 0
    said = capsys.readouterr().out
    assert "raw_interactions" in said
    assert "shared_bottom.weights" in said
    assert "ease.weights" not in said
    file = str(few_models.outputs / "08_reporting" / "accuracy.png")
    assert provenance.main([file, "--folder", folder]) == 0
    assert "ease.weights" in capsys.readouterr().out
    assert provenance.main(["matrix", "--folder", folder]) == 1
    assert "Nothing says what made 'matrix'" in capsys.readouterr().err
