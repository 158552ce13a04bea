"""Tables to arrays, a part of the rows at a time: no copy of a table stands beside its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    # Requests to a fitted model do without the engine of tables.
    import ibis.expr.types as ir

_ROWS = 2**18


def read_arrays(table: ir.Table, kinds: Mapping[str, type[np.generic]], count: int | None = None) -> dict[str, Any]:
    """Read columns of numbers and truth values.

    Args:
        table: The table.
        kinds: Column to the type of its array; a missing number becomes NaN, which only floats can hold.
        count: Number of rows, where it is known.

    Returns:
        Column to a new (rows,) array.
    """
    if count is None:
        count = int(table.count().execute())
    arrays = {name: np.empty(count, kind) for name, kind in kinds.items()}
    begin = 0
    for batch in table.select(*kinds).to_pyarrow_batches(chunk_size=_ROWS):
        rows = slice(begin, begin + len(batch))
        for name, array in arrays.items():
            array[rows] = batch.column(name).to_numpy(zero_copy_only=False)
        begin += len(batch)
    return arrays
