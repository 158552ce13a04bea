"""Baselines that rank by a learnt item-item matrix or by factors of implicit feedback."""

from __future__ import annotations

import warnings

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from pydantic import Field
from scipy import linalg, sparse

from multitask_recommender.data.interactions import (
    BoolArray,
    FloatArray,
    IntArray,
    Interactions,
    SideInformation,
    pair_matrix,
)
from multitask_recommender.data.queries import Queries
from multitask_recommender.data.tasks import Task, funnel_chain
from multitask_recommender.models.baselines.neighbours import ItemNeighbours, item_blocks, keep_largest
from multitask_recommender.models.recommender import (
    HistorySettings,
    InnerProducts,
    Knowledge,
    LearningCurve,
    Recommender,
    cosines,
    or_popularity,
    popularity,
)
from multitask_recommender.models.state import Matrix, State, array, branch, read_matrix, store_matrix

LARGEST_CATALOGUE = 30_000
"""Most items for a dense item-item matrix (3.6 GB in float32)."""
SOLVED_TOGETHER = 10_000
"""Of a larger catalogue, so many of the most popular items are solved together (400 MB in float32)."""
KEPT_BEYOND = 200
"""Weights kept per item of a larger catalogue, where the settings do not say."""
_BLOCK = 1024


class EaseSettings(HistorySettings):
    """Parameters of EASE.

    Attributes:
        penalty: lambda, the L2 penalty of the item-item weights.
        user_exponent: A user with n rows counts (mean n / n)^exponent as much as others; 0: all alike.
        item_exponent: Columns are multiplied by (mean n / n)^exponent, n rows of the item; 0: none is.
        feature_weight: Weight of the items' features in the Gram matrix; 0 leaves them out.
        sequence_weight: Weight of the nearness of items in the behaviour sequences; 0 leaves the order out.
        sequence_reach: Positions of a behaviour sequence over which nearness falls by the factor e.
        neighbours: Weights kept per item, the largest in magnitude; null keeps all, which takes items x items numbers.
    """

    penalty: float = Field(default=300.0, gt=0, le=1e9)
    user_exponent: float = Field(default=0.0, ge=0, le=2)
    item_exponent: float = Field(default=0.0, ge=0, le=2)
    feature_weight: float = Field(default=0.0, ge=0, le=1e9)
    sequence_weight: float = Field(default=0.0, ge=0, le=1e9)
    sequence_reach: float = Field(default=10.0, gt=0, le=1e9)
    neighbours: int | None = Field(default=None, ge=1, le=10**7)


def normalisers(
    history: sparse.csr_matrix, user_exponent: float, item_exponent: float
) -> tuple[FloatArray, FloatArray]:
    """Return what the rows and the columns of histories are multiplied by, so that frequent ones do not rule the rest.

    r_u = (mean n / n_u)^(user_exponent / 2) and c_i = (mean n / n_i)^item_exponent with the counts of the row and of
    the column, so that a user's squared errors are weighted by r_u^2. Rows and columns without entries count as one
    of them. Source: Park, Yoon, Kim and Lee, Why is Normalization Necessary for Linear Recommenders?, SIGIR 2025,
    with one exponent on the side of the items: scores stay those of the normalised columns.

    Args:
        history: (users, items), ones at the relevant pairs.
        user_exponent: Of the users' counts.
        item_exponent: Of the items' counts.

    Returns:
        (users,) r and (items,) c; all ones for an exponent of 0.
    """

    def scale(counts: IntArray, exponent: float) -> FloatArray:
        some = counts[counts > 0]
        mean = some.mean() if len(some) else 1.0
        found: FloatArray = ((mean / np.maximum(counts, 1)) ** exponent).astype(np.float32)
        return found

    of_users, of_items = np.diff(history.indptr), np.bincount(history.indices, minlength=history.shape[1])
    return scale(of_users, user_exponent / 2), scale(of_items, item_exponent)


