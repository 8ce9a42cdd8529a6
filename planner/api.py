"""The Python API: load an instance, solve it, get a plan. The command line does the same.

import planner

plan = planner.solve(planner.load("instances/enterprise.yaml"))
print(plan.status, plan.cost_usd_per_hour)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from planner.assemble import (
    class_plans,
    fleet_pools,
    fleet_rules,
    node_plans,
    pool_plans,
    provenance,
    search_plan,
)
from planner.candidates.build import build_candidates
from planner.candidates.options import PoolOption
from planner.candidates.promises import NO_MARGINS, Margins
from planner.diagnose import conflicts
from planner.errors import SolverError
from planner.evaluation import Evaluation, Optimum
from planner.fleet.inputs import FleetInputs
from planner.fleet.solution import FleetSolution
from planner.fleet.solve import solve_fleet
from planner.fleet.solver import Progress, SolveSettings, require_solver
from planner.given.evaluate import evaluate_fleet
from planner.given.fleet import fleet_of_plan
from planner.perf.backend import GLOBAL_CONSTANTS, RooflineBackend
from planner.perf.constants import load_constants
from planner.plan import Plan
from planner.pricing.attribution import pool_costs
from planner.problem import Problem, build_problem
from planner.schema import fleet_file
from planner.schema.fleet_file import GivenFleet
from planner.schema.instance import Instance
from planner.schema.load import load_instance
from planner.schema.yaml_positions import read_text_file
from planner.units import HOURS_PER_MONTH
from planner.verify import FleetPool, Verification, verify

if TYPE_CHECKING:
    from planner.simulate.records import SimulationSettings
    from planner.simulate.summary import Simulation

TIGHTENINGS: Final = 3
"""Times that a fleet failing verification is solved again with tighter rows before giving up."""
TIGHTENING: Final = 1.002

ROUTERS: Final[Mapping[str, str]] = {
    "shared_queue": "Requests of a pool wait in one queue, from which its replicas take the next.",
    "queued_tokens": "The router sends each request to the replica of its pool with the fewest "
    "tokens queued; one that counts requests, or takes turns, needs more replicas "
    "(routing: least_outstanding, round_robin).",
    "least_outstanding": "The router sends each request to the replica with the fewest requests.",
    "prefix_affine": "The router sends each request to the replica that may hold its prefix, "
    "however long its queue.",
    "round_robin": "The router sends requests to the replicas of a pool in turn.",
    "random": "The router sends each request to a replica of its pool at random.",
}
"""What each routing policy asks of whoever runs the fleet, a sentence each."""

Note = Callable[[str], None]


def load(path: str | Path) -> Instance:
    """Read an instance file. Raises InputError with every mistake in it."""
    return load_instance(path)


def solve(
    instance: Instance,
    *,
    gap_fraction: float | None = None,
    time_limit_s: float | None = None,
    solver: str = "highs",
    refinement: int = 0,
    margins: Margins = NO_MARGINS,
    progress: Callable[[Progress], None] | None = None,
    note: Note = lambda text: None,
) -> Plan:
    """The cheapest fleet for an instance, verified, with the bound that was proven.

    `gap_fraction` and `time_limit_s` default to the instance's objective; `refinement` 1
    doubles the points at which frontiers of shared pools are taken; `margins` keep the formulas
    below the limits by what a simulation found. `progress` receives the solver's log, `note` a
    line per step. Raises InputError, SolverUnavailableError, SolverError.
    """
    require_solver(solver)
    problem = build_problem(instance)
    settings = SolveSettings(
        solver=solver,
        gap_fraction=instance.objective.gap if gap_fraction is None else gap_fraction,
        time_limit_s=instance.objective.time_limit_s if time_limit_s is None else time_limit_s,
        progress=progress,
    )
    started = time.monotonic()
    count = len(problem.classes)
    note(f"enumerating options for {count} workload{'' if count == 1 else 's'}")
    table = build_candidates(problem.request(refinement, margins))
    enumeration_s = time.monotonic() - started
    note(
        f"{table.enumerated} options of {table.configurations} configurations, "
        f"{len(table)} undominated ({enumeration_s:.1f} s)"
    )
    inputs = problem.inputs().with_options(table.options)
    solution, pools, check = _verified_fleet(problem, inputs, settings, note)
    search = search_plan(table, solution, enumeration_s, settings)
    if not solution.replicas:
        return Plan(
            name=instance.name,
            status=solution.status,  # type: ignore[arg-type]  # statuses of a run without a fleet
            bound_usd_per_hour=_finite(solution.bound_usd_per_hour),
            conflicts=(
                conflicts(problem, table, inputs, settings)
                if solution.status == "infeasible"
                else ()
            ),
            refusals=table.refusals,
            assumptions=problem.assumptions,
            search=search,
            provenance=provenance(problem, (), {}),
        )
    assert check is not None
    costs = pool_costs(pools, solution.nodes, {offer.id: offer for offer in problem.offers})
    return Plan(
        name=instance.name,
        status=solution.status,  # type: ignore[arg-type]  # statuses of a run with a fleet
        cost_usd_per_hour=check.cost_usd_per_hour,
        cost_usd_per_month=check.cost_usd_per_hour * HOURS_PER_MONTH,
        bound_usd_per_hour=solution.bound_usd_per_hour,
        # Of the cost as re-evaluated: nodes that no pool stands on are given back.
        gap_fraction=replace(solution, cost_usd_per_hour=check.cost_usd_per_hour).gap_fraction,
        pools=pool_plans(problem, pools, check, costs, margins),
        classes=class_plans(problem, pools, check, costs),
        nodes=node_plans(problem, pools, solution.nodes),
        refusals=table.refusals,
        assumptions=problem.assumptions + _model_assumptions(problem, pools),
        warnings=check.warnings + _extrapolations(problem, pools) + _without_effect(problem, pools),
        search=search,
        provenance=provenance(problem, pools, solution.nodes),
    )


def solve_and_simulate(
    instance: Instance,
    *,
    seed: int = 0,
    gap_fraction: float | None = None,
    time_limit_s: float | None = None,
    solver: str = "highs",
    progress: Callable[[Progress], None] | None = None,
    simulated: Callable[[float, str], None] = lambda fraction, what: None,
    note: Note = lambda text: None,
) -> Plan:
    """As `solve`, but the plan is simulated, and solved again with margins on the formulas where
    the simulation is slower, until it keeps every promise. `plan.rounds` shows each round.

    `simulated` receives the share that is done of a simulation. A plan whose last round still
    misses a promise says so in its warnings. Raises as `solve` does.
    """
    from planner.study import tighten

    def solved(margins: Margins) -> Plan:
        return solve(
            instance,
            gap_fraction=gap_fraction,
            time_limit_s=time_limit_s,
            solver=solver,
            margins=margins,
            progress=progress,
            note=note,
        )

    return tighten.solve_and_simulate(solved, seed=seed, progress=simulated, note=note)


def load_fleet(path: str | Path, instance: Instance) -> GivenFleet:
    """Read a fleet file, or the plan.json of an earlier plan, for an instance.

    Raises InputError with every mistake in it.
    """
    if Path(path).suffix.lower() != ".json":
        return fleet_file.load_fleet(path, instance)
    plan = Plan.from_json(read_text_file(path), str(path))
    return fleet_of_plan(plan, str(path), instance)


def evaluate(
    instance: Instance,
    fleet: GivenFleet | str | Path,
    *,
    reroute: bool = False,
    optimum: bool = True,
    progress: Callable[[Progress], None] | None = None,
    note: Note = lambda text: None,
) -> Evaluation:
    """Price and check a given fleet, find its largest load, and set the cheapest fleet beside it.

    `reroute` looks for the routing even where the fleet has one. Raises InputError, SolverError.
    """
    given = fleet if isinstance(fleet, GivenFleet) else load_fleet(fleet, instance)
    found = evaluate_fleet(instance, given, reroute=reroute, note=note)
    assumptions = (*found.assumptions, *_model_assumptions(build_problem(instance), ()))
    cheapest = None
    warnings = found.warnings
    if optimum:
        note("looking for the cheapest fleet")
        plan = solve(instance, progress=progress, note=note)
        cheapest = _optimum(plan, found.cost_usd_per_hour)
        if cheapest is None:
            text = f"There is no cheapest fleet to compare with: the search ended {plan.status}."
            warnings = (*warnings, text.replace("_", " "))
    return found.model_copy(
        update={"assumptions": assumptions, "optimum": cheapest, "warnings": warnings}
    )


def simulate_plan(
    plan: Plan | str | Path,
    settings: SimulationSettings | None = None,
    progress: Callable[[float, str], None] = lambda fraction, what: None,
) -> Simulation:
    """Simulate a plan, or a plan.json, request by request, and say what every class got.

    `progress` receives the share that is done, 0 to 1, and what is being done. Raises InputError
    where the plan has no fleet, or the settings cannot be. (Not called `simulate`, which is the
    package behind it.)
    """
    from planner.embedded import embedded_plan
    from planner.simulate.carry_out import carry_out
    from planner.simulate.records import SimulationSettings

    file = "<plan>" if isinstance(plan, Plan) else str(plan)
    found = plan if isinstance(plan, Plan) else Plan.from_json(read_text_file(plan), file)
    asked = settings or SimulationSettings()
    return carry_out(embedded_plan(found, file), asked, progress).simulation


def _optimum(plan: Plan, cost_usd_per_hour: float) -> Optimum | None:
    if plan.cost_usd_per_hour is None or plan.bound_usd_per_hour is None:
        return None
    return Optimum(
        status=plan.status,
        cost_usd_per_hour=plan.cost_usd_per_hour,
        bound_usd_per_hour=plan.bound_usd_per_hour,
        gap_fraction=plan.gap_fraction or 0.0,
        saving_usd_per_hour=cost_usd_per_hour - plan.cost_usd_per_hour,
    )


def _verified_fleet(
    problem: Problem, inputs: FleetInputs, settings: SolveSettings, note: Note
) -> tuple[FleetSolution, list[FleetPool], Verification | None]:
    """Solve, re-evaluate, and where the full model finds a broken promise solve again tighter.

    The bound of the first solve stays the proven one. Raises SolverError when the fleet still
    breaks a promise after `TIGHTENINGS` tries: such a plan is never returned.
    """
    first: FleetSolution | None = None
    tightened: dict[str, float] = {}
    started = time.monotonic()
    for _ in range(TIGHTENINGS + 1):
        tight = [_tighter(option, tightened.get(option.name, 1.0)) for option in inputs.options]
        limit = settings.time_limit_s
        if limit is not None:
            settings = replace(settings, time_limit_s=max(limit - time.monotonic() + started, 0.0))
            started = time.monotonic()
        solution = solve_fleet(inputs.with_options(tight), settings, note)
        if not solution.replicas:
            if first is None or solution.status == "interrupted":
                return solution, [], None
            # Rows tighter than the promises left no fleet; that says nothing of the instance.
            break
        first = first or solution
        solution = replace(solution, bound_usd_per_hour=first.bound_usd_per_hour)
        pools = fleet_pools(problem, inputs.by_name, solution)
        check = verify(problem.classes, list(pools.values()), solution.nodes, fleet_rules(problem))
        if check.sound:
            if tightened and solution.status == "optimal":
                within = solution.gap_fraction <= settings.gap_fraction + 1e-9
                solution = replace(solution, status="optimal" if within else "feasible")
            return solution, list(pools.values()), check
        if solution.status == "interrupted":
            nothing = replace(solution, replicas={}, flow={}, nodes={}, cost_usd_per_hour=math.inf)
            return nothing, [], None
        note("the full model finds " + "; ".join(check.violations) + ": solving again, tighter")
        for name in solution.replicas:
            tightened[name] = tightened.get(name, 1.0) * TIGHTENING
    raise SolverError(
        "the fleet found breaks a promise when re-evaluated: " + "; ".join(check.violations)
    )


def _tighter(option: PoolOption, factor: float) -> PoolOption:
    if factor == 1.0:
        return option
    service = None if option.service_s is None else option.service_s * factor
    return replace(option, coefficients=option.coefficients * factor, service_s=service)


def _model_assumptions(problem: Problem, pools: Sequence[FleetPool]) -> tuple[str, ...]:
    """What the performance model takes for granted, in sentences for the reader of the plan."""
    sentences = [
        "Room in the KV cache and in the batch is kept for 99 % of the time, as the number of "
        "requests in flight fluctuates."
    ]
    routings = {served.engine.routing for served in problem.models}
    sentences += [ROUTERS[routing] for routing in sorted(routings)]
    sentences.append("Decode pools spread requests evenly; who comes when is independent.")
    small = {
        pool.config.accelerator.id
        for pool in pools
        if pool.role != "aggregated"
        and pool.gpus_per_node < pool.config.accelerator.usual_node_size
    }
    if small:
        sentences.append(
            f"Nodes with fewer {', '.join(sorted(small))} than usual are taken to have the usual "
            "network bandwidth per GPU, over which KV caches move."
        )
    return tuple(dict.fromkeys(sentences))


def _extrapolations(problem: Problem, pools: Sequence[FleetPool]) -> tuple[str, ...]:
    """A warning for accelerators on which no deployment behind the constants was measured."""
    constants = load_constants()
    used = {
        pool.config.accelerator.id
        for pool in pools
        if problem.backend.source_of(pool.config).startswith(GLOBAL_CONSTANTS)
    }
    beyond = sorted(used - set(constants.accelerators))
    if not beyond:
        return ()
    return (
        f"The constants of the performance model were fitted on {', '.join(constants.accelerators)}"
        f" only; for {', '.join(beyond)} the predictions are extrapolations, and their bands those "
        "of published results on other accelerators.",
    )


def _without_effect(problem: Problem, pools: Sequence[FleetPool]) -> tuple[str, ...]:
    """A warning for each calibration file that none of the plan's pools was measured in."""
    backend = problem.backend
    if not isinstance(backend, RooflineBackend):
        return ()
    unused = backend.corrections.without_effect(pool.config for pool in pools)
    return tuple(
        f"{name} corrects no pool of this plan: what was measured in it is another model, "
        "accelerator, engine, precision or layout than the plan uses."
        for name in unused
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
