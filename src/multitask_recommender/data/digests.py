"""Digests of what models are fitted on, so that stored weights know their data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np

from multitask_recommender.data.interactions import Interactions, SideInformation


def digest_arrays(arrays: Iterable[np.ndarray]) -> str:
    """Return the SHA-256 of some arrays: their types, shapes and bytes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def digest_names(names: Sequence[str]) -> str:
    """Return the SHA-256 of the identifiers of the users or items, in the order of their numbers."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def digest_rows(rows: Interactions, side: SideInformation) -> dict[str, str]:
    """Return the SHA-256 of training rows and of the features that a model sees beside them, by what they are."""
    labels = [array for task in side.tasks for array in (rows.labels[task], rows.relevant[task])]
    return {
        "training rows": digest_arrays([rows.user, rows.item, *labels]),
        "features of users": digest_arrays(_parts(side.user_features)),
        "features of items": digest_arrays(_parts(side.item_features)),
    }


def _parts(matrix: object) -> list[np.ndarray]:
    return [np.asarray(getattr(matrix, name)) for name in ("data", "indices", "indptr")]
