"""The command line: asks a fitted model, or runs the packaged project with the options of ``kedro run``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from multitask_recommender.use.command_line import VERBS
from multitask_recommender.use.command_line import main as ask


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer a request (``multitask-recommender recommend ...``), or run the project's pipelines.

    Args:
        arguments: Command line options, those of the process if not given: a verb of ``use.command_line`` with its
            options, or else the options of ``kedro run``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in VERBS:
        sys.exit(ask(given))
    # Asking a model needs nothing of Kedro, and does not wait for it.
    from kedro.framework.cli.utils import find_run_command
    from kedro.framework.project import configure_project

    package_name = Path(__file__).parent.name
    configure_project(package_name)
    find_run_command(package_name)(given)


if __name__ == "__main__":
    main()
