"""Figures: legible, with intervals and words, the same bytes every time, and colours that all readers can tell apart."""

from __future__ import annotations

import itertools
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from conftest import TASKS, Project
from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.datasets import FigureFile, SavedFigure
from multitask_recommender.evaluation import figures
from multitask_recommender.evaluation.comparisons import COLUMNS
from multitask_recommender.evaluation.metric_records import METRICS, main_metric
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.foundation import figure_style as style
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.use.figures import plot_explanation

SPLITS = ["random", "chronological", "temporal"]
SETTINGS = EvaluationSettings(ks=[10, 20])
DATASET = DatasetSettings.model_validate(
    {
        "name": "made-up",
        "interactions": {"user_id": "u", "item_id": "i", "signals": {"rating": {"column": "r"}}},
        "tasks": {name: task.model_dump() for name, task in TASKS.items()},
    }
)
CORE = [name for name, variant in VARIANTS.items() if variant.core]


@pytest.fixture(scope="module")
def estimates() -> pd.DataFrame:
    """Estimates of all core models on three splits, of which the last model is the best."""
    random = np.random.default_rng(0)
    rows = []
    for split, (place, model), (task, own) in itertools.product(SPLITS, enumerate(CORE), TASKS.items()):
        for metric in {main_metric(own.kind).name, "recall", "novelty"}:
            value = 0.3 + METRICS[metric].sign * (0.002 * place + 0.02 * random.random())
            half = 0.01 + 0.01 * random.random()
            k = 10 if METRICS[metric].of_lists else 0
            rows.append(("made-up", split, model, task, metric, k, value, value - half, value + half, 100, 3))
    columns = ["dataset", "split", "model", "task", "metric", "k", "value", "ci_low", "ci_high", "users", "seeds"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture(scope="module")
def comparisons() -> pd.DataFrame:
    """Primary comparisons of all core multi-task models on three splits."""
    rows = []
    verdicts = itertools.cycle(["helps", "equivalent", "undecided", "harms"])
    for split, model, (task, own) in itertools.product(SPLITS, CORE, TASKS.items()):
        if VARIANTS[model].kind == "multi_task":
            metric = main_metric(own.kind)
            for control in (VARIANTS[model].own_control or "single_task", "ease"):
                what = ("made-up", split, model, control, task, metric.name, 0)
                verdict = next(verdicts)
                rows.append((*what, 0.02, 0.1, 0.01, 0.04, 0.01, 0.02, verdict, 0.03, verdict))
    return pd.DataFrame(rows, columns=COLUMNS)


def texts(figure: Figure) -> list[Text]:
    figure.draw_without_rendering()
    return [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]


def boxes_inside(figure: Figure) -> None:
    """No text leaves the picture."""
    width, height = figure.bbox.width, figure.bbox.height
    for text in texts(figure):
        if text.get_text().replace("\N{MINUS SIGN}", "").replace(".", "").isdigit():
            continue  # The number of a tick, which may lie beyond the axis, where it is not drawn.
        box = text.get_window_extent()
        assert box.x0 > -2, text
        assert box.y0 > -2, text
        assert box.x1 < width + 2, text
        assert box.y1 < height + 2, text


def test_the_main_figures_fit_one_screen(estimates: pd.DataFrame, comparisons: pd.DataFrame) -> None:
    """Of all core models, three tasks and three splits, with letters that can be read at the size they are shown."""
    made = [
        figures.plot_verdicts(comparisons, DATASET),
        figures.plot_accuracy(estimates, DATASET, SETTINGS),
    ]
    for figure in made:
        width, height = figure.get_size_inches()
        assert width <= style.WIDTH
        assert height <= style.SCREEN
        boxes_inside(figure)
        assert min(text.get_fontsize() for text in texts(figure)) >= 7.5


def test_intervals_are_drawn_wherever_a_mean_is(estimates: pd.DataFrame) -> None:
    figure = figures.plot_accuracy(estimates, DATASET, SETTINGS)
    drawn = 0
    for axis in figure.axes:
        ends = [
            path[:, 0] for line in axis.collections if isinstance(line, LineCollection) for path in line.get_segments()
        ]
        marks = np.concatenate([line.get_xdata() for line in axis.lines if line.get_marker() not in ("None", None, "")])
        assert len(ends) == len(marks) > 0
        for low, high in ends:
            assert ((marks > low) & (marks < high)).any()
        drawn += len(ends)
    main = {task: main_metric(own.kind).name for task, own in TASKS.items()}
    assert drawn == (estimates["metric"] == estimates["task"].map(main)).sum()


def test_a_verdict_says_what_the_table_says(comparisons: pd.DataFrame) -> None:
    figure = figures.plot_verdicts(comparisons, DATASET)
    shown = [text.get_text() for text in texts(figure)]
    for verdict, number in comparisons["primary_verdict"].value_counts().items():
        signs = [text for text in shown if text.startswith(style.VERDICT_SIGNS[verdict]) and text.endswith("%")]
        assert len(signs) == number
    # Lower is better for RMSE: a difference above 0 is no improvement.
    assert shown.count("[\N{MINUS SIGN}20.0, \N{MINUS SIGN}5.0]") == (comparisons["metric"] == "rmse").sum()
    counts = comparisons["primary_verdict"].value_counts()
    control = comparisons[comparisons["control"] != "ease"]["primary_verdict"].value_counts()
    assert f"against its single-task control: {control['helps']} helps".lower() in figure.get_label().lower()
    assert counts.sum() == len(comparisons)


def test_a_figure_of_nothing_says_why(estimates: pd.DataFrame, comparisons: pd.DataFrame) -> None:
    assert "No core" in figures.plot_accuracy(estimates[:0], DATASET, SETTINGS).get_label()
    assert "No core" in figures.plot_verdicts(comparisons[:0], DATASET).get_label()
    assert "gates" in figures.plot_experts(pd.DataFrame(columns=["model", "split"])).get_label()


@pytest.mark.parametrize("number", [1, 2, 5])
def test_names_of_splits_meet_no_other_text_whatever_number_of_models_there_is(
    comparisons: pd.DataFrame, number: int
) -> None:
    some = list(dict.fromkeys(comparisons["model"]))[:number]
    figure = figures.plot_verdicts(comparisons[comparisons["model"].isin(some)], DATASET)
    shown = texts(figure)
    named = [text for text in shown if text.get_text() in {f"{split} split" for split in SPLITS}]
    assert len(named) == len(SPLITS)
    for name in named:
        box = name.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        for other in shown:
            assert other is name or not box.overlaps(other.get_window_extent()), other.get_text()


def test_names_of_points_cover_no_other_name() -> None:
    random = np.random.default_rng(3)
    figure, axes = style.panels(1, 1, 6.0)
    points = [(x, y, f"model {number}") for number, (x, y) in enumerate(random.normal(0, 0.1, (18, 2)))]
    axes[0, 0].plot(*np.array([point[:2] for point in points]).T, "o")
    style.label_points(figure, [(axes[0, 0], points)])
    boxes = [text.get_window_extent() for text in texts(figure) if text.get_text().startswith("model")]
    assert len(boxes) == 18
    for one, other in itertools.combinations(boxes, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width < 3 or height < 3


def test_names_of_lines_keep_apart_and_in_order() -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        wished = sorted(random.random(8))
        placed = style._spread(wished, 0.06)
        assert (np.diff(placed) > 0.06 - 1e-9).all()
        if (np.diff(wished) > 0.06).all():
            np.testing.assert_allclose(placed, wished)
    np.testing.assert_allclose(style._spread([0.5, 0.5], 0.1), [0.45, 0.55])


def seen_by(kind: str, colour: str) -> np.ndarray:
    """A colour as somebody without one of the cones sees it (Machado, Oliveira and Fernandes, IEEE TVCG 2009)."""
    matrices = {
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        "tritanopia": [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    }
    rgb = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrices[kind]) @ linear, 0, 1) if kind in matrices else linear
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    x, y, z = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", ["protanopia", "deuteranopia", "tritanopia", "all cones"])
@pytest.mark.parametrize(
    "colours", [style.CYCLE[:4], (style.HELPS, style.HARMS, style.SAME), ("#6E6E6E", "#B86E00", "#0072B2")]
)
def test_colours_can_be_told_apart(kind: str, colours: tuple[str, ...]) -> None:
    for one, other in itertools.combinations(colours, 2):
        assert np.linalg.norm(seen_by(kind, one) - seen_by(kind, other)) > 11, (one, other)


def a_figure() -> Figure:
    parts = pd.DataFrame(
        {"part": ["base", "history"], "item_id": [None, "1"], "title": [None, "书 $1"], "contribution": [0.5, -0.2]}
    )
    return plot_explanation(parts, "Film 3", "watch", "EASE")


def test_a_figure_is_saved_twice_with_its_words_and_always_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        FigureFile(filepath=(tmp_path / f"{name}.png").as_posix()).save(a_figure())
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "one.svg", "two.png", "two.svg"]
    words = "Why Film 3? (EASE). EASE, task watch. The largest part is (base) with +0.5."
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.text["Description"] == words
        assert picture.text["Title"] == "Why Film 3? (EASE)"
    tree = ElementTree.parse(tmp_path / "one.svg")
    dublin_core = "{http://purl.org/dc/elements/1.1/}"
    assert [one.text for one in tree.iter(f"{dublin_core}description")] == [words]
    assert not list(tree.iter(f"{dublin_core}date"))


