"""What a run shows while it goes on and at its end."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kedro.pipeline import node

from conftest import Project
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.pipeline_registry import register_pipelines
from multitask_recommender.runs.headline import headline_lines, shown_models
from multitask_recommender.runs.progress import Estimate, box_of, effort, in_words, seconds_of_runs

STUDY = register_pipelines()["__default__"]
NODES = {node.name: node for node in STUDY.nodes}


def parameters(**study: Any) -> dict[str, Any]:
    dataset = DatasetSettings.model_validate(
        {
            "name": "films",
            "interactions": {"user_id": "u", "item_id": "i", "signals": {"rating": {"column": "r"}}},
            "tasks": {
                "watch": {"kind": "retrieval"},
                "rating": {"kind": "regression", "label": "rating", "relevant": "rating >= 4"},
            },
        }
    )
    read = VARIANTS["shared_bottom"].parameters.model_validate({"search": {"dimension": [4, 8], "penalty": [0.1, 0.2]}})
    alone = VARIANTS["single_task"].parameters.model_validate({"search": {"dimension": [4, 8, 16]}})
    return {
        "params:dataset": dataset,
        "params:study": StudySettings.model_validate({"seed": 1, "repeats": 3, **study}),
        "params:splits": SplitSettings(strategies=["random", "chronological"], seed=1, folds=2),
        "params:cross_validation": CrossValidationSettings(candidates=2, workers=1),
        "params:models.shared_bottom": read,
        "params:models.single_task": alone,
    }


def test_effort_follows_splits_repeats_candidates_and_tasks() -> None:
    load = parameters().__getitem__
    shared, single = "recommender.multi_task.shared_bottom", "recommender.single_task.single_task"
    assert effort(NODES[f"{shared}.fit"], load) == 2 * 3 + 1
    assert effort(NODES[f"{shared}.tune"], load) == 2 * 3  # Two candidates on a fold, one on the next.
    # A model per task is as many models, each of which takes less.
    for step in ("tune", "fit"):
        joint = effort(NODES[f"{shared}.{step}"], load)
        assert joint < effort(NODES[f"{single}.{step}"], load) < 2 * joint
    # One fit without a seed, of a model that counts, takes less than one of many that is trained.
    assert effort(NODES["recommender.baselines.popularity.fit"], load) < 2 + 1
    wide = effort(NODES["recommender.multi_task.wide_shared_bottom.fit"], load)
    assert wide > 2 * effort(NODES[f"{shared}.fit"], load)
    assert 0 < effort(NODES[f"{shared}.predict"], load) < effort(NODES[f"{shared}.fit"], load)
    assert effort(NODES["recommender.single_task.hand_over"], load) > 0
    core = parameters(core_only=True).__getitem__
    assert effort(NODES["recommender.multi_task.mmoe.fit"], core) == 0


def test_the_longest_of_the_last_runs_tells_how_long_a_node_takes(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    lines = [{"seconds_per_node": {"a": own}} for own in (99.0, 1.0, 0.0, 3.0, 2.0, 0.5)]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"seconds_per_no')
    assert seconds_of_runs(path) == {"a": 3.0}
    assert seconds_of_runs(tmp_path / "none.jsonl") == {}


def test_the_time_left_is_that_of_earlier_runs_corrected_by_this_one() -> None:
    steps = [NODES[f"data_engineering.{name}"] for name in ("validate_tables", "assign_splits", "separate_parts")]
    names = [step.name for step in steps]
    estimate = Estimate(steps, dict(zip(names, (10.0, 30.0, 60.0), strict=True)), parameters().__getitem__)
    assert estimate.left(None, 0.0, 0.0) == pytest.approx(100.0)
    estimate.finish(names[0])
    assert estimate.left(None, 0.0, 10.0) == pytest.approx(90.0)
    slow = estimate.left(None, 0.0, 30.0)  # Thrice as slow as it was, of which some is taken for chance.
    assert slow is not None
    assert 150.0 < slow < 270.0
    # A node that takes much longer than expected never counts as done.
    assert estimate.reached(names[1], 1e6, 1e6 + 10.0) < 0.4
    for name in names[1:]:
        estimate.finish(name)
    assert estimate.reached(None, 0.0, 100.0) == 1.0


def test_a_first_run_says_nothing_before_it_knows() -> None:
    steps = [NODES[f"recommender.multi_task.shared_bottom.{name}"] for name in ("tune", "fit", "predict")]
    estimate = Estimate(steps, {}, parameters().__getitem__)
    assert estimate.left(None, 0.0, 0.0) is None
    assert in_words(None) == "time left not known yet"
    estimate.finish(steps[0].name)
    assert estimate.left(None, 0.0, 60.0) == pytest.approx((7 + 2 * 3 * 0.15) * 10.0)  # Six fits took a minute.


def test_a_model_that_earlier_runs_left_out_is_not_expected_to_take_nothing() -> None:
    """As when all models are run after the core ones."""
    names = [f"recommender.multi_task.{model}.fit" for model in ("shared_bottom", "cgc")]
    load = parameters(core_only=False).__getitem__
    estimate = Estimate([NODES[name] for name in names], {names[0]: 70.0, names[1]: 0.004}, load)
    # Ten seconds a fit; the one makes no lists.
    assert estimate.expected == pytest.approx({names[0]: 70.0, names[1]: 60.0})
    assert not estimate.first
    assert Estimate([NODES[names[1]]], {names[1]: 0.004}, load).first


@pytest.mark.parametrize(
    ("seconds", "said"), [(1, "5 s"), (29, "30 s"), (62, "1 min"), (3500, "58 min"), (5400, "1.5 h")]
)
def test_times_in_words(seconds: float, said: str) -> None:
    assert in_words(seconds) == f"about {said} left"


def test_steps_belong_to_their_model_or_pipeline() -> None:
    assert box_of(NODES["recommender.single_task.single_task.fit"]) == "single_task"
    assert box_of(NODES["recommender.single_task.hand_over"]) == "recommender"
    assert box_of(NODES["evaluation.measure_models"]) == "evaluation"
    assert box_of(node(len, "a", "b", name="alone")) == "alone"


def test_the_headline_marks_the_best_and_fits_the_terminal() -> None:
    table = pd.DataFrame(
        {
            "split": "random",
            "model": ["ease", "shared_bottom", "mmoe"],
            "rate it rmse": [None, 0.95, 0.9],
            "rate it coverage@10": [0.1, 0.3, 0.2],
            "rate it recall@10": [0.2, 0.5, 0.5],
            **{f"rate it novelty@{k}": 1.0 for k in range(100, 110)},
        }
    )
    assert shown_models(table) == ["ease", "shared_bottom"]
    assert shown_models(table[table["model"] == "mmoe"]) == ["mmoe"]
    lines = list(headline_lines(table, shown_models(table)))
    assert lines[1].startswith("rate it, random split")
    assert all(len(line) <= 100 for line in lines)
    assert not any("mmoe" in line for line in lines)
    rows = {line.split()[0]: line for line in lines[3:]}
    assert "0.9500*" in rows["shared_bottom"]
    assert "0.5000*" in rows["shared_bottom"]
    assert "0.2000*" not in rows["ease"]
    assert "0.3000*" not in rows["shared_bottom"]  # Coverage has no direction.
    starts = {
        line.index(value) + len(value) for line, value in ((rows["ease"], "0.1000"), (rows["shared_bottom"], "0.3000"))
    }
    assert len(starts) == 1


def test_without_a_terminal_there_is_a_line_per_model(finished_project: Project, project: Project) -> None:
    result = project.run("--params", "study.models=ease popularity")
    assert result.returncode == 0, result.stderr
    for box in ("data_engineering", "ease", "popularity", "evaluation"):
        assert len(re.findall(rf"INFO +{box}: done in \d+\.\d s; step \d+ of \d+", result.stderr)) == 1, result.stderr
    for quiet in ("mmoe", "Completed node", "chose", "fitted"):
        assert quiet not in result.stderr
    assert "nothing left" in result.stderr


def test_at_a_terminal_there_is_one_bar(project: Project) -> None:
    pid, descriptor = pty.fork()
    if pid == 0:
        fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        os.chdir(project.folder)
        os.environ["KEDRO_DISABLE_TELEMETRY"] = "1"
        command = [sys.executable, "-m", "kedro", "run", "--env", "test", "--params", "study.models=ease popularity"]
        command += ["--pipelines", "data_engineering,user_embedding,recommender"]
        os.execv(sys.executable, command)
    shown = b""
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown.decode()
    text = shown.decode()
    shares = [int(share) for share in re.findall(r"(\d+)% \|.{25}\| [^\r\n]*left", text)]
    assert len(shares) > 10
    assert shares == sorted(shares)
    assert "ease, fit" in text
    assert "INFO    ease" not in text
    assert "done in" not in text
