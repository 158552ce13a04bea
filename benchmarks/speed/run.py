"""Measures the speed of this project and of its peers in turn; writes results/speed.json and the README's tables.

``python benchmarks/speed/run.py [--quick] [--only PART ...] [--again]``. What was measured is kept in
``benchmarks/.work/speed`` and is not measured again unless the code that it depends on has changed.

Every library runs in an environment of its own, in a process that waits for its turn. After a first run that does not
count, this project and its peers take turns, so that what else the machine does hits all alike; figures are medians.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quality"))

# The runner of the other benchmark, whose split, environments and processes this one shares.
import run as quality
import split
import tables
from measure import measure
from peers import own as joint
from peers.common import read_training

HERE = Path(__file__).resolve().parent
QUALITY = HERE.parent / "quality"
WORK = quality.WORK / "speed"
RANDOM = quality.WORK / "random"
SHARED = {"deepctr_torch", "torch_rechub", "recbole", "implicit"}
"""Libraries whose environment is that of the other benchmark."""
OWN = "multitask-recommender"
BATCHES = (256, 1024, 4096, 16384)
"""Sizes of the peers' batches, of which the fastest counts."""
USER_BATCHES = (5, 10, 20)
"""The same of this project: batches of users an epoch, of 16,000 to 4,000 rows."""
EXPERTS = {"expert_layers": [256, 128], "embedding": 16}
TOP = {"users": 50_000, "items": 20_000, "width": 64, "known": 100, "k": 20}
TOP_QUICK = {**TOP, "users": 4_000}


