"""Executes every notebook in place on the outputs of the last run: ``python notebooks/execute.py``."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm


def execute(path: Path) -> nbformat.NotebookNode:
    """Run all cells of a notebook in a fresh kernel.

    Args:
        path: The notebook; its folder is the working directory.

    Returns:
        The notebook with outputs, without what changes from run to run (timestamps).

    Raises:
        CellExecutionError: If a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    # The plain logging keeps IPython's own traceback, so that a failing cell is reported with its error.
    logging_file = path.resolve().parents[1] / "conf" / "logging.yml"
    client.execute(
        env={**os.environ, "KEDRO_LOGGING_CONFIG": str(logging_file), "KEDRO_DISABLE_TELEMETRY": "1"},
    )
    # The state of widgets is of one session, and holds rows of the data.
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # What a kernel says on its error stream is about one machine.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return notebook


if __name__ == "__main__":
    for notebook_path in tqdm(sorted(Path(__file__).parent.glob("*.ipynb"))):
        nbformat.write(execute(notebook_path), notebook_path)
