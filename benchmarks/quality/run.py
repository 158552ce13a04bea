"""Runs this project's joint model and its peers on several splits; writes results/quality.json and the README's tables.

``python benchmarks/quality/run.py [--split SPLIT ...] [--only NAME ...] [--again | --refit]``, where NAME is
``<script>.<model>``.

Every peer runs in an environment of its own, as processes: one that searches its grid on the validation rows, then one
per seed that fits the chosen settings on the training rows and scores the test pairs. All metrics are computed here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

sys.path.insert(0, str(Path(__file__).resolve().parent))

import report
import split
from measure import Measured, measure, validation_error
from multitask_recommender.data.description import DatasetSettings

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "benchmarks" / ".work"
ENVIRONMENTS = ROOT / "benchmarks" / ".environments"
SEEDS = 3
THREADS = "1"
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=2)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""Runs a command and prints its largest resident memory in units of 1024 bytes. A small process between, because Linux
counts the memory of the process that starts a command as the command's own."""


@dataclass(frozen=True)
class Entry:
    """A model of the benchmark.

    Attributes:
        script: Name of its script and its requirements in ``peers/``.
        key: Its name in the script.
        model: Its name in the results.
        library: Where it comes from.
        stochastic: Whether it is fitted with several seeds.
    """

    script: str
    key: str
    model: str
    library: str
    stochastic: bool = True

    @property
    def name(self) -> str:
        """What ``--only`` calls it; also the name of its folder."""
        return f"{self.script}.{self.key}"


RATING_AND_RANKING = (
    Entry("own", "wide_shared_bottom", "wide_shared_bottom", report.OWN),
    Entry("own", "wide_shared_bottom_dates", f"wide_shared_bottom{report.DATED}", report.OWN),
    Entry("myfm", "regression", "regression", "myFM"),
    Entry("myfm", "ordered_probit", "ordered probit", "myFM"),
    Entry("myfm", "ordered_probit_dates", f"ordered probit{report.DATED}", "myFM"),
    Entry("surprise", "svd_plus_plus", "SVD++", "Surprise"),
    Entry("deepctr_torch", "mmoe", "MMoE", "DeepCTR-Torch"),
    Entry("deepctr_torch", "ple", "PLE", "DeepCTR-Torch"),
    Entry("torch_rechub", "mmoe", "MMoE", "torch-rechub"),
    Entry("torch_rechub", "ple", "PLE", "torch-rechub"),
    Entry("implicit", "ials", "iALS", "implicit"),
    Entry("recbole", "ease", "EASE^R", "RecBole", stochastic=False),
    Entry("recbole", "multivae", "MultiVAE", "RecBole"),
)
WHAT_COMES_NEXT = (
    Entry("own", "wide_shared_bottom_later", f"wide_shared_bottom{report.DATED}", report.OWN),
    Entry("recency_ease", "ease", f"EASE, latest items weighted{report.DATED}", "NumPy", stochastic=False),
    Entry("recbole", "sasrec", f"SASRec{report.DATED}", "RecBole"),
    Entry("recbole", "gru4rec", f"GRU4Rec{report.DATED}", "RecBole"),
    Entry("implicit", "ials", f"iALS{report.DATED}", "implicit"),
)
GIVEN = (
    Entry("own", "wide_shared_bottom", "wide_shared_bottom", report.OWN),
    Entry("surprise", "svd_plus_plus", "SVD++", "Surprise"),
    Entry("implicit", "ials", "iALS", "implicit"),
    Entry("recbole", "ease", "EASE^R", "RecBole", stochastic=False),
    Entry("recbole", "multivae", "MultiVAE", "RecBole"),
)


@dataclass(frozen=True)
class Bench:
    """A split of a data set and the models that are compared on it.

    Attributes:
        name: Name in the results and of its folder.
        entries: The models.
        strategy: Name of the study's split; None: the split of the protocol.
        env: Environment of the data set; None: that of ``conf/base``.
        known: Whether users are asked at the test with their validation rows as well. Nothing is learnt from these.
    """

    name: str
    entries: tuple[Entry, ...]
    strategy: str | None = None
    env: str | None = None
    known: bool = False

    @property
    def work(self) -> Path:
        """Folder of its files."""
        return WORK / self.name


BENCHES = (
    Bench("random", RATING_AND_RANKING),
    Bench("chronological", WHAT_COMES_NEXT, strategy="chronological", known=True),
    Bench("movielens_1m", GIVEN, strategy="given", env="movielens_1m", known=True),
)


class PeerError(Exception):
    """A peer's environment or process failed."""