class Worker:
    """A process that does one task whenever it is asked.

    Args:
        library: Name of its script and environment.
        task: Name of the task.
        arguments: Arguments of the task; ``threads`` among them.
    """

    def __init__(self, library: str, task: str, arguments: dict[str, Any]) -> None:
        peers = QUALITY / "peers" if library in SHARED else HERE / "workers"
        python = quality.python_of(library, peers)
        threads = str(arguments["threads"])
        names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"]
        paths = [HERE, QUALITY, *([quality.ROOT / "src"] if library == "own" else [])]
        WORK.mkdir(parents=True, exist_ok=True)
        self._log = (WORK / f"{library}.{task}.log").open("w+")
        answers, place = os.pipe()
        self._answers = os.fdopen(answers)
        self._process = subprocess.Popen(
            [python, "-W", "ignore", "-m", f"workers.{library}", task, json.dumps(arguments)],
            cwd=WORK,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "TQDM_DISABLE": "1",
                "ANSWERS": str(place),
                **dict.fromkeys(names, threads),
            },
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[place],
            text=True,
        )
        os.close(place)
        self._answer()

    def seconds(self) -> float:
        """Let it do its work once and return the seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def end(self) -> None:
        """Let it go."""
        self._process.communicate()
        self._answers.close()
        self._log.close()

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            self._log.seek(0)
            raise quality.PeerError(f"{self._process.args[-3]} ended: {self._log.read()[-1500:]}")
        return json.loads(line)


Job = tuple[str, str, dict[str, Any]]
"""Library, task, arguments."""


def in_turn(jobs: dict[str, Job], repeats: int) -> dict[str, list[float]]:
    """Measure several workers, each in every round once; a first round does not count."""
    workers: dict[str, Worker] = {}
    try:
        for name, job in jobs.items():
            workers[name] = Worker(*job)
            workers[name].seconds()
        found: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(repeats):
            for name, worker in workers.items():
                found[name].append(worker.seconds())
        return found
    finally:
        for worker in workers.values():
            worker.end()


def kept(name: str, depends_on: list[Path], what: Any, again: bool, find: Callable[[], Any]) -> Any:
    """Return what was found before, unless code or arguments have changed.

    Args:
        name: Name of the file.
        depends_on: Files of code and data.
        what: What was asked for.
        again: Whether to find it in any case.
        find: Finds it.
    """
    content = b"".join(path.read_bytes() for path in depends_on) + json.dumps(what, sort_keys=True).encode()
    digest, path = hashlib.sha256(content).hexdigest(), WORK / f"{name}.json"
    if path.exists() and not again:
        before = json.loads(path.read_text())
        if before["digest"] == digest:
            print(f"{name}: measured before", flush=True)
            return before["found"]
    print(f"{name}: measuring", flush=True)
    found = find()
    tables.write_whole(path, json.dumps({"digest": digest, "found": found}, indent=1) + "\n")
    return found


def code(*libraries: str) -> list[Path]:
    """Return the files that the measurements of some libraries depend on."""
    files = [HERE / "workers" / "common.py"]
    for library in libraries:
        script = HERE / "workers" / f"{library}.py"
        files += [script] if script.exists() else [QUALITY / "peers" / f"{library}.py"]
        folder = QUALITY / "peers" if library in SHARED else HERE / "workers"
        files += [folder / f"{library}.txt"] if library != "own" else sorted((quality.ROOT / "src").rglob("*.py"))
    return files


def record(name: str, ours: list[float] | float | None, peer: list[float] | float | None, peer_name: str) -> Any:
    """Return a record: medians in seconds, and how many times as long the peer takes."""
    own, other = (statistics.median(one) if isinstance(one, list) else one for one in (ours, peer))
    ratio = None if own is None or other is None else round(other / own, 2)
    seconds = [None if one is None else float(f"{one:.4g}") for one in (own, other)]
    return {"name": name, "ours": seconds[0], "peer": seconds[1], "peer_name": peer_name, "ratio": ratio}


def epochs(quick: bool, again: bool) -> list[Any]:
    """Seconds of an epoch of MMoE and PLE over the training ratings."""
    repeats, records = (1 if quick else 7), []
    training = {"training": str(RANDOM / "training.npz"), **EXPERTS}
    peers = {"deepctr_torch": "DeepCTR-Torch", "torch_rechub": "torch-rechub"}
    for threads in (1, 2):
        for kind in ("mmoe", "ple"):

            def job(library: str, size: int, kind: str = kind, threads: int = threads) -> Job:
                how = {"batches" if library == "own" else "batch": size, "kind": kind, "threads": threads}
                return library, "epoch", {**training, **how}

            def find(kind: str = kind, job: Callable[..., Job] = job) -> Any:
                best: dict[str, int] = {}
                forms = {"own": kind, "own_pairwise": f"{kind}_pairwise"}
                for name in (*forms, *peers):
                    own = name in forms
                    sizes = (USER_BATCHES if own else BATCHES)[1:2] if quick else USER_BATCHES if own else BATCHES
                    jobs = {str(size): job("own", size, forms[name]) if own else job(name, size) for size in sizes}
                    seconds = {size: min(times) for size, times in in_turn(jobs, 1 if quick else 2).items()}
                    best[name] = int(min(seconds, key=lambda size: seconds[size]))
                jobs = {name: job("own", best[name], form) for name, form in forms.items()}
                jobs |= {name: job(name, best[name]) for name in peers}
                return {"best": best, "seconds": in_turn(jobs, repeats)}

            title = f"{kind}_{threads}_thread{'s' if threads > 1 else ''}"
            found = kept(f"epoch_{title}", code("own", *peers), [training, repeats, kind, threads], again, find)
            for library, peer_name in peers.items():
                for form, suffix in (("own", ""), ("own_pairwise", "_pairwise")):
                    name = f"epoch_{kind}{suffix}_{threads}_thread{'s' if threads > 1 else ''}"
                    one = record(name, found["seconds"][form], found["seconds"][library], peer_name)
                    records.append({**one, "batch": found["best"][form], "peer_batch": found["best"][library]})
    return records


CHOSEN: dict[str, tuple[str, dict[str, Any], list[int]]] = {
    "deepctr_torch.mmoe": ("MMoE (DeepCTR-Torch)", {"l2": 3.0, "dropout": 0.2, "epochs": 12}, [6, 9, 12, 15, 18]),
    "deepctr_torch.ple": ("PLE (DeepCTR-Torch)", {"l2": 3.0, "dropout": 0.2, "epochs": 12}, [6, 9, 12, 15, 18]),
    "torch_rechub.mmoe": ("MMoE (torch-rechub)", {"decay": 1e-4, "dropout": 0.2, "epochs": 6}, [3, 6, 9, 12]),
    "torch_rechub.ple": ("PLE (torch-rechub)", {"decay": 1e-5, "dropout": 0.2, "epochs": 4}, [2, 4, 6]),
    "myfm.regression": ("regression (myFM)", {"rank": 16, "sweeps": 140, "kept": 120}, []),
    "myfm.ordered_probit": ("ordered probit (myFM)", {"rank": 10, "sweeps": 140, "kept": 120}, []),
    "surprise.svd_plus_plus": (
        "SVD++ (Surprise)",
        {"factors": 50, "learning_rate": 0.01, "penalty": 0.1, "epochs": 45},
        [],
    ),
    "recbole.multivae": (
        "MultiVAE (RecBole)",
        {
            "learning_rate": 0.001,
            "mlp_hidden_size": [600],
            "latent_dimension": 128,
            "dropout_prob": 0.5,
            "anneal_cap": 0.2,
            "train_batch_size": 2048,
            "epochs": 150,
        },
        [50, 100, 150, 200],
    ),
    "recbole.ease": ("EASE^R (RecBole)", {"reg_weight": 300.0}, []),
}
"""Peers of the time to quality: title, the settings that the search of the benchmark of quality chose, and the epochs
at which the best that the peer ever reaches is looked for."""
MULTI_TASK = ("deepctr_torch.mmoe", "deepctr_torch.ple", "torch_rechub.mmoe", "torch_rechub.ple")
QUICK_PEERS = ("torch_rechub.ple", "recbole.ease")
BUDGETS: list[dict[str, Any]] = [
    {
        "dimension": 48,
        "training.epochs": 1,
        "training.batches": 2,
        "wide.sequence_weight": 0.0,
        "wide_labels_share": 0.9,
        "wide_labels.dimension": 4,
        "wide_labels.sweeps": 12,
        "wide_labels.burn_in": 4,
        "wide_labels.samples": 8,
    },
    {"training.epochs": 1, "wide_labels.sweeps": 10, "wide_labels.burn_in": 3, "wide_labels.samples": 8},
    {"training.epochs": 1, "wide_labels.sweeps": 14, "wide_labels.burn_in": 4, "wide_labels.samples": 10},
    {"training.epochs": 3, "wide_labels.sweeps": 18, "wide_labels.burn_in": 5, "wide_labels.samples": 12},
    {"training.epochs": 5, "wide_labels.sweeps": 24, "wide_labels.burn_in": 8, "wide_labels.samples": 16},
    {"training.epochs": 10, "wide_labels.sweeps": 45, "wide_labels.burn_in": 10},
    {"training.epochs": 15, "wide_labels.sweeps": 70, "wide_labels.burn_in": 10},
    {},
]
"""What is changed of this project's settings, from the smallest amount of work to all of it."""
JOINT = {"retrieval_weight": 0.7, "training.encoder_rate": 0.08, "wide.sequence_weight": 3.0}
"""What the search of the benchmark of quality chose of the joint model's search space; the rest is ``conf/base``."""


