"""The names of tasks are the user's: no model, table or figure rests on how they are spelled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from conftest import Project
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.data.tasks import Task
from multitask_recommender.datasets import CsvTable
from multitask_recommender.evaluation import figures
from multitask_recommender.foundation.figure_style import fonts_for
from multitask_recommender.foundation.jobs import single_threaded
from multitask_recommender.models.recommender import LearningCurve, Recommender
from multitask_recommender.models.stored import StoredModel, read_model, write_model
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.testing import example_study
from test_contract import quick_settings

NAMES = {"watch": "penalty", "like": "user_embedding", "rating": "$shared/1.type forward$"}


def renamed(rows: Interactions, side: SideInformation) -> tuple[Interactions, SideInformation]:
    labels, relevant = ({NAMES[name]: own[name] for name in own} for own in (rows.labels, rows.relevant))
    tasks: dict[str, Task] = {}
    for name, task in side.tasks.items():
        after = None if task.after is None else NAMES[task.after]
        tasks[NAMES[name]] = task.model_copy(update={"after": after})
    return replace(rows, labels=labels, relevant=relevant), replace(side, tasks=tasks)


def fitted(name: str, rows: Interactions, side: SideInformation, folder: Path) -> tuple[Recommender, LearningCurve]:
    """The model after a way through its file."""
    variant = VARIANTS[name]
    own = side.with_tasks(list(variant.trained_tasks(side.tasks)))
    model, restored = (variant.make(quick_settings(variant), own.tasks) for _ in range(2))
    with single_threaded():
        curve = model.fit(rows.with_tasks(list(own.tasks)), own, seed=5)
    write_model(folder / "model", StoredModel(model.state()))
    restored.restore(read_model(folder / "model").state, own)
    return restored, curve


# A model by chance draws by the name of the task.
@pytest.mark.parametrize(
    "name", [name for name, variant in VARIANTS.items() if name != "random" and variant.based_on is None]
)
def test_renaming_the_tasks_changes_no_score(name: str, tmp_path: Path) -> None:
    rows, side = example_study()
    queries = Histories(rows, side.user_features).of(np.arange(9))
    model, curve = fitted(name, rows, side, tmp_path)
    other_rows, other_side = renamed(rows, side)
    other_queries = Histories(other_rows, other_side.user_features).of(np.arange(9))
    other, other_curve = fitted(name, other_rows, other_side, tmp_path)
    scores, other_scores = model.score(queries), other.score(other_queries)
    assert [NAMES[task] for task in scores] == list(other_scores)
    for task, score in scores.items():
        np.testing.assert_array_equal(score, other_scores[NAMES[task]])
    for losses, others in zip(curve.epochs, other_curve.epochs, strict=True):
        assert list(losses.values()) == list(others.values())


def test_names_are_read_as_they_were_written(tmp_path: Path) -> None:
    table = pd.DataFrame({"task": ["NA", "null", "1", "nan"], "k": [0, 10, 0, 0], "value": [0.1, np.nan, 0.3, 0.4]})
    dataset = CsvTable(filepath=(tmp_path / "metrics.csv").as_posix(), save_args={"index": False})
    dataset.save(table)
    pd.testing.assert_frame_equal(dataset.load(), table)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text"))]


def test_figures_show_names_as_they_are(tmp_path: Path) -> None:
    cosines = pd.DataFrame(
        [("s", 0, 1, "$a^", "_b$", 0.5)], columns=["split", "fold", "epoch", "task", "other", "cosine"]
    )
    gains = pd.DataFrame(
        [("s", 0, "$a^", "_b$", 1.0, 2.0, 0.5)],
        columns=["split", "fold", "task", "trained_with", "error", "error_alone", "gain"],
    )
    figure = figures.plot_affinity(cosines, gains)
    assert r"\$a^, _b\$" in texts(figure)
    figure.savefig(tmp_path / "figure.png")  # A formula that cannot be read would be an error here.


def test_signs_that_the_usual_font_lacks_come_from_another_or_are_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = font_manager.fontManager

    def signs(name: str) -> set[int]:
        return set(font_manager.get_font(font_manager.findfont(name)).get_charmap())

    both = [font for font in manager.ttflist if font.name in ("DejaVu Sans", "STIXGeneral")]
    monkeypatch.setattr(manager, "ttflist", both)
    only_there = next(chr(code) for code in signs("STIXGeneral") - signs("DejaVu Sans") if chr(code).isprintable())
    assert fonts_for("abc") == ["DejaVu Sans"]
    assert fonts_for(f"abc{only_there}") == ["DejaVu Sans", "STIXGeneral"]
    assert not caplog.text
    assert fonts_for("书名 abc") == ["DejaVu Sans"]
    assert "书名" in caplog.text or "名书" in caplog.text
    assert "Install" in caplog.text


def test_a_study_of_odd_names_runs_end_to_end(project: Project) -> None:
    odd = {"watch": "type forward", "like": "add.to.cart/ $2 (50 % off)", "rating": "1"}
    tasks = {
        odd["watch"]: {"kind": "retrieval"},
        odd["like"]: {"kind": "binary", "label": "rating >= 4", "after": odd["watch"]},
        odd["rating"]: {"kind": "regression", "label": "rating", "relevant": "rating >= 4"},
    }
    path = project.folder / "conf/base/parameters_data_engineering.yml"
    text = path.read_text()
    before, _, after = text.partition("  tasks:\n")
    path.write_text(f"{before}  tasks: {json.dumps(tasks)}\n\n" + after[after.index("# The permutation") :])
    result = project.run("--params", "study.quick=true,study.recommendations=3")
    assert result.returncode == 0, result.stderr
    metrics = pd.read_csv(project.outputs / "08_reporting/metrics.csv", dtype={"task": str})
    assert set(metrics["task"]) == set(odd.values())
    headline = pd.read_csv(project.outputs / "08_reporting/headline.csv")
    assert f"{odd['like']} auc" in headline
    assert headline.set_index("model").loc["shared_bottom"].notna().all()
    for name in odd.values():
        assert f"\n{name}, random split\n" in result.stdout
    comparisons = pd.read_csv(project.outputs / "08_reporting/comparisons.csv", dtype={"task": str})
    assert set(comparisons["task"]) == set(odd.values())
