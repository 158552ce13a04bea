"""Queries as arrays in a tree of names, to travel as a file."""

from __future__ import annotations

from scipy import sparse

from multitask_recommender.data.interactions import Interactions
from multitask_recommender.data.queries import Queries
from multitask_recommender.models.state import State, array, branch, read_matrix, store_matrix


def queries_state(queries: Queries) -> State:
    """Return the arrays of some queries."""
    rows = queries.history
    state: State = {
        "asked": queries.user,
        "user": rows.user,
        "item": rows.item,
        "labels": dict(rows.labels),
        "relevant": dict(rows.relevant),
        "context": store_matrix(queries.context),
    }
    optional = {"time": rows.time, "weight": rows.weight}
    return state | {name: values for name, values in optional.items() if values is not None}


def read_queries(state: State) -> Queries:
    """Return the queries that :func:`queries_state` stored."""
    labels, relevant = branch(state, "labels"), branch(state, "relevant")
    history = Interactions(
        user=array(state, "user"),
        item=array(state, "item"),
        labels={name: array(labels, name) for name in labels},
        relevant={name: array(relevant, name) for name in relevant},
        time=array(state, "time") if "time" in state else None,
        weight=array(state, "weight") if "weight" in state else None,
    )
    context = read_matrix(branch(state, "context"))
    assert isinstance(context, sparse.csr_matrix)
    return Queries(array(state, "asked"), history, context)
