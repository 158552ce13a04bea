"""Writes the tiny simulated study that ``conf/test`` reads: ``python tests/data/make_tiny_study.py``."""

from pathlib import Path

import pandas as pd

from multitask_recommender.simulation.films import simulate_study

FOLDER = Path(__file__).parent / "tiny_study"


def make_tables() -> dict[str, pd.DataFrame]:
    return simulate_study(users=100, items=70, rows_per_user=18, relatedness=0.8, seed=11)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, table in make_tables().items():
        table.to_csv(FOLDER / f"{name}.tsv", sep="\t", index=False)
