from __future__ import annotations

import math
from collections.abc import Callable

import pyomo.environ as pyo
import pytest
import tiny

from planner.errors import SolverUnavailableError
from planner.fleet.model import build_model
from planner.fleet.solve import solve_fleet
from planner.fleet.solver import (
    Outcome,
    Program,
    Progress,
    SolveSettings,
    require_solver,
    solve_model,
)

EXACT = SolveSettings(gap_fraction=0.0)
OTHERS = ("cbc", "glpk", "scip", "scip_direct", "scip_persistent")


def knapsack(items: int = 30, capacity: float = 40.5) -> pyo.ConcreteModel:
    """Cover `capacity` at least cost with whole items: a small program with a gap to close."""
    m = pyo.ConcreteModel()
    m.take = pyo.Var(range(items), domain=pyo.NonNegativeIntegers, bounds=(0, 3))
    m.cover = pyo.Constraint(
        expr=pyo.quicksum((2.0 + i % 7) * m.take[i] for i in range(items)) >= capacity
    )
    m.objective = pyo.Objective(
        expr=pyo.quicksum((3.1 + 1.37 * (i % 7) + 0.01 * i) * m.take[i] for i in range(items))
    )
    return m


def unreachable() -> pyo.ConcreteModel:
    """No whole number lies between 1.2 and 1.8, though the relaxation is feasible."""
    m = pyo.ConcreteModel()
    m.x = pyo.Var(domain=pyo.NonNegativeIntegers, bounds=(0, 10))
    m.y = pyo.Var(domain=pyo.NonNegativeReals, bounds=(0, 1))
    m.low = pyo.Constraint(expr=5 * m.x + m.y >= 6 + m.y)
    m.high = pyo.Constraint(expr=5 * m.x + m.y <= 9)
    m.objective = pyo.Objective(expr=m.x + m.y)
    return m


def split_fleet() -> tiny.Document:
    """Two classes on two accelerators with every role: a small plan with choices."""
    return tiny.document(
        tiny.workload("chat", 70),
        tiny.workload("summaries", 10, input_tokens=3000),
        roles=("aggregated", "prefill", "decode"),
        offers=[tiny.offer(), tiny.offer("l40s", 1.1, 2)],
    )


def solved(model: pyo.ConcreteModel, settings: SolveSettings) -> Outcome:
    outcome = solve_model(model, settings)
    assert outcome.solver == settings.solver
    return outcome