def sequence_nearness(
    user: IntArray, item: IntArray, items: int, reach: float, weight: FloatArray | None = None
) -> sparse.csr_matrix:
    """Return how near to each other items stand in the behaviour sequences.

    N_ij = sum_u w_u sum_{k, l} [item k of u is i] [item l of u is j] exp(-|k - l| / reach), k and l positions: the Gram
    matrix of the histories in which two places count as the same as far as they are near. Places further apart than 4
    times the reach do not count.

    Args:
        user: (rows,) users, sorted.
        item: (rows,) items, a user's in the order of the sequence.
        items: Number of items.
        reach: In positions.
        weight: (users,) w; None: all are 1.

    Returns:
        (items, items), symmetric.
    """
    own = np.ones(len(user), np.float32) if weight is None else weight[user]
    near = sparse.csr_matrix((items, items), dtype=np.float32)
    for distance in range(1, int(4 * reach) + 1):
        same = user[distance:] == user[:-distance]
        pairs = (item[:-distance][same], item[distance:][same])
        counted = own[distance:][same] * np.float32(np.exp(-distance / reach))
        near = near + sparse.csr_matrix((counted, pairs), shape=(items, items))
    rows = np.bincount(item, weights=own, minlength=items).astype(np.float32)
    return (near + near.T + sparse.diags(rows)).tocsr()


def ease_weights(
    history: sparse.csr_matrix,
    penalty: float,
    features: sparse.csr_matrix | None = None,
    feature_weight: float = 0.0,
    nearness: sparse.csr_matrix | None = None,
    sequence_weight: float = 0.0,
) -> FloatArray:
    """Solve min ||X - X B||^2 + w ||F' - F' B||^2 + v ||S - S B||^2 + lambda ||B||^2 with a zero diagonal.

    With P = (X'X + w F F' + v S'S + lambda I)^-1 the solution is B_ij = -P_ij / P_jj off the diagonal.
    Source: Steck, Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019, equation 8; features as additional
    rows, as in Jeunen, Van Balen and Goethals, RecSys 2020. The behaviour sequences are additional rows S here in the
    same way, of which N = S'S is all that is needed.

    Args:
        history: (users, items) X, ones at the relevant pairs.
        penalty: lambda.
        features: (items, columns) F.
        feature_weight: w.
        nearness: (items, items) N, see :func:`sequence_nearness`.
        sequence_weight: v.

    Returns:
        (items, items) B.
    """
    if feature_weight == 0 or features is None or features.nnz == 0:
        features = None
        # The weights of an item without history are zero: solve for the others alone.
        active = np.flatnonzero(np.diff(history.tocsc().indptr))
        if len(active) < history.shape[1]:
            weights = np.zeros((history.shape[1],) * 2, dtype=np.float32)
            near = None if nearness is None else nearness[active][:, active]
            weights[np.ix_(active, active)] = ease_weights(
                history[:, active], penalty, nearness=near, sequence_weight=sequence_weight
            )
            return weights
    gram = (history.T @ history).astype(np.float32).toarray()
    for start in range(0, len(gram), _BLOCK):
        block = slice(start, start + _BLOCK)
        if nearness is not None:
            gram[block] += np.float32(sequence_weight) * nearness[block].toarray()
        if features is not None:
            gram[block] += feature_weight * (features[block] @ features.T).toarray().astype(np.float32)
    gram[np.diag_indices_from(gram)] += penalty
    weights = _inverse(gram)
    weights /= -np.diag(weights)[None, :].copy()
    np.fill_diagonal(weights, 0.0)
    return weights.astype(np.float32, copy=False)


def _inverse(gram: FloatArray) -> FloatArray:
    """Return the inverse of a positive definite matrix, in the same memory."""
    # Every step works in the one matrix: catalogues of 10,000 items take 400 MB each time it is copied.
    factor = linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
    inverse, _ = linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
    for start in range(0, len(inverse), _BLOCK):
        own = slice(start, start + _BLOCK)
        inverse[:start, own] = inverse[own, :start].T
        inverse[own, own] = np.tril(inverse[own, own]) + np.tril(inverse[own, own], -1).T
    return inverse.T  # Symmetric, and so in the order of rows.


