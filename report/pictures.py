"""Takes the pictures of the README from the report site and from JupyterLab: ``python report/pictures.py``.

The site has to be built (``make report``), and Debian's Chromium and the extra ``dev`` to be there (``make browser``).
The picture of the explorer shows rows of a data set: take a simulated one with ``--study``, since the licence of the
default data forbids to publish its rows.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
SITE = ROOT / "build" / "report"
LARGEST = 200_000
"""Bytes of a picture."""


def shrink(path: Path, width: int = 1400) -> None:
    """Write a picture with few colours and no wider than it is shown.

    Raises:
        SystemExit: If it is too large all the same.
    """
    with Image.open(path) as picture:
        picture.load()
        small = picture.convert("RGB")
    if small.width > width:
        small = small.resize((width, round(small.height * width / small.width)), Image.Resampling.LANCZOS)
    small.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size / 1000:.0f} kB")
    if size > LARGEST:
        raise SystemExit(f"{path} is larger than {LARGEST / 1000:.0f} kB.")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP and yield its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def jupyterlab() -> Iterator[str]:
    """Start JupyterLab on the notebooks and yield its address.

    Raises:
        SystemExit: If it does not answer within two minutes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [f"--port={port}", "--no-browser", "--IdentityProvider.token=", "--allow-root", "--LabApp.news_url="]
    command = [sys.executable, "-m", "jupyterlab", *settings, str(ROOT / "notebooks")]
    log = {**os.environ, "KEDRO_LOGGING_CONFIG": str(ROOT / "conf" / "logging.yml"), "KEDRO_DISABLE_TELEMETRY": "1"}
    process = subprocess.Popen(command, env=log, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        else:
            raise SystemExit("JupyterLab does not answer.")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def take_answer(page: Page, address: str) -> None:
    """Take the figure of the first page."""
    page.goto(f"{address}/index.html", wait_until="networkidle")
    page.locator("article img").first.screenshot(path=IMAGES / "verdicts.png")


def take_map(page: Page, address: str) -> None:
    """Take the picture of the pipeline map as it opens."""
    page.goto(f"{address}/map/index.html?pid=__default__", wait_until="networkidle")
    page.locator(".pipeline-node").first.wait_for(timeout=120_000)
    page.wait_for_timeout(2000)  # The boxes move to their places.
    page.screenshot(path=IMAGES / "pipeline_map.png")


def take_explorer(page: Page, address: str, study: str | None) -> None:
    """Take the picture of the explorer after its notebook has run. The notebook stays as it was."""
    notebook = ROOT / "notebooks" / "explorer.ipynb"
    before = notebook.read_bytes()
    try:
        run_explorer(page, address, study)
    finally:
        page.goto("about:blank")  # JupyterLab saves what is open.
        page.wait_for_timeout(2000)
        notebook.write_bytes(before)


def run_explorer(page: Page, address: str, study: str | None) -> None:
    """Open the explorer's notebook, run it, choose a data set, and take the picture of what it shows."""
    page.set_viewport_size({"width": 1400, "height": 1800})  # All of it, without scrolling.
    page.goto(f"{address}/lab/tree/explorer.ipynb?reset", wait_until="domcontentloaded")
    page.locator(".jp-Notebook").wait_for(timeout=120_000)
    page.wait_for_timeout(5000)  # The kernel starts.
    page.keyboard.press("Control+B")  # Without the folders at the side.
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    widget = page.locator(".jp-OutputArea-output .widget-dropdown select").first
    widget.wait_for(timeout=300_000)
    if study is not None:
        widget.select_option(label=study)
    page.wait_for_timeout(15_000)  # Models are loaded and asked.
    page.add_style_tag(content=".Toastify { display: none; }")
    page.locator(".jp-OutputArea-output").first.screenshot(path=IMAGES / "explorer.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", help="data set that the explorer shows (default: its first)")
    options = parser.parse_args(arguments)
    if not (SITE / "index.html").exists():
        raise SystemExit("There is no report to take pictures of: run 'make report' first.")
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        with served(SITE) as address:
            take_answer(page, address)
            take_map(page, address)
        with jupyterlab() as address:
            take_explorer(page, address, options.study)
        browser.close()
    for path in sorted(IMAGES.glob("*.png")):
        shrink(path)


if __name__ == "__main__":
    main()
