"""What the data is like: how much there is, how sparse and skewed, how the tasks overlap, and when things happened."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.data.features import MISSING, RARE
from multitask_recommender.data.interactions import EVERYTHING

SUMMARY_COLUMNS = ["what", "value", "unit"]
ACTIVITY_COLUMNS = ["side", "rank", "rows", "share_of_side", "share_of_rows"]
OVERLAP_COLUMNS = ["task", "other", "rows", "share", "correlation"]
LABEL_COLUMNS = ["task", "label", "rows"]
TIME_COLUMNS = ["split", "part", "begin", "rows"]
FEATURE_COLUMNS = ["side", "feature", "columns", "missing", "examples"]
_DAY = 86400.0
_POINTS, _BINS, _LABELS = 120, 40, 12


def summarise(interactions: ir.Table, users: ir.Table, items: ir.Table, dataset: DatasetSettings) -> pd.DataFrame:
    """Return the size, sparsity and skew of the data: table (what, value, unit)."""
    rows = int(interactions.count().execute())
    sizes = {"users": int(users.count().execute()), "items": int(items.count().execute())}
    pairs = int(interactions.select("user", "item").distinct().count().execute())
    lines: list[tuple[str, float, str]] = [("interactions", rows, "rows")]
    lines += [(side, size, side) for side, size in sizes.items()]
    lines.append(("different pairs", pairs, "pairs"))
    lines.append(("density", 100 * pairs / max(sizes["users"] * sizes["items"], 1), "% of all pairs"))
    for side in ("user", "item"):
        counts = _counts(interactions, side)
        lines.append((f"median interactions per {side}", float(np.median(counts)), "rows"))
        lines.append((f"{side}s with fewer than 5 interactions", 100 * float((counts < 5).mean()), f"% of {side}s"))
        most = max(len(counts) // 10, 1)
        lines.append((f"most active tenth of the {side}s", 100 * counts[:most].sum() / counts.sum(), "% of the rows"))
        lines.append((f"inequality of the {side}s (Gini)", _gini(counts), "0 to 1"))
    if _has_times(dataset):
        span = interactions.aggregate(first=interactions["time"].min(), last=interactions["time"].max()).execute()
        lines.append(("time from first to last", (span["last"][0] - span["first"][0]) / _DAY, "days"))
    return pd.DataFrame(lines, columns=SUMMARY_COLUMNS)


def activity(interactions: ir.Table) -> pd.DataFrame:
    """Return how the interactions are spread over users and items, the most active first.

    Returns:
        Table with ``ACTIVITY_COLUMNS`` at some ranks: interactions at the rank, and the shares of the side's entities
        and of all interactions up to it.
    """
    tables = []
    for side in ("user", "item"):
        counts = _counts(interactions, side)
        rank = np.unique(np.geomspace(1, len(counts), _POINTS).astype(np.int64))
        share = np.cumsum(counts) / counts.sum()
        own = {
            "rank": rank,
            "rows": counts[rank - 1],
            "share_of_side": rank / len(counts),
            "share_of_rows": share[rank - 1],
        }
        tables.append(pd.DataFrame({"side": side, **own}))
    return pd.concat(tables, ignore_index=True)[ACTIVITY_COLUMNS]


def overlap_of_tasks(labelled: ir.Table, dataset: DatasetSettings) -> pd.DataFrame:
    """Return how the tasks overlap.

    Returns:
        Table with ``OVERLAP_COLUMNS``, one line per ordered pair: rows on which both tasks have a label; of those that
        are relevant for the task the share that is relevant for the other; and the correlation of the labels (NaN
        where one of them never differs).
    """
    lines = []
    for task in dataset.tasks:
        for other in dataset.tasks:
            both = labelled.filter(labelled[task].notnull() & labelled[other].notnull())
            both = both.select(
                one=both[task].cast("float64"),
                two=both[other].cast("float64"),
                relevant=both[f"relevant_{task}"],
                also=(both[f"relevant_{task}"] & both[f"relevant_{other}"]),
            )
            found = both.aggregate(
                rows=both.count(),
                relevant=both.relevant.sum(),
                also=both.also.sum(),
                one=both.one.mean(),
                two=both.two.mean(),
                product=(both.one * both.two).mean(),
                one_square=(both.one * both.one).mean(),
                two_square=(both.two * both.two).mean(),
            ).execute()
            row = found.iloc[0].astype(float).fillna(0.0)
            spread = (row["one_square"] - row["one"] ** 2) * (row["two_square"] - row["two"] ** 2)
            correlation = (row["product"] - row["one"] * row["two"]) / np.sqrt(spread) if spread > 1e-12 else np.nan
            share = row["also"] / row["relevant"] if row["relevant"] else np.nan
            lines.append((task, other, int(row["rows"]), share, correlation))
    return pd.DataFrame(lines, columns=OVERLAP_COLUMNS)


def values_of_labels(labelled: ir.Table, dataset: DatasetSettings) -> pd.DataFrame:
    """Return how often which label occurs: table (task, label, rows); many values are put into equal ranges."""
    tables = []
    for task in dataset.tasks:
        known = labelled.filter(labelled[task].notnull())
        counted = known.group_by(label=known[task].cast("float64")).aggregate(rows=known.count()).order_by("label")
        counts = counted.execute()
        if len(counts) > _LABELS:
            edges = np.linspace(counts["label"].min(), counts["label"].max(), _LABELS + 1)
            place = np.clip(np.searchsorted(edges, counts["label"], side="right") - 1, 0, _LABELS - 1)
            counts = counts.assign(label=edges[place]).groupby("label", as_index=False)["rows"].sum()
        tables.append(counts.assign(task=task))
    return pd.concat(tables, ignore_index=True)[LABEL_COLUMNS]


def events_in_time(labelled: ir.Table, splits: ir.Table, dataset: DatasetSettings) -> pd.DataFrame:
    """Return how many rows of which part lie when: table (split, part, begin, rows), ``begin`` in days since the first.

    Empty where the data has no times.
    """
    if not _has_times(dataset):
        return pd.DataFrame(columns=TIME_COLUMNS)
    timed = labelled.select("row", "time").inner_join(splits.filter(splits.split != EVERYTHING), "row")
    span = timed.aggregate(first=timed["time"].min(), last=timed["time"].max()).execute().iloc[0]
    if pd.isna(span["first"]):
        return pd.DataFrame(columns=TIME_COLUMNS)
    width = max(float(span["last"] - span["first"]) / _BINS, 1e-9)
    place = ((timed["time"] - float(span["first"])) / width).floor().clip(upper=_BINS - 1).cast("int64")
    counted = timed.group_by(["split", "part", place.name("place")]).aggregate(rows=timed.count())
    table = counted.order_by(["split", "part", "place"]).execute()
    return table.assign(begin=table["place"] * width / _DAY)[TIME_COLUMNS]


def count_parts(splits: ir.Table) -> pd.DataFrame:
    """Return the number of rows of every split's parts: table (split, part, rows, share), ``share`` in %."""
    studied = splits.filter(splits.split != EVERYTHING)
    counts = studied.group_by(["split", "part"]).aggregate(rows=studied.count()).order_by(["split", "part"]).execute()
    return counts.assign(share=100 * counts["rows"] / counts.groupby("split")["rows"].transform("sum"))