def time_to_quality(quick: bool, again: bool) -> list[Any]:
    """Seconds until the joint model is as good on the validation rows as a peer ever gets, and of the peer's fit."""
    data = quality.load_split(split.random_parts(split.ROWS))

    def fit(script: str, model: str, settings: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
        """Fit once; one entry for every number of epochs that is looked at."""
        output = WORK / "fit.npz"
        arguments = ["fit", "--model", model, "--training", RANDOM / "training.npz", "--seed", str(seed)]
        arguments += ["--pairs", RANDOM / "validation.npz", "--settings", json.dumps(settings)]
        quality.run_script(script, arguments, output)
        found = []
        for reached, scores in quality.read_scores(output):
            values = measure(scores, data.validation, [data.train], data).values
            seconds, own = float(scores["seconds"]), {"rmse": values["rmse"], "ndcg_10": values["ndcg_10"]}
            found.append({"epochs": reached.get("epochs"), "seconds": seconds, **own})
        output.unlink()
        return found

    common = {"learning_rate": 0.002, "embedding": 16, "init": 0.05, "batch": 1024}
    peers: dict[str, Any] = {}
    for name in QUICK_PEERS if quick else CHOSEN:
        _, chosen, stops = CHOSEN[name]
        script, _, model = name.partition(".")
        settings = {**(common if name in MULTI_TASK else {}), **chosen}

        def find(
            script: str = script, model: str = model, settings: dict[str, Any] = settings, stops: list[int] = stops
        ) -> Any:
            whole = fit(script, model, settings)[-1]
            # A long fit is measured once: the noise of a minute is small beside it.
            more = [] if quick or whole["seconds"] > 20 else [fit(script, model, settings)[-1] for _ in range(2)]
            path = [] if quick or not stops else fit(script, model, {**settings, "epochs": stops})
            return {"seconds": [one["seconds"] for one in (whole, *more)], "path": [whole, *path]}

        files = [QUALITY / "peers" / "common.py", QUALITY / "peers" / f"{script}.py", RANDOM / "training.npz"]
        peers[name] = kept(f"time_to_quality_{name}", files, [settings, stops, quick], again, find)
    block = joint.block(read_training(RANDOM / "training.npz"), dated=False, later=False)
    own: list[Any] = []
    for number, budget in enumerate(BUDGETS):
        settings = block.with_values({**JOINT, **budget}).model_dump(mode="json")
        own.append(
            kept(
                f"time_to_quality_own_{number}",
                [*code("own"), RANDOM / "training.npz"],
                [settings, quick],
                again,
                lambda settings=settings: [
                    fit("own", "wide_shared_bottom", settings)[-1] for _ in range(1 if quick else 3)
                ],
            )
        )

    def until(rmse: float | None, ndcg: float | None) -> list[float] | None:
        """Return the seconds of the smallest amount of work that is as good."""
        for tries in own:
            if (rmse is None or tries[0]["rmse"] < rmse) and (ndcg is None or tries[0]["ndcg_10"] > ndcg):
                return [one["seconds"] for one in tries]
        return None

    def best(name: str, what: str) -> float | None:
        values = [one[what] for one in peers[name]["path"] if one[what] is not None]
        return None if not values else min(values) if what == "rmse" else max(values)

    records = []
    for name, found in peers.items():
        goal = {"rmse": best(name, "rmse"), "ndcg": best(name, "ndcg_10")}
        one = record(f"time_to_quality_{name}", until(**goal), found["seconds"], CHOSEN[name][0])
        records.append({**one, "validation_rmse": goal["rmse"], "validation_ndcg_10": goal["ndcg"]})
    networks = [name for name in MULTI_TASK if name in peers]
    fastest = min(networks, key=lambda name: statistics.median(peers[name]["seconds"]))
    goal = min(best(name, "rmse") or float("inf") for name in networks)
    one = record("time_to_quality_multi_task", until(goal, None), peers[fastest]["seconds"], CHOSEN[fastest][0])
    records.append({**one, "validation_rmse": goal, "validation_ndcg_10": None})
    both = ("recbole.ease", "surprise.svd_plus_plus")
    if all(name in peers for name in both):
        rmse, ndcg = best(both[1], "rmse"), best(both[0], "ndcg_10")
        total = sum(statistics.median(peers[name]["seconds"]) for name in both)
        one = record("time_to_quality_both", until(rmse, ndcg), total, "EASE^R (RecBole) and SVD++ (Surprise)")
        records.append({**one, "validation_rmse": rmse, "validation_ndcg_10": ndcg})
    return records


def evaluation(quick: bool, again: bool) -> list[Any]:
    """Seconds to rank the catalogue for all users and to compute all metrics of lists."""
    data = quality.load_split(split.random_parts(split.ROWS))
    train, test = data.train, data.validation
    pairs = np.zeros((data.users, data.items), np.float32)
    pairs[train.user, train.item] = 1.0
    inverse = np.linalg.inv(pairs.T.astype(np.float64) @ pairs + 300.0 * np.eye(data.items))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    genres = data.arrays()["genres"]
    features = np.zeros((data.items, int(genres.max()) + 1), np.float32)
    features[np.arange(data.items)[:, None], genres] = 1.0
    features[:, 0] = 0.0
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1.0)
    file = WORK / "scores.npz"
    split.write_arrays(
        file,
        {
            "matrix": (pairs @ weights).astype(np.float32),
            "features": features,
            "train_user": train.user,
            "train_item": train.item,
            "test_user": test.user,
            "test_item": test.item,
        },
    )
    peers = {"recbole": "RecBole", "rectools": "RecTools", "ranx": "ranx"}
    what = {"file": str(file), "threads": 1}
    repeats = 3 if quick else 21

    def find() -> Any:
        return in_turn({name: (name, "evaluate", what) for name in ("own", *peers)}, repeats)

    found = kept("evaluation", code("own", *peers), [what, repeats], again, find)
    return [record(f"evaluation_{name}", found["own"], found[name], title) for name, title in peers.items()]


