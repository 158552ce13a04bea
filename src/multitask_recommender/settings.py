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
    UnreadParts,
)
from multitask_recommender.runs.one_run import OneRun
from multitask_recommender.runs.progress import Progress
from multitask_recommender.runs.reuse import Reuse, ReusingSession, StudyContext


def package_file(package: str, path: str) -> str:
    """Resolve ``${package_file:package,path}`` to a file inside an installed package, without importing it.

    If there is no such package, the path says so: the run then refuses the table before it starts, and an environment
    that does not read the table is not disturbed.
    """
    specification = importlib.util.find_spec(package)
    if specification is None or specification.origin is None:
        return f"(the package '{package}' is not installed)/{path}"
    return (Path(specification.origin).parent / path).as_posix()


_REUSE = Reuse()
# Kedro calls the last one first.
HOOKS = (
    FreeDatasets(),
    UnreadParts(),
    ParameterNames(),
    TrainingDevice(),
    Runners(),
    RunReport(_REUSE),
    Progress(_REUSE),
    RunRecord(_REUSE),
    _REUSE,
    ReadableErrors(),
    OneRun(),
)
# The viewer's record of a run knows nothing of nodes that are reused, and warns at every run that it is not kept.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-viz",)
SESSION_CLASS = ReusingSession
CONTEXT_CLASS = StudyContext
CONFIG_LOADER_CLASS = StudyConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft"},
    "custom_resolvers": {"package_file": package_file},
}
