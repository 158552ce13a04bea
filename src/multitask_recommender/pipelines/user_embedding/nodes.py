"""Steps of the pipeline ``user_embedding``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd

from multitask_recommender.data.description import DatasetSettings, SplitSettings
from multitask_recommender.data.events import as_pairs, pair_rules
from multitask_recommender.data.folds import SplitRule, fold_pairs
from multitask_recommender.data.inputs import TrainingTables
from multitask_recommender.data.interactions import EVERYTHING, NO_FOLD, Interactions, SideInformation
from multitask_recommender.data.queries import Histories
from multitask_recommender.data.tasks import Task
from multitask_recommender.evaluation.cross_validation import CrossValidationSettings, Searched, cross_validate
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.jobs import run_jobs
from multitask_recommender.foundation.randomness import derive_seed
from multitask_recommender.models.document.user_embedding import UserEmbeddingModel, UserEmbeddingSettings
from multitask_recommender.models.fitted import note_fit, settings_for, start_record
from multitask_recommender.models.state import State
from multitask_recommender.models.stored import StoredModel
from multitask_recommender.models.variants import Variant
from multitask_recommender.pipelines.user_embedding.parameters import UserEmbeddingParameters

USER_EMBEDDING = Variant("user_embedding", UserEmbeddingModel, UserEmbeddingSettings, "single_task", "User embedding")


def _ranking_task(tasks: dict[str, Task]) -> list[str]:
    """The task whose held-out items the histories are judged by: the first retrieval task, or else the first."""
    retrieval = [name for name, task in tasks.items() if task.kind == "retrieval"]
    return [(retrieval or list(tasks))[0]]


def _same_side(side: SideInformation, fold: int) -> SideInformation:
    """The user embedding model has no inputs that depend on the fold."""
    return side


def tune_user_embedding(
    parameters: UserEmbeddingParameters,
    cross_validation: CrossValidationSettings,
    study: StudySettings,
    dataset: DatasetSettings,
    splits: SplitSettings,
    training_data: Mapping[str, ir.Table],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Choose the searched parameters by how well hidden folds of the histories are reconstructed.

    Returns:
        Table of all fits; chosen settings by split.
    """
    tables = TrainingTables.of(dataset, training_data)
    task = _ranking_task(dataset.tasks)
    results = []
    chosen: dict[str, Any] = {}
    for split in splits.names:
        rows, side = tables.events(split).with_tasks(task), tables.side(split).with_tasks(task)
        search = Searched(splits.rule(split), parameters, rows, partial(_same_side, side))
        (choice,) = cross_validate(USER_EMBEDDING, [search], cross_validation, study.seed)
        results.append(choice.table.assign(split=split))
        chosen[split] = parameters.with_values(choice.chosen).model_dump()
    return pd.concat(results).assign(model=USER_EMBEDDING.name), chosen


def _fit_without(
    settings: UserEmbeddingSettings, rows: Interactions, side: SideInformation, seed: int, split: SplitRule, fold: int
) -> tuple[State, list[dict[str, float]]]:
    model = UserEmbeddingModel(settings)
    if fold == NO_FOLD:
        pairs = as_pairs(rows, pair_rules(side.tasks))
    else:
        pairs = fold_pairs(split, rows, fold, side.tasks).train
    curve = model.fit(pairs, side, derive_seed(seed, USER_EMBEDDING.name, split.name, fold))
    return model.state(), curve.epochs


def train_user_embedding(
    chosen: dict[str, Any],
    cross_validation: CrossValidationSettings,
    study: StudySettings,
    dataset: DatasetSettings,
    splits: SplitSettings,
    training_data: Mapping[str, ir.Table],
) -> tuple[StoredModel, ir.Table, pd.DataFrame]:
    """Train on every split, and on the complement of every fold so that cross-validation of what follows stays honest.

    Returns:
        The model, by split and left-out fold (-1: none); vectors of the users by the model that left out no fold
        (split, user, vector); learning curve (split, epoch, value).
    """
    tables = TrainingTables.of(dataset, training_data)
    state: State = {}
    made_from = start_record(tables.dataset.model_dump(mode="json"), *tables.identifiers)
    vectors, curves = [], []
    for split in [*splits.names, EVERYTHING]:
        settings = UserEmbeddingSettings.model_validate(settings_for(chosen, split))
        events, side = tables.events(split), tables.side(split)
        rows = as_pairs(events, pair_rules(dataset.tasks))
        note_fit(made_from, split, settings.model_dump(mode="json"), rows, side)
        folds = [NO_FOLD] if split == EVERYTHING else [NO_FOLD, *range(splits.folds)]
        fit = partial(_fit_without, settings, events, side, study.seed, splits.rule(split))
        results = run_jobs(fit, folds, cross_validation.workers, f"user_embedding, {split}: training")
        state[split] = {str(fold): own for fold, (own, _) in zip(folds, results, strict=True)}
        whole, epochs = UserEmbeddingModel(settings), results[0][1]
        whole.restore(results[0][0], side)
        own = whole.encode(Histories(rows, side.user_features).of(np.arange(side.users)))
        vectors.append(pd.DataFrame({"split": split, "user": np.arange(side.users), "vector": list(own)}))
        curves += [
            {"split": split, "epoch": number + 1, "value": losses["user_embedding"]}
            for number, losses in enumerate(epochs)
        ]
        del events, rows, fit, whole  # They hold the rows, in whose place others are read.
    table = ibis.memtable(pd.concat(vectors, ignore_index=True))
    return StoredModel(state, made_from), table, pd.DataFrame(curves)