def top(quick: bool, again: bool) -> list[Any]:
    """Seconds to make the 20 best items of many users, known items left out."""
    size = TOP_QUICK if quick else TOP
    random = np.random.default_rng(7)
    file = WORK / f"vectors_{size['users']}.npz"
    WORK.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        known = np.sort(random.integers(0, size["items"], (size["users"], size["known"])), axis=1)
        split.write_arrays(
            file,
            {
                "users": random.standard_normal((size["users"], size["width"]), dtype=np.float32),
                "items": random.standard_normal((size["items"], size["width"]), dtype=np.float32),
                "indices": known.ravel().astype(np.int32),
                "indptr": np.arange(size["users"] + 1, dtype=np.int32) * size["known"],
            },
        )
    titles = {
        "product": "matrix product alone",
        "implicit": "implicit",
        "faiss": "faiss, known items left out of longer lists",
        "faiss_search": "faiss, nothing left out",
    }
    records = []
    for threads in (1, 2):
        what = {"file": str(file), "threads": threads, "k": size["k"]}
        jobs: dict[str, Job] = {"own": ("own", "top", what), "product": ("own", "product", what)}
        jobs |= {name: (name, "top", what) for name in ("implicit", "faiss")}
        jobs["faiss_search"] = ("faiss", "search", what)
        name = f"{threads}_thread{'s' if threads > 1 else ''}"
        repeats = 2 if quick else 7
        found = kept(
            f"top20_{name}",
            code("own", "implicit", "faiss"),
            [what, repeats],
            again,
            partial(in_turn, jobs, repeats),
        )
        records += [record(f"top20_{peer}_{name}", found["own"], found[peer], title) for peer, title in titles.items()]
    return records


PARTS: dict[str, Callable[[bool, bool], list[Any]]] = {
    "epoch": epochs,
    "time_to_quality": time_to_quality,
    "evaluation": evaluation,
    "top20": top,
}


def main() -> None:
    """Run the benchmark; parts that are not asked for keep their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--quick", action="store_true", help="few repeats, few peers; writes no results")
    parser.add_argument("--again", action="store_true", help="measure also what is there already")
    arguments = parser.parse_args()
    RANDOM.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    data = quality.load_split(split.random_parts(split.ROWS))
    split.write_arrays(RANDOM / "training.npz", data.arrays())
    split.write_pairs(RANDOM / "validation.npz", data.validation)
    for name in arguments.only:
        records = PARTS[name](arguments.quick, arguments.again)
        for one in records:
            print(json.dumps(one), flush=True)
        if not arguments.quick:
            tables.keep(name, records)
    if not arguments.quick:
        tables.write_table()


if __name__ == "__main__":
    main()
