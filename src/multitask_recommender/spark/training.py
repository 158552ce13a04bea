"""One training in several processes on Spark, through ``TorchDistributor``."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multitask_recommender.foundation.errors import TrainingError
from multitask_recommender.models.recommender import LearningCurve
from multitask_recommender.models.stored import StoredModel, read_model, write_model
from multitask_recommender.models.training.division import Training, without_users
from multitask_recommender.spark.folders import temporary_folder
from multitask_recommender.spark.process import train_in_process
from multitask_recommender.spark.session import last_words, start_session
from multitask_recommender.spark.settings import SparkSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SparkLauncher:
    """Trains a module in ``num_processes`` processes, which Spark starts together in a barrier stage.

    The share of every process goes through a file in a folder that all see, as do the tables that it gives back. The
    module itself and the first process's curve travel with the function, as ``TorchDistributor`` sends it. Where a
    process dies, the training begins again from the same shares, as often as the settings say.

    Attributes:
        settings: How Spark is reached.
    """

    settings: SparkSettings

    def __call__(self, training: Training) -> LearningCurve:
        """Train the module.

        Raises:
            TrainingError: If a loss is not finite, or a process died too often.
        """
        start_session(self.settings)
        size = self.settings.num_processes
        folder = temporary_folder(self.settings.shared_folder)
        try:
            write_model(folder / "common", StoredModel(training.common()))
            for rank in range(size):
                write_model(folder / f"share_{rank}", StoredModel(training.share(rank, size)))
            tables = without_users(training.module)
            try:
                found = self._run(training, folder)
            finally:
                for name, table in tables.items():
                    dict(training.module.named_parameters())[name].data = table
            if "problem" in found:
                raise TrainingError(found["problem"], found["remedy"])
            seconds, cpu = found["seconds"], found["cpu_seconds"]
            logger.info(
                "%s: trained by %d process(es) in %.2f s (%s s of CPU each)",
                training.name,
                size,
                seconds,
                ", ".join(f"{own:.2f}" for own in cpu),
            )
            training.take([read_model(folder / f"result_{rank}").state for rank in range(size)])
            return LearningCurve(found["epochs"])
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, training: Training, folder: Path) -> dict[str, Any]:
        """Run the training, again where a process was lost: Spark itself does not begin such a stage again."""
        from pyspark import cloudpickle
        from pyspark.ml.torch.distributor import TorchDistributor

        given = cloudpickle.dumps((training.name, training.module, training.settings, list(training.tasks)))
        tries = 1 + self.settings.training_retries
        for attempt in range(1, tries + 1):
            try:
                distributor = TorchDistributor(self.settings.num_processes, local_mode=False, use_gpu=False)
                found: Any = distributor.run(train_in_process, str(folder), given)
                return found
            except Exception as error:  # Of Py4J or of the distributor, which raises RuntimeError.
                said = last_words(error)
                if attempt == tries:
                    raise TrainingError(
                        f"The training of '{training.name}' on Spark failed {tries} x, the last time so: {said}",
                        "look into the logs of the executors. What was made before is whole, so that the same "
                        "command goes on from there with --from-nodes. Where executors get lost, ask for fewer "
                        "processes ('spark.num_processes'), for more memory ('spark.config'), or for more "
                        "'spark.training_retries'.",
                    ) from error
                logger.warning(
                    "%s: a process was lost, the training begins again (%d of %d): %s",
                    training.name,
                    attempt,
                    self.settings.training_retries,
                    said,
                )
        raise AssertionError("unreachable")
