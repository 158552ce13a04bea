"""Figures of the evaluation; their style is that of ``foundation/figure_style.py``."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.lines
import matplotlib.patches
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.evaluation.groups import THIRDS, overall
from multitask_recommender.evaluation.metric_records import METRICS, ListMetric, RowMetric, main_metric
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.foundation.figure_style import (
    CYCLE,
    GREY,
    INK,
    MARKERS,
    SCREEN,
    SEQUENTIAL,
    VERDICT_COLOURS,
    VERDICT_SIGNS,
    WIDTH,
    Points,
    finished,
    footnote,
    intervals,
    label_lines,
    label_points,
    note,
    panels,
    plain,
    signed,
    styled,
)
from multitask_recommender.models.variants import VARIANTS, Kind

KIND_COLOURS: dict[Kind, str] = {
    "baseline": "#6E6E6E",
    "single_task": "#B86E00",
    "multi_task": "#0072B2",
    "ablation": "#00795A",
}
"""Darker than the palette where a colour is also that of letters."""
KIND_MARKERS: dict[Kind, str] = {"baseline": "s", "single_task": "^", "multi_task": "o", "ablation": "D"}
KIND_TITLES: dict[Kind, str] = {
    "baseline": "baselines",
    "single_task": "single-task controls",
    "multi_task": "multi-task models",
    "ablation": "ablations",
}
_CORE = [name for name, variant in VARIANTS.items() if variant.core]
_CELL = ["against", "split", "model", "task"]
_INTERVAL = "95 % interval over users and trainings"


def _kind(name: str) -> Kind:
    return VARIANTS[name].kind


def _in_order(names: Iterable[str]) -> list[str]:
    """Return models in the order of the study, by kind."""
    there = set(names)
    kinds = list(KIND_TITLES)
    return sorted((name for name in VARIANTS if name in there), key=lambda name: kinds.index(_kind(name)))


def _axis_name(metric: RowMetric | ListMetric, k: int) -> str:
    """Return the name of a metric as intervals are made of it: AUC is the mean of the users' own."""
    return metric.label(k).replace("AUC", "AUC, mean over users") if metric.by_user is not None else metric.label(k)


def _own(estimates: pd.DataFrame, split: str, task: str, metric: str) -> pd.DataFrame:
    """Return the rows of a cell of the study, by model."""
    rows = (estimates["split"] == split) & (estimates["task"] == task) & (estimates["metric"] == metric)
    return estimates[rows].set_index("model")


def _best(values: pd.Series, metric: RowMetric | ListMetric) -> str:
    return str((metric.sign * values).idxmax())


def _colour_by_kind(axis: Axes, names: Sequence[str]) -> None:
    """Write the models' names beside the rows of an axis, in the colours of their kinds."""
    axis.set_yticks(range(len(names)), [VARIANTS[name].title for name in names])
    for label, name in zip(axis.get_yticklabels(), names, strict=True):
        label.set_color(KIND_COLOURS[_kind(name)])
    axis.tick_params(axis="y", length=0)


def _kinds_in_words(names: Iterable[str]) -> str:
    """Say which mark stands for which kind."""
    signs = {"s": "■", "^": "▲", "o": "●", "D": "◆"}
    kinds = dict.fromkeys(_kind(name) for name in _in_order(names))
    return "   ".join(f"{signs[KIND_MARKERS[kind]]} {KIND_TITLES[kind]}" for kind in kinds)


def _kind_key(figure: Figure, names: Iterable[str]) -> None:
    """Say below a figure which mark and colour stand for which kind of model."""
    kinds = dict.fromkeys(_kind(name) for name in _in_order(names))
    handles = [
        mpl.lines.Line2D([], [], linestyle="", marker=KIND_MARKERS[kind], color=KIND_COLOURS[kind], markeredgewidth=0)
        for kind in kinds
    ]
    labels = [KIND_TITLES[kind] for kind in kinds]
    key = figure.legend(handles, labels, loc="outside lower left", ncols=len(handles), handletextpad=0.2)
    for text, kind in zip(key.get_texts(), kinds, strict=True):
        text.set_color(KIND_COLOURS[kind])


