"""The simulated bookstore: what its documentation promises of relatedness, sparsity, popularity, truth and bytes."""

from __future__ import annotations

from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from conftest import Project
from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.datasets import ArraysFile, StreamedTable
from multitask_recommender.evaluation.parameters import EvaluationSettings
from multitask_recommender.foundation.errors import DataError, SettingsError
from multitask_recommender.models import ranking
from multitask_recommender.pipelines.regret.nodes import measure_regret, truth_places
from multitask_recommender.pipelines.simulation.nodes import simulate_bookstore
from multitask_recommender.simulation.bookstore import TASKS, Bookstore, BookstoreSettings, GroundTruth
from multitask_recommender.simulation.regret import list_values
from multitask_recommender.simulation.tables import InteractionTables, book_table, user_table


def settings(**values: object) -> BookstoreSettings:
    return BookstoreSettings.model_validate(
        {"users": 400, "books": 300, "interactions": 12_000, "seed": 5, "feature_signal": 0.0, **values}
    )


def utilities(**values: object) -> dict[str, np.ndarray]:
    truth = Bookstore(settings(**values)).truth
    return {task: truth.utilities(task, np.arange(400)).ravel() for task in TASKS}


def test_related_tasks_have_the_same_utilities() -> None:
    same = utilities(relatedness=1.0, feature_signal=0.5)
    for task in TASKS[1:]:
        assert same[task] == pytest.approx(same["click"], abs=1e-5)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_utilities_correlate_by_rho(rho: float) -> None:
    own = utilities(relatedness=rho, users=400, dimension=16)
    correlations = np.corrcoef([own[task] for task in TASKS])[np.triu_indices(len(TASKS), 1)]
    assert correlations.mean() == pytest.approx(rho, abs=0.05)
    assert np.abs(correlations - rho).max() < 0.12
    for values in own.values():
        assert values.mean() == pytest.approx(0, abs=0.05)
        assert values.std() == pytest.approx(1, abs=0.15)


def test_features_explain_their_share() -> None:
    for signal in (0.0, 1.0):
        store = Bookstore(settings(feature_signal=signal))
        ones = [np.eye(codes.max() + 2)[codes] for codes in store.user_features.values()]
        decades = store.user_features["age"] // 10 + 1
        design = np.hstack([*ones[1:], np.eye(decades.max() + 1)[decades]])
        taste = store.truth.vectors["click"][0][:, :-1]
        left = taste - design @ np.linalg.lstsq(design, taste, rcond=None)[0]
        explained = 1 - left.var() / taste.var()
        assert explained == pytest.approx(signal, abs=0.12)


def test_every_pair_once_and_the_declared_number() -> None:
    store = Bookstore(settings(popularity_skew=1.0, activity_skew=1.0))
    chunk = store.everything()
    assert len(chunk) == 12_000
    assert len(np.unique(chunk.user * 300 + chunk.book)) == len(chunk)
    assert np.array_equal(np.bincount(chunk.user, minlength=400), store.counts)
    assert store.counts.max() <= 300 // 4
    same_user = np.diff(chunk.user) == 0
    assert (np.diff(chunk.user) >= 0).all()
    assert (np.diff(chunk.timestamp)[same_user] >= 0).all()


def test_sparsity_is_the_share_of_missing_labels() -> None:
    complete = Bookstore(settings()).everything().labels
    thinned = Bookstore(settings(sparsity={"read": 0.2, "rating": 0.5, "purchase": 0.9})).everything().labels
    for task, share in (("read", 0.2), ("rating", 0.5), ("purchase", 0.9)):
        kept = ~np.isnan(thinned[task])
        before = ~np.isnan(complete[task])
        assert 1 - kept.sum() / before.sum() == pytest.approx(share, abs=0.02)
        # Labels that are left are the same: bookstores differ in what is missing alone.
        assert np.array_equal(thinned[task][kept], complete[task][kept])
    assert np.array_equal(~np.isnan(complete["rating"]), complete["read"] == 1)
    assert set(np.unique(complete["rating"][complete["read"] == 1])) == {1, 2, 3, 4, 5}


def test_popularity_grows_more_unequal_with_its_skew() -> None:
    shares = []
    for skew in (0.0, 0.5, 1.0):
        chunk = Bookstore(settings(popularity_skew=skew, taste=1.0)).everything()
        counts = np.sort(np.bincount(chunk.book, minlength=300))[::-1]
        shares.append(counts[:30].sum() / counts.sum())
    assert shares[0] < shares[1] - 0.05
    assert shares[1] < shares[2] - 0.05


