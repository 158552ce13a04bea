"""Project settings of Kedro: hooks and the configuration loader."""

import importlib.util
from pathlib import Path

from multitask_recommender.configuration import StudyConfigLoader
from multitask_recommender.hooks import (
    FreeDatasets,
    ParameterNames,
    ReadableErrors,
    Runners,
    RunRecord,
    RunReport,
    TrainingDevice,
)


def package_file(package: str, path: str) -> str:
    """Resolve ``${package_file:package,path}`` to a file inside an installed package, without importing it.

    If there is no such package, the path says so: the run then refuses the table before it starts, and an environment
    that does not read the table is not disturbed.
    """
    specification = importlib.util.find_spec(package)
    if specification is None or specification.origin is None:
        return f"(the package '{package}' is not installed)/{path}"
    return (Path(specification.origin).parent / path).as_posix()


HOOKS = (FreeDatasets(), ParameterNames(), TrainingDevice(), Runners(), RunReport(), RunRecord(), ReadableErrors())
CONFIG_LOADER_CLASS = StudyConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft"},
    "custom_resolvers": {"package_file": package_file},
}
