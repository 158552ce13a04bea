"""Figures of the evaluation. Colours are of the Okabe-Ito palette, which colour-blind readers can tell apart."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.font_manager
import matplotlib.lines
import matplotlib.patches
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.evaluation.groups import overall
from multitask_recommender.evaluation.metric_records import METRICS, main_metric
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.models.variants import VARIANTS, Kind

KIND_COLOURS: dict[Kind, str] = {
    "baseline": "#7F7F7F",
    "single_task": "#E69F00",
    "multi_task": "#0072B2",
    "ablation": "#009E73",
}
KIND_MARKERS: dict[Kind, str] = {"baseline": "s", "single_task": "^", "multi_task": "o", "ablation": "D"}
KIND_TITLES: dict[Kind, str] = {
    "baseline": "baseline",
    "single_task": "single-task control",
    "multi_task": "multi-task",
    "ablation": "ablation of shared-bottom",
}
KINDS_TUNED: tuple[Kind, ...] = ("baseline", "single_task", "multi_task")
Points = list[tuple[float, float, str]]
P = ParamSpec("P")
_FONT = "DejaVu Sans"  # Comes with matplotlib.
logger = logging.getLogger(__name__)


@functools.cache
def fonts_for(names: str) -> list[str]:
    """Return the font of the figures, and installed ones that have what it lacks of some names.

    Where none has it, the log says what to install.
    """
    manager = matplotlib.font_manager.fontManager
    usual = [font for font in manager.ttflist if font.style == "normal" and font.weight in (400, "normal", "regular")]
    # Sans-serif fonts for many scripts first, since a monospaced or old one may have the sign too.
    usual.sort(key=lambda font: (font.name != _FONT, "Sans" not in font.name, font.name))
    missing, chosen = {sign for sign in names if sign.isprintable() and not sign.isspace()}, [_FONT]
    for font in usual:
        if not missing:
            break
        had = {chr(code) for code in matplotlib.font_manager.get_font(font.fname).get_charmap()} & missing
        if had and font.name not in chosen:
            chosen.append(font.name)
        missing -= had
    if missing:
        shown = "".join(sorted(missing)[:10])
        logger.warning(
            "No installed font has the signs %s: figures show empty boxes in their place. Install one that has them, "
            "such as the package fonts-noto-cjk for Chinese, Japanese and Korean, and remove %s",
            shown,
            mpl.get_cachedir(),
        )
    return chosen


def _drawn(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw a figure with fonts that have the signs of the names of its data set and tasks."""

    @functools.wraps(plot)
    def with_fonts(*args: P.args, **kwargs: P.kwargs) -> Figure:
        names: set[str] = set()
        for value in (*args, *kwargs.values()):
            if isinstance(value, DatasetSettings):
                names |= {value.name, *value.tasks}
            elif isinstance(value, pd.DataFrame) and "task" in value:
                names |= set(value["task"].unique())
        with mpl.rc_context({"font.family": fonts_for("".join(sorted(names)))}):
            return plot(*args, **kwargs)

    return with_fonts


def _plain(name: str) -> str:
    """Return a name as figures take it: dollar signs would make a formula of it."""
    return name.replace("$", r"\$")


