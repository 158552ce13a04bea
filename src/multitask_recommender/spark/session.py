"""The one Spark session of a process, and what keeps it from being there."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from multitask_recommender.foundation.errors import SettingsError
from multitask_recommender.spark.settings import SparkSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_DEFAULTS = {
    # Tables come and go as Arrow, which keeps types and is fast.
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.session.timeZone": "UTC",
    # What is no number becomes null, and a sum that does not fit too, as in DuckDB's TRY_CAST.
    "spark.sql.ansi.enabled": "false",
    "spark.sql.shuffle.partitions": "8",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    # A training needs all of its slots at once: where they do not come, say so within half a minute, not in ten.
    "spark.scheduler.barrier.maxConcurrentTasksCheck.interval": "5s",
    "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": "6",
}
_WHERE = "'spark' in conf/*/parameters*.yml or --params"


def _error(problem: str, remedy: str) -> SettingsError:
    return SettingsError(f"{problem}\n  where: {_WHERE}\n  what to do: {remedy}")


def start_session(settings: SparkSettings) -> SparkSession:
    """Return the session of this process; the first call starts it.

    Raises:
        SettingsError: If PySpark or Java is missing, the master does not answer, or no executor comes.
    """
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise _error(
            "'engine: spark' needs PySpark, which is not installed.", "pip install -c constraints.txt -e '.[spark]'"
        ) from None
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    _require_java()
    _require_master(settings.master)
    # Executors on this machine run the Python of the driver; elsewhere the variable names another.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    local = settings.master.startswith("local")
    builder: Any = SparkSession.builder.master(settings.master).appName("multitask-recommender")
    own = {"spark.driver.host": "localhost", "spark.driver.bindAddress": "127.0.0.1"} if local else {}
    # Nothing of a run is left in the folder that it was started in.
    own["spark.sql.warehouse.dir"] = str(Path(settings.shared_folder or "/tmp") / "spark-warehouse")
    for name, value in {**_DEFAULTS, **own, **settings.config}.items():
        builder = builder.config(name, str(value).lower() if isinstance(value, bool) else str(value))
    try:
        session = builder.getOrCreate()
    except PySparkException as error:
        said = str(error).splitlines()[0]
        raise _error(
            f"Spark does not start: {said}.", "look at what it printed before; Spark 4 needs Java 17 or newer."
        ) from error
    except Exception as error:  # Of Py4J, whose classes are those of the Java side.
        said = str(error).strip().splitlines()[-1 if "\n" in str(error) else 0]
        raise _error(f"Spark does not start with the master '{settings.master}': {said}", "correct it.") from error
    session.sparkContext.setLogLevel("ERROR")
    if not local:
        _wait_for_executors(session, settings)
    return session


def _require_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if shutil.which("java") is None and not (home and (Path(home) / "bin" / "java").exists()):
        raise _error(
            "Spark needs Java, and there is no command 'java'.",
            "install Java 17 or newer, such as the package openjdk-17-jre-headless, or set JAVA_HOME.",
        )


def _require_master(master: str) -> None:
    """Ask the masters of a standalone cluster whether they are there; Spark itself would try for a minute."""
    if not master.startswith("spark://"):
        return
    said = ""
    for address in master.removeprefix("spark://").split(","):
        try:
            place = urlsplit(f"//{address}")
            with socket.create_connection((place.hostname or "", place.port or 7077), timeout=5):
                return
        except (OSError, ValueError) as error:
            said = str(error)
    raise _error(
        f"No Spark master answers at '{master}': {said}.",
        "start it (start-master.sh), correct 'spark.master', or write 'spark.master: local[2]' for this machine alone.",
    )


def executors(session: SparkSession) -> int:
    """Return the number of executors of a cluster that are there."""
    # Of which one entry is that of the driver.
    return int(session.sparkContext._jsc.sc().getExecutorMemoryStatus().size()) - 1


def _wait_for_executors(session: SparkSession, settings: SparkSettings) -> None:
    end = time.monotonic() + settings.wait_seconds
    while executors(session) < 1:
        if time.monotonic() > end:
            session.stop()
            raise _error(
                f"The cluster '{settings.master}' gave no executor within {settings.wait_seconds:g} seconds.",
                "start workers (start-worker.sh), ask for less memory or fewer cores in 'spark.config', or raise "
                "'spark.wait_seconds'.",
            )
        time.sleep(0.2)


def last_words(error: BaseException) -> str:
    """Return the line of a long message that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.strip().startswith("at ")]
    said = [line for line in lines if "Error" in line or "lost" in line or "Exception" in line]
    return (said or lines or [type(error).__name__])[-1][:300]