def load_split(
    parts: split.Parts | None = None, strategy: str | None = None, env: str | None = None
) -> split.SplitData:
    """Read the tables of ``data_engineering``, which runs first if they are not there, and divide them.

    Args:
        parts: (rows,) part of each interaction; None: as the study's split does.
        strategy: Name of that split.
        env: Environment of the data set.
    """
    bootstrap_project(ROOT)
    with KedroSession.create(project_path=ROOT, env=env) as session:
        context = session.load_context()
        if not all(context.catalog.exists(name) for name in ("labelled_interactions", "users", "items", "splits")):
            command = [sys.executable, "-m", "kedro", "run", "--pipelines", "data_engineering"]
            subprocess.run(command + (["--env", env] if env else []), cwd=ROOT, check=True)
        dataset = DatasetSettings.model_validate(context.params["dataset"])
        load = context.catalog.load
        if parts is None:
            assert strategy is not None
            parts = split.study_parts(load, strategy)
        return split.SplitData(load, dataset, parts)


def python_of(script: str, peers: Path = HERE / "peers") -> Path:
    """Return the interpreter of a peer's environment, which is made if its requirements have changed.

    Args:
        script: Name of the environment and of its file of requirements.
        peers: Folder of that file.

    Raises:
        PeerError: If the packages do not install.
    """
    if script == "own":
        return Path(sys.executable)
    requirements = peers / f"{script}.txt"
    folder = ENVIRONMENTS / script
    python, marker = folder / "bin" / "python", folder / "installed.txt"
    wanted = requirements.read_text()
    if not marker.exists() or marker.read_text() != wanted:
        print(f"{script}: installing", flush=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements]
        for command in ([sys.executable, "-m", "venv", folder], install):
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise PeerError(result.stderr[-2000:])
        marker.write_text(wanted)
    return python


def run_script(script: str, arguments: list[str | Path], output: Path) -> float:
    """Run a peer's script and wait for it.

    Returns:
        The largest resident memory of the process in MB (10^6 bytes).

    Raises:
        PeerError: If it fails, with the end of what it said.
    """
    log = output.with_suffix(".log")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT / "src")] if script == "own" else [str(HERE)]),
        "TQDM_DISABLE": "1",
        **dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"], THREADS),
    }
    command = [python_of(script), "-W", "ignore", "-m", f"peers.{script}", *arguments, "--output", output]
    with log.open("w") as stream:
        process = subprocess.run(
            [sys.executable, "-c", LAUNCHER, *[str(part) for part in command]],
            cwd=output.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
        )
    if process.returncode:
        raise PeerError(f"exit code {process.returncode}\n{log.read_text()[-1500:]}")
    return int(process.stdout) * 1024 / 1e6


def read_scores(path: Path) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Read what a script wrote: settings and scores, in the order of its grid."""
    with np.load(path) as file:
        settings = json.loads(str(file["settings"]))
        scores = [
            {name.removeprefix(f"{number}."): file[name] for name in file.files if name.startswith(f"{number}.")}
            for number in range(len(settings))
        ]
    return list(zip(settings, scores, strict=True))


def digest(script: str, training: Path) -> str:
    """Fingerprint of everything that a peer's scores depend on."""
    files = [HERE / "peers" / "common.py", HERE / "peers" / f"{script}.py", training]
    if script == "own":
        files += [*sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "conf" / "base").glob("parameters_*.yml"))]
    else:
        files.append(HERE / "peers" / f"{script}.txt")
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _write_json(path: Path, value: Any) -> None:
    report.write_whole(path, json.dumps(value, indent=1) + "\n")


def search(entry: Entry, data: split.SplitData, folder: Path) -> dict[str, Any]:
    """Return the settings with the smallest validation error; all errors are kept in ``search.json``."""
    output, work = folder / "search.npz", folder.parent
    arguments: list[str | Path] = ["search", "--model", entry.key, "--training", work / "training.npz"]
    run_script(entry.script, [*arguments, "--pairs", work / "validation.npz"], output)
    tried = [
        {"error": validation_error(scores, data), "settings": settings, "seconds": float(scores["seconds"])}
        for settings, scores in read_scores(output)
    ]
    _write_json(folder / "search.json", tried)
    output.unlink()
    return min(tried, key=lambda one: one["error"])["settings"]


