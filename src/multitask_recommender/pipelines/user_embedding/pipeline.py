"""The pipeline ``user_embedding``: history and context to one vector per user."""

from kedro.pipeline import Pipeline, node

from multitask_recommender.pipelines.bundles import bundle
from multitask_recommender.pipelines.user_embedding import nodes

_PARAMETERS = ["params:cross_validation", "params:study", "params:dataset", "params:splits"]


def create_pipeline() -> Pipeline:
    """Build the pipeline."""
    return Pipeline(
        [
            node(
                nodes.tune_user_embedding,
                ["params:user_embedding", *_PARAMETERS, "training_data"],
                ["user_embedding.cv_results", "user_embedding.chosen_settings"],
                name="tune_user_embedding",
            ),
            node(
                nodes.train_user_embedding,
                ["user_embedding.chosen_settings", *_PARAMETERS, "training_data"],
                ["user_embedding.weights", "user_vectors", "user_embedding.learning_curve"],
                name="train_user_embedding",
            ),
            node(
                bundle,
                {
                    "cv_results": "user_embedding.cv_results",
                    "learning_curve": "user_embedding.learning_curve",
                    "user_vectors": "user_vectors",
                },
                "user_embedding.outputs",
                name="hand_over_user_embedding",
            ),
        ],
        namespace="user_embedding",
        prefix_datasets_with_namespace=False,
        tags="user_embedding",
    )
