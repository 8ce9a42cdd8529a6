"""Random plans: a replica that exists, pools of it, and the load that the formulas allow them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from benchmarks.queueing.mixes import (
    KINDS,
    PERCENTILE,
    Kind,
    between,
    drawn_class,
    limits_of,
)
from planner.assemble import pool_plan
from planner.catalog import find_accelerator, find_model
from planner.embedded import EmbeddedPlan
from planner.perf.backend import RooflineBackend
from planner.perf.config import Layout, PoolConfig, config_problem
from planner.perf.engines import engine_profile
from planner.plan import Plan
from planner.schema.serving import Routing
from planner.simulate.predictions import ROLES
from planner.verify import FleetPool, FleetRules, Verification, verify
from planner.workload.classes import Slo, WorkloadClass

DEPLOYMENTS: Final[tuple[tuple[str, str, Layout, str, str], ...]] = (
    ("llama-3.1-8b-instruct", "l40s", Layout(1), "fp8", "fp8"),
    ("llama-3.1-8b-instruct", "h100", Layout(1), "bf16", "bf16"),
    ("qwen3-30b-a3b", "h100", Layout(1), "fp8", "bf16"),
    ("qwen3-32b", "h100", Layout(2), "bf16", "bf16"),
    ("llama-3.3-70b-instruct", "h100", Layout(4), "fp8", "bf16"),
    ("llama-3.3-70b-instruct", "h200", Layout(2), "fp8", "fp8"),
    ("gpt-oss-120b", "h100", Layout(2), "fp4", "bf16"),
    ("qwen3-235b-a22b", "h200", Layout(8), "bf16", "bf16"),
    ("qwen3-235b-a22b", "b200", Layout(4, 1, 1, 4), "fp8", "fp8"),
    ("qwen3-coder-480b-a35b", "h200", Layout(8, 1, 1, 8), "fp8", "bf16"),
    ("deepseek-v3", "h200", Layout(8), "fp8", "bf16"),
    ("deepseek-v3", "h200", Layout(1, 1, 8, 8), "fp8", "bf16"),
)
"""Model, accelerator, layout, precision of weights and of the cache: dense and experts, 8 to 671
billion parameters, tensor, expert and attention data parallel."""
SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
CHUNKS: Final = (512, 2048, 8192)
PREFILL_CHUNK: Final = 8192
LEAST_USE: Final = 0.3
"""Loads are drawn between this part and all of what the formulas allow."""
IDLE: Final = 1e-7
"""Requests per second at which nothing waits."""
SLOWEST: Final = 1e-3
BRACKET: Final = 8.0
HALVINGS: Final = 10
"""Halvings of the logarithm of a bracket: to 0.2 % of the rate."""
TRIES: Final = 50
SITE: Final = "study"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a group of plans is drawn from."""

    group: str
    role: str
    """`split` (prefill and decode pools) or `aggregated`."""
    kinds: tuple[Kind, ...] = KINDS
    sizes: tuple[int, ...] = SIZES
    ttft_factor: tuple[float, float] = (1.1, 5.0)
    """TTFT limit over the p99 TTFT without a queue; at least 1.5 for one replica."""
    single_factor: float = 1.5
    routing: tuple[Routing, ...] = ("queued_tokens",)
    arrival_scv: tuple[float, float] = (1.0, 1.0)
    prefill_utilisation: tuple[float, float] | None = None
    """Of aggregated pools; None: up to 0.7, by the promises."""


@dataclass(frozen=True, slots=True)
class Case:
    """A plan to simulate, with words for the report."""

    number: int
    recipe: Recipe
    embedded: EmbeddedPlan
    check: Verification
    use: float
    """Load over the largest that the formulas allow."""
    ttft_factor: float
    words: str


