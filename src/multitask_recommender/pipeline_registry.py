"""The project's pipelines."""

import warnings

from kedro.pipeline import Pipeline

from multitask_recommender.pipelines.data_engineering import pipeline as data_engineering
from multitask_recommender.pipelines.evaluation import pipeline as evaluation
from multitask_recommender.pipelines.recommender import pipeline as recommender
from multitask_recommender.pipelines.user_embedding import pipeline as user_embedding

# The evaluation reads outputs of the models' namespaces by their full names, which is what the dot is reserved for.
warnings.filterwarnings("ignore", message="One or more dataset names contain '.' characters")


def register_pipelines() -> dict[str, Pipeline]:
    """Return the pipelines by name; ``__default__`` is the whole study."""
    pipelines = {
        "data_engineering": data_engineering.create_pipeline(),
        "user_embedding": user_embedding.create_pipeline(),
        "recommender": recommender.create_pipeline(),
        "evaluation": evaluation.create_pipeline(),
    }
    return {**pipelines, "__default__": sum(pipelines.values(), Pipeline([]))}
