"""Figures of the user embedding; their style is that of ``foundation/figure_style.py``."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import matplotlib.lines
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.foundation.figure_style import (
    BLUE,
    CYCLE,
    GREY,
    MARKERS,
    finished,
    intervals,
    label_lines,
    panels,
    plain,
    short,
    styled,
)

_TASTES = 6
"""How many tastes get a colour of their own; the others are grey."""


@styled
def plot_learning_curve(curve: pd.DataFrame, limits: pd.DataFrame, dataset: DatasetSettings) -> Figure:
    """Plot the loss of the user embedding in training, beside the known minimum without context.

    Args:
        curve: Loss per user by split and epoch.
        limits: Minimum by split.
        dataset: Its name.
    """
    splits = list(dict.fromkeys(limits["split"]))
    columns = min(3, max(len(splits), 1))
    lines = -(-len(splits) // columns)
    figure, axes = panels(columns, lines, 3.0 * lines + 0.5)
    told = []
    for axis in axes.flat[len(splits) :]:
        axis.set_visible(False)
    of_splits: Any = limits.itertuples()
    for axis, row in zip(axes.flat, of_splits, strict=False):
        own = curve[curve["split"] == row.split].sort_values("epoch")
        axis.plot(own["epoch"], own["value"], color=BLUE)
        ends = [(row.reached, f"training {row.reached:.3f}", BLUE)]
        if np.isfinite(row.limit):
            axis.axhline(row.limit, color=GREY, linestyle="--", linewidth=1.2)
            what = "limit without context" if row.context else "limit"
            ends.append((row.limit, f"{what} {row.limit:.3f}", GREY))
            told.append(
                f"{row.split}: {row.reached:.4f} after training, {row.limit:.4f} is the minimum without context"
            )
        else:
            told.append(f"{row.split}: {row.reached:.4f} after training; of this encoder no minimum is known")
        lowest = min(value for value, _, _ in ends)
        axis.set_ylim(lowest - 0.06 * (own["value"].max() - lowest + 1e-9), None)
        label_lines(axis, ends, gap=0.08)
        context = "with context" if row.context else "without context"
        axis.set_title(f"{row.split} split\nk = {row.dimension}, λ = {row.penalty:g}, {context}")
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
    axes[0, 0].set_ylabel("L_UserEmb per user")
    words = f"Loss per user. {'; '.join(told)}."
    return finished(figure, f"Training of the user embedding and its limit, {dataset.name}", words)


@styled
def plot_user_map(the_map: pd.DataFrame, overlaps: pd.DataFrame, dataset: DatasetSettings) -> Figure:
    """Plot the users in the plane of the two main directions, by a feature and by taste; and what nearness means.

    Args:
        the_map: Places of users, with a feature and the taste.
        overlaps: Overlap of the histories of nearest and of random users.
        dataset: Its name.
    """
    figure, axes = panels(3, 1, 4.6, width_ratios=[1.25, 1.25, 0.75])
    left, middle, right = axes[0]
    size = float(np.clip(9000 / max(len(the_map), 1), 5, 22))
    feature, told = str(the_map["feature"].iloc[0]), []
    value = pd.to_numeric(the_map["value"], errors="coerce")
    style = {"s": size, "linewidths": 0, "alpha": 0.8, "rasterized": True}
    if value.notna().any():
        left.scatter(the_map["x"], the_map["y"], color="#D5D5D5", **style)
        ends = np.nanquantile(value, [0.02, 0.98])
        marks = left.scatter(the_map["x"], the_map["y"], c=value, cmap="viridis", vmin=ends[0], vmax=ends[1], **style)
        figure.colorbar(marks, ax=left, label=plain(feature), location="bottom", shrink=0.8, aspect=30)
        for direction in ("x", "y"):
            correlation = value.corr(the_map[direction], method="spearman")
            told.append(f"rank correlation of {feature} with the {direction} direction {correlation:+.2f}")
    else:
        _by_name(left, the_map, the_map["value"].fillna("unknown").astype(str), style)
    left.set_title(f"by {plain(feature)}")
    taste = the_map["taste"]
    if taste.notna().any():
        _by_name(middle, the_map, taste.fillna("none").astype(str), style)
        middle.set_title(f"by taste: the {plain(str(dataset.items.categories))} most above average")
        told.append(f"the most frequent taste is {taste.value_counts().index[0]}")
    else:
        marks = middle.scatter(the_map["x"], the_map["y"], c=np.log10(the_map["rows"]), cmap="viridis", **style)
        label = "training rows of the user (logarithm to base 10)"
        figure.colorbar(marks, ax=middle, label=label, location="bottom", shrink=0.8, aspect=30)
        middle.set_title("by activity (no categories are declared)")
    for axis in (left, middle):
        axis.set_xlabel(f"first direction ({100 * the_map['share_x'].iloc[0]:.0f} % of the variance)")
        axis.grid(visible=False)
    left.set_ylabel(f"second direction ({100 * the_map['share_y'].iloc[0]:.0f} %)")
    places = range(len(overlaps))
    intervals(
        right,
        100 * overlaps["overlap"],
        100 * overlaps["ci_low"],
        100 * overlaps["ci_high"],
        places,
        BLUE,
        across=False,
    )
    right.set_xticks(
        list(places), [f"with {'the' if name == 'nearest' else 'a'}\n{name} user" for name in overlaps["pairs"]]
    )
    right.set_xlim(-0.6, len(overlaps) - 0.4)
    right.set_ylim(0, None)
    right.set_ylabel("overlap of histories, % (Jaccard index)")
    right.set_title("what nearness means\n(bars: 95 % intervals)")
    pairs: Any = overlaps.itertuples()
    told += [f"histories of {row.pairs} users overlap by {100 * row.overlap:.1f} %" for row in pairs]
    return finished(figure, f"Map of the users of {dataset.name}", f"{len(the_map)} users. {'; '.join(told)}.")


def _by_name(axis: Axes, the_map: pd.DataFrame, names: pd.Series, style: dict[str, Any]) -> None:
    """Draw users in the colours of their most frequent values, which stand with their shares below."""
    frequent = list(names.value_counts().index[:_TASTES])
    others = ~names.isin(frequent)
    axis.scatter(the_map.loc[others, "x"], the_map.loc[others, "y"], color="#D5D5D5", **style)
    handles = []
    for place, name in enumerate(frequent):
        own, share = the_map[names == name], 100 * (names == name).mean()
        marks: Any = {"color": CYCLE[place % len(CYCLE)], "marker": MARKERS[place % len(MARKERS)]}
        axis.scatter(own["x"], own["y"], **marks, **style)
        label = f"{short(name, 22)} {share:.0f} %"
        handles.append(mpl.lines.Line2D([], [], linestyle="", markeredgewidth=0, label=label, **marks))
    key = axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, handletextpad=0.1)
    for text, handle in zip(key.get_texts(), handles, strict=True):
        text.set_color(handle.get_color())
