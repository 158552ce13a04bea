"""The benchmark against peers, without the peers and without the data."""

import json
import sys
from types import SimpleNamespace

import ibis
import numpy as np
import pytest

from conftest import ROOT, make_interactions
from multitask_recommender.data.description import SplitSettings
from multitask_recommender.data.splits import assign_splits
from multitask_recommender.evaluation import metrics

RECORD = {
    "split",
    "model",
    "library",
    "seed",
    "rmse",
    "mae",
    "ndcg_10",
    "recall_10",
    "coverage_10",
    "novelty_10",
    "auc_like",
    "fit_seconds",
    "peak_mb",
}


@pytest.fixture
def quality(monkeypatch):
    """The benchmark's modules; they are scripts beside one another, not a package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "quality"))
    names = ["measure", "report", "run", "split", "peers", "peers.common"]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    import measure
    import report
    import run
    import split

    yield SimpleNamespace(measure=measure, report=report, run=run, split=split)
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def test_split_is_that_of_the_protocol(quality):
    order = np.random.RandomState(42).permutation(1000)
    parts = quality.split.random_parts(1000)
    assert (parts[order[:800]] == "train").all()
    assert (parts[order[800:900]] == "validation").all()
    assert (parts[order[900:]] == "test").all()
    folds = [quality.split.fold_parts(1000, fold) == "test" for fold in range(5)]
    assert (np.sum(folds, axis=0) == 1).all()
    assert set(np.nonzero(folds[2])[0]) == set(order[2::5])


def test_split_is_that_of_the_study(quality):
    table = ibis.memtable({"row": np.arange(500), "user": np.arange(500) % 7, "item": np.arange(500) % 11})
    settings = SplitSettings(
        strategies=["random"], seed=42, random_test_share=0.1, test_share=0.2, validation_share=0.1, folds=5
    )
    studied = assign_splits(table, settings)
    own = studied.filter(studied.split == "random").order_by("row").execute()
    np.testing.assert_array_equal(own["part"].to_numpy(), quality.split.random_parts(500))


def test_histories_at_the_test_hold_training_and_validation_rows(quality):
    rows = make_interactions(20, 30, 10, seed=1, folds=10)
    own = SimpleNamespace(
        train=rows.where(rows.fold < 7), validation=rows.where(rows.fold == 7), users=20, items=30, _codes=lambda _: {}
    )
    none = (None, ibis.memtable({"split": ["benchmark"], "user": [0], "item": [0], "column": [0], "weight": [1.0]}))
    own._user = own._item = none
    arrays = quality.split.SplitData.arrays(own, known=True)
    assert not any(name.startswith("history") for name in quality.split.SplitData.arrays(own))
    pairs = set(zip(arrays["history_user"].tolist(), arrays["history_item"].tolist(), strict=True))
    known = rows.where(rows.fold < 8)
    assert pairs == set(zip(known.user.tolist(), known.item.tolist(), strict=True))
    assert (np.diff(arrays["history_user"]) >= 0).all()
    assert len(arrays["user"]) == (rows.fold < 7).sum()


def _small_split():
    rows = make_interactions(20, 30, 10, seed=1, folds=10)
    train, validation, test = rows.where(rows.fold < 7), rows.where(rows.fold == 7), rows.where(rows.fold > 7)
    return SimpleNamespace(train=train, validation=validation, test=test, users=20, items=30)


def test_records_have_the_stated_keys_and_null_where_a_model_cannot(quality, tmp_path, monkeypatch):
    data = _small_split()
    random = np.random.default_rng(0)
    given = {
        "own.wide_shared_bottom": {
            "rating": data.test.labels["rating"],
            "like": random.random(len(data.test)),
            "matrix": random.random((20, 30)),
        },
        "surprise.svd_plus_plus": {"rating": random.uniform(1, 5, len(data.test))},
        "recbole.ease": {"matrix": random.random((20, 30))},
    }
    monkeypatch.setattr(quality.run, "WORK", tmp_path)
    bench = quality.run.BENCHES[0]
    for name, scores in given.items():
        (bench.work / name).mkdir(parents=True)
        arrays = {f"0.{part}": array for part, array in scores.items()}
        np.savez(bench.work / name / "seed0.npz", settings=np.array("[{}]"), **{"0.seconds": 1.5}, **arrays)
        (bench.work / name / "finished.json").write_text(json.dumps({"peak_mb": [100.0]}))
    records, measured = quality.run.collect(bench, data)
    assert {record["split"] for record in records} == {"random"}
    assert [record["model"] for record in records] == ["wide_shared_bottom", "SVD++", "EASE^R"]
    assert all(set(record) == RECORD for record in records)
    own, rating, ranking = records
    assert own["library"] == "multitask-recommender"
    assert own["rmse"] == 0
    assert None not in own.values()
    assert {name for name, value in rating.items() if value is None} == {
        "ndcg_10",
        "recall_10",
        "coverage_10",
        "novelty_10",
    }
    assert rating["auc_like"] == round(
        metrics.auc(data.test.labels["like"], given["surprise.svd_plus_plus"]["rating"]), 5
    )
    assert {name for name, value in ranking.items() if value is None} == {"rmse", "mae", "auc_like"}
    monkeypatch.setattr(quality.report, "RESAMPLES", 999)
    compared = {(one["metric"], one["peer"]): one for one in quality.report.compare(measured)}
    assert set(compared) == {
        ("rmse", "SVD++"),
        ("auc_like", "SVD++"),
        ("user_auc_like", "SVD++"),
        ("ndcg_10", "EASE^R"),
    }
    assert compared["rmse", "SVD++"]["ahead"] == "yes"


def test_peers_that_are_not_measured_again_keep_their_results_beside_the_same_figures_of_ours(quality):
    def record(model, library, value):
        return {"split": "chronological", "model": model, "library": library, "seed": 0, "ndcg_10": value, "rmse": None}

    def comparison(peer, p):
        return {
            "metric": "ndcg_10",
            "peer": peer,
            "library": "RecBole",
            "difference": 0.1,
            "ci_low": 0.05,
            "ci_high": 0.2,
            "p_value": p,
        }

    own, again = (record("wide", quality.report.OWN, value) for value in (0.28004, 0.27961))
    first, second = (record(name, "RecBole", 0.2) for name in ("SASRec", "GRU4Rec"))
    measured = [own, second], [comparison("GRU4Rec", 0.03)]
    before = [again, first], [{**comparison("SASRec", 0.04), "p_holm": 0.04, "ahead": "yes"}]
    records, compared = quality.report.beside_earlier(*measured, *before)
    assert [one["model"] for one in records] == ["wide", "GRU4Rec", "SASRec"]
    assert [(one["p_holm"], one["ahead"]) for one in compared] == [(0.06, "undecided")] * 2
    # What was compared with other figures of ours says nothing of these, and is not lost unasked.
    before[0][0] = record("wide", quality.report.OWN, 0.279)
    with pytest.raises(quality.report.EarlierResultsError, match=r"ndcg_10 of wide.*its scores are not here: SASRec"):
        quality.report.beside_earlier(*measured, *before)
    alone = [[one for one in table if "SASRec" not in one.values()] for table in before]
    assert quality.report.beside_earlier(*measured, *alone) == measured
    # A split of which nothing was asked for keeps what it has.
    assert quality.report.beside_earlier([], [], *before) == tuple(before)


def test_contributions_to_the_auc_have_its_mean_and_its_standard_error(quality):
    random = np.random.default_rng(3)
    user = np.repeat(np.arange(300), 10)
    tilt = random.normal(size=300)[user]  # Rows of a user are alike, which widens the error of the AUC.
    label = (tilt + random.normal(size=3000) > 0).astype(float)
    score = np.round(tilt + label + random.normal(size=3000), 1)
    _, total, count = quality.measure.auc_contributions(label, score, user)
    assert total.mean() == pytest.approx(metrics.auc(label, score), abs=1e-12)
    assert (count == 1).all()
    rows = np.arange(3000).reshape(300, 10)
    drawn = [rows[random.integers(0, 300, 300)].ravel() for _ in range(400)]
    spread = np.std([metrics.auc(label[own], score[own]) for own in drawn])
    assert total.std() / np.sqrt(300) == pytest.approx(spread, rel=0.15)


def test_training_and_validation_items_are_known_when_the_test_rows_are_ranked(quality):
    data = _small_split()
    data.test = data.test.where(np.isin(data.test.item, data.train.item))
    matrix = np.zeros((20, 30), dtype=np.float32)
    matrix[data.test.user, data.test.item] = 1
    for known in (data.train, data.validation):
        matrix[known.user, known.item] = 2
    masked = quality.measure.measure({"matrix": matrix}, data.test, [data.train, data.validation], data)
    assert masked.values["ndcg_10"] == pytest.approx(1)
    for known in (data.train, data.validation):
        assert quality.measure.measure({"matrix": matrix}, data.test, [known], data).values["ndcg_10"] < 0.9


def test_committed_results_have_the_stated_keys():
    path = ROOT / "benchmarks" / "results" / "quality.json"
    records = json.loads(path.read_text())
    assert records
    assert all(set(record) == RECORD for record in records)
