"""Figures of the data; their style is that of ``foundation/figure_style.py``."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.foundation.figure_style import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SEQUENTIAL,
    VERMILION,
    finished,
    note,
    panels,
    plain,
    styled,
)

_SIDES = {"user": BLUE, "item": VERMILION}
_PARTS = {"train": BLUE, "validation": ORANGE, "test": GREEN}


@styled
def plot_activity(activity: pd.DataFrame, features: pd.DataFrame, dataset: DatasetSettings) -> Figure:
    """Plot how skewed and how incomplete the data is.

    Args:
        activity: Interactions by rank of users and items.
        features: Features with the share of users or items without a value.
        dataset: Its name.
    """
    known = features[features["missing"].notna()]
    known = known.sort_values("missing", ascending=False).head(14)
    figure, axes = panels(3, 1, max(3.7, 0.27 * len(known) + 1.4))
    told = []
    for side, colour in _SIDES.items():
        own = activity[activity["side"] == side]
        axes[0, 0].plot(own["rank"], own["rows"], color=colour)
        middle = len(own) // 2
        place = {"xytext": (5, 5), "textcoords": "offset points"}
        axes[0, 0].annotate(f"{side}s", own.iloc[middle][["rank", "rows"]], **place, color=colour)
        axes[0, 1].plot(100 * own["share_of_side"], 100 * own["share_of_rows"], color=colour)
        at_tenth = float(np.interp(0.1, own["share_of_side"], own["share_of_rows"]))
        axes[0, 1].plot(10, 100 * at_tenth, "o", color=colour, markersize=5)
        axes[0, 1].annotate(
            f"a tenth of the {side}s: {100 * at_tenth:.0f} %",
            (10, 100 * at_tenth),
            (9, -11),
            textcoords="offset points",
            color=colour,
        )
        told.append(f"the most active tenth of the {side}s has {100 * at_tenth:.0f} % of the interactions")
    axes[0, 0].set(xscale="log", yscale="log", xlabel="rank, the most active first", ylabel="interactions")
    for direction in (axes[0, 0].xaxis, axes[0, 0].yaxis):
        direction.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes[0, 0].set_title("Interactions of one user or item")
    axes[0, 1].plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle=":")
    axes[0, 1].set(xlabel="users or items, the most active first, %", ylabel="share of all interactions, %")
    axes[0, 1].set_title("Shares (dotted: all alike)")
    names = [f"{plain(str(row.feature))} ({row.side})" for row in known.itertuples()]
    axes[0, 2].barh(names, known["missing"], color=[_SIDES[side] for side in known["side"]])
    for y, value in enumerate(known["missing"]):
        axes[0, 2].text(
            value + 1, y, f"{value:.0f} %" if value >= 1 or value == 0 else "< 1 %", va="center", fontsize=8.5
        )
    axes[0, 2].set(xlim=(0, 112), xlabel="users or items without a value, %")
    axes[0, 2].invert_yaxis()
    axes[0, 2].set_title("Missing features")
    if not len(known):
        axes[0, 2].text(0.5, 0.5, "no features are declared", transform=axes[0, 2].transAxes, ha="center", color=GREY)
        axes[0, 2].set_yticks([])
    words = (
        "; ".join(told) + f"; {len(known)} features, of which {int((known['missing'] > 0).sum())} have missing values."
    )
    return finished(figure, f"How skewed and how complete {dataset.name} is", words[0].upper() + words[1:])


@styled
def plot_tasks(overlap: pd.DataFrame, labels: pd.DataFrame, dataset: DatasetSettings) -> Figure:
    """Plot how the tasks overlap, and which labels they have.

    Args:
        overlap: Per ordered pair of tasks the share of relevant rows that are relevant for the other.
        labels: How often which label occurs.
        dataset: The tasks.
    """
    tasks = list(dataset.tasks)
    figure, axes = panels(
        1 + len(tasks), 1, max(3.4, 0.55 * len(tasks) + 1.6), width_ratios=[1.6, *([1.0] * len(tasks))]
    )
    shares = overlap.pivot_table(index="task", columns="other", values="share").reindex(index=tasks, columns=tasks)
    axis = axes[0, 0]
    axis.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    told = []
    for y, task in enumerate(tasks):
        for x, other in enumerate(tasks):
            value = float(shares.to_numpy()[y, x])
            text = "none" if not np.isfinite(value) else f"{100 * value:.0f} %"
            axis.text(x, y, text, ha="center", va="center", color="w" if value > 0.55 else INK)
            if task != other and np.isfinite(value):
                told.append(f"of what is relevant for {task}, {100 * value:.0f} % is for {other}")
    axis.set_xticks(range(len(tasks)), [plain(name) for name in tasks])
    axis.set_yticks(range(len(tasks)), [plain(name) for name in tasks])
    axis.grid(visible=False)
    axis.set_title("Of the rows relevant for a task (row)\nso many are for the other (column)")
    for place, (axis, task) in enumerate(zip(axes[0, 1:], tasks, strict=True)):
        own = labels[labels["task"] == task]
        names = [f"{value:g}" for value in own["label"].round(2)]
        axis.bar(names, own["rows"] / max(own["rows"].sum(), 1) * 100, color=CYCLE[place % len(CYCLE)])
        axis.grid(visible=False, axis="x")
        axis.set_ylim(0, 108)
        axis.set_title(f"{plain(task)} ({dataset.tasks[task].kind})\n{own['rows'].sum():,} rows with a label")
        axis.set_xlabel("label")
        if len(names) > 6:
            axis.tick_params(axis="x", rotation=60)
    axes[0, 1].set_ylabel("share of the rows, %")
    return finished(figure, f"The tasks of {dataset.name}", ("; ".join(told) or "one task alone") + ".")


@styled
def plot_time(events: pd.DataFrame, dataset: DatasetSettings) -> Figure:
    """Plot when the rows of every split's parts happened.

    Args:
        events: Rows by split, part and time in days since the first.
        dataset: Its name.
    """
    title = f"When things happened in {dataset.name}"
    if not len(events):
        return note("The data has no times.", title)
    splits = list(dict.fromkeys(events["split"]))
    columns = min(3, len(splits))
    lines = -(-len(splits) // columns)
    figure, axes = panels(columns, lines, 2.9 * lines + 0.5, sharex=True, sharey=True)
    begins = np.unique(events["begin"])
    width = float(np.diff(begins).min()) if len(begins) > 1 else 1.0
    told = []
    for axis in axes.flat[len(splits) :]:
        axis.set_visible(False)
    for axis, split in zip(axes.flat, splits, strict=False):
        own = events[events["split"] == split].pivot_table(index="begin", columns="part", values="rows", fill_value=0)
        bottom = np.zeros(len(own))
        for part, colour in _PARTS.items():
            if part in own:
                axis.bar(own.index, own[part], width=width, bottom=bottom, align="edge", color=colour, linewidth=0)
                bottom += own[part].to_numpy()
        shares = own.sum() / own.to_numpy().sum()
        axis.set_title(f"{split} split")
        x = 0.98
        for line, (part, colour) in enumerate(_PARTS.items()):
            if part in shares:
                text = f"{part} {100 * shares[part]:.0f} %"
                axis.text(
                    x,
                    0.97 - 0.08 * line,
                    text,
                    color=colour,
                    transform=axis.transAxes,
                    ha="right",
                    va="top",
                    fontweight="bold",
                )
        middle = {part: float(np.average(own.index, weights=own[part])) for part in own if own[part].sum()}
        told.append(
            f"{split}: " + ", ".join(f"{part} rows lie at day {day:.0f} on average" for part, day in middle.items())
        )
    # Room for the names of the parts.
    axes[0, 0].set_ylim(0, 1.32 * float(events.groupby(["split", "begin"])["rows"].sum().max()))
    for axis in axes[-1]:
        axis.set_xlabel("days since the first interaction")
    for axis in axes[:, 0]:
        axis.set_ylabel(f"interactions in {width:.3g} days")
    return finished(figure, title, "; ".join(told) + ".")
