"""Parameters of the pipeline ``when_multitask_helps``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from multitask_recommender.foundation.settings_base import Settings
from multitask_recommender.models.architectures.shared_bottom import SharedBottomSettings
from multitask_recommender.models.variants import VariantParameters
from multitask_recommender.simulation.bookstore import StoreKnobs

TaskName = Literal["click", "read", "rating", "purchase"]
Share = Annotated[float, Field(ge=0, lt=1)]


class SweepSettings(Settings):
    """Which simulated bookstores are studied, and how.

    Attributes:
        relatedness: Values of rho.
        sparsity: Shares of the target task's training labels that are missing.
        users: Numbers of readers: the sizes of the data.
        repeats: Bookstores simulated per combination.
        books: Number of books.
        clicks_per_user: Mean number of clicks of a reader.
        store: The other knobs of the bookstores.
        target: The task on which the gain is measured.
        auxiliary: The tasks trained together with it.
        shuffled: Whether the labels of the auxiliary tasks are shuffled among the training rows: a control, in which
            they tell nothing.
        equal_inputs: Whether the histories that the control reads carry the labels of all tasks, as the model's do:
            then what the model gains is from training together alone.
        test_share: Share of the clicks on which the models are compared.
        validation_share: Share of the clicks on which each model chooses its parameters.
        settings: Parameters that both models share.
        search: What both models choose from, each for itself, by its error on the target task.
        resamples: Resamples of every permutation test and bootstrap of a repeat; those over all repeats have more
            where the number of combinations asks for it.
        smallest_effect: The smallest effect of interest, relative to the control.
        workers: Processes at the same time. The number changes no result.
        seed: Seed of everything random.
    """

    without_effect = frozenset({"workers"})

    relatedness: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1)
    sparsity: list[Share] = Field(min_length=1)
    users: list[Annotated[int, Field(ge=10, le=10**7)]] = Field(min_length=1)
    repeats: int = Field(ge=2, le=1000)
    books: int = Field(ge=40, le=10**7)
    clicks_per_user: int = Field(ge=4, le=10**5)
    store: StoreKnobs = StoreKnobs()
    target: TaskName = "purchase"
    auxiliary: list[TaskName] = Field(default=["click", "read"], min_length=1)
    shuffled: bool = False
    equal_inputs: bool = False
    test_share: float = Field(default=0.3, gt=0, lt=1)
    validation_share: float = Field(default=0.12, gt=0, lt=1)
    settings: SharedBottomSettings = SharedBottomSettings()
    search: dict[str, list[Any]] = Field(default_factory=dict)
    resamples: int = Field(default=499, ge=99, le=1_000_000)
    smallest_effect: float = Field(default=0.01, gt=0, le=1)
    workers: int = Field(default=2, ge=1, le=1024)
    seed: int = Field(ge=0, le=2**63 - 1)

    @model_validator(mode="after")
    def _check(self) -> SweepSettings:
        for name in ("relatedness", "sparsity", "users"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"'{name}' lists a value twice")
        if self.target == "click":
            raise ValueError("the target task has a label per pair: read, rating or purchase")
        if self.target in self.auxiliary or len(set(self.auxiliary)) < len(self.auxiliary):
            raise ValueError("the auxiliary tasks are different from each other and from the target task")
        if self.shuffled and "click" in self.auxiliary:
            raise ValueError("clicks have no labels to shuffle: take 'click' out of the auxiliary tasks")
        if self.test_share + self.validation_share >= 1:
            raise ValueError("test and validation shares leave no training rows")
        _ = self.towers  # Checks the names in the search.
        return self

    @property
    def towers(self) -> VariantParameters:
        """Settings and search space as those of a model of the study."""
        return VariantParameters(settings=self.settings, search=self.search)
