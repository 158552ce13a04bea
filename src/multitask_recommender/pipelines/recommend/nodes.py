"""Steps of the pipeline ``recommend``: answers for the users of new events, without training."""

from __future__ import annotations

import logging
from collections.abc import Callable

import ibis.expr.types as ir
import pandas as pd

from multitask_recommender.data import labels, tables
from multitask_recommender.data.description import DatasetSettings
from multitask_recommender.data.interactions import interactions_of
from multitask_recommender.evaluation.study import StudySettings
from multitask_recommender.foundation.spool import Spool
from multitask_recommender.models.stored import check_fit
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.use.recommender import LoadedRecommender
from multitask_recommender.use.updates import RECOMMENDATIONS, NewEvents, answer, report

logger = logging.getLogger(__name__)
_NAME = "raw_new_interactions"


def settle_new_interactions(
    raw_new_interactions: ir.Table | None, items: ir.Table, dataset: DatasetSettings
) -> tuple[ir.Table, ir.Table]:
    """Read new events by the description of the data set (see ``tables.settle_new_interactions``).

    Returns:
        The events on items that the training knew, and those on others.
    """
    standardised = tables.standardise_interactions(raw_new_interactions, dataset.interactions, _NAME)
    known, unknown, dropped = tables.settle_new_interactions(standardised, items, dataset.interactions, _NAME)
    known, contradictions = labels.settle_contradictions(known, dataset)
    for _, reason, rows in [*dropped.itertuples(index=False), *contradictions]:
        logger.warning("%s: %d x %s", _NAME, rows, reason)
    return known, unknown


def answer_new_events(
    fitted_models: Callable[[str | None], LoadedRecommender],
    new_interactions: ir.Table,
    labelled_new_interactions: ir.Table,
    unknown_new_interactions: ir.Table,
    study: StudySettings,
    dataset: DatasetSettings,
) -> tuple[Spool, pd.DataFrame]:
    """Recommend to all users that the new events concern, by their stored histories and the new events.

    Returns:
        new_recommendations (user_id, task, rank, item_id, title, score) without the users' known items; the report on
        what the training knew of the events, with the advice whether to train again (what, value).

    Raises:
        StaleModelError: If the tasks are not those that the model was trained on.
    """
    recommender = fitted_models(study.recommend_with)
    recommender.index_above = study.index_above
    tasks = {name: task.model_dump(mode="json") for name, task in dataset.tasks.items()}
    run = recommender.run
    check_fit(VARIANTS[run.name].namespace, str(run.folder), run.record, {"tasks": tasks})
    order = ["user", "timestamp", "item_id"] if dataset.interactions.timestamp is not None else ["user", "row"]
    users = new_interactions.select("user", "user_id").distinct().order_by("user").to_pyarrow()
    unknown = unknown_new_interactions.to_pyarrow()
    events = NewEvents(
        rows=interactions_of(labelled_new_interactions.order_by(order).to_pyarrow(), dataset.tasks),
        user_ids=users["user_id"].to_pylist(),
        unknown_items=unknown["item_id"].to_pylist(),
        unknown_item_users=unknown["user_id"].to_pylist(),
    )
    result = Spool(RECOMMENDATIONS)
    for table in answer(recommender, events, study.recommendations):
        result.add(table)
    counted = report(recommender, events, study.train_again_share)
    logger.info("%s", counted["value"].iloc[-1])
    return result, counted
