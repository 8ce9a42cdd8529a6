"""The cheapest fleet by enumeration: node counts in order of cost until one carries the demand.

For each vector of GPUs per node group the best carrying function is built from all divisions of
those GPUs into aggregated, prefill and decode pools (prefill and decode matched per site, vendor
and KV precision), so the first vector of nodes that carries the demand is a cheapest one.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
from brute_replicas import CARRY_NOTHING, Carrier, Floats, Group, Replicas, beside

from planner.problem import Problem

Gpus = tuple[int, ...]
LARGEST_GPUS = 16
"""Most GPUs of one offer that are tried; the random instances stay well below."""
MOST_FLEETS = 20_000


def cheapest_fleet(problem: Problem, steps: int = 240, exact_waits: bool = False) -> float:
    """USD/hour of the cheapest fleet; infinite where `MOST_FLEETS` fleets carry nothing.

    With `exact_waits` aggregated pools wait as those of any size up to their own.
    """
    replicas = Replicas(problem, steps, LARGEST_GPUS, exact_waits)
    search = _Search(replicas)
    for cost, nodes in _fleets(problem):
        gpus: dict[Group, int] = defaultdict(int)
        for offer, count in zip(problem.offers, nodes, strict=True):
            gpus[(offer.site, offer.accelerator, offer.gpus_per_node)] += (
                count * offer.gpus_per_node
            )
        if search.carries(gpus):
            return cost
    return math.inf


def _fleets(problem: Problem) -> Iterator[tuple[float, Gpus]]:
    """Node counts per offer in order of cost, within every stock."""
    offers = problem.offers
    places = {offer.id: index for index, offer in enumerate(offers)}
    prices = [offer.price_usd_per_node_hour for offer in offers]
    budget = problem.instance.fleet.budget_usd_per_hour or math.inf

    def allowed(nodes: Gpus) -> bool:
        for offer, count in zip(offers, nodes, strict=True):
            if offer.available_nodes is not None and count > offer.available_nodes:
                return False
            if count * offer.gpus_per_node > LARGEST_GPUS:
                return False
        return all(
            sum(nodes[places[name]] for name in stock.offers) <= stock.nodes
            for stock in problem.stocks
        )

    start = (0,) * len(offers)
    queue: list[tuple[float, Gpus]] = [(0.0, start)]
    seen = {start}
    for _ in range(MOST_FLEETS):
        if not queue:
            return
        cost, nodes = heapq.heappop(queue)
        if cost > budget * (1 + 1e-9):
            return
        yield cost, nodes
        for index in range(len(offers)):
            more = (*nodes[:index], nodes[index] + 1, *nodes[index + 1 :])
            if more not in seen and allowed(more):
                seen.add(more)
                total = math.fsum(n * p for n, p in zip(more, prices, strict=True))
                heapq.heappush(queue, (total, more))


class _Search:
    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self.size = len(replicas.grid)
        carriers = list(replicas.carriers())
        self.groups = sorted({group for groups in replicas.hosts.values() for group in groups})
        self.sites = sorted({group[0] for group in self.groups})
        self.found: dict[tuple[str, Group, tuple[str, str, str] | None], list[Carrier]] = {}
        sorted_in: dict[tuple[str, Group, tuple[str, str, str] | None], list[Carrier]] = (
            defaultdict(list)
        )
        for carrier in carriers:
            kv = None if carrier.role == "aggregated" else carrier.kv_group
            sorted_in[carrier.role, carrier.group, kv].append(carrier)
        for key, members in sorted_in.items():
            self.found[key] = _useful(members)
        self.pool = cache(self._pool)
        self.split = cache(self._split)
        self.site = cache(self._site)

    def carries(self, gpus: dict[Group, int]) -> bool:
        """Whether GPUs per node group carry the whole demand."""
        total = self._nothing()
        for site in self.sites:
            groups = [group for group in self.groups if group[0] == site]
            total = beside(total, self.site(site, tuple(gpus.get(group, 0) for group in groups)))
        return bool(total[-1] >= self.replicas.rates[-1] * (1 - 1e-9))

    def _nothing(self) -> Floats:
        function = np.full(self.size, CARRY_NOTHING)
        function[0] = 0.0
        return function

    def _pool(self, role: str, group: Group, kv: tuple[str, str, str] | None, gpus: int) -> Floats:
        """Best carrying function of `gpus` GPUs of one node group in one role."""
        best = self._nothing() if gpus == 0 else self.pool(role, group, kv, gpus - 1)
        for carrier in self.found.get((role, group, kv), []):
            if carrier.gpus <= gpus:
                rest = self.pool(role, group, kv, gpus - carrier.gpus)
                best = np.maximum(best, beside(carrier.function, rest))
        return best

    def _role(
        self, role: str, groups: tuple[Group, ...], kv: tuple[str, str, str] | None, gpus: Gpus
    ) -> Floats:
        total = self._nothing()
        for group, count in zip(groups, gpus, strict=True):
            if count and (role, group, kv) in self.found:
                total = beside(total, self.pool(role, group, kv, count))
        return total

    def _kv_groups(self, groups: tuple[Group, ...]) -> list[tuple[str, str, str]]:
        return sorted(
            {kv for (role, group, kv) in self.found if role == "decode" and group in groups and kv}
        )

    def _split(self, groups: tuple[Group, ...], kv: tuple[str, str, str], gpus: Gpus) -> Floats:
        """Best of all divisions of GPUs between prefill and decode with one KV group."""
        best = self._nothing()
        role = cache(lambda name, part: self._role(name, groups, kv, part))
        for part in product(*(range(count + 1) for count in gpus)):
            rest = tuple(count - used for count, used in zip(gpus, part, strict=True))
            best = np.maximum(best, np.minimum(role("prefill", part), role("decode", rest)))
        return best

    def _site(self, site: str, gpus: Gpus) -> Floats:
        """Best of all divisions of a site's GPUs between aggregated pools and KV groups."""
        groups = tuple(group for group in self.groups if group[0] == site)
        parts = {part: self._role("aggregated", groups, None, part) for part in _below(gpus)}
        for kv in self._kv_groups(groups):
            wider = dict(parts)
            for whole in _below(gpus):
                for part in _below(whole):
                    rest = tuple(a - b for a, b in zip(whole, part, strict=True))
                    both = beside(self.split(groups, kv, part), parts[rest])
                    wider[whole] = np.maximum(wider[whole], both)
            parts = wider
        return parts[gpus]


def _below(gpus: Gpus) -> list[Gpus]:
    return list(product(*(range(count + 1) for count in gpus)))


def _useful(carriers: list[Carrier]) -> list[Carrier]:
    """Carriers that no other of at most as many GPUs beats everywhere."""
    kept: list[Carrier] = []
    for carrier in sorted(carriers, key=lambda c: (c.gpus, -c.function[0], -c.function.sum())):
        if not any(
            other.gpus <= carrier.gpus and (other.function >= carrier.function).all()
            for other in kept
        ):
            kept.append(carrier)
    return kept
