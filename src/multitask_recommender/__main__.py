"""The command line: asks a fitted model, or runs the packaged project with the options of ``kedro run``."""

import os
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from multitask_recommender.use.command_line import VERBS, overview
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
    if given and given[0] in ("-h", "--help"):
        print(f"{overview()}\n\nWithout a verb it runs the study, with the options of kedro run:\n", flush=True)
    # Asking a model needs nothing of Kedro, and does not wait for it.
    import yaml
    from kedro.framework.cli.utils import find_run_command
    from kedro.framework.project import configure_logging, configure_project

    package_name = Path(__file__).parent.name
    configure_project(package_name)
    logging = _logging_configuration(given)
    if logging is not None and "KEDRO_LOGGING_CONFIG" not in os.environ:
        configure_logging(yaml.safe_load(logging))
    find_run_command(package_name)(given)


def _logging_configuration(options: Sequence[str]) -> str | None:
    """Return ``logging.yml`` of the folder or archive of ``--conf-source``: Kedro looks for ``conf`` alone."""
    for place, option in enumerate(options):
        name, _, value = option.partition("=")
        if name != "--conf-source":
            continue
        source = Path(value or (options[place + 1] if place + 1 < len(options) else ""))
        if (source / "logging.yml").is_file():
            return (source / "logging.yml").read_text(encoding="utf-8")
        if source.is_file() and tarfile.is_tarfile(source):
            with tarfile.open(source) as archive:
                names = [own for own in archive.getnames() if Path(own).name == "logging.yml"]
                file = archive.extractfile(names[0]) if names else None
                return None if file is None else file.read().decode()
    return None


if __name__ == "__main__":
    main()