def run_entry(entry: Entry, data: split.SplitData, work: Path, again: bool, refit: bool) -> None:
    """Search and fit a model, unless its scores are there and nothing that they depend on has changed.

    Args:
        entry: The model.
        data: The split.
        work: Folder of the split's files.
        again: Whether to search and fit in any case.
        refit: Whether to fit in any case, with the settings that were found before.
    """
    folder, training = work / entry.name, work / "known.npz"
    folder.mkdir(parents=True, exist_ok=True)
    current, marker = digest(entry.script, training), folder / "finished.json"
    finished = json.loads(marker.read_text()) if marker.exists() else None
    if again or finished is None or finished["digest"] != current:
        marker.unlink(missing_ok=True)
        print(f"{entry.name}: searching", flush=True)
        settings = search(entry, data, folder)
    elif refit:
        settings = finished["settings"]
    else:
        print(f"{entry.name}: finished before", flush=True)
        return
    peaks = []
    for seed in range(SEEDS if entry.stochastic else 1):
        print(f"{entry.name}: fitting seed {seed} with {settings}", flush=True)
        arguments: list[str | Path] = ["fit", "--model", entry.key, "--training", training, "--seed", str(seed)]
        arguments += ["--pairs", work / "test.npz", "--settings", json.dumps(settings)]
        peaks.append(run_script(entry.script, arguments, folder / f"seed{seed}.npz"))
    _write_json(marker, {"digest": current, "settings": settings, "peak_mb": peaks})


def collect(bench: Bench, data: split.SplitData) -> tuple[list[dict[str, Any]], dict[tuple[str, str], list[Measured]]]:
    """Measure the finished models of a split on its test rows.

    Returns:
        records; (model, library) to what was measured, one per seed.
    """
    records: list[dict[str, Any]] = []
    measured: dict[tuple[str, str], list[Measured]] = {}
    for entry in bench.entries:
        folder = bench.work / entry.name
        if not (folder / "finished.json").exists():
            continue
        for seed, peak in enumerate(json.loads((folder / "finished.json").read_text())["peak_mb"]):
            ((_, scores),) = read_scores(folder / f"seed{seed}.npz")
            result = measure(scores, data.test, [data.train, data.validation], data)
            measured.setdefault((entry.model, entry.library), []).append(result)
            values = {name: None if value is None else round(value, 5) for name, value in result.values.items()}
            cost = {"fit_seconds": round(float(scores["seconds"]), 2), "peak_mb": round(peak, 1)}
            what = {"split": bench.name, "model": entry.model, "library": entry.library, "seed": seed}
            records.append({**what, **values, **cost})
    return records, measured


def run_bench(bench: Bench, only: list[str], again: bool, refit: bool) -> tuple[list[Any], list[Any], list[str]]:
    """Run the models of a split that are asked for.

    Returns:
        Records, comparisons, and the names of the models that failed.
    """
    bench.work.mkdir(parents=True, exist_ok=True)
    parts = split.random_parts(split.ROWS) if bench.strategy is None else None
    data = load_split(parts, bench.strategy, bench.env)
    split.write_arrays(bench.work / "training.npz", data.arrays())
    split.write_arrays(bench.work / "known.npz", data.arrays(bench.known))
    split.write_pairs(bench.work / "validation.npz", data.validation)
    split.write_pairs(bench.work / "test.npz", data.test)
    failed = []
    for entry in bench.entries:
        if entry.name in only:
            try:
                run_entry(entry, data, bench.work, again, refit)
            except PeerError as error:
                failed.append(f"{entry.name} on {bench.name}")
                print(f"{entry.name} FAILED, and the others go on: {error}", file=sys.stderr, flush=True)
    records, measured = collect(bench, data)
    return records, [{"split": bench.name, **one} for one in report.compare(measured)], failed


def main() -> None:
    """Run the benchmark; splits that are not asked for, and peers without scores, keep their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = list(dict.fromkeys(entry.name for bench in BENCHES for entry in bench.entries))
    splits = [bench.name for bench in BENCHES]
    help_of_splits = f"{', '.join(splits)}; by default those of MovieLens-100k"
    parser.add_argument("--split", nargs="+", choices=splits, default=splits[:2], metavar="SPLIT", help=help_of_splits)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--again", action="store_true", help="search and fit also what is finished")
    parser.add_argument(
        "--refit", action="store_true", help="fit what is finished again, with the settings found before"
    )
    arguments = parser.parse_args()
    failed = []
    for bench in BENCHES:
        if bench.name in arguments.split:
            *found, problems = run_bench(bench, arguments.only, arguments.again, arguments.refit)
            failed += problems
            paths = [report.RESULTS / f"{name}.json" for name in ("quality", "quality_comparisons")]
            before = [json.loads(path.read_text()) if path.exists() else [] for path in paths]
            same = [[one for one in table if one["split"] == bench.name] for table in before]
            try:
                together = report.beside_earlier(*found, *same)
            except report.EarlierResultsError as error:
                sys.exit(str(error))
            for path, table, own in zip(paths, before, together, strict=True):
                others = [one for one in table if one["split"] != bench.name]
                _write_json(path, sorted([*others, *own], key=lambda one: splits.index(one["split"])))
            report.write_table()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the results are without them")


if __name__ == "__main__":
    main()
