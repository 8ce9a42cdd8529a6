"""docs/mathematics.md has every constraint and slack family of the program, and no others."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from types import ModuleType

import pytest
from docs_pages import DOCS, between, table_rows

from planner.candidates.options import ROWS
from planner.fleet import given, model, slacks
from planner.fleet.model import CONSTRAINTS, respect_budget
from planner.fleet.slacks import SLACKS

PAGE = DOCS / "mathematics.md"
FAMILIES: dict[str, Callable[..., None]] = {
    build.__name__: build for build in (*CONSTRAINTS, respect_budget)
}


def documented() -> dict[str, list[str]]:
    """Cells of the table of constraints, by the name in backticks."""
    rows = table_rows(between(PAGE, "constraints"))
    return {row[1].strip("`"): row for row in rows}


def components(module: ModuleType) -> set[str]:
    """Names of the Pyomo constraints that a module adds to a model."""
    return {
        target.attr
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "pyo.Constraint"
        for target in node.targets
        if isinstance(target, ast.Attribute)
    }


def public_builders(module: ModuleType) -> set[str]:
    """Functions of a module that add constraints: public, and they take a model first."""
    return {
        name
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and [*inspect.signature(function).parameters][:1] == ["m"]
    }


def test_every_constraint_function_is_in_the_list_of_constraints() -> None:
    assert public_builders(model) == set(FAMILIES)


def test_every_constraint_is_documented_and_no_other() -> None:
    assert list(documented()) == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_has_a_formula_a_reason_and_a_dual(family: str) -> None:
    formula, _, reason, dual = documented()[family]
    assert "=" in formula
    assert reason
    assert "USD/hour" in dual


def symbols(text: str) -> str:
    """A formula without spaces, markup, names of letters and alternatives of indices."""
    for name, letter in (("lambda", "λ"), ("tau", "τ")):
        text = text.replace(name, letter)
    return re.sub(r"[\s`.]|\[k,p,t\]|\[p,t\]|_[kpo]\b|\[[kosg]\]", "", text)


@pytest.mark.parametrize(
    "family",
    [
        "compute",
        "hbm_bandwidth",
        "hbm_capacity",
        "interconnect",
        "kv_transfer",
        "batch_limit",
        "chunk_budget",
        "fit_nodes",
    ],
)
def test_formulas_are_those_of_the_docstrings(family: str) -> None:
    # In these rows the formula stands whole, in one pair of backticks.
    shown = re.findall(r"`([^`]+)`", documented()[family][0])[0]
    assert symbols(shown) in symbols(FAMILIES[family].__doc__ or "")


def test_every_component_is_named() -> None:
    text = between(PAGE, "constraints")
    named = set(re.findall(r"`(\w+)`", text))
    steps = {row for row in ROWS if row.startswith("calibrated_step")}
    # The page says "to" between the first and the last of the chords.
    ends = {min(steps), max(steps)}
    for name in (components(model) | set(ROWS)) - steps | ends:
        assert name in named, name


def test_the_program_of_a_given_fleet_is_documented() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in public_builders(given):
        assert f"| `{name}` |" in text


def test_every_slack_family_is_documented_and_no_other() -> None:
    rows = [[cell.strip("`") for cell in row] for row in table_rows(between(PAGE, "slacks"))]
    assert [row[:3] for row in rows] == [
        [slack.name, slack.constraint, slack.unit] for slack in SLACKS.values()
    ]


def test_every_slack_variable_exists() -> None:
    source = inspect.getsource(model)
    for *_, variable in table_rows(between(PAGE, "slacks")):
        assert f"m.{variable.strip('`').split('[')[0]} = pyo.Var" in source
    assert slacks.__doc__