def test_the_truth_gives_the_probabilities_of_the_labels() -> None:
    """Labels agree with the stored truth in every tenth of the predicted value: the truth is calibrated."""
    store = Bookstore(settings(users=2000, interactions=60_000, relatedness=0.3))
    truth = GroundTruth.from_arrays(store.truth.arrays())
    chunk = store.everything()
    for task, labels in chunk.labels.items():
        asked = ~np.isnan(labels)
        label = labels[asked]
        value = truth.value(task, truth.utility(task, chunk.user[asked], chunk.book[asked]))
        for tenth in np.array_split(np.argsort(value), 10):
            error = stats.sem(label[tenth]) or 1e-3
            assert abs(label[tenth].mean() - value[tenth].mean()) < 4.5 * error, task


def test_readers_come_back_as_the_truth_says() -> None:
    store = Bookstore(settings(users=2000, interactions=60_000, relatedness=0.3, most_visits=4, days_between=50.0))
    clicks, visits = (
        Bookstore(settings(users=2000, interactions=60_000, relatedness=0.3)).everything(),
        store.everything(),
    )
    # The clicks are the same, and so is what is said of a pair; what comes after is added.
    first = visits.take(np.flatnonzero(visits.visit == 1))
    for own, other in ((clicks, first),):
        order, place = (np.lexsort((chunk.book, chunk.user)) for chunk in (own, other))
        for name in ("user", "book", "timestamp"):
            assert np.array_equal(getattr(own, name)[order], getattr(other, name)[place])
        for task in ("read", "rating"):
            assert np.array_equal(own.labels[task][order], other.labels[task][place], equal_nan=True)
    # In the order of time, every pair with visits 1, 2, ... at growing times, of which at most the last has a purchase.
    same_user = np.diff(visits.user) == 0
    assert (np.diff(visits.timestamp)[same_user] >= 0).all()
    table = pd.DataFrame({"pair": visits.user * 300 + visits.book, "visit": visits.visit, "time": visits.timestamp})
    table["purchase"] = visits.labels["purchase"]
    by_pair = table.sort_values(["pair", "visit"]).groupby("pair")
    assert (by_pair["visit"].max() == by_pair.size()).all()
    assert by_pair["visit"].max().max() == 4
    assert (by_pair["time"].diff().dropna() >= 0).all()
    days = by_pair["time"].diff().dropna() / 86_400
    assert days.mean() == pytest.approx(50, rel=0.03)
    bought = table[table["purchase"] > 0]
    assert (bought["visit"] == by_pair["visit"].max()[bought["pair"]].to_numpy()).all()
    assert len(bought) == (clicks.labels["purchase"] > 0).sum()
    assert set(table.loc[table["visit"] > 1, "purchase"].unique()) == {0.0, 1.0}
    later = visits.take(np.flatnonzero(visits.visit > 1))
    assert np.isnan(later.labels["read"]).all()
    assert np.isnan(later.labels["rating"]).all()
    # The truth is calibrated: of every tenth of the clicks, so many come back.
    value = store.truth.value("come_back", store.truth.utility("come_back", first.user, first.book))
    came = by_pair.size()[first.user * 300 + first.book].to_numpy() > 1
    for tenth in np.array_split(np.argsort(value), 10):
        assert abs(came[tenth].mean() - value[tenth].mean()) < 4.5 * stats.sem(came[tenth])


def test_visits_that_take_longer_than_a_year_are_refused() -> None:
    with pytest.raises(ValueError, match="lower most_visits or days_between"):
        settings(most_visits=5, days_between=60)


def test_the_number_of_the_visit_is_a_column_where_there_are_several() -> None:
    (once,), (often,) = (InteractionTables(Bookstore(settings(most_visits=most))) for most in (1, 3))
    assert "visit" not in once.column_names
    assert set(often["visit"].to_pylist()) == {"1", "2", "3"}
    assert len(often) > len(once) == 12_000


def test_noise_is_the_standard_deviation_of_a_logistic_latent_response() -> None:
    store = Bookstore(settings(noise=1.7))
    noise = stats.logistic(scale=1.7 * np.sqrt(3) / np.pi)
    assert noise.std() == pytest.approx(1.7)
    utility = np.linspace(-3, 3, 13, dtype=np.float32)
    centre = {task: -float(np.interp(0.5, store.truth.value(task, utility), utility)) for task in ("click", "purchase")}
    for task, shift in centre.items():
        assert store.truth.value(task, utility) == pytest.approx(1 - noise.cdf(-(utility + shift)), abs=2e-3)


def test_ground_truth_survives_its_file(tmp_path: Path) -> None:
    truth = Bookstore(settings(noise=0.4)).truth
    dataset = ArraysFile((tmp_path / "truth.safetensors").as_posix())
    dataset.save(truth.arrays())
    again = GroundTruth.from_arrays(dataset.load())
    assert again.noise == 0.4
    everyone = np.arange(400)
    for task in TASKS:
        assert np.array_equal(again.utilities(task, everyone), truth.utilities(task, everyone))


