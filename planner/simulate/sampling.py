"""Samples of every pool over time, each the mean since the one before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.simulate.pool import PoolState
from planner.simulate.records import PoolSeries
from planner.simulate.replica import Replica


class Sampler:
    """Collects `count` samples of each pool up to `horizon_s`, evenly spaced."""

    def __init__(self, horizon_s: float, count: int, pools: Sequence[PoolState]) -> None:
        self.times_s: list[float] = (horizon_s * np.arange(1, count + 1) / count).tolist()
        self._pools = [pool.model.id for pool in pools]
        self._rows: list[list[tuple[float, float, float, float, float, float]]] = [
            [(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)] for _ in pools
        ]

    def take(
        self, now_s: float, pools: Sequence[PoolState], replicas: Sequence[Sequence[Replica]]
    ) -> None:
        """Read every integral as it is now."""
        for rows, pool, own in zip(self._rows, pools, replicas, strict=True):
            pool.advance(now_s)
            for replica in own:
                replica.accrue(now_s)
            rows.append(
                (
                    now_s,
                    pool.up_integral,
                    pool.waiting_integral,
                    pool.running_integral,
                    sum(replica.held_integral for replica in own) / pool.model.tables.room_bytes,
                    sum(replica.busy_s for replica in own),
                )
            )

    def series(self) -> tuple[PoolSeries, ...]:
        """The samples of each pool."""
        found = []
        for pool, rows in zip(self._pools, self._rows, strict=True):
            table = np.array(rows)
            elapsed, up, waiting, running, held, busy = np.diff(table, axis=0).T
            elapsed, replica_s = np.maximum(elapsed, 1e-300), np.maximum(up, 1e-300)
            found.append(
                PoolSeries(
                    pool=pool,
                    time_s=table[1:, 0],
                    replicas_up=up / elapsed,
                    waiting=waiting / elapsed,
                    running=running / replica_s,
                    kv_fraction=held / replica_s,
                    busy_fraction=busy / replica_s,
                )
            )
        return tuple(found)
