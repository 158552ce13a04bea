"""The wings of the package: no import runs back up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import multitask_recommender

ROOT = Path(multitask_recommender.__file__).parent
ORDER = ["foundation", "data", "models", "evaluation", "simulation", "pipelines"]
"""Every wing may import from itself and from those before it."""
ALLOWED = {wing: set(ORDER[: place + 1]) for place, wing in enumerate(ORDER)}
ALLOWED["use"] = {"use", "foundation", "data", "models"}
ALLOWED["spark"] = {"spark", "foundation", "data", "models"}
ALLOWED["pipelines"] |= {"use", "spark"}
ALLOWED["testing"] = {"foundation", "data", "models"}


def imports(path: Path) -> set[str]:
    """Wings, and modules at the root of the package, that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path} imports by a relative name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("multitask_recommender.")}
    return found


@pytest.mark.parametrize("wing", [wing for wing in ALLOWED if (ROOT / wing).exists() or (ROOT / f"{wing}.py").exists()])
def test_no_import_runs_back_up(wing: str) -> None:
    paths = [ROOT / f"{wing}.py"] if (ROOT / f"{wing}.py").exists() else sorted((ROOT / wing).rglob("*.py"))
    assert paths
    for path in paths:
        above = imports(path) - ALLOWED[wing]
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"


def test_rooms_of_the_models_do_not_run_in_circles() -> None:
    """The folders of the models import each other in one direction."""
    rooms = [path.name for path in (ROOT / "models").iterdir() if (path / "__init__.py").exists()]
    edges = set()
    for room in rooms:
        for path in (ROOT / "models" / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("multitask_recommender.models."):
                    edges.add((room, (node.module or "").split(".")[2]))
    edges = {(one, other) for one, other in edges if one != other and other in rooms}
    reached = {room: {other for one, other in edges if one == room} for room in rooms}
    for _ in rooms:
        reached = {room: own | {far for near in own for far in reached[near]} for room, own in reached.items()}
    assert not [room for room in rooms if room in reached[room]]


def test_models_and_metrics_know_nothing_of_kedro_or_files() -> None:
    for wing in ("foundation", "models", "evaluation"):
        for path in (ROOT / wing).rglob("*.py"):
            assert "import kedro" not in path.read_text(), path
            assert "from kedro" not in path.read_text(), path
