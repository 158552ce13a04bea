"""Tasks: what is predicted of a user and an item."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from multitask_recommender.foundation.settings_base import Settings

TaskKind = Literal["retrieval", "binary", "regression"]
PairRule = Literal["first", "last", "any", "sum", "maximum", "minimum", "mean"]


class Task(Settings):
    """One thing to predict of a user-item pair.

    Attributes:
        kind: ``retrieval`` (will they interact, over the whole catalogue), ``binary`` (yes or no on the pairs on
            which the question was asked) or ``regression`` (a number on the pairs that have one).
        label: Expression over the columns of ``interactions``. A retrieval task without one counts every
            interaction as positive.
        asked: Expression that is true on the pairs on which the question was asked (the task's sample space);
            without one, all pairs whose label is present.
        relevant: Expression that says which held-out pairs count as relevant when a regression task ranks.
        of_pair: Where a user may meet an item many times: which label of its events a pair has, the ``first`` or
            ``last`` one, whether ``any`` is positive, their ``sum``, ``maximum``, ``minimum`` or ``mean``. Null:
            ``any`` for a retrieval task, else ``last``.
        known: Which items a list of the task leaves out: those that the user has met in ``any_task``, or those alone
            that are known positives of its ``own_task``, so that what was viewed can still be bought.
        after: Name of the task that comes before this one in a funnel (view, cart, purchase).
        contradictions: What happens to rows that are positive in this task but not in the one before it: ``refuse`` or
            ``drop`` them, ``imply`` the step before (its label becomes 1), or ``keep`` them as they are, counted.
    """

    kind: TaskKind
    label: str | None = None
    asked: str | None = None
    relevant: str | None = None
    of_pair: PairRule | None = None
    known: Literal["any_task", "own_task"] = "any_task"
    after: str | None = None
    contradictions: Literal["refuse", "drop", "imply", "keep"] = "refuse"

    @model_validator(mode="after")
    def _check(self) -> Task:
        if self.kind != "retrieval" and self.label is None:
            raise ValueError(f"a task of kind '{self.kind}' needs a 'label' expression")
        if self.kind == "regression" and self.relevant is None:
            raise ValueError("a regression task needs a 'relevant' expression, the like threshold of the data")
        if self.kind == "binary" and self.of_pair == "sum":
            raise ValueError("a task of kind 'binary' has labels 0 and 1, which 'of_pair: sum' does not keep")
        if self.kind == "binary" and self.of_pair == "mean":
            raise ValueError("a task of kind 'binary' has labels 0 and 1, which 'of_pair: mean' does not keep")
        return self

    @property
    def pair_rule(self) -> PairRule:
        """How the label of a pair comes from those of its events."""
        return self.of_pair or ("any" if self.kind == "retrieval" else "last")


def retrieval_tasks(tasks: dict[str, Task]) -> list[str]:
    """Return the names of the retrieval tasks."""
    return [name for name, task in tasks.items() if task.kind == "retrieval"]


def funnel_chain(tasks: dict[str, Task], name: str) -> list[str]:
    """Return the steps of a task's funnel from the first down to the task itself, as far as they are among ``tasks``.

    Args:
        tasks: The tasks by name; no funnel runs in a circle.
        name: Name of a task.
    """
    chain = [name]
    while (before := tasks[chain[0]].after) is not None and before in tasks:
        chain.insert(0, before)
    return chain
