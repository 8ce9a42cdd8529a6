"""From a plan to what is simulated: components, the tables of their pools, spans and rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from planner.embedded import EmbeddedPlan
from planner.errors import InputError, Problem
from planner.plan import PoolPlan
from planner.pools.cache import CACHE_SHARE, least_replicas_of_cache, prefill_cache_share
from planner.pools.loads import class_load
from planner.simulate.component import ComponentModel
from planner.simulate.placement import hit_pool
from planner.simulate.pool import Hits, PoolModel
from planner.simulate.records import SimulationSettings
from planner.simulate.tables import step_tables
from planner.workload.classes import WorkloadClass

WARMUP_STAYS: Final = 1.5
"""Warm-up in mean stays of the slowest class; engines begin with the batch of the plan."""
WARMUP_SHARE: Final = 0.1
"""Least warm-up as a share of the counted span."""
TAIL_STAYS: Final = 1.5
"""Arrivals go on after the horizon for this many of the longest stays, so that the engines stay
as busy as before until the last counted request is done."""
TAIL_S: Final = 30.0
SURE: Final = 3.0
"""Standard deviations of a number of arrivals that a span allows for."""
MOST_IN_COMPONENT: Final = 2_000_000
"""Counted requests of a component where the span follows from `requests_per_class`."""


@dataclass(frozen=True, slots=True, eq=False)
class Component:
    """One component before its requests are drawn. Rates are requests/s as simulated."""

    model: ComponentModel
    classes: tuple[WorkloadClass, ...]
    rates_per_s: Mapping[str, float]
    rate_factors: Mapping[str, float]
    """Simulated over planned rate, by class."""
    warmup_s: float
    horizon_s: float
    end_s: float
    """Arrivals end here."""
    replayed: bool
    """Whether the trace is played in it."""

    @property
    def fewest(self) -> float:
        """Counted requests of the rarest class, to be expected."""
        return (self.horizon_s - self.warmup_s) * min(self.rates_per_s.values())

    @property
    def requests(self) -> float:
        """Requests to be expected."""
        return self.horizon_s * math.fsum(self.rates_per_s.values())


def spare_replicas(embedded: EmbeddedPlan, settings: SimulationSettings) -> dict[str, int]:
    """Replicas added to each pool that a failure names or hits first."""
    hit = {hit_pool(embedded.plan, failure).id for failure in settings.failures}
    return dict.fromkeys(sorted(hit), settings.spare_replicas)


def components(embedded: EmbeddedPlan, settings: SimulationSettings) -> tuple[Component, ...]:
    """The parts of a plan that share no pool and no class, in the order of the plan's pools.

    Raises InputError for a trace without a span, or of a class that the plan does not have.
    """
    _check_trace(embedded, settings)
    groups: list[tuple[list[PoolPlan], set[str]]] = []
    for pool in embedded.plan.pools:
        names = {name for name, rate in pool.requests_per_s.items() if rate > 0}
        pools = [pool]
        apart = []
        for other in groups:
            if other[1] & names:
                pools, names = other[0] + pools, names | other[1]
            else:
                apart.append(other)
        groups = [*apart, (pools, names)] if names else apart
    spares = spare_replicas(embedded, settings)
    return tuple(_component(embedded, settings, *group, spares) for group in groups)


def _check_trace(embedded: EmbeddedPlan, settings: SimulationSettings) -> None:
    if settings.trace is None:
        return
    if settings.trace.span_s <= 0:
        message = "its requests arrive at once, so it has no rate"
        raise InputError([Problem(message, "give more of it", file=settings.trace.source)])
    names = [each.name for each in embedded.classes]
    if settings.trace_class not in (None, *names):
        message = f"the plan has no class '{settings.trace_class}'"
        raise InputError([Problem(message, f"it has {', '.join(names)}")])


def _component(
    embedded: EmbeddedPlan,
    settings: SimulationSettings,
    pools: Sequence[PoolPlan],
    names: set[str],
    spares: Mapping[str, int],
) -> Component:
    classes = tuple(each for each in embedded.classes if each.name in names)
    trace = settings.trace
    replayed = trace is not None and settings.trace_class in (None, *names)
    rates, factors = {}, {}
    for each in classes:
        factor = settings.rate_factor
        if replayed and settings.trace_class in (None, each.name):
            # The trace brings its own bursts, so its mean is the mean of the plan.
            factor /= each.burst_factor
        factors[each.name] = factor
        rates[each.name] = factor * each.rate_per_s[0]
    stay_s, longest_s = _stays_s(pools, classes)
    counted_s = _counted_s(settings, classes, rates)
    if replayed and settings.hours is None:
        assert trace is not None
        counted_s = trace.span_s
    warmup_s = max(WARMUP_STAYS * stay_s, WARMUP_SHARE * counted_s)
    horizon_s = warmup_s + counted_s
    longest_tokens = max(
        math.ceil(each.mix.max_prompt_tokens + each.mix.max_output_tokens) for each in classes
    )
    if replayed:
        assert trace is not None
        longest_tokens = max(longest_tokens, int((trace.input_tokens + trace.output_tokens).max()))
    return Component(
        model=ComponentModel(
            classes=tuple(each.name for each in classes),
            pools=tuple(
                _pool(embedded, pool, classes, longest_tokens, spares.get(pool.id, 0))
                for pool in pools
            ),
        ),
        classes=classes,
        rates_per_s=rates,
        rate_factors=factors,
        warmup_s=warmup_s,
        horizon_s=horizon_s,
        end_s=horizon_s + TAIL_STAYS * longest_s + TAIL_S,
        replayed=replayed,
    )


def _stays_s(pools: Sequence[PoolPlan], classes: Sequence[WorkloadClass]) -> tuple[float, float]:
    """Mean and longest decoding time of the slowest class, by the steps of the plan."""
    mean = longest = 0.0
    for each in classes:
        for pool in pools:
            if pool.step_ms is not None and pool.requests_per_s.get(each.name, 0.0) > 0:
                mean = max(mean, each.mix.mean_output * pool.step_ms / 1e3)
                longest = max(longest, each.mix.max_output_tokens * pool.step_ms / 1e3)
    return mean, longest


def _counted_s(
    settings: SimulationSettings, classes: Sequence[WorkloadClass], rates: Mapping[str, float]
) -> float:
    """Span after the warm-up: as asked, or until every class has its requests almost surely."""
    if settings.hours is not None:
        return settings.hours * 3600
    wanted = settings.requests_per_class
    span_s = max(
        (wanted + SURE * math.sqrt(wanted * max(each.arrival_scv, 1.0))) / rates[each.name]
        for each in classes
    )
    return min(span_s, MOST_IN_COMPONENT / math.fsum(rates.values()))


def _pool(
    embedded: EmbeddedPlan,
    pool: PoolPlan,
    classes: Sequence[WorkloadClass],
    longest_tokens: int,
    spares: int,
) -> PoolModel:
    config = embedded.configs[pool.id]
    step = embedded.backend.compile([config])
    replicas = pool.replicas + spares
    transfer = {}
    if pool.role == "prefill":
        for each in classes:
            receivers = [
                other
                for other in embedded.plan.pools
                if other.role == "decode"
                and other.requests_per_s.get(each.name, 0.0) > 0
                and _kv_group(embedded, other) == _kv_group(embedded, pool)
            ]
            links = [
                float(embedded.backend.compile([embedded.configs[other.id]]).nic_bytes_per_s(0))
                for other in receivers
            ]
            transfer[each.name] = min([float(step.nic_bytes_per_s(0)), *links])
    return PoolModel(
        id=pool.id,
        role=pool.role,
        replicas=replicas,
        routing=config.engine.routing,
        kv_group=_kv_group(embedded, pool),
        requests_per_s=dict(pool.requests_per_s),
        tables=step_tables(step, pool.chunk_tokens, longest_tokens),
        transfer_bytes_per_s=transfer,
        batch=(pool.batch or 0.0) * pool.replicas / replicas,
        hits=_hits(embedded, pool, classes),
        prefix_cache=config.engine.prefix_cache,
    )


def _kv_group(embedded: EmbeddedPlan, pool: PoolPlan) -> tuple[str, str, str]:
    return (pool.site, embedded.configs[pool.id].accelerator.vendor, pool.kv_precision)


def _hits(
    embedded: EmbeddedPlan, pool: PoolPlan, classes: Sequence[WorkloadClass]
) -> dict[str, Hits]:
    """What a pool that one class has to itself finds in its cache, where that hangs on the room:
    the largest of the class's `hit_levels` that the pool holds, as when it was planned.
    """
    served = [each for each in classes if pool.requests_per_s.get(each.name, 0.0) > 0]
    if pool.role == "decode" or not any(each.hit_levels for each in served):
        return {}
    found = {each.name: Hits(0.0, 0.0) for each in served if each.hit_levels}
    if len(served) > 1:
        return found
    step = embedded.backend.compile([embedded.configs[pool.id]])
    batched = np.array([(pool.chunk_tokens or 0) + float(step.max_num_seqs_per_rank(0))])
    for level in served[0].hit_levels:
        mix = level.mix
        load = class_load(mix, served[0].arrival_scv)
        share = (
            CACHE_SHARE if pool.role == "aggregated" else (prefill_cache_share(step, batched, load))
        )
        least = least_replicas_of_cache(step, batched, load, level.cache_tokens, share)
        if float(least[0]) <= pool.replicas:
            finding = mix.cached_tokens > 0
            finders = float(mix.prompt_weight[finding].sum())
            prompt = float(mix.prompt_weight[finding] @ mix.prompt_tokens[finding])
            input_share = mix.mean_cached / prompt if prompt else 0.0
            found[served[0].name] = Hits(input_share, finders)
    return found
