"""What stored models were made from, and taking them back for data that is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multitask_recommender.data.digests import digest_arrays, digest_names, digest_rows
from multitask_recommender.data.folds import IN_TIME
from multitask_recommender.data.interactions import NO_FOLD, FloatArray, Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.models.document.user_embedding import UserEmbeddingModel, UserEmbeddingSettings
from multitask_recommender.models.recommender import Recommender
from multitask_recommender.models.soundness import check_scores, check_stored
from multitask_recommender.models.state import branch
from multitask_recommender.models.stored import StaleModelError, StoredModel, check_fit, flatten, versions
from multitask_recommender.models.variants import Variant

COMPARED = ("tasks", "data", "settings")
"""What of a record must be the same for a model to fit. The rest is there to be read by whoever uses the model."""


def start_record(description: Mapping[str, Any], user_ids: Sequence[str], item_ids: Sequence[str]) -> dict[str, Any]:
    """Begin the record of a model: versions, and what holds for all splits.

    Args:
        description: The description of the data set as plain values.
        user_ids: Identifiers of the users, in the order of their numbers.
        item_ids: The same of the items.
    """
    return {
        "versions": versions(),
        "dataset": {name: value for name, value in description.items() if name != "tasks"},
        "tasks": description["tasks"],
        "data": {"identifiers": {"users": digest_names(user_ids), "items": digest_names(item_ids)}},
        "settings": {},
        "labels": {},
    }


def note_fit(
    made_from: dict[str, Any], split: str, settings: dict[str, Any], rows: Interactions, side: SideInformation
) -> None:
    """Add a split to the record: the settings, the ranges of the labels, digests of the training rows and features."""
    made_from["settings"][split] = settings
    made_from["labels"][split] = {task: _range(rows.labels[task]) for task in side.tasks}
    made_from["data"][split] = digest_rows(rows, side)
    if isinstance(side.user_encoder, UserEmbeddingModel):
        found = digest_arrays(flatten(side.user_encoder.state()).values())
        made_from["data"][split]["user embedding model"] = found


def _range(labels: FloatArray) -> list[float] | None:
    """Return the smallest and the largest label; None where there is none."""
    known = labels[~np.isnan(labels)]
    return [float(known.min()), float(known.max())] if len(known) else None


def with_encoder(side: SideInformation, user_embedding: StoredModel | None, split: str, fold: int) -> SideInformation:
    """Add the user embedding model that was trained on the rows of a split outside a fold (``NO_FOLD``: on all)."""
    if user_embedding is None:
        return side
    settings = UserEmbeddingSettings.model_validate(user_embedding.made_from["settings"][split])
    encoder = UserEmbeddingModel(settings)
    encoder.restore(branch(branch(user_embedding.state, split), str(fold)), side)
    return replace(side, user_encoder=encoder)


def settings_for(chosen: Mapping[str, Any], split: str) -> Any:
    """Return what was chosen for a split.

    Nothing is chosen for ``EVERYTHING``: what is recommended from it comes after it, so that it takes what was chosen
    for the first split in time, or else for the first split.

    Args:
        chosen: Settings by split.
        split: Name of the split.
    """
    if split in chosen:
        return chosen[split]
    return chosen[next((name for name in chosen if name in IN_TIME), next(iter(chosen)))]


def restored(
    variant: Variant,
    chosen: dict[str, Any],
    stored: StoredModel,
    record: dict[str, Any],
    side: SideInformation,
    user_embedding: StoredModel | None,
    split: str,
    rows: Interactions,
) -> tuple[dict[str, Recommender], SideInformation]:
    """Make the models that were fitted on a split, by seed number, and the side information that they know.

    Args:
        variant: The model.
        chosen: Its settings by split.
        stored: What it learnt.
        record: What :func:`start_record` makes of the data as it is now.
        side: The side information as it is now, without the user embedding model.
        user_embedding: The user embedding model, if the variant reads one.
        split: Name of the split.
        rows: The training rows as they are now.

    Raises:
        StaleModelError: If their settings or their data are no longer the same, or if what is stored is not finite or
            not of the shape that the settings ask for.
    """
    side = with_encoder(side, user_embedding, split, NO_FOLD)
    settings = settings_for(chosen, split)
    note_fit(record, split, settings, rows, side)
    now = {name: record[name] for name in COMPARED}
    check_fit(variant.namespace, f"{variant.name}.weights", stored.made_from, now)
    models = {}
    for seed in branch(stored.state, split):
        model = variant.make(variant.read_settings(settings), side.tasks)
        own = branch(branch(stored.state, split), seed)
        where = f"{variant.name}.weights, {split} split, seed number {seed}"
        check_stored(flatten(own), where)
        try:
            model.restore(own, side)
            scores = model.score(Histories(rows, side.user_features).of(np.zeros(1, dtype=np.int64)))
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise StaleModelError(
                f"The stored weights of model '{variant.name}' do not fit its settings: {said}.\n"
                f"  where: {where}\n  what to do: fit the model again."
            ) from error
        check_scores(scores, (1, side.items), variant.name, where)
        models[seed] = model
    return models, side
