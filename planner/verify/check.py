"""The re-evaluation itself: demand, hardware and money, operating points, promises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.perf.backend import StepTimes
from planner.pools.cache import (
    CACHE_SHARE,
    least_replicas_of_cache,
    prefill_cache_share,
)
from planner.pools.decode import POOL_SIZES, Engine, EnginePoint
from planner.pools.loads import ClassLoad, class_load, mixed_load
from planner.pools.prefill import PrefillService, prefill_service
from planner.pools.prompts import ALL, chunk_profile
from planner.queueing.routed_tables import ttft_of_pool
from planner.queueing.work import Work
from planner.verify.records import (
    TOLERANCE,
    FleetPool,
    FleetRules,
    PoolState,
    SloState,
    Verification,
)
from planner.workload.classes import HitLevel, Slo, WorkloadClass
from planner.workload.mix import TokenMix

Floats = NDArray[np.float64]


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
        self.loads = {
            workload.name: class_load(workload.mix, workload.arrival_scv) for workload in classes
        }
        self.pools = list(pools)
        self.nodes = dict(nodes)
        self.rules = rules
        self.steps = {pool.id: rules.backend.compile([pool.config]) for pool in pools}
        self.engines: dict[str, tuple[Engine, Floats]] = {}
        self.prefill_loads: dict[str, dict[str, ClassLoad]] = {}
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
        rate = np.array([[pool.requests_per_s[name] / pool.replicas for name in names]])
        engine, batch, point = self._engine(pool, names, rate)
        loads = engine.loads
        self.engines[pool.id] = (engine, batch)
        if not np.isfinite(point.step_s[0]):
            self._break(f"{pool.id}: overloaded, no step time balances the load")
            return PoolState({"busy": math.inf}, {"overload": math.inf}, math.inf, math.inf)
        chunk = pool.chunk_tokens or 0
        room = float(step.kv_room_bytes(0, chunk + float(step.max_num_seqs_per_rank(0))))
        held = float(engine.kv_bytes(batch)[0])
        sequences = float(step.max_num_seqs(0))
        free = room * (1.0 - engine.cache_share)
        pressure = {
            "hbm_capacity": held / (config.engine.kv_occupancy_limit_fraction * room),
            "hbm_capacity_peak": float(engine.kv_bytes_peak(batch, point)[0]) / free,
            "batch_limit": float(engine.batch_peak(batch, point)[0]) / sequences,
        }
        if pool.role == "aggregated":
            cap = config.engine.aggregated_utilization_cap_fraction
            pressure["chunk_budget"] = float(
                point.prefill_tokens[0] / engine.chunk_room_tokens(batch)[0]
            )
            pressure["prefill_utilization"] = float(point.prefill_utilization[0]) / cap
        for index, name in enumerate(names):
            for limit in self.classes[name].tpot_limits:
                value = _tpot_s(engine, batch, index, limit.percentile, pool.replicas)
                _raise(pressure, "tpot", value / limit.limit_s)
            if pool.role == "aggregated":
                for limit in self.classes[name].ttft_limits:
                    value = _first_token_s(engine, batch, index, limit.percentile, pool.replicas)
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
            {
                name: float(load.cached @ load.weight)
                for name, load in zip(names, loads, strict=True)
            },
        )

    def _engine(
        self, pool: FleetPool, names: list[str], rate: Floats
    ) -> tuple[Engine, Floats, EnginePoint]:
        """The engine at its operating point, with the most hits that its prefix cache has room
        for beside the requests in flight.
        """
        step = self.steps[pool.id]
        if pool.role == "decode":
            engine = Engine(step, [self.loads[name] for name in names])
            return (engine, *engine.operating_point(rate))
        assert pool.chunk_tokens is not None
        chunks = np.array([float(pool.chunk_tokens)])
        batched = chunks + step.max_num_seqs_per_rank(ALL)

        def at(mixes: list[TokenMix], cache_share: float) -> tuple[Engine, Floats, EnginePoint]:
            loads = [
                mixed_load(mix, self.classes[name].arrival_scv)
                for name, mix in zip(names, mixes, strict=True)
            ]
            profiles = [chunk_profile(step, load, chunks) for load in loads]
            engine = Engine(step, loads, profiles, cache_share)
            return (engine, *engine.operating_point(rate))

        for level in reversed(self._hit_levels(names)):
            found = at([level.mix], CACHE_SHARE)
            load = found[0].loads[0]
            least = least_replicas_of_cache(step, batched, load, level.cache_tokens)
            room = step.kv_room_bytes(ALL, batched) * (1.0 - CACHE_SHARE)
            peak = found[0].kv_bytes_peak(found[1], found[2])
            if least[0] <= pool.replicas and peak[0] <= room[0]:
                return found
        return at([self.classes[name].mix for name in names], 0.0)

    def _hit_levels(self, names: list[str]) -> Sequence[HitLevel]:
        """Hits that hang on the room for a prefix cache count in pools of one class only."""
        return self.classes[names[0]].hit_levels if len(names) == 1 else ()

    def _prefill_load(self, pool: FleetPool, names: list[str]) -> dict[str, ClassLoad]:
        """Moments of each class in a prefill pool, hits in its prefix cache included."""
        step = self.steps[pool.id]
        assert pool.chunk_tokens is not None
        batched = np.array([float(pool.chunk_tokens)]) + step.max_num_seqs_per_rank(ALL)
        for level in reversed(self._hit_levels(names)):
            load = class_load(level.mix, self.classes[names[0]].arrival_scv)
            share = prefill_cache_share(step, batched, load)
            least = least_replicas_of_cache(step, batched, load, level.cache_tokens, share)
            if least[0] <= pool.replicas:
                return {names[0]: load}
        return {name: self.loads[name] for name in names}

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
        loads = self.prefill_loads[pool.id] = self._prefill_load(pool, names)
        self.services[pool.id] = {
            name: prefill_service(
                step,
                loads[name],
                np.array([float(pool.chunk_tokens)]),
                np.array([self._receiving_rate(pool, name)]),
            )
            for name in names
        }
        busy = math.fsum(
            rate * float(self.services[pool.id][name][0].moments(loads[name].weight)[0][0])
            for name, rate in rates.items()
        )
        packed = math.fsum(
            rate * float(self.services[pool.id][name][1].moments(loads[name].weight)[0][0])
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
            load = loads[name]
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
            name: rate * float(self.services[pool.id][name][0].moments(loads[name].weight)[0][0])
            for name, rate in rates.items()
        }
        cached = {
            name: value * _cached_share(step, loads[name], pool.chunk_tokens)
            for name, value in seconds.items()
        }
        found = {name: float(load.cached @ load.weight) for name, load in loads.items()}
        return PoolState(use, pressure, None, None, seconds, cached, {}, found)

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
        loads = self.prefill_loads[pool.id]
        rates = {name: pool.requests_per_s[name] for name in loads}
        share = np.array([*rates.values()]) / math.fsum(rates.values())
        best = math.inf
        for variant in (0, 1):
            services = {each: self.services[pool.id][each][variant] for each in loads}
            work = Work(
                [services[each].busy_s for each in loads],
                [loads[each].weight for each in loads],
                share,
            )
            erlangs = math.fsum(rates.values()) * float(work.moments()[0][0])
            if erlangs >= pool.replicas:
                continue
            value = ttft_of_pool(
                percentile,
                services[name].own_s[0],
                loads[name].weight,
                work,
                servers=pool.replicas,
                load_erlangs=erlangs,
                routing=pool.config.engine.routing,
                ca2=max(1.0, *(each.arrival_scv for each in loads.values())),
            )
            best = min(best, value)
        return best

    # ---- promises -----------------------------------------------------------------------------

    def _promises(self, workload: WorkloadClass) -> tuple[SloState, ...]:
        states = []
        for slo in workload.slos:
            value, first = self._slo_s(workload, slo)
            state = SloState(slo, value, first)
            if not state.kept:
                self._break(f"{workload.name}: {slo} is missed: {value * 1e3:,.6g} ms")
            states.append(state)
        return tuple(states)

    def _slo_s(self, workload: WorkloadClass, slo: Slo) -> tuple[float, float]:
        """Predicted value of a promise, and its first token.

        e2e and TTFT with hidden tokens follow by the union bound.
        """
        mix = workload.mix
        if slo.metric == "tpot":
            return self._tpot_s(workload.name, slo.percentile), 0.0
        hidden = slo.metric == "ttft"
        if hidden and mix.max_hidden_tokens == 0:
            ttft = self._ttft_s(workload.name, slo.percentile)
            return ttft, ttft
        inner = None if slo.percentile is None else 1 - (1 - slo.percentile) / 3
        if inner is None:
            after = mix.hidden_tokens_mean if hidden else mix.mean_output - 1
        else:
            after = mix.hidden_quantile(inner) if hidden else mix.output_quantile(inner) - 1
        ttft = self._ttft_s(workload.name, slo.percentile if after <= 0 else inner)
        if after <= 0:
            return ttft, ttft
        return ttft + after * self._tpot_s(workload.name, inner), ttft

    def _serving(self, name: str, roles: tuple[str, ...]) -> list[FleetPool]:
        return [
            pool
            for pool in self.pools
            if pool.role in roles and pool.requests_per_s.get(name, 0.0) > 0
        ]

    def _tpot_s(self, name: str, percentile: float | None) -> float:
        worst = 0.0
        for pool in self._serving(name, ("decode", "aggregated")):
            engine, batch = self.engines[pool.id]
            place = self._place(pool, name)
            worst = max(worst, _tpot_s(engine, batch, place, percentile, pool.replicas))
        return worst

    def _ttft_s(self, name: str, percentile: float | None) -> float:
        worst = 0.0
        for pool in self._serving(name, ("prefill", "aggregated")):
            if pool.role == "prefill":
                worst = max(worst, self._prefill_ttft_s(pool, name, percentile))
                continue
            engine, batch = self.engines[pool.id]
            place = self._place(pool, name)
            worst = max(worst, _first_token_s(engine, batch, place, percentile, pool.replicas))
        return worst

    @staticmethod
    def _place(pool: FleetPool, name: str) -> int:
        """Index of a class among those of a pool's engine."""
        return [each for each, rate in pool.requests_per_s.items() if rate > 0].index(name)


