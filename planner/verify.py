"""Re-evaluation of a fleet by the full model, from the raw instance. Imports no Pyomo.

Nothing here reads the candidate table or the program: the operating point of every pool is
found from its replicas and flows, and every promise, memory limit, stock and demand is checked
against the instance. The printed latencies are the ones computed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.catalog.offers import Offer
from planner.fleet.inputs import Stock
from planner.perf.backend import StepTimeBackend, StepTimes
from planner.perf.config import PoolConfig
from planner.pools.decode import Engine, chunk_profile
from planner.pools.loads import ClassLoad, class_load
from planner.pools.prefill import PrefillService, prefill_service
from planner.queueing import ttft_quantile
from planner.workload.classes import Slo, WorkloadClass

Floats = NDArray[np.float64]

TOLERANCE: Final = 1e-9
"""Relative tolerance of every check."""


@dataclass(frozen=True, slots=True)
class FleetPool:
    """A pool as it would be deployed: what, how many, and which requests go there."""

    id: str
    config: PoolConfig
    role: str
    site: str
    gpus_per_node: int
    replicas: int
    chunk_tokens: int | None
    requests_per_s: Mapping[str, float]

    @property
    def gpus(self) -> int:
        """Accelerators of the whole pool."""
        return self.replicas * self.config.layout.gpus

    @property
    def node_group(self) -> tuple[str, str, int]:
        """Site, accelerator and node size that host it."""
        return (self.site, self.config.accelerator.id, self.gpus_per_node)

    @property
    def kv_group(self) -> tuple[str, str, str]:
        """Site, vendor and KV precision: where its cache can move."""
        return (self.site, self.config.accelerator.vendor, self.config.kv_precision)


@dataclass(frozen=True, slots=True)
class FleetRules:
    """Limits of the instance that are about the fleet as a whole."""

    offers: Mapping[str, Offer]
    stocks: Sequence[Stock]
    budget_usd_per_hour: float | None
    max_pool_kinds_per_model: int | None
    roles: frozenset[str]
    max_gpus_per_replica: int
    backend: StepTimeBackend


@dataclass(frozen=True, slots=True)
class PoolState:
    """The operating point of one pool. Seconds; utilisations as fractions."""

    utilization: Mapping[str, float]
    pressure: Mapping[str, float]
    """Use of every limit that can break, 1 at the limit."""
    step_s: float | None = None
    batch: float | None = None
    prefill_seconds: Mapping[str, float] = field(default_factory=dict)
    """Replica-seconds per second spent on prompts of each class."""
    cached_seconds: Mapping[str, float] = field(default_factory=dict)
    """The part of them that attention over cached tokens takes."""
    decode_seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def binding(self) -> str:
        """The limit that more load would break first."""
        return max(self.pressure, key=lambda name: self.pressure[name])


@dataclass(frozen=True, slots=True)
class SloState:
    """What a class gets on one promise; seconds."""

    slo: Slo
    predicted_s: float
    proven_by_queueing: bool
    first_token_s: float = 0.0
    """The part of it up to the first token, which is predicted less well."""

    @property
    def kept(self) -> bool:
        """Whether the prediction is within the limit."""
        return self.predicted_s <= self.slo.limit_s * (1 + TOLERANCE)


@dataclass(frozen=True, slots=True)
class Verification:
    """Cost, operating points and promises of a fleet, and everything it breaks."""

    cost_usd_per_hour: float
    pools: Mapping[str, PoolState]
    slos: Mapping[str, tuple[SloState, ...]]
    violations: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is broken."""
        return not self.violations


def verify(
    classes: Sequence[WorkloadClass],
    pools: Sequence[FleetPool],
    nodes: Mapping[str, int],
    rules: FleetRules,
) -> Verification:
    """Evaluate a fleet. `nodes` counts whole nodes by offer id."""
    return _Verifier(classes, pools, nodes, rules).run()


