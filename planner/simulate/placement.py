"""Which replicas stand on which node, and what dies with a node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.errors import InputError, Problem
from planner.plan import Plan, PoolPlan
from planner.simulate.chance import generator
from planner.simulate.records import Failure

NodeGroup = tuple[str, str, int]
"""Site, accelerator and GPUs of a node."""
SPOT = "spot"
SPOT_DOWN_S = 600.0
"""Time until an interrupted spot node is replaced and has loaded its weights. Assumed."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node with the replicas on it, as (pool id, index) pairs; a replica may span several."""

    name: str
    term: str
    replicas: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """Replicas that die at once, `at_s` after the warm-up; `down_s` None means for good."""

    what: str
    replicas: tuple[tuple[str, int], ...]
    at_s: float
    down_s: float | None


def group_of(pool: PoolPlan) -> NodeGroup:
    """The kind of node that hosts a pool."""
    return (pool.site, pool.accelerator, pool.gpus_per_node)


def placed(plan: Plan, spares: dict[str, int]) -> tuple[Node, ...]:
    """Every node of a plan, filled with large replicas first, each where it first fits.

    Spare replicas come last, on nodes of their own where no GPU is idle. Nodes take the terms of
    the plan's offers in their order.
    """
    found: list[Node] = []
    for group in sorted({group_of(pool) for pool in plan.pools}):
        pools = [pool for pool in plan.pools if group_of(pool) == group]
        pools.sort(key=lambda pool: -(pool.gpus // pool.replicas))
        free: list[int] = []
        held: list[list[tuple[str, int]]] = []
        wanted = [(pool, n) for pool in pools for n in range(pool.replicas)]
        wanted += [
            (pool, pool.replicas + n) for pool in pools for n in range(spares.get(pool.id, 0))
        ]
        for pool, replica in wanted:
            left = pool.gpus // pool.replicas
            while left > 0:
                part = min(left, group[2])
                at = next((n for n, gpus in enumerate(free) if gpus >= part), len(free))
                if at == len(free):
                    free.append(group[2])
                    held.append([])
                free[at] -= part
                held[at].append((pool.id, replica))
                left -= part
        terms = [
            node.term
            for node in plan.nodes
            if (node.site, node.accelerator) == group[:2] and node.gpus == node.nodes * group[2]
            for _ in range(node.nodes)
        ]
        for n, replicas in enumerate(held):
            term = terms[n] if n < len(terms) else ""
            found.append(Node(f"node {n + 1} of {group[0]} {group[1]}", term, tuple(replicas)))
    return tuple(found)


def hit_pool(plan: Plan, failure: Failure) -> PoolPlan:
    """The pool that a failure names, or the one with most GPUs. Raises InputError for no pool."""
    if failure.pool is None:
        return max(plan.pools, key=lambda pool: pool.gpus)
    for pool in plan.pools:
        if pool.id == failure.pool:
            return pool
    known = ", ".join(pool.id for pool in plan.pools)
    raise InputError([Problem(f"the plan has no pool '{failure.pool}'", f"it has {known}")])


def losses(plan: Plan, failures: Sequence[Failure], nodes: Sequence[Node]) -> Iterator[Loss]:
    """What each failure takes: the first replica of its pool that no failure before it took, or
    the node with most replicas of its pool among those.
    """
    gone: set[tuple[str, int]] = set()
    for failure in sorted(failures, key=lambda each: each.at_s):
        pool = hit_pool(plan, failure)
        if failure.what == "node":

            def standing(node: Node, pool_id: str = pool.id) -> int:
                return sum(each[0] == pool_id and each not in gone for each in node.replicas)

            node = max(nodes, key=standing)
            lost = tuple(each for each in node.replicas if each not in gone)
            what = f"{node.name} dies"
        else:
            mine = [each for node in nodes for each in node.replicas if each[0] == pool.id]
            lost = tuple([each for each in mine if each not in gone][:1])
            what = f"a replica of {pool.id} dies"
        if lost:
            gone.update(lost)
            yield Loss(what, lost, failure.at_s, failure.down_s)


def interruptions(
    nodes: Sequence[Node], per_hour: float, span_s: float, seed: int
) -> Iterator[Loss]:
    """Spot nodes interrupted by chance: a Poisson process on each, replaced after a while."""
    for node in nodes:
        if node.term != SPOT or per_hour <= 0:
            continue
        draw = generator(seed, "spot", node.name)
        at_s = draw.exponential(3600 / per_hour)
        while at_s < span_s:
            yield Loss(f"{node.name} (spot) is interrupted", node.replicas, at_s, SPOT_DOWN_S)
            at_s += SPOT_DOWN_S + draw.exponential(3600 / per_hour)
