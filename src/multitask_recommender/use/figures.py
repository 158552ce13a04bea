"""Figures of answers; their style is that of ``foundation/figure_style.py``."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from multitask_recommender.foundation.figure_style import (
    BLUE,
    GREY,
    VERMILION,
    finished,
    panels,
    plain,
    short,
    signed,
    styled,
)

_SHOWN = 14


@styled
def plot_explanation(parts: pd.DataFrame, title: str, task: str, model: str) -> Figure:
    """Plot what base, features and items of a history added to the score of an item.

    Args:
        parts: Table (part, item_id, title, contribution), see :meth:`LoadedRecommender.explain`.
        title: Title of the item.
        task: Name of the task.
        model: Name of the model.
    """
    names = [short(str(row.title), 44) if row.part == "history" else f"({row.part})" for row in parts.itertuples()]
    values = parts["contribution"].tolist()
    if len(values) > _SHOWN:
        rest = len(values) - _SHOWN + 1
        names = [*names[: _SHOWN - 1], f"({rest} more items)"]
        values = [*values[: _SHOWN - 1], sum(values[_SHOWN - 1 :])]
    figure, axes = panels(1, 1, 0.27 * len(values) + 1.2)
    axis = axes[0, 0]
    axis.barh(range(len(values)), values, color=[BLUE if value >= 0 else VERMILION for value in values])
    for y, value in enumerate(values):
        axis.annotate(
            f"{value:+.3f}".replace("-", "\N{MINUS SIGN}"),
            (value, y),
            xytext=(4 if value >= 0 else -4, 0),
            textcoords="offset points",
            ha="left" if value >= 0 else "right",
            va="center",
            fontsize=8.5,
        )
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set_xlabel(
        f"contribution to the score of task {plain(task)} (sum {sum(values):.3f}); blue speaks for the item"
    )
    largest = max(range(len(values)), key=lambda place: abs(values[place]))
    words = f"{model}, task {task}. The largest part is {names[largest]} with {signed(values[largest])}."
    return finished(figure, f"Why {short(title, 60)}? ({model})", words)
