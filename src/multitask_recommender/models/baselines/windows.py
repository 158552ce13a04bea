"""Moods: what rows of one owner have in common because they lie in one window of time, on several nested scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from multitask_recommender.data.interactions import IntArray, Interactions


class Level(NamedTuple):
    """What the rows of the windows of one length say, with the moods of the shorter ones integrated out.

    Attributes:
        vectors: (G, ..., k) weighted sums of the rows' vectors.
        label: (G, ...) weighted sums of their labels.
        total: (G, ...) sums of their weights.
        certainty: (G, ...) precisions of the moods, given everything else.
    """

    vectors: Tensor
    label: Tensor
    total: Tensor
    certainty: Tensor


class WindowRows:
    """The windows that the rows of some owners lie in.

    Args:
        lengths: Lengths of the windows in seconds, from the shortest to the longest.
        owner: (n,) owner of each row, ascending; the rows of an owner are in the order of time.
        time: (n,) seconds.

    Attributes:
        owners: Per length (G,) whose window it is, ascending.
    """

    def __init__(self, lengths: Sequence[int], owner: IntArray, time: NDArray[np.float64]) -> None:
        self._lengths = lengths
        self.owners: list[Tensor] = []
        self._parents: list[Tensor] = []
        self._offsets: list[Tensor] = []
        self._keys: list[NDArray[np.int64]] = []
        # All windows lie between two bounds of the longest ones.
        self._first, self._end = (
            (float(time.min() // lengths[-1] * lengths[-1]), float((time.max() // lengths[-1] + 1) * lengths[-1]))
            if len(time)
            else (0.0, 0.0)
        )
        self._number = int(owner[-1]) + 1 if len(owner) else 0
        window, shorter = time - self._first, 1
        for length in lengths:
            window, shorter = window // (length // shorter), length
            new = np.append(True, (np.diff(owner) != 0) | (np.diff(window) != 0))[: len(owner)]
            begins = np.flatnonzero(new)
            self._parents.append(torch.from_numpy(np.cumsum(new) - 1))
            self._offsets.append(torch.from_numpy(np.append(begins, len(owner))))
            owner, window = owner[begins], window[begins]
            self.owners.append(torch.from_numpy(owner))
            self._keys.append(self._key(length, owner, window))

    def _key(self, length: int, owner: IntArray, window: NDArray[np.float64]) -> NDArray[np.int64]:
        span = int((self._end - self._first) // length)
        return owner * span + window.astype(np.int64)

    def gather(self, vectors: Tensor, label: Tensor, weight: Tensor, precision: Tensor) -> list[Level]:
        """Sum up the rows by window, from the shortest length to the longest.

        With e ~ N(0, 1 / t) in a window, sum_r w_r (y_r - v_r p - e)^2 + t e^2 is smallest where e is sum_r w_r
        (y_r - v_r p) over t + sum_r w_r. What is left of the rows for the next longer window are their sums, times t
        over t + sum_r w_r.

        Args:
            vectors: (n, ..., k).
            label: (n, ...).
            weight: (n, ...) precisions of the rows.
            precision: (lengths, ...) t of every length.
        """
        result = []
        sums = (weight[..., None] * vectors, weight * label, weight)
        for offsets, own in zip(self._offsets, precision, strict=True):
            found, told, total = (_sums(offsets, part) for part in sums)
            level = Level(found, told, total, total + own)
            share = own / level.certainty
            sums = (share[..., None] * found, share * told, share * total)
            result.append(level)
        return result

    def effects(self, levels: list[Level], vectors: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Return the moods, from the shortest windows to the longest: their means, or with a generator a draw of them.

        Args:
            levels: Result of :meth:`gather`.
            vectors: (owners, ..., k) p.
            generator: Source of the draw.

        Returns:
            Per length (G, ...).
        """
        result: list[Tensor] = []
        above = torch.zeros(())
        for place in range(len(levels) - 1, -1, -1):
            level = levels[place]
            left = level.label - (level.vectors * vectors[self.owners[place]]).sum(-1) - level.total * above
            mood = left / level.certainty
            if generator is not None:
                mood = mood + torch.randn(mood.shape, generator=generator) * level.certainty.rsqrt()
            result.insert(0, mood)
            above = (above + mood).index_select(0, self._parents[place])
        return result

    def of_rows(self, moods: list[Tensor]) -> Tensor:
        """Return (n, ...) the sum of the moods that every row is in."""
        above = torch.zeros(())
        for mood, parent in zip(reversed(moods), reversed(self._parents), strict=True):
            above = (above + mood).index_select(0, parent)
        return above

    def at(self, moods: list[Tensor], owner: IntArray, time: NDArray[np.float64]) -> Tensor:
        """Return (m, ...) the sum of the moods of owners (m,) at some times (m,), as far as they have such windows."""
        total = torch.zeros(len(owner), *moods[0].shape[1:])
        inside = (time >= self._first) & (time < self._end) & (owner < self._number)
        for mood, keys, length in zip(moods, self._keys, self._lengths, strict=True):
            wanted = self._key(length, owner[inside], np.floor((time[inside] - self._first) / length))
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            found = torch.from_numpy(np.where(keys[place] == wanted, 1.0, 0.0).astype(np.float32))
            here = torch.from_numpy(np.flatnonzero(inside))
            total[here] += found.view(-1, *[1] * (mood.ndim - 1)) * mood[torch.from_numpy(place)]
        return total


def _sums(offsets: Tensor, rows: Tensor) -> Tensor:
    """Return (G, ...) the sums of rows (n, ...) between offsets (G + 1,)."""
    flat, places = rows.reshape(len(rows), -1), torch.arange(len(rows))
    found = functional.embedding_bag(places, flat, offsets, mode="sum", include_last_offset=True)
    return found.view(-1, *rows.shape[1:])


def useful_windows(lengths: Sequence[int], rows: Interactions) -> tuple[int, ...]:
    """Return the lengths that divide the rows of users otherwise than the next shorter one; none without times.

    Args:
        lengths: In seconds, each a multiple of the one before it.
        rows: Rows sorted by user and, within a user, by time.
    """
    if rows.time is None or not lengths:
        return ()
    numbers = [len(owners) for owners in WindowRows(lengths, rows.user, rows.time).owners]
    return tuple(
        length
        for length, number, before in zip(lengths, numbers, [len(rows) + 1, *numbers], strict=False)
        if number < before
    )
