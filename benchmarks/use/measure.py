"""Measures a fitted model in use: seconds to load it, milliseconds to answer. ``python benchmarks/use/measure.py``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np


def milliseconds(answer: Callable[[int], object], times: int) -> str:
    """Return median and 95th percentile, by the clock, and the median of the process's own time."""
    clock, own = [], []
    for number in range(times):
        begin = time.perf_counter(), time.process_time()
        answer(number)
        clock.append(1000 * (time.perf_counter() - begin[0]))
        own.append(1000 * (time.process_time() - begin[1]))
    return (
        f"median {np.median(clock):.1f} ms, 95 % within {np.quantile(clock, 0.95):.1f} ms, CPU {np.median(own):.1f} ms"
    )


def main() -> None:
    """Load the model that is named and ask it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data")
    parser.add_argument("--model", default="wide_shared_bottom")
    parser.add_argument("--times", type=int, default=300)
    asked = parser.parse_args()
    begin = time.perf_counter()
    from multitask_recommender import load_recommender

    print(f"imports: {time.perf_counter() - begin:.2f} s")
    begin = time.perf_counter()
    recommender = load_recommender(asked.data, asked.model)
    print(f"loading {asked.model}: {time.perf_counter() - begin:.2f} s")
    users, items = recommender.run.user_ids, recommender.run.item_ids
    signals = list(recommender.run.record["dataset"]["interactions"]["signals"])
    rated = [{"item_id": item} | dict.fromkeys(signals[:1], 4) for item in items[:5]]
    print("known users:", milliseconds(lambda n: recommender.recommend(users[n % len(users)]), asked.times))
    print("newcomer with 5 items:", milliseconds(lambda n: recommender.recommend(history=rated), asked.times))
    print("explanation of 5 items:", milliseconds(lambda n: recommender.explain(items[9], history=rated), 20))


if __name__ == "__main__":
    main()
