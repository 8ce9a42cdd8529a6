"""Prefill options: replicas that compute prompts and hand the KV cache on.

The load in erlangs sum_k x_k E[S_k] may not exceed the capacity table of the pool, which
keeps every class's TTFT percentile whatever the mix: the wait depends on the mix only through
E[S^2]/E[S], taken at the worst class. The KV transfer is part of the TTFT. The decode pool may
not be slower to receive than `TRANSFER_SHARE` of the tightest limit for a prompt of the length
at its percentile; so a prefill option can be priced without knowing its partner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.candidates.options import PROGRAM_MARGIN, ROW_INDEX, ROWS, PoolOption
from planner.candidates.promises import Margins, Promises, pool_kind
from planner.perf.backend import StepTimes
from planner.pools.cache import least_replicas_of_cache, prefill_cache_share
from planner.pools.loads import ClassLoad, upper_quantile
from planner.pools.prefill import PrefillService, prefill_service
from planner.pools.prompts import ALL, EACH
from planner.queueing.capacity import EXACT_SERVERS, CapacityTable, CapacityTables
from planner.queueing.routed_tables import routed_tables
from planner.queueing.work import Work
from planner.workload.classes import WorkloadClass

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Member = tuple[int, WorkloadClass, ClassLoad]

TRANSFER_SHARE: Final = 0.1
"""Share of a TTFT limit that moving the KV cache may take at the limit's percentile."""
UNLIMITED_UTILIZATION: Final = 0.9
"""Utilisation allowed to classes without a TTFT limit, so that their queue stays short."""


def slowest_transfer_bytes_per_s(
    step: StepTimes, workload: WorkloadClass, load: ClassLoad
) -> Floats:
    """Slowest receiving rate that keeps the transfer within its share of every TTFT limit."""
    rate = np.zeros(len(step.configs))
    moved = step.kv_transfer_bytes(EACH, load.prompt)
    for limit in workload.ttft_limits:
        at_percentile = upper_quantile(moved, load.weight, limit.percentile)
        rate = np.maximum(rate, at_percentile / (TRANSFER_SHARE * limit.limit_s))
    return rate


