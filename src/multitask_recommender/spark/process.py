"""What runs in the processes that train together.

Nothing heavy is imported with this module: Spark's own workers read it as well, and only start the processes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def train_in_process(folder: str, given: bytes) -> dict[str, Any]:
    """Train one share; runs in every process.

    Args:
        folder: Where the shares are, and the results go.
        given: Name, module, settings and tasks, as ``cloudpickle`` sends them.

    Returns:
        The epochs of the learning curve, the seconds on the clock and those of CPU of every process; or the problem and
        the remedy of a training that cannot go on: Spark would begin again after an error, and come to the same end.
    """
    import pickle

    import torch.distributed as dist

    from multitask_recommender.foundation.errors import TrainingError
    from multitask_recommender.foundation.jobs import single_threaded
    from multitask_recommender.models.stored import StoredModel, read_model, write_model
    from multitask_recommender.models.training.division import train_share

    name, module, settings, tasks = pickle.loads(given)
    place = Path(folder)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        (place / "begun").touch()
    common, share = (read_model(place / name).state for name in ("common", f"share_{rank}"))
    error: TrainingError | None = None
    epochs: list[dict[str, float]] = []
    try:
        with single_threaded():
            dist.barrier()  # So that the clock does not count a process that starts later.
            begin, cpu = time.perf_counter(), time.process_time()
            try:
                state, curve = train_share(name, module, settings, tasks, common, share, rank, size)
                epochs = curve.epochs
                partial = place / f".partial_{rank}"
                write_model(partial, StoredModel(state))
                partial.replace(place / f"result_{rank}")
            except TrainingError as found:
                error = found
            seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        # Also waits until every process has written its part. A weight that is no number may be that of a user of one.
        ends: list[Any] = [None] * size
        dist.all_gather_object(ends, (cpu, None if error is None else (error.problem, error.remedy)))
    finally:
        dist.destroy_process_group()
    problems = [problem for _, problem in ends if problem is not None]
    if problems:
        return {"problem": problems[0][0], "remedy": problems[0][1]}
    return {"epochs": epochs, "seconds": seconds, "cpu_seconds": [own for own, _ in ends]}
