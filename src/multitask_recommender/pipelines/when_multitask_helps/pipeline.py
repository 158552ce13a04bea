"""The pipeline ``when_multitask_helps``: a sweep over simulated bookstores, and its figures."""

from kedro.pipeline import Pipeline, node

from multitask_recommender.pipelines.when_multitask_helps import figures, nodes


def create_pipeline() -> Pipeline:
    """Build the pipeline."""
    return Pipeline(
        [
            node(nodes.run_sweep, "params:sweep", ["sweep", "sweep_repeats"], name="run_sweep"),
            node(figures.plot_sweep, "sweep", "sweep_figure", name="plot_sweep"),
            node(
                figures.plot_gain_by_relatedness,
                "sweep",
                "gain_by_relatedness_figure",
                name="plot_gain_by_relatedness",
            ),
        ],
        namespace="when_multitask_helps",
        prefix_datasets_with_namespace=False,
        tags="when_multitask_helps",
    )