class PrefillOptions:
    """Enumerates prefill options on the configurations of `step` with one chunk budget.

    `ways` lists False for one prompt at a time and True for packed chunks.
    """

    def __init__(
        self,
        step: StepTimes,
        chunk_tokens: int,
        class_count: int,
        ways: Sequence[bool],
        margins: Margins,
    ) -> None:
        self.step = step
        self.chunk_tokens = chunk_tokens
        self.class_count = class_count
        self.ways = ways
        self.margins = margins

    def options(self, members: Sequence[Member]) -> Iterator[PoolOption]:
        """Options for pools that admit all `members`."""
        yield from self._all(members, np.ones(len(self.step.configs), dtype=np.int64))

    def with_cache(
        self, index: int, workload: WorkloadClass, loads: Sequence[ClassLoad]
    ) -> Iterator[PoolOption]:
        """Options for one class at each of its `hit_levels`, for pools large enough to hold them;
        `loads` are its moments at each.
        """
        batched = self.chunk_tokens + self.step.max_num_seqs_per_rank(ALL)
        for level, load in zip(workload.hit_levels, loads, strict=True):
            share = prefill_cache_share(self.step, batched, load)
            least = least_replicas_of_cache(self.step, batched, load, level.cache_tokens, share)
            some = np.flatnonzero(np.isfinite(least))
            if len(some):
                part = PrefillOptions(
                    self.step.take(some),
                    self.chunk_tokens,
                    self.class_count,
                    self.ways,
                    self.margins,
                )
                member = (index, workload, load)
                yield from part._all([member], least[some].astype(np.int64))

    def _all(self, members: Sequence[Member], least: Ints) -> Iterator[PoolOption]:
        step = self.step
        chunks = np.full(len(step.configs), float(self.chunk_tokens))
        services = []
        for _, workload, load in members:
            slowest = slowest_transfer_bytes_per_s(step, workload, load)
            # Without a TTFT limit nothing bounds the receiver, and nothing depends on it.
            nic = step.nic_bytes_per_s(ALL)
            rate = np.where(slowest > 0, np.minimum(nic, np.maximum(slowest, 1.0)), nic)
            services.append(prefill_service(step, load, chunks, rate))
        for packed in self.ways:
            chosen = [pair[1] if packed else pair[0] for pair in services]
            yield from self._options(members, packed, chosen, least)

    def _options(
        self,
        members: Sequence[Member],
        packed: bool,
        services: Sequence[PrefillService],
        least: Ints,
    ) -> Iterator[PoolOption]:
        mean_s = np.stack(
            [
                service.busy_s @ load.weight
                for service, (_, _, load) in zip(services, members, strict=True)
            ],
            axis=-1,
        )
        tables = self._tables(members, services)
        rows = _resource_rows(self.step, members, self.chunk_tokens, mean_s)
        service_s = mean_s.copy()
        if tables is None:
            service_s /= UNLIMITED_UTILIZATION
        columns = [index for index, _, _ in members]
        for position, config in enumerate(self.step.configs):
            table = (
                CapacityTable(tuple(range(1, EXACT_SERVERS + 1)), 0.0, None)
                if tables is None
                else tables.table(position)
            )
            if not table.usable:
                continue
            wide = np.full((len(ROWS), self.class_count), np.inf)
            wide[:, columns] = rows[position]
            service = np.full(self.class_count, np.inf)
            service[columns] = service_s[position]
            yield PoolOption(
                name="",
                config=config,
                role="prefill",
                site="",
                gpus_per_node=0,
                classes=tuple(columns),
                coefficients=wide * (1.0 + PROGRAM_MARGIN),
                chunk_tokens=self.chunk_tokens,
                variant="packed" if packed else "",
                service_s=service * (1.0 + PROGRAM_MARGIN),
                capacity=table,
                least_replicas=int(least[position]),
            )

    def _tables(
        self,
        members: Sequence[Member],
        services: Sequence[PrefillService],
    ) -> CapacityTables | None:
        """Capacity per configuration that keeps all limits of all members; None without limits."""
        kinds = [pool_kind(each, "prefill", self.chunk_tokens) for each in self.step.configs]
        promises = Promises.of([each for _, each, _ in members], kinds, self.margins)
        size = len(kinds)
        work = Work(
            [service.busy_s for service in services], [load.weight for _, _, load in members]
        )
        parts: list[CapacityTables] = []
        for k, ((_, workload, load), service) in enumerate(zip(members, services, strict=True)):
            for limit in workload.ttft_limits:
                percentile = np.nan if limit.percentile is None else limit.percentile
                parts.append(
                    routed_tables(
                        service.own_s,
                        limit.limit_s / promises.ttft_margin[:, k],
                        np.full(size, percentile),
                        work,
                        load.weight,
                        routing=self.step.configs[0].engine.routing,
                        ca2=max(1.0, *(each.arrival_scv for _, _, each in members)),
                    )
                )
        if not parts:
            return None
        return CapacityTables.keeping_all(parts)


def _resource_rows(
    step: StepTimes,
    members: Sequence[Member],
    chunk_tokens: int,
    mean_s: Floats,
) -> Floats:
    """Physical rows of prefill replicas, (N, rows, members), replicas per request/s.

    compute  prompt FLOPs at dense peak; hbm_bandwidth  the weights once per full chunk;
    interconnect  collectives; kv_transfer  cache bytes leaving; prefill_utilization  busy time.
    """
    rows = np.zeros((len(step.configs), len(ROWS), len(members)))
    lanes = step.prompt_lanes(ALL)
    chunk = chunk_tokens * lanes
    weights_s = step.weight_read_s(ALL, chunk)
    nic = step.nic_bytes_per_s(ALL)
    for k, (_, _, load) in enumerate(members):
        compute = step.prefill_compute_s(EACH, load.uncached, load.cached)
        moved = step.kv_transfer_bytes(EACH, load.prompt) @ load.weight
        rows[:, ROW_INDEX["compute"], k] = compute @ load.weight
        rows[:, ROW_INDEX["hbm_bandwidth"], k] = load.uncached_mean / chunk * weights_s
        rows[:, ROW_INDEX["interconnect"], k] = load.uncached_mean * step.collective_s_per_token(
            ALL
        )
        rows[:, ROW_INDEX["kv_transfer"], k] = moved / nic
        rows[:, ROW_INDEX["prefill_utilization"], k] = mean_s[:, k]
    return rows
