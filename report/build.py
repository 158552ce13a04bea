"""Builds the report site from the outputs of the last run: ``python report/build.py [--env ENV] [--notebooks FOLDER]``.

Notebooks, pipeline map, figures, tables and docs become pages of one static site in ``build/report``. What is built is
laid out in a folder of its own first, so that a build that fails leaves the former site as it was.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro_viz.api.rest.responses.metadata import MetadataAPIResponse, get_metadata_response
from PIL import Image

from tables import TABLES, interactive, write_page

HERE = Path(__file__).resolve().parent
_DOCS = ["README.md", "README.zh.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"]
_MAP_FILES = ["index.html", "favicon.ico", "assets", "api"]
_LARGEST_DRAWING = 200_000
"""Bytes up to which a figure is shown as SVG; a larger one is shown as PNG."""
_SHOWN_ELSEWHERE = frozenset({"data_engineering", "user_embedding", "recommender", "evaluation", "simulated_study"})
"""Pipelines that are boxes of the default one, or made of others on the map."""
_LONG_PARAMETER = 1000
"""Characters from which the map does not repeat a parameter at every node."""
_PREVIEW_WIDTH = 800
"""Pixels of a figure on the map."""
_MAP_SETTINGS = (
    "<script>localStorage.getItem('KedroViz') ?? "
    'localStorage.setItem(\'KedroViz\', \'{"theme":"light","showFeatureHints":false}\')</script>'
)
"""How the map is shown to who has chosen nothing else: as bright as the other pages, and without a tour."""


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
        dataset: Name of the data set.
        folder: Folder of the reporting outputs.
        tables: Files of the tables by their names in the catalog, in the order of the site.
        figures: Files of the figures, the answer first and appendices last.
        last: The last line of ``runs.jsonl``, empty where there is none.
    """

    dataset: str
    folder: Path
    tables: dict[str, Path]
    figures: list[Path]
    last: dict[str, Any]


def read_run(project: Path, environment: str | None) -> Run:
    """Find the outputs of the last run of an environment.

    Raises:
        SystemExit: If there is no run to report on.
    """
    bootstrap_project(project)
    with KedroSession.create(project_path=project, env=environment) as session:
        assert isinstance(session, KedroSession)
        catalog = session.load_context().catalog
        files = {name: getattr(catalog.get(name), "_filepath", None) for name in list(catalog.keys())}
        name = catalog.load("params:dataset").name
    paths = {name: Path(str(file)) for name, file in files.items() if file is not None}
    folder = paths["headline"].parent
    reported = {name: path for name, path in paths.items() if path.parent == folder and path.exists()}
    if "headline" not in reported or "comparisons" not in reported:
        option = f" --env {environment}" if environment else ""
        raise SystemExit(f"There is no run to report on in {folder}: run 'kedro run{option}' first.")
    order = {name: place for place, name in enumerate(TABLES)}
    tables = {name: path for name, path in reported.items() if path.suffix == ".csv"}
    figures = [path for path in reported.values() if path.suffix == ".png"]
    figures.sort(key=lambda path: (path.stem != "verdicts", path.stem.startswith("all_")))
    lines = (folder / "runs.jsonl").read_text().splitlines() if (folder / "runs.jsonl").exists() else []
    return Run(
        dataset=name,
        folder=folder,
        tables=dict(sorted(tables.items(), key=lambda item: order.get(item[0], len(order)))),
        figures=figures,
        last=json.loads(lines[-1]) if lines else {},
    )


def figure_words(path: Path) -> tuple[str, str]:
    """Return title and alternative text of a figure as its file tells them."""
    with Image.open(path) as picture:
        text = getattr(picture, "text", {})
    title = " ".join(str(text.get("Title") or path.stem.replace("_", " ").capitalize()).split())
    return title, " ".join(str(text.get("Description") or title).split())


