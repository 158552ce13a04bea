"""faiss: its exact index of inner products. It leaves nothing out for one user alone: its lists hold known items."""

from __future__ import annotations

import faiss

from workers.common import Arguments, Run, read_arrays, serve


def top(arguments: Arguments) -> Run:
    """Search the index."""
    faiss.omp_set_num_threads(arguments["threads"])
    given = read_arrays(arguments["file"])
    index = faiss.IndexFlatIP(given["items"].shape[1])
    index.add(given["items"])

    def run() -> None:
        index.search(given["users"], arguments["k"])

    return run


if __name__ == "__main__":
    serve({"top": top})
