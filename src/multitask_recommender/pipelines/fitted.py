"""What stored models were made from, and taking them back for data that is the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from multitask_recommender.data.digests import digest_arrays, digest_names, digest_rows
from multitask_recommender.data.inputs import NO_FOLD, TrainingTables
from multitask_recommender.data.interactions import Interactions, SideInformation
from multitask_recommender.models.document.user_embedding import UserEmbeddingModel, UserEmbeddingSettings
from multitask_recommender.models.recommender import Recommender
from multitask_recommender.models.state import branch
from multitask_recommender.models.stored import StoredModel, check_fit, flatten, versions
from multitask_recommender.models.variants import Variant


def start_record(tables: TrainingTables) -> dict[str, Any]:
    """Begin the record of a model: versions, and what holds for all splits."""
    names = {"users": digest_names(tables.users, "user"), "items": digest_names(tables.items, "item")}
    return {
        "versions": versions(),
        "tasks": {name: task.model_dump(mode="json") for name, task in tables.dataset.tasks.items()},
        "data": {"identifiers": names},
        "settings": {},
    }


def note_fit(
    made_from: dict[str, Any], split: str, settings: dict[str, Any], rows: Interactions, side: SideInformation
) -> None:
    """Add a split to the record: the settings, and digests of the training rows and features."""
    made_from["settings"][split] = settings
    made_from["data"][split] = digest_rows(rows, side)
    if isinstance(side.user_encoder, UserEmbeddingModel):
        found = digest_arrays(flatten(side.user_encoder.state()).values())
        made_from["data"][split]["user embedding model"] = found


def with_encoder(side: SideInformation, user_embedding: StoredModel | None, split: str, fold: int) -> SideInformation:
    """Add the user embedding model that was trained on the rows of a split outside a fold (``NO_FOLD``: on all)."""
    if user_embedding is None:
        return side
    settings = UserEmbeddingSettings.model_validate(user_embedding.made_from["settings"][split])
    encoder = UserEmbeddingModel(settings)
    encoder.restore(branch(branch(user_embedding.state, split), str(fold)), side)
    return replace(side, user_encoder=encoder)


def restored(
    variant: Variant,
    chosen: dict[str, Any],
    stored: StoredModel,
    tables: TrainingTables,
    user_embedding: StoredModel | None,
    split: str,
    rows: Interactions,
) -> tuple[dict[str, Recommender], SideInformation]:
    """Make the models that were fitted on a split, by seed number, and the side information that they know.

    Raises:
        StaleModelError: If their settings or their data are no longer the same.
    """
    side = with_encoder(tables.side(split), user_embedding, split, NO_FOLD)
    settings = chosen[split if split in chosen else next(iter(chosen))]
    asked = start_record(tables)
    note_fit(asked, split, settings, rows, side)
    check_fit(
        variant.name, f"{variant.name}.weights", stored.made_from, {k: v for k, v in asked.items() if k != "versions"}
    )
    models = {}
    for seed in branch(stored.state, split):
        model = variant.make(variant.read_settings(settings), side.tasks)
        model.restore(branch(branch(stored.state, split), seed), side)
        models[seed] = model
    return models, side
