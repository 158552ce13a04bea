"""One training in several processes on Spark, through ``TorchDistributor``."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from multitask_recommender.foundation.errors import TrainingError
from multitask_recommender.foundation.jobs import single_threaded
from multitask_recommender.models.recommender import LearningCurve
from multitask_recommender.models.stored import StoredModel, read_model, write_model
from multitask_recommender.models.training.division import Training, train_share, without_users
from multitask_recommender.spark.folders import temporary_folder
from multitask_recommender.spark.session import last_words, start_session
from multitask_recommender.spark.settings import SparkSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SparkLauncher:
    """Trains a module in ``num_processes`` processes, which Spark starts together in a barrier stage.

    The share of every process goes through a file in a folder that all see, as do the tables that it gives back. The
    module itself and the first process's curve travel with the function, as ``TorchDistributor`` sends it.
    Where a process dies, Spark begins the stage again, from the same shares, as often as its configuration says.

    Attributes:
        settings: How Spark is reached.
    """

    settings: SparkSettings

    def __call__(self, training: Training) -> LearningCurve:
        """Train the module.

        Raises:
            TrainingError: If a loss is not finite, or a process died too often.
        """
        from pyspark.ml.torch.distributor import TorchDistributor

        start_session(self.settings)
        size = self.settings.num_processes
        folder = temporary_folder(self.settings.shared_folder)
        try:
            write_model(folder / "common", StoredModel(training.common()))
            for rank in range(size):
                write_model(folder / f"share_{rank}", StoredModel(training.share(rank, size)))
            tables = without_users(training.module)
            try:
                distributor = TorchDistributor(num_processes=size, local_mode=False, use_gpu=False)
                arguments = (training.name, training.module, training.settings, list(training.tasks))
                found = distributor.run(train_in_process, str(folder), *arguments)
            except Exception as error:  # Of Py4J or of the distributor, which raises RuntimeError.
                raise TrainingError(
                    f"The training of '{training.name}' on Spark came to an end: {last_words(error)}",
                    "look into the logs of the executors; what was made before is whole, so the same command goes on "
                    "from there with --from-nodes. Where executors get lost, ask for fewer processes or more memory, "
                    "or let Spark try more often (spark.config: spark.stage.maxConsecutiveAttempts).",
                ) from error
            finally:
                for name, table in tables.items():
                    dict(training.module.named_parameters())[name].data = table
            attempts = len(list(folder.glob("begun_*")))
            if attempts > 1:
                logger.warning("%s: a process was lost, and the training begun again %d x", training.name, attempts - 1)
            if "problem" in found:
                raise TrainingError(found["problem"], found["remedy"])
            training.take([read_model(folder / f"result_{rank}").state for rank in range(size)])
            return LearningCurve(found["epochs"])
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def train_in_process(folder: str, name: str, module: Any, settings: Any, tasks: list[str]) -> dict[str, Any]:
    """Train one share; runs in every process.

    Returns:
        The epochs of the learning curve, or the problem and the remedy of a training that cannot go on: Spark would
        begin again after an error, and come to the same end.
    """
    place = Path(folder)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        # Every attempt leaves a trace, so that a retry can be told of.
        (place / f"begun_{len(list(place.glob('begun_*')))}").touch()
    common, share = (read_model(place / name).state for name in ("common", f"share_{rank}"))
    try:
        with single_threaded():
            state, curve = train_share(name, module, settings, tasks, common, share, rank, size)
        partial = place / f".partial_{rank}"
        write_model(partial, StoredModel(state))
        partial.replace(place / f"result_{rank}")
        dist.barrier()
        return {"epochs": curve.epochs}
    except TrainingError as error:
        return {"problem": error.problem, "remedy": error.remedy}
    finally:
        torch.distributed.destroy_process_group()
