"""The headline table as it is shown at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from multitask_recommender.evaluation.metric_records import METRICS
from multitask_recommender.models.variants import VARIANTS

BEST = "*"
_WIDTH = 100


def shown_models(table: pd.DataFrame) -> list[str]:
    """Return the core models of a headline table; all of its models where it has no core ones."""
    models = list(table["model"].drop_duplicates())
    return [name for name in models if VARIANTS[name].core] or models


def headline_lines(table: pd.DataFrame, models: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a table for every task and split, each at most 100 signs wide.

    The best value of every metric that has a direction is marked; metrics that do not fit are left out, the last first.

    Args:
        table: The headline table: split, model, and a column for every task and metric.
        models: Names of the models to show.
    """
    chosen = table[table["model"].isin(list(models))]
    width = max((len(name) for name in chosen["model"]), default=0)
    for split, rows in chosen.groupby("split", sort=False):
        values = rows.drop(columns="split").set_index("model")
        # Names of tasks are the user's and may hold spaces, names of metrics do not.
        parts = [(str(column), *str(column).rsplit(" ", 1)) for column in values]
        for task in dict.fromkeys(task for _, task, _ in parts):
            metrics = {column: metric for column, of, metric in parts if of == task}
            own = values[list(metrics)].dropna(how="all").dropna(axis=1, how="all")
            columns = [_marked(own[column], metrics[str(column)]) for column in own]
            while columns and width + sum(map(_column_width, columns)) > _WIDTH:
                columns.pop()
            if not len(own):
                continue
            yield ""
            yield f"{task}, {split} split ({BEST} the best)"
            for place, name in enumerate(["", *own.index]):
                cells = (column[place].rjust(_column_width(column)) for column in columns)
                yield (name.ljust(width) + "".join(cells)).rstrip()


def _marked(values: pd.Series, metric: str) -> list[str]:
    """Return the title of a column and its values, of which the best is marked."""
    higher = METRICS[metric.split("@")[0]].higher_is_better
    best = None if higher is None else values.max() if higher else values.min()
    return [
        f"{metric} ",
        *("" if pd.isna(value) else f"{value:.4f}{BEST if value == best else ' '}" for value in values),
    ]


def _column_width(column: list[str]) -> int:
    return 2 + max(map(len, column))
