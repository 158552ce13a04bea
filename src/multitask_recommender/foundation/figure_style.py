"""The style of all figures: sizes, colours, labels beside what they name, and what a figure says in words.

Colours are of the Okabe-Ito palette (Okabe and Ito, Color Universal Design, 2008), which colour-blind readers can tell
apart. A figure is at most as wide as a page, so that its letters are read at the size they were drawn.
"""

from __future__ import annotations

import functools
import itertools
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.font_manager
import matplotlib.patheffects
import matplotlib.rcsetup
import matplotlib.text
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY, INK = "#CC79A7", "#56B4E9", "#F0E442", "#7F7F7F", "#222222"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Colours of things without an order, in the order in which they are given out."""
MARKERS = ("o", "^", "s", "D", "v", "P")
"""Marks that go with them, for readers who see no colour."""
SEQUENTIAL, DIVERGING = "Blues", "PuOr_r"
WIDTH, SCREEN = 11.0, 7.8
"""Inches: the width of a figure, and the height up to which it fits on one screen at 96 dots an inch."""
HELPS, HARMS, SAME, OPEN = BLUE, VERMILION, "#C8C8C8", "#F3F3F3"
VERDICT_COLOURS = {"helps": HELPS, "equivalent": SAME, "undecided": OPEN, "harms": HARMS}
VERDICT_SIGNS = {"helps": "▲", "equivalent": "=", "undecided": "?", "harms": "▼"}
"""What tells verdicts apart without colours."""
Points = list[tuple[float, float, str]]
P = ParamSpec("P")
_FONT = "DejaVu Sans"  # Comes with matplotlib.
_PARAMETERS: Any = {
    "font.family": [_FONT],
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": "#8A8A8A",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": matplotlib.rcsetup.cycler(color=CYCLE),
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": "#8A8A8A",
    "ytick.color": "#8A8A8A",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
logger = logging.getLogger(__name__)


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw a figure in the common style, with fonts that have the signs of all texts in it."""

    @functools.wraps(plot)
    def with_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_PARAMETERS), warnings.catch_warnings():
            # What signs no font has is said once, by fonts_for.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure = plot(*args, **kwargs)
            fonts = fonts_for("".join(sorted(_signs(figure))))
            if fonts == [_FONT]:
                return figure
            with mpl.rc_context({"font.family": fonts}):
                return plot(*args, **kwargs)

    return with_style


def _signs(figure: Figure) -> set[str]:
    # Labels of ticks are made when they are asked for.
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_ticklabels(which="both")
    return {sign for text in figure.findobj(mpl.text.Text) for sign in text.get_text()}


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


def plain(name: str) -> str:
    """Return a name as figures take it: dollar signs would make a formula of it."""
    return name.replace("$", r"\$")


def signed(value: float) -> str:
    """Return a number with one digit and its sign, as printed."""
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def short(name: str, length: int = 34) -> str:
    """Return a title cut to a length, as figures take it."""
    return plain(name if len(name) <= length else f"{name[: length - 1].rstrip()}…")