def ease_weights_from_popular(
    history: sparse.csr_matrix,
    penalty: float,
    features: sparse.csr_matrix | None = None,
    feature_weight: float = 0.0,
    nearness: sparse.csr_matrix | None = None,
    sequence_weight: float = 0.0,
    solved: int = SOLVED_TOGETHER,
    neighbours: int = KEPT_BEYOND,
) -> sparse.csr_matrix:
    """Solve the problem of :func:`ease_weights` with the most popular items alone as inputs, for large catalogues.

    Every item j is regressed on the items P with the most rows: B_Pj = (G_PP + lambda I)^-1 G_Pj with the Gram matrix G
    that is inverted there, and by the formula there for an item that is one of P. Items outside P have scores, and as
    part of a history they count for none. Without items outside P it is the same solution.

    Args:
        history: (users, items), ones at the relevant pairs.
        penalty: lambda.
        features: (items, columns) F.
        feature_weight: w.
        nearness: (items, items) N.
        sequence_weight: v.
        solved: Number of items in P.
        neighbours: Weights kept to every item, the largest in magnitude.

    Returns:
        (items, items) B.
    """
    items = history.shape[1]
    by_item = history.tocsc()
    order = np.argsort(-np.diff(by_item.indptr), kind="stable")
    popular = np.sort(order[:solved])
    own = by_item[:, popular].T.tocsr()

    def gram_with(columns: IntArray) -> FloatArray:
        found = (own @ by_item[:, columns]).astype(np.float32)
        if nearness is not None:
            found = found + np.float32(sequence_weight) * nearness[popular][:, columns]
        if features is not None and feature_weight > 0:
            found = found + np.float32(feature_weight) * (features[popular] @ features[columns].T)
        return found.toarray()

    gram = np.empty((len(popular),) * 2, dtype=np.float32)
    for start in range(0, len(popular), _BLOCK):
        gram[:, start : start + _BLOCK] = gram_with(popular[start : start + _BLOCK])
    gram[np.diag_indices_from(gram)] += penalty
    inverse = _inverse(gram)
    place = np.full(items, -1)
    place[popular] = np.arange(len(popular))
    blocks = []
    for start in range(0, items, _BLOCK):
        columns = np.arange(start, min(start + _BLOCK, items))
        inside = place[columns]
        one_of = np.flatnonzero(inside >= 0)
        weights = inverse @ gram_with(columns)
        same = inverse[:, inside[one_of]]
        weights[:, one_of] = same / -same[inside[one_of], np.arange(len(one_of))]
        weights[inside[one_of], one_of] = 0.0
        blocks.append(keep_largest_rows(weights.T, neighbours))
    kept = sparse.vstack(blocks, format="csr")
    kept = sparse.csr_matrix((kept.data, popular[kept.indices], kept.indptr), shape=(items, items))
    return kept.T.tocsr()


def keep_largest_rows(weights: FloatArray, neighbours: int) -> sparse.csr_matrix:
    """Keep the entries of every row that are largest in magnitude."""
    weights = np.ascontiguousarray(weights)
    if neighbours >= weights.shape[1]:
        return sparse.csr_matrix(weights)
    threshold = np.partition(np.abs(weights), -neighbours, axis=1)[:, -neighbours, None]
    return sparse.csr_matrix(np.where(np.abs(weights) >= threshold, weights, 0.0))


def keep_largest_weights(weights: FloatArray, neighbours: int | None) -> Matrix:
    """Keep the weights to every item (column) that are largest in magnitude, as a sparse matrix; None: all."""
    if neighbours is None or neighbours >= len(weights):
        return weights
    columns = (weights[:, start : start + _BLOCK] for start in range(0, len(weights), _BLOCK))
    blocks = [keep_largest_rows(own.T, neighbours) for own in columns]
    return sparse.vstack(blocks, format="csr").T.tocsr()


def multiply(history: sparse.csr_matrix, weights: Matrix) -> FloatArray:
    """Return the dense product of histories (B, items) and item-item weights."""
    product = history @ weights
    return product.toarray() if sparse.issparse(product) else product