def _draw_accuracy(estimates: pd.DataFrame, dataset: DatasetSettings, k: int, title: str) -> Figure:
    names = _in_order(estimates["model"])
    splits = list(dict.fromkeys(estimates["split"]))
    tasks = {name: main_metric(task.kind) for name, task in dataset.tasks.items()}
    cells = [(task, split) for task in tasks for split in splits]
    columns = len(cells) if len(cells) <= 9 else len(splits)
    lines = -(-len(cells) // columns)
    # As high as a screen where the core models are many; an appendix may be longer.
    row = 0.235 if len(names) > len(_CORE) or lines > 1 else min(0.235, (SCREEN - 1.6) / len(names))
    figure, axes = panels(columns, lines, (row * len(names) + 1.0) * lines + 0.6, sharey=True)
    told = []
    for axis, (task, split) in zip(axes.flat, cells, strict=True):
        metric, rows = tasks[task], _own(estimates, split, task, tasks[task].name)
        for kind in KIND_TITLES:
            some = [name for name in names if _kind(name) == kind and name in rows.index]
            own, places = rows.reindex(some), [names.index(name) for name in some]
            marks = (KIND_COLOURS[kind], KIND_MARKERS[kind])
            intervals(axis, own["value"], own["ci_low"], own["ci_high"], places, *marks, markersize=4.5)
        if len(rows):
            best = _best(rows["value"], metric)
            value = float(rows["value"][best])
            axis.axvline(value, color=INK, linewidth=0.7, linestyle=":")
            axis.set_title(f"\n{split}\nbest {value:.3f}", fontsize=8.5)
            told.append(f"{task}, {split} split: best is {VARIANTS[best].title} with {metric.title} {value:.4f}")
        name = f"{metric.title}@{k}" if metric.of_lists else metric.title
        name = f"{plain(task)} ({name}, {'higher' if metric.sign > 0 else 'lower'} is better)"
        if split == splits[0] or columns == len(splits):
            place: Any = {"xycoords": "axes fraction", "xytext": (0, 27), "textcoords": "offset points"}
            heading = axis.annotate(name, (0, 1), **place, fontsize=9.5, fontweight="bold", annotation_clip=False)
            heading.set_in_layout(False)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(3 if columns > 5 else 5, prune="both"))
        axis.tick_params(axis="x", labelsize=8)
        axis.set_ylim(len(names) - 0.4, -0.6)
        for first, second in itertools.pairwise(names):
            if _kind(first) != _kind(second):
                axis.axhline(names.index(second) - 0.5, color="#8A8A8A", linewidth=0.7)
    for axis in axes[:, 0]:
        _colour_by_kind(axis, names)
    _kind_key(figure, names)
    words = f"Every model's main metric per task and split, with {_INTERVAL}. {'; '.join(told)}."
    footnote(figure, f"bars: {_INTERVAL}; dotted: the best")
    return finished(figure, f"{title} {dataset.name}", words)


@styled
def plot_accuracy(estimates: pd.DataFrame, dataset: DatasetSettings, settings: EvaluationSettings) -> Figure:
    """Plot the main accuracy metric of every task and split with its interval, one line a core model.

    Args:
        estimates: The metrics with intervals.
        dataset: The tasks.
        settings: The headline k.
    """
    core = estimates[estimates["model"].map(lambda name: VARIANTS[name].core)]
    if not len(core):
        return note("No core model was measured.", f"Accuracy on the test rows of {dataset.name}")
    return _draw_accuracy(core, dataset, settings.headline_k, "Accuracy on the test rows of")


@styled
def plot_all_accuracy(estimates: pd.DataFrame, dataset: DatasetSettings, settings: EvaluationSettings) -> Figure:
    """Plot the same for all models: an appendix, longer than a screen where many were run."""
    if not len(estimates):
        return note("No model was measured.", f"Accuracy of all models on {dataset.name}")
    return _draw_accuracy(estimates, dataset, settings.headline_k, "Appendix: accuracy of all models on")


def _frontier(points: dict[str, tuple[float, float]]) -> set[str]:
    """Return the names of the points (x, y) that no other beats in both; the more of both the better."""
    return {
        name
        for name, (x, y) in points.items()
        if not any((a >= x and b >= y and (a > x or b > y)) for a, b in points.values())
    }


def _distinct(points: dict[str, tuple[float, float]], names: Iterable[str]) -> set[str]:
    """Return one name of those whose points are the same: another would cover it."""
    return set({points[name]: name for name in reversed([name for name in points if name in set(names)])}.values())


