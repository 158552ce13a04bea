"""The pipeline ``simulation``: the raw tables of a bookstore with a known answer."""

from kedro.pipeline import Pipeline, node

from multitask_recommender.pipelines.simulation import nodes


def create_pipeline() -> Pipeline:
    """Build the pipeline. Its parameters are in the overlay, so that it cannot write over another study's tables."""
    return Pipeline(
        [
            node(
                nodes.simulate_bookstore,
                "params:simulation",
                ["raw_users", "raw_items", "ground_truth", "raw_interactions"],
                name="simulate_bookstore",
            )
        ],
        namespace="simulation",
        prefix_datasets_with_namespace=False,
        tags="simulation",
    )
