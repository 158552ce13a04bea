"""The project's pipelines."""

import inspect
import warnings
from functools import partial

from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.pipeline.preview_contract import TextPreview

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
warnings.filterwarnings("ignore", message="The 'preview_fn' feature is experimental")


def _described(pipeline: Pipeline) -> Pipeline:
    """Let the viewer of the map show the docstring of every node's function."""
    return Pipeline([node._copy(preview_fn=partial(_docstring, node)) for node in pipeline.nodes])


def _docstring(node: Node) -> TextPreview:
    return TextPreview(inspect.getdoc(node.func) or node.name)


def register_pipelines() -> dict[str, Pipeline]:
    """Return the pipelines by name; ``__default__`` is the study."""
    variants = list(VARIANTS.values())
    parts = {
        "data_engineering": data_engineering.create_pipeline(),
        "user_embedding": user_embedding.create_pipeline(),
        "recommender": recommender.create_pipeline(variants),
        "evaluation": evaluation.create_pipeline(),
        "simulation": simulation.create_pipeline(),
        "regret": regret.create_pipeline(),
        "recommend": recommend.create_pipeline(),
        "when_multitask_helps": when_multitask_helps.create_pipeline(),
        "collecting": recommender.collecting_pipeline(variants),
    }
    own = {name: _described(pipeline) for name, pipeline in parts.items()}
    # Which models have outputs is looked up again, so that an evaluation knows what has been run since.
    collecting = own.pop("collecting")
    study = [own[name] for name in ("data_engineering", "user_embedding", "recommender", "evaluation")]
    return {
        **own,
        "evaluation": Pipeline([collecting, own["evaluation"]]),
        "regret": Pipeline([collecting, own["regret"]]),
        "simulated_study": Pipeline([*study, own["simulation"], own["regret"]]),
        "__default__": Pipeline(study),
    }
