"""The pipeline ``user_embedding``: history and context to one vector per user."""

from kedro.pipeline import Pipeline, node

from multitask_recommender.evaluation import user_vectors
from multitask_recommender.pipelines.user_embedding import figures, nodes

_DATA = ["behaviour_sequences", "users", "items", "user_features", "item_features"]
_PARAMETERS = ["params:cross_validation", "params:study", "params:dataset", "params:splits"]


def create_pipeline() -> Pipeline:
    """Build the pipeline."""
    return Pipeline(
        [
            node(
                nodes.tune_user_embedding,
                ["params:user_embedding", *_PARAMETERS, *_DATA],
                ["user_embedding.cv_results", "user_embedding.chosen_settings"],
                name="tune_user_embedding",
            ),
            node(
                nodes.train_user_embedding,
                ["user_embedding.chosen_settings", *_PARAMETERS, *_DATA],
                ["user_embedding.weights", "user_vectors", "user_embedding.learning_curve"],
                name="train_user_embedding",
            ),
            node(
                user_vectors.measure_limits,
                [
                    "params:splits",
                    "user_embedding.chosen_settings",
                    "user_embedding.learning_curve",
                    "params:dataset",
                    *_DATA,
                ],
                "user_embedding.limits",
                name="measure_limits",
            ),
            node(
                user_vectors.read_vectors,
                [
                    "params:study",
                    "params:splits",
                    "params:dataset",
                    *_DATA,
                    "item_vocabulary",
                    "user_vectors",
                    "user_embedding.weights",
                ],
                ["user_map", "user_directions", "nearest_users", "user_overlap"],
                name="read_vectors",
            ),
            node(
                figures.plot_learning_curve,
                ["user_embedding.learning_curve", "user_embedding.limits", "params:dataset"],
                "user_embedding_figure",
                name="plot_learning_curve",
            ),
            node(
                figures.plot_user_map,
                ["user_map", "user_overlap", "params:dataset"],
                "user_map_figure",
                name="plot_user_map",
            ),
        ],
        namespace="user_embedding",
        prefix_datasets_with_namespace=False,
        tags="user_embedding",
    )
