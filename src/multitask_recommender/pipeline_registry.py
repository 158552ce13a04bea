"""The project's pipelines."""

from kedro.pipeline import Pipeline

from multitask_recommender.pipelines import data_engineering


def register_pipelines() -> dict[str, Pipeline]:
    """Return the pipelines by name; ``__default__`` is the whole study."""
    from multitask_recommender.pipelines.data_engineering.pipeline import create_pipeline

    pipelines = {"data_engineering": create_pipeline()}
    pipelines["__default__"] = sum(pipelines.values(), Pipeline([]))
    return pipelines