class Ease(Recommender[EaseSettings]):
    """EASE^R: score = x_u B, see :func:`ease_weights`; aware of the order with ``sequence_weight``.

    With exponents B is solved between normalised rows and columns, see :func:`normalisers`, and the scores are those of
    the normalised columns.

    Of a catalogue of more than ``LARGEST_CATALOGUE`` items the most popular alone are inputs, see
    :func:`ease_weights_from_popular`.
    """

    by_relevance = True
    knowledge = Knowledge("its relevant items", "popularity", "features", item_features=True)

    def learnt_from(self, tasks: dict[str, Task]) -> dict[str, str]:
        """Return for every task the task whose relevant rows it is learnt from: itself."""
        return {name: name for name in self.scored_tasks(tasks)}

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Solve the item-item weights from relevant rows."""
        settings = self.settings
        state: State = {}
        for task in dict.fromkeys(self.learnt_from(side.tasks).values()):
            user, item = train.user[train.relevant[task]], train.item[train.relevant[task]]
            history = pair_matrix(user, item, (side.users, side.items))
            of_users, of_items = normalisers(history, settings.user_exponent, settings.item_exponent)
            columns = sparse.diags(of_items)
            nearness = None
            if settings.sequence_weight > 0:
                near = sequence_nearness(user, item, side.items, settings.sequence_reach, of_users**2)
                nearness = (columns @ near @ columns).tocsr()
            # In place: histories are most of the memory of a large catalogue.
            history.data *= np.repeat(of_users, np.diff(history.indptr)) * of_items[history.indices]
            features = (columns @ side.item_features).tocsr()
            problem = (settings.penalty, features, settings.feature_weight, nearness)
            weights: Matrix
            if side.items > LARGEST_CATALOGUE:
                kept = settings.neighbours or KEPT_BEYOND
                weights = ease_weights_from_popular(history, *problem, settings.sequence_weight, SOLVED_TOGETHER, kept)
            else:
                dense = ease_weights(history, *problem, settings.sequence_weight)
                weights = keep_largest_weights(dense, settings.neighbours)
            # Histories that are asked about are not normalised: the weights of their items are instead.
            if sparse.issparse(weights):
                weights = (columns @ weights).tocsr()
            else:
                weights *= of_items[:, None]
            state[task] = {
                "weights": store_matrix(weights),
                "popularity": popularity(train, task, side.items),
            }
        self.restore(state, side)
        return LearningCurve()

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Multiply histories with the weights."""
        queries = queries.weighted(self.settings.recency)
        scores = {
            task: or_popularity(multiply(queries.relevant(task, weights.shape[0]), weights), popular)
            for task, (weights, popular) in self._learnt.items()
        }
        return {task: scores[source] for task, source in self._sources.items()}

    def similarities(self, item: int, task: str) -> FloatArray | None:
        """Return the weights with which an item of a history counts."""
        if task not in self._sources:
            return None
        row = self._learnt[self._sources[task]][0][item]
        return row.toarray().ravel() if sparse.issparse(row) else row

    def state(self) -> State:
        """Return weights and popularity."""
        return dict(self._state)

    def restore(self, state: State, side: SideInformation) -> None:
        """Take weights and popularity back."""
        self._state, self._sources = dict(state), self.learnt_from(side.tasks)
        self._learnt: dict[str, tuple[Matrix, FloatArray]] = {}
        for task in dict.fromkeys(self._sources.values()):
            own = branch(state, task)
            self._learnt[task] = (read_matrix(branch(own, "weights")), array(own, "popularity"))

    def parameter_count(self) -> int:
        """Return the number of item-item weights."""
        return sum(weights.size for weights, _ in self._learnt.values())


class FirstStepEase(Ease):
    """EASE that ranks every step of a funnel by what its first step teaches.

    It says what a later step, such as a purchase, gains from the plentiful data of the first, such as views, without
    any model of several tasks.
    """

    by_relevance = False

    def learnt_from(self, tasks: dict[str, Task]) -> dict[str, str]:
        """Return for every task the first step of its funnel; itself for a task outside a funnel."""
        return {name: funnel_chain(tasks, name)[0] for name in self.scored_tasks(tasks)}


class ImplicitALSSettings(HistorySettings):
    """Parameters of iALS.

    Attributes:
        dimension: Number of factors.
        positive_weight: alpha, the additional weight of an observed pair.
        penalty: L2 penalty of the factors.
        iterations: Alternations.
    """

    dimension: int = Field(default=128, ge=1, le=8192)
    positive_weight: float = Field(default=5.0, gt=0, le=1e9)
    penalty: float = Field(default=30.0, gt=0, le=1e9)
    iterations: int = Field(default=15, ge=1, le=10_000)


