"""An explorer for JupyterLab: a user's history, what two models make of it, why, and what if it had been another.

It needs the package ``ipywidgets`` (the extra ``notebooks``).
"""

from __future__ import annotations

import csv
import html
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from multitask_recommender.data.queries import Queries
from multitask_recommender.foundation.errors import RequestError, StudyError
from multitask_recommender.foundation.figure_style import BLUE, GREEN, GREY, VERMILION
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.use.explanations import explain
from multitask_recommender.use.recommender import LoadedRecommender, load_recommender
from multitask_recommender.use.run_folder import fitted_models

try:
    import ipywidgets as widgets
except ModuleNotFoundError as error:  # pragma: no cover
    raise ModuleNotFoundError(
        "The explorer needs ipywidgets: pip install 'multitask-recommender[notebooks]'"
    ) from error

NOBODY = "(a newcomer)"
_DEEP = 100
"""Ranks up to which it is said where an item stands in the other list."""
_OFFERED = 5000
"""Most users and items that the boxes offer while one types; others can be typed as well."""
_FEATURES = 3
_LEVELS = 11


def find_studies(data: str | Path = "data") -> dict[str, Path]:
    """Return the folders with fitted models by the name of their data set: a folder of outputs, and those in it.

    Args:
        data: Folder of outputs.

    Raises:
        RequestError: If there is none.
    """
    root = Path(data)
    folders = [root, *sorted(path for path in root.glob("*") if path.is_dir())]
    found: dict[str, Path] = {}
    for path in folders:
        if (path / "06_models").is_dir() and fitted_models(path):
            name = _data_set_of(path)
            found[name if name not in found else f"{name} ({path.name})"] = path
    if not found:
        raise RequestError("No run with fitted models was found.", str(root), "make one: kedro run")
    return found


