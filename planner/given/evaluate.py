"""From a given fleet to its evaluation: price, routing, largest load, and all that it breaks.

Where the file says which requests go where, exactly that is evaluated by `planner.verify`.
Otherwise the routing is found: every option that the pools allow (all class sets) goes into the
program of `planner.fleet.given`, which finds the largest factor on the demand of a model, and
the routing of that load is scaled to the demand. In both cases the load factor is then the
largest one that the full model confirms for the routing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np

from planner import catalog
from planner.assemble import class_plans, fleet_rules, node_plans, pool_plans, provenance
from planner.evaluation import ClassEvaluation, Evaluation, Limit
from planner.fleet.given import Carried, GivenInputs, largest_load
from planner.fleet.solver import SolveSettings
from planner.given.fleet import Pool, fewest_nodes, pool_of
from planner.given.loads import LEAST_FACTOR, PRECISION, Loads, grown_pool, is_finite, tightest
from planner.given.ways import Ways, model_inputs, parts_of, ways_of
from planner.pricing.attribution import pool_costs
from planner.problem import allowed_offers, build_problem
from planner.schema.fleet_file import GivenFleet
from planner.schema.instance import Instance
from planner.units import HOURS_PER_MONTH
from planner.verify import FleetPool, Verification, verify
from planner.workload.classes import WorkloadClass

SETTINGS: Final = SolveSettings(gap_fraction=1e-6, time_limit_s=30.0)
"""Of the programs of given fleets, which are small."""
FOUND: Final = (
    "No routing is given, so the one that carries most was looked for, over options that keep "
    "every promise whatever the mix of their workloads; a better one may exist."
)

AT_REST: Final = 1e-6
"""Share of the demand that stands for no load."""

Note = Callable[[str], None]
Shown = Literal["demand", "carried load"]


def evaluate_fleet(
    instance: Instance,
    fleet: GivenFleet,
    *,
    reroute: bool = False,
    note: Note = lambda text: None,
) -> Evaluation:
    """Price and check a fleet whose names are resolved (`load_fleet`, `fleet_of_plan`).

    With `reroute` the routing is found even where the fleet has one. To carry more, a pool's
    replicas may then be divided between sets of classes: such a pool is shown in parts, with a
    warning. Raises InputError, SolverError.
    """
    return _Evaluator(instance, fleet, reroute, note).run()


class _Evaluator:
    def __init__(self, instance: Instance, fleet: GivenFleet, reroute: bool, note: Note) -> None:
        problem = build_problem(instance)
        allowed = {offer.id: offer for offer in allowed_offers(instance)}
        # Offers that the instance does not allow still have a price.
        offers = {**catalog.offers(), **allowed}
        served = {each.card.id: each for each in problem.models}
        self.fleet = fleet
        self.note = note
        self.problem = replace(problem, offers=tuple(offers.values()))
        self.models = list(served)
        self.allowed = frozenset(allowed)
        self.pools = [pool_of(given, served[given.model]) for given in fleet.pools]
        if fleet.nodes is None:
            self.nodes = fewest_nodes(self.pools, offers, self.allowed)
        else:
            self.nodes = {name: count for name, count in fleet.nodes.items() if count}
        self.found = reroute or not fleet.routed
        self.violations: list[str] = []
        self.warnings: list[str] = []
        self.peaks: dict[str, float] = {}
        """Largest factor on the routing, by model."""
        self.factors: dict[str, float] = {}
        """Largest factor on the demand, by model: 0 where a class is not served at all."""
        self.margins: dict[str, float] = {}
        """Largest factor on the demand of a class alone."""
        self.unserved: set[str] = set()
        """Classes that no pool can serve, and of which that is told."""

    def run(self) -> Evaluation:
        self._flaws()
        parts = self._found_parts() if self.found else self._given_parts()
        rules = replace(fleet_rules(self.problem), max_pool_kinds_per_model=None)
        classes = self.problem.classes
        with np.errstate(all="ignore"):
            check = verify(classes, parts, self.nodes, rules)
        self.violations += _told(check, parts, self.unserved)
        loads = {model: Loads(self.problem, parts, model) for model in self.models}
        factor = min(self.factors.values())
        if check.sound and not self.violations:
            factor = max(factor, 1.0)
        binding = self._binding(loads)
        if factor < 1 - PRECISION:
            self.violations.insert(0, _shortfall(factor, binding))
        growth = self._shown(loads)
        pools = [grown_pool(pool, growth) for pool in parts]
        shown = verify(classes, pools, self.nodes, rules)
        kept = check.sound and not self.violations
        return self._evaluation(
            pools,
            shown,
            status="meets" if kept else "fails",
            load_factor=factor,
            binding=binding,
            shown_at="demand" if set(growth.values()) == {1.0} else "carried load",
        )

    def _flaws(self) -> None:
        """What is wrong with the fleet whatever its load."""
        for pool in self.pools:
            if pool.flaw is not None:
                self.violations.append(f"{pool.id}: {pool.flaw}")
        for offer in self.nodes:
            if offer not in self.allowed:
                self.violations.append(f"{offer}: the instance does not allow this offer")
        most = self.problem.instance.fleet.max_pool_kinds_per_model
        for model in self.models:
            kinds = sum(pool.given.model == model for pool in self.pools)
            if kinds > most:
                self.violations.append(f"{model}: {kinds} kinds of pool, {most} allowed")

    # ---- a routing that is given ---------------------------------------------------------------

    def _given_parts(self) -> list[FleetPool]:
        parts = []
        for pool in self.pools:
            routed = {} if pool.flaw else pool.given.requests_per_s or {}
            sent = {name: rate for name, rate in routed.items() if rate > 0}
            parts.append(pool.part("", pool.given.replicas, sent))
        for model in self.models:
            self.note(f"looking for the largest load of {model}")
            self._given_factors(model, Loads(self.problem, parts, model))
        return parts

    def _given_factors(self, model: str, load: Loads) -> None:
        served = {
            workload.name: math.fsum(
                pool.requests_per_s.get(workload.name, 0.0)
                for pool in load.pools
                if pool.role != "decode"
            )
            / workload.rate_per_s[0]
            for workload in load.classes
        }
        peak = load.largest(1.0)
        self.peaks[model] = peak
        self.factors[model] = peak * min(served.values())
        for name, share in served.items():
            alone = peak
            if len(served) > 1 and share > 0:
                alone = load.largest(max(peak, 1.0), min(peak, 1.0), name)
            self.margins[name] = max(alone, peak) * share

    # ---- a routing that is found ---------------------------------------------------------------

    def _found_parts(self) -> list[FleetPool]:
        ways = ways_of(self.problem, self.pools)
        self.note(f"{len(ways.options)} ways to run {len(self.pools)} pools")
        inputs = {
            model: model_inputs(self.problem, self.pools, ways, model) for model in self.models
        }
        carried: dict[str, Carried] = {}
        for model in self.models:
            self.note(f"looking for the largest load of {model}")
            growing = inputs[model].servable
            carried[model] = largest_load(inputs[model], growing, {}, SETTINGS)
        parts = parts_of(self.problem, self.pools, ways, list(carried.values()))
        for model in self.models:
            load = Loads(self.problem, parts, model)
            self._found_factors(model, inputs[model], carried[model], load)
        for k, workload in enumerate(self.problem.classes):
            if k not in inputs[workload.model].servable:
                self.violations.append(self._why_unserved(workload, ways))
                self.unserved.add(workload.name)
        self._useless(ways)
        self._divided(parts)
        return parts

    def _found_factors(
        self, model: str, inputs: GivenInputs, carried: Carried, load: Loads
    ) -> None:
        growing = inputs.servable
        mine = [k for k, each in enumerate(self.problem.classes) if each.model == model]
        peak = load.largest(carried.factor) if carried.factor >= LEAST_FACTOR else 0.0
        self.peaks[model] = peak
        self.factors[model] = peak if growing.issuperset(mine) else 0.0
        others = min(1.0, carried.factor * (1 - PRECISION))
        for k in mine:
            alone = peak if k in growing else 0.0
            if k in growing and len(growing) > 1:
                held = {other: others for other in growing if other != k}
                alone = max(peak, largest_load(inputs, [k], held, SETTINGS).factor)
            self.margins[self.problem.classes[k].name] = alone

    def _why_unserved(self, workload: WorkloadClass, ways: Ways) -> str:
        text = f"{workload.name}: no pool of the fleet can serve it"
        reasons = []
        for pool, refusals in zip(self.pools, ways.refusals, strict=True):
            told = self._missed_at_rest(pool, workload) or refusals.get(workload.name, {})
            reasons += [f"{reason} in {pool.id}" for reason in told]
        if reasons:
            return f"{text}: {'; '.join(reasons)}"
        if all(pool.given.model != workload.model for pool in self.pools):
            return f"{text}: none serves {workload.model}"
        return f"{text}: it needs prefill and decode pools that can pass a KV cache on"

    def _missed_at_rest(self, pool: Pool, workload: WorkloadClass) -> list[str]:
        """Promises to a class that a pool breaks whatever its load."""
        if pool.flaw is not None or pool.given.model != workload.model:
            return []
        faint = {workload.name: AT_REST * workload.rate_per_s[0]}
        part = pool.part("", pool.given.replicas, faint)
        states = verify([workload], [part], {}, fleet_rules(self.problem)).slos[workload.name]
        return [
            f"{state.slo} takes {state.predicted_s * 1e3:,.1f} ms even without load"
            for state in states
            if not state.kept
        ]

    def _useless(self, ways: Ways) -> None:
        """Warn of pools that no class can use."""
        used = set(ways.pool_of.values())
        for index, pool in enumerate(self.pools):
            if index not in used and pool.flaw is None:
                self.warnings.append(f"{pool.id}: can serve no workload")

    def _divided(self, parts: Sequence[FleetPool]) -> None:
        """Warn of pools that carry their load only in parts."""
        for pool in self.pools:
            mine = [part for part in parts if part.id.startswith(f"{pool.id}.")]
            if len(mine) > 1:
                listed = ", ".join(
                    f"{part.replicas} for {' and '.join(part.requests_per_s)}" for part in mine
                )
                self.warnings.append(
                    f"{pool.id}: its replicas are divided ({listed}); a router must keep the "
                    "requests of these apart"
                )

    # ---- the answer ----------------------------------------------------------------------------

    def _binding(self, loads: Mapping[str, Loads]) -> Limit | None:
        """What is tightest at the largest load, in the model that carries least."""
        model = min(self.models, key=lambda each: self.factors[each])
        peak = self.peaks[model]
        # At no load at all, the limits that are broken show at the least.
        return tightest(loads[model].at(max(peak, LEAST_FACTOR))) if loads[model].routed else None

    def _shown(self, loads: Mapping[str, Loads]) -> dict[str, float]:
        """Factor on the routing at which each class is shown: 1 unless a queue has no end there."""
        growth: dict[str, float] = {}
        for model, load in loads.items():
            factor = 1.0 if is_finite(load.at(1.0)) else min(self.peaks[model], 1.0)
            growth |= {workload.name: factor for workload in load.classes}
        return growth

    def _evaluation(
        self,
        pools: Sequence[FleetPool],
        shown: Verification,
        *,
        status: Literal["meets", "fails"],
        load_factor: float,
        binding: Limit | None,
        shown_at: Shown,
    ) -> Evaluation:
        offers = {offer.id: offer for offer in self.problem.offers}
        costs = pool_costs(pools, self.nodes, offers)
        classes = []
        for each in class_plans(self.problem, pools, shown, costs):
            fields = {name: getattr(each, name) for name in type(each).model_fields}
            if not each.served_by:
                fields["slos"] = ()
            classes.append(ClassEvaluation(**fields, load_factor=self.margins[each.name]))
        assumptions = self.problem.assumptions
        return Evaluation(
            name=self.problem.instance.name,
            fleet=self.fleet.name or "fleet",
            status=status,
            cost_usd_per_hour=shown.cost_usd_per_hour,
            cost_usd_per_month=shown.cost_usd_per_hour * HOURS_PER_MONTH,
            load_factor=load_factor,
            binding=binding,
            routing="found" if self.found else "given",
            shown_at=shown_at,
            pools=pool_plans(self.problem, pools, shown, costs),
            classes=tuple(classes),
            nodes=node_plans(self.problem, pools, self.nodes),
            violations=tuple(dict.fromkeys(self.violations)),
            warnings=tuple(dict.fromkeys([*self.warnings, *shown.warnings])),
            assumptions=(*assumptions, FOUND) if self.found else assumptions,
            provenance=provenance(self.problem, pools, self.nodes),
        )


def _shortfall(factor: float, binding: Limit | None) -> str:
    if factor == 0 or binding is None:
        return "the fleet does not carry the demand, nor any part of all of it"
    limit = binding.limit.replace("_", " ")
    return (
        f"the fleet carries only {factor:.4g} of the demand: {limit} of {binding.where} is "
        "reached first"
    )


def _told(check: Verification, parts: Sequence[FleetPool], unserved: Collection[str]) -> list[str]:
    """The violations worth telling: where a pool is overloaded, the pool and not every latency;
    nothing more of classes that are not served at all.
    """
    overloaded = [
        part
        for part in parts
        if not all(map(math.isfinite, check.pools[part.id].pressure.values()))
    ]
    waiting = {name for part in overloaded for name in part.requests_per_s}
    silent = {f"{name}: 0 of" for name in unserved}
    return [
        text
        for text in check.violations
        if re.search(r" at (inf|nan) of its limit$", text) is None
        and not (" is missed: " in text and text.partition(": ")[0] in waiting)
        and not text.startswith(tuple(silent))
    ]
