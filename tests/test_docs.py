"""What the docs show runs as it stands there."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from conftest import ROOT
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.testing import CHECKS, ModelUnderTest

_IMPORTS = """
import torch
from pydantic import Field
from torch import Tensor, nn
from multitask_recommender.data.tasks import Task
from multitask_recommender.models.towers.experts import identity_heads
from multitask_recommender.models.towers.multi_task import MultiTaskRecommender
from multitask_recommender.models.towers.settings import MultiTaskSettings
from multitask_recommender.models.towers.tower import Tower
from multitask_recommender.models.towers.two_tower import Vectors
"""


@pytest.fixture(scope="module")
def architecture() -> ModelUnderTest:
    text = (ROOT / "docs" / "adding_a_model.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class TwoLayerTower" in block)
    names: dict[str, object] = {"__name__": "shown"}
    # The annotations of the example are those of a module.
    exec(compile("from __future__ import annotations\n" + _IMPORTS + code, "adding_a_model.md", "exec"), names)
    model, settings = names["TwoLayer"], names["TwoLayerSettings"]
    own = settings.model_validate({"dimension": 4, "hidden": 3, "training": {"epochs": 3, "batches": 2}})  # type: ignore[attr-defined]
    return ModelUnderTest("two_layer", lambda tasks: model(own))  # type: ignore[operator]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_shown_architecture_keeps_the_contract(
    check: Callable[[ModelUnderTest], None], architecture: ModelUnderTest
) -> None:
    check(architecture)


def knowledge_table() -> str:
    """The table of what every model knows, as it stands in the docs."""
    lines = [
        "| model | a history | cold users | cold items | features of users | of items |",
        "|---|---|---|---|---|---|",
    ]
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, variant in VARIANTS.items():
        own = variant.recommender.knowledge
        flags = ("yes" if flag else "no" for flag in (own.user_features, own.item_features))
        row = (own.history or "is not read", own.cold_users, own.cold_items, *flags)
        rows.setdefault(row, []).append(f"`{name}`")
    return "\n".join([*lines, *(f"| {', '.join(names)} | {' | '.join(row)} |" for row, names in rows.items())])


def test_the_docs_say_what_every_model_knows() -> None:
    assert knowledge_table() in (ROOT / "docs" / "what_models_know.md").read_text(), knowledge_table()
