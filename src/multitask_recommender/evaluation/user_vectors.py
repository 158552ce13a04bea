"""What the vectors of the user embedding model say: who lies near whom, and what the directions mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ibis.expr.types as ir
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.features import MISSING, RARE
from multitask_recommender.data.inputs import TrainingTables
from multitask_recommender.data.interactions import NO_FOLD, IntArray, pair_matrix, read_features
from multitask_recommender.data.tasks import retrieval_tasks
from multitask_recommender.evaluation.statistics import Estimate, estimate_means
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.models.document.user_embedding import optimal_loss
from multitask_recommender.models.state import array, branch
from multitask_recommender.models.stored import StoredModel

Values = NDArray[np.float64]
LIMIT_COLUMNS = ["split", "dimension", "penalty", "context", "encoder", "users", "limit", "reached"]
MAP_COLUMNS = ["split", "user", "x", "y", "share_x", "share_y", "rows", "taste", "feature", "value"]
DIRECTION_COLUMNS = ["split", "direction", "share", "end", "rank", "item_id", "title", "weight"]
NEIGHBOUR_COLUMNS = ["split", "user_id", "rank", "neighbour_id", "cosine", "rows", "common", "by_chance", "described"]
OVERLAP_COLUMNS = ["split", "pairs", "overlap", "ci_low", "ci_high", "users"]
_DIRECTIONS, _ENDS = 4, 5
_SHOWN_USERS, _ASKED_USERS = 4000, 1000
_RESAMPLES = 999


def histories(tables: TrainingTables, split: str) -> sparse.csr_matrix:
    """Return (users, items) the histories that the user embedding model reads: ones where something was met.

    Rows that a retrieval task labels 0, and none positively, are no part of a history.
    """
    rows = tables.rows(split)
    labels = [rows.labels[task] for task in retrieval_tasks(tables.dataset.tasks)]
    if labels:
        every = np.stack(labels)
        rows = rows.where(~((every == 0).any(0) & ~(every > 0).any(0)))
    return pair_matrix(rows.user, rows.item, tables.shape)


def measure_limits(
    splits: SplitSettings,
    chosen: dict[str, Any],
    learning_curve: pd.DataFrame,
    dataset: DatasetSettings,
    training_data: Mapping[str, ir.Table],
) -> pd.DataFrame:
    """Set the training beside the known minimum of its loss without context (see ``optimal_loss``).

    Returns:
        Table with ``LIMIT_COLUMNS``: ``limit`` is the minimum per user, ``reached`` the mean of the last epoch's steps.
        The limit is that of the linear encoder which sees the whole history: for another it is NaN.
    """
    tables = TrainingTables.of(dataset, training_data)
    lines = []
    for split in splits.names:
        settings, matrix = chosen[split], histories(tables, split)
        lengths = np.asarray(matrix.sum(axis=1)).ravel()
        trained = lengths > 0
        scaled = sparse.diags(1.0 / np.sqrt(np.maximum(lengths, 1.0))) @ matrix
        limit = float("nan")
        if settings["encoder"] == "linear" and settings["history_dropout"] == 0 and trained.any():
            values = _largest_singular_values(scaled.astype(np.float64), settings["dimension"])
            # Every history has length 1, so the squares of all singular values sum to the number of users.
            energy = float(trained.sum())
            limit = (
                optimal_loss(torch.tensor(values.copy()), settings["dimension"], settings["penalty"], energy) / energy
            )
        own = learning_curve[learning_curve["split"] == split]
        reached = float(own.sort_values("epoch")["value"].iloc[-1]) if len(own) else float("nan")
        what = (settings["dimension"], settings["penalty"], settings["context"], settings["encoder"])
        lines.append((split, *what, int(trained.sum()), limit, reached))
    return pd.DataFrame(lines, columns=LIMIT_COLUMNS)


def _largest_singular_values(matrix: sparse.csr_matrix, number: int) -> Values:
    """Return the largest singular values, at most so many."""
    if number < min(matrix.shape) - 1 and min(matrix.shape) > 300:
        start = np.random.default_rng(0).normal(size=min(matrix.shape))
        return np.asarray(svds(matrix, k=number, v0=start, return_singular_vectors=False), dtype=np.float64)
    return np.linalg.svd(matrix.toarray(), compute_uv=False)[:number]


def read_vectors(
    study: StudySettings,
    splits: SplitSettings,
    dataset: DatasetSettings,
    training_data: Mapping[str, ir.Table],
    user_vectors: ir.Table,
    weights: StoredModel,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Describe the vectors of the users of the first split.

    Returns:
        Map of at most ``_SHOWN_USERS`` users (``MAP_COLUMNS``): their place in the plane of the two main directions,
        with training rows, taste (the category that a user has most above the average) and the value of the first
        feature that describes users. Directions (``DIRECTION_COLUMNS``): the items at both ends of the main
        directions. Nearest users of three users (``NEIGHBOUR_COLUMNS``): the items that both have met, and how many
        that would be by chance. Overlap (``OVERLAP_COLUMNS``): the Jaccard index of the histories of nearest users and
        of random ones, with 95 % intervals over users.
    """
    split = splits.names[0]
    tables = TrainingTables.of(dataset, training_data)
    matrix = histories(tables, split)
    lengths = np.asarray(matrix.sum(axis=1)).ravel().astype(np.int64)
    own = user_vectors.filter(user_vectors.split == split).order_by("user").execute()
    vectors = np.stack(own["vector"].to_numpy()).astype(np.float64)
    trained = np.flatnonzero(lengths > 0)
    rng = np.random.default_rng(derive_seed(study.seed, "user vectors", split))
    described = training_data["users"].order_by("user").execute()

    centred = vectors[trained] - vectors[trained].mean(axis=0)
    left, values, directions = np.linalg.svd(centred, full_matrices=False)
    # The sign of a direction is free: its largest part is positive.
    turn = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    places, directions = left * values * turn, directions * turn[:, None]
    shares = values**2 / max((values**2).sum(), 1e-12)
    if len(shares) == 1:
        places, shares = np.column_stack([places, np.zeros(len(places))]), np.append(shares, 0.0)

    shown = np.sort(rng.permutation(len(trained))[:_SHOWN_USERS])
    feature = next((name for name in dataset.users.features if name in described), dataset.users.activity)
    value = described[feature] if feature in described else pd.Series(lengths)
    tastes = _tastes(matrix, dataset, training_data["item_features"], training_data["item_vocabulary"], split)
    the_map = pd.DataFrame(
        {
            "split": split,
            "user": trained[shown],
            "x": places[shown, 0],
            "y": places[shown, 1],
            "share_x": shares[0],
            "share_y": shares[1],
            "rows": lengths[trained[shown]],
            "taste": tastes[trained[shown]],
            "feature": feature if feature in described else "training rows",
            "value": value.to_numpy()[trained[shown]],
        },
        columns=MAP_COLUMNS,
    )

    titles = training_data["items"].order_by("item").select("item_id", "title").execute()
    decoder = array(branch(branch(weights.state, split), str(NO_FOLD)), "weight").astype(np.float64)
    met = np.asarray(matrix.sum(axis=0)).ravel() > 0
    lines = []
    for number in range(min(_DIRECTIONS, len(directions))):
        pull = np.where(met, decoder @ directions[number], 0.0)
        order = np.argsort(-pull, kind="stable")
        for end, some in (("+", order[:_ENDS]), ("-", order[::-1][:_ENDS])):
            lines += [
                (split, number + 1, shares[number], end, rank + 1, *titles.iloc[item], pull[item])
                for rank, item in enumerate(some)
            ]
    ends = pd.DataFrame(lines, columns=DIRECTION_COLUMNS)
    return (
        the_map,
        ends,
        _nearest(matrix, vectors, trained, described, dataset, split),
        _overlaps(matrix, vectors, trained, split, rng),
    )


