"""The house stands as DESIGN says: imports point down only, and the program starts without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "fluxsmith"

# From the ground up; a room may use those in lower rows. Rooms in one row do not use each other.
FLOORS: list[set[str]] = [
    {"errors", "version"},
    {"config", "hub", "entry_points"},
    {"io"},
    {"layouts", "methods"},
    {"adapters"},
    {"recipes"},
    {"engine"},
    {"models", "pocket"},
    {"training", "generation", "analysis"},
    {"reports", "runs"},
    {"api"},
    {"cli", "web", "__init__"},
]
RANK = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> set[tuple[str, int]]:
    """Rooms that a file imports, also inside functions, with the line."""
    found: set[tuple[str, int]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "fluxsmith" else [node.module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "fluxsmith" and len(parts) > 1:
                found.add((parts[1], node.lineno))
    return found


# Rooms with a file for every method or command: their lists are METHODS and COMMANDS.
LISTED_ELSEWHERE = {"methods", "cli"}


@pytest.mark.parametrize("room", sorted(p.parent for p in FILES if p.name == "__init__.py" and p.parent != ROOT), ids=lambda p: p.name)
def test_every_room_has_a_map_of_its_files(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    names = {path.name for path in room.glob("*.py")} - {"__init__.py"}
    assert room.name in LISTED_ELSEWHERE or not {name for name in names if name not in text}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    assert room in RANK, f"{room} has no floor in the house"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} ({room}) imports {other}"
        for other, line in imported_rooms(path)
        if other in RANK and other != room and RANK[other] >= RANK[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_has_a_map() -> None:
    for init in ROOT.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text())), f"{init} has no docstring"


def test_no_drawers_for_everything() -> None:
    words = {"utils", "util", "common", "helpers", "helper", "manager"}
    assert [p for p in FILES if words & set(p.stem.split("_"))] == []


# Planning is torch-free, so all of this must be.
TORCH_FREE = ["fluxsmith", "fluxsmith.cli.main", "fluxsmith.engine.planning", "fluxsmith.methods", "fluxsmith.layouts"]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_imports_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_starts_without_torch() -> None:
    start = "import sys; from fluxsmith.cli.main import main"
    code = f"{start}\ntry: main(['--help'])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
