"""Whoever opens a study in a notebook is told what of its outputs is stale."""

from __future__ import annotations

import nbformat
import pytest

from conftest import Project
from execute import execute

OPEN = "from multitask_recommender.notebook import open_study\ncatalog = open_study()"
PARAMETERS = '"../conf/test/parameters.yml"'
PREDICTIONS = '"../data/test/07_model_output/ease/predictions.parquet"'
BEFORE = f"from pathlib import Path\nparameters, table = Path({PARAMETERS}), Path({PREDICTIONS})\n"
BEFORE += "text, contents = parameters.read_text(), table.read_bytes()"


def said_by(project: Project, monkeypatch: pytest.MonkeyPatch, *cells: str) -> list[str]:
    """What each cell shows as Markdown, in one kernel, after a first cell that reads what the others change."""
    monkeypatch.setenv("KEDRO_ENV", "test")
    path = project.folder / "notebooks" / "stale.ipynb"
    code = [nbformat.v4.new_code_cell(cell) for cell in (BEFORE, *cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=code), path)
    return [
        "".join(output.get("data", {}).get("text/markdown", "") for output in cell.outputs)
        for cell in execute(path).cells[1:]
    ]


def test_a_notebook_says_what_is_stale_and_nothing_of_what_is_not(
    few_models_to_change: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, other_seed, by_hand, missing = said_by(
        few_models_to_change,
        monkeypatch,
        OPEN,
        f'parameters.write_text(text.replace("folds: 2", "folds: 2\\n  seed: 7"))\n{OPEN}',
        f'parameters.write_text(text)\ntable.write_bytes(contents + b" ")\n{OPEN}',
        f'table.write_bytes(contents)\nPath("../data/test/08_reporting/metrics.csv").unlink()\n{OPEN}',
    )
    assert fresh == ""
    assert "splits.seed (42, now 7)" in other_seed
    assert "`verdicts_figure`" in other_seed
    assert "`kedro run --env test`" in other_seed
    assert len(other_seed.splitlines()) < 10
    assert "predictions.parquet is gone or was changed afterwards: `ease.predictions`" in by_hand
    assert "splits.seed" not in by_hand
    assert missing == ""


def test_what_a_run_was_told_on_the_command_line_is_not_stale(
    few_models_to_change: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--params", "study.models=item_mean ease,evaluation.resamples=101")
    assert few_models_to_change.run(*options).returncode == 0
    fresh, other_seed = said_by(
        few_models_to_change,
        monkeypatch,
        OPEN,
        f'parameters.write_text(text.replace("folds: 2", "folds: 2\\n  seed: 7"))\n{OPEN}',
    )
    assert fresh == ""
    assert "splits.seed (42, now 7)" in other_seed
    assert "`kedro run --env test --params 'study.models=item_mean ease,evaluation.resamples=101'`" in other_seed
    assert "resamples (" not in other_seed
