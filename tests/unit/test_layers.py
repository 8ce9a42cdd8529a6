"""Imports run downwards only: every module may import its own floor and those below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "planner"

FLOORS = {
    "errors": 0,
    "atomic": 0,
    "units": 0,
    "resources": 0,
    "data": 0,
    "catalog": 1,
    "traces": 1,
    "schema": 1,
    "workload": 2,
    "perf": 3,
    "queueing": 3,
    "pools": 4,
    "candidates": 4,
    "fleet": 5,
    "problem": 5,
    "plan": 5,
    "evaluation": 5,
    "verify": 5,
    "embedded": 6,
    "frames": 6,
    "simulate": 6,
    "pricing": 6,
    "assemble": 6,
    "diagnose": 6,
    "given": 6,
    "calibrate": 6,
    "fidelity": 6,
    "study": 7,
    "api": 7,
    "report": 8,
    "export": 8,
    "cli": 9,
    "__main__": 10,
    # The lazy public API names every floor, for type checkers; it loads none (tested below).
    "__init__": 10,
}
# The package itself sits below everything: it holds the version and loads the rest lazily.
ROOT_FLOOR = 0

# Slow to import, so only where the optimisation needs them; elsewhere inside functions.
HEAVY = {"pandas", "pyomo", "scipy", "highspy", "pyscipopt"}
HEAVY_ALLOWED_IN = {"fleet"}
# `planner --help` and `planner list` must not wait for numpy either.
WITHOUT_NUMPY = {"errors", "units", "resources", "catalog", "schema", "cli"}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_packed" not in path.parts)


def unit(path: Path) -> str:
    """The part of the package that a file belongs to: `catalog` for catalog/offers.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def type_checking_blocks(tree: ast.Module) -> set[ast.AST]:
    """Every node under `if TYPE_CHECKING:`, which never runs."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }


def imported(node: ast.AST) -> Iterator[str]:
    """Full names of the modules that an import statement may load."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide the floor"
        if node.module == "planner":
            yield from (f"planner.{alias.name}" for alias in node.names)
        elif node.module:
            yield node.module


def top_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not inside functions, not for typing only."""
    skipped = type_checking_blocks(tree)
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        if node in skipped or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield node
        stack.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    here = unit(path)
    assert here in FLOORS, f"give {here!r} a floor in {Path(__file__).name}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for name in imported(node):
            parts = name.split(".")
            if parts[0] == "planner" and len(parts) > 1 and parts[1] != "__version__":
                floor = FLOORS.get(parts[1], ROOT_FLOOR)
                assert floor <= FLOORS[here], f"{here} may not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_late(path: Path) -> None:
    here = unit(path)
    banned = set() if here in HEAVY_ALLOWED_IN else set(HEAVY)
    if here in WITHOUT_NUMPY:
        banned.add("numpy")
    for node in top_level(ast.parse(path.read_text(encoding="utf-8"))):
        for name in imported(node):
            assert name.split(".")[0] not in banned, f"import {name} inside a function"


def test_the_package_itself_imports_nothing_of_its_own() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    loaded = [name for node in top_level(tree) for name in imported(node)]
    assert not [name for name in loaded if name.startswith("planner")]
