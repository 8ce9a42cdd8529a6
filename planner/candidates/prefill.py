"""Prefill options: replicas that compute prompts and hand the KV cache on.

The load in erlangs sum_k x_k E[S_k] may not exceed the capacity table of the pool, which
keeps every class's TTFT percentile whatever the mix: the wait depends on the mix only through
E[S^2]/E[S], taken at the worst class. The KV transfer is part of the TTFT. The decode pool may
not be slower to receive than `TRANSFER_SHARE` of the tightest limit for a prompt of the length
at its percentile; so a prefill option can be priced without knowing its partner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.candidates.options import PROGRAM_MARGIN, ROW_INDEX, ROWS, PoolOption
from planner.perf.backend import StepTimes
from planner.pools.decode import ALL, EACH
from planner.pools.loads import ClassLoad, upper_quantile
from planner.pools.prefill import PrefillService, prefill_service
from planner.queueing import CapacityTables, capacity_tables
from planner.workload.classes import WorkloadClass

Floats = NDArray[np.float64]
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


def prefill_options(
    step: StepTimes,
    members: Sequence[Member],
    chunk_tokens: int,
    class_count: int,
    ways: Sequence[bool] = (False, True),
) -> list[PoolOption]:
    """Options on the configurations of `step` that admit all `members`.

    `ways` lists False for one prompt at a time and True for packed chunks.
    """
    chunks = np.full(len(step.configs), float(chunk_tokens))
    services = []
    for _, workload, load in members:
        slowest = slowest_transfer_bytes_per_s(step, workload, load)
        # Without a TTFT limit nothing bounds the receiver, and nothing depends on it.
        nic = step.nic_bytes_per_s(ALL)
        rate = np.where(slowest > 0, np.minimum(nic, np.maximum(slowest, 1.0)), nic)
        services.append(prefill_service(step, load, chunks, rate))
    found: list[PoolOption] = []
    for packed in ways:
        chosen = [pair[1] if packed else pair[0] for pair in services]
        found.extend(_options(step, members, chunk_tokens, class_count, packed, chosen))
    return found


def _options(
    step: StepTimes,
    members: Sequence[Member],
    chunk_tokens: int,
    class_count: int,
    packed: bool,
    services: Sequence[PrefillService],
) -> list[PoolOption]:
    first, second = zip(
        *(
            service.moments(load.weight)
            for service, (_, _, load) in zip(services, members, strict=True)
        ),
        strict=True,
    )
    mean_s = np.stack(first, axis=-1)
    ratio_s = (np.stack(second, axis=-1) / mean_s).max(axis=-1)
    tables = _tables(members, services, ratio_s)
    rows = _resource_rows(step, members, chunk_tokens, mean_s)
    service_s = mean_s.copy()
    if tables is None:
        service_s /= UNLIMITED_UTILIZATION
    found = []
    columns = [index for index, _, _ in members]
    for position, config in enumerate(step.configs):
        table = (
            CapacityTables(np.arange(1.0, 9.0)[None, :], np.zeros(1), None).table(0)
            if tables is None
            else tables.table(position)
        )
        if not table.usable:
            continue
        wide = np.full((len(ROWS), class_count), np.inf)
        wide[:, columns] = rows[position]
        service = np.full(class_count, np.inf)
        service[columns] = service_s[position]
        found.append(
            PoolOption(
                name="",
                config=config,
                role="prefill",
                site="",
                gpus_per_node=0,
                classes=tuple(columns),
                coefficients=wide * (1.0 + PROGRAM_MARGIN),
                chunk_tokens=chunk_tokens,
                variant="packed" if packed else "",
                service_s=service * (1.0 + PROGRAM_MARGIN),
                capacity=table,
            )
        )
    return found


def _tables(
    members: Sequence[Member], services: Sequence[PrefillService], ratio_s: Floats
) -> CapacityTables | None:
    """Capacity per configuration that keeps all limits of all members; None without limits."""
    size = len(ratio_s)
    parts: list[CapacityTables] = []
    for (_, workload, load), service in zip(members, services, strict=True):
        for limit in workload.ttft_limits:
            percentile = np.nan if limit.percentile is None else limit.percentile
            parts.append(
                capacity_tables(
                    service.own_s,
                    np.full(size, limit.limit_s),
                    np.full(size, percentile),
                    ratio_s,
                    load.weight,
                )
            )
    if not parts:
        return None
    return CapacityTables(
        np.min([part.exact for part in parts], axis=0),
        np.max([part.spare for part in parts], axis=0),
        parts[0].max_servers,
    )


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