class _Verifier:
    def __init__(
        self,
        classes: Sequence[WorkloadClass],
        pools: Sequence[FleetPool],
        nodes: Mapping[str, int],
        rules: FleetRules,
    ) -> None:
        self.classes = {workload.name: workload for workload in classes}
        self.loads = {workload.name: class_load(workload.mix) for workload in classes}
        self.pools = list(pools)
        self.nodes = dict(nodes)
        self.rules = rules
        self.steps = {pool.id: rules.backend.compile([pool.config]) for pool in pools}
        self.engines: dict[str, tuple[Engine, Floats]] = {}
        self.services: dict[str, dict[str, tuple[PrefillService, PrefillService]]] = {}
        self.violations: list[str] = []
        self.warnings: list[str] = []

    def run(self) -> Verification:
        self._demand()
        self._hardware()
        states = {pool.id: self._pool(pool) for pool in self.pools}
        slos = {name: self._promises(workload) for name, workload in self.classes.items()}
        return Verification(
            cost_usd_per_hour=self._cost(),
            pools=states,
            slos=slos,
            violations=tuple(self.violations),
            warnings=tuple(dict.fromkeys(self.warnings)),
        )

    def _break(self, text: str) -> None:
        self.violations.append(text)

    # ---- demand, nodes, money --------------------------------------------------------------

    def _demand(self) -> None:
        for name, workload in self.classes.items():
            served = math.fsum(
                pool.requests_per_s.get(name, 0.0) for pool in self.pools if pool.role != "decode"
            )
            asked = workload.rate_per_s[0]
            if served < asked * (1 - TOLERANCE):
                self._break(f"{name}: {served:.6g} of {asked:.6g} requests/s are served")
            for group in {pool.kv_group for pool in self.pools}:
                here = [pool for pool in self.pools if pool.kv_group == group]
                sent, received = (
                    math.fsum(p.requests_per_s.get(name, 0.0) for p in here if p.role == role)
                    for role in ("prefill", "decode")
                )
                if abs(sent - received) > TOLERANCE * max(sent, received):
                    self._break(
                        f"{name}: at {group[0]} {sent:.6g} requests/s are prefilled but "
                        f"{received:.6g} decoded with KV cache in {group[2]} on {group[1]}"
                    )

    def _hardware(self) -> None:
        rules = self.rules
        used: dict[tuple[str, str, int], int] = {}
        for pool in self.pools:
            used[pool.node_group] = used.get(pool.node_group, 0) + pool.gpus
        held: dict[tuple[str, str, int], int] = {}
        for offer_id, count in self.nodes.items():
            offer = rules.offers[offer_id]
            key = (offer.site, offer.accelerator, offer.gpus_per_node)
            held[key] = held.get(key, 0) + count * offer.gpus_per_node
            if offer.available_nodes is not None and count > offer.available_nodes:
                self._break(f"{count} nodes of {offer_id}, {offer.available_nodes} available")
        for key, gpus in used.items():
            if gpus > held.get(key, 0):
                self._break(
                    f"{gpus} {key[1]} in use at {key[0]} in nodes of {key[2]}, "
                    f"{held.get(key, 0)} held"
                )
        for stock in rules.stocks:
            count = sum(self.nodes.get(offer, 0) for offer in stock.offers)
            if count > stock.nodes:
                self._break(f"{count} nodes of {stock.name}, {stock.nodes} available")
        budget = rules.budget_usd_per_hour
        if budget is not None and self._cost() > budget * (1 + TOLERANCE):
            self._break(f"${self._cost():,.2f}/hour, the budget is ${budget:,.2f}")
        if rules.max_pool_kinds_per_model is not None:
            for model in {pool.config.model.id for pool in self.pools}:
                kinds = sum(pool.config.model.id == model for pool in self.pools)
                if kinds > rules.max_pool_kinds_per_model:
                    self._break(
                        f"{model}: {kinds} kinds of pool, {rules.max_pool_kinds_per_model} allowed"
                    )

    def _cost(self) -> float:
        return math.fsum(
            self.rules.offers[offer].price_usd_per_node_hour * count
            for offer, count in self.nodes.items()
        )

    # ---- pools -------------------------------------------------------------------------------

    def _pool(self, pool: FleetPool) -> PoolState:
        config = pool.config
        step = self.steps[pool.id]
        if pool.role not in self.rules.roles:
            self._break(f"{pool.id}: the role {pool.role} is not allowed")
        if config.layout.gpus > self.rules.max_gpus_per_replica:
            self._break(f"{pool.id}: {config.layout.gpus} GPUs per replica are too many")
        names = [name for name, rate in pool.requests_per_s.items() if rate > 0]
        for name in names:
            workload = self.classes[name]
            if workload.model != config.model.id:
                self._break(f"{pool.id}: {name} uses another model, {workload.model}")
            pair = (config.weight_precision, config.kv_precision)
            if pair not in workload.precision_pairs:
                self._break(f"{pool.id}: {name} does not accept {pair[0]} with KV {pair[1]}")
            batched = (pool.chunk_tokens or 0) + float(step.max_num_seqs_per_rank(0))
            if not bool(step.longest_fits(0, self.loads[name].longest_tokens, batched)):
                self._break(
                    f"{pool.id}: the longest request of {name}, "
                    f"{self.loads[name].longest_tokens:,.0f} tokens, does not fit in memory"
                )
        if not names:
            return PoolState({"busy": 0.0}, {"idle": 0.0})
        if pool.role == "prefill":
            return self._prefill_pool(pool, names)
        return self._engine_pool(pool, names)

    def _engine_pool(self, pool: FleetPool, names: list[str]) -> PoolState:
        step, config = self.steps[pool.id], pool.config
        loads = [self.loads[name] for name in names]
        profiles = None
        if pool.role == "aggregated":
            assert pool.chunk_tokens is not None
            chunks = np.array([float(pool.chunk_tokens)])
            profiles = [chunk_profile(step, load, chunks) for load in loads]
        engine = Engine(step, loads, profiles)
        rate = np.array([[pool.requests_per_s[name] / pool.replicas for name in names]])
        batch, point = engine.operating_point(rate)
        self.engines[pool.id] = (engine, batch)
        if not np.isfinite(point.step_s[0]):
            self._break(f"{pool.id}: overloaded, no step time balances the load")
            return PoolState({"busy": math.inf}, {"overload": math.inf}, math.inf, math.inf)
        chunk = pool.chunk_tokens or 0
        room = float(step.kv_room_bytes(0, chunk + float(step.max_num_seqs_per_rank(0))))
        held = float(engine.kv_bytes(batch)[0])
        sequences = float(step.max_num_seqs(0))
        pressure = {
            "hbm_capacity": held / (config.engine.kv_occupancy_limit_fraction * room),
            "batch_limit": float(batch.sum()) / sequences,
        }
        if pool.role == "aggregated":
            cap = config.engine.aggregated_utilization_cap_fraction
            pressure["chunk_budget"] = float(
                point.prefill_tokens[0] / engine.chunk_capacity_tokens()[0]
            )
            pressure["prefill_utilization"] = float(point.prefill_utilization[0]) / cap
        for index, name in enumerate(names):
            for limit in self.classes[name].tpot_limits:
                value = float(engine.tpot_s(batch, limit.percentile)[0])
                _raise(pressure, "tpot", value / limit.limit_s)
            if pool.role == "aggregated":
                for limit in self.classes[name].ttft_limits:
                    value = float(engine.first_token_s(point, index, limit.percentile)[0])
                    _raise(pressure, "ttft", value / limit.limit_s)
        step_s = float(point.step_s[0])
        accepted = float(engine.accepted[0])
        verified = float(engine.verified[0])
        use = {"compute": 0.0, "interconnect": 0.0}
        reads = float(step.weight_read_s(0, max(batch.sum(), 1.0) * verified)) / step_s
        for load, per_second in zip(loads, rate[0].tolist(), strict=True):
            steps = per_second * load.output_mean / accepted
            use["compute"] += (
                steps
                * verified
                * (
                    float(step.compute_s_per_token(0))
                    + float(step.compute_s_per_sequence(0, load.context_mean))
                )
            )
            use["interconnect"] += steps * verified * float(step.collective_s_per_token(0))
            reads += steps * float(step.kv_read_s(0, load.context_mean))
            if pool.role == "aggregated":
                prompt = step.prefill_compute_s(0, load.uncached, load.cached) @ load.weight
                use["compute"] += per_second * float(prompt)
                use["interconnect"] += (
                    per_second * load.uncached_mean * float(step.collective_s_per_token(0))
                )
        use["hbm_bandwidth"] = reads
        use["hbm_capacity"] = held / room
        use["kv_transfer"] = self._transfer(pool, names) if pool.role == "decode" else 0.0
        pressure["kv_transfer"] = use["kv_transfer"]
        self._check(pool, pressure)
        use["busy"] = max(pressure.values())
        prefill, cached = self._prompt_seconds(pool, engine, batch, names, rate)
        decode_share = batch[0] * engine.sequence_s[0] + batch[0] / max(batch.sum(), 1e-300) * (
            float(point.decode_s[0]) - float((batch[0] * engine.sequence_s[0]).sum())
        )
        return PoolState(
            use,
            pressure,
            step_s,
            float(batch.sum()),
            prefill,
            cached,
            {
                name: float(share) / step_s * pool.replicas
                for name, share in zip(names, decode_share.tolist(), strict=True)
            },
        )

    def _prompt_seconds(
        self, pool: FleetPool, engine: Engine, batch: Floats, names: list[str], rate: Floats
    ) -> tuple[dict[str, float], dict[str, float]]:
        if engine.profiles is None:
            return {}, {}
        each = engine.stall_per_request_s(batch)[0]
        prefill, cached = {}, {}
        for k, name in enumerate(names):
            load = engine.loads[k]
            seconds = float(rate[0, k] * each[k]) * pool.replicas
            prefill[name] = seconds
            cached[name] = seconds * _cached_share(self.steps[pool.id], load, pool.chunk_tokens)
        return prefill, cached

    def _prefill_pool(self, pool: FleetPool, names: list[str]) -> PoolState:
        step = self.steps[pool.id]
        assert pool.chunk_tokens is not None
        rates = {name: pool.requests_per_s[name] for name in names}
        self.services[pool.id] = {
            name: prefill_service(
                step,
                self.loads[name],
                np.array([float(pool.chunk_tokens)]),
                np.array([self._receiving_rate(pool, name)]),
            )
            for name in names
        }
        busy = math.fsum(
            rate * float(self.services[pool.id][name][0].moments(self.loads[name].weight)[0][0])
            for name, rate in rates.items()
        )
        packed = math.fsum(
            rate * float(self.services[pool.id][name][1].moments(self.loads[name].weight)[0][0])
            for name, rate in rates.items()
        )
        load_share = min(busy, packed) / pool.replicas
        pressure = {"prefill_load": load_share}
        for name in names:
            for limit in self.classes[name].ttft_limits:
                value = self._prefill_ttft_s(pool, name, limit.percentile)
                _raise(pressure, "ttft", value / limit.limit_s)
        use = {"compute": 0.0, "interconnect": 0.0, "hbm_bandwidth": 0.0, "hbm_capacity": 0.0}
        chunk = pool.chunk_tokens * float(step.prompt_lanes(0))
        for name, rate in rates.items():
            load = self.loads[name]
            each = rate / pool.replicas
            prompt = step.prefill_compute_s(0, load.uncached, load.cached) @ load.weight
            use["compute"] += each * float(prompt)
            use["interconnect"] += each * load.uncached_mean * float(step.collective_s_per_token(0))
            use["hbm_bandwidth"] += (
                each * load.uncached_mean / chunk * float(step.weight_read_s(0, chunk))
            )
        use["kv_transfer"] = self._transfer(pool, names)
        pressure["kv_transfer"] = use["kv_transfer"]
        self._check(pool, pressure)
        use["busy"] = max(pressure.values())
        seconds = {
            name: rate
            * float(self.services[pool.id][name][0].moments(self.loads[name].weight)[0][0])
            for name, rate in rates.items()
        }
        cached = {
            name: value * _cached_share(step, self.loads[name], pool.chunk_tokens)
            for name, value in seconds.items()
        }
        return PoolState(use, pressure, None, None, seconds, cached, {})

    def _check(self, pool: FleetPool, pressure: Mapping[str, float]) -> None:
        for name, value in pressure.items():
            if value > 1 + TOLERANCE:
                self._break(f"{pool.id}: {name.replace('_', ' ')} at {value:.6f} of its limit")

    def _transfer(self, pool: FleetPool, names: list[str]) -> float:
        """Share of the replicas' network that KV transfers take."""
        step = self.steps[pool.id]
        moved = math.fsum(
            pool.requests_per_s[name]
            * float(step.kv_transfer_bytes(0, self.loads[name].prompt) @ self.loads[name].weight)
            for name in names
        )
        return moved / pool.replicas / float(step.nic_bytes_per_s(0))

    def _receiving_rate(self, pool: FleetPool, name: str) -> float:
        """Slowest link on the way of a class's cache: this pool's, or that of a receiver."""
        rates = [float(self.steps[pool.id].nic_bytes_per_s(0))]
        rates += [
            float(self.steps[other.id].nic_bytes_per_s(0))
            for other in self.pools
            if other.role == "decode"
            and other.kv_group == pool.kv_group
            and other.requests_per_s.get(name, 0.0) > 0
        ]
        return min(rates)

    def _prefill_ttft_s(self, pool: FleetPool, name: str, percentile: float | None) -> float:
        """TTFT of a class in a prefill pool; the better of the two bounds on its engine."""
        load = self.loads[name]
        best = math.inf
        for variant in (0, 1):
            total = first = second = 0.0
            for other, rate in pool.requests_per_s.items():
                if rate <= 0:
                    continue
                service = self.services[pool.id][other][variant]
                mean, square = service.moments(self.loads[other].weight)
                first += rate * float(mean[0])
                second += rate * float(square[0])
                total += rate
            if first >= pool.replicas:
                continue
            own = self.services[pool.id][name][variant].own_s[0]
            best = min(
                best,
                ttft_quantile(
                    percentile,
                    own,
                    load.weight,
                    servers=pool.replicas,
                    load_erlangs=first,
                    mean_service_s=first / total,
                    second_moment_service_s2=second / total,
                ),
            )
        spread = self.services[pool.id][name][0]
        mean, square = spread.moments(load.weight)
        if pool.replicas <= 2 and float(square[0] / mean[0] ** 2) - 1 > 2.0:
            self.warnings.append(
                f"{pool.id}: prompts of very different lengths on {pool.replicas} replica(s); the "
                "TTFT formula understates the tail of so small a pool by up to a third"
            )
        return best

    # ---- promises -----------------------------------------------------------------------------

    def _promises(self, workload: WorkloadClass) -> tuple[SloState, ...]:
        states = []
        for slo in workload.slos:
            value, proven, first = self._slo_s(workload, slo)
            state = SloState(slo, value, proven, first)
            if not state.kept:
                self._break(f"{workload.name}: {slo} is missed: {value * 1e3:,.6g} ms")
            states.append(state)
        return tuple(states)

    def _slo_s(self, workload: WorkloadClass, slo: Slo) -> tuple[float, bool, float]:
        """Predicted value of a promise, whether queueing proves it, and its first token.

        e2e and TTFT with hidden tokens follow by the union bound.
        """
        mix = workload.mix
        if slo.metric == "tpot":
            return (*self._tpot_s(workload.name, slo.percentile), 0.0)
        hidden = slo.metric == "ttft"
        if hidden and mix.max_hidden_tokens == 0:
            ttft, proven = self._ttft_s(workload.name, slo.percentile)
            return ttft, proven, ttft
        inner = None if slo.percentile is None else 1 - (1 - slo.percentile) / 3
        if inner is None:
            after = mix.hidden_tokens_mean if hidden else mix.mean_output - 1
        else:
            after = mix.hidden_quantile(inner) if hidden else mix.output_quantile(inner) - 1
        first = slo.percentile if after <= 0 else inner
        ttft, proven = self._ttft_s(workload.name, first)
        if after <= 0:
            return ttft, proven, ttft
        tpot, tpot_proven = self._tpot_s(workload.name, inner)
        return ttft + after * tpot, proven and tpot_proven, ttft

    def _serving(self, name: str, roles: tuple[str, ...]) -> list[FleetPool]:
        return [
            pool
            for pool in self.pools
            if pool.role in roles and pool.requests_per_s.get(name, 0.0) > 0
        ]

    def _tpot_s(self, name: str, percentile: float | None) -> tuple[float, bool]:
        worst, proven = 0.0, True
        for pool in self._serving(name, ("decode", "aggregated")):
            engine, batch = self.engines[pool.id]
            worst = max(worst, float(engine.tpot_s(batch, percentile)[0]))
            proven &= pool.role == "decode" or percentile is None
        return worst, proven

    def _ttft_s(self, name: str, percentile: float | None) -> tuple[float, bool]:
        worst, proven = 0.0, True
        for pool in self._serving(name, ("prefill", "aggregated")):
            if pool.role == "prefill":
                worst = max(worst, self._prefill_ttft_s(pool, name, percentile))
                continue
            proven = False
            engine, batch = self.engines[pool.id]
            names = [each for each, rate in pool.requests_per_s.items() if rate > 0]
            value = engine.first_token_s(engine.point(batch), names.index(name), percentile)
            worst = max(worst, float(value[0]))
        return worst, proven


def _raise(pressure: dict[str, float], name: str, value: float) -> None:
    pressure[name] = max(pressure.get(name, 0.0), value)


def _cached_share(step: StepTimes, load: ClassLoad, chunk_tokens: int | None) -> float:
    """Share of prefill time that attention over cached tokens takes."""
    if not load.cached.any() or chunk_tokens is None:
        return 0.0
    whole = float(step.prefill_time_s(0, load.uncached, load.cached, chunk_tokens) @ load.weight)
    without = float(step.prefill_time_s(0, load.uncached, 0.0, chunk_tokens) @ load.weight)
    return max(whole - without, 0.0) / whole
