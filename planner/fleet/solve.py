"""Solve the fleet program: relax, price, solve over the columns that can matter, read it out."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

import numpy as np
import pyomo.environ as pyo
from numpy.typing import NDArray

from planner.fleet.inputs import FleetInputs
from planner.fleet.model import Model, build_model
from planner.fleet.polish import polish
from planner.fleet.reduce import relaxation, without_implied_rows
from planner.fleet.solution import FleetSolution, exact_demand
from planner.fleet.solver import Outcome, SolveSettings, solve_model

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DIRECT_COLUMNS: Final = 600
"""Tables up to this size are solved at once."""
FIRST_COLUMNS: Final = 16
"""Options of least extra cost, per model and role, that the first program is solved over."""
LEAST_FLOW: Final = 1e-9
"""Requests/s below which a flow is round-off."""


def solve_fleet(
    inputs: FleetInputs, settings: SolveSettings, note: Callable[[str], None] = lambda text: None
) -> FleetSolution:
    """The cheapest fleet over all options of `inputs`, with a proven bound.

    The limit on pool kinds needs a binary per option and seldom binds, so it joins the program
    only when the fleet found without it breaks it. `note` receives a line per step. Raises
    SolverError, SolverUnavailableError.
    """
    started = time.monotonic()
    inputs = inputs.with_options([without_implied_rows(option) for option in inputs.options])
    free = replace(inputs, max_pool_kinds_per_model=None)
    search = _Search(free, settings, note, started)
    solution = polish(free, search.run())
    limit = inputs.max_pool_kinds_per_model
    if limit is not None and any(count > limit for count in _kinds(free, solution).values()):
        if solution.status == "interrupted":
            return search.without_fleet("interrupted", solution.bound_usd_per_hour)
        note(f"more than {limit} pool kinds for a model: solving again with the limit")
        solution = polish(inputs, _Search(inputs, settings, note, started).run())
    return solution


def _kinds(inputs: FleetInputs, solution: FleetSolution) -> Counter[str]:
    return Counter(inputs.by_name[name].model for name in solution.replicas)


class _Search:
    """One run: relaxation, prices, and the program over the columns that can matter."""

    def __init__(
        self,
        inputs: FleetInputs,
        settings: SolveSettings,
        note: Callable[[str], None],
        started: float,
    ) -> None:
        self.inputs = inputs
        self.settings = settings
        self.note = note
        self.started = started

    def run(self) -> FleetSolution:
        """The best fleet and its bound.

        The relaxation prices every option. A large table is first solved over the most
        promising ones; the cost found decides which others can still be in a better fleet.
        """
        inputs = self.inputs
        unserved = [k for k, names in inputs.prefilling.items() if not names]
        if any(max(inputs.demand[k]) > 0 for k in unserved):
            return self.without_fleet("infeasible", math.inf, len(inputs.options))
        model = build_model(inputs)
        relaxed = relaxation(model, inputs)
        if relaxed.outcome.status == "infeasible":
            return self.without_fleet("infeasible", math.inf, len(inputs.options))
        floor = relaxed.outcome.objective
        self.note(f"relaxation: ${floor:,.2f}/hour over {len(inputs.options)} options")
        branch_nodes = 0
        columns = len(inputs.options)
        if columns <= DIRECT_COLUMNS:
            outcome = solve_model(model, self._settings())
        else:
            chosen = _promising(inputs, relaxed.extra_usd_per_hour)
            model, outcome = self._over(chosen, None, floor)
            branch_nodes += outcome.nodes
            best = outcome.objective if outcome.has_incumbent else math.inf
            keep = np.flatnonzero(relaxed.extra_usd_per_hour <= (best - floor) * (1 + 1e-6))
            columns = len(chosen)
            if np.isin(keep, chosen).all():
                pass
            elif outcome.status == "interrupted":
                outcome = replace(outcome, bound=floor)
            else:
                self.note(f"first fleet: ${best:,.2f}/hour; {len(keep)} options can still matter")
                wide = np.union1d(keep, chosen)
                columns = len(wide)
                second_model, second = self._over(wide, _values(model, outcome), math.inf)
                if second.has_incumbent or not outcome.has_incumbent:
                    model, outcome = second_model, second
                else:
                    outcome = replace(outcome, bound=second.bound, status=second.status)
        return self._finish(model, outcome, floor, columns, branch_nodes)

    def _left_s(self) -> float | None:
        limit = self.settings.time_limit_s
        return None if limit is None else max(limit - (time.monotonic() - self.started), 0.0)

    def _settings(self) -> SolveSettings:
        return replace(self.settings, time_limit_s=self._left_s())

    def _over(
        self, columns: Ints, start: dict[str, float] | None, proven: float
    ) -> tuple[Model, Outcome]:
        """Solve over some options, from the values of an earlier fleet where there is one.

        Progress reports no bound above `proven`, which holds for all options.
        """
        chosen = [self.inputs.options[index] for index in columns.tolist()]
        model = build_model(self.inputs.with_options(chosen))
        if start is not None:
            for variable in model.component_data_objects(pyo.Var):
                variable.set_value(start.get(variable.name, 0.0), skip_validation=True)
        settings = self._settings()
        report = settings.progress
        if report is not None:
            settings = replace(
                settings,
                progress=lambda line: report(replace(line, bound=min(line.bound, proven))),
            )
        return model, solve_model(model, settings, start=start is not None)

    def _finish(
        self, model: Model, outcome: Outcome, floor: float, columns: int, branch_nodes: int
    ) -> FleetSolution:
        if outcome.status == "infeasible":
            return self.without_fleet("infeasible", math.inf, columns)
        bound = max(outcome.bound, floor) if math.isfinite(outcome.bound) else floor
        if not outcome.has_incumbent:
            status = "interrupted" if outcome.status == "interrupted" else "no_plan"
            return self.without_fleet(status, bound, columns)
        inputs = self.inputs
        replicas = _counts((p, variable) for (p, _), variable in model.replicas.items())
        nodes = _counts(model.nodes.items())
        flow = {
            (k, p): float(variable.value)
            for (k, p, _), variable in model.flow.items()
            if p in replicas and (variable.value or 0.0) > LEAST_FLOW
        }
        cost = math.fsum(
            inputs.used_offers[o].price_usd_per_node_hour * count for o, count in nodes.items()
        )
        bound = min(bound, cost)
        gap = (cost - bound) / max(cost, 1e-10)
        status = "optimal" if gap <= self.settings.gap_fraction + 1e-9 else "feasible"
        return FleetSolution(
            status="interrupted" if outcome.status == "interrupted" else status,
            cost_usd_per_hour=cost,
            bound_usd_per_hour=bound,
            replicas=replicas,
            flow=exact_demand(inputs, flow),
            nodes=nodes,
            relaxation_usd_per_hour=floor,
            columns=columns,
            branch_nodes=branch_nodes + outcome.nodes,
            elapsed_s=time.monotonic() - self.started,
            solver=outcome.solver,
        )

    def without_fleet(self, status: str, bound: float, columns: int = 0) -> FleetSolution:
        """An outcome without a plan."""
        elapsed = time.monotonic() - self.started
        solver = self.settings.solver
        return FleetSolution(
            status, math.inf, bound, {}, {}, {}, math.nan, columns, 0, elapsed, solver
        )


def _counts(variables: Iterable[tuple[str, pyo.Var]]) -> dict[str, int]:
    return {
        name: count for name, variable in variables if (count := round(variable.value or 0.0)) > 0
    }


def _promising(inputs: FleetInputs, extra: Floats) -> Ints:
    """Options of least extra cost in every model and role, in the order of the table."""
    taken: dict[tuple[str, str], int] = {}
    chosen = []
    for index in np.argsort(extra, kind="stable").tolist():
        option = inputs.options[index]
        key = (option.model, option.role)
        if taken.get(key, 0) < FIRST_COLUMNS:
            taken[key] = taken.get(key, 0) + 1
            chosen.append(index)
    return np.sort(np.array(chosen, dtype=np.int64))


def _values(model: Model, outcome: Outcome) -> dict[str, float] | None:
    if not outcome.has_incumbent:
        return None
    return {
        variable.name: float(variable.value or 0.0)
        for variable in model.component_data_objects(pyo.Var)
    }
