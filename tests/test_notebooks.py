"""Every notebook runs in a real kernel on the tiny study, and a failing cell fails the test."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from conftest import ROOT, Project, made_once
from execute import as_kept, execute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


SWEEP = "05_when_does_multitask_help.ipynb"
EXPLORER = ROOT / "notebooks" / "explorer.ipynb"
CHAPTERS = [path for path in NOTEBOOKS if path != EXPLORER]
FIRST = "ENVIRONMENT = None"


@pytest.fixture(scope="session")
def swept_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny sweep over simulated bookstores after its run, without the study."""
    return made_once(tmp_path_factory, "sweep", "--pipelines", "when_multitask_helps", pictures=True)


def outputs_of(notebook: nbformat.NotebookNode) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.parametrize("name", [path.name for path in CHAPTERS])
def test_notebook(name: str, request: pytest.FixtureRequest, executed: Callable[[Project, str], Path]) -> None:
    """It runs on another data set than that of ``conf/base``, and every picture has words that stand for it."""
    project = request.getfixturevalue("swept_project" if name == SWEEP else "finished_project")
    notebook = nbformat.read(executed(project, name), as_version=4)
    assert "stored-outputs" not in [cell.id for cell in notebook.cells]
    outputs = outputs_of(notebook)
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures
    for picture in pictures:
        assert len(picture["metadata"]["image/png"]["alt"]) > 20
    said = "".join(output["data"].get("text/markdown", "") for output in outputs if "data" in output)
    assert "nan" not in said.split()
    assert "movielens" not in said.lower()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_a_notebook_reads_like_a_paper_and_computes_nothing_that_a_node_should(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for part in ("**Question.**", "**Data.**", "**Method.**", "## Limits"):
        assert part in text
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].startswith(FIRST)
    assert "**Reading.**" in "".join(code)
    tree = ast.walk(ast.parse("\n".join(code)))
    imported = {name.name for node in tree if isinstance(node, ast.Import) for name in node.names}
    assert imported <= {"numpy", "pandas"}
    for word in ("plt.", "plot(", "rcParams", "#0072B2", "torch", "sklearn", "linalg"):
        assert not any(word in source.replace("plot_explanation(", "") for source in code), word
    # No figure of speech and no number about the results stands in the text: it is made of outputs.
    assert not re.search(r"\d+\.\d+ ?%|[Mm]ovie[Ll]ens", text)


def test_the_explorer_answers_in_a_kernel(finished_project: Project) -> None:
    """Its widgets are sent to the browser, and their callbacks change what they show."""
    notebook = nbformat.read(finished_project.folder / "notebooks" / EXPLORER.name, as_version=4)
    act = """
before = explorer.lists.value
explorer.user.value = "42"
explorer.item.value = explorer.item.options[0]
explorer.add.click()
print("changed:", explorer.lists.value != before, explorer.history.options[0][0].startswith("+"))
explorer.reason.value = explorer.reason.options[1][1]
print("explained:", "<b>score</b>" in explorer.why.value)
"""
    notebook.cells.append(nbformat.v4.new_code_cell(act))
    path = finished_project.folder / "notebooks" / "acting.ipynb"
    nbformat.write(notebook, path)
    try:
        client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}})
        client.execute()
    finally:
        path.unlink()
    kinds = {key for output in outputs_of(notebook) for key in output.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" in kinds
    state = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    models = {one["model_name"] for one in state.values()}
    assert {"DropdownModel", "ComboboxModel", "SelectMultipleModel", "ButtonModel", "HTMLModel"} <= models
    printed = "".join(output.get("text", "") for output in outputs_of(notebook))
    assert printed.split() == ["changed:", "True", "True", "explained:", "True"]
    # What is kept of it on disk holds no row of the data.
    kept = as_kept(notebook)
    assert "widgets" not in kept.metadata
    assert "Film" not in nbformat.writes(kept)


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
    cells = [nbformat.v4.new_code_cell("1 + 1"), nbformat.v4.new_code_cell("1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(path)
