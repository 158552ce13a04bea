"""implicit: its lists, known items left out."""

from __future__ import annotations

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy import sparse
from threadpoolctl import threadpool_limits

from workers.common import Arguments, Run, read_arrays, serve


def top(arguments: Arguments) -> Run:
    """Make the lists of a model with given vectors."""
    # Its own threads share the users; the library asks for one thread in the matrix products.
    threadpool_limits(limits=1)
    given = read_arrays(arguments["file"])
    users, items = given["users"], given["items"]
    model = AlternatingLeastSquares(factors=users.shape[1], num_threads=arguments["threads"])
    model.user_factors, model.item_factors = users, items
    ones = np.ones(len(given["indices"]), dtype=np.float32)
    known = sparse.csr_matrix((ones, given["indices"], given["indptr"]), shape=(len(users), len(items)))

    def run() -> None:
        model.recommend(np.arange(len(users)), known, N=arguments["k"], filter_already_liked_items=True)

    return run


if __name__ == "__main__":
    serve({"top": top})
