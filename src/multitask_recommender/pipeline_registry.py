"""The project's pipelines."""

import importlib
import warnings

from kedro.framework.project import pipelines as registered
from kedro.pipeline import Pipeline

# The evaluation reads outputs of the models' namespaces by their full names, which is what the dot is reserved for.
warnings.filterwarnings("ignore", message="One or more dataset names contain '.' characters")

_STUDY = ("data_engineering", "user_embedding", "recommender", "evaluation")
_PIPELINES = (*_STUDY, "simulation", "regret", "recommend", "when_multitask_helps")
_OF_ALL_MODELS = frozenset({"recommender", "evaluation", "regret"})
_SUMS = {"simulated_study": (*_STUDY, "simulation", "regret"), "__default__": _STUDY}


def _make(name: str) -> Pipeline:
    """Import and make a pipeline."""
    module = importlib.import_module(f"multitask_recommender.pipelines.{name}.pipeline")
    if name not in _OF_ALL_MODELS:
        return module.create_pipeline()
    from multitask_recommender.models.variants import VARIANTS

    return module.create_pipeline(list(VARIANTS.values()))


def register_pipelines() -> dict[str, Pipeline]:
    """Return the pipelines by name; ``__default__`` is the study.

    A run of some pipelines imports and makes these alone.
    """
    requested = getattr(registered, "_requested_pipelines", None)
    wanted = [*_PIPELINES, *_SUMS] if requested is None else requested
    parts = dict.fromkeys(part for name in wanted for part in _SUMS.get(name, (name,)) if part in _PIPELINES)
    made = {name: _make(name) for name in parts}
    sums = {name: Pipeline([made[part] for part in _SUMS[name]]) for name in _SUMS if name in wanted}
    return {**made, **sums}
