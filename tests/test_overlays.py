"""Every overlay that comes with the project is run whole: all pipelines, all models that it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import yaml

from conftest import ROOT, Project
from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.models.variants import VARIANTS
from test_bring_your_own_data import (
    pairs,
    place_book_crossing,
    place_goodbooks_10k,
    place_kuairand_pure,
    place_movielens_1m,
    place_movielens_1m_published,
    place_retailrocket,
    tiny_models,
)
from test_notebooks import FIRST, execute


def place_books_that_are_read_and_wanted(project: Project) -> None:
    # Others than those that a user has read.
    read = set(pairs())
    place_goodbooks_10k(project, [(u, i) for u in range(1, 25) for i in range(1, 21) if (u, i) not in read][::2])


SIMULATED = [
    "--pipelines",
    "simulated_study",
    "--params",
    "simulation.users=60,simulation.books=60,simulation.interactions=600",
]
FEW = {
    "bookstore_visits": ["revisit", "ease", "markov", "next_items"],
    "goodbooks_10k": [],
    "kuairand_pure": [],
    "movielens_1m": [],
    "movielens_1m_published": [],
}
"""Run with a model of each sort, those of which they say something, and these; the others run with all that they study."""
SORTS = ["popularity", "user_item_bias", "content_based", "single_task", "shared_bottom"]
SHOWN = ("book_crossing", "bookstore")
"""Those whose notebooks are executed."""
ARCHITECTURES = [name for name, variant in VARIANTS.items() if variant.kind == "multi_task" and not variant.based_on]
OVERLAYS: dict[str, tuple[Callable[[Project], None], list[str]]] = {
    "book_crossing": (lambda project: place_book_crossing(project, original=False), []),
    # They simulate their files.
    "bookstore": (lambda project: None, SIMULATED),
    "bookstore_visits": (lambda project: None, SIMULATED),
    "goodbooks_10k": (place_books_that_are_read_and_wanted, []),
    "kuairand_pure": (place_kuairand_pure, []),
    "movielens_1m": (place_movielens_1m, []),
    "movielens_1m_published": (place_movielens_1m_published, []),
    "retailrocket": (place_retailrocket, []),
}


def check_retailrocket(folder: Path, metrics: pd.DataFrame, log: str) -> None:
    """A funnel without features, ratings and time."""
    left_out = pd.read_csv(folder / "08_reporting/left_out.csv")["what"].tolist()
    for model in ("content_based", "item_ridge", "user_item_bias"):
        assert f"model {model}" in left_out
        assert f"left out: model {model}" in log
    lists = pd.read_parquet(folder / "07_model_output/shared_bottom/recommendations.parquet")
    assert (lists["title"] == lists["item_id"]).all()
    labels = pd.read_parquet(folder / "03_primary/labelled_interactions.parquet")
    every = pairs()
    assert labels[["view", "cart", "purchase"]].sum().tolist() == [len(every), len(every[::2]), len(every[::5]) + 1]


def check_book_crossing(folder: Path, metrics: pd.DataFrame, log: str) -> None:
    """Four tasks of different sample spaces."""
    found = metrics[metrics["model"] == "shared_bottom"].groupby("task")["metric"].agg(set)
    assert {"auc", "log_loss", "ndcg"} <= found["rate"] & found["like"]
    assert {"rmse", "mae"} <= found["rating"]
    assert {"ndcg", "coverage", "novelty"} <= found["read"]
    cold = metrics.query("split == 'cold_items' and task == 'read' and metric == 'ndcg' and k == 10")
    assert {"content_based", "two_stage", "shared_bottom"} <= set(cold["model"])
    compared = pd.read_csv(folder / "08_reporting/comparisons.csv")
    ranked = compared[(compared["task"] == "rate") & (compared["metric"] == "ndcg")]
    assert "ease" in set(ranked["control"])
    # A control that never learnt to rank is compared with another such one alone.
    joint = ranked[ranked["model"].map(lambda name: VARIANTS[name].kind == "multi_task")]
    assert not {"single_task", "single_task_equal_inputs"} & set(joint["control"])
    left_out = pd.read_csv(folder / "08_reporting/left_out.csv")["what"]
    assert any(what.startswith("comparisons by ndcg of task rate with") and "single_task" in what for what in left_out)


def check_bookstore_visits(folder: Path, metrics: pd.DataFrame, log: str) -> None:
    """Events of a pair: what was met before and what is new stand apart."""
    groups = metrics[(metrics["task"] == "come_back") & (metrics["model"] == "revisit")].set_index("group")["users"]
    assert {"all", "visited_pairs"} <= set(groups.index)
    regret = pd.read_csv(folder / "08_reporting/regret.csv")
    assert set(regret["task"]) == {"click", "rating"}


CHECKS = {
    "retailrocket": check_retailrocket,
    "book_crossing": check_book_crossing,
    "bookstore_visits": check_bookstore_visits,
}


def test_no_overlay_is_forgotten() -> None:
    own = {path.parent.name for path in (ROOT / "conf").glob("*/globals.yml")} - {"base", "test"}
    assert own == set(OVERLAYS)


def execute_in_turn(notebooks: list[Path], environment: str) -> dict[str, str]:
    """Run notebooks one after the other in one kernel, which forgets all names between them; what each shows.

    Only what is slow to import is still there for the next one. The name of the data set in the first cell is all that
    changes.
    """
    cells, owner = [], []
    for path in notebooks:
        own = [*nbformat.read(path, as_version=4).cells, nbformat.v4.new_code_cell("%reset -f")]
        cells += own
        owner += [path.name] * len(own)
    joined = notebooks[0].with_name("in_turn.ipynb")
    for number, cell in enumerate(cells):
        cell["id"] = f"cell{number}"
        cell["source"] = cell["source"].replace(FIRST, f'ENVIRONMENT = "{environment}"')
    nbformat.write(nbformat.v4.new_notebook(cells=cells), joined)
    shown: dict[str, str] = {}
    for name, cell in zip(owner, execute(joined).cells, strict=True):
        shown[name] = shown.get(name, "") + str(cell.get("outputs"))
    return shown


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_shipped_overlay_runs_whole(project: Project, name: str) -> None:
    put, options = OVERLAYS[name]
    put(project)
    changed: dict[str, dict[str, Any]] = {
        "book_crossing": {"splits": {"strategies": ["random", "cold_items"]}},
        # All architectures there are, on one funnel.
        "bookstore": {"study": {"core_only": False, "models": [*SORTS, "wide_single_task", *ARCHITECTURES]}},
    }
    own = yaml.safe_load((project.folder / "conf" / name / "parameters.yml").read_text())
    few = {"study": {"models": [*SORTS, *own.get("models", {}), *FEW[name]]}} if name in FEW else {}
    tiny_models(project, name, **changed.get(name, few))
    if name == "retailrocket":
        # Its pictures are as large as those of a study.
        (project.folder / "conf" / name / "catalog_small_figures.yml").unlink()
    described = yaml.safe_load((project.folder / "conf" / name / "parameters.yml").read_text())
    result = project.run("--env", name, *options, pictures=name in (*SHOWN, "retailrocket"))
    assert result.returncode == 0, result.stderr[-3000:]
    dataset = DatasetSettings.model_validate(described["dataset"])
    study = StudySettings.model_validate({"seed": 1, "core_only": True, **described["study"]})
    folder = project.folder / "data" / name
    metrics = pd.read_csv(folder / "08_reporting/metrics.csv")
    assert set(metrics["model"]) == set(study.running(dataset)) >= set(own.get("models", {})) & {"ease", "ials"}
    assert set(metrics["task"]) == set(dataset.tasks)
    # Without times those of the base that need none are left.
    base = ["random", "chronological", "temporal"] if dataset.interactions.timestamp is not None else ["random"]
    assert set(metrics["split"]) == set(described["splits"].get("strategies", base))
    for model in study.running(dataset):
        if not VARIANTS[model].recommends:
            continue
        assert len(pd.read_parquet(folder / "07_model_output" / model / "recommendations.parquet")), model
    if name in CHECKS:
        CHECKS[name](folder, metrics, result.stderr)
    for figure in ("accuracy", "verdicts", "trade_off", "cost", "affinity", "activity", "tasks", "time", "user_map"):
        assert (folder / f"08_reporting/{figure}.png").stat().st_size > 0
    if name in SHOWN:
        for notebook, shown in execute_in_turn(
            sorted((project.folder / "notebooks").glob("0[12346]*.ipynb")), name
        ).items():
            assert dataset.name in shown, notebook