def _shown_by_name(points: dict[str, tuple[float, float]]) -> set[str]:
    """Return the models that a crowded figure names: the best compromises, and those that the study is about."""
    return _distinct(points, _frontier(points)) | {name for name in points if _kind(name) != "baseline"}


@styled
def plot_trade_off(
    estimates: pd.DataFrame, table: pd.DataFrame, dataset: DatasetSettings, settings: EvaluationSettings
) -> Figure:
    """Plot the core models' accuracy of lists against novelty and coverage on the first split, one line a task.

    Args:
        estimates: The metrics with intervals.
        table: All metrics, for the coverage, which is one of all lists together: its bar is the range over trainings.
        dataset: The tasks.
        settings: The headline k.
    """
    title = f"What accuracy costs in novelty and coverage: {dataset.name}"
    metric, k = main_metric("retrieval"), settings.headline_k
    core = estimates[estimates["model"].map(lambda name: VARIANTS[name].core)]
    split = next(iter(dict.fromkeys(core["split"])), "")
    task = next((n for n, t in dataset.tasks.items() if t.kind == "retrieval"), next(iter(dataset.tasks)))
    accuracy = _own(core, split, task, metric.name)
    if not len(accuracy):
        return note("No lists were measured.", title)
    seeds = overall(table)
    seeds = seeds[(seeds["split"] == split) & (seeds["task"] == task) & (seeds["metric"] == "coverage")]
    by_model = seeds[seeds["k"] == k].groupby("model")["value"]
    coverage = pd.DataFrame({"value": by_model.mean(), "ci_low": by_model.min(), "ci_high": by_model.max()})
    figure, axes = panels(2, 1, 6.4, sharey=True)
    labelled: list[tuple[Axes, Points]] = []
    told = []
    for axis, name in zip(axes[0], ("novelty", "coverage"), strict=True):
        other = _own(core, split, task, name) if name == "novelty" else coverage
        points = {
            model: (float(other["value"][model]), float(accuracy["value"][model]))
            for model in _in_order(accuracy.index)
            if model in other.index
        }
        shown = _shown_by_name(points)
        for model, (x, y) in points.items():
            colour = KIND_COLOURS[_kind(model)]
            axis.hlines(y, float(other["ci_low"][model]), float(other["ci_high"][model]), color=colour, alpha=0.6)
            low, high = ([float(accuracy[end][model])] for end in ("ci_low", "ci_high"))
            intervals(axis, [y], low, high, [x], colour, KIND_MARKERS[_kind(model)], across=False)
        labelled.append((axis, [(x, y, VARIANTS[m].title if m in shown else "") for m, (x, y) in points.items()]))
        axis.set_xlabel(METRICS[name].label(k))
        best = sorted(_frontier(points), key=lambda m: -points[m][1])
        told.append(f"No model beats in both accuracy and {name}: {', '.join(VARIANTS[m].title for m in best)}")
    axes[0, 0].set_ylabel(metric.label(k))
    _kind_key(figure, accuracy.index)
    footnote(figure, "bars: 95 % intervals; of coverage: range over trainings")
    title = f"{title}, task {task}, {split} split"
    label_points(figure, labelled, {VARIANTS[name].title: KIND_COLOURS[_kind(name)] for name in accuracy.index})
    return finished(figure, title, f"{metric.title}@{k} of the core models' lists. {'. '.join(told)}.")