def _figure(columns: int, rows: int, width: float, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    # Made without pyplot, so that no global state is touched and a notebook shows it as well.
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def _style(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="both", color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)


def _kind_legend(figure: Figure, kinds: Iterable[Kind]) -> None:
    handles = [
        mpl.lines.Line2D(
            [], [], linestyle="", marker=KIND_MARKERS[kind], color=KIND_COLOURS[kind], label=KIND_TITLES[kind]
        )
        for kind in kinds
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def _means(table: pd.DataFrame, split: str, task: str, metric: str, k: int) -> dict[str, float]:
    rows = overall(table)
    rows = rows[(rows["split"] == split) & (rows["task"] == task) & (rows["metric"] == metric) & rows["k"].isin([0, k])]
    means = rows.groupby("model")["value"].mean()
    return {name: float(means[name]) for name in VARIANTS if name in means.index}


@_drawn
def plot_accuracy(table: pd.DataFrame, dataset: DatasetSettings, settings: EvaluationSettings) -> Figure:
    """Plot the main accuracy metric of every task and split, one line a model."""
    models: dict[str, list[str]] = {}
    for split in table["split"].drop_duplicates():
        measured = set(table.loc[table["split"] == split, "model"])
        models[split] = [name for name in VARIANTS if name in measured]
    heights = [0.25 * len(names) + 1.0 for names in models.values()]
    width = 2.6 + 3.4 * len(dataset.tasks)
    figure, axes = _figure(
        len(dataset.tasks), len(models), width, sum(heights) + 0.8, sharey="row", height_ratios=heights
    )
    for row, (split, names) in enumerate(models.items()):
        for column, (name, task) in enumerate(dataset.tasks.items()):
            axis, metric = axes[row, column], main_metric(task.kind)
            means = _means(table, split, name, metric.name, settings.headline_k)
            for model, value in means.items():
                kind = VARIANTS[model].kind
                axis.plot(value, names.index(model), KIND_MARKERS[kind], color=KIND_COLOURS[kind], markersize=7)
            axis.set_title(f"{_plain(name)}, {split} split")
            axis.set_xlabel(metric.label(settings.headline_k))
            _style(axis)
        axes[row, 0].set_yticks(range(len(names)), [VARIANTS[model].title for model in names])
        axes[row, 0].set_ylim(len(names) - 0.4, -0.6)
    shown = {VARIANTS[model].kind for names in models.values() for model in names}
    _kind_legend(figure, {kind: title for kind, title in KIND_TITLES.items() if kind in shown})
    figure.suptitle(f"Accuracy on the test rows of {_plain(dataset.name)}")
    return figure


@_drawn
def plot_trade_off(table: pd.DataFrame, dataset: DatasetSettings, settings: EvaluationSettings) -> Figure:
    """Plot the core models' accuracy against novelty and coverage on the first split, for the first task that ranks."""
    split = table["split"].iloc[0]
    task = next((n for n, t in dataset.tasks.items() if t.kind == "retrieval"), next(iter(dataset.tasks)))
    figure, axes = _figure(2, 1, 12, 5.6)
    main = main_metric("retrieval")
    accuracy = _means(table, split, task, main.name, settings.headline_k)
    labelled: list[tuple[Axes, Points]] = []
    for axis, metric in zip(axes[0], ("novelty", "coverage"), strict=True):
        other = _means(table, split, task, metric, settings.headline_k)
        points: Points = []
        for model, value in accuracy.items():
            if not VARIANTS[model].core:
                continue  # The others stand so near to each other that names would cover each other.
            kind = VARIANTS[model].kind
            axis.plot(other[model], value, KIND_MARKERS[kind], color=KIND_COLOURS[kind], markersize=8)
            points.append((other[model], value, VARIANTS[model].title))
        labelled.append((axis, points))
        axis.set_xlabel(METRICS[metric].label(settings.headline_k))
        axis.set_ylabel(main.label(settings.headline_k))
        _style(axis)
    _kind_legend(figure, KINDS_TUNED)
    where = f"{_plain(dataset.name)}, task {_plain(task)}, {split} split, core models"
    figure.suptitle(f"What accuracy costs in novelty and coverage: {where}")
    _label_points(figure, labelled)
    return figure


@_drawn
def plot_cost(
    table: pd.DataFrame, costs: pd.DataFrame, dataset: DatasetSettings, settings: EvaluationSettings
) -> Figure:
    """Plot the core models' main accuracy metric of every task against the seconds of a fit, on the first split."""
    split = table["split"].iloc[0]
    seconds = costs.set_index("model")["fit_seconds"].clip(lower=1e-3)
    figure, axes = _figure(len(dataset.tasks), 1, 5.4 * len(dataset.tasks), 6.2)
    labelled: list[tuple[Axes, Points]] = []
    for axis, (name, task) in zip(axes[0], dataset.tasks.items(), strict=True):
        metric = main_metric(task.kind)
        points: Points = []
        for model, value in _means(table, split, name, metric.name, settings.headline_k).items():
            if not VARIANTS[model].core:
                continue
            kind = VARIANTS[model].kind
            axis.plot(seconds[model], value, KIND_MARKERS[kind], color=KIND_COLOURS[kind], markersize=8)
            points.append((float(seconds[model]), value, VARIANTS[model].title))
        axis.set_xscale("log")
        labelled.append((axis, points))
        axis.set_xlabel("CPU seconds of one fit (log scale)")
        axis.set_ylabel(metric.label(settings.headline_k))
        axis.set_title(_plain(name))
        _style(axis)
    _kind_legend(figure, KINDS_TUNED)
    figure.suptitle(f"Quality against cost: {_plain(dataset.name)}, {split} split, core models")
    _label_points(figure, labelled)
    return figure


VERDICT_COLOURS = {"helps": "#0072B2", "equivalent": "#BBBBBB", "undecided": "#F5F5F5", "harms": "#D55E00"}


def _strongest(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Keep, per model, split, task and metric, the baseline that stands best against it."""
    sign = comparisons["metric"].map(lambda name: METRICS[name].sign)
    order = comparisons.assign(lead=sign * comparisons["difference"]).sort_values("lead", kind="stable")
    return order.groupby(["split", "model", "task", "metric"], sort=False).head(1)


@_drawn
def plot_verdicts(comparisons: pd.DataFrame, dataset: DatasetSettings) -> Figure:
    """Plot the verdicts at a glance: models x tasks and metrics, with the relative difference to the control in %.

    Every multi-task model against the single-task control, or one of its own; what of that is training together
    (against the control with equal inputs) and what is more to read (that control against the other); every tuned model
    against the baseline that is strongest in that column (chosen after the fact, against the model); and the
    shared-bottom model against models with something changed. All comparisons stand in the table.
    """
    kinds = comparisons["control"].map(lambda name: VARIANTS[name].kind)
    based = comparisons["model"].map(lambda name: VARIANTS[name].based_on)
    own_control = comparisons["model"].map(lambda name: VARIANTS[name].own_control)
    equal = comparisons["control"].map(lambda name: VARIANTS[name].equal_inputs)
    more = comparisons["model"].map(lambda name: VARIANTS[name].equal_inputs)
    alone = (comparisons["control"] == "single_task") & ~more
    blocks = [
        ("against the single-task control", comparisons[alone], "model"),
        ("against the same system with one task each", comparisons[comparisons["control"] == own_control], "model"),
        ("training together: against the control with equal inputs", comparisons[equal], "model"),
        ("more to read: equal inputs against a task's own data", comparisons[more], "model"),
        ("against the strongest baseline", _strongest(comparisons[(kinds == "baseline") & based.isna()]), "model"),
        ("against the shared-bottom model", comparisons[comparisons["control"] == based], "model"),
        ("model against its ablation", comparisons[kinds == "ablation"], "control"),
    ]
    blocks = [(title, rows.assign(row=rows[name]), name) for title, rows, name in blocks if len(rows)]
    if not blocks:
        figure, axes = _figure(1, 1, 6.0, 2.0)
        axes[0, 0].axis("off")
        axes[0, 0].text(0.5, 0.5, "no multi-task model and control to compare", ha="center", va="center")
        return figure
    columns = comparisons[["task", "metric"]].drop_duplicates()
    splits = list(comparisons["split"].drop_duplicates())
    heights = [rows["row"].nunique() for _, rows, _ in blocks]
    width, height = 3.4 + 5.4 * len(splits), 2.0 + 0.27 * sum(heights) + 0.5 * len(blocks)
    figure, axes = _figure(len(splits), len(blocks), width, height, height_ratios=[h + 0.5 for h in heights])
    for line, (title, rows, _) in enumerate(blocks):
        names = [name for name in VARIANTS if name in set(rows["row"])]
        for place, split in enumerate(splits):
            axis = axes[line, place]
            cells = rows[rows["split"] == split].set_index(["row", "task", "metric"])
            for y, name in enumerate(names):
                for x, what in enumerate(columns.itertuples(index=False)):
                    if (name, *what) not in cells.index:
                        continue
                    verdict = str(cells.loc[(name, *what), "verdict"])
                    relative = float(cells.loc[(name, *what), "relative"])
                    axis.add_patch(
                        mpl.patches.Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=VERDICT_COLOURS[verdict])
                    )
                    colour = "w" if verdict in ("helps", "harms") else "k"
                    axis.text(x, y, f"{100 * relative:+.1f}", ha="center", va="center", fontsize=7, color=colour)
            axis.set_xlim(-0.5, len(columns) - 0.5)
            axis.set_ylim(len(names) - 0.5, -0.5)
            axis.xaxis.tick_top()
            axis.tick_params(length=0)
            labels = [f"{_plain(task)}\n{metric}" for task, metric in columns.to_numpy()] if line == 0 else []
            axis.set_xticks(range(len(columns)) if labels else [], labels, fontsize=7)
            titles = [VARIANTS[name].title for name in names] if place == 0 else []
            axis.set_yticks(range(len(names)) if titles else [], titles, fontsize=8)
            axis.spines[:].set_visible(False)
            axis.set_title(f"{title}, {split} split", fontsize=9, loc="left", pad=30 if line == 0 else 6)
            if not len(cells):
                axis.text(0.0, 0.0, "not run on this split", fontsize=8, color="#777777", va="center")
    handles = [mpl.patches.Patch(color=colour, label=name) for name, colour in VERDICT_COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Multi-task models on {_plain(dataset.name)}: verdicts, and difference in %")
    return figure


@_drawn
def plot_affinity(cosines: pd.DataFrame, gains: pd.DataFrame) -> Figure:
    """Plot how the tasks' gradients agree over training, and what each task gains from those it is trained with."""
    figure, axes = _figure(2, 1, 12, 4.4)
    left, right = axes[0]
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
    pairs, lines = list(cosines.groupby(["task", "other"], sort=False)), []
    for place, ((task, other), rows) in enumerate(pairs):
        by_epoch = rows.groupby("epoch")["cosine"].agg(["mean", "min", "max"])
        colour = colours[place % len(colours)]
        line = "-" if place < 6 else "--"
        label = _plain(f"{task}, {other}")
        lines += left.plot(by_epoch.index, by_epoch["mean"], color=colour, linestyle=line, label=label)
        left.fill_between(by_epoch.index, by_epoch["min"], by_epoch["max"], color=colour, alpha=0.15, linewidth=0)
    left.axhline(0.0, color="#555555", linewidth=0.8)
    if pairs:
        left.legend(handles=lines, frameon=False, fontsize=9)  # By itself it leaves out names that begin with _.
    left.set_xlabel("epoch")
    left.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    left.set_ylabel("cosine of the tasks' gradients")
    left.set_title("Gradients on shared parameters (mean and range over folds)")
    _style(left)
    grouped = list(gains.groupby(["task", "trained_with"], sort=False))
    for place, (_, rows) in enumerate(grouped):
        right.plot(100 * rows["gain"], np.full(len(rows), -place), "o", color="#0072B2", alpha=0.5, markersize=6)
        right.plot(100 * rows["gain"].mean(), -place, "|", color="#000000", markersize=14, markeredgewidth=2)
    right.axvline(0.0, color="#555555", linewidth=0.8)
    right.set_yticks(
        -np.arange(len(grouped)), [_plain(f"{task}  with  {others}") for (task, others), _ in grouped], fontsize=9
    )
    right.set_xlabel("decrease of the error on held-out folds, % of the task alone")
    right.set_title("What a task gains from others (points: folds, bar: mean)")
    _style(right)
    return figure


def _label_points(figure: Figure, labelled: list[tuple[Axes, Points]]) -> None:
    """Write each point's name beside it, moving names that would overlap up or down.

    Args:
        figure: The figure, complete but for the names.
        labelled: Axes with their points (x, y, name).
    """
    for axis, _ in labelled:
        axis.margins(x=0.12, y=0.08)
    figure.draw_without_rendering()  # Settles the layout, so that data coordinates have their place in the picture.
    size, dpi = 8.0, figure.dpi / 72
    marker, gap = 5 * dpi, 7 * dpi
    for axis, points in labelled:
        pixels = [axis.transData.transform((x, y)) for x, y, _ in points]
        taken = [(px - marker, py - marker, px + marker, py + marker) for px, py in pixels]
        inside = axis.get_window_extent()
        for (x, y, text), (px, py) in sorted(zip(points, pixels, strict=True), key=lambda both: -both[0][1]):
            width, height = len(text) * size * 0.62 * dpi, size * 1.25 * dpi
            # Beside the point, on either side, or as little above or below as there is room.
            places = itertools.product(range(40), (px + gap, px - gap - width))
            for step, left in places:
                shift = (step + 1) // 2 * height * (1 if step % 2 else -1)
                low = py + shift - height / 2
                fits = inside.x0 <= left and left + width <= inside.x1
                fits = fits and inside.y0 <= low and low + height <= inside.y1
                if fits and not any(
                    left < other[2] and other[0] < left + width and low < other[3] and other[1] < low + height
                    for other in taken
                ):
                    break
            to_right = left > px
            taken.append((left, low, left + width, low + height))
            axis.annotate(
                text,
                (x, y),
                xytext=(7 if to_right else -7, shift / dpi),
                textcoords="offset points",
                fontsize=size,
                ha="left" if to_right else "right",
                va="center",
                arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.5} if shift else None,
            )
