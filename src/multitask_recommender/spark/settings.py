"""What runs the tables and the training: DuckDB and this process, or Spark."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from multitask_recommender.foundation.settings_base import Settings

Engine = Literal["duckdb", "spark"]
"""``duckdb``: tables in this process, training in processes of this machine. ``spark``: both on a Spark cluster."""
ENGINES: tuple[Engine, ...] = get_args(Engine)


class SparkSettings(Settings):
    """How Spark is reached, and how it trains.

    Attributes:
        master: The master's URL: ``local[2]`` (two threads of this machine), ``spark://host:7077`` and so on.
        num_processes: Processes that train one model together; each takes one slot of the cluster and one thread.
        shared_folder: Folder that the driver and all executors see under the same path, for rows on their way to the
            processes; null: a temporary folder of this machine, which is right for executors on this machine.
        training_retries: How often a training that lost a process is begun again.
        wait_seconds: How long to wait for the executors of a cluster to be there.
        config: Further properties of Spark, such as ``spark.executor.memory: 4g``.
    """

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {"master", "shared_folder", "training_retries", "wait_seconds", "config"}
    )

    master: str = "local[2]"
    num_processes: int = Field(default=2, ge=1, le=10_000)
    shared_folder: str | None = None
    training_retries: int = Field(default=2, ge=0, le=1000)
    wait_seconds: float = Field(default=60.0, gt=0, le=86_400)
    config: dict[str, str | int | float | bool] = Field(default_factory=dict)

    @property
    def local_threads(self) -> int | None:
        """Threads of a local master; None for a cluster, or for as many as there are cores."""
        found = re.fullmatch(r"local(?:\[(\d+)(?:,\s*\d+)?\])?", self.master)
        return None if found is None else int(found[1] or 1)

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, values: Any) -> Any:
        """Let dots in the names of properties stand as they do in Spark's manual, whether YAML nests them or not."""
        if isinstance(values, dict) and isinstance(values.get("config"), dict):
            return {**values, "config": _flattened(values["config"])}
        return values

    @model_validator(mode="after")
    def _enough_threads(self) -> SparkSettings:
        threads = self.local_threads
        if threads is not None and threads < self.num_processes:
            raise ValueError(
                f"'num_processes' is {self.num_processes}, and the master '{self.master}' has {threads} thread(s): "
                f"write 'spark.master: local[{self.num_processes}]', or fewer processes"
            )
        return self


def _flattened(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