def test_clicks_follow_popularity_times_probability() -> None:
    """With one click per reader on average few books repeat, and the clicked share of a book has a known expectation."""
    store = Bookstore(settings(users=20_000, books=40, interactions=20_000, activity_skew=0.0, popularity_skew=0.5))
    chunk = store.everything()
    shown = np.diff(store._shown_below, prepend=0.0)
    click = store.truth.value("click", store.truth.utilities("click", np.arange(20_000)))
    expected = (shown * click / (click @ shown)[:, None]).sum(axis=0)
    found = np.bincount(chunk.book, minlength=40)
    assert stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-3


def written(path: Path, **values: object) -> bytes:
    dataset = StreamedTable(filepath=path.as_posix(), file_format="parquet")
    dataset.save(InteractionTables(Bookstore(settings(users=4000, interactions=140_000, **values))))
    return path.read_bytes()


def test_same_bytes_from_the_same_seed_whatever_the_chunks(tmp_path: Path) -> None:
    first = written(tmp_path / "a.parquet", chunk_rows=1)
    assert first == written(tmp_path / "b.parquet", chunk_rows=10**7)
    assert not np.array_equal(Bookstore(settings()).everything().book, Bookstore(settings(seed=6)).everything().book)


def test_memory_is_bounded_by_the_chunk() -> None:
    store = Bookstore(settings(users=12_000, interactions=420_000, chunk_rows=100_000))
    sizes = [len(chunk) for chunk in store.chunks()]
    assert sum(sizes) == 420_000
    assert len(sizes) > 2
    # A chunk is complete as soon as it has enough rows; a block has about 2^17, and ends with a whole reader.
    assert max(sizes) < 100_000 + 2**17 + 300 // 4


def test_too_many_interactions_are_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        settings(interactions=400 * 300)
    greedy = settings(users=2, books=40_000, interactions=2 * 9000, popularity_skew=2.0, activity_skew=0.0)
    with pytest.raises(SettingsError, match="different books"):
        Bookstore(greedy).everything()


def test_tables_have_the_schema_of_a_bookshop() -> None:
    store = Bookstore(settings())
    users, books = user_table(store), book_table(store)
    assert list(users) == ["user_id", "age", "education", "consumption_level", "region"]
    assert ",".join(books) == "book_id,title,author,publisher,translator,publication_date,pages,words,genre"
    assert users["user_id"].is_monotonic_increasing
    assert users["user_id"].is_unique
    assert books["book_id"].is_unique
    assert 0 < users["age"].isna().mean() < 0.2
    assert 0.4 < books["translator"].isna().mean() < 0.8
    assert pd.to_datetime(books["publication_date"]).between("1950", "2025").all()
    (table,) = InteractionTables(store)
    assert set(map(str, table.schema.types)) == {"string"}
    assert table["rating"].null_count > table["purchase"].null_count == 0
    assert set(table["user_id"].to_pylist()) <= set(users["user_id"])


def test_the_files_number_readers_as_the_truth_does(tmp_path: Path) -> None:
    """The order of the identifiers is that of the ground truth."""
    _, _, arrays, stream = simulate_bookstore(settings())
    dataset = StreamedTable(filepath=(tmp_path / "i.parquet").as_posix(), file_format="parquet")
    dataset.save(stream)
    table = dataset.load().execute()
    place = np.unique(table["user_id"], return_inverse=True)[1]
    assert np.array_equal(place, Bookstore(settings()).everything().user)
    assert arrays["user.click"].shape == (400, 10)


def test_regret_of_the_oracle_is_zero_and_of_chance_is_not() -> None:
    store = Bookstore(settings())
    truth, users = store.truth, np.arange(0, 400, 3)
    random = np.random.default_rng(0)
    known = sparse.random(400, 300, 0.1, format="csr", random_state=1)
    catalogue = random.random(300) < 0.9
    for task in TASKS:
        scores = [truth.utilities(task, users), random.random((len(users), 300), np.float32)]
        lists = [ranking.top_items(score, known[users], catalogue, 10, users) for score in scores]
        best, (oracle, chance) = list_values(truth, task, users, lists, known, catalogue, 10)
        assert oracle == pytest.approx(best)
        assert (best - chance).mean() > 0.1
        assert (chance <= best + 1e-9).all()
        by_hand = np.sort(
            truth.value(task, truth.utilities(task, users[:1]))[0][catalogue & (known[[0]].toarray()[0] == 0)]
        )
        assert best[0] == pytest.approx(by_hand[-10:].mean(), rel=1e-5)