@styled
def plot_cost(
    estimates: pd.DataFrame, costs: pd.DataFrame, dataset: DatasetSettings, settings: EvaluationSettings
) -> Figure:
    """Plot the core models' main accuracy metric of every task against the seconds of a fit, on the first split.

    Args:
        estimates: The metrics with intervals.
        costs: Seconds by model.
        dataset: The tasks.
        settings: The headline k.
    """
    title = f"Quality against cost: {dataset.name}"
    core = estimates[estimates["model"].map(lambda name: VARIANTS[name].core)]
    split = next(iter(dict.fromkeys(core["split"])), None)
    if split is None or not len(costs):
        return note("No core model was measured.", title)
    seconds = costs.set_index("model")["fit_seconds"].clip(lower=1e-3)
    columns = min(len(dataset.tasks), 3)
    lines = -(-len(dataset.tasks) // columns)
    figure, axes = panels(columns, lines, (5.4 if lines == 1 else 3.6) * lines + 0.6, sharex=True)
    labelled: list[tuple[Axes, Points]] = []
    told = []
    for axis in axes.flat[len(dataset.tasks) :]:
        axis.set_visible(False)
    for axis, (name, task) in zip(axes.flat, dataset.tasks.items(), strict=False):
        metric = main_metric(task.kind)
        rows = _own(core, split, name, metric.name)
        rows = rows[rows.index.isin(seconds.index)]
        points = {
            model: (-np.log(seconds[model]), metric.sign * float(rows.loc[model, "value"])) for model in rows.index
        }
        shown = _distinct(points, _frontier(points)) | {m for m in points if _kind(m) == "multi_task"}
        for model in _in_order(rows.index):
            own = rows.loc[[model]]
            marks = (KIND_COLOURS[_kind(model)], KIND_MARKERS[_kind(model)])
            intervals(axis, own["value"], own["ci_low"], own["ci_high"], [seconds[model]], *marks, across=False)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        labels = [
            (float(seconds[m]), float(rows.loc[m, "value"]), VARIANTS[m].title if m in shown else "") for m in points
        ]
        labelled.append((axis, labels))
        if metric.sign < 0:
            axis.invert_yaxis()
        axis.set_ylabel(_axis_name(metric, settings.headline_k))
        axis.set_title(f"{plain(name)} (up is better)")
        if points:
            best = _best(rows["value"], metric)
            told.append(f"{name}: the best, {VARIANTS[best].title}, takes {seconds[best]:.3g} seconds")
    for axis in axes[-1]:
        axis.set_xlabel("CPU seconds of one fit (logarithmic)")
    _kind_key(figure, core["model"])
    footnote(figure, "named: multi-task models, and what nothing faster beats")
    label_points(figure, labelled, {VARIANTS[name].title: KIND_COLOURS[_kind(name)] for name in set(core["model"])})
    return finished(figure, f"{title}, {split} split", f"Core models, with {_INTERVAL}. {'; '.join(told)}.")


def _strongest(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Keep, per model, split, task and metric, the baseline that stands best against it."""
    sign = comparisons["metric"].map(lambda name: METRICS[name].sign)
    order = comparisons.assign(lead=sign * comparisons["difference"]).sort_values("lead", kind="stable")
    return order.groupby(["split", "model", "task", "metric"], sort=False).head(1)


def _verdict_key(figure: Figure, words: str) -> None:
    handles = [
        mpl.patches.Patch(facecolor=colour, edgecolor="#999999", linewidth=0.5) for colour in VERDICT_COLOURS.values()
    ]
    labels = [f"{VERDICT_SIGNS[name]} {name}" for name in VERDICT_COLOURS]
    figure.legend(handles, labels, loc="outside lower left", ncols=4)
    footnote(figure, words)


def _cell(axis: Axes, x: float, y: float, verdict: str, text: str, size: float, below: str = "") -> None:
    """Draw one verdict of a map, with its text and a smaller one below."""
    axis.add_patch(
        mpl.patches.Rectangle((x - 0.485, y - 0.46), 0.97, 0.92, color=VERDICT_COLOURS[verdict], linewidth=0)
    )
    colour = "w" if verdict in ("helps", "harms") else INK
    place: Any = {"ha": "center", "color": colour}
    axis.text(x, y - (0.13 if below else 0), text, va="center", fontsize=size, **place)
    if below:
        axis.text(x, y + 0.25, below, va="center", fontsize=size - 1.5, **place)


def _as_map(axis: Axes, columns: int, rows: float) -> None:
    axis.set_xlim(-0.5, columns - 0.5)
    axis.set_ylim(rows - 0.5, -0.5)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def _gain(row: Mapping[Hashable, Any]) -> tuple[float, float, float]:
    """Return the improvement over the control in % with its interval; positive is better."""
    sign, relative = METRICS[row["metric"]].sign, float(row["relative"])
    base = float(row["difference"]) / relative if relative else np.nan
    low, high = sorted(100 * sign * end / base if base else np.nan for end in (row["ci_low"], row["ci_high"]))
    return 100 * sign * relative, low, high


@styled
def plot_verdicts(comparisons: pd.DataFrame, dataset: DatasetSettings) -> Figure:
    """Plot the answer of the study on one screen: the primary family of comparisons, declared before measuring.

    Every core multi-task model on every split and task by its main metric: against its own single-task control, and
    against the baseline that is best by this metric. A cell says the improvement in %, its 95 % interval and the
    verdict after the correction for the whole family.
    """
    title = f"Does multi-task learning help on {dataset.name}?"
    shown = comparisons[comparisons["primary_verdict"].notna()]
    if not len(shown):
        return note("No core multi-task model was measured beside a control or a baseline.", title)
    against = shown["control"].map(lambda name: "baseline" if _kind(name) == "baseline" else "control")
    shown = shown.assign(against=against)
    models, splits = _in_order(shown["model"]), list(dict.fromkeys(shown["split"]))
    mains = {name: main_metric(task.kind) for name, task in dataset.tasks.items()}
    columns = [(name, metric) for name, metric in mains.items() if (shown["task"] == name).any()]
    rows = [(split, model) for split in splits for model in models]
    rows = [(s, m) for s, m in rows if ((shown["split"] == s) & (shown["model"] == m)).any()]
    blocks = [("control", "against its single-task control"), ("baseline", "against the best baseline")]
    blocks = [(name, text) for name, text in blocks if (shown["against"] == name).any()]
    gap = 0.55  # Room between splits, in rows, for the names of their best baselines.
    figure, axes = panels(len(blocks), 1, 0.37 * (len(rows) + gap * len(splits)) + 1.55)
    cells = {tuple(row[name] for name in _CELL): row for row in shown.to_dict("records")}
    places = {row: number + gap * (splits.index(row[0]) + 1) for number, row in enumerate(rows)}
    for block, (against_what, text) in enumerate(blocks):
        axis = axes[0, block]
        for (split, model), y in places.items():
            for x, (task, _) in enumerate(columns):
                row = cells.get((against_what, split, model, task))
                if row is None:
                    axis.text(x, y, "·", ha="center", va="center", color=GREY)
                    continue
                gain, low, high = _gain(row)
                verdict = str(row["primary_verdict"])
                below = f"[{signed(low)}, {signed(high)}]" if np.isfinite(low) else "no interval"
                _cell(axis, x, y, verdict, f"{VERDICT_SIGNS[verdict]} {signed(gain)} %", 9, below)
        if against_what == "baseline":
            for split in splits:
                top = min(y for (name, _), y in places.items() if name == split)
                for x, (task, _) in enumerate(columns):
                    mine = shown[(shown["against"] == "baseline") & (shown["split"] == split) & (shown["task"] == task)]
                    rivals = " / ".join(VARIANTS[name].title for name in dict.fromkeys(mine["control"]))
                    axis.text(x, top - 0.58, rivals, ha="center", va="bottom", fontsize=8, style="italic")
        _as_map(axis, len(columns), max(places.values()) + 1)
        axis.set_xticks(range(len(columns)), [f"{plain(task)}\n{metric.title}" for task, metric in columns])
        axis.set_title(text, fontsize=10, pad=8)
        axis.set_yticks(list(places.values()), [VARIANTS[model].title for _, model in places] if block == 0 else [])
    for split in splits:
        # Beside the names of the best baselines, so that there is room for it whatever number of models there is.
        axes[0, 0].annotate(
            f"{split} split",
            (0, min(y for (name, _), y in places.items() if name == split) - 0.58),
            xycoords=("axes fraction", "data"),
            xytext=(-5, 0),
            textcoords="offset points",
            ha="right",
            va="bottom",
            color=GREY,
            fontsize=9,
        )
    _verdict_key(figure, "improvement in %, [95 % interval], verdict after Holm's correction of all cells")
    words = []
    for name, text in blocks:
        counts = shown.loc[shown["against"] == name, "primary_verdict"].value_counts()
        words.append(f"{text}: " + ", ".join(f"{counts.get(v, 0)} {v}" for v in VERDICT_COLOURS))
    words.append(f"{len(shown)} comparisons by the main metrics, over {len(splits)} splits")
    return finished(figure, title, "; ".join(words) + ".")


@styled
def plot_all_verdicts(comparisons: pd.DataFrame, dataset: DatasetSettings) -> Figure:
    """Plot all verdicts of a kind, an appendix: models x tasks and metrics, with the improvement in %.

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
        ("against the model that it changes", comparisons[comparisons["control"] == based], "model"),
        ("model against its ablation", comparisons[kinds == "ablation"], "control"),
    ]
    blocks = [(title, rows.assign(row=rows[name]), name) for title, rows, name in blocks if len(rows)]
    title = f"Appendix: all verdicts on {dataset.name}"
    if not blocks:
        return note("No multi-task model and control to compare.", title)
    columns = comparisons[["task", "metric"]].drop_duplicates()
    splits = list(comparisons["split"].drop_duplicates())
    heights = [rows["row"].nunique() for _, rows, _ in blocks]
    width, height = max(2.6 + 0.55 * len(columns) * len(splits), WIDTH), 2.0 + 0.27 * sum(heights) + 0.5 * len(blocks)
    figure, axes = panels(len(splits), len(blocks), height, width, height_ratios=[h + 0.5 for h in heights])
    for line, (text, rows, _) in enumerate(blocks):
        names = [name for name in VARIANTS if name in set(rows["row"])]
        for place, split in enumerate(splits):
            axis = axes[line, place]
            own = rows[rows["split"] == split].to_dict("records")
            cells = {(cell["row"], cell["task"], cell["metric"]): cell for cell in own}
            for y, name in enumerate(names):
                for x, (task, metric) in enumerate(columns.to_numpy()):
                    if (cell := cells.get((name, task, metric))) is not None:
                        verdict, gain = str(cell["verdict"]), METRICS[metric].sign * 100 * cell["relative"]
                        _cell(axis, x, y, verdict, f"{VERDICT_SIGNS[verdict]} {signed(gain)}", 7.5)
            _as_map(axis, len(columns), len(names))
            labels = [f"{plain(task)}\n{metric}" for task, metric in columns.to_numpy()] if line == 0 else []
            axis.set_xticks(range(len(columns)) if labels else [], labels, fontsize=7.5)
            titles = [VARIANTS[name].title for name in names] if place == 0 else []
            axis.set_yticks(range(len(names)) if titles else [], titles, fontsize=8.5)
            axis.set_title(f"{text}, {split} split", fontsize=9, pad=30 if line == 0 else 6)
            if not len(cells):
                axis.text(0.0, 0.0, "not run on this split", fontsize=8.5, color=GREY, va="center")
    _verdict_key(figure, "improvement over the control in %; intervals stand in comparisons.csv")
    counts = comparisons["verdict"].value_counts()
    told = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICT_COLOURS)
    return finished(figure, title, f"Of {len(comparisons)} comparisons: {told}.")


