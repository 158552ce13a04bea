"""Runs the packaged project: ``python -m multitask_recommender [kedro run options]``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the project's pipelines with the options of ``kedro run``.

    Args:
        arguments: Command line options; those of the process if not given.
    """
    package_name = Path(__file__).parent.name
    configure_project(package_name)
    run = find_run_command(package_name)
    run(list(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    main()
