"""Which of many numbers are among others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def among(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether each of some numbers, of any shape, is one of those that are wanted (n,).

    As ``np.isin``, in less time where many numbers are looked for among few that are far apart.
    """
    if not len(wanted):
        return np.zeros(keys.shape, dtype=bool)
    wanted = np.sort(wanted)
    place = np.searchsorted(wanted, keys)
    return np.asarray(wanted[np.minimum(place, len(wanted) - 1)] == keys)
