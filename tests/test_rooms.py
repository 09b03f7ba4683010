"""The rooms stand on each other: imports go down only, without circles, and nothing in the core knows what stands beside it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jaxcompress

ROOT = Path(jaxcompress.__file__).parent

FLOORS = (
    {"checks", "models", "plotting"},
    {"arrays", "programs"},
    {"tables", "checkpoint"},
    {"networks"},
    {"moments"},
    {"transforms"},
    {"training"},
    {"analysis", "testing"},
    {"classifiers", "documents"},
    {"plots"},
    {"examples"},
    {"cli", "__init__"},
    {"__main__"},
)
"""From the ground up. A room imports from its own floor's rooms nothing, and from those below what it likes."""

ALLOWED_BESIDE = {("programs", "arrays"), ("arrays", "programs")}
"""Rooms of one floor that may import each other one way; `test_no_circles` holds which."""

HEIGHT = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it: a late import is an import."""
    modules = {module_of(other) for other in FILES}
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & modules) | ({node.module} if inside - modules else set())
    return {name for name in names if name.split(".")[0] == "jaxcompress"}


IMPORTS = {module_of(path): imported(path) for path in FILES}


def test_every_room_has_a_floor():
    assert {room_of(module) for module in IMPORTS} == set(HEIGHT)


@pytest.mark.parametrize("module", IMPORTS)
def test_imports_go_down(module):
    room = room_of(module)
    for other in IMPORTS[module]:
        below = room_of(other)
        if below == room or (room, below) in ALLOWED_BESIDE:
            continue
        assert HEIGHT[below] < HEIGHT[room], f"{module} imports {other}, which stands above it"


def test_no_circles():
    tuple(TopologicalSorter(IMPORTS).static_order())
    rooms = {
        room: {
            room_of(other)
            for module in IMPORTS
            if room_of(module) == room
            for other in IMPORTS[module]
        }
        - {room}
        for room in HEIGHT
    }
    tuple(TopologicalSorter(rooms).static_order())


def test_models_import_nothing_of_ours():
    for module, names in IMPORTS.items():
        if room_of(module) == "models":
            assert {room_of(name) for name in names} <= {"models"}


def test_public_names():
    """About 45 names at the top, and every name of a room is there."""
    rooms = {name for name in jaxcompress.__all__ if (ROOT / name).is_dir() or name == "plots"}
    assert len(set(jaxcompress.__all__) - rooms) <= 50
    for name in jaxcompress.__all__:
        getattr(jaxcompress, name)
    for room in rooms:
        for name in getattr(jaxcompress, room).__all__:
            getattr(getattr(jaxcompress, room), name)
