"""The report site of the tiny study in a real browser: whole, silent, and by itself."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, Request, Route, sync_playwright

from conftest import ROOT, Project, once

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: 'make browser' installs it as root on Debian"
)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SWEEP = "05_when_does_multitask_help"


def run_build(project: Project, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "report" / "build.py"), "--env", "test", *options]
    environment = {**os.environ, "KEDRO_DISABLE_TELEMETRY": "1"}
    return subprocess.run(command, cwd=project.folder, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="session")
def site(
    finished_project: Project,
    executed: Callable[[Project, str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The site, built once; the notebooks are those that the tests of the notebooks execute."""

    def make(folder: Path) -> None:
        folder.mkdir()
        with ThreadPoolExecutor(2) as pool:
            for path in pool.map(lambda own: executed(finished_project, own.name), NOTEBOOKS):
                shutil.copy(path, folder)
        result = run_build(finished_project, "--notebooks", str(folder))
        assert result.returncode == 0, result.stderr
        assert "WARNING" not in result.stderr
        assert "ERROR" not in result.stderr

    once(tmp_path_factory, "report_notebooks", make)
    return finished_project.folder / "build" / "report"


def pages_of(site: Path) -> list[str]:
    """Addresses of all pages, from the root of the site."""
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *said: Any) -> None:
            pass

    # Below a folder, as on a host that has other sites too.
    handler = functools.partial(Quiet, directory=str(site.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{site.name}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


class Visit:
    """A page of a browser that remembers what went wrong in it, and reaches no other host."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.address = address
        self.faults: list[str] = []
        self.context = browser.new_context(viewport={"width": 1400, "height": 900})
        self.context.route("**/*", self._only_here)
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda said: self._fault(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self._fault(str(error)))
        self.page.on("requestfailed", self._failed)
        self.page.on("response", lambda own: self._fault(f"{own.status}: {own.url}") if own.status >= 400 else None)

    def _fault(self, what: str) -> None:
        self.faults.append(f"{self.page.url.removeprefix(self.address)}: {what}")

    def _failed(self, request: Request) -> None:
        # A page that is left while it loads is not a fault.
        if request.failure != "net::ERR_ABORTED":
            self._fault(f"failed: {request.url} {request.failure}")

    def _only_here(self, route: Route, request: Request) -> None:
        if request.url.startswith(self.address):
            route.continue_()
        else:
            self._fault(f"asks elsewhere for {request.url}")
            route.abort()

    def open(self, name: str) -> Page:
        # The map asks for its parts after it is loaded; on other pages nothing is asked for then.
        self.page.goto(self.address + name, wait_until="networkidle" if "map" in name else "load")
        return self.page


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address)
    yield visit
    visit.context.close()
    assert visit.faults == []


@in_a_browser
def test_every_page_is_whole_and_fetches_nothing_from_elsewhere(site: Path, visit: Visit) -> None:
    shown: dict[str, list[list[float]]] = {}
    links: set[str] = set()
    for name in pages_of(site):
        page = visit.open(name)
        shown[name] = page.eval_on_selector_all(
            "article img, .bd-content img", "all => all.map(i => [i.naturalWidth, i.getBoundingClientRect().width])"
        )
        # The viewer of the map finds its own views by scripts.
        if not name.startswith("map/"):
            links.update(page.eval_on_selector_all("a[href], iframe[src]", "all => all.map(a => a.href || a.src)"))
        assert page.title()
    assert [name for name, widths in shown.items() if min((min(own) for own in widths), default=99) < 90] == []
    assert all(shown[f"notebooks/{path.stem}.html"] for path in NOTEBOOKS if path.stem not in {"explorer", SWEEP})
    assert shown["index.html"]
    assert len(shown["figures.html"]) == len(list((site.parents[1] / "data/test/08_reporting").glob("*.png")))
    # Whatever is linked is there, and every page is linked.
    own = {
        link.removeprefix(visit.address).split("#")[0].split("?")[0] for link in links if link.startswith(visit.address)
    }
    assert [name for name in own if not (site / (name or "index.html")).exists()] == []
    apart = {"genindex.html", "search.html"}
    assert set(pages_of(site)) - own - apart - {"index.html"} == set()


@in_a_browser
def test_a_reader_clicks_through(visit: Visit) -> None:
    page = visit.open("index.html")
    assert page.locator("h1").first.inner_text().startswith("Does multi-task learning help on tiny?")
    answer = page.locator("article table", has_text="against its single-task control").first
    assert sum(int(text) for text in answer.locator("tbody tr:first-child td:not(:first-child)").all_inner_texts()) > 0
    models = page.locator("table.dataTable tbody")
    assert "Shared-bottom" in models.inner_text() or "shared_bottom" in models.inner_text()
    assert "NaN" not in models.inner_text()
    for title in ("Notebooks", "Tables", "Figures", "Pipeline map", "Docs"):
        page.locator("header").get_by_role("link", name=title, exact=True).click()
        assert page.locator("h1").first.inner_text().startswith(title)
    page.locator("nav.bd-links").get_by_role("link", name="Results", exact=True).click()
    page.wait_for_url("**/docs/results.html")
    # Formulas are drawn, and the search finds words of notebooks.
    page = visit.open("notebooks/02_user_embedding.html")
    assert page.locator("mjx-container svg").count() > 0
    assert page.locator("mjx-merror").count() == 0
    page = visit.open("search.html?q=embedding")
    page.wait_for_selector("#search-results li a")
    assert any(
        "02_user_embedding" in str(link.get_attribute("href")) for link in page.locator("#search-results a").all()
    )


@in_a_browser
def test_a_table_is_sorted_and_filtered(site: Path, finished_project: Project, visit: Visit) -> None:
    table = pd.read_csv(finished_project.outputs / "08_reporting" / "metrics.csv")
    means = table[table["group"] == "all"].groupby(["split", "model", "task", "metric", "k"])["value"].mean()
    page = visit.open("tables/metrics.html")

    def column(name: str) -> list[str]:
        titles = page.locator(".dt-scroll-head th").all_inner_texts()
        place = next(number for number, text in enumerate(titles) if text.strip() == name)
        return page.locator(f".dt-scroll-body tbody tr td:nth-child({place + 1})").all_inner_texts()

    assert f"{len(means):,} entries" in page.locator(".dt-info").inner_text().replace("entry", "entries")
    header = page.locator(".dt-scroll-head th", has_text="value").locator(".dt-column-title")
    header.click()
    page.locator("th[aria-sort=ascending]").first.wait_for()
    lowest = [float(text) for text in column("value")]
    assert lowest == sorted(lowest)
    assert lowest[0] == pytest.approx(means.min(), rel=1e-3)
    header.click()
    page.locator("th[aria-sort=descending]").first.wait_for()
    assert float(column("value")[0]) == pytest.approx(means.max(), rel=1e-3)
    page.get_by_role("searchbox").fill("shared_bottom rmse")
    assert set(column("model")) == {"shared_bottom"}
    assert set(column("metric")) == {"rmse"}
    page.get_by_role("searchbox").fill("")
    # The list of a column's values.
    page.locator(".dt-scroll-head th", has_text="metric").locator(".dtcc-button").click()
    page.locator(".dtcc-list-buttons").get_by_role("button", name="recall", exact=True).click()
    assert set(column("metric")) == {"recall"}
    whole = page.locator("article a[download]").get_attribute("href")
    file = site / "tables" / str(whole)
    assert len(pd.read_csv(file)) == len(table)


@in_a_browser
def test_the_map_opens_and_shows_what_a_box_holds(visit: Visit) -> None:
    page = visit.open("pipeline_map.html")
    frame = page.frame_locator("iframe.pipeline-map")
    frame.get_by_text("data_engineering", exact=True).locator("visible=true").first.wait_for()
    assert page.locator("iframe.pipeline-map").bounding_box()["width"] > 1000  # type: ignore[index]
    page = visit.open("map/index.html?pid=when_multitask_helps")
    page.locator(".pipeline-node").first.wait_for()
    page.locator(".pipeline-node--data, .pipeline-node").first.click()
    page.locator(".pipeline-metadata").first.wait_for()


def test_the_site_is_small_and_names_no_other_host(site: Path) -> None:
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 30e6
    loaded = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"'](?:https?:)?//[^>]*>")
    assert [name for name in pages_of(site) if loaded.search((site / name).read_text())] == []
    # Nor the place of the project on this machine.
    for path in [*site.rglob("*.html"), *(path for path in (site / "map" / "api").rglob("*") if path.is_file())]:
        text = path.read_text()
        assert str(ROOT) not in text, path
        assert str(site.parents[1]) not in text, path


def test_a_notebook_without_outputs_to_load_says_so(site: Path) -> None:
    said = "outputs below are those stored"
    assert [path.stem for path in NOTEBOOKS if said in (site / f"notebooks/{path.stem}.html").read_text()] == [SWEEP]


def test_the_map_answers_what_its_viewer_asks(site: Path) -> None:
    answers = {name: json.loads((site / "map/api" / name).read_text()) for name in ("main", "metadata", "run-status")}
    assert all(own["is_compatible"] for own in answers["metadata"]["package_compatibilities"])
    assert {"data_engineering", "evaluation"} <= set(answers["main"]["modular_pipelines"])
    offered = {own["id"] for own in answers["main"]["pipelines"]}
    assert {"__default__", "when_multitask_helps"} <= offered
    assert offered == {path.name for path in (site / "map/api/pipelines").iterdir()}
    parameters = [own.get("parameters") or {} for own in answers["main"]["nodes"]]
    assert {own["dataset"] for own in parameters if "dataset" in own} == {"see the box params:dataset"}
    assert any("study" in own and own["study"]["seed"] == 7 for own in parameters)


def test_no_run_no_report(project: Project) -> None:
    result = run_build(project)
    assert result.returncode == 1
    assert "run 'kedro run --env test' first" in result.stderr
    assert not (project.folder / "build" / "report").exists()


def test_large_tables_are_cut_and_large_files_zipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "report"))
    tables = pytest.importorskip("tables")
    pages, files = tmp_path / "pages", tmp_path / "files"
    pages.mkdir()
    files.mkdir()
    table = pd.DataFrame({"dataset": "x", "model": range(30_000), "seed": 1, "group": "all", "value": 0.123456})
    wide = table.assign(about="long text " * 5)
    wide.to_csv(tmp_path / "metrics.csv", index=False)
    row = tables.write_page("metrics", tmp_path / "metrics.csv", pages, files)
    assert row.endswith("| 30,000 |")
    assert "the first 3,000 of 30,000 rows" in (pages / "metrics.md").read_text()
    with zipfile.ZipFile(files / "metrics.csv.zip") as archive:
        assert archive.read("metrics.csv") == (tmp_path / "metrics.csv").read_bytes()
    two = pd.concat([table.assign(seed=0, value=1.0), table.assign(value=3.0)]).head(60_000)
    rows, _ = tables.shown(two, tables.TABLES["metrics"])
    assert rows["value"].unique().tolist() == [2.0]
    assert rows["averaged"].unique().tolist() == [2]
    assert list(rows) == ["model", "group", "value", "averaged"] or list(rows) == ["model", "value", "averaged"]


def test_notebooks_are_stored_as_they_are_committed(site: Path) -> None:
    stored = nbformat.read(ROOT / "notebooks" / f"{SWEEP}.ipynb", as_version=4)
    pictures = sum("image/png" in own.get("data", {}) for cell in stored.cells for own in cell.get("outputs", []))
    assert (site / f"notebooks/{SWEEP}.html").read_text().count("<img") >= pictures


def test_equal_pictures_are_kept_once_and_names_within_names_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "report")
    build = pytest.importorskip("build")
    (tmp_path / "_images").mkdir()
    for name, content in (("0a.png", b"1"), ("accuracy.png", b"1"), ("all_accuracy.png", b"2")):
        (tmp_path / "_images" / name).write_bytes(content)
    page = tmp_path / "page.html"
    page.write_text("<img src='_images/accuracy.png'><img src='_images/all_accuracy.png'> accuracy.png")
    build.keep_one_of_equal(tmp_path)
    assert page.read_text() == "<img src='_images/0a.png'><img src='_images/all_accuracy.png'> accuracy.png"
    assert sorted(path.name for path in (tmp_path / "_images").iterdir()) == ["0a.png", "all_accuracy.png"]
