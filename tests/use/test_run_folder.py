"""What is no whole run, or no longer the run that made a model, is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from multitask_recommender import load_recommender
from multitask_recommender.foundation.errors import RequestError, StudyError
from multitask_recommender.models.stored import StaleModelError


def test_the_preferred_model_is_a_multi_task_model_that_was_run(outputs: Path) -> None:
    assert load_recommender(outputs).run.name == "two_stage"  # The quick study leaves the wide one out.


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shred_bottom", r"no model 'shred_bottom'(.|\n)*single_task, shared_bottom"),
        ("mmoe", r"'mmoe' recommends nothing(.|\n)*shared_bottom"),
        ("ease", r"'ease' was not run(.|\n)*item_knn"),
    ],
)
def test_models_that_are_not_there(outputs: Path, name: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        load_recommender(outputs, model=name)


def test_folders_that_are_no_runs(outputs: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such folder"):
        load_recommender(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="not that of a run"):
        load_recommender(tmp_path / "empty")
    (outputs / "04_feature" / "user_features.parquet").unlink()
    with pytest.raises(RequestError, match=r"not whole: 04_feature/user_features\.parquet is missing"):
        load_recommender(outputs)


@pytest.mark.parametrize("file", ["03_primary/items.parquet", "06_models/shared_bottom/chosen_settings.json"])
def test_torn_files(outputs: Path, file: str) -> None:
    (outputs / file).write_bytes((outputs / file).read_bytes()[:40])
    with pytest.raises(RequestError, match=f"cannot be read(.|\n)*{file}"):
        load_recommender(outputs, model="shared_bottom")


def test_torn_weights(outputs: Path) -> None:
    path = outputs / "06_models" / "shared_bottom" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StudyError, match=r"cannot be read(.|\n)*shared_bottom"):
        load_recommender(outputs, model="shared_bottom")


def test_other_settings(outputs: Path) -> None:
    path = outputs / "06_models" / "shared_bottom" / "chosen_settings.json"
    chosen = json.loads(path.read_text())
    chosen["random"]["penalty"] = 0.5
    path.write_text(json.dumps(chosen))
    with pytest.raises(StaleModelError, match=r"'shared_bottom'(.|\n)*settings\.everything\.penalty(.|\n)*now 0\.5"):
        load_recommender(outputs, model="shared_bottom")


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        ("03_primary/items", lambda t: t.assign(item_id="x" + t["item_id"]), "data.identifiers.items"),
        ("04_feature/behaviour_sequences", lambda t: t.assign(rating=6 - t["rating"]), "data.everything.training rows"),
        ("04_feature/user_features", lambda t: t.assign(weight=t["weight"] / 2), "features of users"),
    ],
)
def test_other_data(outputs: Path, table: str, change: object, said: str) -> None:
    path = outputs / f"{table}.parquet"
    change(pd.read_parquet(path)).to_parquet(path)  # type: ignore[operator]
    with pytest.raises(StaleModelError, match=said):
        load_recommender(outputs, model="shared_bottom")


def test_another_user_embedding_model(outputs: Path) -> None:
    """A model that reads the vectors of another one is refused where that is no longer the same."""
    from multitask_recommender.models.stored import read_model, write_model

    path = outputs / "06_models" / "user_embedding" / "weights.safetensors"
    stored = read_model(path)
    stored.state["everything"]["-1"]["weight"] += 1.0  # type: ignore[index, call-overload, operator]
    write_model(path, stored)
    with pytest.raises(StaleModelError, match="user embedding model"):
        load_recommender(outputs, model="two_stage")


def test_a_request_needs_neither_kedro_nor_ibis(outputs: Path) -> None:
    program = (
        "import sys, multitask_recommender\n"
        "assert 'torch' not in sys.modules\n"
        f"r = multitask_recommender.load_recommender({str(outputs)!r})\n"
        "r.recommend(history=['1'], context={'age': 30})\n"
        "print([name for name in ('kedro', 'ibis', 'duckdb') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[]", result.stderr
