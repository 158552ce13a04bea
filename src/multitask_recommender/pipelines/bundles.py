"""What crosses the borders of the pipeline map: every box hands over one bundle of its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multitask_recommender.models.variants import VARIANTS

ModelOutputs = Mapping[str, Mapping[str, Any]]
"""Model to its outputs by name, each of which is read when it is asked for."""


def in_order(model_outputs: ModelOutputs) -> list[str]:
    """Return the names of the models that have outputs, in the order of the list of variants."""
    return [name for name in VARIANTS if name in model_outputs]


def bundle(**parts: Any) -> dict[str, Any]:
    """Put outputs of a box together, by name, to be handed over as one data set; the catalog says where they lie."""
    return parts


def bundle_models(**models: Mapping[str, Any]) -> ModelOutputs:
    """Put the bundles of the models of a family together; a model that has not been run has none."""
    return {name: outputs for name, outputs in models.items() if outputs}


def join_families(*families: ModelOutputs) -> ModelOutputs:
    """Put the models of all families together, by name."""
    return {name: outputs for family in families for name, outputs in family.items()}