@styled
def plot_affinity(cosines: pd.DataFrame, gains: pd.DataFrame) -> Figure:
    """Plot how the tasks' gradients agree over training, and what each task gains from those it is trained with."""
    title = "Do the tasks get along?"
    if not len(cosines) and not len(gains):
        return note("Affinity was not measured: it needs two tasks, and the shared-bottom model.", title)
    grouped = list(gains.groupby(["task", "trained_with"], sort=False))
    figure, axes = panels(2, 1, max(3.6, 0.3 * len(grouped) + 1.6), width_ratios=[1.0, 1.15])
    left, right = axes[0]
    pairs, ends, told = list(cosines.groupby(["task", "other"], sort=False)), [], []
    for place, ((task, other), rows) in enumerate(pairs):
        by_epoch = rows.groupby("epoch")["cosine"].agg(["mean", "min", "max"])
        colour, line = CYCLE[place % len(CYCLE)], "-" if place < len(CYCLE) else "--"
        left.plot(by_epoch.index, by_epoch["mean"], color=colour, linestyle=line)
        left.fill_between(by_epoch.index, by_epoch["min"], by_epoch["max"], color=colour, alpha=0.15, linewidth=0)
        ends.append((float(by_epoch["mean"].iloc[-1]), f"{task}, {other}", colour))
        told.append(f"{task} and {other} end at cosine {by_epoch['mean'].iloc[-1]:.2f}")
    left.axhline(0.0, color="#555555", linewidth=0.8)
    left.set_xlabel("epoch")
    left.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    left.set_ylabel("cosine of the tasks' gradients")
    left.set_title("Gradients on shared parameters\n(line: mean, band: range over folds)")
    label_lines(left, ends)
    for place, (_, rows) in enumerate(grouped):
        mean = 100 * rows["gain"].mean()
        right.hlines(-place, 100 * rows["gain"].min(), 100 * rows["gain"].max(), color="#99C7E0", linewidth=4)
        right.plot(100 * rows["gain"], np.full(len(rows), -place), "o", color=CYCLE[0], alpha=0.6, markersize=4)
        right.plot(mean, -place, "|", color=INK, markersize=13, markeredgewidth=2)
    right.axvline(0.0, color="#555555", linewidth=0.8)
    right.set_yticks(-np.arange(len(grouped)), [plain(f"{task}  with  {others}") for (task, others), _ in grouped])
    right.set_xlabel("decrease of the error on held-out folds, % (right is better)")
    right.set_title("What a task gains from others\n(points: folds, bar: mean)")
    for (task, others), rows in grouped:
        told.append(f"{task} gains {100 * rows['gain'].mean():+.1f} % with {others}")
    return finished(figure, title, "; ".join(told) + ".")