def test_a_saved_figure_is_shown_with_its_words(tmp_path: Path) -> None:
    entry = FigureFile(filepath=(tmp_path / "one.png").as_posix())
    entry.save(a_figure())
    figure = entry.load()
    assert isinstance(figure, SavedFigure)
    bundle, about = figure._repr_mimebundle_()
    assert about["image/png"]["alt"] == figure.words == bundle["text/plain"]
    assert about["image/png"]["width"] == round(style.WIDTH * 96)
    assert not hasattr(entry, "_repr_png_")


def test_every_figure_of_a_run_has_words_and_both_kinds(finished_project: Project) -> None:
    folder = finished_project.outputs / "08_reporting"
    names = {path.stem for path in folder.glob("*.png")}
    assert names == {path.stem for path in folder.glob("*.svg")}
    assert {"verdicts", "accuracy", "trade_off", "cost", "activity", "tasks", "time", "user_map"} <= names
    for name in names:
        with Image.open(folder / f"{name}.png") as picture:
            title, words = picture.text["Title"], picture.text["Description"]
        assert words.startswith(title)
        assert len(words) > len(title) + 10


def test_no_label_of_a_run_leaves_its_picture(finished_project: Project) -> None:
    estimates = pd.read_csv(finished_project.outputs / "08_reporting" / "estimates.csv")
    metrics = pd.read_csv(finished_project.outputs / "08_reporting" / "metrics.csv")
    boxes_inside(figures.plot_trade_off(estimates, metrics, DATASET, SETTINGS))
    groups = pd.read_csv(finished_project.outputs / "08_reporting" / "group_comparisons.csv")
    boxes_inside(figures.plot_group_gains(groups, DATASET))
