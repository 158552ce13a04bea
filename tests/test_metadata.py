"""What the project says of itself agrees, and others can read it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import multitask_recommender
from conftest import ROOT

SCHEMA = ["-m", "check_jsonschema", "--builtin-schema", "vendor.citation-file-format"]


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *SCHEMA, str(path)], capture_output=True, text=True, check=False)


def test_the_citation_file_is_valid(tmp_path: Path) -> None:
    result = validate(ROOT / "CITATION.cff")
    assert result.returncode == 0, result.stdout
    # A file without its authors is not.
    broken = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    del broken["authors"]
    (tmp_path / "CITATION.cff").write_text(yaml.safe_dump(broken))
    assert "authors" in validate(tmp_path / "CITATION.cff").stdout


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    versions = {project["version"], str(citation["version"]), released[0], multitask_recommender.__version__}
    assert len(versions) == 1
    assert project["license"] == citation["license"]


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_what_a_readme_points_to_is_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if link and not (ROOT / link).exists()] == []
    makefile = (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE))
    assert {"run", "report"} <= commands
    assert [own for own in commands if not re.search(rf"^{own}:", makefile, re.MULTILINE)] == []


def test_pictures_of_the_docs_are_small() -> None:
    pictures = list((ROOT / "docs" / "images").glob("*"))
    assert pictures
    assert [path.name for path in pictures if path.stat().st_size > 200_000] == []
    shown = "".join(path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
    assert [path.name for path in pictures if path.name not in shown and path.name != "explorer.png"] == []
