"""A Markov chain over items: what comes next, by the latest items of a history."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy import sparse

from multitask_recommender.data.interactions import FloatArray, IntArray, Interactions, SideInformation, pair_matrix
from multitask_recommender.data.queries import Queries
from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.recommender import Knowledge, LearningCurve, Recommender, popularity
from multitask_recommender.models.state import State, array, branch, read_matrix, store_matrix


class MarkovSettings(Settings):
    """Parameters of the Markov chain.

    Attributes:
        skip: Reach of the transitions that skip items, in positions; 0: an item is followed by the next one alone.
        smoothing: How many transitions the popularity counts as beside those that were seen from an item.
        memory: Reach of a history, in positions: an item as far back from the latest one counts e times less; 0: the
            latest item alone.
    """

    skip: float = Field(default=3.0, ge=0, le=1e9)
    smoothing: float = Field(default=10.0, gt=0, le=1e9)
    memory: float = Field(default=5.0, ge=0, le=1e9)


def fading(distance: IntArray, reach: float) -> FloatArray:
    """Return exp(-distance / reach), for a reach of 0 its limit: 1 at distance 0, else 0."""
    if reach == 0:
        return (distance == 0).astype(np.float32)
    return np.exp(-distance / reach).astype(np.float32)


def count_transitions(user: IntArray, item: IntArray, items: int, skip: float) -> sparse.csr_matrix:
    """Count which items follow which in the sequences.

    C_ij = sum_u sum_{k < l} [item k of u is i] [item l of u is j] exp(-(l - k - 1) / skip). Pairs of which more than 4
    times the reach was skipped do not count. Source of the skipping: Shani, Brafman and Heckerman, An MDP-Based
    Recommender System, UAI 2002 (skipping), where the weight halves with every item skipped.

    Args:
        user: (rows,) users, sorted.
        item: (rows,) items, a user's in the order of the sequence.
        items: Number of items.
        skip: See :class:`MarkovSettings`.

    Returns:
        (items, items).
    """
    counts = sparse.csr_matrix((items, items), dtype=np.float32)
    for skipped, weight in enumerate(fading(np.arange(int(4 * skip) + 1), skip), start=1):
        same = user[skipped:] == user[:-skipped]
        counts = counts + weight * pair_matrix(item[:-skipped][same], item[skipped:][same], (items, items))
    return counts.tocsr()


class MarkovChain(Recommender[MarkovSettings]):
    """score = sum_k w_k p(j | i_k) over the history, w_k = exp(-age of item k / memory) scaled to sum 1.

    The transition probabilities p(j | i) = (C_ij + smoothing popularity_j) / (sum_j C_ij + smoothing) are those of one
    chain for all users, a first-order one with ``memory: 0`` and otherwise a mixture over the latest items. Source:
    Shani et al., UAI 2002; as the non-personalised chain MC of Rendle, Freudenthaler and Schmidt-Thieme,
    Factorizing Personalized Markov Chains, WWW 2010, section 4, whose mean over the items of the last basket is the
    mixture here.
    """

    by_relevance = True
    knowledge = Knowledge("its latest relevant items", "popularity", "0")

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Count the transitions between the relevant rows of every task."""
        state: State = {}
        for task in self.scored_tasks(side.tasks):
            relevant = train.relevant[task]
            counts = count_transitions(train.user[relevant], train.item[relevant], side.items, self.settings.skip)
            state[task] = {"counts": store_matrix(counts), "popularity": popularity(train, task, side.items)}
        self.restore(state, side)
        return LearningCurve()

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Mix the transition probabilities from the items of the histories; popularity without any."""
        scores = {}
        for task, (seen, rest, popular) in self._learnt.items():
            weights, none = self._weights(queries, task, len(popular))
            scores[task] = (weights @ seen).toarray() + (weights @ rest + none)[:, None] * popular
        return scores

    def _weights(self, queries: Queries, task: str, items: int) -> tuple[sparse.csr_matrix, FloatArray]:
        """Return the (B, items) weights of the items of the histories, and (B,) 1 for those without a relevant row."""
        relevant = queries.history.relevant[task]
        user, item = queries.history.user[relevant], queries.history.item[relevant]
        counts = np.bincount(user, minlength=len(queries))
        age = np.cumsum(counts)[user] - 1 - np.arange(len(user))
        weight = fading(age, self.settings.memory)
        weight /= np.bincount(user, weight, minlength=len(queries))[user].astype(np.float32)
        weights = sparse.csr_matrix((weight, (user, item)), shape=(len(queries), items))
        return weights, (counts == 0).astype(np.float32)

    def similarities(self, item: int, task: str) -> FloatArray | None:
        """Return the transition probabilities from an item."""
        if task not in self._learnt:
            return None
        seen, rest, popular = self._learnt[task]
        return seen[item].toarray().ravel() + rest[item] * popular

    def state(self) -> State:
        """Return transitions and popularity."""
        return dict(self._state)

    def restore(self, state: State, side: SideInformation) -> None:
        """Take transitions and popularity back."""
        self._state = dict(state)
        self._learnt: dict[str, tuple[sparse.csr_matrix, FloatArray, FloatArray]] = {}
        for task in self.scored_tasks(side.tasks):
            own = branch(state, task)
            counts = sparse.csr_matrix(read_matrix(branch(own, "counts")))
            share = 1.0 / (np.asarray(counts.sum(axis=1)).ravel() + np.float32(self.settings.smoothing))
            seen = sparse.diags(share.astype(np.float32)) @ counts
            rest = (self.settings.smoothing * share).astype(np.float32)
            self._learnt[task] = (seen.tocsr(), rest, array(own, "popularity"))

    def parameter_count(self) -> int:
        """Return the number of transitions that were seen."""
        return sum(seen.nnz for seen, _, _ in self._learnt.values())
