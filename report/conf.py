"""How Sphinx makes the report site of what ``report/build.py`` lays out. Nothing is fetched from elsewhere."""

from __future__ import annotations

import importlib
from importlib.metadata import version as version_of
from pathlib import Path

project = "multitask-recommender"
author = "The multitask-recommender authors"
version = release = version_of("multitask-recommender")
language = "en"

extensions = ["myst_nb"]
myst_enable_extensions = ["amsmath", "attrs_inline", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # The notebooks come executed.
nb_merge_streams = True
# Widgets need a kernel, and their scripts another host: their plain text stands in for them.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
suppress_warnings = [
    "myst.header",  # Notebooks may jump over a level of headings.
    "mystnb.unknown_mime_type",
]

# One file of MathJax that brings its glyphs as SVG paths, so that no font is loaded.
_mathjax = Path(str(importlib.import_module("sphinx-mathjax-offline").__file__)).parent / "static" / "mathjax"
_itables = Path(str(importlib.import_module("itables").__file__)).parent / "html"
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}, "loader": {"load": []}}

exclude_patterns = ["src/**"]  # Files for links, not pages.
html_theme = "pydata_sphinx_theme"
html_title = "multitask-recommender"
html_static_path = [
    "_static",
    str(_mathjax / "tex-svg.js"),
    str(_itables / "dt_bundle.js"),
    str(_itables / "dt_bundle.css"),
]
html_favicon = "_static/favicon.svg"
html_css_files = ["report.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "show_prev_next": True,
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": [], "figures": [], "pipeline_map": [], "tables/*": ["sidebar-nav-bs"]}
html_context = {"default_mode": "light"}
