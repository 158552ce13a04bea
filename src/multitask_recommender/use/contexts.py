"""Contexts: what is known of a user beside the history, as a row of the design matrix that the models know."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy import sparse

from multitask_recommender.data.interactions import IntArray
from multitask_recommender.foundation.errors import RequestError

RARE, MISSING, FROM = "(rare)", "(missing)", "from "


class Contexts:
    """Turns features of users into rows of the design matrix, as ``data.features`` did for the users of the training.

    Args:
        vocabulary: Feature to its values with their columns.
        users: The part ``users`` of the description of the data set.
        columns: Number of columns that the models know; a column beyond them is that of a value that nobody had.
    """

    def __init__(self, vocabulary: Mapping[str, Mapping[str, int]], users: Mapping[str, Any], columns: int) -> None:
        self._vocabulary, self._columns = vocabulary, columns
        self._features: Mapping[str, Mapping[str, Any]] = users["features"]
        self._activity: str | None = users["activity"]

    def unknown(self, users: int) -> sparse.csr_matrix:
        """Return (users, columns) contexts of which nothing is known."""
        found = [self._vocabulary[name][MISSING] for name in self._features]
        return self._matrix(np.repeat(np.arange(users), len(found)), np.tile(found, users), users)

    def changed(self, rows: sparse.csr_matrix, given: Mapping[str, Any], lengths: IntArray) -> sparse.csr_matrix:
        """Return contexts with some features replaced, and with the activity that belongs to the histories.

        Args:
            rows: (B, columns) contexts.
            given: Feature to its value, the same for all B.
            lengths: (B,) numbers of items in the histories.

        Raises:
            RequestError: If a feature is unknown, or a number cannot be read.
        """
        replaced = [*given, *([self._activity] if self._activity is not None else [])]
        values = list(self._values(given))
        users = len(lengths)
        place = np.repeat(np.arange(users), len(values))
        column = np.tile([self._vocabulary[name][value] for name, value, _ in values], users).astype(np.int64)
        weight = np.tile([weight for _, _, weight in values], users)
        result = self._without(rows, replaced) + self._matrix(place, column, users, weight)
        if self._activity is not None:
            own = self._vocabulary[self._activity]
            levels = np.log2(lengths + 1).astype(np.int64)
            columns = [own.get(f"{FROM}{2**level - 1}", own[RARE]) for level in range(int(levels.max(initial=0)) + 1)]
            result = result + self._matrix(np.arange(users), np.array(columns)[levels], users)
        return result.tocsr()

    def _matrix(
        self, row: IntArray, column: IntArray, users: int, weight: np.ndarray | None = None
    ) -> sparse.csr_matrix:
        known = column < self._columns
        value = np.ones(len(row), np.float32) if weight is None else weight.astype(np.float32)
        entries = (value[known], (row[known], column[known]))
        return sparse.csr_matrix(entries, shape=(users, self._columns), dtype=np.float32)

    def _without(self, rows: sparse.csr_matrix, features: Iterable[str]) -> sparse.csr_matrix:
        kept = np.ones(self._columns, np.float32)
        columns = np.array([column for name in features for column in self._vocabulary[name].values()], dtype=np.int64)
        kept[columns[columns < self._columns]] = 0.0
        result = (rows @ sparse.diags(kept)).tocsr()
        result.eliminate_zeros()
        return result

    def _values(self, given: Mapping[str, Any]) -> Iterable[tuple[str, str, float]]:
        """Yield feature, value of the vocabulary and weight; the weights of a feature sum to 1."""
        for name, value in given.items():
            if name not in self._features:
                own = "is counted from the history" if name == self._activity else "is none that the data set has"
                there = f"give one of {', '.join(self._features)}." if self._features else "leave it out."
                raise RequestError(f"The feature '{name}' {own}.", "context", there)
            texts = self._texts(name, value)
            known = self._vocabulary[name]
            for text in texts:
                yield name, text if text in known else RARE, 1.0 / len(texts)

    def _texts(self, name: str, value: Any) -> list[str]:
        """Return the values of a feature as the vocabulary names them."""
        feature = self._features[name]
        if value is None or value == "" or (isinstance(value, float) and np.isnan(value)):
            return [MISSING]
        if feature["kind"] in ("numeric", "date"):
            return [self._bin(name, value)]
        if feature["kind"] == "category":
            return [str(value)]
        if isinstance(value, str):
            words = feature["kind"] == "text"
            value = re.sub(r"[\W_]+", " ", value.lower()).split() if words else value.split(feature["separator"])
        texts = dict.fromkeys(str(one) for one in value if str(one))
        if feature["hash_columns"] is not None:
            texts = dict.fromkeys(_hashed(text, feature["hash_columns"]) for text in texts)
        return list(texts) or [MISSING]

    def _bin(self, name: str, value: Any) -> str:
        """Return the bin of a number: that of the largest lower edge which is not above it, or else the lowest."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise RequestError(f"'{value}' is not a number.", f"context, feature '{name}'", "give a number.") from None
        edges = {float(text.removeprefix(FROM)): text for text in self._vocabulary[name] if text.startswith(FROM)}
        below = [edge for edge in edges if edge <= number]
        return edges[max(below) if below else min(edges)] if edges else RARE


def _hashed(word: str, columns: int) -> str:
    """Name the column of a word, as ``data.features`` does: by the first 24 bits of its MD5 digest."""
    digits = [int(digit, 16) for digit in hashlib.md5(word.encode(), usedforsecurity=False).hexdigest()[:6]]
    return f"words {sum(digit * 16**place for place, digit in enumerate(digits)) % columns}"