def named(key: str, names: np.ndarray) -> ibis.Table:
    """A table of users or items whose numbers are in no order of their names."""
    numbers = np.random.default_rng(len(names)).permutation(len(names))
    return ibis.memtable({key: numbers, f"{key}_id": np.char.add(key, np.char.zfill(names[numbers].astype(str), 7))})


def ranked(lists: np.ndarray, seed: int = 0) -> pd.DataFrame:
    user, rank = np.indices(lists.shape)
    columns = {"user": user.ravel(), "rank": rank.ravel() + 1, "item": lists.ravel(), "score": 0.0}
    return pd.DataFrame({"split": "random", "seed": seed, "task": "read", **columns})


def test_regret_table() -> None:
    """Numbers need not be in the order of the names: here those of the truth are shuffled."""
    store = Bookstore(settings(users=30, books=40, interactions=200))
    rows = store.everything()
    names, titles = np.random.default_rng(1).permutation(30), np.random.default_rng(2).permutation(40)
    stored = store.truth.take(names, titles).arrays()
    pairs = ibis.memtable(pd.DataFrame({"split": "random", "user": rows.user, "item": rows.book}))
    nothing = pairs.limit(0)
    known = sparse.csr_matrix((np.ones(len(rows)), (rows.user, rows.book)), shape=(30, 40))
    catalogue = np.bincount(rows.book, minlength=40) > 0
    best = ranking.top_items(store.truth.utilities("read", np.arange(30)), known, catalogue, 5, np.arange(30))
    chance = ranking.top_items(
        np.random.default_rng(0).random((30, 40), np.float32), known, catalogue, 5, np.arange(30)
    )
    dataset = DatasetSettings.model_validate(
        {
            "name": "bookstore",
            "interactions": {"user_id": "u", "item_id": "i"},
            "users": {"user_id": "u"},
            "items": {"item_id": "i"},
            "tasks": {"read": {"kind": "binary", "label": "read"}},
        }
    )

    def measure(users: int) -> pd.DataFrame:
        own = np.append(np.argsort(names), range(30, users))
        entities = (named("user", own), named("item", np.argsort(titles)))
        return measure_regret(
            ["shared_bottom", "left_out", "random"],
            dataset,
            EvaluationSettings(ks=[3, 5], headline_k=5),
            SplitSettings(strategies=["random"], seed=1, folds=2),
            stored,
            *entities,
            pairs,
            nothing,
            ranked(best),
            ranked(best[:0]),
            ranked(chance),
        )

    table = measure(30).set_index(["model", "k"])
    assert list(table.index) == [("shared_bottom", 3), ("shared_bottom", 5), ("random", 3), ("random", 5)]
    assert table.loc["shared_bottom", "regret"].abs().max() < 1e-9
    assert table.loc["random", "regret"].min() > 0.05
    assert (table["oracle"] - table["value"] - table["regret"]).abs().max() < 1e-9
    assert set(table["users"]) == {30}
    with pytest.raises(DataError, match="30 users"):
        measure(31)


def test_simulation_by_one_command(project: Project) -> None:
    """In the overlay it writes all four files, which the study reads; elsewhere it does not start, so it cannot write over other tables."""
    refused = project.run("--pipelines", "simulation")
    assert refused.returncode != 0
    small = "simulation.users=50,simulation.books=60,simulation.interactions=500"
    options = ["--pipelines", "simulation,data_engineering", "--params", small]
    result = project.run("--env", "bookstore", *options)
    assert result.returncode == 0, result.stderr
    folder = project.folder / "data" / "01_raw" / "bookstore"
    assert sorted(path.name for path in folder.iterdir()) == [
        "books.parquet",
        "ground_truth.safetensors",
        "interactions.parquet",
        "readers.parquet",
    ]
    assert [len(pd.read_parquet(folder / f"{name}.parquet")) for name in ("readers", "books", "interactions")] == [
        50,
        60,
        500,
    ]
    interactions = pd.read_parquet(project.folder / "data" / "bookstore" / "03_primary" / "interactions.parquet")
    assert len(interactions) == 500
    for key in ("user", "item"):
        table = ibis.read_parquet(project.folder / "data" / "bookstore" / "03_primary" / f"{key}s.parquet")
        place = truth_places(table, key)
        assert (interactions[f"{key}_id"].str.slice(1).astype(int) == place[interactions[key]]).all()
        assert not np.array_equal(place, np.arange(len(place)))
    rows = pd.read_parquet(project.folder / "data" / "bookstore" / "05_model_input" / "test_labels.parquet")
    assert rows.loc[rows["rating"].notna(), "read"].eq(1).all()
    assert rows["purchase"].isna().any()
