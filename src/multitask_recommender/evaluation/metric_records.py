"""The list of metrics, one record each. Whatever computes, shows or compares a metric reads it here.

To add one: write its function in ``metrics.py`` and its record in ``ROW_METRICS`` or ``LIST_METRICS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np
from scipy import sparse

from multitask_recommender.data.interactions import BoolArray, FloatArray, IntArray
from multitask_recommender.data.tasks import TaskKind
from multitask_recommender.evaluation import metrics
from multitask_recommender.evaluation.metrics import Values

Kinds = frozenset[TaskKind]
Totals = tuple[IntArray, Values, Values]
"""(n,) users, ascending, their totals and their counts: see ``statistics.py``."""

NONE: Kinds = frozenset()
RETRIEVAL: Kinds = frozenset({"retrieval"})
BINARY: Kinds = frozenset({"binary"})
REGRESSION: Kinds = frozenset({"regression"})
ALL: Kinds = RETRIEVAL | BINARY | REGRESSION


@dataclass(frozen=True)
class ScoredRows:
    """Test rows on which a task has a label, and a model's scores.

    Attributes:
        user: (rows,) number of the user.
        item: (rows,) number of the item.
        label: (rows,) label of the task.
        score: (rows,) score of the model for the task.
    """

    user: IntArray
    item: IntArray
    label: FloatArray
    score: FloatArray

    @property
    def users(self) -> int:
        """Number of users who have rows."""
        return len(np.unique(self.user))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.user)

    def where(self, mask: BoolArray) -> ScoredRows:
        """Return the rows in which ``mask`` (rows,) is true."""
        return ScoredRows(self.user[mask], self.item[mask], self.label[mask], self.score[mask])


@dataclass(frozen=True)
class Surroundings:
    """What is known before the test of the items and users of a split, by which lists are judged.

    Attributes:
        item_users: (items,) training users of each item.
        training_users: Number of users with training rows.
        features: (items, columns) features of the items, rows of length 1, or 0 for an item without any; None: none.
        categories: (items, categories) shares of the declared categories, which sum to 1, or 0; None: none declared.
        tastes: (users, categories) mean shares of the known items of every user.
    """

    item_users: IntArray
    training_users: int
    features: sparse.csr_matrix | None = None
    categories: sparse.csr_matrix | None = None
    tastes: FloatArray | None = None


@dataclass(frozen=True)
class JudgedLists:
    """A model's lists for a task, of the users who have relevant items, and what is needed to judge them.

    Attributes:
        user: (lists,) number of the user, ascending.
        lists: (lists, k) recommended items, best first, ``ranking.PADDING`` in empty places.
        hits: (lists, k), whether the item is relevant.
        positives: (lists,) number of relevant items, at least 1.
        catalogue: (items,), true for the items that may be recommended.
        around: What is known of items and users.
    """

    user: IntArray
    lists: IntArray
    hits: BoolArray
    positives: IntArray
    catalogue: BoolArray
    around: Surroundings

    @property
    def users(self) -> int:
        """Number of lists."""
        return len(self.user)

    @property
    def rows(self) -> int:
        """Number of relevant pairs."""
        return int(self.positives.sum())

    def is_like(self, other: JudgedLists) -> bool:
        """Return whether nothing is judged otherwise than in others of the same surroundings."""
        parts = ("user", "positives", "lists", "hits", "catalogue")
        return all(np.array_equal(getattr(self, part), getattr(other, part)) for part in parts)

    def first(self, k: int) -> JudgedLists:
        """Return the same with the first k places of every list."""
        return replace(self, lists=self.lists[:, :k], hits=self.hits[:, :k])


Of = TypeVar("Of", ScoredRows, JudgedLists)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Metric(Generic[Of]):
    """What there is to know of a metric: g(mean of a value per row or list), or a value of the whole.

    Attributes:
        name: Name in tables.
        title: Name in figures.
        unit: Unit of the values, where they have one.
        kinds: Kinds of tasks that it measures.
        higher_is_better: Its direction; None where neither is.
        each: (rows,) or (lists,) values whose mean it is; NaN is left out. None for a metric of the whole alone.
        whole: The metric, where it is not g of the mean.
        by_user: Totals of the users, where they are not the sums of ``each``.
        root: Whether g is the square root instead of the identity.
        needs_predictions: Whether scores have to be predictions of the label; else any score will do.
        needs: What of the :class:`Surroundings` it needs that not every data set has.
        headline: Kinds of tasks for which the headline table shows it.
        compared: Kinds of tasks on which models are compared by it. It then has totals.
        main: Kinds of tasks of which it is the main metric: figures show it.
        chooses: Kinds of tasks whose parameters are chosen by it.
    """

    of_lists: ClassVar[bool]

    name: str
    title: str
    unit: str = ""
    kinds: Kinds = ALL
    higher_is_better: bool | None
    each: Callable[[Of], Values] | None = None
    whole: Callable[[Of], float] | None = None
    by_user: Callable[[Of], Totals] | None = None
    root: bool = False
    needs_predictions: bool = False
    needs: Literal["features", "categories"] | None = None
    headline: Kinds = NONE
    compared: Kinds = NONE
    main: Kinds = NONE
    chooses: Kinds = NONE

    @property
    def sign(self) -> int:
        """-1 if lower is better, else 1: what a difference is multiplied by to become a gain."""
        return -1 if self.higher_is_better is False else 1

    def finish(self, mean: float) -> float:
        """Return g(mean)."""
        return float(np.sqrt(mean) if self.root else mean)

    def value(self, of: Of) -> float:
        """Return the metric; NaN where it is not defined, as the AUC of a single class."""
        return self._value(of, self._each(of))

    def totals(self, of: Of) -> Totals | None:
        """Return totals and counts of the users: the metric is g(sum of totals / sum of counts).

        Of AUC that is the mean of the users' own AUC. None for a metric that does not divide by user.
        """
        return self._totals(of, self._each(of))

    def value_and_totals(self, of: Of) -> tuple[float, Totals | None]:
        """Return both, computed from the same values of the rows or lists."""
        each = self._each(of)
        return self._value(of, each), self._totals(of, each)

    def _each(self, of: Of) -> Values | None:
        return None if self.each is None else self.each(of)

    def _value(self, of: Of, each: Values | None) -> float:
        if self.whole is not None:
            return self.whole(of)
        assert each is not None
        return float("nan") if np.isnan(each).all() else self.finish(float(np.nanmean(each)))

    def _totals(self, of: Of, each: Values | None) -> Totals | None:
        if self.by_user is not None:
            return self.by_user(of)
        if each is None:
            return None
        known = ~np.isnan(each)
        users, place = np.unique(of.user, return_inverse=True)
        sums = [np.bincount(place, of_rows).astype(np.float64) for of_rows in (np.where(known, each, 0.0), known)]
        return users, sums[0], sums[1]

    def label(self, k: int) -> str:
        """Return its name for the axis of a figure, with unit and direction; ``k`` is the length of the lists."""
        name = f"{self.title}@{k}" if self.of_lists else self.title
        unit = f" ({self.unit})" if self.unit else ""
        direction = {True: ", higher is better", False: ", lower is better", None: ""}[self.higher_is_better]
        return name + unit + direction


class RowMetric(Metric[ScoredRows]):
    """A metric of test rows with a label."""

    of_lists = False


class ListMetric(Metric[JudgedLists]):
    """A metric of lists of recommendations; it has a length k."""

    of_lists = True


def _auc_by_user(rows: ScoredRows) -> Totals:
    users, areas = metrics.auc_by_user(rows.label, rows.score, rows.user)
    return users, areas, np.ones(len(users))


def _known(value: T | None) -> T:
    assert value is not None, "what the metric 'needs' is not there"
    return value


ROW_METRICS = (
    RowMetric(
        name="rmse",
        title="RMSE",
        unit="label units",
        kinds=REGRESSION,
        higher_is_better=False,
        each=lambda rows: metrics.squared_errors(rows.label, rows.score),
        root=True,
        needs_predictions=True,
        headline=REGRESSION,
        compared=REGRESSION,
        main=REGRESSION,
        chooses=REGRESSION,
    ),
    RowMetric(
        name="mae",
        title="MAE",
        unit="label units",
        kinds=REGRESSION,
        higher_is_better=False,
        each=lambda rows: metrics.absolute_errors(rows.label, rows.score),
        needs_predictions=True,
        headline=REGRESSION,
        compared=REGRESSION,
    ),
    RowMetric(
        name="auc",
        title="AUC",
        kinds=BINARY,
        higher_is_better=True,
        whole=lambda rows: metrics.auc(rows.label, rows.score),
        by_user=_auc_by_user,
        headline=BINARY,
        compared=BINARY,
        main=BINARY,
    ),
    RowMetric(
        name="log_loss",
        title="log loss",
        unit="nats per row",
        kinds=BINARY,
        higher_is_better=False,
        each=lambda rows: metrics.log_losses(rows.label, rows.score),
        needs_predictions=True,
        compared=BINARY,
        chooses=BINARY,
    ),
    RowMetric(
        name="accuracy",
        title="accuracy",
        unit="share of rows",
        kinds=BINARY,
        higher_is_better=True,
        each=lambda rows: metrics.right_answers(rows.label, rows.score),
        needs_predictions=True,
        headline=BINARY,
    ),
    RowMetric(
        name="ece",
        title="expected calibration error",
        kinds=BINARY,
        higher_is_better=False,
        whole=lambda rows: metrics.expected_calibration_error(rows.label, rows.score),
        needs_predictions=True,
    ),
)
LIST_METRICS = (
    ListMetric(
        name="ndcg",
        title="NDCG",
        higher_is_better=True,
        each=lambda own: metrics.ndcg(own.hits, own.positives),
        headline=RETRIEVAL,
        compared=RETRIEVAL | BINARY,
        main=RETRIEVAL,
        chooses=RETRIEVAL,
    ),
    ListMetric(
        name="precision",
        title="precision",
        higher_is_better=True,
        each=lambda own: metrics.precision(own.hits),
    ),
    ListMetric(
        name="recall",
        title="recall",
        higher_is_better=True,
        each=lambda own: metrics.recall(own.hits, own.positives),
        headline=ALL,
        compared=RETRIEVAL,
    ),
    ListMetric(
        name="hit_rate",
        title="hit rate",
        unit="share of users",
        higher_is_better=True,
        each=lambda own: metrics.hit_rate(own.hits),
    ),
    ListMetric(
        name="coverage",
        title="catalogue coverage",
        unit="share of items",
        higher_is_better=None,
        whole=lambda own: metrics.catalogue_coverage(own.lists, own.catalogue),
        headline=ALL,
    ),
    ListMetric(
        name="gini",
        title="Gini coefficient",
        higher_is_better=None,
        whole=lambda own: metrics.gini(own.lists, own.catalogue),
    ),
    ListMetric(
        name="novelty",
        title="novelty",
        unit="bits per recommended item",
        higher_is_better=True,
        each=lambda own: metrics.self_information(own.lists, own.around.item_users, own.around.training_users),
        headline=ALL,
        compared=RETRIEVAL,
    ),
    ListMetric(
        name="average_popularity",
        title="average popularity",
        unit="share of training users",
        higher_is_better=None,
        each=lambda own: metrics.average_popularity(own.lists, own.around.item_users, own.around.training_users),
    ),
    ListMetric(
        name="long_tail",
        title="long tail",
        unit="share of recommended items",
        higher_is_better=None,
        each=lambda own: metrics.long_tail_share(own.lists, own.around.item_users),
    ),
    ListMetric(
        name="serendipity",
        title="serendipity",
        higher_is_better=True,
        each=lambda own: metrics.serendipity(own.lists, own.hits, own.around.item_users, own.catalogue),
    ),
    ListMetric(
        name="diversity",
        title="intra-list diversity",
        unit="1 - cosine",
        higher_is_better=None,
        each=lambda own: metrics.intra_list_diversity(own.lists, _known(own.around.features)),
        needs="features",
    ),
    ListMetric(
        name="miscalibration",
        title="miscalibration",
        unit="nats",
        higher_is_better=False,
        each=lambda own: metrics.miscalibration(
            own.lists, _known(own.around.categories), _known(own.around.tastes)[own.user]
        ),
        needs="categories",
    ),
)
METRICS: dict[str, RowMetric | ListMetric] = {metric.name: metric for metric in (*ROW_METRICS, *LIST_METRICS)}
"""Every metric by name, in the order in which tables show them."""


def main_metric(kind: TaskKind) -> RowMetric | ListMetric:
    """Return the metric that figures show for a kind of task."""
    return next(metric for metric in METRICS.values() if kind in metric.main)


def compared_metrics(kind: TaskKind) -> list[RowMetric | ListMetric]:
    """Return the metrics by which models are compared on a kind of task."""
    return [metric for metric in METRICS.values() if kind in metric.compared]
