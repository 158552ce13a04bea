"""Bayesian factorisation machines of myFM, sampled by Gibbs' method: the strongest peers on ratings."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from myfm import MyFMOrderedProbit, MyFMRegressor, RelationBlock
from scipy import sparse

from peers.common import Predict, Scores, Settings, Training, main

GRID: list[Settings] = [{"rank": rank, "sweeps": 140, "kept": 120} for rank in (8, 10, 16)]
_DAY = 86400


def _one_hot(codes: np.ndarray, columns: int) -> sparse.csr_matrix:
    ones = np.ones(len(codes))
    return sparse.csr_matrix((ones, (np.arange(len(codes)), codes)), shape=(len(codes), columns))


def _parts(training: Training, side: str) -> list[sparse.csr_matrix]:
    """Identifiers, who was met (over the root of how many), features with one value, genres; of all users or items."""
    user = side == "user"
    count = training.users if user else training.items
    own, other = (training.user, training.item) if user else (training.item, training.user)
    met = sparse.csr_matrix(
        (np.ones(len(own)), (own, other)), shape=(count, training.items if user else training.users)
    )
    lengths = np.maximum(np.bincount(own, minlength=count), 1)
    parts = [sparse.identity(count, format="csr"), sparse.diags(lengths**-0.5) @ met]
    codes = training.user_codes if user else training.item_codes
    parts += [_one_hot(code, int(code.max()) + 1) for code in codes.values()]
    if not user:
        shown = training.genres > 0
        row = np.nonzero(shown)[0]
        values = (1.0 / np.maximum(shown.sum(1), 1))[row]
        genres = (values, (row, training.genres[shown] - 1))
        parts.append(sparse.csr_matrix(genres, shape=(count, int(training.genres.max()))))
    return parts


def _fit(
    ordered: bool, dated: bool, training: Training, settings: Settings, seed: int
) -> Iterator[tuple[Settings, Predict]]:
    """Sample; features of one kind share their strength."""
    first, last = training.time.min() // _DAY, training.time.max() // _DAY
    blocks = {side: _parts(training, side) for side in ("user", "item")}
    tables = {side: sparse.hstack(parts, format="csr") for side, parts in blocks.items()}

    def design(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> tuple[sparse.csr_matrix, list[RelationBlock]]:
        day = np.clip(time // _DAY, first, last) - first
        dates = _one_hot(day.astype(np.int64), int(last - first) + 1)
        related = [RelationBlock(user, tables["user"]), RelationBlock(item, tables["item"])]
        return dates if dated else dates[:, :0], related

    groups = [part.shape[1] for parts in blocks.values() for part in parts]
    if dated:
        groups.insert(0, int(last - first) + 1)
    kind = MyFMOrderedProbit if ordered else MyFMRegressor
    model = kind(rank=settings["rank"], random_seed=seed)
    label = training.rating - 1 if ordered else training.rating
    x, related = design(training.user, training.item, training.time)
    model.fit(x, label, X_rel=related, n_iter=settings["sweeps"], n_kept_samples=settings["kept"], group_shapes=groups)

    def predict(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> Scores:
        x, related = design(user, item, time)
        if not ordered:
            return {"rating": model.predict(x, related)}
        shares = model.predict_proba(x, related)
        return {"rating": shares @ np.arange(1, 6), "like": shares[:, 3:].sum(1)}

    yield settings, predict


if __name__ == "__main__":
    main(
        {
            "regression": (GRID, functools.partial(_fit, False, False)),
            "ordered_probit": (GRID, functools.partial(_fit, True, False)),
            "ordered_probit_dates": (GRID, functools.partial(_fit, True, True)),
        }
    )