class ImplicitALS(Recommender[ImplicitALSSettings]):
    """iALS of the library implicit: weighted factorisation of the whole user x item matrix.

    A user's factors are always solved anew from the history, by the library's ``recalculate_user``.
    Source: Hu, Koren and Volinsky, Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008, equation 4.
    """

    stochastic = True
    by_relevance = True
    knowledge = Knowledge("factors solved from its relevant items", "popularity", "0")

    def _model(self, seed: int) -> AlternatingLeastSquares:
        with warnings.catch_warnings():
            # It asks for one thread of the process that makes it; what computes is given one anyway.
            warnings.filterwarnings("ignore", message=".* is configured to use", category=RuntimeWarning)
            return AlternatingLeastSquares(
                factors=self.settings.dimension,
                regularization=self.settings.penalty,
                alpha=1.0 + self.settings.positive_weight,
                iterations=self.settings.iterations,
                num_threads=1,
                random_state=seed % 2**32,
            )

    def fit(self, train: Interactions, side: SideInformation, seed: int) -> LearningCurve:
        """Factorise the relevant pairs of every task."""
        state: State = {}
        for task in self.scored_tasks(side.tasks):
            relevant = train.relevant[task]
            model = self._model(seed)
            history = pair_matrix(train.user[relevant], train.item[relevant], (side.users, side.items))
            model.fit(history, show_progress=False)
            state[task] = {"item": model.item_factors, "popularity": popularity(train, task, side.items)}
        self.restore(state, side)
        return LearningCurve()

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Solve the users' factors and multiply them with those of the items."""
        scores = {}
        for task, (factors, _) in self._user_factors(queries).items():
            model, popular = self._learnt[task]
            scores[task] = or_popularity(factors @ model.item_factors.T, popular)
        return scores

    def _user_factors(self, queries: Queries) -> dict[str, tuple[FloatArray, BoolArray]]:
        """Return task to (B, d) factors and (B,), whether no relevant item is known; the factors are 0 then."""
        result, queries = {}, queries.weighted(self.settings.recency)
        for task, (model, popular) in self._learnt.items():
            history = queries.relevant(task, len(popular))
            none = np.diff(history.indptr) == 0
            # Places, not numbers of users: the library would read nothing else of them.
            factors = model.recalculate_user(np.arange(len(queries)), history)
            factors[none] = 0.0
            result[task] = (factors, none)
        return result

    def similarities(self, item: int, task: str) -> FloatArray | None:
        """Return the cosines of the items' factors."""
        return cosines(self._learnt[task][0].item_factors, item) if task in self._learnt else None

    def inner_products(self, queries: Queries) -> InnerProducts:
        """Return factors; a last coordinate holds the popularity, which counts where no relevant item is known."""
        result: InnerProducts = {}
        for task, (factors, none) in self._user_factors(queries).items():
            model, popular = self._learnt[task]
            items = np.column_stack([model.item_factors, popular])
            result[task] = (np.column_stack([factors, none.astype(np.float32)]), items)
        return result

    def state(self) -> State:
        """Return the items' factors and popularity."""
        return dict(self._state)

    def restore(self, state: State, side: SideInformation) -> None:
        """Take the items' factors and popularity back."""
        self._state = dict(state)
        self._learnt: dict[str, tuple[AlternatingLeastSquares, FloatArray]] = {}
        for task in self.scored_tasks(side.tasks):
            own, model = branch(state, task), self._model(0)
            model.item_factors = array(own, "item")
            self._learnt[task] = (model, array(own, "popularity"))


class RandomWalkSettings(HistorySettings):
    """Parameters of RP3beta.

    Attributes:
        alpha: Exponent of the transition probabilities.
        beta: Exponent of the popularity that similarities are divided by.
        neighbours: Neighbours kept per item.
    """

    alpha: float = Field(default=0.8, gt=0, le=1e9)
    beta: float = Field(default=0.4, ge=0, le=1e3)
    neighbours: int = Field(default=200, ge=1, le=10**7)


class RandomWalk(ItemNeighbours[RandomWalkSettings]):
    """RP3beta: three-step random walk user - item - user - item, discounted by popularity.

    s(j -> i) = sum_u p(u | j)^alpha p(i | u)^alpha / popularity_i^beta. Source: Paudel et al., Updatable, Accurate,
    Diverse, and Scalable Recommendations for Interactive Applications, ACM TiiS 2017.
    """

    knowledge = Knowledge("its relevant items", "popularity", "0")

    def _similarities(self, train: Interactions, side: SideInformation, task: str) -> sparse.csr_matrix:
        relevant = train.relevant[task]
        pairs = pair_matrix(train.user[relevant], train.item[relevant], (side.users, side.items))
        items = np.maximum(np.asarray(pairs.sum(axis=0)).ravel(), 1.0)
        users = np.maximum(np.asarray(pairs.sum(axis=1)).ravel(), 1.0)
        to_item = sparse.diags(users**-self.settings.alpha) @ pairs
        from_item = sparse.diags(items**-self.settings.alpha) @ pairs.T
        to_item, from_item = to_item.T.tocsr(), from_item.T.tocsr()
        blocks = []
        for own in item_blocks(side.items):
            # Row i: how strongly the walk comes to i from every j.
            block = (to_item[own] @ from_item).toarray()
            block /= items[own, None] ** self.settings.beta
            rows = np.arange(len(block))
            block[rows, own.start + rows] = 0.0
            blocks.append(keep_largest(block, self.settings.neighbours))
        return sparse.vstack(blocks, format="csr")
