"""Sends the record of a run to an MLflow tracking store, where the configuration asks for it (the extra ``mlflow``)."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from multitask_recommender.foundation.errors import SettingsError, StudyError

LOCAL = "local"
"""The store in the folder of the outputs."""
_BATCH = 100
"""Most parameters that MLflow takes at once."""
_LONGEST = 500
"""Most signs of a parameter that all of its stores take."""
_NOT_IN_NAMES = re.compile(r"[^/\w.\- ]")
_SECRET = re.compile(r"//[^/@\s]*@")
"""Name and password in an address."""


class TrackingError(StudyError):
    """The tracking store cannot be used."""


def store_of(settings: Any, folder: Path) -> str | None:
    """Return the address of the tracking store that ``tracking`` in the parameters asks for; None: none.

    Args:
        settings: The group of parameters: ``mlflow`` is null, ``local`` or an address.
        folder: Folder of the outputs, in which the local store is.

    Raises:
        SettingsError: If the group holds something else.
    """
    given = dict(settings) if isinstance(settings, Mapping) else {}
    asked = given.pop("mlflow", None)
    if given or not (asked is None or (isinstance(asked, str) and asked)):
        what = f"Unknown parameter 'tracking.{min(given)}'." if given else f"'tracking.mlflow' is {asked!r}."
        raise SettingsError(
            f"{what}\n  where: conf/*/parameters*.yml or --params\n"
            "  what to do: 'tracking' has 'mlflow' alone: null, 'local', or the address of a tracking store."
        )
    if asked == LOCAL:
        return f"sqlite:///{(_local(folder) / 'mlflow.db').resolve()}"
    return asked


def _local(folder: Path) -> Path:
    return folder / "08_reporting" / "mlflow"


class Tracking:
    """An experiment of a tracking store, which is there before anything is computed.

    Args:
        store: Address of the store.
        folder: Folder of the outputs.
        experiment: Name of the experiment, which is made where there is none.

    Raises:
        TrackingError: If MLflow is not installed, or the store cannot be reached.
    """

    def __init__(self, store: str, folder: Path, experiment: str) -> None:
        # Before MLflow is imported, which reads them then.
        os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
        # A server that does not answer shall not hold up a run for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        try:
            import alembic  # noqa: F401
            from mlflow import MlflowClient
        except ImportError as error:
            raise TrackingError(
                f"'tracking.mlflow' needs the extra 'mlflow', and '{error.name}' is not installed: "
                "pip install -c constraints.txt -e '.[mlflow]', or leave 'tracking.mlflow' out."
            ) from error
        for name in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.store = _SECRET.sub("//", store)
        artifacts = None
        if Path(store.removeprefix("sqlite:///")).parent == _local(folder).resolve():
            _local(folder).mkdir(parents=True, exist_ok=True)
            artifacts = (_local(folder) / "artifacts").resolve().as_uri()

        def open_experiment() -> str:
            self._client = MlflowClient(tracking_uri=store, registry_uri=store)
            found = self._client.get_experiment_by_name(experiment)
            return found.experiment_id if found else self._client.create_experiment(experiment, artifacts)

        self._experiment = self._attempt(open_experiment, "nothing was run; correct 'tracking.mlflow' or leave it out.")

    def _attempt(self, what: Callable[[], Any], remedy: str) -> Any:
        try:
            return what()
        # MLflow, the database and the network each have their own errors, and none of them is the study's.
        except Exception as error:
            said = _SECRET.sub("//", str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
            raise TrackingError(f"The tracking store {self.store} cannot be used ({said[:200]}): {remedy}") from error

    def send(self, record: Mapping[str, Any], parameters: Mapping[str, Any], headline: pd.DataFrame | None) -> None:
        """Write a run: parameters, versions, metrics of the headline table, and the record itself as a file.

        Args:
            record: What ``runs.jsonl`` holds of the run.
            parameters: Values of the parameters that its nodes read.
            headline: The headline table: split, model, and a column for every task and metric; None: no metrics.

        Raises:
            TrackingError: If the store cannot be reached any more; the outputs are not touched.
        """

        def write() -> None:
            from mlflow.entities import Metric, Param

            now = int(time.time() * 1000)
            words = ("run", "environment", "git_commit", "pipeline")
            tags = {name: str(record[name]) for name in words}
            run = self._client.create_run(self._experiment, tags=tags, run_name=record["run"]).info.run_id
            versions = {f"version.{name}": version for name, version in record["packages"].items()}
            said = [
                Param(_name(name), str(value)[:_LONGEST])
                for name, value in {**dict(_leaves(parameters)), **versions}.items()
            ]
            for start in range(0, len(said), _BATCH):
                self._client.log_batch(run, params=said[start : start + _BATCH])
            counts = {"seconds": record["seconds"], "nodes run": len(record["seconds_per_node"])}
            counts["nodes reused"] = len(record["reused_from_run"])
            values = {**counts, **dict(_metrics(headline))}
            self._client.log_batch(run, [Metric(_name(name), float(value), now, 0) for name, value in values.items()])
            self._client.log_dict(run, dict(record), "run.json")
            self._client.set_terminated(run)

        self._attempt(write, "the run is not in it; the outputs and runs.jsonl are whole.")


def _name(name: str) -> str:
    """Return a name with the signs that MLflow allows."""
    return _NOT_IN_NAMES.sub("_", name.replace("@", " at "))


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _metrics(headline: pd.DataFrame | None) -> Iterator[tuple[str, float]]:
    if headline is None:
        return
    for row in headline.to_dict("records"):
        for name, value in row.items():
            if name not in ("split", "model") and not math.isnan(value):
                yield f"{row['split']}/{row['model']}/{name}", value