def small_picture(encoded: bytes, width: int | None = None) -> bytes:
    """Return a PNG of the same figure with few colours, and where wanted no wider than a number of pixels."""
    with Image.open(io.BytesIO(encoded)) as picture:
        small = picture.convert("RGB")
    if width is not None:
        small.thumbnail((width, 4 * width), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    small.quantize(128, dither=Image.Dither.NONE).save(written, "png", optimize=True)
    return min(written.getvalue(), encoded, key=len)


def smaller(encoded: str, width: int | None = None) -> str:
    """Do the same to a PNG that is written as text (base64)."""
    return base64.b64encode(small_picture(base64.b64decode(encoded), width)).decode("ascii")


def published_figure(path: Path, folder: Path) -> list[str]:
    """Copy a figure into a folder of the site's source, as a drawing where that is not too large.

    Returns:
        Markdown lines that show it from a page beside the folder, at the width it was made for.
    """
    drawing = path.with_suffix(".svg")
    chosen = drawing if drawing.exists() and drawing.stat().st_size <= _LARGEST_DRAWING else path
    content = chosen.read_bytes()
    (folder / chosen.name).write_bytes(content if chosen == drawing else small_picture(content))
    with Image.open(path) as picture:
        width = round(picture.width / float(picture.info.get("dpi", (96.0, 96.0))[0]) * 96)
    words = figure_words(path)[1].replace("]", ")").replace("[", "(")
    return [f"![{words}]({folder.name}/{chosen.name}){{width={width}px}}", ""]


def answer(run: Run) -> list[str]:
    """Say in words what the primary family of comparisons says, as Markdown lines."""
    table = pd.read_csv(run.tables["comparisons"], keep_default_na=False)
    table = table[table["primary_verdict"] != ""]
    if table.empty:
        return ["No multi-task model was measured beside a control or a baseline.", ""]
    metrics = pd.read_csv(run.tables["metrics"], usecols=["model", "kind"]).drop_duplicates()
    kinds = dict(metrics.itertuples(index=False, name=None))
    baseline = table["control"].map(kinds) == "baseline"
    lines = [
        f"These {len(table)} comparisons were declared before anything was measured: every core multi-task model, on "
        f"every split and task, by its main metric. Their verdicts, corrected for all {len(table)} together:",
        "",
        "| | helps | equivalent | undecided | harms |",
        "|---|---|---|---|---|",
    ]
    for words, rows in (("against its single-task control", ~baseline), ("against the best baseline", baseline)):
        if rows.any():
            counts = table.loc[rows, "primary_verdict"].value_counts()
            cells = (str(counts.get(name, 0)) for name in ("helps", "equivalent", "undecided", "harms"))
            lines.append(f"| multi-task model {words} | {' | '.join(cells)} |")
    return [*lines, ""]


def index_page(run: Run, environment: str | None, figures: Path) -> list[str]:
    """Return the first page as Markdown lines: the question, the answer in one figure and one table, the way on."""
    made = [f"environment `{environment or 'base'}`"]
    made += [f"finished {run.last['finished']}"] if run.last.get("finished") else []
    made += [f"commit `{str(run.last['git_commit'])[:10]}`"] if run.last.get("git_commit") else []
    lines = [f"# Does multi-task learning help on {run.dataset}?", ""]
    for path in run.figures:
        if path.stem == "verdicts":
            lines += published_figure(path, figures)
    lines += answer(run)
    lines += [
        "*helps*: better, and by more than noise; *harms*: worse; *equivalent*: the difference is below the smallest "
        "effect of interest; *undecided*: the data cannot tell. Why, and with what limits: "
        "[Evaluation](notebooks/04_evaluation.ipynb).",
        "",
        "## Where to go",
        "",
        "| | |",
        "|---|---|",
        "| [Notebooks](notebooks/index.md) | a paper with code: data, user embedding, models, evaluation |",
        "| [Tables](tables/index.md) | every number, to sort and filter, with the files |",
        "| [Figures](figures.md) | all figures |",
        "| [Pipeline map](pipeline_map.md) | every node and table, and what is made from what |",
        "| [Docs](docs/index.md) | how to use it, bring your own data, add a model |",
        "",
        "## The models",
        "",
    ]
    lines += ["```{raw} html", ":file: headline.html", "```", ""]
    lines += [f"From the run of {', '.join(made)}.", ""]
    return [*lines, *toctree(["notebooks/index", "tables/index", "figures", "pipeline_map", "docs/index"], hidden=True)]


def toctree(entries: Sequence[str], hidden: bool = False) -> list[str]:
    """Return a table of contents as Markdown lines."""
    options = [":hidden:"] if hidden else [":maxdepth: 1"]
    return ["```{toctree}", *options, "", *entries, "```", ""]


def title_of(path: Path) -> str:
    """Return the first heading of a Markdown file."""
    found = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1).strip() if found else path.stem