def panels(columns: int, rows: int, height: float, width: float = WIDTH, **options: Any) -> tuple[Figure, np.ndarray]:
    """Make a figure with (rows, columns) axes; without pyplot, so that no global state is touched."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def finished(figure: Figure, title: str, words: str) -> Figure:
    """Give a figure its title and the words that stand for it where it cannot be seen (its alternative text)."""
    figure.suptitle(plain(title), x=0.01, ha="left")
    end = "" if title.endswith("?") else "."
    figure.set_label(f"{title}{end} {words[:1].upper()}{words[1:]}")
    return figure


def footnote(figure: Figure, text: str, room: bool = False) -> None:
    """Write below a figure, at the right, how to read it.

    Args:
        figure: The figure.
        text: What to write.
        room: Whether to make room for it: where no key stands beside it.
    """
    height = 0.22 / figure.get_figheight()
    figure.text(0.995, 0.1 * height, plain(text), ha="right", va="bottom", fontsize=8.5, color=GREY)
    if room:
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0, height, 1, 1 - height))


def note(text: str, title: str) -> Figure:
    """Return a figure that says why there is nothing to draw."""
    figure = Figure(figsize=(WIDTH, 1.3), layout="constrained")
    figure.text(0.01, 0.3, plain(text), ha="left", va="center", color=GREY)
    return finished(figure, title, text)


def intervals(
    axis: Axes,
    values: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    places: ArrayLike,
    colour: str,
    marker: str = "o",
    across: bool = True,
    **options: Any,
) -> None:
    """Draw values as marks with their intervals; where an interval is not known (NaN) there is none.

    Args:
        axis: Where to.
        values: The values.
        low: Lower ends.
        high: Upper ends.
        places: Where the marks stand on the other axis.
        colour: Their colour.
        marker: Their shape.
        across: Whether the values run along the horizontal axis.
        options: Passed on to the marks.
    """
    lines = axis.hlines if across else axis.vlines
    lines(places, low, high, color=colour, linewidth=1.4, alpha=0.75)
    along = (values, places) if across else (places, values)
    axis.plot(*along, linestyle="", marker=marker, color=colour, **{"markersize": 5.5, "markeredgewidth": 0, **options})


def label_lines(axis: Axes, ends: Sequence[tuple[float, str, str]], gap: float = 0.055) -> None:
    """Write names to the right of an axis, each at the height of its line's end or as near as there is room.

    Args:
        axis: The axis, complete but for the names.
        ends: Height in data coordinates, name and colour of every line.
        gap: Least distance between names, as a share of the axis.
    """
    low, high = axis.get_ylim()
    logarithmic = axis.get_yscale() == "log"
    scale = np.log if logarithmic else np.asarray
    known = [end for end in ends if np.isfinite(end[0])]
    order = sorted(range(len(known)), key=lambda place: known[place][0])
    wished = [float((scale(known[place][0]) - scale(low)) / (scale(high) - scale(low))) for place in order]
    heights = _spread(wished, gap)
    for place, height in zip(order, heights, strict=True):
        _, name, colour = known[place]
        axis.annotate(
            plain(name),
            (1.0, height),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )


def _spread(wished: list[float], gap: float) -> list[float]:
    """Return ascending places that keep a distance and stay near those wished for: groups that touch move as one."""
    groups: list[list[float]] = []
    for place in wished:
        groups.append([place])
        while len(groups) > 1 and _start(groups[-1], gap) < _start(groups[-2], gap) + gap * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    return [_start(group, gap) + gap * number for group in groups for number in range(len(group))]


def _start(group: list[float], gap: float) -> float:
    return float(np.mean(group)) - gap * (len(group) - 1) / 2


def halo(width: float = 2.5) -> list[Any]:
    """Return what makes a label readable on top of marks."""
    return [mpl.patheffects.withStroke(linewidth=width, foreground="white")]


def label_points(figure: Figure, labelled: list[tuple[Axes, Points]], colours: dict[str, str] | None = None) -> None:
    """Write each point's name beside it, moving names that would overlap up or down.

    Args:
        figure: The figure, complete but for the names.
        labelled: Axes with their points (x, y, name).
        colours: Name to its colour.
    """
    for axis, _ in labelled:
        axis.margins(x=0.1, y=0.08)
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.execute(figure)  # Data coordinates have their place in the picture now.
    size, dpi = 8.5, figure.dpi / 72
    marker, gap = 4 * dpi, 5 * dpi
    for axis, points in labelled:
        pixels = [axis.transData.transform((x, y)) for x, y, _ in points]
        taken = [(px - marker, py - marker, px + marker, py + marker) for px, py in pixels]
        inside = axis.get_window_extent()
        # Those with most neighbours first, while there is room near them.
        crowd = [sum(abs(px - a) < 60 * dpi and abs(py - b) < 20 * dpi for a, b in pixels) for px, py in pixels]
        order = sorted(range(len(points)), key=lambda place: (-crowd[place], -pixels[place][1]))
        for place in order:
            (x, y, text), (px, py) = points[place], pixels[place]
            if not text:
                continue
            width, height = len(text) * size * 0.58 * dpi, size * 1.2 * dpi
            box = _free_place(px, py, width, height, gap, taken, inside)
            taken.append(box)
            beside = box[0] - px <= gap + 1 and px - box[2] <= gap + 1 and abs((box[1] + box[3]) / 2 - py) < height
            axis.annotate(
                plain(text),
                (x, y),
                xytext=((box[0] + width / 2 - px) / dpi, ((box[1] + box[3]) / 2 - py) / dpi),
                textcoords="offset points",
                fontsize=size,
                color=(colours or {}).get(text, INK),
                ha="center",
                va="center",
                path_effects=halo(),
                arrowprops=None if beside else {"arrowstyle": "-", "color": "#AAAAAA", "linewidth": 0.6, "shrinkB": 3},
            )


Box = tuple[float, float, float, float]


def _free_place(
    px: float, py: float, width: float, height: float, gap: float, taken: Sequence[Box], inside: Any
) -> Box:
    """Return the box of a label nearest to its point that covers nothing; where there is none, the one beside it."""
    ways = [gap + step * height * 1.5 for step in range(8)]
    lefts = [left for way in ways for left in (px + way, px - way - width)] + [px - width / 2]
    rises = [step * height * 0.5 for step in range(-24, 25)]
    best, least = (px + gap, py - height / 2, px + gap + width, py + height / 2), np.inf
    for left, rise in itertools.product(lefts, rises):
        low = py + rise - height / 2
        right, high = left + width, low + height
        across = max(left - px, px - right, 0.0)
        up = max(low - py, py - high, 0.0)
        far = float(np.hypot(across, 1.3 * up)) + 0.02 * abs(rise) + (0.5 if left < px else 0.0)
        if far >= least or left < inside.x0 or right > inside.x1 or low < inside.y0 or high > inside.y1:
            continue
        if any(left < b[2] and b[0] < right and low < b[3] and b[1] < high for b in taken):
            continue
        best, least = (left, low, right, high), far
    return best
