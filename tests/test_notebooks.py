"""Every notebook runs in a real kernel on the tiny study, and a failing cell fails the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from conftest import ROOT, Project, made_once
from execute import execute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


SWEEP = "05_when_does_multitask_help.ipynb"


@pytest.fixture(scope="session")
def swept_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny sweep over simulated bookstores after its run, without the study."""
    return made_once(tmp_path_factory, "sweep", "--pipelines", "when_multitask_helps")


@pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS])
def test_notebook(name: str, request: pytest.FixtureRequest, executed: Callable[[Project, str], Path]) -> None:
    project = request.getfixturevalue("swept_project" if name == SWEEP else "finished_project")
    notebook = nbformat.read(executed(project, name), as_version=4)
    assert "stored-outputs" not in [cell.id for cell in notebook.cells]
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_committed_with_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert any(cell.outputs for cell in code)
    text = path.read_text()
    assert str(Path.home()) not in text
    assert str(ROOT) not in text
    assert "site-packages" not in text


def test_a_failing_cell_fails(finished_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDRO_ENV", "test")
    path = finished_project.folder / "notebooks" / "broken.ipynb"
    cells = [nbformat.v4.new_code_cell("%load_ext kedro.ipython"), nbformat.v4.new_code_cell("1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(path)