def _sizes(replicas: int) -> list[int]:
    """The pool's size, and the listed ones below it.

    At the same load on each replica a larger pool makes nobody wait longer. The forms of
    aggregated pools, which join several approximations, can say otherwise by a few percent; then
    what they say of the smaller pool holds.
    """
    return [*(size for size in POOL_SIZES if size < replicas), replicas]


def _first_token_s(
    engine: Engine, batch: Floats, index: int, percentile: float | None, replicas: int
) -> float:
    """TTFT of a class in an aggregated pool."""
    sizes = _sizes(replicas)
    return min(float(engine.first_token_s(batch, index, percentile, n)[0]) for n in sizes)


def _tpot_s(
    engine: Engine, batch: Floats, index: int, percentile: float | None, replicas: int
) -> float:
    """TPOT of a class in a decode pool or an aggregated one."""
    sizes = [1, replicas] if engine.profiles is None else _sizes(replicas)
    return min(float(engine.tpot_s(batch, index, percentile, n)[0]) for n in sizes)


def _raise(pressure: dict[str, float], name: str, value: float) -> None:
    pressure[name] = max(pressure.get(name, 0.0), value)


def _cached_share(step: StepTimes, load: ClassLoad, chunk_tokens: int | None) -> float:
    """Share of prefill time that attention over cached tokens takes."""
    if not load.cached.any() or chunk_tokens is None:
        return 0.0
    whole = float(step.prefill_time_s(0, load.uncached, load.cached, chunk_tokens) @ load.weight)
    without = float(step.prefill_time_s(0, load.uncached, 0.0, chunk_tokens) @ load.weight)
    return max(whole - without, 0.0) / whole
