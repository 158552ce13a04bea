"""Revisits inside models of funnels: what the pair's own earlier events add to its score."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from pydantic import Field

from multitask_recommender.data.interactions import SideInformation
from multitask_recommender.data.tasks import funnel_chain
from multitask_recommender.models.baselines.revisit import RevisitBonus, RevisitSettings
from multitask_recommender.models.blend import Blend, WidePart
from multitask_recommender.models.recommender import HistorySettings, Recommender
from multitask_recommender.models.towers.multi_task import MultiTaskRecommender


class RevisitingSettings(HistorySettings):
    """Parameters of a model that knows what a user has met before.

    Attributes:
        revisit: Parameters of the bonus of items that were met in an earlier step of a funnel; null: none.
        revisit_weight: Factor on it in the score.
    """

    revisit: RevisitSettings | None = None
    revisit_weight: float = Field(default=0.3, ge=0, le=1e9)


R = TypeVar("R", bound=RevisitingSettings)


def revisit_parts(settings: RevisitingSettings, side: SideInformation) -> dict[str, WidePart]:
    """Return the bonus as a wide part of the later steps of funnels of retrieval tasks; empty where there are none.

    A model of a later step alone has it where its histories carry the steps before: it is an input of the score.
    """
    if settings.revisit is None:
        return {}
    bonus, read = RevisitBonus(settings.revisit), side.read_tasks
    steps = [name for name in bonus.scored_tasks(read) if name in side.tasks]
    if not steps:
        return {}
    chain = {before for name in steps for before in funnel_chain(read, name)}
    own = [name for name in read if name in chain]
    return {"revisit": WidePart(bonus, own, settings.revisit_weight, mixed=False)}


class Revisiting(Blend[R]):
    """Towers of a funnel whose later steps score items that were met higher (:class:`RevisitBonus`).

    Attributes:
        towers: The class of the towers.
    """

    towers: ClassVar[type[MultiTaskRecommender]]
    knowledge = MultiTaskRecommender.knowledge

    def make_deep(self) -> Recommender:
        """Make the towers."""
        return self.towers(self.settings)

    def make_wide(self, side: SideInformation) -> dict[str, WidePart]:
        """Make the bonus, where there are steps for it."""
        return revisit_parts(self.settings, side)
