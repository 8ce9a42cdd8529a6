"""What replicas can carry, found by scanning the full model; no candidate table, no levels.

A *carrying function* tells, for shares 0..1 of the first class's demand (a grid), how many
requests/s of the second class can be carried beside it; minus infinity where the first does not
fit. With one class the grid has one point and the function is a number. Pools side by side add
up by `beside`, alternatives by the pointwise maximum.

Engines are scanned in batch space: along many directions of the batch composition, a grid of
batches finds the largest that keeps every limit of the full model, and bisection sharpens it.
Prefill pools are scanned over mixes of the classes, the largest load found by bisection on the
tail of the TTFT formula at the mix's own moments.

Some published rules of the planning problem are followed here as well: a KV cache is priced at
the slowest transfer rate that a decode pool may have (a tenth of the TTFT limit for a prompt of
the length at the percentile), decode pools must be at least as fast, prefill pools whose
classes have no TTFT limit are loaded to nine tenths, and an aggregated pool waits as one of the
largest size in a list that it reaches, where that fills a replica 5 % further. `exact_waits`
leaves the last one out: then every pool waits as one of its own size or any smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from brute_loads import MixedWork, largest_loads
from numpy.typing import NDArray

from planner import catalog
from planner.perf.coefficients import StepModel
from planner.perf.config import PoolConfig, config_problem, enumerate_layouts
from planner.perf.memory import LARGE_GPU_BYTES
from planner.pools.decode import Engine, EnginePoint
from planner.pools.loads import class_load, mixed_load, upper_quantile
from planner.pools.prefill import prefill_service
from planner.pools.prompts import chunk_profile, prompt_queue
from planner.problem import Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Group = tuple[str, str, int]

TRANSFER_SHARE = 0.1
LOAD_WITHOUT_LIMIT = 0.9
SIZES = (1, 4, 16)
SHARED_SIZES = (1, 4)
GAIN = 0.95
PEAK_SIGMAS = 2.33
DIRECTIONS = 49
MIXED_DIRECTIONS = 25
"""Fewer for aggregated engines and prefill pools, whose laws take longer."""
BATCHES = 24
BISECTIONS = 16
CARRY_NOTHING = -np.inf


@dataclass(frozen=True)
class Carrier:
    """`gpus` GPUs of a node group that carry what `function` says, in one role."""

    role: str
    group: Group
    kv_group: tuple[str, str, str]
    gpus: int
    function: Floats


def beside(one: Floats, other: Floats) -> Floats:
    """Carrying function of two pools side by side, the first class split at grid points."""
    size = len(one)
    if size == 1:
        return one + other
    padded = np.concatenate([np.full(size - 1, CARRY_NOTHING), other])
    # Row m holds other[m - i] for i = 0..m.
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[:, ::-1]
    return np.asarray((windows + one).max(axis=1))


class Replicas:
    """All carriers of a problem, for a grid of `steps` shares of the first class's demand."""

    def __init__(
        self, problem: Problem, steps: int, largest_pool: int = 8, exact_waits: bool = False
    ) -> None:
        self.problem = problem
        self.served = problem.models[0]
        self.classes = problem.classes
        self.exact_waits = exact_waits
        self.loads = [class_load(workload.mix) for workload in problem.classes]
        self.mixed = [mixed_load(workload.mix) for workload in problem.classes]
        self.rates = np.array([workload.rate_per_s[0] for workload in problem.classes])
        self.largest_pool = largest_pool
        first = self.rates[0] if len(self.classes) == 2 else 0.0
        self.grid = np.linspace(0.0, first, steps + 1) if first else np.zeros(1)
        self.hosts: dict[PoolConfig, set[Group]] = {}
        self._enumerate()
        self.configs = list(self.hosts)
        if self.configs:
            self.step = StepModel(self.configs)

    def _enumerate(self) -> None:
        limit = self.problem.instance.fleet.max_gpus_per_replica
        served = self.served
        for offer in self.problem.offers:
            chip = catalog.find_accelerator(offer.accelerator)
            for layout in enumerate_layouts(served.card, chip, limit, offer.gpus_per_node):
                for weights in served.weight_precisions:
                    for cache in served.kv_precisions:
                        config = PoolConfig(
                            served.card, chip, layout, weights, cache, served.engine
                        )
                        if config_problem(config) is None:
                            group = (offer.site, offer.accelerator, offer.gpus_per_node)
                            self.hosts.setdefault(config, set()).add(group)

    def carriers(self) -> Iterator[Carrier]:
        """One carrier per decode replica, and per pool of each size in the other roles."""
        if not self.configs:
            return
        roles = self.problem.instance.roles
        for members in self._class_sets():
            for chunk in self.served.engine.chunk_budgets_tokens:
                config = self.admitted(members, chunk)
                if len(config) and "aggregated" in roles:
                    yield from self._engines(members, config, chunk)
                if len(config) and "prefill" in roles:
                    yield from self._prefill_pools(members, config, chunk)
            config = self.fast_enough(members, self.admitted(members, 0))
            if len(config) and "decode" in roles:
                yield from self._engines(members, config, None)

    def _class_sets(self) -> list[tuple[int, ...]]:
        count = len(self.classes)
        return [
            chosen for size in range(1, count + 1) for chosen in combinations(range(count), size)
        ]

    def admitted(self, members: tuple[int, ...], chunk: int) -> Ints:
        """Configurations of accepted precision whose memory holds the longest request."""
        good = []
        batched = chunk + self._sequences_per_group(np.arange(len(self.configs)))
        for index, config in enumerate(self.configs):
            pair = (config.weight_precision, config.kv_precision)
            accepted = all(pair in self.classes[k].precision_pairs for k in members)
            longest = max(self.loads[k].longest_tokens for k in members)
            if accepted and bool(self.step.longest_fits(index, longest, batched[index])):
                good.append(index)
        return np.array(good, dtype=np.int64)

    def fast_enough(self, members: tuple[int, ...], config: Ints) -> Ints:
        if not len(config):
            return config
        slowest = np.max([self._slowest_rate(k, config) for k in members], axis=0)
        return np.asarray(config[self.step.nic_bytes_per_s(config) >= slowest])

    def _slowest_rate(self, k: int, config: Ints) -> Floats:
        load = self.loads[k]
        moved = self.step.kv_transfer_bytes(config[:, None], load.prompt)
        rate = np.zeros(len(config))
        for limit in self.classes[k].ttft_limits:
            tail = upper_quantile(moved, load.weight, limit.percentile)
            rate = np.maximum(rate, tail / (TRANSFER_SHARE * limit.limit_s))
        return rate

    def _carry(self, members: tuple[int, ...], rates: Floats) -> Floats:
        """Carrying function of frontier points `rates` (points, members), in requests/s.

        Less load than a frontier point is always carried.
        """
        size = len(self.grid)
        if len(self.classes) == 1:
            return np.asarray(rates.max(axis=0))
        result = np.full(size, CARRY_NOTHING)
        if members == (1,):
            result[0] = rates.max()
        elif members == (0,):
            result[self.grid <= rates.max() * (1 + 1e-12)] = 0.0
        else:
            order = np.argsort(rates[:, 0])
            first, second = rates[order, 0], rates[order, 1]
            best = np.maximum.accumulate(second[::-1])[::-1]
            inside = self.grid <= first[-1]
            result[inside] = np.interp(self.grid[inside], first, best)
        return result

    def _placed(self, role: str, index: int, replicas: int, function: Floats) -> Iterator[Carrier]:
        config = self.configs[index]
        for group in sorted(self.hosts[config]):
            yield Carrier(
                role,
                group,
                (group[0], config.accelerator.vendor, config.kv_precision),
                config.layout.gpus * replicas,
                function,
            )

    # ---- decode and aggregated engines ------------------------------------------------------

    def _engines(
        self, members: tuple[int, ...], config: Ints, chunk: int | None
    ) -> Iterator[Carrier]:
        role = "decode" if chunk is None else "aggregated"
        sizes = self._sizes(members, chunk)
        reached = np.zeros(len(config))
        for size in sizes:
            rates = self.engine_frontier(members, config, chunk, size)
            counts = range(size, self.largest_pool + 1) if len(sizes) > 1 else range(1, 2)
            if len(members) == 1 and not self.exact_waits:
                batch = self._batches(members, config, chunk, rates[:, 0])
                gains = np.nan_to_num(batch) * GAIN > reached
                reached = np.where(gains, batch, reached)
                rates = np.where(gains[:, None, None], rates, np.nan)
            for position, index in enumerate(config.tolist()):
                points = rates[position]
                points = points[np.isfinite(points).all(axis=-1)]
                if len(points) and points.max() > 0:
                    for replicas in counts:
                        function = self._carry(members, points * replicas)
                        yield from self._placed(role, index, replicas, function)

    def _sizes(self, members: tuple[int, ...], chunk: int | None) -> list[int]:
        """Pool sizes at which waiting is looked at: one, where it does not depend on them."""
        if chunk is None or not any(self.classes[k].ttft_limits for k in members):
            return [1]
        if self.exact_waits:
            return list(range(1, self.largest_pool + 1))
        sizes = SIZES if len(members) == 1 else SHARED_SIZES
        return [size for size in sizes if size <= self.largest_pool]

    def _batches(
        self, members: tuple[int, ...], config: Ints, chunk: int | None, rates: Floats
    ) -> Floats:
        """Sequences in flight at `rates` (N, 1) of one class."""
        engine = self._engine(members, config, chunk)
        batch, _ = engine.operating_point(np.where(np.isfinite(rates), rates, 1e-9))
        return np.where(np.isfinite(rates), batch, np.nan)[:, 0]

    def engine_frontier(
        self, members: tuple[int, ...], config: Ints, chunk: int | None, replicas: int
    ) -> Floats:
        """Largest rates of one replica along each batch direction, (N, directions, members), in
        pools of so many replicas.

        nan where not even the smallest batch keeps the limits.
        """
        if len(members) == 1:
            shares = np.ones((len(config), 1, 1))
        else:
            ends = np.stack(
                [
                    self._scan(members, config, chunk, _unit(len(config), k), replicas)
                    for k in (0, 1)
                ],
                axis=-1,
            )
            # Directions even between the two classes' own largest batches.
            ends = np.where(np.isfinite(ends), ends, 1.0)
            part = np.linspace(0.0, 1.0, DIRECTIONS if chunk is None else MIXED_DIRECTIONS)
            shares = np.stack([part, 1.0 - part], axis=-1)[None] * ends[:, None, :]
            shares /= shares.sum(axis=-1, keepdims=True)
        count, directions, width = shares.shape
        many = np.repeat(config, directions)
        flat = shares.reshape(-1, width)
        batch = self._scan(members, many, chunk, flat, replicas)
        engine = self._engine(members, many, chunk)
        composition = np.where(np.isfinite(batch), batch, 1.0)[:, None] * flat
        rate = self._rate(engine, composition)
        rate[~np.isfinite(batch)] = np.nan
        return rate.reshape(count, directions, width)

    def _engine(self, members: tuple[int, ...], config: Ints, chunk: int | None) -> Engine:
        step = self.step.take(config)
        loads = [(self.loads if chunk is None else self.mixed)[k] for k in members]
        profiles = None
        if chunk is not None:
            budget = np.full(len(config), float(chunk))
            profiles = [chunk_profile(step, load, budget) for load in loads]
        return Engine(step, loads, profiles)

    def _scan(
        self,
        members: tuple[int, ...],
        config: Ints,
        chunk: int | None,
        shares: Floats,
        replicas: int,
    ) -> Floats:
        """Largest batch along each composition `shares` (N, members) that keeps all limits."""
        engine = self._engine(members, config, chunk)
        keeps = self._limits(members, engine, config, chunk, replicas)
        room = self._cache_room(config, chunk)
        high = np.minimum(
            room / engine.kv_bytes(shares), self._sequence_limit(config) / shares.sum(axis=-1)
        )
        high = np.maximum(high, 1e-3)
        best = np.full(len(config), np.nan)
        above = np.full(len(config), np.nan)
        for part in np.linspace(0.0, 1.0, BATCHES):
            batch = 1e-3 * (high / 1e-3) ** part
            good = keeps(batch[:, None] * shares)
            above = np.where(~good & np.isnan(above), batch, above)
            above = np.where(good, np.nan, above)
            best = np.where(good, batch, best)
        inside, outside = best.copy(), np.where(np.isnan(above), best, above)
        for _ in range(BISECTIONS):
            middle = 0.5 * (inside + outside)
            good = keeps(np.where(np.isfinite(middle), middle, 1.0)[:, None] * shares)
            inside, outside = np.where(good, middle, inside), np.where(good, outside, middle)
        return np.where(np.isfinite(best), inside, np.nan)

    def _sequence_limit(self, config: Ints) -> Floats:
        groups = [self.configs[i].layout.attention_data_parallel for i in config.tolist()]
        return self._sequences_per_group(config) * np.array(groups, dtype=np.float64)

    def _sequences_per_group(self, config: Ints) -> Floats:
        engine = self.served.engine
        large = np.array(
            [self.configs[i].accelerator.hbm_bytes >= LARGE_GPU_BYTES for i in config.tolist()]
        )
        small = min(engine.max_num_seqs, engine.max_num_seqs_small_gpu)
        return np.where(large, float(engine.max_num_seqs), float(small))

    def _cache_room(self, config: Ints, chunk: int | None) -> Floats:
        batched = (chunk or 0) + self._sequences_per_group(config)
        return np.maximum(self.step.kv_room_bytes(config, batched), 0.0)

    def _spread(self, engine: Engine, config: Ints, batch: Floats, point: EnginePoint) -> Floats:
        """Variance of the sequences in flight over their mean, (N,): 1 / (1 - rho), and once
        for each attention group. rho = 1 - (t0 + m) / step, the decode step linearised.
        """
        total = batch.sum(axis=-1, keepdims=True)
        whole = batch * np.maximum(1.0 / total, 1.0)
        count = np.maximum(total, 1.0)
        more_s = engine.decode_s(whole * (1.0 + 1.0 / count)) - point.decode_s
        fixed_s = np.maximum(point.decode_s - count[:, 0] * more_s, 1e-6 * point.decode_s)
        groups = [self.configs[i].layout.attention_data_parallel for i in config.tolist()]
        alone_s = np.minimum(fixed_s + more_s, point.step_s)
        return np.asarray(np.array(groups) * point.step_s / alone_s)

    def _held(self, members: tuple[int, ...], config: Ints) -> tuple[Floats, Floats]:
        """Mean cache of a sequence of each class, and the root of its square, (N, members)."""
        mean, root = [], []
        for k in members:
            load = self.loads[k]
            first = self.step.kv_bytes_per_sequence(config, load.context_mean)
            wide = self.step.kv_bytes_per_sequence(config, load.context_mean + load.context_std)
            mean.append(first)
            root.append(np.hypot(first, np.maximum(wide - first, 0.0)))
        return np.stack(mean, axis=-1), np.stack(root, axis=-1)

    @staticmethod
    def _rate(engine: Engine, batch: Floats) -> Floats:
        """Little's law: requests/s of a composition (N, members)."""
        step_s = engine.point(batch).step_s
        return np.asarray(batch * engine.accepted[:, None] / (engine.outputs * step_s[:, None]))

    def _limits(
        self,
        members: tuple[int, ...],
        engine: Engine,
        config: Ints,
        chunk: int | None,
        replicas: int,
    ) -> Callable[[Floats], Flags]:
        classes = [self.classes[k] for k in members]
        room, sequences = self._cache_room(config, chunk), self._sequence_limit(config)
        occupancy = self.served.engine.kv_occupancy_limit_fraction
        held, root = self._held(members, config)
        verified = engine.verified
        cap = self.served.engine.aggregated_utilization_cap_fraction
        moved = np.stack(
            [
                self.step.kv_transfer_bytes(config[:, None], self.loads[k].prompt)
                @ self.loads[k].weight
                for k in members
            ],
            axis=-1,
        )
        nic = self.step.nic_bytes_per_s(config)

        def keeps(batch: Floats) -> Flags:
            point = engine.point(batch)
            total, spread = batch.sum(axis=-1), self._spread(engine, config, batch, point)
            cache = (batch * held).sum(axis=-1)
            peak = PEAK_SIGMAS * np.sqrt((batch * root**2).sum(axis=-1) * spread)
            good = (cache <= occupancy * room) & (cache + peak <= room)
            good &= total + PEAK_SIGMAS * np.sqrt(total * spread) <= sequences
            if chunk is None:
                for workload in classes:
                    for limit in workload.tpot_limits:
                        good &= engine.tpot_s(batch, 0, limit.percentile) <= limit.limit_s
                good &= (self._rate(engine, batch) * moved).sum(axis=-1) <= nic
                return np.asarray(good)
            left = engine.chunk_capacity_tokens() - total * verified
            good &= point.prefill_tokens <= np.maximum(left, 1.0)
            good &= (point.prefill_utilization <= cap) & (point.prefill_utilization < 1.0)
            queue = prompt_queue(engine, batch, point)
            servers = np.full(len(batch), replicas)
            for position, workload in enumerate(classes):
                for limit in workload.tpot_limits:
                    allowed = np.full(len(batch), limit.limit_s)
                    good &= engine.keeps_tpot(
                        batch, position, limit.percentile, allowed, servers, point, queue
                    )
                for limit in workload.ttft_limits:
                    allowed = np.full(len(batch), limit.limit_s)
                    good &= engine.keeps_ttft(position, limit.percentile, allowed, servers, queue)
            return np.asarray(good)

        return keeps

    # ---- prefill pools ----------------------------------------------------------------------

    def _prefill_pools(
        self, members: tuple[int, ...], config: Ints, chunk: int
    ) -> Iterator[Carrier]:
        for packed in (False, True):
            rates = self.prefill_frontier(members, config, chunk, packed)
            for position, index in enumerate(config.tolist()):
                for replicas in range(1, self.largest_pool + 1):
                    points = rates[position, replicas - 1]
                    if points.max() <= 0:
                        continue
                    function = self._carry(members, points)
                    yield from self._placed("prefill", index, replicas, function)

    def prefill_frontier(
        self, members: tuple[int, ...], config: Ints, chunk: int, packed: bool
    ) -> Floats:
        """Largest rates of pools of 1..largest_pool replicas, (N, pool sizes, mixes, members)."""
        step, budget = self.step.take(config), np.full(len(config), float(chunk))
        nic = self.step.nic_bytes_per_s(config)
        services = []
        for k in members:
            slowest = self._slowest_rate(k, config)
            rate = np.where(slowest > 0, np.minimum(nic, np.maximum(slowest, 1.0)), nic)
            pair = prefill_service(step, self.loads[k], budget, rate)
            services.append(pair[1] if packed else pair[0])
        weights = [self.loads[k].weight for k in members]
        pairs = zip(services, weights, strict=True)
        mean_s = np.stack([service.busy_s @ weight for service, weight in pairs], axis=-1)
        part = np.linspace(0.0, 1.0, MIXED_DIRECTIONS)
        busy = np.ones((1, 1)) if len(members) == 1 else np.stack([part, 1.0 - part], axis=-1)
        # `busy` splits the load in erlangs; requests follow by each class's mean.
        mix = busy[None] / mean_s[:, None, :]
        work = MixedWork([service.busy_s for service in services], weights, busy)
        servers = np.arange(1.0, self.largest_pool + 1)
        load = np.broadcast_to(
            servers[None, :, None], (len(config), len(servers), len(busy))
        ).copy()
        limited = False
        for k, service in zip(members, services, strict=True):
            for limit in self.classes[k].ttft_limits:
                limited = True
                found = largest_loads(
                    servers,
                    work,
                    service.own_s,
                    self.loads[k].weight,
                    limit.limit_s,
                    limit.percentile,
                )
                load = np.minimum(load, found)
        if not limited:
            load *= LOAD_WITHOUT_LIMIT
        rates = load[..., None] * mix[:, None]
        moved = np.stack(
            [
                self.step.kv_transfer_bytes(config[:, None], self.loads[k].prompt)
                @ self.loads[k].weight
                for k in members
            ],
            axis=-1,
        )
        share = (rates * moved[:, None, None, :]).sum(axis=-1) / (
            servers[None, :, None] * nic[:, None, None]
        )
        return np.asarray(rates / np.maximum(share, 1.0)[..., None])


def _unit(count: int, k: int) -> Floats:
    composition = np.zeros((count, 2))
    composition[:, k] = 1.0
    return composition
