"""The figure of the sweep: heat maps of the gain. The colours stay apart for colour-blind readers."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from multitask_recommender.pipelines.when_multitask_helps.experiment import main_metric


def plot_sweep(table: pd.DataFrame) -> Figure:
    """Plot the gain over the single-task control: relatedness by sparsity, one map a size of the data.

    A cell says the gain, its 95 % interval over users, the verdict, and in how many repeats that verdict came out.

    Args:
        table: The table ``sweep``; the main metric of its task is drawn.
    """
    task = table["task"].iloc[0]
    metric = main_metric(task)
    table = table[table["metric"] == metric.name]
    sizes, rhos, shares = (sorted(table[name].unique()) for name in ("users", "relatedness", "sparsity"))
    limit = 100 * max(float(table["gain"].abs().max()), 0.01)
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(1.6 + 1.45 * len(shares) * len(sizes), 2.0 + 0.95 * len(rhos)), layout="constrained")
        axes = figure.subplots(1, len(sizes), squeeze=False)[0]
    for axis, size in zip(axes, sizes, strict=True):
        own = table[table["users"] == size].set_index(["relatedness", "sparsity"])
        gain = np.array([[100 * own.loc[(rho, share), "gain"] for share in shares] for rho in rhos])
        image = axis.imshow(gain, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
        for y, rho in enumerate(rhos):
            for x, share in enumerate(shares):
                cell = own.loc[(rho, share)]
                verdict = str(cell["verdict"])
                text = (
                    f"{100 * cell['gain']:+.1f} %\n[{100 * cell['ci_low']:+.1f}, {100 * cell['ci_high']:+.1f}]\n"
                    f"{verdict}\n{cell[verdict]:.0f} of {cell['repeats']:.0f}"
                )
                dark = abs(gain[y, x]) > 0.65 * limit
                axis.text(
                    x,
                    y,
                    text,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="w" if dark else "k",
                    fontweight="bold" if verdict in ("helps", "harms") else "normal",
                )
        labels = own.groupby("sparsity")["labels"].mean()
        axis.set_xticks(range(len(shares)), [f"{100 * share:.0f} %\n({labels[share]:,.0f})" for share in shares])
        axis.set_yticks(range(len(rhos)), [f"{rho:g}" for rho in rhos])
        axis.set_xlabel(f"missing training labels of {task}\n(labels that are left)")
        axis.set_ylabel("relatedness rho of the tasks")
        axis.set_title(f"{size:,} readers")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=list(axes), label=f"gain in {metric.title}, %", shrink=0.9)
    figure.suptitle(f"Gain of multi-task training over the single-task control, task {task}")
    return figure
