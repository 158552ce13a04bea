"""Figures of the sweep; their style is that of ``foundation/figure_style.py``."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from multitask_recommender.foundation.figure_style import (
    CYCLE,
    DIVERGING,
    INK,
    MARKERS,
    VERDICT_SIGNS,
    finished,
    intervals,
    label_lines,
    panels,
    plain,
    signed,
    styled,
)
from multitask_recommender.pipelines.when_multitask_helps.experiment import main_metric


def _main_rows(table: pd.DataFrame) -> tuple[str, str, pd.DataFrame]:
    """Return the target task, the title of its main metric, and the rows of that metric."""
    task = str(table["task"].iloc[0])
    metric = main_metric(task)
    return task, metric.title, table[table["metric"] == metric.name]


@styled
def plot_sweep(table: pd.DataFrame) -> Figure:
    """Plot the gain over the single-task control: relatedness by sparsity, one map a size of the data.

    A cell says the gain, its 95 % interval over users, the verdict, and in how many repeats that verdict came out.

    Args:
        table: The table ``sweep``; the main metric of its task is drawn.
    """
    task, metric, table = _main_rows(table)
    sizes, rhos, shares = (sorted(table[name].unique()) for name in ("users", "relatedness", "sparsity"))
    limit = 100 * max(float(table["gain"].abs().max()), 0.01)
    figure, axes = panels(len(sizes), 1, 2.1 + 0.92 * len(rhos), sharey=True)
    told = []
    for axis, size in zip(axes[0], sizes, strict=True):
        own = table[table["users"] == size].set_index(["relatedness", "sparsity"])
        gain = np.array([[100 * own.loc[(rho, share), "gain"] for share in shares] for rho in rhos])
        image = axis.imshow(gain, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto", origin="lower")
        for y, rho in enumerate(rhos):
            for x, share in enumerate(shares):
                cell = own.loc[(rho, share)]
                verdict = str(cell["verdict"])
                ends = f"[{signed(100 * cell['ci_low'])}, {signed(100 * cell['ci_high'])}]"
                text = (
                    f"{signed(gain[y, x])} %\n{ends}\n{VERDICT_SIGNS[verdict]} {verdict}\n"
                    f"{cell[verdict]:.0f} of {cell['repeats']:.0f}"
                )
                dark, sure = abs(gain[y, x]) > 0.65 * limit, verdict in ("helps", "harms")
                axis.text(
                    x,
                    y,
                    text,
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color="w" if dark else INK,
                    fontweight="bold" if sure else "normal",
                )
        labels = own.groupby("sparsity")["labels"].mean()
        axis.set_xticks(range(len(shares)), [f"{100 * share:.0f} %\n({labels[share]:,.0f})" for share in shares])
        axis.set_yticks(range(len(rhos)), [f"{rho:g}" for rho in rhos])
        axis.set_xlabel(f"missing training labels of {plain(task)}\n(labels that are left)")
        axis.set_title(f"{size:,} readers")
        axis.tick_params(length=0)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        counts = own["verdict"].value_counts()
        told.append(f"{size} readers: " + ", ".join(f"{number} {name}" for name, number in counts.items()))
    axes[0, 0].set_ylabel("relatedness rho of the tasks")
    figure.colorbar(image, ax=list(axes[0]), label=f"gain in {metric}, % (positive is better)", shrink=0.9)
    title = f"Gain of multi-task training over the single-task control, task {task}"
    return finished(figure, title, f"Verdicts by cell. {'; '.join(told)}.")


@styled
def plot_gain_by_relatedness(table: pd.DataFrame) -> Figure:
    """Plot the gain against the relatedness of the tasks, with 95 % intervals over bookstores.

    Args:
        table: The table ``sweep``; the main metric of its task is drawn.
    """
    task, metric, table = _main_rows(table)
    sizes = sorted(table["users"].unique())
    figure, axes = panels(len(sizes), 1, 4.0, sharey=True)
    told = []
    lines = []
    for axis, size in zip(axes[0], sizes, strict=True):
        ends = []
        for place, (share, own) in enumerate(table[table["users"] == size].groupby("sparsity")):
            own = own.sort_values("relatedness")
            middle = 50 * (own["repeats_low"] + own["repeats_high"])
            x = own["relatedness"] + 0.012 * (place - 1)
            colour = CYCLE[place % len(CYCLE)]
            axis.plot(x, middle, color=colour, linewidth=1.2)
            marks = (colour, MARKERS[place % len(MARKERS)])
            intervals(axis, middle, 100 * own["repeats_low"], 100 * own["repeats_high"], x, *marks, across=False)
            ends.append((float(middle.iloc[-1]), f"{100 * share:.0f} % missing", colour))
            told.append(
                f"{size} readers, {100 * share:.0f} % missing: {signed(middle.iloc[0])} % at the lowest relatedness, "
                f"{signed(middle.iloc[-1])} % at the highest"
            )
        axis.axhline(0, color="#555555", linewidth=0.8)
        axis.set_title(f"{size:,} readers")
        axis.set_xlabel("relatedness rho of the tasks")
        lines.append((axis, ends))
    for axis, ends in lines:
        label_lines(axis, ends, gap=0.07)
    axes[0, 0].set_ylabel(f"gain in {metric}, % (up is better)")
    title = f"Gain against relatedness, task {task} (bars: 95 % interval over bookstores)"
    return finished(figure, title, "; ".join(told) + ".")
