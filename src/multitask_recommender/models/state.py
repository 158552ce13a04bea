"""What a model learnt, as arrays in a tree of names: what is stored of it."""

from __future__ import annotations

from typing import TypeAlias, Union, cast

import numpy as np
from scipy import sparse

State: TypeAlias = dict[str, Union[np.ndarray, "State"]]
Matrix: TypeAlias = np.ndarray | sparse.csr_matrix


def branch(state: State, name: str) -> State:
    """Return the part of a state under a name; without arrays there it has left no trace in a file."""
    return cast(State, state.get(name, {}))


def array(state: State, name: str) -> np.ndarray:
    """Return the array of a name."""
    return cast(np.ndarray, state[name])


def store_matrix(matrix: Matrix) -> State:
    """Return a dense or sparse matrix as a state."""
    if isinstance(matrix, np.ndarray):
        return {"dense": matrix}
    return {
        "data": matrix.data,
        "indices": matrix.indices.astype(np.int32),
        "indptr": matrix.indptr.astype(np.int64),
        "shape": np.array(matrix.shape),
    }


def read_matrix(state: State) -> Matrix:
    """Return the matrix that :func:`store_matrix` stored."""
    if "dense" in state:
        return array(state, "dense")
    data, indices, indptr, shape = (array(state, name) for name in ("data", "indices", "indptr", "shape"))
    return sparse.csr_matrix((data, indices, indptr), shape=tuple(shape))


def size(state: State) -> int:
    """Return how many numbers a state holds."""
    return sum(size(value) if isinstance(value, dict) else value.size for value in state.values())
