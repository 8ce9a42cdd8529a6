"""Cost by class and kind of token, by the time that each takes on the replicas.

A node's price is shared by the replicas on it in proportion to their GPUs, idle GPUs of the
group included; a pool's cost is shared by the seconds that prefill and decode of each class
take; prefill seconds are split into what uncached tokens cost and what attention over cached
ones adds. So the parts sum to the fleet's price, idle time spread by use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.catalog.offers import Offer
from planner.verify import FleetPool, PoolState
from planner.workload.classes import WorkloadClass

SECONDS_PER_HOUR = 3600.0
MILLION = 1e6


@dataclass(frozen=True, slots=True)
class ClassCost:
    """USD/hour of one class by kind of token, and tokens/s of its mean traffic."""

    input_usd_per_hour: float
    cached_usd_per_hour: float
    output_usd_per_hour: float
    input_tokens_per_s: float
    cached_tokens_per_s: float
    output_tokens_per_s: float

    @property
    def usd_per_hour(self) -> float:
        """The whole class."""
        return self.input_usd_per_hour + self.cached_usd_per_hour + self.output_usd_per_hour

    def usd_per_mtok(self, kind: str) -> float | None:
        """Price of a million tokens of `kind` (input, cached, output) at the mean traffic."""
        cost = getattr(self, f"{kind}_usd_per_hour")
        tokens = getattr(self, f"{kind}_tokens_per_s") * SECONDS_PER_HOUR
        return None if tokens <= 0 else float(cost / tokens * MILLION)


def pool_costs(
    pools: Sequence[FleetPool], nodes: Mapping[str, int], offers: Mapping[str, Offer]
) -> dict[str, float]:
    """USD/hour of each pool by id: its share, by GPUs, of the nodes of its group."""
    spent: dict[tuple[str, str, int], float] = {}
    for offer_id, count in nodes.items():
        offer = offers[offer_id]
        key = (offer.site, offer.accelerator, offer.gpus_per_node)
        spent[key] = spent.get(key, 0.0) + offer.price_usd_per_node_hour * count
    used: dict[tuple[str, str, int], int] = {}
    for pool in pools:
        used[pool.node_group] = used.get(pool.node_group, 0) + pool.gpus
    return {
        pool.id: spent.get(pool.node_group, 0.0) * pool.gpus / max(used[pool.node_group], 1)
        for pool in pools
    }


def class_costs(
    classes: Sequence[WorkloadClass],
    pools: Sequence[FleetPool],
    states: Mapping[str, PoolState],
    costs: Mapping[str, float],
) -> dict[str, ClassCost]:
    """Cost of each class by name; the sum over classes is the sum over `costs`."""
    shares = {workload.name: [0.0, 0.0, 0.0] for workload in classes}
    found = {workload.name: 0.0 for workload in classes}
    for pool in pools:
        state = states[pool.id]
        if pool.role != "decode":
            for name, tokens in state.cached_tokens.items():
                found[name] += pool.requests_per_s[name] * tokens
        seconds = math.fsum([*state.prefill_seconds.values(), *state.decode_seconds.values()])
        if seconds <= 0:
            continue
        rate = costs[pool.id] / seconds
        for name, value in state.prefill_seconds.items():
            cached = state.cached_seconds.get(name, 0.0)
            shares[name][0] += rate * (value - cached)
            shares[name][1] += rate * cached
        for name, value in state.decode_seconds.items():
            shares[name][2] += rate * value
    result = {}
    for workload in classes:
        mix = workload.mix
        mean_rate = workload.rate_per_s[0] / workload.burst_factor
        new, cached, output = shares[workload.name]
        hits = found[workload.name] / workload.burst_factor
        result[workload.name] = ClassCost(
            input_usd_per_hour=new,
            cached_usd_per_hour=cached,
            output_usd_per_hour=output,
            input_tokens_per_s=mean_rate * mix.mean_prompt - hits,
            cached_tokens_per_s=hits,
            output_tokens_per_s=mean_rate * mix.mean_output,
        )
    return result
