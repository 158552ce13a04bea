"""How the configuration of an overlay such as ``conf/book_crossing`` meets that of ``conf/base``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.config import MissingConfigException, OmegaConfigLoader
from pydantic import ValidationError

from multitask_recommender.configuration_files import check_files, explain
from multitask_recommender.data.folds import IN_TIME
from multitask_recommender.foundation.errors import SettingsError, StudyError
from multitask_recommender.spark.settings import ENGINES, SparkSettings

logger = logging.getLogger(__name__)


def without_base_data(base: Mapping[str, Any], overlay: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Leave out of ``conf/base`` what belongs to its data set, if the overlay brings a data set of its own.

    Args:
        base: Catalog or parameters of ``conf/base``.
        overlay: The same of the overlay.
        kind: ``catalog`` or ``parameters``.

    Returns:
        The base without its raw tables, if the catalog of the overlay has ``raw_interactions``; without its block
        ``dataset``, if that of the overlay describes interactions, and then, where the overlay has no timestamps,
        without the split strategies that need them. Otherwise the base as it is.
    """
    kept = dict(base)
    if kind == "catalog" and "raw_interactions" in overlay:
        # The pattern ``raw_{table}`` stays, which says that a table that is not listed does not exist.
        kept = {name: entry for name, entry in kept.items() if not name.startswith("raw_") or "{" in name}
    interactions = (overlay.get("dataset") or {}).get("interactions") or {}
    if kind == "parameters" and {"user_id", "item_id"} <= interactions.keys():
        kept.pop("dataset", None)
        strategies = (kept.get("splits") or {}).get("strategies", [])
        stated = "strategies" in (overlay.get("splits") or {})
        usable = [name for name in strategies if name not in IN_TIME]
        if not interactions.get("timestamp") and not stated and usable != list(strategies):
            logger.warning("The interactions have no timestamps: left with the split strategies %s", ", ".join(usable))
            kept["splits"] = {**kept["splits"], "strategies": usable}
    return kept


_TABLES = frozenset(
    {
        "multitask_recommender.datasets.IbisTable",
        "multitask_recommender.datasets.StreamedTable",
        "multitask_recommender.raw_tables.RawTable",
    }
)
"""The data sets that are Ibis expressions."""


def with_engine(catalog: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Let all tables be those of one engine, so that they can be joined.

    Args:
        catalog: The merged catalog.
        parameters: The merged parameters, of which ``engine`` names the engine and ``spark`` says how to reach Spark.

    Returns:
        With ``engine: spark``, the catalog whose tables have a connection to Spark; otherwise the catalog as it is. An
        entry with a ``connection`` of its own keeps it.

    Raises:
        SettingsError: If there is no such engine.
    """
    engine = parameters.get("engine", "duckdb")
    if engine not in ENGINES:
        raise SettingsError(
            f"There is no engine '{engine}'.\n  where: 'engine' in conf/*/parameters*.yml or --params\n"
            f"  what to do: write {' or '.join(ENGINES)}."
        )
    if engine != "spark":
        return dict(catalog)
    connection = {"backend": "pyspark", "settings": _spark_settings(parameters).model_dump()}
    return {
        name: {"connection": connection, **entry} if isinstance(entry, dict) and entry.get("type") in _TABLES else entry
        for name, entry in catalog.items()
    }


def _spark_settings(parameters: Mapping[str, Any]) -> SparkSettings:
    try:
        return SparkSettings.model_validate(parameters.get("spark") or {})
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, ('spark', *fault['loc'])))}: {fault['msg']}" for fault in error.errors()
        )
        raise SettingsError(
            f"Spark cannot be reached so: {faults}.\n  where: 'spark' in conf/*/parameters*.yml or --params\n"
            "  what to do: correct it."
        ) from None


def merged(base: Any, overlay: Any) -> Any:
    """Return what an overlay makes of a base: mappings are joined, and all else takes the place of what was there."""
    if not (isinstance(base, Mapping) and isinstance(overlay, Mapping)):
        return overlay
    return {**base, **{name: merged(base.get(name), value) for name, value in overlay.items()}}


class StudyConfigLoader(OmegaConfigLoader):
    """Kedro's loader with :func:`without_base_data`, :func:`with_engine`, and readable errors."""

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Return the merged configuration of a kind.

        Raises:
            SettingsError: If one of its files is faulty, or refers to something that is not there.
        """
        folders = [Path(self.conf_source) / env for env in (self.base_env, self.env or self.default_run_env) if env]
        # A reference to globals is looked up while another kind is read.
        kinds = {key: self.config_patterns.get(key, ()), "globals": self.config_patterns.get("globals", ())}
        for folder in folders:
            if folder.is_dir():
                for patterns in kinds.values():
                    check_files(folder, patterns)
        try:
            found = super().__getitem__(key)
            return with_engine(found, self["parameters"]) if key == "catalog" else found
        except (StudyError, MissingConfigException, KeyError):
            raise
        except Exception as error:
            raise explain(key, error, folders) from error

    def _merge_configs(
        self, config: dict[str, Any], env_config: dict[str, Any], key: str, env_path: str
    ) -> dict[str, Any]:
        return super()._merge_configs(without_base_data(config, env_config, key), env_config, key, env_path)

    @staticmethod
    def _soft_merge(config: dict[str, Any], env_config: dict[str, Any], env_path: str | None = None) -> Any:
        # References are resolved by now: Kedro would wrap every value for OmegaConf, which takes a sixth of a second.
        return merged(config, env_config)
