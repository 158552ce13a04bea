"""The pipeline ``user_embedding``: history and context to one vector per user."""

from kedro.pipeline import Pipeline, node

from multitask_recommender.evaluation import user_vectors
from multitask_recommender.pipelines.bundles import bundle
from multitask_recommender.pipelines.user_embedding import figures, nodes

_SHOWN = (
    "user_vectors",
    "user_map",
    "user_directions",
    "nearest_users",
    "user_overlap",
    "user_embedding_figure",
    "user_map_figure",
)
"""What readers get of it."""
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
                user_vectors.measure_limits,
                [
                    "params:splits",
                    "user_embedding.chosen_settings",
                    "user_embedding.learning_curve",
                    "params:dataset",
                    "training_data",
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
                    "training_data",
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
            node(
                bundle,
                {
                    **{name: f"user_embedding.{name}" for name in ("cv_results", "learning_curve", "limits")},
                    **{name: name for name in _SHOWN},
                },
                "user_embedding.outputs",
                name="hand_over_user_embedding",
            ),
        ],
        namespace="user_embedding",
        prefix_datasets_with_namespace=False,
        tags="user_embedding",
    )
