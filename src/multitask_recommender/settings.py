"""Project settings of Kedro: hooks and the configuration loader."""

import importlib.util
from pathlib import Path

from kedro.config import OmegaConfigLoader

from multitask_recommender.errors import StudyError
from multitask_recommender.hooks import ParameterNames, ReadableErrors, RunRecord, RunReport


def package_file(package: str, path: str) -> str:
    """Resolve ``${package_file:package,path}`` to a file inside an installed package, without importing it.

    Raises:
        StudyError: If the package is not installed or has no such file.
    """
    specification = importlib.util.find_spec(package)
    if specification is None or specification.origin is None:
        raise StudyError(
            f"The package '{package}', whose file '{path}' holds the data, is not installed.\n"
            "  what to do: run 'make data', which installs it without its dependencies, or point the "
            "catalog at your own data."
        )
    file = Path(specification.origin).parent / path
    if not file.exists():
        raise StudyError(
            f"The installed package '{package}' has no file '{path}'.\n"
            "  what to do: install the version pinned in the Makefile with 'make data'."
        )
    return file.as_posix()


HOOKS = (ParameterNames(), RunReport(), RunRecord(), ReadableErrors())
CONFIG_LOADER_CLASS = OmegaConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft"},
    "custom_resolvers": {"package_file": package_file},
}