@dataclass(slots=True)
class _Draft:
    """A plan while it is made."""

    classes: list[WorkloadClass]
    shares: list[float]
    config: PoolConfig
    backend: RooflineBackend
    pools: list[FleetPool] = field(default_factory=list)

    def at(self, rate: float) -> Verification:
        """Evaluated at a total rate; hardware is not part of it."""
        each = self.rates(rate)
        classes = [replace(c, rate_per_s=(each[c.name],)) for c in self.classes]
        pools = [replace(pool, requests_per_s=each) for pool in self.pools]
        rules = FleetRules({}, (), None, None, ROLES, self.config.layout.gpus, self.backend)
        return verify(classes, pools, {}, rules)

    def rates(self, rate: float) -> Mapping[str, float]:
        """Requests per second of each class."""
        return {c.name: rate * s for c, s in zip(self.classes, self.shares, strict=True)}

    def promise(self, metric: str, factor: float, percentile: float = PERCENTILE) -> None:
        """Promise every class a multiple of what it gets when nothing waits."""
        self.classes = [replace(c, slos=(Slo(metric, math.inf, percentile),)) for c in self.classes]
        alone = self.at(IDLE)
        promised = []
        for each in self.classes:
            slos = (Slo(metric, factor * alone.slos[each.name][0].predicted_s, percentile),)
            promised.append(
                replace(
                    each,
                    slos=slos,
                    ttft_limits=limits_of(slos, "ttft"),
                    tpot_limits=limits_of(slos, "tpot"),
                )
            )
        self.classes = promised

    def added(self, role: str, replicas: int, chunk_tokens: int | None) -> None:
        """One more pool."""
        self.pools.append(
            FleetPool(
                id=f"{self.config.model.id}/{role}-1",
                config=self.config,
                role=role,
                site=SITE,
                gpus_per_node=max(self.config.accelerator.usual_node_size, 1),
                replicas=replicas,
                chunk_tokens=chunk_tokens,
                requests_per_s={},
            )
        )


def use_of(check: Verification) -> float:
    """The largest use of any limit or promise, 1 at the limit."""
    pressures = [value for state in check.pools.values() for value in state.pressure.values()]
    promises = [s.predicted_s / s.slo.limit_s for states in check.slos.values() for s in states]
    return max([*pressures, *promises])


def largest_rate(use: Callable[[float], float], limit: float = 1.0) -> float:
    """Largest rate whose use is within the limit; 0 where there is none."""
    low, high = SLOWEST, SLOWEST * BRACKET
    if use(low) > limit:
        return 0.0
    while use(high) <= limit:
        low, high = high, high * BRACKET
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if use(middle) <= limit else (low, middle)
    return low


def drawn_case(number: int, recipe: Recipe, seed: int) -> Case:
    """The plan of this number; the same for the same seed. Raises RuntimeError where nothing
    that was drawn can be served.
    """
    draw = np.random.default_rng([seed, number])
    for _ in range(TRIES):
        case = _tried(number, recipe, draw)
        if case is not None:
            return case
    raise RuntimeError(f"no plan of the group {recipe.group} was found")


