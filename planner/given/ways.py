"""What can be done with given pools: their options, the program over them, its answer as pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from planner.candidates.build import build_candidates
from planner.candidates.options import PoolOption
from planner.candidates.request import NodeGroup
from planner.fleet.given import Carried, GivenInputs, widened
from planner.given.fleet import Pool
from planner.problem import Problem
from planner.verify import FleetPool

REFINEMENT: Final = 1
"""Twice the points on frontiers of shared pools; there are few options, so it costs little."""


@dataclass(frozen=True, slots=True)
class Ways:
    """Options of all pools of a fleet, and why classes have none in a pool."""

    options: tuple[PoolOption, ...]
    pool_of: dict[str, int]
    refusals: tuple[dict[str, dict[str, int]], ...]
    """Per pool and class: reasons, counted."""


def ways_of(problem: Problem, pools: Sequence[Pool]) -> Ways:
    """Every option of exactly these pools: their configurations, roles, chunks and sites."""
    served = {each.card.id: each for each in problem.models}
    options: list[PoolOption] = []
    pool_of: dict[str, int] = {}
    refusals: list[dict[str, dict[str, int]]] = []
    request = problem.request(REFINEMENT)
    for index, pool in enumerate(pools):
        given = pool.given
        wanted = [
            k
            for k, workload in enumerate(problem.classes)
            if workload.model == given.model
            and (given.classes is None or workload.name in given.classes)
        ]
        if pool.flaw is not None or not wanted:
            reason = {} if pool.flaw is None else {pool.flaw: 1}
            refusals.append({problem.classes[k].name: reason for k in wanted})
            continue
        model = served[given.model]
        if given.chunk_tokens is not None:
            budget = replace(model.engine, chunk_budgets_tokens=(given.chunk_tokens,))
            model = replace(model, engine=budget)
        site, _, gpus_per_node = pool.node_key
        table = build_candidates(
            replace(
                request,
                models=(model,),
                classes=tuple(problem.classes[k] for k in wanted),
                node_groups=(NodeGroup(site, pool.config.accelerator, gpus_per_node),),
                roles=frozenset({given.role}),
                only=(pool.config,),
            )
        )
        refusals.append(table.refusals)
        for option in table.options:
            name = f"{pool.id}|{option.name}"
            options.append(widened(option, wanted, len(problem.classes), name))
            pool_of[name] = index
    return Ways(tuple(options), pool_of, tuple(refusals))


def model_inputs(problem: Problem, pools: Sequence[Pool], ways: Ways, model: str) -> GivenInputs:
    """The program of one model: with given replicas, models have nothing in common."""
    whole = problem.inputs()
    options = tuple(option for option in ways.options if option.model == model)
    return GivenInputs(
        classes=whole.classes,
        class_models=whole.class_models,
        demand=whole.demand,
        periods=whole.periods,
        options=options,
        offers=(),
        pool_of={option.name: ways.pool_of[option.name] for option in options},
        pool_replicas=tuple(pool.given.replicas for pool in pools),
    )


def parts_of(
    problem: Problem, pools: Sequence[Pool], ways: Ways, carried: Sequence[Carried]
) -> list[FleetPool]:
    """The pools as they are run to carry these loads; one that is divided gives several parts."""
    replicas = {name: count for each in carried for name, count in each.replicas.items()}
    flows: list[dict[str, dict[str, float]]] = [{} for _ in pools]
    for each in carried:
        for (k, name), rate in sorted(each.flow.items()):
            by_class = flows[ways.pool_of[name]].setdefault(name, {})
            by_class[problem.classes[k].name] = rate
    parts: list[FleetPool] = []
    for pool, mine in zip(pools, flows, strict=True):
        # Replicas set aside for nothing go where there is something to do; more never hurt.
        idle = pool.given.replicas - sum(replicas[name] for name in mine)
        if not mine:
            parts.append(pool.part("", pool.given.replicas, {}))
        for number, (name, rates) in enumerate(mine.items(), start=1):
            suffix = f".{number}" if len(mine) > 1 else ""
            extra = idle if number == 1 else 0
            parts.append(pool.part(suffix, replicas[name] + extra, rates))
    return parts
