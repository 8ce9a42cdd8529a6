"""Every constraint family, alone in an LP file, equals the file that a person has read.

`pytest tests/golden --update-golden` rewrites the files; read the difference before committing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyomo.environ as pyo
import pytest
from golden_inputs import inputs
from pyomo.repn.tests import lp_diff

from planner.candidates.options import ROWS
from planner.fleet.inputs import FleetInputs
from planner.fleet.model import CONSTRAINTS, Model, build_model, respect_budget
from planner.fleet.slacks import SLACKS

FOLDER = Path(__file__).parent / "lp"
FAMILIES: dict[str, Callable[[Model, FleetInputs], None]] = {
    build.__name__: build for build in (*CONSTRAINTS, respect_budget)
}
RELAXED = {slack.constraint: name for name, slack in SLACKS.items()}
CASES = [(family, False) for family in FAMILIES] + [(family, True) for family in RELAXED]


def family_of(component: str) -> str:
    """The constraint function that a component belongs to, by its name."""
    if component == "open_pool":
        return "limit_pool_kinds"
    (family,) = (name for name in FAMILIES if component.startswith(name))
    return family


def golden_file(family: str, relaxed: bool) -> Path:
    return FOLDER / f"{family}{'_relaxed' if relaxed else ''}.lp"


def alone(family: str, relaxed: bool) -> Model:
    """The program with one family active."""
    model = (
        build_model(inputs(), relaxed=(RELAXED[family],), objective="slack")
        if relaxed
        else build_model(inputs())
    )
    for constraint in model.component_objects(pyo.Constraint):
        if family_of(constraint.name) != family:
            constraint.deactivate()
    return model


@pytest.mark.parametrize(("family", "relaxed"), CASES)
def test_family_equals_its_golden_file(
    family: str, relaxed: bool, tmp_path: Path, update_golden: bool
) -> None:
    golden = golden_file(family, relaxed)
    target = golden if update_golden else tmp_path / golden.name
    alone(family, relaxed).write(str(target), io_options={"symbolic_solver_labels": True})
    baseline, found = lp_diff.load_and_compare_lp_baseline(str(golden), str(target))
    assert found == baseline


@pytest.mark.parametrize("family", FAMILIES)
def test_every_constraint_has_a_golden_file_and_a_formula(family: str) -> None:
    assert golden_file(family, relaxed=False).is_file()
    text = FAMILIES[family].__doc__
    assert text is not None
    assert "<=" in text or "=" in text


@pytest.mark.parametrize("slack", SLACKS.values(), ids=list(SLACKS))
def test_every_slack_names_a_constraint(slack: object) -> None:
    assert getattr(slack, "constraint", None) in FAMILIES


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {
        golden_file(family, relaxed).name for family, relaxed in CASES
    }


def test_every_row_of_an_option_is_a_constraint() -> None:
    """A row that the physics writes and the program leaves out would be unsafe."""
    model = build_model(inputs())
    names = {constraint.name for constraint in model.component_objects(pyo.Constraint)}
    assert set(ROWS) <= names
