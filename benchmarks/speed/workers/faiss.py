"""faiss: its exact index of inner products, which leaves nothing out for one user alone."""

from __future__ import annotations

import faiss
import numpy as np

from workers.common import Arguments, Run, read_arrays, serve


def top(arguments: Arguments) -> Run:
    """Search lists that are longer by the most known items of a user, and leave the known items out of them."""
    given = read_arrays(arguments["file"])
    index = _index(arguments, given["items"])
    items, counts = len(given["items"]), np.diff(given["indptr"])
    # In order, since users are, and items within a user.
    known = np.repeat(np.arange(len(counts)), counts) * items + given["indices"]
    k, longer = arguments["k"], arguments["k"] + int(counts.max())

    def run() -> None:
        found = index.search(given["users"], longer)[1]
        pairs = np.arange(len(found))[:, None] * items + found
        place = np.minimum(np.searchsorted(known, pairs), len(known) - 1)
        left = known[place] != pairs
        # The first k that are left, in their order.
        np.take_along_axis(found, np.argsort(~left, axis=1, kind="stable")[:, :k], axis=1)

    return run


def search(arguments: Arguments) -> Run:
    """Search the index alone: its lists hold known items."""
    given = read_arrays(arguments["file"])
    index = _index(arguments, given["items"])

    def run() -> None:
        index.search(given["users"], arguments["k"])

    return run


def _index(arguments: Arguments, items: np.ndarray) -> faiss.IndexFlatIP:
    faiss.omp_set_num_threads(arguments["threads"])
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    return index


if __name__ == "__main__":
    serve({"top": top, "search": search})
