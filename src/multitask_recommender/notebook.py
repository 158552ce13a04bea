"""What every notebook starts with: a study to read from, and ways to show figures, tables, text and code."""

from __future__ import annotations

import hashlib
import inspect
import io
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown, display
from kedro.framework.context import KedroContext
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import AbstractDataset, DataCatalog
from kedro.utils import find_kedro_project
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from multitask_recommender.datasets import CsvTable, SavedFigure
from multitask_recommender.evaluation.metric_records import METRICS
from multitask_recommender.foundation.errors import RequestError
from multitask_recommender.models.variants import VARIANTS
from multitask_recommender.runs.staleness import describe_stale

Formats = Mapping[str, str | Callable[[Any], str]]
_ARGUMENTS = re.compile(r"\n\n +(?:Args|Attributes|Returns|Raises):\n.*?(?=\n *\"\"\")", re.DOTALL)
"""What a docstring says of arguments and results."""
_STYLES: Any = [
    {"selector": "", "props": "font-size: 88%"},
    {"selector": "th", "props": "text-align: left; vertical-align: bottom"},
    {"selector": "th.row_heading", "props": "white-space: nowrap; font-weight: normal"},
    {"selector": "caption", "props": "text-align: left; font-weight: bold"},
]


def open_study(environment: str | None = None) -> DataCatalog:
    """Return the catalog of a study, whose outputs notebooks load by name.

    Where outputs are not those that the parameters, the code and the raw tables of now would make, it says so by name,
    with what differs and the command that makes them anew.

    Args:
        environment: Name of the folder of ``conf`` that describes the data, such as ``bookstore``; None: what the
            variable ``KEDRO_ENV`` of the environment says, else the data of ``conf/base``.

    Raises:
        RequestError: If there is no such environment, or the working directory is in no project.
    """
    project = find_kedro_project(Path.cwd())
    if project is None:
        raise RequestError(
            "There is no project here.", str(Path.cwd()), "start Jupyter in the project's folder: make lab"
        )
    if environment is not None and not (project / "conf" / environment).is_dir():
        there = sorted(path.parent.name for path in (project / "conf").glob("*/parameters.yml"))
        raise RequestError(
            f"There is no environment '{environment}'.", "the first cell", f"name one of: {', '.join(there)}; or None."
        )
    warnings.filterwarnings("ignore", message="One or more dataset names contain '.' characters")
    bootstrap_project(project)

    def context(params: dict[str, Any]) -> KedroContext:
        return KedroSession.create(project_path=project, env=environment, runtime_params=params).load_context()

    own = context({})
    catalog = own.catalog
    assert isinstance(catalog, DataCatalog)
    usual = getattr(own.config_loader, "default_run_env", None)
    command = "kedro run" + ("" if own.env in (None, usual) else f" --env {own.env}")
    stale = describe_stale(catalog, lambda params: context(params).catalog, command)
    if stale:
        say("> **Some outputs are stale: they are not what a run would make now.**", *stale)
    return catalog


def folder_of(catalog: DataCatalog) -> Path:
    """Return the folder of the outputs of a study, for ``load_recommender``."""
    entry = catalog.get("metrics")
    assert isinstance(entry, AbstractDataset)
    return Path(str(entry._describe()["filepath"])).parents[1]


def comparisons_of_all_studies() -> pd.DataFrame:
    """Return the comparisons of all studies of this project that have been run, one below the other."""
    project = find_kedro_project(Path.cwd())
    paths = sorted((Path(project or ".") / "data").rglob("08_reporting/comparisons.csv"))
    tables = [CsvTable(filepath=path.as_posix()).load() for path in paths]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def say(*texts: str) -> None:
    """Show text in Markdown: what the figures say, in words made of the figures."""
    display(Markdown("\n\n".join(texts)))


def show(*figures: SavedFigure | Figure) -> None:
    """Show figures, those that nodes have saved or new ones, with the words that stand for them."""
    for figure in figures:
        if isinstance(figure, Figure):
            written = io.BytesIO()
            figure.savefig(written, format="png", dpi=144, metadata={"Description": str(figure.get_label())})
            figure = SavedFigure(written.getvalue())
        display(figure)


def show_code(*things: Callable[..., Any]) -> None:
    """Show the code of functions, classes or methods, without what their docstrings say of arguments."""
    for thing in things:
        source = _ARGUMENTS.sub("", textwrap.dedent(inspect.getsource(thing))).rstrip()
        path = Path(inspect.getsourcefile(thing) or "")
        place = "/".join(path.parts[path.parts.index("multitask_recommender") :]) if path.parts else ""
        say(f"`{place}`\n```python\n{source}\n```")


def title_of(model: str) -> str:
    """Return the name of a model in figures."""
    return VARIANTS[model].title if model in VARIANTS else model


def show_table(table: pd.DataFrame, formats: Formats | None = None, caption: str = "") -> None:
    """Show a table without its index.

    Args:
        table: The table; a column ``model`` or ``control`` is shown with the names of figures.
        formats: Column to its format.
        caption: What stands above it.
    """
    named = table.assign(**{name: table[name].map(title_of) for name in ("model", "control") if name in table})
    _display(_styled(named, formats or {}, caption).hide(axis="index"))


def show_headline(table: pd.DataFrame, caption: str) -> None:
    """Show metrics with the best value of every column in bold.

    Args:
        table: A column ``model``, and one a metric, named ``task metric`` or ``task metric@k``.
        caption: What stands above it.
    """
    shown = table.assign(model=table["model"].map(title_of)).set_index("model")
    shown = shown.dropna(how="all", axis=0).dropna(how="all", axis=1)
    styled = _styled(shown, dict.fromkeys(map(str, shown), "{:.3f}"), caption)
    for column in shown:
        metric = METRICS[str(column).rsplit(" ", 1)[-1].split("@")[0]]
        if metric.higher_is_better is not None:
            mark = styled.highlight_max if metric.higher_is_better else styled.highlight_min
            mark(axis=0, subset=[column], props="font-weight: bold")
    # A line break between task and metric keeps the columns narrow.
    styled.format_index(lambda name: str(name).replace(" ", "<br>", 1), axis=1)
    _display(styled)


def _display(styled: Styler) -> None:
    # As text of HTML: what pandas says of a Styler otherwise is an address in memory.
    display(HTML(styled.to_html()))


def _styled(table: pd.DataFrame, formats: Formats, caption: str) -> Styler:
    numbers = dict.fromkeys(table.select_dtypes("number"), "{:,.4g}") | dict(formats)
    # The same table has the same identifiers of its cells, whenever it is shown.
    digest = hashlib.md5(f"{caption} {list(table)}".encode(), usedforsecurity=False).hexdigest()[:6]
    styled = Styler(table, uuid=digest).format({name: how for name, how in numbers.items() if name in table}, na_rep="")
    styled = styled.set_table_styles(_STYLES)
    styled = styled.set_properties(subset=list(table.select_dtypes(exclude="number")), **{"text-align": "left"})
    return styled.set_caption(caption) if caption else styled


def percent(share: float, digits: int = 0) -> str:
    """Return a share in per cent."""
    return f"{100 * share:.{digits}f} %"


def listed(names: list[str], nothing: str = "none") -> str:
    """Return names as a list in a sentence."""
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else nothing
