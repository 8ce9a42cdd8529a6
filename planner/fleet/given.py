"""The program for a fleet that stands already: the largest demand that its replicas can carry.

It has the constraint families of `planner.fleet.model`, with the replicas of each pool given,
and the demand multiplied by a factor that is maximised. A pool's replicas may be divided between
the sets of classes that options are made for, as if it were several pools of one kind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import numpy as np
import pyomo.environ as pyo
from numpy.typing import NDArray

from planner.candidates.options import PoolOption
from planner.errors import SolverError
from planner.fleet.inputs import FleetInputs
from planner.fleet.model import Model, build_model
from planner.fleet.solution import exact_demand
from planner.fleet.solve import LEAST_FLOW
from planner.fleet.solver import SolveSettings, solve_model

Floats = NDArray[np.float64]

DIVISION_COST: Final = 1e-4
"""A pool is divided further only if that raises the factor by more than this."""
REPLACED: Final = ("serve_demand", "fit_nodes", "objective")
"""Parts of the fleet program that a given fleet has in another form, or not at all."""


@dataclass(frozen=True)
class GivenInputs(FleetInputs):
    """A fleet problem whose options are ways to run the replicas of given pools."""

    pool_of: Mapping[str, int] = field(default_factory=dict)
    """Index of the pool that each option is a way to run, by option name."""
    pool_replicas: tuple[int, ...] = ()

    @cached_property
    def replica_limits(self) -> dict[str, int]:
        """Most replicas of each option: those of its pool, whatever the demand."""
        return {name: self.pool_replicas[pool] for name, pool in self.pool_of.items()}

    @cached_property
    def ways(self) -> dict[int, list[str]]:
        """Options of each pool that has any."""
        found: dict[int, list[str]] = {}
        for option in self.options:
            found.setdefault(self.pool_of[option.name], []).append(option.name)
        return found


@dataclass(frozen=True, slots=True)
class Carried:
    """The largest load found: its factor, and how the replicas are divided to carry it."""

    factor: float
    replicas: dict[str, int]
    """By option name."""
    flow: dict[tuple[int, str], float]
    """Requests/s by class index and option name, scaled to the demand itself."""


def largest_load(
    inputs: GivenInputs,
    growing: Collection[int],
    held: Mapping[int, float],
    settings: SolveSettings,
) -> Carried:
    """Maximise the factor on the demand of the classes `growing`.

    The classes in `held` are served at that factor of their demand; all others not at all. The
    factor found is safe, and the largest that the rows of the options admit. Raises SolverError
    when what is held cannot be carried.
    """
    if not growing:
        return Carried(0.0, {}, {})
    model = build_growth_model(inputs, growing, held)
    outcome = solve_model(model, settings)
    if not outcome.has_incumbent:
        raise SolverError(f"no load was found that the fleet carries ({outcome.status})")
    replicas = {p: count for p in model.options if (count := round(model.replicas[p, 0].value))}
    flow = {
        (k, p): float(variable.value)
        for (k, p, _), variable in model.flow.items()
        if p in replicas and (variable.value or 0.0) > LEAST_FLOW
    }
    return Carried(float(model.factor.value), replicas, exact_demand(inputs, flow))


def build_growth_model(
    inputs: GivenInputs, growing: Collection[int], held: Mapping[int, float]
) -> Model:
    """The fleet program with given replicas and growing demand; see the functions below."""
    none = tuple((0.0,) * len(rates) for rates in inputs.demand)
    m = build_model(replace(inputs, demand=none))
    for name in REPLACED:
        m.del_component(name)
    m.factor = pyo.Var(domain=pyo.NonNegativeReals)
    grow_demand(m, inputs, growing, held)
    use_every_replica(m, inputs)
    divide_pools(m, inputs)
    divided = pyo.quicksum(m.used.values())
    m.objective = pyo.Objective(expr=DIVISION_COST * divided - m.factor, sense=pyo.minimize)
    return m


def grow_demand(
    m: Model, inputs: GivenInputs, growing: Collection[int], held: Mapping[int, float]
) -> None:
    r"""sum_p x[k,p,t] = factor lambda[k,t] for growing classes, held[k] lambda[k,t] for others."""

    def rule(m: Model, k: int, t: int) -> object:
        names = inputs.prefilling[k]
        if not names:
            return pyo.Constraint.Feasible
        share = m.factor if k in growing else held.get(k, 0.0)
        return pyo.quicksum(m.flow[k, p, t] for p in names) == inputs.demand[k][t] * share

    m.grow_demand = pyo.Constraint(range(len(inputs.classes)), m.periods, rule=rule)


def use_every_replica(m: Model, inputs: GivenInputs) -> None:
    r"""The options of a pool share all its replicas: sum_{p of pool i} n[p,t] = replicas[i]."""

    def rule(m: Model, pool: int, t: int) -> object:
        shared = pyo.quicksum(m.replicas[p, t] for p in inputs.ways[pool])
        return shared == inputs.pool_replicas[pool]

    m.use_every_replica = pyo.Constraint(list(inputs.ways), m.periods, rule=rule)


def divide_pools(m: Model, inputs: GivenInputs) -> None:
    r"""Which options a pool is divided into: n[p,t] <= replicas[i] used[p]."""
    m.used = pyo.Var(m.options, domain=pyo.Binary)

    def rule(m: Model, p: str, t: int) -> object:
        return m.replicas[p, t] <= inputs.replica_limits[p] * m.used[p]

    m.divide_pools = pyo.Constraint(m.options, m.periods, rule=rule)


def widened(option: PoolOption, classes: Collection[int], count: int, name: str) -> PoolOption:
    """An option made for some classes, in terms of all `count` classes, under another name.

    `classes` are the indices among all of those that the option was made for, in order.
    """
    places = np.array(tuple(classes))

    def spread(values: Floats) -> Floats:
        wide = np.full((*values.shape[:-1], count), np.inf)
        wide[..., places] = values
        return wide

    return replace(
        option,
        name=name,
        classes=tuple(int(places[k]) for k in option.classes),
        coefficients=spread(option.coefficients),
        service_s=None if option.service_s is None else spread(option.service_s),
    )
