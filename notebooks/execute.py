"""Executes notebooks on the outputs of the last run: ``python notebooks/execute.py [NOTEBOOK ...] [--to FOLDER]``.

All of them, where none is named; in place, where no folder is. ``KEDRO_ENV`` names the environment they load from.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

NOTEBOOKS = Path(__file__).parent


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
    return as_kept(notebook)


def as_kept(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take what is of one session or of one machine off an executed notebook, and return it."""
    # The state of widgets holds rows of the data.
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # What a kernel says on its error stream is about one machine.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return notebook


def executed_or_stored(path: Path) -> nbformat.NotebookNode:
    """Run a notebook, or where the last run has not made what it loads, keep its stored outputs under a note.

    Raises:
        CellExecutionError: If a cell fails for another reason than a file that is not there.
    """
    try:
        return execute(path)
    except CellExecutionError as error:
        if error.ename != "DatasetError":
            raise
        notebook = nbformat.read(path, as_version=4)
        missing = re.search(r"[\w.-]+\.(?:csv|json|parquet|png|safetensors)\b", error.evalue)
        text = "> **The outputs below are those stored in the notebook**: the last run has not made what it loads"
        text += f" (`{missing.group()}`)." if missing else "."
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(text, id="stored-outputs"))
        return notebook


def execute_to(folder: Path, path: Path) -> None:
    """Run a notebook and write it with its outputs into a folder."""
    nbformat.write(executed_or_stored(path), folder / path.name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Execute notebooks, in place or into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="*", help="notebooks to execute (default: all)")
    parser.add_argument("--to", type=Path, help="folder for the executed notebooks (default: in place)")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at the same time, with --to (default: 2)")
    options = parser.parse_args(arguments)
    paths = options.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    if options.to is None:
        for path in tqdm(paths):
            nbformat.write(execute(path), path)
        return
    options.to.mkdir(parents=True, exist_ok=True)
    # Processes, since the clients of two kernels in threads of one lose messages.
    with ProcessPoolExecutor(options.jobs) as pool:
        list(tqdm(pool.map(partial(execute_to, options.to), paths), total=len(paths), desc="notebooks"))


if __name__ == "__main__":
    main()