def _tastes(
    matrix: sparse.csr_matrix, dataset: DatasetSettings, features: ir.Table, vocabulary: ir.Table, split: str
) -> NDArray[np.object_]:
    """Return (users,) the category of which a user has the most above the average user; None without categories."""
    found = np.full(matrix.shape[0], None, dtype=object)
    columns = vocabulary.filter(
        (vocabulary.split == split)
        & (vocabulary.feature == (dataset.items.categories or ""))
        & ~vocabulary.value.isin([MISSING, RARE])
    )
    columns = columns.select("column", "value").order_by("column").execute()
    if not len(columns):
        return found
    every = read_features(features, "item", matrix.shape[1], split)
    columns = columns[columns["column"] < every.shape[1]]
    counted = (matrix @ every[:, columns["column"].to_numpy()]).toarray()
    sums = counted.sum(axis=1, keepdims=True)
    share = counted / np.where(sums > 0, sums, 1.0)
    some = sums.ravel() > 0
    above = share - share[some].mean(axis=0) if some.any() else share
    found[some] = columns["value"].to_numpy(object)[above[some].argmax(axis=1)]
    return found


def _cosines(vectors: Values, some: IntArray, others: IntArray) -> Values:
    """Return (some, others) cosines, -2 between a user and itself."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1.0)
    found = unit[some] @ unit[others].T
    found[some[:, None] == others[None, :]] = -2.0
    return found


def _nearest(
    matrix: sparse.csr_matrix,
    vectors: Values,
    trained: IntArray,
    described: pd.DataFrame,
    dataset: DatasetSettings,
    split: str,
) -> pd.DataFrame:
    lengths = np.asarray(matrix.sum(axis=1)).ravel()
    order = trained[np.argsort(lengths[trained], kind="stable")]
    asked = np.array(list(dict.fromkeys(order[int(share * (len(order) - 1))] for share in (0.25, 0.5, 0.9))))
    popularity = np.asarray(matrix[trained].sum(axis=0)).ravel() / max(len(trained), 1)
    columns = [name for name in dataset.users.features if name in described][:4]
    names = described["user_id"].to_numpy()
    lines = []
    for user, cosines in zip(asked, _cosines(vectors, asked, trained), strict=True):
        for rank, place in enumerate(np.argsort(-cosines, kind="stable")[: min(3, len(trained) - 1)]):
            other = trained[place]
            common = int(matrix[user].multiply(matrix[other]).sum())
            # Of as many items as the neighbour has met, drawn by popularity, so many would be the user's.
            chance = float((matrix[user] @ popularity)[0]) * lengths[other] / max(popularity.sum(), 1e-12)
            words = ", ".join(f"{name} {_text(described[name].iloc[other])}" for name in columns)
            what = (split, names[user], rank + 1, names[other], cosines[place], int(lengths[other]))
            lines.append((*what, common, chance, words))
    return pd.DataFrame(lines, columns=NEIGHBOUR_COLUMNS)


def _text(value: object) -> str:
    if isinstance(value, list | np.ndarray):
        return " ".join(map(str, value))
    if value is None or value != value:
        return "unknown"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _overlaps(
    matrix: sparse.csr_matrix, vectors: Values, trained: IntArray, split: str, rng: np.random.Generator
) -> pd.DataFrame:
    if len(trained) < 3:
        return pd.DataFrame(columns=OVERLAP_COLUMNS)
    asked = np.sort(rng.permutation(trained)[:_ASKED_USERS])
    near = np.concatenate(
        [
            trained[_cosines(vectors, block, trained).argmax(axis=1)]
            for block in np.array_split(asked, len(asked) // 256 + 1)
        ]
    )
    other = trained[(np.searchsorted(trained, asked) + rng.integers(1, len(trained), len(asked))) % len(trained)]
    lines = []
    for name, partner in (("nearest", near), ("random", other)):
        common = np.asarray(matrix[asked].multiply(matrix[partner]).sum(axis=1)).ravel()
        sums = [np.asarray(matrix[some].sum(axis=1)).ravel() for some in (asked, partner)]
        jaccard = common / (sums[0] + sums[1] - common)
        found: Estimate = estimate_means([jaccard[None, :]], [np.ones(len(asked))], False, _RESAMPLES, rng)[0]
        lines.append((split, name, found.value, found.low, found.high, len(asked)))
    return pd.DataFrame(lines, columns=OVERLAP_COLUMNS)
