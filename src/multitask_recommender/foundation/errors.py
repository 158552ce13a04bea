"""Errors that a user can settle: each says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


class StudyError(Exception):
    """A fault in the user's data or configuration. The command line shows its text without a traceback."""


class SettingsError(StudyError):
    """A parameter that contradicts another parameter or the data."""


class RequestError(StudyError):
    """A question to a fitted model that has no answer, or a folder in which there is no such model.

    Args:
        problem: What is wrong.
        where: The argument, the folder or the file.
        remedy: What to do, or what there is instead.
    """

    def __init__(self, problem: str, where: str, remedy: str) -> None:
        super().__init__(problem, where, remedy)
        self.problem, self.where, self.remedy = problem, where, remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  where: {self.where}\n  what to do: {self.remedy}"


class DataError(StudyError):
    """A fault in a raw table.

    Args:
        table: Catalog name of the table, such as ``raw_interactions``.
        problem: What is wrong.
        remedy: What to do about it.
        column: Name of the column in the raw file.
        rows: Positions of the first offending rows, 0 for the first data row.
        count: How many rows offend.
        first_line: Line of the first data row in a text file, for the message.
    """

    def __init__(
        self,
        table: str,
        problem: str,
        remedy: str,
        *,
        column: str | None = None,
        rows: list[int] | None = None,
        count: int | None = None,
        first_line: int = 2,
    ) -> None:
        self.table = table
        self.problem = problem
        self.remedy = remedy
        self.column = column
        self.rows = rows or []
        self.count = count if count is not None else len(self.rows)
        self.file: str | None = None
        # A text file has a heading in line 1, so data row 0 stands in line 2; a table that knows better replaces this.
        self.locate: Callable[[int], str] = lambda row: f"row {row + 1} (line {row + first_line})"
        super().__init__(problem)

    def __str__(self) -> str:
        where = [f"table '{self.table}'"] if self.table else []
        if self.file:
            where.append(f"file {self.file}")
        if self.column:
            where.append(f"column '{self.column}'")
        if self.rows:
            first, *others = map(self.locate, self.rows)
            shown = ", ".join([first, *(other.removeprefix("row ") for other in others)])
            more = f" and {self.count - len(self.rows)} more" if self.count > len(self.rows) else ""
            where.append(shown + more)
        return f"{self.problem}\n  where: {', '.join(where)}\n  what to do: {self.remedy}"


class TrainingError(StudyError):
    """A training that cannot go on, such as a loss that is not a number.

    Args:
        problem: What happened, naming model, task and epoch.
        remedy: What to do about it.
        where: Model, split, fold or seed number in which it happened.
    """

    def __init__(self, problem: str, remedy: str, where: str | None = None) -> None:
        super().__init__(problem, remedy, where)  # All of them, so that it survives the way out of another process.
        self.problem, self.remedy, self.where = problem, remedy, where

    def within(self, where: str) -> TrainingError:
        """Return the same error with the place in which it happened."""
        return TrainingError(self.problem, self.remedy, where)

    def __str__(self) -> str:
        where = f"\n  where: {self.where}" if self.where else ""
        return f"{self.problem}{where}\n  what to do: {self.remedy}"


def find_study_error(error: BaseException | None) -> StudyError | None:
    """Return the first :class:`StudyError` in the chain of causes of ``error``, or None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, StudyError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that asks whether the nearest of the known names was meant, or a full stop."""
    near = difflib.get_close_matches(name, [*known], n=1, cutoff=0.4)
    return f": did you mean '{near[0]}'?" if near else "."
