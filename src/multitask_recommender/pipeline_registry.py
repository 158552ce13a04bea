"""The project's pipelines."""

import warnings

from kedro.pipeline import Pipeline

from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.pipelines.data_engineering import pipeline as data_engineering
from multitask_recommender.pipelines.evaluation import pipeline as evaluation
from multitask_recommender.pipelines.recommend import pipeline as recommend
from multitask_recommender.pipelines.recommender import pipeline as recommender
from multitask_recommender.pipelines.regret import pipeline as regret
from multitask_recommender.pipelines.simulation import pipeline as simulation
from multitask_recommender.pipelines.user_embedding import pipeline as user_embedding
from multitask_recommender.pipelines.when_multitask_helps import pipeline as when_multitask_helps

# The evaluation reads outputs of the models' namespaces by their full names, which is what the dot is reserved for.
warnings.filterwarnings("ignore", message="One or more dataset names contain '.' characters")


def register_pipelines() -> dict[str, Pipeline]:
    """Return the pipelines by name; ``__default__`` is the study."""
    variants = list(VARIANTS.values())
    # Which models have outputs is looked up again, so that the evaluation knows what has been run since.
    collected = recommender.collecting_pipeline(variants)
    pipelines = {
        "data_engineering": data_engineering.create_pipeline(),
        "user_embedding": user_embedding.create_pipeline(),
        "recommender": recommender.create_pipeline(variants),
        "evaluation": evaluation.create_pipeline() + collected,
    }
    study = sum(pipelines.values(), Pipeline([]))
    simulated = {"simulation": simulation.create_pipeline(), "regret": regret.create_pipeline() + collected}
    return {
        **pipelines,
        **simulated,
        "recommend": recommend.create_pipeline(),
        "when_multitask_helps": when_multitask_helps.create_pipeline(),
        "simulated_study": sum(simulated.values(), study),
        "__default__": study,
    }