@styled
def plot_experts(utilisation: pd.DataFrame) -> Figure:
    """Plot how much weight the gate of each task gives each expert on the first split, per model and side.

    Args:
        utilisation: The use of the experts (model, split, seed, side, task, expert, weight, spread, ...).
    """
    title = "Gates and experts at work"
    if not len(utilisation):
        return note("No model with gates was run: 'study.core_only=false' adds MMoE, CGC and PLE.", title)
    split = utilisation["split"].iloc[0]
    own = utilisation[utilisation["split"] == split]
    cells = [(model, side) for model, side in own[["model", "side"]].drop_duplicates().itertuples(index=False)]
    columns = min(len(cells), 4)
    lines = -(-len(cells) // columns)
    tasks = list(dict.fromkeys(own["task"]))
    most = max(0.5, float(own["weight"].max()))
    figure, axes = panels(columns, lines, min(lines * (0.36 * len(tasks) + 1.35) + 0.6, SCREEN))
    for axis in axes.flat[len(cells) :]:
        axis.set_visible(False)
    told = []
    for place, (axis, (model, side)) in enumerate(zip(axes.flat, cells, strict=False)):
        rows = own[(own["model"] == model) & (own["side"] == side)]
        spread = rows.groupby(["task", "expert"], sort=False)["spread"].mean()
        experts = list(dict.fromkeys(rows["expert"]))
        weights = rows.pivot_table(index="task", columns="expert", values="weight").reindex(tasks)[experts]
        image = axis.imshow(weights, cmap=SEQUENTIAL, vmin=0, vmax=most, aspect="auto")
        size = 8.5 if len(experts) <= 6 else 7
        for y, task in enumerate(tasks):
            for x, expert in enumerate(experts):
                weight = weights.iloc[y, x]
                if np.isfinite(weight):
                    text = f"{weight:.2f}\n±{spread[task, expert]:.2f}"
                    axis.text(
                        x, y, text, ha="center", va="center", fontsize=size, color="w" if weight > 0.6 * most else INK
                    )
        axis.grid(visible=False)
        axis.set_xticks(range(len(experts)), [plain(name) for name in experts], rotation=30, ha="right", fontsize=8)
        axis.set_yticks(range(len(tasks)), [plain(name) for name in tasks] if place % columns == 0 else [])
        axis.set_title(f"{VARIANTS[model].title}, {side}s")
        collapsed = rows.loc[rows["collapsed"].astype(bool), "expert"].nunique()
        equal = np.nanmax(np.abs(weights.to_numpy() - 1.0 / np.isfinite(weights).sum(axis=1).to_numpy()[:, None]))
        state = f"{collapsed} collapsed" if collapsed else "none collapsed"
        told.append(
            f"{VARIANTS[model].title}, {side} side: {len(experts)} experts, {state}, largest distance of a gate's "
            f"weight from an equal share {equal:.2f}"
        )
    figure.colorbar(image, ax=list(axes.flat), label="mean gate weight", shrink=0.8)
    footnote(figure, f"±: standard deviation over users or items; {split} split", room=True)
    return finished(figure, title, "; ".join(told) + ".")


@styled
def plot_learning_curves(curves: pd.DataFrame, dataset: DatasetSettings) -> Figure:
    """Plot the losses of the core models in training on the first split, over that of the first epoch.

    Args:
        curves: Learning curves (model, split, seed, epoch, loss, value).
        dataset: The tasks, whose losses are drawn.
    """
    title = f"Training on {dataset.name}"
    own = curves[curves["loss"].isin(list(dataset.tasks))]
    if not len(own):
        return note("No core model is trained in epochs.", title)
    own = own[own["split"] == own["split"].iloc[0]]
    names = [name for name in VARIANTS if name in set(own["model"])]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, axes = panels(columns, lines, 2.35 * lines + 0.6)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    tasks = list(dataset.tasks)
    colours = {task: CYCLE[place % len(CYCLE)] for place, task in enumerate(tasks)}
    told = []
    for place, (axis, name) in enumerate(zip(axes.flat, names, strict=False)):
        ends = []
        for task in tasks:
            part = own[(own["model"] == name) & (own["loss"] == task)]
            if not len(part):
                continue
            wide = part.pivot_table(index="epoch", columns="seed", values="value")
            wide = wide / wide.iloc[0]
            axis.plot(wide.index, wide.mean(axis=1), color=colours[task])
            axis.fill_between(
                wide.index, wide.min(axis=1), wide.max(axis=1), color=colours[task], alpha=0.2, linewidth=0
            )
            ends.append((float(wide.mean(axis=1).iloc[-1]), task, colours[task]))
        label_lines(axis, ends, gap=0.11)
        axis.set_title(VARIANTS[name].title, fontsize=9.5, color=KIND_COLOURS[_kind(name)])
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True))
        if place % columns == 0:
            axis.set_ylabel("loss / loss of epoch 1")
        if place + columns >= len(names):
            axis.set_xlabel("epoch")
        last = ", ".join(f"{task} {value:.2f}" for value, task, _ in ends)
        told.append(f"{VARIANTS[name].title}: {last}")
    footnote(figure, "line: mean, band: range over trainings", room=True)
    words = f"Loss of the last epoch over that of the first, by model and task. {'; '.join(told)}."
    return finished(figure, f"{title}, {own['split'].iloc[0]} split", words)


