"""The pipeline ``recommend``: tomorrow's log. It is not part of the study and needs the outputs of one."""

from kedro.pipeline import Pipeline, node

from multitask_recommender.pipelines.data_engineering.nodes import label_interactions
from multitask_recommender.pipelines.recommend import nodes


def create_pipeline() -> Pipeline:
    """Build the pipeline."""
    return Pipeline(
        [
            node(
                nodes.settle_new_interactions,
                ["raw_new_interactions", "items", "params:dataset"],
                ["new_interactions", "unknown_new_interactions"],
                name="settle_new_interactions",
            ),
            node(
                label_interactions,
                ["new_interactions", "params:dataset"],
                "labelled_new_interactions",
                name="label_new_interactions",
            ),
            node(
                nodes.answer_new_events,
                [
                    "fitted_models",
                    "new_interactions",
                    "labelled_new_interactions",
                    "unknown_new_interactions",
                    "params:study",
                    "params:dataset",
                ],
                ["new_recommendations", "update_report"],
                name="answer_new_events",
            ),
        ],
        namespace="recommend",
        prefix_datasets_with_namespace=False,
        tags="recommend",
    )
