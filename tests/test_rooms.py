"""Packages are layered: a module imports from lower layers only, and imports have no cycles.

Nothing in the core imports `classifiers` or `documents`.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jaxcompress

ROOT = Path(jaxcompress.__file__).parent

LAYERS = (
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
"""From the lowest layer up. Packages of one layer do not import each other."""

ALLOWED_WITHIN_LAYER = {("programs", "arrays"), ("arrays", "programs")}
"""Exceptions: one of the two imports the other; `test_no_cycles` allows one direction only."""

LAYER = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


MODULES = {module_of(path) for path in FILES}


def imported_names(node: ast.AST) -> set[str]:
    """The modules that one statement imports: none unless it is an import."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        qualified = {f"{node.module}.{alias.name}" for alias in node.names}
        return (qualified & MODULES) | ({node.module} if qualified - MODULES else set())
    return set()


def imported(path: Path) -> set[str]:
    """Modules of the library that a file imports anywhere, also inside functions."""
    nodes = ast.walk(ast.parse(path.read_text()))
    names = set().union(*map(imported_names, nodes))
    return {name for name in names if name.split(".")[0] == "jaxcompress"}


IMPORTS = {module_of(path): imported(path) for path in FILES}


def test_every_package_has_a_layer():
    assert {package_of(module) for module in IMPORTS} == set(LAYER)


@pytest.mark.parametrize("module", IMPORTS)
def test_imports_go_down(module):
    package = package_of(module)
    for other in IMPORTS[module]:
        below = package_of(other)
        if below == package or (package, below) in ALLOWED_WITHIN_LAYER:
            continue
        assert LAYER[below] < LAYER[package], (
            f"{module} imports {other}, which is in a higher layer"
        )


def test_no_cycles():
    tuple(TopologicalSorter(IMPORTS).static_order())
    packages = {package: set() for package in LAYER}
    for module, others in IMPORTS.items():
        packages[package_of(module)] |= {package_of(other) for other in others}
    for package, others in packages.items():
        others.discard(package)
    tuple(TopologicalSorter(packages).static_order())


def test_models_import_models_only():
    for module, names in IMPORTS.items():
        if package_of(module) == "models":
            assert {package_of(name) for name in names} <= {"models"}


def test_public_names():
    """About 50 names at the top, and every name in a package's `__all__` exists."""
    packages = {name for name in jaxcompress.__all__ if (ROOT / name).is_dir() or name == "plots"}
    assert len(set(jaxcompress.__all__) - packages) <= 56
    for name in jaxcompress.__all__:
        getattr(jaxcompress, name)
    for package in packages:
        for name in getattr(jaxcompress, package).__all__:
            getattr(getattr(jaxcompress, package), name)