@styled
def plot_group_gains(table: pd.DataFrame, dataset: DatasetSettings) -> Figure:
    """Plot who gains and who pays: gain over the single-task control in thirds of the users by activity.

    Args:
        table: The comparisons in groups of users; those of the first split are drawn.
        dataset: The tasks.
    """
    title = f"Who gains, who pays on {dataset.name}?"
    if not len(table):
        return note("No core multi-task model was measured beside its control.", title)
    split = table["split"].iloc[0]
    own = table[table["split"] == split]
    tasks = [name for name in dataset.tasks if name in set(own["task"])]
    models = [name for name in VARIANTS if name in set(own["model"])]
    figure, axes = panels(len(tasks), 1, 0.32 * len(models) * 3 + 1.9, sharey=True)
    colours = dict(zip(THIRDS, ("#56B4E9", "#0072B2", "#003B5C"), strict=True))
    told = []
    for axis, task in zip(axes[0], tasks, strict=True):
        for number, group in enumerate(THIRDS):
            rows = own[(own["task"] == task) & (own["group"] == group)].set_index("model").reindex(models)
            places = np.arange(len(models)) + 0.24 * (number - 1)
            marks = (colours[group], MARKERS[number])
            intervals(axis, 100 * rows["gain"], 100 * rows["ci_low"], 100 * rows["ci_high"], places, *marks)
            better = int((rows["ci_low"] > 0).sum())
            worse = int((rows["ci_high"] < 0).sum())
            told.append(f"{task}, {group} activity: {better} of {len(models)} models gain, {worse} lose")
        axis.axvline(0, color="#555555", linewidth=0.8)
        metric = main_metric(dataset.tasks[task].kind)
        axis.set_title(f"{plain(task)} ({metric.title})")
        axis.set_xlabel("gain over the control, % (right is better)")
        axis.set_ylim(len(models) - 0.5, -0.5)
    _colour_by_kind(axes[0, 0], models)
    counts = own.groupby("group")["users"].max()
    labels = {group: f"{group} ({counts.get(group, 0):,} users)" for group in THIRDS}
    handles = [
        mpl.lines.Line2D([], [], color=colours[group], marker=MARKERS[number], label=labels[group])
        for number, group in enumerate(THIRDS)
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, title="users by number of training rows")
    footnote(figure, f"bars: {_INTERVAL}; {split} split")
    return finished(figure, title, f"{split} split, intervals that exclude zero. {'; '.join(told)}.")