def summarise_features(
    users: ir.Table,
    items: ir.Table,
    user_vocabulary: ir.Table,
    item_vocabulary: ir.Table,
    dataset: DatasetSettings,
) -> pd.DataFrame:
    """Return every feature with its number of columns, the share of users or items without a value (in %), and values.

    The columns are those of the whole of the data; the most frequent values are the examples.
    """
    lines = []
    sides = [
        ("user", users, user_vocabulary, dataset.users.features),
        ("item", items, item_vocabulary, dataset.items.features),
    ]
    for side, table, vocabulary, features in sides:
        own = vocabulary.filter(vocabulary.split == EVERYTHING)
        values = own.order_by(["feature", ibis.desc("entities"), "value"]).execute()
        for name in dict.fromkeys([*features, *values["feature"]]):
            of_feature = values[values["feature"] == name]
            telling = of_feature[~of_feature["value"].isin([MISSING, RARE])]["value"].head(4)
            missing = float("nan")
            if name in table.columns:
                missing = 100 * float(table[name].isnull().mean().execute() or 0.0)
            lines.append((side, name, len(of_feature), missing, ", ".join(telling)))
    return pd.DataFrame(lines, columns=FEATURE_COLUMNS)


def _has_times(dataset: DatasetSettings) -> bool:
    return dataset.interactions.timestamp is not None and dataset.interactions.timestamp_unit != "order"


def _counts(interactions: ir.Table, side: str) -> NDArray[np.int64]:
    """Return how many interactions the users or items have that have any, the largest number first."""
    table = interactions.group_by(side).aggregate(rows=interactions.count())
    return np.sort(table.execute()["rows"].to_numpy(np.int64))[::-1]


def _gini(counts: NDArray[np.int64]) -> float:
    """Return the Gini coefficient of numbers, the largest first: 0 if all are equal, near 1 if one has everything."""
    rank = np.arange(len(counts), 0, -1)
    return float((2 * (rank * counts).sum() / counts.sum() - len(counts) - 1) / len(counts))
