"""Shared-bottom multi-task towers; with one task, the single-task control."""

from __future__ import annotations

from pydantic import Field
from torch import Generator, Tensor, nn

from multitask_recommender.data.interactions import SideInformation
from multitask_recommender.data.tasks import Task
from multitask_recommender.models.architectures.revisiting import RevisitingSettings, revisit_parts
from multitask_recommender.models.baselines.bayesian_factors import BayesianFactors, BayesianFactorsSettings
from multitask_recommender.models.baselines.item_item import EaseSettings, FirstStepEase
from multitask_recommender.models.baselines.next_items import NextItems, NextItemsSettings
from multitask_recommender.models.blend import Blend, WidePart
from multitask_recommender.models.recommender import Recommender
from multitask_recommender.models.towers.experts import Experts, identity_heads
from multitask_recommender.models.towers.multi_task import DRAWN, MultiTaskRecommender
from multitask_recommender.models.towers.settings import MultiTaskSettings
from multitask_recommender.models.towers.tower import Tower
from multitask_recommender.models.towers.two_tower import Vectors


class SharedBottomTower(Tower):
    """t_k = (x + x E) H_k: one map for all tasks, one head per task.

    Source: Caruana, Multitask Learning, Machine Learning 1997 (hard parameter sharing).

    Args:
        tasks: The tasks.
        dimension: D, length of the shared and of the task vectors.
        generator: Source of the initial weights.
    """

    linear = True

    def __init__(self, tasks: dict[str, Task], dimension: int, generator: Generator) -> None:
        super().__init__()
        self.width = dimension
        self.bottom = Experts(1, dimension, generator)
        self.heads = identity_heads(tasks, dimension)

    def before_heads(self, shared: Tensor) -> Vectors:
        """Return the shared vectors, for the whole tower is linear."""
        return dict.fromkeys(self.heads.names, shared)

    def head_maps(self) -> Vectors:
        """Return task to (I + E) H_k."""
        bottom = self.bottom.whole_maps()[0]
        return {name: bottom @ head for name, head in self.heads.items()}

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return the bottom's map."""
        return list(self.bottom.parameters())


class UnsharedEmbeddingsTower(SharedBottomTower):
    """t_k = (x_k + x_k E) H_k: the map is shared, the vectors of users and items are not.

    The shared vector holds one slice of length D per task. It is the shared-bottom tower without the sharing of
    embeddings.

    Args:
        tasks: The tasks.
        dimension: D, length of a slice and of the task vectors.
        generator: Source of the initial weights.
    """

    def __init__(self, tasks: dict[str, Task], dimension: int, generator: Generator) -> None:
        super().__init__(tasks, dimension, generator)
        self.dimension, self.width = dimension, dimension * len(tasks)

    def before_heads(self, shared: Tensor) -> Vectors:
        """Return every task's slice of (n, tasks D) shared vectors."""
        return dict(zip(self.heads.names, shared.split(self.dimension, dim=1), strict=True))


class SharedBottomSettings(MultiTaskSettings):
    """Parameters of the shared-bottom towers.

    Attributes:
        share_embeddings: Whether all tasks read the same vectors of users and items; otherwise every task has a slice
            of its own, of length ``dimension``.
    """

    share_embeddings: bool = True


class SharedBottom(MultiTaskRecommender[SharedBottomSettings]):
    """Multi-task shared-bottom; the single-task control when it is given one task."""

    def tower(self, tasks: dict[str, Task], generator: Generator) -> Tower:
        """Make a tower."""
        kind = SharedBottomTower if self.settings.share_embeddings else UnsharedEmbeddingsTower
        return kind(tasks, self.settings.dimension, generator)


class PointwiseSharedBottom(SharedBottom):
    """The same for tasks with a label per pair alone: per task and without features it is a denoising SVD++.

    Its encoder is that of SVD++ (Koren, KDD 2008, equation 15) with the explicit part of the history as well, trained
    with a share of the history hidden.
    """

    ranks = frozenset({"binary", "regression"})


class DrawnSharedBottom(SharedBottom):
    """The same towers, with a loss of the retrieval tasks that draws its negatives."""

    knowledge = DRAWN


class WideSharedBottomSettings(SharedBottomSettings, RevisitingSettings):
    """Parameters of the shared-bottom towers with wide parts.

    Attributes:
        wide: Parameters of the wide part of the retrieval tasks, an EASE; null: none.
        wide_weight: Factor on it in the score.
        wide_labels: Parameters of the wide part of the tasks with labels, Bayesian factors; null: none.
        wide_labels_share: Its share of the prediction.
        next_items: Parameters of the part of the retrieval tasks that reads the order of a history; null: none.
        next_items_weight: Factor on it in the score.
    """

    wide: EaseSettings | None = None
    wide_weight: float = Field(default=1.0, gt=0, le=1e9)
    wide_labels: BayesianFactorsSettings | None = None
    wide_labels_share: float = Field(default=0.7, gt=0, le=1)
    next_items: NextItemsSettings | None = None
    next_items_weight: float = Field(default=1.0, ge=0, le=1e9)


class WideSharedBottom(Blend[WideSharedBottomSettings]):
    """Shared-bottom towers blended with item-item weights in closed form, Bayesian factors, and what comes next.

    EASE is added to the scores of the retrieval tasks (:class:`FirstStepEase`: the steps of a funnel share the wide
    part of its first step, which has the most data), and with it the bonus of items that were met in an earlier step
    (:class:`RevisitBonus`), and :class:`NextItems`; the predictions of the others are mixed with those of
    :class:`BayesianFactors`.
    """

    knowledge = SharedBottom.knowledge
    solved = frozenset({"wide"})
    effort = 5.0

    def make_deep(self) -> Recommender:
        """Make the towers, with their own settings alone: another weight of a part is no reason to ask them again."""
        own = self.settings.model_dump(include=set(SharedBottomSettings.model_fields))
        return SharedBottom(SharedBottomSettings.model_validate(own))

    def make_wide(self, side: SideInformation) -> dict[str, WidePart]:
        """Make the parts that the settings ask for and that have tasks."""
        ranked = [name for name, task in side.tasks.items() if task.kind == "retrieval"]
        labelled = [name for name in side.tasks if name not in ranked]
        parts = {}
        if self.settings.wide is not None and ranked:
            parts["wide"] = WidePart(FirstStepEase(self.settings.wide), ranked, self.settings.wide_weight, mixed=False)
        if self.settings.next_items is not None and ranked:
            after = NextItems(self.settings.next_items)
            parts["next_items"] = WidePart(after, ranked, self.settings.next_items_weight, mixed=False, slow=True)
        if self.settings.wide_labels is not None:
            for task in labelled:
                factors, share = BayesianFactors(self.settings.wide_labels), self.settings.wide_labels_share
                parts[f"wide_labels_{task}"] = WidePart(factors, [task], share, mixed=True, slow=True)
        return {**parts, **revisit_parts(self.settings, side)}
