"""Tables of a run as pages whose rows can be sorted and filtered, each with its whole file beside it."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from itables import to_html_datatable

ROWS_SHOWN = 3_000
"""Rows on one page; what is beyond stands in the file alone."""
_LONGEST_LIST = 200
"""Values of a column up to which they are offered as a list."""
_ZIPPED_FROM = 100_000
"""Bytes from which a file is zipped."""


@dataclass(frozen=True)
class Table:
    """What a reader is told about a table, and which of its rows are shown.

    Attributes:
        about: What it holds.
        mean_over: Columns over which the values are averaged, such as seeds.
        averaged: Columns that are averaged.
        only: Rows shown: a column and its value.
    """

    about: str = ""
    mean_over: tuple[str, ...] = ()
    averaged: tuple[str, ...] = ()
    only: tuple[str, str] | None = None


TABLES = {
    "headline": Table("The table that a run prints: the main metrics of every model, one row a split and model."),
    "comparisons": Table(
        "Every multi-task model against its control and every baseline, paired over users: difference, relative "
        "difference, 95 % interval, p-values, verdict."
    ),
    "metrics": Table(
        "Every metric of every model: accuracy, recall, coverage, novelty.",
        mean_over=("seed",),
        averaged=("value", "users", "rows"),
        only=("group", "all"),
    ),
    "estimates": Table("Metrics that divide by user, with 95 % intervals over users and trainings."),
    "group_metrics": Table(
        "Who gains, who pays: users by activity, items by popularity.", mean_over=("seed",), averaged=("value", "count")
    ),
    "group_comparisons": Table("Gains over the single-task control in groups of the users by activity."),
    "group_gaps": Table("How far the main metrics lie apart between declared groups of users."),
    "costs": Table("Parameters, seconds and memory of every model."),
    "cv_results": Table(
        "Every cross-validation: the error of every combination of parameters.",
        mean_over=("fold", "candidate"),
        averaged=("error",),
    ),
    "expert_utilisation": Table(
        "How much every task weighs every expert.", mean_over=("seed",), averaged=("weight", "spread", "moved")
    ),
    "task_affinity": Table(
        "Cosines of the tasks' gradients on the shared parameters.", mean_over=("fold",), averaged=("cosine",)
    ),
    "task_pair_gains": Table(
        "What every task gains from being trained with one other.",
        mean_over=("fold",),
        averaged=("error", "error_alone", "gain"),
    ),
    "learning_curves": Table("How the losses fall over the epochs.", mean_over=("seed",), averaged=("value",)),
    "dropped_rows": Table("Rows that were dropped, values that were taken as missing, and why."),
    "left_out": Table("What is not computed on this data set, and why."),
    "left_out_models": Table("Models that have not run, and why."),
    "sweep": Table("Of `when_multitask_helps`: the gain over the single-task control per simulated combination."),
    "sweep_repeats": Table("Of `when_multitask_helps`: the same for every simulated bookstore."),
    "regret": Table("Of `simulated_study`: the true value of every model's lists beside that of an oracle."),
}
"""In the order of their pages; tables that are not named here come after these."""


def shown(table: pd.DataFrame, about: Table) -> tuple[pd.DataFrame, list[str]]:
    """Reduce a table to what a page can hold.

    Args:
        table: The whole table.
        about: How it is reduced; columns that the table has not are left alone.

    Returns:
        The rows to show, and what was done to them, in words.
    """
    done = []
    if "dataset" in table and len(table["dataset"].unique()) == 1:
        table = table.drop(columns="dataset")
    if about.only is not None and about.only[0] in table:
        column, value = about.only
        table = table[table[column].astype(str) == value].drop(columns=column)
        done.append(f"rows whose {column} is `{value}`")
    over = [name for name in about.mean_over if name in table]
    values = [name for name in about.averaged if name in table]
    keys = [name for name in table if name not in {*over, *values}]
    if over and values and keys and len(table):
        means = table.groupby(keys, sort=False, dropna=False, observed=True)
        table = means[values].mean().assign(averaged=means.size()).reset_index()
        done.append(f"means over {' and '.join(over)} (`averaged`: how many)")
    if len(table) > ROWS_SHOWN:
        done.append(f"the first {ROWS_SHOWN:,} of {len(table):,} rows")
        table = table.head(ROWS_SHOWN)
    return table, done


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """Round real numbers to four significant digits, and make whole ones whole."""
    table = table.copy()
    for name in table.select_dtypes("float"):
        column = table[name]
        if (column.dropna() % 1 == 0).all():
            table[name] = column.astype("Int64")
        else:
            table[name] = column.map(lambda value: float(f"{value:.4g}"), na_action="ignore")
    return table


def filters(table: pd.DataFrame) -> list[dict[str, object]]:
    """Say how every column is filtered: texts that come back by a list to choose from, all others by a condition."""
    lists = [
        place
        for place, name in enumerate(table)
        if table[name].dtype == object and 1 < table[name].nunique() <= _LONGEST_LIST
    ]
    return [{"targets": lists, "columnControl": [["searchList"]]}] if lists else []


def interactive(table: pd.DataFrame, static: str, **options: object) -> str:
    """Return a table as HTML that DataTables sorts and filters in the browser.

    Args:
        table: The rows.
        static: Where the page finds the folder of static files, such as ``../_static``.
        options: More options of DataTables.
    """
    with pd.option_context("display.float_format", "{:.4g}".format):
        html = to_html_datatable(
            rounded(table),
            connected=True,
            dt_url=f"{static}/dt_bundle.js",
            showIndex=False,
            maxBytes=0,
            classes="display compact stripe",
            display_logo_when_loading=False,
            scrollX=True,
            text_in_header_can_be_selected=False,  # A click on a title sorts.
            **options,
        )
    # What has no value is empty, and sorted as before.
    return html.replace(r"[\"NaN\", \"___NaN___\"]", r"[\"\", \"___NaN___\"]").replace(">NaN<", "><")


def published(path: Path, folder: Path) -> Path:
    """Copy a file into a folder, zipped where it is large; returns the copy."""
    if path.stat().st_size < _ZIPPED_FROM:
        return Path(shutil.copy(path, folder))
    copy = folder / f"{path.name}.zip"
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, path.name)
    return copy


def write_page(name: str, path: Path, pages: Path, files: Path) -> str:
    """Write the page of a table.

    Args:
        name: Name of the table in the catalog.
        path: Its CSV file.
        pages: Folder of the pages, in which a page is ``<name>.md``.
        files: Folder for the whole files, which the site shows as ``files`` beside its pages.

    Returns:
        The table's row in the list of tables, as Markdown.
    """
    about = TABLES.get(name, Table())
    table = pd.read_csv(path)
    rows, done = shown(table, about)
    copy = published(path, files)
    lines = [f"# {name}", "", about.about, ""]
    if done:
        lines += [f"Shown: {'; '.join(done)}.", ""]
    size = copy.stat().st_size
    whole = (
        f"<a href='../files/{copy.name}' download>{copy.name}</a> ({len(table):,} rows, {max(size // 1000, 1):,} kB)"
    )
    lines += [f"The whole table: {whole}.", ""]
    if len(rows):
        html = interactive(
            rows,
            "../_static",
            pageLength=25,
            columnControl=["searchDropdown"],
            columnDefs=filters(rows),
            layout={"topStart": "info", "topEnd": "search", "bottomStart": "pageLength", "bottomEnd": "paging"},
        )
        (pages / f"{name}.html").write_text(html, encoding="utf-8")
        lines += ["```{raw} html", f":file: {name}.html", "```", ""]
    else:
        lines += ["It has no rows.", ""]
    (pages / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")
    return f"| [{name}]({name}.md) | {about.about} | {len(table):,} |"