class TestEmbedded:
    def test_optimal_with_a_bound_below_and_whole_numbers(self) -> None:
        model = knapsack()
        outcome = solved(model, EXACT)
        assert outcome.status == "optimal"
        assert outcome.has_incumbent
        assert outcome.bound <= outcome.objective * (1 + 1e-9)
        assert outcome.gap_fraction <= 1e-9
        assert outcome.objective == pytest.approx(pyo.value(model.objective), rel=1e-12)
        assert all(variable.value == round(variable.value) for variable in model.take.values())
        assert pyo.value(model.cover.body) >= 40.5

    def test_a_wide_gap_still_proves_its_bound(self) -> None:
        best = solved(knapsack(), EXACT).objective
        outcome = solved(knapsack(), SolveSettings(gap_fraction=0.3))
        assert outcome.status == "optimal"
        assert outcome.bound <= best * (1 + 1e-9)
        assert outcome.gap_fraction <= 0.3

    @pytest.mark.parametrize("capacity", [1e6, 1e9])
    def test_infeasible_relaxation(self, capacity: float) -> None:
        outcome = solved(knapsack(capacity=capacity), EXACT)
        assert outcome.status == "infeasible"
        assert not outcome.has_incumbent
        assert math.isnan(outcome.objective)
        assert outcome.gap_fraction == math.inf

    def test_infeasible_by_integrality(self) -> None:
        assert Program(unreachable()).relax()[0].status == "optimal"
        assert solved(unreachable(), EXACT).status == "infeasible"

    def test_no_time_means_no_plan_or_a_proven_one(self) -> None:
        """Presolve may end a program before the clock is read; nothing else may."""
        model = build_model(tiny.inputs(split_fleet()))
        outcome = solved(model, SolveSettings(gap_fraction=0.0, time_limit_s=0.0))
        assert outcome.status in ("time_limit", "optimal")
        if outcome.status == "time_limit" and not outcome.has_incumbent:
            assert outcome.gap_fraction == math.inf

    def test_a_warm_start_is_used_and_changes_nothing(self) -> None:
        seen: list[Progress] = []
        first = knapsack()
        best = solved(first, EXACT).objective
        again = knapsack()
        for index, variable in again.take.items():
            variable.set_value(first.take[index].value)
        outcome = solve_model(
            again, SolveSettings(gap_fraction=0.0, progress=seen.append), start=True
        )
        assert outcome.objective == pytest.approx(best, rel=1e-12)
        assert all(each.incumbent == pytest.approx(best, rel=1e-6) for each in seen)

    def test_a_useless_start_does_no_harm(self) -> None:
        model = knapsack()
        for variable in model.take.values():
            variable.set_value(0)
        outcome = solve_model(model, EXACT, start=True)
        assert outcome.objective == pytest.approx(solved(knapsack(), EXACT).objective, rel=1e-12)

    def test_duals_of_the_relaxation(self) -> None:
        """min 3x + 5y, x + y >= 4, x <= 3: optimum x=3, y=1; duals 5 and -2 by hand."""
        m = pyo.ConcreteModel()
        m.x = pyo.Var(domain=pyo.NonNegativeIntegers)
        m.y = pyo.Var(domain=pyo.NonNegativeReals)
        m.need = pyo.Constraint(expr=m.x + m.y >= 4)
        m.most = pyo.Constraint(expr=m.x <= 3)
        m.objective = pyo.Objective(expr=3 * m.x + 5 * m.y)
        outcome, duals = Program(m).relax()
        assert outcome.objective == pytest.approx(14.0)
        assert outcome.bound == outcome.objective
        assert duals[id(m.need)] == pytest.approx(5.0)
        assert duals[id(m.most)] == pytest.approx(-2.0)

    def test_the_same_program_twice_gives_the_same_fleet(self) -> None:
        inputs = tiny.inputs(split_fleet())
        first, second = (solve_fleet(inputs, EXACT) for _ in range(2))
        assert first.replicas == second.replicas
        assert first.flow == second.flow


def present(name: str) -> None:
    try:
        require_solver(name)
    except SolverUnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", OTHERS)
class TestOtherSolvers:
    def test_same_cost_and_a_bound_that_holds(self, name: str) -> None:
        present(name)
        inputs = tiny.inputs(split_fleet())
        ours = solve_fleet(inputs, EXACT)
        theirs = solve_fleet(
            inputs, SolveSettings(solver=name, gap_fraction=0.0, time_limit_s=60.0)
        )
        assert theirs.status == "optimal"
        assert theirs.cost_usd_per_hour == pytest.approx(ours.cost_usd_per_hour, rel=1e-6)
        assert theirs.bound_usd_per_hour <= ours.cost_usd_per_hour * (1 + 1e-6)
        assert theirs.solver == name

    @pytest.mark.parametrize("build", [lambda: knapsack(capacity=1e6), unreachable])
    def test_infeasible(self, name: str, build: Callable[[], pyo.ConcreteModel]) -> None:
        present(name)
        outcome = solved(build(), SolveSettings(solver=name, gap_fraction=0.0))
        assert outcome.status == "infeasible"
        assert not outcome.has_incumbent

    def test_a_gap_is_kept_and_its_bound_is_true(self, name: str) -> None:
        present(name)
        best = solved(knapsack(), EXACT).objective
        outcome = solved(knapsack(), SolveSettings(solver=name, gap_fraction=0.2))
        assert outcome.status == "optimal"
        assert outcome.bound <= best * (1 + 1e-6)
        assert outcome.gap_fraction <= 0.2 + 1e-9

    def test_a_plan_is_verified_like_any_other(self, name: str) -> None:
        present(name)
        content = split_fleet()
        plan = tiny.solve(content, solver=name)
        assert plan.status == "optimal"
        assert tiny.verified(plan, content).sound


def test_an_absent_solver_names_those_present() -> None:
    with pytest.raises(SolverUnavailableError, match=r"'nosuch' cannot .* here: highs") as caught:
        require_solver("nosuch")
    assert caught.value.exit_code == 2
    with pytest.raises(SolverUnavailableError):
        tiny.solve(tiny.document(), solver="nosuch")
    with pytest.raises(SolverUnavailableError):
        solve_model(knapsack(), SolveSettings(solver="nosuch"))


def test_the_embedded_solver_is_always_there() -> None:
    require_solver("highs")