def _tried(number: int, recipe: Recipe, draw: np.random.Generator) -> Case | None:
    model, chip, layout, weights, cache = DEPLOYMENTS[int(draw.integers(len(DEPLOYMENTS)))]
    routing = recipe.routing[number % len(recipe.routing)]
    cap = (recipe.prefill_utilisation or (0.0, 0.7))[1]
    engine = replace(
        engine_profile("vllm"), routing=routing, aggregated_utilization_cap_fraction=cap
    )
    config = PoolConfig(find_model(model), find_accelerator(chip), layout, weights, cache, engine)
    assert config_problem(config) is None, config_problem(config)
    count = 1 + int(draw.random() < 0.3)
    chosen = draw.choice(len(recipe.kinds), size=min(count, len(recipe.kinds)), replace=False)
    scv = between(draw, recipe.arrival_scv)
    classes = [drawn_class(draw, recipe.kinds[int(index)], model, scv) for index in chosen]
    first = float(draw.uniform(0.3, 0.7)) if len(classes) > 1 else 1.0
    shares = [first] if len(classes) == 1 else [first, 1.0 - first]
    draft = _Draft(classes, shares, config, RooflineBackend())
    # Shifted once a round, so that every role meets every size.
    size = recipe.sizes[(number + number // len(recipe.sizes)) % len(recipe.sizes)]
    made = _split if recipe.role == "split" else _aggregated
    return made(number, recipe, draw, draft, size)


def _factor(recipe: Recipe, draw: np.random.Generator, size: int) -> float:
    low, high = recipe.ttft_factor
    return between(draw, (max(low, recipe.single_factor) if size == 1 else low, high))


def _split(
    number: int, recipe: Recipe, draw: np.random.Generator, draft: _Draft, size: int
) -> Case | None:
    """A prefill pool at a part of its largest load, and decode pools for it at another part."""
    draft.added("prefill", size, PREFILL_CHUNK)
    factor = _factor(recipe, draw, size)
    draft.promise("ttft", factor)
    most = largest_rate(lambda rate: use_of(draft.at(rate)))
    use = float(draw.uniform(LEAST_USE, 1.0))
    rate = most * use
    prefill, promised = draft.pools, {c.name: c.slos for c in draft.classes}
    draft.pools = []
    draft.added("decode", 1, None)
    draft.promise("tpot", float(draw.uniform(1.3, 4.0)))
    each = largest_rate(lambda one: use_of(draft.at(one)))
    if each == 0 or most == 0:
        return None
    replicas = max(round(rate / (each * draw.uniform(LEAST_USE, 1.0))), math.ceil(rate / each))
    if replicas > max(SIZES):
        return None
    draft.pools = [*prefill, replace(draft.pools[0], replicas=replicas)]
    draft.classes = [replace(c, slos=(*promised[c.name], *c.slos)) for c in draft.classes]
    return _case(number, recipe, draft, rate, use, factor)


def _aggregated(
    number: int, recipe: Recipe, draw: np.random.Generator, draft: _Draft, size: int
) -> Case | None:
    """An aggregated pool at a part of its largest load, or at a given prefill utilisation."""
    draft.added("aggregated", size, int(draw.choice(CHUNKS)))
    factor = _factor(recipe, draw, size)
    draft.promise("tpot", float(draw.uniform(1.3, 4.0)))
    tpot = {c.name: c.slos for c in draft.classes}
    draft.promise("ttft", factor)
    draft.classes = [replace(c, slos=(*c.slos, *tpot[c.name])) for c in draft.classes]
    use = float(draw.uniform(LEAST_USE, 1.0))
    if recipe.prefill_utilisation is None:
        rate = use * largest_rate(lambda one: use_of(draft.at(one)))
    else:
        wanted = float(draw.uniform(*recipe.prefill_utilisation))
        rate = largest_rate(lambda one: _prefill_utilisation(draft, one), wanted)
        # Other limits of the engine still hold: memory and sequences.
        if rate and _engine_use(draft.at(rate)) > 1:
            return None
    return _case(number, recipe, draft, rate, use, factor) if rate > 0 else None


def _prefill_utilisation(draft: _Draft, rate: float) -> float:
    state = draft.at(rate).pools[draft.pools[0].id]
    cap = draft.config.engine.aggregated_utilization_cap_fraction
    return state.pressure.get("prefill_utilization", math.inf) * cap


def _engine_use(check: Verification) -> float:
    return max(
        value
        for state in check.pools.values()
        for name, value in state.pressure.items()
        if name not in ("ttft", "tpot")
    )


def _case(
    number: int, recipe: Recipe, draft: _Draft, rate: float, use: float, factor: float
) -> Case | None:
    check = draft.at(rate)
    if any("does not fit in memory" in broken for broken in check.violations):
        return None
    rates = draft.rates(rate)
    classes = tuple(replace(c, rate_per_s=(rates[c.name],)) for c in draft.classes)
    pools = tuple(
        pool_plan(replace(pool, requests_per_s=rates), check, 0.0, draft.backend)
        for pool in draft.pools
    )
    plan = Plan(name=f"case {number}", status="feasible", pools=pools)
    configs = {pool.id: pool.config for pool in draft.pools}
    embedded = EmbeddedPlan(plan, draft.backend, configs, classes)
    layout = draft.config.layout.label
    words = f"{draft.config.model.id}, {draft.config.accelerator.id} {layout}, {_mixes(classes)}"
    return Case(number, recipe, embedded, check, use, factor, words)


def _mixes(classes: Sequence[WorkloadClass]) -> str:
    return " + ".join(f"{c.name} {c.mix.mean_prompt:.0f}/{c.mix.mean_output:.0f}" for c in classes)