class Explorer:
    """Widgets to look at one user at a time. Every change of a widget is answered at once.

    Args:
        studies: Folders of outputs by name, see :func:`find_studies`.

    Attributes:
        study: Which folder.
        model: The model whose list is shown.
        other: The model it is compared with.
        task: The task that lists are for.
        user: Identifier of a user, or ``NOBODY``.
        length: Length of the lists.
        history: The events of the history; those that are selected can be removed.
        remove: Removes the selected events.
        item: An item to add, by title.
        values: Signal to its value in the event that is added.
        add: Adds the item to the history.
        reset: Takes all changes back.
        reason: The item of the list whose score is explained.
        lists: Both lists, as HTML.
        why: The explanation, as HTML.
        message: What is wrong, or what changed, as HTML.
        widget: All of it.
    """

    def __init__(self, studies: Mapping[str, str | Path]) -> None:
        self._studies = {name: Path(folder) for name, folder in studies.items()}
        self._loaded: dict[tuple[str, str], LoadedRecommender] = {}
        self._removed: list[str] = []
        self._added: list[dict[str, Any]] = []
        self._shown: list[str] | None = None
        self._quiet = False
        wide = {"description_width": "105px"}
        choice = partial(widgets.Dropdown, style=wide, layout=widgets.Layout(width="300px"))
        self.study = choice(description="data set", options=list(self._studies))
        self.model, self.other = choice(description="model"), choice(description="compared with")
        self.task = choice(description="task")
        self.user = widgets.Combobox(description="user", style=wide, continuous_update=False, ensure_option=False)
        self.length = widgets.IntSlider(10, 3, 30, description="length", style=wide, continuous_update=False)
        self.history = widgets.SelectMultiple(rows=14, layout=widgets.Layout(width="100%"))
        self.remove = widgets.Button(description="remove selected", icon="minus")
        self.reset = widgets.Button(description="take changes back", icon="undo", layout=widgets.Layout(width="auto"))
        self.item = widgets.Combobox(placeholder="title of an item", continuous_update=False, ensure_option=False)
        self.add = widgets.Button(description="add", icon="plus", layout=widgets.Layout(width="80px"))
        self.values: dict[str, widgets.Dropdown] = {}
        self._values_box = widgets.HBox()
        self.reason = widgets.Dropdown(description="why", style={"description_width": "40px"})
        self.lists, self.why, self.message = widgets.HTML(), widgets.HTML(), widgets.HTML()
        left = widgets.VBox(
            [
                widgets.HTML("<b>History</b>, the latest first"),
                self.history,
                widgets.HBox([self.remove, self.reset]),
                widgets.HTML("<b>What if?</b> Add an item:"),
                widgets.HBox([self.item, self.add]),
                self._values_box,
                self.message,
            ],
            layout=widgets.Layout(width="350px", flex="0 0 350px", margin="0 14px 0 0"),
        )
        right = widgets.VBox([self.lists, self.reason, self.why], layout=widgets.Layout(flex="1 1 auto"))
        self.widget = widgets.VBox(
            [
                widgets.HBox([self.study, self.task, self.user], layout=widgets.Layout(flex_flow="row wrap")),
                widgets.HBox([self.model, self.other, self.length], layout=widgets.Layout(flex_flow="row wrap")),
                widgets.HBox([left, right]),
            ]
        )
        self.study.observe(self._guarded(self._open), "value")
        for widget in (self.model, self.other):
            widget.observe(self._guarded(self._offer_tasks), "value")
        for widget in (self.task, self.length):
            widget.observe(self._guarded(self._answer), "value")
        self.user.observe(self._guarded(self._forget), "value")
        self.reason.observe(self._guarded(self._explain), "value")
        self.remove.on_click(self._guarded(self._remove))
        self.reset.on_click(self._guarded(self._forget))
        self.add.on_click(self._guarded(self._add))
        self._guarded(self._open)()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        words = "An explorer of fitted models: run this cell in JupyterLab to use it."
        return {**self.widget._repr_mimebundle_(**options), "text/plain": words}

    def _guarded(self, act: Callable[[], None]) -> Callable[..., None]:
        """Return a callback that acts unless another does already, and shows what a user did wrong."""

        def callback(*_: object) -> None:
            if self._quiet:
                return
            self._quiet = True
            try:
                self.message.value = ""
                act()
            except StudyError as error:
                lines = html.escape(str(error)).replace("\n", "<br>")
                self.message.value = f"<span style='color:{VERMILION}'>{lines}</span>"
            finally:
                self._quiet = False

        return callback

    def _recommender(self, model: str) -> LoadedRecommender:
        key = self.study.value, model
        if key not in self._loaded:
            self._loaded[key] = load_recommender(self._studies[key[0]], model)
        return self._loaded[key]

    def _open(self) -> None:
        """Offer the models, users and items of a study."""
        names = fitted_models(self._studies[self.study.value])
        preferred = ["wide_shared_bottom", "shared_bottom", *names]
        model = next(name for name in preferred if name in names)
        others = ["single_task", "ease", "item_knn", "popularity", *names]
        other = next((name for name in others if name in names and name != model), model)
        options = [(VARIANTS[name].title, name) for name in names]
        self.model.options, self.model.value = options, model
        self.other.options, self.other.value = options, other
        run = self._recommender(model).run
        counts = np.bincount(run.rows.user, minlength=len(run.user_ids))
        order = np.argsort(counts, kind="stable")
        self.user.options = [NOBODY, *(run.user_ids[user] for user in order[::-1][: _OFFERED - 1])]
        known = order[counts[order] > 0]
        self.user.value = run.user_ids[int(known[len(known) // 2])] if len(known) else NOBODY
        popular = np.argsort(-np.bincount(run.rows.item, minlength=len(run.item_ids)), kind="stable")
        self._names = {_named(run.item_ids[item], run.titles[item]): run.item_ids[item] for item in popular}
        self.item.options = list(self._names)[:_OFFERED]
        self._features = _features_of(run.folder, run.record["dataset"]["items"])
        self.values = {name: _value_box(name, limits) for name, limits in _limits(run.record["dataset"]).items()}
        self._values_box.children = list(self.values.values())
        self._offer_tasks()

    def _offer_tasks(self) -> None:
        """Offer the tasks of the model, and keep the one that was chosen where it has that."""
        tasks, task = self._recommender(self.model.value).tasks, self.task.value
        self.task.options = tasks
        self.task.value = task if task in tasks else tasks[0]
        self._shown = None
        if self.user.value:
            self._answer()

    def _forget(self) -> None:
        self._removed, self._added, self._shown = [], [], None
        self._answer()

    def _remove(self) -> None:
        chosen = set(self.history.value)
        if not chosen:
            raise RequestError("No event is selected.", "history", "select one or several (with ctrl or shift).")
        self._added = [event for event in self._added if event["item_id"] not in chosen]
        self._removed += sorted(chosen - set(self._removed))
        self._answer()

    def _add(self) -> None:
        item = self._names.get(self.item.value, self.item.value.strip())
        if not item:
            raise RequestError("No item is named.", "what if", "type a part of a title and choose one.")
        recommender = self._recommender(self.model.value)
        number = recommender.item_number(item)
        if number is None:
            raise RequestError(f"There is no item '{item}'.", "what if", "type a part of a title and choose one.")
        item = recommender.run.item_ids[number]
        event = {"item_id": item} | {name: box.value for name, box in self.values.items() if box.value is not None}
        self._removed = [name for name in self._removed if name != item]
        self._added = [*(other for other in self._added if other["item_id"] != item), event]
        self.item.value = ""
        self._answer()

    def _queries(self, recommender: LoadedRecommender) -> Queries:
        user = None if self.user.value in (NOBODY, "") else self.user.value.strip()
        if user is not None and recommender.user_number(user) < 0:
            known = recommender.run.user_ids[0]
            raise RequestError(f"There is no user '{user}'.", "user", f"type another, such as '{known}'.")
        return recommender.edited(user, without=self._removed, added=self._added)

    def ranking(self, model: str, n: int) -> pd.DataFrame:
        """Return the list of a model for what is chosen (rank, item_id, title, score), empty where it has no such task.

        Args:
            model: Name of the model.
            n: Length of the list.
        """
        recommender = self._recommender(model)
        if self.task.value not in recommender.tasks:
            return pd.DataFrame(columns=["rank", "item_id", "title", "score"])
        lists = recommender.lists(self._queries(recommender), n)
        return next(table for _, task, table in lists if task == self.task.value)

    def _answer(self) -> None:
        """Show the history and both lists."""
        recommender = self._recommender(self.model.value)
        queries = self._queries(recommender)
        self.history.options = self._events(recommender, queries)
        self.history.value = ()
        deep = max(_DEEP, self.length.value)
        tables = [self.ranking(name, deep) for name in (self.model.value, self.other.value)]
        own, other = (table.head(self.length.value) for table in tables)
        before, now = self._shown, own["item_id"].tolist()
        common = len(set(now) & set(other["item_id"]))
        self.lists.value = (
            "<div style='display:flex;gap:16px;align-items:flex-start'>"
            + self._as_html(self.model.value, own, tables[1], self.other.value, before)
            + self._as_html(self.other.value, other, tables[0], self.model.value, None)
            + f"</div><p>{common} of {len(own)} items stand in both lists. "
            f"<span style='color:{BLUE}'>▲</span> higher here than in the other list, "
            f"<span style='color:{VERMILION}'>▼</span> lower.</p>"
        )
        if before is not None:
            new = len([item for item in now if item not in before])
            moved = f"{new} of {len(now)} items are new in the list" if now != before else "the list stays as it was"
            self.message.value = f"<span style='color:{GREEN}'>{moved}.</span>"
        self._shown = now
        self.reason.options = [
            ("choose an item of the first list", ""),
            *zip(own["title"], own["item_id"], strict=True),
        ]
        self.reason.value = ""
        self.why.value = ""

    def _events(self, recommender: LoadedRecommender, queries: Queries) -> list[tuple[str, str]]:
        """Return the events of the history as options, the latest first: what they say, and the item."""
        run, rows, options = recommender.run, queries.history, []
        new = {event["item_id"] for event in self._added}
        for place in range(len(rows))[::-1]:
            item = run.item_ids[rows.item[place]]
            labels = [(name, float(rows.labels[name][place])) for name, task in run.tasks.items() if task.label]
            words = ", ".join(f"{name} {value:g}" for name, value in labels if not np.isnan(value))
            title = run.titles[rows.item[place]] or item
            options.append((f"{'+ ' if item in new else ''}{title}{f' ({words})' if words else ''}", item))
        return options

    def _as_html(
        self, model: str, own: pd.DataFrame, compared: pd.DataFrame, with_model: str, before: list[str] | None
    ) -> str:
        """Return a list as a table: rank, title, features, score, and where its items stand in the other list."""
        title, other = (html.escape(VARIANTS[name].title) for name in (model, with_model))
        if not len(own):
            return f"<div><b>{title}</b><p>gives no scores for this task.</p></div>"
        ranks = dict(zip(compared["item_id"], compared["rank"], strict=True))
        lines = []
        rows: Any = own.itertuples()
        for row in rows:
            rank = ranks.get(row.item_id)
            if not len(compared):
                moved = ""
            elif rank is None:
                moved = f"<span style='color:{VERMILION}'>beyond {len(compared)}</span>"
            elif rank == row.rank:
                moved = f"<span style='color:{GREY}'>= {rank}</span>"
            else:
                sign, colour = ("▲", BLUE) if row.rank < rank else ("▼", VERMILION)
                moved = f"<span style='color:{colour}'>{sign}</span> {rank}"
            new = "" if before is None or row.item_id in before else f" <b style='color:{GREEN}'>new</b>"
            features = html.escape(self._features.get(row.item_id, ""))
            name = html.escape(str(row.title or row.item_id))
            lines.append(
                f"<tr><td>{row.rank}</td><td>{name}{new}<br><small style='color:{GREY}'>{features}</small></td>"
                f"<td style='text-align:right'>{row.score:.3f}</td><td style='text-align:right'>{moved}</td></tr>"
            )
        heading = f"<tr><th></th><th style='text-align:left'>{title}</th><th>score</th><th>rank in<br>{other}</th></tr>"
        return f"<table style='line-height:1.25;border-spacing:8px 2px;width:370px'>{heading}{''.join(lines)}</table>"

    def _explain(self) -> None:
        """Show what the parts of the history added to the score of the chosen item."""
        self.why.value = ""
        if not self.reason.value:
            return
        recommender = self._recommender(self.model.value)
        number = recommender.item_number(self.reason.value)
        assert number is not None
        parts = explain(recommender, self._queries(recommender), self.task.value, number)
        largest = max(float(parts["contribution"].abs().max()), 1e-12)
        lines = []
        rows: Any = parts.head(14).itertuples()
        for row in rows:
            name = row.title or row.item_id if row.part == "history" else f"({row.part})"
            width = 160 * abs(row.contribution) / largest
            colour = BLUE if row.contribution >= 0 else VERMILION
            bar = f"<div style='background:{colour};height:11px;width:{width:.0f}px'></div>"
            lines.append(
                f"<tr><td>{html.escape(str(name))}</td><td style='text-align:right'>{row.contribution:+.3f}</td>"
                f"<td>{bar}</td></tr>"
            )
        more = f"<p>and {len(parts) - 14} smaller ones</p>" if len(parts) > 14 else ""
        total = (
            f"<tr><td><b>score</b></td><td style='text-align:right'><b>{parts['contribution'].sum():+.3f}</b></td></tr>"
        )
        self.why.value = f"<table style='line-height:1.2'>{''.join(lines)}{total}</table>{more}"


def _named(item_id: str, title: str | None) -> str:
    """Return how an item is offered: two may have one title."""
    return f"{title or item_id} [{item_id}]"


def _data_set_of(folder: Path) -> str:
    """Return the name of the data set of a run; that of the folder where its evaluation is missing."""
    path = folder / "08_reporting" / "metrics.csv"
    if not path.exists():
        return folder.name
    with path.open(encoding="utf-8", newline="") as lines:
        return next(csv.DictReader(lines), {}).get("dataset") or folder.name


def _features_of(folder: Path, described: Mapping[str, Any]) -> dict[str, str]:
    """Return item to some of its features in words, the categories first; a graph names entities that nobody knows."""
    table = pq.read_table(folder / "03_primary" / "items.parquet").to_pandas()
    columns = [name for name, own in described["features"].items() if own["relation"] is None and name in table]
    columns = sorted(columns, key=lambda name: name != described["categories"])[:_FEATURES]
    words = [[_word(value) for value in row] for row in table[columns].itertuples(index=False)]
    return {item: " · ".join(filter(None, row)) for item, row in zip(table["item_id"], words, strict=True)}


def _word(value: Any) -> str:
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(dict.fromkeys(map(str, value[:3])))
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _limits(description: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return the signals of an event that can be chosen, with the smallest and the largest value."""
    events = description["interactions"]["events"]
    found = dict.fromkeys(events["kinds"] if events else (), (0.0, 1.0))
    for name, signal in description["interactions"]["signals"].items():
        ends = [float("nan") if signal[end] is None else float(signal[end]) for end in ("minimum", "maximum")]
        if np.isfinite(ends).all():
            found[name] = (ends[0], ends[1])
    return found


def _value_box(name: str, limits: tuple[float, float]) -> widgets.Dropdown:
    """Return a box with the values of a signal, the largest chosen."""
    low, high = limits
    whole = float(low).is_integer() and float(high).is_integer() and high - low < _LEVELS
    values = np.arange(low, high + 1) if whole else np.linspace(low, high, _LEVELS)
    options = [("not said", None), *((f"{value:g}", float(value)) for value in values)]
    layout = widgets.Layout(width="170px")
    return widgets.Dropdown(description=name, options=options, value=float(values[-1]), layout=layout)