def write_docs(project: Path, source: Path) -> None:
    """Lay out the docs where their links find each other: the same folders as in the project."""
    names = [*_DOCS, *(str(path.relative_to(project)) for path in sorted((project / "docs").glob("*.md")))]
    names = [name for name in names if (project / name).exists()]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project / name, source / name)
    for path in sorted([*project.glob("docs/images/*"), *project.glob("benchmarks/results/*.png")]):
        (source / path.relative_to(project)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, source / path.relative_to(project))
    # What the docs link to beside pages is offered as a file.
    for name in ("src", "LICENSE", "CITATION.cff", "Dockerfile"):
        if (project / name).exists():
            (source / name).symlink_to(project / name)
    entries = [f"/{Path(name).with_suffix('')}" for name in names]
    (source / "docs" / "index.md").write_text("\n".join(["# Docs", "", *toctree(entries)]), encoding="utf-8")


def write_notebooks(executed: Path, source: Path) -> None:
    """Lay out the executed notebooks."""
    folder = source / "notebooks"
    folder.mkdir()
    paths = sorted(executed.glob("*.ipynb"))
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    output["data"]["image/png"] = smaller(output["data"]["image/png"])
            pictures = [
                own["metadata"]["image/png"]
                for own in cell.get("outputs", [])
                if "image/png" in own.get("metadata", {})
            ]
            if words := "; ".join(str(own["alt"]) for own in pictures if own.get("alt")):
                # The words of a picture and its width, where Sphinx looks for them.
                widths = [int(own["width"]) for own in pictures if own.get("width")]
                cell.metadata["mystnb"] = {"image": {"alt": words, **({"width": f"{max(widths)}px"} if widths else {})}}
        if path.stem == "explorer":
            text = "It needs a kernel: `make lab` opens it in JupyterLab."
            if (HERE.parent / "docs" / "images" / "explorer.png").exists():
                text += "\n\n![The explorer](../docs/images/explorer.png)"
            notebook.cells.insert(1, nbformat.v4.new_markdown_cell(text))
        nbformat.write(notebook, folder / path.name)
    lines = ["# Notebooks", "", *toctree([path.stem for path in paths])]
    (folder / "index.md").write_text("\n".join(lines), encoding="utf-8")


def write_outputs(run: Run, environment: str | None, source: Path, site: Path) -> None:
    """Lay out the first page, the tables and the figures."""
    files = site / "files"
    files.mkdir()
    figures = source / "figures"
    figures.mkdir()
    lines = ["# Figures", ""]
    for path in run.figures:
        lines += [f"## {figure_words(path)[0]}", "", *published_figure(path, figures)]
    (source / "figures.md").write_text("\n".join(lines), encoding="utf-8")
    pages = source / "tables"
    pages.mkdir()
    rows = [write_page(name, path, pages, files) for name, path in run.tables.items()]
    lines = ["# Tables", "", "| table | what it holds | rows |", "|---|---|---|", *rows, ""]
    lines += toctree(list(run.tables), hidden=True)
    (pages / "index.md").write_text("\n".join(lines), encoding="utf-8")
    headline = pd.read_csv(run.tables["headline"])
    html = interactive(
        headline, "./_static", paging=False, layout={"topStart": None, "topEnd": "search", "bottomStart": None}
    )
    (source / "headline.html").write_text(html, encoding="utf-8")
    (source / "index.md").write_text("\n".join(index_page(run, environment, figures)), encoding="utf-8")
    frame = "map/index.html?pid=__default__"
    lines = [
        "# Pipeline map",
        "",
        f"Every box opens; a click on a table or figure shows it. <a href='{frame}'>The map alone in the window</a>.",
        "",
        f"<iframe class='pipeline-map' src='{frame}' title='Pipeline map'></iframe>",
        "",
    ]
    (source / "pipeline_map.md").write_text("\n".join(lines), encoding="utf-8")


