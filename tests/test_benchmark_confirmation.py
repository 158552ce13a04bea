"""Fresh splits are configured as declared, and set beside the verdicts that they confirm or refute."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import yaml

from multitask_recommender.data.description import SplitSettings

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def confirmation() -> ModuleType:
    path = ROOT / "benchmarks" / "confirmation" / "run.py"
    specification = importlib.util.spec_from_file_location("confirmation_run", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["confirmation_run"] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("env", [None, "book_crossing"])
def test_a_fresh_split_differs_by_its_splits_and_outputs_alone(
    confirmation: ModuleType, tmp_path: Path, env: str | None
) -> None:
    main = yaml.safe_load((ROOT / "conf" / "base" / "parameters_data_engineering.yml").read_text())["splits"]
    seeds, shares = {main["seed"]}, {main["test_share"]}
    for fresh in confirmation.FRESH:
        conf = confirmation.write_configuration(tmp_path, fresh, env)
        own = yaml.safe_load((conf / "confirmation" / "parameters.yml").read_text())
        before = {} if env is None else yaml.safe_load((ROOT / "conf" / env / "parameters.yml").read_text())
        assert {name: value for name, value in own.items() if name != "splits"} == {
            name: value for name, value in before.items() if name != "splits"
        }
        folder = yaml.safe_load((conf / "confirmation" / "globals.yml").read_text())["folder"]
        assert Path(folder) == tmp_path / "data"
        settings = SplitSettings.model_validate({**main, **own["splits"]})
        assert settings.names == [fresh.strategy]
        # Another one than those of the study and of the other fresh splits.
        fresh_one = settings.seed not in seeds if fresh.strategy == "random" else settings.test_share not in shares
        assert fresh_one, fresh.name
        seeds.add(settings.seed)
        shares.add(settings.test_share)
    assert sum(fresh.strategy == "random" for fresh in confirmation.FRESH) == 5
    assert sum(fresh.strategy == "temporal" for fresh in confirmation.FRESH) == 2


def comparisons(split: str, relative: dict[tuple[str, str], float], verdict: str) -> pd.DataFrame:
    rows = [
        {
            "split": split,
            "model": "shared_bottom",
            "control": control,
            "task": "rating" if metric == "rmse" else "watch",
            "metric": metric,
            "relative": value,
            "p_primary": 0.01 if value else None,
            "primary_verdict": verdict if value else None,
        }
        for (control, metric), value in relative.items()
    ]
    return pd.DataFrame(rows)


def test_gains_are_set_beside_those_of_fresh_splits(confirmation: ModuleType) -> None:
    main = pd.concat(
        [
            comparisons(
                "random", {("single_task", "rmse"): -0.02, ("ease", "ndcg"): 0.1, ("ials", "ndcg"): 0.0}, "helps"
            ),
            comparisons("chronological", {("single_task", "rmse"): -0.02}, "helps"),
        ],
        ignore_index=True,
    )
    fresh = [
        # The best baseline may be another one there.
        ("random", comparisons("random", {("single_task", "rmse"): -0.01, ("ials", "ndcg"): 0.2}, "helps")),
        ("random", comparisons("random", {("single_task", "rmse"): 0.01, ("ease", "ndcg"): 0.1}, "undecided")),
        ("temporal", comparisons("temporal", {("single_task", "rmse"): 0.5}, "harms")),
    ]
    found = confirmation.confirm(main, fresh).set_index(["split", "metric"])
    assert len(found) == 2  # Nothing is fresh of the chronological split.
    rating, watch = found.loc[("random", "rmse")], found.loc[("random", "ndcg")]
    assert rating["gain"] == pytest.approx(0.02)  # Smaller errors are a gain.
    assert rating["fresh_gain"] == pytest.approx(0.0)
    assert rating["fresh_spread"] == pytest.approx(0.02 / 2**0.5)
    assert (rating["splits"], rating["same_sign"], rating["same_verdict"]) == (2, 1, 1)
    assert watch["against"] == "best baseline"
    assert watch["fresh_gain"] == pytest.approx(0.15)
    assert (watch["splits"], watch["same_sign"], watch["same_verdict"]) == (2, 2, 1)
