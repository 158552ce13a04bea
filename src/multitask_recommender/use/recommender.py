"""A fitted model to ask: recommendations, predictions and similar items, for known users and for newcomers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multitask_recommender.data.interactions import BoolArray, FloatArray, IntArray, Interactions
from multitask_recommender.data.queries import NEW_USER, Histories, Queries
from multitask_recommender.foundation.errors import RequestError
from multitask_recommender.foundation.jobs import one_thread
from multitask_recommender.models.recommender import Recommender
from multitask_recommender.use.contexts import Contexts
from multitask_recommender.use.histories import History, HistoryReader, UnknownItems, joined
from multitask_recommender.use.run_folder import FittedRun, read_run

_BLOCK = 512
_CELLS = 2**23
"""Most scores, queries x items x tasks, that are held at a time."""
USER_ID, _LIST = "user_id", ["rank", "item_id", "title", "score"]
UNKNOWN_ITEMS = "unknown_items"
"""Name of the attribute (``DataFrame.attrs``) that counts the events left out, where unknown items are ignored."""


def load_recommender(folder: str | Path, model: str | None = None) -> LoadedRecommender:
    """Load a model that a run fitted on all its interactions.

    Args:
        folder: Folder of the outputs of the run, such as ``data``.
        model: Name of the model; without one ``wide_shared_bottom``, or the first multi-task model that was run.

    Raises:
        RequestError: If the folder is no whole run, or the model was not run or recommends nothing.
        StaleModelError: If settings or data in the folder are no longer those that made the model.
    """
    return LoadedRecommender(read_run(Path(folder), model))


class LoadedRecommender:
    """A fitted model with the users, items and histories that it was fitted on.

    A user is named by ``user_id``, or described by a ``history`` (see :class:`HistoryReader` for its forms) and a
    ``context`` (feature to value); for a known user a history is what came after the training, and a context replaces
    features. Every method raises :class:`RequestError` on what it does not know.

    Args:
        run: The model and its tables.

    Attributes:
        run: The same.
        model: The model.
        tasks: Names of the tasks that it gives scores for, the first of which is asked if none is named.
    """

    def __init__(self, run: FittedRun) -> None:
        self.run = run
        self.model: Recommender = run.model
        description = run.record["dataset"]
        self._users = {name: number for number, name in enumerate(run.user_ids)}
        self._items = {name: number for number, name in enumerate(run.item_ids)}
        self._lengths = {
            "user": description["interactions"]["user_id_length"] or description["users"]["id_length"],
            "item": description["interactions"]["item_id_length"] or description["items"]["id_length"],
        }
        self._histories = Histories(run.rows, run.side.user_features)
        self._contexts = Contexts(run.vocabulary, description["users"], run.side.user_features.shape[1])
        self.history_reader = HistoryReader(
            self.item_number, run.tasks, description["interactions"], run.record["labels"]["everything"]
        )
        self._trained: BoolArray = np.bincount(run.rows.item, minlength=run.side.items) > 0
        # What gives scores is known once it has scored: here somebody of whom nothing is known.
        scores = self.score(self._queries(np.array([NEW_USER]), None, {}))
        self.tasks = [name for name in run.tasks if name in scores]

    def user_number(self, user_id: object) -> int:
        """Return the number of a user in the training, or ``NEW_USER``."""
        return _look_up(self._users, user_id, self._lengths["user"], NEW_USER)

    def item_number(self, item_id: object) -> int | None:
        """Return the number of an item, or None."""
        found = _look_up(self._items, item_id, self._lengths["item"], -1)
        return None if found < 0 else found

    def recommend(
        self,
        user_id: object | None = None,
        *,
        user_ids: Sequence[object] | None = None,
        history: History | None = None,
        context: Mapping[str, Any] | None = None,
        task: str | None = None,
        n: int = 10,
        candidates: Iterable[object] | None = None,
        exclude: Iterable[object] = (),
        include_known: bool = False,
        unknown_items: UnknownItems = "refuse",
    ) -> pd.DataFrame:
        """Return the best items.

        Args:
            user_id: A user of the training, or a new one with a history or a context.
            user_ids: Many users of the training instead.
            history: Events of the user, the earliest first.
            context: Features of the user.
            task: Name of the task; the first one if none is named.
            n: Length of a list.
            candidates: Items to choose from; without them all that have training rows.
            exclude: Items to leave out.
            include_known: Whether the items of the history may be recommended.
            unknown_items: Whether events on unknown items are refused or ignored.

        Returns:
            Table (rank, item_id, title, score), with a first column user_id for many users.
        """
        task = self._task(task)
        if n < 1:
            raise RequestError(f"A list of {n} items is none.", "n", "give a number of at least 1.")
        allowed = self._allowed(candidates, exclude)
        if user_ids is None:
            queries, ignored = self.queries(user_id, history, context, unknown_items)
            score = self.orders(queries, [task])[task][0]
            left_out = queries.left_out(task, self.run.tasks[task], self.run.side.items).indices
            table = self._of_items(_best(score, allowed if include_known else _without(allowed, left_out), n), score)
            table.attrs[UNKNOWN_ITEMS] = ignored
            return table
        if user_id is not None or history is not None:
            raise RequestError(
                "Many users were named, and a user or a history beside them.", "user_ids", "ask for one or for many."
            )
        users = [str(user) for user in user_ids]
        queries = self._known_users(users, context)
        lists = self._lists(queries, [task], n, allowed, include_known)
        parts = [table.assign(user_id=users[place])[[USER_ID, *_LIST]] for place, _, table in lists]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[USER_ID, *_LIST])

    def predict(
        self,
        pairs: pd.DataFrame | Sequence[object],
        *,
        user_id: object | None = None,
        history: History | None = None,
        context: Mapping[str, Any] | None = None,
        unknown_items: UnknownItems = "refuse",
    ) -> pd.DataFrame:
        """Return what is predicted of pairs of users and items, per task.

        Args:
            pairs: Table (user_id, item_id) of known users; or the items alone, for the one user that the others say.
            user_id: See :meth:`recommend`.
            history: See :meth:`recommend`.
            context: See :meth:`recommend`.
            unknown_items: See :meth:`recommend`.

        Returns:
            The pairs, with a column per task: a number in the unit of the labels (regression), a probability (binary)
            or a score that orders items (retrieval; and where the model predicts no labels).
        """
        table = pairs if isinstance(pairs, pd.DataFrame) else pd.DataFrame({"item_id": list(pairs)})
        if "item_id" not in table:
            raise RequestError("The pairs have no column 'item_id'.", "pairs", "give user_id and item_id.")
        names = table["item_id"].astype(str).tolist()
        items = self._item_numbers(names, "pairs")
        if "user_id" in table:
            if user_id is not None or history is not None:
                raise RequestError("The pairs name users, and one is named beside.", "pairs", "ask for one or many.")
            users, place = np.unique(table["user_id"].astype(str).to_numpy(dtype=str), return_inverse=True)
            queries, ignored = self._known_users(users.tolist(), context), 0
            result = pd.DataFrame({"user_id": users[place].astype(object), "item_id": names})
        else:
            place = np.zeros(len(items), np.int64)
            queries, ignored = self.queries(user_id, history, context, unknown_items)
            result = pd.DataFrame({"item_id": names})
        columns = {task: np.full(len(items), np.nan, np.float32) for task in self.tasks}
        for begin, block in self.blocks(queries):
            inside = (place >= begin) & (place < begin + len(block))
            for task, scores in self.score(block).items():
                columns[task][inside] = scores[place[inside] - begin, items[inside]]
        result = result.assign(**columns)
        result.attrs[UNKNOWN_ITEMS] = ignored
        return result

    def similar_items(self, item_id: object, task: str | None = None, n: int = 10) -> pd.DataFrame:
        """Return the items most like one, by what the model learnt.

        Neural models and iALS compare items by the cosine of their vectors; EASE, kNN and the like by the weight with
        which the item counts for others.

        Returns:
            Table (rank, item_id, title, similarity).
        """
        task = self._task(task)
        (item,) = self._item_numbers([item_id], "item_id")
        similarity = self.model.similarities(int(item), task)
        if similarity is None:
            raise RequestError(
                f"The model '{self.run.name}' compares no items for the task '{task}'.",
                "model",
                "ask a model with item vectors or item-item weights, such as shared_bottom, ease or item_knn.",
            )
        allowed = self._trained.copy()
        allowed[item] = False
        best = _best(similarity, allowed, n)
        return self._of_items(best, similarity).rename(columns={"score": "similarity"})

    def explain(
        self,
        item_id: object,
        user_id: object | None = None,
        *,
        history: History | None = None,
        context: Mapping[str, Any] | None = None,
        task: str | None = None,
        unknown_items: UnknownItems = "refuse",
        seed: int = 0,
    ) -> pd.DataFrame:
        """Divide the score of an item among base, features and items of the history; see ``use.explanations``.

        Returns:
            Table (part, item_id, title, contribution) whose contributions add up to the score.
        """
        from multitask_recommender.use.explanations import explain

        queries, _ = self.queries(user_id, history, context, unknown_items)
        return explain(self, queries, self._task(task), self._item_numbers([item_id], "item_id")[0], seed)

    def export(self, folder: str | Path) -> list[Path]:
        """Write the vectors of users and items for an index of inner products; see ``use.export``."""
        from multitask_recommender.use.export import export_vectors

        return export_vectors(self, folder)

    def export_onnx(self, path: str | Path) -> Path:
        """Write the way from histories to vectors of users as an ONNX model; see ``use.onnx_export``."""
        from multitask_recommender.use.onnx_export import export_onnx

        return export_onnx(self, path)

    def queries(
        self,
        user_id: object | None,
        history: History | None,
        context: Mapping[str, Any] | None,
        unknown_items: UnknownItems = "refuse",
    ) -> tuple[Queries, int]:
        """Return the query of one user, and the number of events left out.

        Raises:
            RequestError: If nothing is said of the user, or of a user that the training did not know.
        """
        user = NEW_USER if user_id is None else self.user_number(user_id)
        if user == NEW_USER and history is None and context is None:
            known = f"the run knows {len(self._users)} users, from '{self.run.user_ids[0]}' on"
            raise RequestError(
                "Nobody is named." if user_id is None else f"There is no user '{user_id}' in the training.",
                "user_id",
                f"name another ({known}), or give a history or a context.",
            )
        rows, ignored = (None, 0) if history is None else self.history_reader.read(history, unknown_items)
        return self._queries(np.array([user]), rows, context or {}), ignored

    def edited(self, user_id: object | None = None, *, without: Iterable[object] = (), added: History = ()) -> Queries:
        """Return the query of a user as if the history had been another.

        Args:
            user_id: A user of the training; None: a newcomer of whom nothing else is known.
            without: Items that are taken out of the history, also out of what is added.
            added: Events after the others, the earliest first.
        """
        queries, _ = self.queries(user_id, added, {})
        left_out = self._item_numbers(list(without), "without")
        history = queries.history.where(~np.isin(queries.history.item, left_out))
        lengths = np.array([len(history)])
        return Queries(queries.user, history, self._contexts.changed(queries.context, {}, lengths))

    def score(self, queries: Queries) -> dict[str, FloatArray]:
        """Return task to (B, items) scores of a block of queries."""
        with one_thread():
            return self.model.score(queries)

    def grown(self, users: IntArray, rows: Interactions) -> Queries:
        """Return the queries of some users, known by number or new, with rows that came after the training.

        Args:
            users: (B,) numbers, or ``NEW_USER``.
            rows: Rows whose ``user`` is the place among ``users``, ascending.
        """
        return self._queries(users, rows, {})

    def lists(self, queries: Queries, n: int) -> Iterator[tuple[int, str, pd.DataFrame]]:
        """Yield the place of a query, a task, and the list: (rank, item_id, title, score)."""
        return self._lists(queries, self.tasks, n, self._trained, include_known=False)

    def blocks(self, queries: Queries) -> Iterator[tuple[int, Queries]]:
        """Yield queries in blocks whose scores are of bounded size, with the place of the first."""
        size = int(np.clip(_CELLS // max(self.run.side.items * len(self.run.tasks), 1), 1, _BLOCK))
        begin = 0
        for block in queries.blocks(size):
            yield begin, block
            begin += len(block)

    def every_user(self) -> Queries:
        """Return the queries of all users of the training, by what was known then."""
        return self._histories.of(np.arange(len(self._users)))

    def _queries(self, users: IntArray, rows: Interactions | None, context: Mapping[str, Any]) -> Queries:
        known = np.flatnonzero(users != NEW_USER)
        stored = self._histories.of(users[known])
        history = replace(stored.history, user=known[stored.history.user])
        if rows is not None:
            history = joined([history, rows], self.history_reader.rules)
        contexts = self._contexts.unknown(len(users)).tolil() if len(known) < len(users) else stored.context
        if 0 < len(known) < len(users):
            contexts[known] = stored.context
        lengths = np.bincount(history.user, minlength=len(users))
        return Queries(users, history, self._contexts.changed(contexts.tocsr(), context, lengths))

    def _known_users(self, names: Sequence[str], context: Mapping[str, Any] | None) -> Queries:
        users = np.array([self.user_number(name) for name in names], dtype=np.int64)
        unknown = [name for name, user in zip(names, users, strict=True) if user == NEW_USER]
        if unknown:
            shown = ", ".join(f"'{name}'" for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise RequestError(
                f"{len(unknown)} of the users are not in the training: {shown}.",
                "user_id",
                "leave them out, or ask for each with a history.",
            )
        return self._queries(users, None, context or {})

    def orders(self, queries: Queries, tasks: Sequence[str]) -> dict[str, FloatArray]:
        """Return task to (B, items) what orders the items for a block of queries."""
        with one_thread():
            return self.model.orders(queries, tasks)

    def _lists(
        self, queries: Queries, tasks: Sequence[str], n: int, allowed: BoolArray, include_known: bool
    ) -> Iterator[tuple[int, str, pd.DataFrame]]:
        number = 0
        for _, block in self.blocks(queries):
            order = self.orders(block, tasks)
            left_out = {name: block.left_out(name, self.run.tasks[name], self.run.side.items) for name in tasks}
            for place in range(len(block)):
                for task in tasks:
                    known = left_out[task]
                    own = known.indices[known.indptr[place] : known.indptr[place + 1]]
                    open_to = allowed if include_known else _without(allowed, own)
                    score = order[task][place]
                    yield number, task, self._of_items(_best(score, open_to, n), score)
                number += 1

    def _of_items(self, items: IntArray, score: FloatArray) -> pd.DataFrame:
        columns = {
            "rank": np.arange(1, len(items) + 1),
            "item_id": [self.run.item_ids[item] for item in items],
            "title": [self.run.titles[item] for item in items],
            "score": score[items],
        }
        return pd.DataFrame(columns)

    def _task(self, task: str | None) -> str:
        if task is None:
            return self.tasks[0]
        if task not in self.tasks:
            known = task in self.run.tasks
            problem = f"The model '{self.run.name}' does not score the" if known else "The data set has no"
            raise RequestError(f"{problem} task '{task}'.", "task", f"name one of {', '.join(self.tasks)}.")
        return task

    def _allowed(self, candidates: Iterable[object] | None, exclude: Iterable[object]) -> BoolArray:
        allowed = self._trained.copy()
        if candidates is not None:
            allowed[:] = False
            allowed[self._item_numbers(list(candidates), "candidates")] = True
        for item in exclude:
            number = self.item_number(item)
            if number is not None:
                allowed[number] = False
        return allowed

    def _item_numbers(self, items: Sequence[object], where: str) -> IntArray:
        numbers = [self.item_number(item) for item in items]
        unknown = [f"'{item}'" for item, number in zip(items, numbers, strict=True) if number is None]
        if unknown:
            shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise RequestError(
                f"There is no item {shown} in the training.", where, "give identifiers as they stand in the raw data."
            )
        return np.array(numbers, dtype=np.int64)


def _without(allowed: BoolArray, items: IntArray) -> BoolArray:
    result = allowed.copy()
    result[items] = False
    return result


def _look_up(numbers: Mapping[str, int], name: object, length: int | None, absent: int) -> int:
    """Return the number of an identifier as it stands, or else as an integer, filled with zeros to a length."""
    text = str(name).strip()
    if text not in numbers:
        text = text.removesuffix(".0").zfill(length or 0)
    return numbers.get(text, absent)


def _best(score: FloatArray, allowed: BoolArray, n: int) -> IntArray:
    """Return the allowed items with the highest scores, best first; equal scores in the order of the numbers."""
    items = np.flatnonzero(allowed & ~np.isnan(score))
    if len(items) > n:
        threshold = np.partition(score[items], -n)[-n]
        items = items[score[items] >= threshold]
    return items[np.argsort(-score[items], kind="stable")][:n]