def write_map(project: Path, environment: str | None, site: Path) -> None:
    """Let Kedro-Viz make the pipeline map, and take from it what would be fetched from elsewhere.

    Raises:
        SystemExit: If Kedro-Viz made no map.
    """
    built = project / "build"
    for name in _MAP_FILES:
        path = built / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    variables = {**os.environ, "KEDRO_DISABLE_TELEMETRY": "1", "KEDRO_ENV": environment or ""}
    command = [sys.executable, "-m", "kedro", "viz", "build", "--include-previews"]
    said = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, check=False)
    # Kedro-Viz ends with 0 where it failed too.
    if said.returncode or not (built / "api" / "main").exists() or not (built / "index.html").exists():
        raise SystemExit(f"'kedro viz build' made no map:\n{said.stdout}\n{said.stderr}")
    target = site / "map"
    target.mkdir()
    for name in _MAP_FILES:
        path = built / name
        shutil.copytree(path, target / name) if path.is_dir() else shutil.copy(path, target)
    if not any(b"MermaidPreview" in path.read_bytes() for path in (target / "api" / "nodes").iterdir()):
        # All that the viewer loads later than itself is for diagrams in Mermaid.
        for path in (target / "assets").iterdir():
            if not path.name.startswith("index-"):
                path.unlink()
    page = target / "index.html"
    # The font's address is elsewhere; the page has another font to fall back on.
    text = re.sub(r"<link\b[^>]*https://[^>]*>\s*", "", page.read_text(encoding="utf-8"))
    page.write_text(text.replace("<head>", f"<head>{_MAP_SETTINGS}", 1), encoding="utf-8")
    for path in (target / "assets").glob("index-*.js"):
        # The one address that it looks for at the root of the host.
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('"/api/run-status"', '"./api/run-status"'), encoding="utf-8")
    for name in _SHOWN_ELSEWHERE:
        (target / "api" / "pipelines" / name).unlink(missing_ok=True)
    for path in (target / "api").rglob("*"):
        if path.is_file():
            text = compact(json.loads(path.read_bytes()))
            # Where the project lies on this machine is nobody else's business.
            for place in {project.resolve(), HERE.parent}:
                text = text.replace(f"{place.as_posix()}/", "")
            path.write_text(text, encoding="utf-8")
    # What the viewer also asks a live server, and Kedro-Viz forgets to write.
    told = MetadataAPIResponse.model_validate(get_metadata_response(), from_attributes=True)
    (target / "api" / "metadata").write_text(told.model_dump_json(), encoding="utf-8")


def compact(answer: dict[str, Any]) -> str:
    """Write an answer of Kedro-Viz's server in a tenth of its size.

    White space goes, previews of figures become small, pipelines that others contain are left out, and nodes do not
    repeat long parameters: the description of the data set is a parameter of nearly all, and its own box has it.
    """
    if isinstance(answer.get("pipelines"), list):
        answer["pipelines"] = [one for one in answer["pipelines"] if one["id"] not in _SHOWN_ELSEWHERE]
    nodes = answer.get("nodes")
    for node in nodes if isinstance(nodes, list) else []:
        for name, value in (node.get("parameters") or {}).items():
            if len(json.dumps(value)) > _LONG_PARAMETER:
                node["parameters"][name] = f"see the box params:{name}"
    if answer.get("preview_type") == "ImagePreview" and answer.get("preview"):
        answer["preview"] = smaller(answer["preview"], _PREVIEW_WIDTH)
    return json.dumps(answer, separators=(",", ":"))


