"""Sums over the rows of users' histories."""

from __future__ import annotations

from torch import Tensor

DENSE_BLOCK = 4_000_000
"""Most numbers held as one block of users x items: larger batches are gathered row by row."""
SPARSEST = 64
"""Most numbers of such a block per row of the batch: a block that is emptier takes longer than gathering."""


def sum_history(row_user: Tensor, row_item: Tensor, weight: Tensor, users: int, table: Tensor) -> Tensor:
    """Sum, for every user of a batch, the weighted vectors of the items in the history.

    Args:
        row_user: (n,) place of each row's user, from 0 to ``users`` - 1.
        row_item: (n,) items; no pair twice.
        weight: (n,) weights.
        users: B, the number of users.
        table: (items, d) vectors.

    Returns:
        (B, d). A small and not too sparse block is made dense and multiplied, which is several times faster.
    """
    if users * len(table) <= min(DENSE_BLOCK, SPARSEST * len(row_item)):
        block = table.new_zeros(users * len(table))
        block.scatter_(0, row_user * len(table) + row_item, weight.to(table.dtype))
        return block.view(users, len(table)) @ table
    total = table.new_zeros(users, table.shape[1])
    return total.index_add(0, row_user, table[row_item] * weight.to(table.dtype)[:, None])
