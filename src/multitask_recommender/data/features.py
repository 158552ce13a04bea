"""Features of users and items as sparse design matrices in long form, made from training rows only."""

from __future__ import annotations

from collections.abc import Mapping

import ibis
import ibis.expr.types as ir

from multitask_recommender.data.description import DatasetSettings, Feature

MISSING = "(missing)"
RARE = "(rare)"


def _training_entities(training: ir.Table, key: str) -> ir.Table:
    return training.select("split", key).distinct()


def _numeric_values(table: ir.Table, key: str, name: str, feature: Feature, trained: ir.Table) -> ir.Table:
    """Rows (split, key, value) with the number's bin as text, bins of equal count among training entities."""
    value = table.select(key, number=table[name])
    known = trained.inner_join(value, key).filter(ibis._.number.notnull())
    ranked = known.mutate(bin=ibis.ntile(feature.bins).over(group_by="split", order_by=["number", key]))
    # A number belongs to the bin of the largest training number that is not above it, so equal numbers share a bin.
    edges = ranked.group_by("split", "bin").aggregate(low=ranked.number.min())
    edges = edges.group_by("split", "low").aggregate(bin=edges.bin.min())
    splits = trained.select("split").distinct()
    everyone = splits.cross_join(value)
    below = everyone.left_join(edges, [everyone.split == edges.split, everyone.number >= edges.low]).select(
        split=everyone.split, key_=everyone[key], number=everyone.number, low=edges.low
    )
    lowest = edges.group_by("split").aggregate(lowest=edges.low.min())
    best = below.group_by("split", "key_", "number").aggregate(low=below.low.max())
    best = best.left_join(lowest, "split").drop("split_right")
    label = ibis.literal("from ") + ibis.coalesce(best.low, best.lowest).cast("string")
    return best.select("split", value=best.number.isnull().ifelse(None, label), **{key: best.key_})


def _hashed(word: ir.StringValue, columns: int) -> ir.StringValue:
    """Name one of ``columns`` by the first 24 bits of the word's MD5 digest, in arithmetic that engines agree on."""
    digest = word.hexdigest("md5")
    digits = [ibis.literal("0123456789abcdef").find(digest.substr(place, 1)).cast("int64") for place in range(6)]
    number = sum((digit * 16**place for place, digit in enumerate(digits[1:], start=1)), start=digits[0])
    return ibis.literal("words ") + (number % columns).cast("string")


def _values(table: ir.Table, key: str, features: Mapping[str, Feature], trained: ir.Table) -> list[ir.Table]:
    """Per feature, rows (split, key, feature, value); an entity without a value has one row with null."""
    splits = trained.select("split").distinct()
    result = []
    for name, feature in features.items():
        if feature.is_number:
            values = _numeric_values(table, key, name, feature, trained)
        elif feature.kind == "category":
            values = splits.cross_join(table.select(key, value=table[name]))
        else:
            several = table.select(key, value=table[name].unnest()).filter(ibis._.value != "")
            if feature.hash_columns is not None:
                several = several.mutate(value=_hashed(several.value, feature.hash_columns))
            several = several.distinct()
            everyone = table.select(key)
            several = everyone.left_join(several, key).select(everyone[key], "value")
            values = splits.cross_join(several)
        result.append(values.select("split", key, feature=ibis.literal(name), value=values.value.cast("string")))
    return result


def _activity_values(users: ir.Table, training: ir.Table, name: str, trained: ir.Table) -> ir.Table:
    """Rows (split, user, feature, value): the doubling bin of the user's number of training interactions."""
    counts = training.group_by("split", "user").aggregate(count=ibis._.count())
    everyone = trained.select("split").distinct().cross_join(users.select("user"))
    table = everyone.left_join(counts, ["split", "user"]).select(
        split=everyone.split, user=everyone.user, count=ibis._["count"].fill_null(0)
    )
    level = (table["count"] + 1).log2().floor().cast("int64")
    label = ibis.literal("from ") + (ibis.literal(2.0).pow(level) - 1).cast("int64").cast("string")
    return table.select("split", "user", feature=ibis.literal(name), value=label)


def build_features(
    table: ir.Table, key: str, training: ir.Table, settings: DatasetSettings
) -> tuple[ir.Table, ir.Table] | None:
    """Make the vocabulary and the design matrix of the users or the items, once per split.

    The vocabulary of a feature has its values seen on at least ``minimum_count`` entities with training rows (the bins
    of numbers: on any), then ``(rare)`` and ``(missing)``. A value that is rare, or that no training entity has,
    counts as ``(rare)``; an entity without any value counts as ``(missing)``. Every feature has total weight 1 in a row
    of the matrix, divided equally among its values.

    Args:
        table: The canonical users or items.
        key: ``user`` or ``item``.
        training: Training rows (split, user, item).
        settings: The description of the data set.

    Returns:
        vocabulary (split, feature, value, column, entities) and matrix (split, key, column, weight), sorted; None
        where there is no feature.
    """
    features = settings.users.features if key == "user" else settings.items.features
    trained = _training_entities(training, key)
    parts = _values(table, key, features, trained)
    # Bins are of equal count: none is rare, so that a newcomer's number, too, belongs to one of them.
    minimum = {name: 1 if feature.is_number else feature.minimum_count for name, feature in features.items()}
    if key == "user" and settings.users.activity is not None:
        parts.append(_activity_values(table, training, settings.users.activity, trained))
        minimum[settings.users.activity] = 1
    if not parts:
        return None
    values = ibis.union(*parts).cache()

    seen = values.inner_join(trained, ["split", key]).filter(ibis._.value.notnull())
    counted = seen.group_by("split", "feature", "value").aggregate(entities=ibis._.count())
    thresholds = ibis.memtable({"feature": list(minimum), "minimum": list(minimum.values())})
    frequent = (
        counted.inner_join(thresholds, "feature")
        .filter(ibis._.entities >= ibis._.minimum)
        .select("split", "feature", "value", "entities")
    )
    names = ibis.memtable(
        {"feature": [name for name in minimum for _ in range(2)], "value": [RARE, MISSING] * len(minimum)}
    )
    special = trained.select("split").distinct().cross_join(names)
    special = special.select("split", "feature", "value", entities=ibis.literal(0).cast("int64"))
    vocabulary = ibis.union(frequent, special)
    vocabulary = vocabulary.mutate(
        column=ibis.row_number().over(group_by="split", order_by=["feature", "value"]).cast("int64")
    ).cache()

    filled = values.mutate(value=values.value.fill_null(MISSING))
    matched = filled.left_join(vocabulary, ["split", "feature", "value"]).select(
        split=filled.split, key_=filled[key], feature=filled.feature, column=vocabulary.column
    )
    rare = vocabulary.filter(vocabulary.value == RARE).select("split", "feature", rare_column="column")
    matched = matched.inner_join(rare, ["split", "feature"])
    matched = matched.mutate(
        column=ibis.coalesce(matched.column, matched.rare_column),
        share=1.0 / ibis._.count().over(ibis.window(group_by=["split", "key_", "feature"])).cast("float64"),
    )
    matrix = matched.group_by("split", "key_", "column").aggregate(weight=matched.share.sum())
    # Sums of equal shares are rounded to make them independent of the order of summation.
    matrix = matrix.select("split", "column", weight=matrix.weight.round(12), **{key: matrix.key_})
    matrix = matrix.select("split", key, "column", "weight").order_by("split", key, "column")
    return vocabulary.order_by("split", "column"), matrix