def write_site(source: Path, site: Path, doctrees: Path) -> None:
    """Let Sphinx make the pages.

    Raises:
        SystemExit: If Sphinx fails.
    """
    for name in ("conf.py", "_static"):
        path = HERE / name
        shutil.copytree(path, source / name) if path.is_dir() else shutil.copy(path, source)
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-d", str(doctrees), str(source), str(site)]
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(f"Sphinx ended with {code}.")
    # What no page asks for: files of the theme's developers are a third of its size.
    for path in [*(site / name for name in (".buildinfo", "objects.inv")), *site.glob("_static/**/*.map")]:
        path.unlink(missing_ok=True)
    (site / "_static" / "webpack-macros.html").unlink(missing_ok=True)
    keep_one_of_equal(site)


def keep_one_of_equal(site: Path) -> None:
    """Let pages share pictures: a figure of the run stands in a notebook, too, and Sphinx copies it once for each."""
    kept: dict[bytes, str] = {}
    other: dict[str, str] = {}
    for path in sorted(site.glob("_images/*.png")):
        first = kept.setdefault(path.read_bytes(), path.name)
        if first != path.name:
            other[path.name] = first
            path.unlink()
    for page in site.rglob("*.html") if other else []:
        text = page.read_text(encoding="utf-8")
        # With its folder: the name of one picture may be the end of another's.
        removed = "_images/(" + "|".join(map(re.escape, other)) + ")"
        page.write_text(re.sub(removed, lambda found: f"_images/{other[found[1]]}", text), encoding="utf-8")


def execute_notebooks(project: Path, environment: str | None, folder: Path) -> None:
    """Execute the notebooks on the outputs of the run.

    Raises:
        SystemExit: If a cell fails.
    """
    command = [sys.executable, str(project / "notebooks" / "execute.py"), "--to", str(folder)]
    variables = {**os.environ, "KEDRO_ENV": environment or ""}
    if code := subprocess.run(command, env=variables, check=False).returncode:
        raise SystemExit(f"A notebook failed, as the lines above say (exit code {code}).")


def build(project: Path, environment: str | None, notebooks: Path | None) -> Path:
    """Build the site.

    Args:
        project: Folder of the Kedro project.
        environment: Environment whose outputs are shown; without it, those of the base environment.
        notebooks: Folder of notebooks that are executed already; without it, they are executed.

    Returns:
        The folder of the site, ``build/report``.

    Raises:
        SystemExit: If there is no run to report on, or a part cannot be made.
    """
    run = read_run(project, environment)
    target = project / "build" / "report"
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".report-") as place:
        source, site = Path(place, "source"), Path(place, "site")
        source.mkdir()
        site.mkdir()
        if notebooks is None:
            notebooks = Path(place, "notebooks")
            execute_notebooks(project, environment, notebooks)
        write_notebooks(notebooks, source)
        write_docs(HERE.parent, source)
        write_outputs(run, environment, source, site)
        write_map(project, environment, site)
        write_site(source, site, Path(place, "doctrees"))
        if target.exists():
            shutil.rmtree(target)
        site.rename(target)
    return target


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the site of the project in which the command is run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default=None, help="environment of the run (default: base)")
    parser.add_argument("--notebooks", type=Path, help="folder of executed notebooks; without it, they are executed")
    options = parser.parse_args(arguments)
    target = build(Path.cwd(), options.env or None, options.notebooks)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target.relative_to(Path.cwd())}: {size / 1e6:.1f} MB; 'make serve' shows it.")


if __name__ == "__main__":
    main()
