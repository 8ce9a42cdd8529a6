"""Plans that are easier to live with at the same price: fewer pools, evenly loaded.

The cheapest fleet is seldom unique. With its nodes kept, a first small program drops pools
that the others can do without, and a second, linear one routes so that the fullest pool of
each model has the most headroom. Neither changes the cost or the bound.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pyomo.environ as pyo
from pyomo.common.gc_manager import PauseGC

from planner.candidates.options import ROWS
from planner.fleet.inputs import FleetInputs
from planner.fleet.model import Model, build_model, conserve_kv, serve_demand
from planner.fleet.solution import FleetSolution, exact_demand
from planner.fleet.solver import EMBEDDED, SolveSettings, solve_model

TIME_LIMIT_S: Final = 3.0
"""Longest time for each of the two; without an answer the fleet stays as it is."""
ONE_POOL: Final = 0.02
"""Gap of the count of pools: less than one of up to fifty."""
USE_IDLE: Final = 1e-4
"""Weight of GPUs in use against pools: enough to break ties, too little to buy a pool."""


def polish(inputs: FleetInputs, solution: FleetSolution) -> FleetSolution:
    """The nodes that it needs with the fewest pools among the solution's own, evenly loaded."""
    if not solution.replicas:
        return solution
    used = inputs.with_options([inputs.by_name[name] for name in solution.replicas])
    # The first fleets that a search finds may rent nodes that none of their pools can stand on.
    nodes = {name: count for name, count in solution.nodes.items() if name in used.used_offers}
    solution = replace(solution, nodes=nodes)
    solution = _even_load(used, _fewest_pools(used, solution))
    return replace(solution, flow=exact_demand(used, solution.flow))


def _fewest_pools(inputs: FleetInputs, solution: FleetSolution) -> FleetSolution:
    """Minimise sum_p open[p]; among equals, use the GPUs that are paid for."""
    limited = replace(inputs, max_pool_kinds_per_model=len(inputs.options))
    model = build_model(limited)
    for offer, variable in model.nodes.items():
        variable.fix(solution.nodes.get(offer, 0))
    gpus = sum(
        inputs.used_offers[offer].gpus_per_node * count for offer, count in solution.nodes.items()
    )
    in_use = pyo.quicksum(
        inputs.by_name[p].gpus * variable for (p, _), variable in model.replicas.items()
    )
    model.objective.set_value(pyo.quicksum(model.open.values()) - USE_IDLE / max(gpus, 1) * in_use)
    if not solve_model(model, _settings(ONE_POOL)).has_incumbent:
        return solution
    replicas = {
        p: count
        for (p, _), variable in model.replicas.items()
        if (count := round(variable.value or 0.0)) > 0
    }
    return replace(solution, replicas=replicas, flow=_flows(model, replicas))


def _even_load(inputs: FleetInputs, solution: FleetSolution) -> FleetSolution:
    """Maximise, over the routing, the least headroom of each model's pools.

    use[r,p] <= n[p] (1 - headroom[m]) for every row, and the same for the capacity of prefill
    pools at their size.
    """
    names = [option.name for option in inputs.options if option.name in solution.replicas]
    part = inputs.with_options([inputs.by_name[name] for name in names])
    with PauseGC():
        m = pyo.ConcreteModel(name="routing")
        m.periods = pyo.Set(initialize=range(len(part.periods)), ordered=True)
        m.flows = pyo.Set(initialize=part.flows, ordered=True, dimen=2)
        m.flow = pyo.Var(m.flows, m.periods, domain=pyo.NonNegativeReals)
        m.headroom = pyo.Var(list(part.models), bounds=(0, 1))
        serve_demand(m, part)
        conserve_kv(m, part)

        def row(m: Model, p: str, r: int, t: int) -> object:
            option = part.by_name[p]
            if not option.coefficients[r, list(option.classes)].any():
                return pyo.Constraint.Skip
            use = pyo.quicksum(
                float(option.coefficients[r, k]) * m.flow[k, p, t] for k in option.classes
            )
            return use <= solution.replicas[p] * (1 - m.headroom[option.model])

        def load(m: Model, p: str, t: int) -> object:
            option = part.by_name[p]
            if option.capacity is None or option.service_s is None:
                return pyo.Constraint.Skip
            capacity = float(option.capacity.load(solution.replicas[p]))
            busy = pyo.quicksum(
                float(option.service_s[k]) * m.flow[k, p, t] for k in option.classes
            )
            return busy <= capacity * (1 - m.headroom[option.model])

        m.respect_rows = pyo.Constraint(names, range(len(ROWS)), m.periods, rule=row)
        m.respect_capacity = pyo.Constraint(names, m.periods, rule=load)
        m.objective = pyo.Objective(expr=-pyo.quicksum(m.headroom.values()))
    if not solve_model(m, _settings(gap_fraction=0.0)).has_incumbent:
        return solution
    return replace(solution, flow=_flows(m, solution.replicas))


def _settings(gap_fraction: float) -> SolveSettings:
    return SolveSettings(solver=EMBEDDED, gap_fraction=gap_fraction, time_limit_s=TIME_LIMIT_S)


def _flows(model: Model, replicas: dict[str, int]) -> dict[tuple[int, str], float]:
    return {
        (k, p): float(variable.value)
        for (k, p, _), variable in model.flow.items()
        if p in replicas and (variable.value or 0.0) > 0.0
    }
