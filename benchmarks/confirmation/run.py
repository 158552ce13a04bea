"""Runs the core study on splits that nobody has looked at, once, and says how many of the main table's verdicts hold.

``python benchmarks/confirmation/run.py [--env ENV]``, after ``kedro run [--env ENV]``. The splits are five random ones
by new seeds and, where the data has times, two later cuts in time. Every one is a run of its own, with its own choice
of parameters inside its training rows, in ``benchmarks/.confirmation/``; what is finished is not made again unless the
code, the parameters or the data have changed. Writes ``results/confirmation_<data set>.json`` and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.evaluation.groups import overall
from multitask_recommender.evaluation.metric_records import METRICS, main_metric
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.models.variants import VARIANTS

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "benchmarks" / ".confirmation"
RESULTS = ROOT / "benchmarks" / "results"
ENVIRONMENT = "confirmation"


@dataclass(frozen=True)
class Fresh:
    """A split that is looked at once.

    Attributes:
        name: Name of its folder.
        strategy: Name of the strategy; the split of this name in the main study is what it confirms.
        changes: What differs from the main study's ``splits``.
    """

    name: str
    strategy: str
    changes: dict[str, Any]


FRESH = (
    *(Fresh(f"random_{seed}", "random", {"seed": seed}) for seed in (201, 202, 203, 204, 205)),
    *(Fresh(f"temporal_{share}", "temporal", {"test_share": share / 100}) for share in (12, 8)),
)
"""Others than those of the confirmation before, whose figures are known: seeds 101 to 105, the last 15 and 10 %."""


def write_configuration(folder: Path, fresh: Fresh, env: str | None) -> Path:
    """Copy the configuration, with an environment that differs from the asked one by its splits and its outputs.

    Returns:
        The folder of the configuration.
    """
    target = folder / "conf"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "conf", target)
    overlay = target / ENVIRONMENT
    if env is None:
        overlay.mkdir()
    else:
        shutil.copytree(target / env, overlay)
    path = overlay / "parameters.yml"
    parameters = yaml.safe_load(path.read_text()) if path.exists() else {}
    parameters["splits"] = {**parameters.get("splits", {}), "strategies": [fresh.strategy], **fresh.changes}
    path.write_text(yaml.safe_dump(parameters, sort_keys=False))
    (overlay / "globals.yml").write_text(yaml.safe_dump({"folder": (folder / "data").as_posix()}))
    return target


def run(fresh: Fresh, env: str | None) -> Path:
    """Run the core study on a split, of which what has not changed is reused, and return the folder of its reports."""
    folder = WORK / (env or "base") / fresh.name
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{fresh.name}: running", flush=True)
    command = [sys.executable, "-m", "kedro", "run", "--env", ENVIRONMENT]
    command += ["--conf-source", str(write_configuration(folder, fresh, env))]
    with (folder / "run.log").open("w") as log:
        code = subprocess.call(command, cwd=ROOT, env={**os.environ, "TQDM_DISABLE": "1"}, stdout=log, stderr=log)
    if code:
        sys.exit(f"{fresh.name} failed:\n{(folder / 'run.log').read_text()[-2000:]}")
    return folder / "data" / "08_reporting"


def primary_rows(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return the primary family, with the column ``against``: the own control, or the best baseline of that split."""
    family = comparisons[comparisons["p_primary"].notna()]
    baseline = family["control"].map(lambda name: VARIANTS[name].kind == "baseline")
    return family.assign(against=np.where(baseline, "best baseline", "own control"))


def confirm(main: pd.DataFrame, fresh: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """Set the primary comparisons of the main study beside those of fresh splits.

    Args:
        main: The comparisons of the main study.
        fresh: Strategy and comparisons of every fresh split.

    Returns:
        A row per comparison of the main study on a strategy with fresh splits: relative gain (above 0 is better) and
        verdict there, mean and standard deviation of the gains on the fresh splits, how many of them there are, on how
        many the gain has the same sign, and on how many the verdict is the same.
    """
    rows = []
    tables = [(strategy, primary_rows(table)) for strategy, table in fresh]
    for row in primary_rows(main).itertuples():
        sign = METRICS[row.metric].sign
        same = [
            table[(table["model"] == row.model) & (table["task"] == row.task) & (table["against"] == row.against)]
            for strategy, table in tables
            if strategy == row.split
        ]
        found = pd.concat([table for table in same if len(table)]) if any(map(len, same)) else None
        if found is None:
            continue
        gain, gains = sign * row.relative, sign * found["relative"]
        rows.append(
            {
                "split": row.split,
                "model": row.model,
                "against": row.against,
                "task": row.task,
                "metric": row.metric,
                "gain": gain,
                "verdict": row.primary_verdict,
                "fresh_gain": gains.mean(),
                "fresh_spread": gains.std(),
                "splits": len(found),
                "same_sign": int((np.sign(gains) == np.sign(gain)).sum()),
                "same_verdict": int((found["primary_verdict"] == row.primary_verdict).sum()),
            }
        )
    return pd.DataFrame(rows)


def main_metrics(table: pd.DataFrame, dataset: DatasetSettings, k: int) -> pd.DataFrame:
    """Return split, model, task and the value of the task's main metric, mean over seeds."""
    shown = overall(table)
    shown = shown[shown["k"].isin([0, k])]
    shown = shown[shown["metric"] == shown["task"].map(lambda name: main_metric(dataset.tasks[name].kind).name)]
    return shown.groupby(["split", "model", "task", "metric"], sort=False)["value"].mean().reset_index()


def main() -> None:
    """Run all fresh splits and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", help="environment of the data set; none: that of conf/base")
    env = parser.parse_args().env
    bootstrap_project(ROOT)
    with KedroSession.create(project_path=ROOT, env=env) as session:
        context = session.load_context()
        dataset = DatasetSettings.model_validate(context.params["dataset"])
        splits = SplitSettings.model_validate(context.params["splits"])
        k = EvaluationSettings.model_validate(context.params["evaluation"]).headline_k
        before, measured = context.catalog.load("comparisons"), context.catalog.load("metrics")
    asked = [fresh for fresh in FRESH if fresh.strategy in splits.names]
    folders = [(fresh, run(fresh, env)) for fresh in asked]
    tables = [(fresh.strategy, pd.read_csv(folder / "comparisons.csv")) for fresh, folder in folders]
    verdicts = confirm(before, tables)
    values = {fresh.name: main_metrics(pd.read_csv(at / "metrics.csv"), dataset, k) for fresh, at in folders}
    values["main"] = main_metrics(measured, dataset, k)
    together = pd.concat(table.assign(of=name) for name, table in values.items())
    wide = together.pivot_table(index=["split", "model", "task", "metric"], columns="of", values="value", sort=False)
    result = {
        "verdicts": verdicts.round(6).to_dict("records"),
        "metrics": wide.round(6).reset_index().to_dict("records"),
    }
    (RESULTS / f"confirmation_{dataset.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(verdicts.round(4).to_string(index=False))
    helped = verdicts[verdicts["verdict"] == "helps"]
    held = (verdicts["splits"] == verdicts["same_verdict"]).sum()
    kept = (helped["splits"] == helped["same_sign"]).sum()
    print(f"The same on all fresh splits: {held} of {len(verdicts)} primary verdicts.")
    print(f"Of the same sign on all fresh splits: {kept} of {len(helped)} that say 'helps'.")


if __name__ == "__main__":
    main()
