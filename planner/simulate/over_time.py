"""Samples of pools over time, and means of them."""

from __future__ import annotations

import numpy as np

from planner.simulate.records import Bools, ComponentRun, Floats, PoolSeries


def counted_samples(run: ComponentRun, series: PoolSeries) -> Bools:
    """Samples (T,) of the counted time: neither of the warm-up nor of the end, when what is in
    flight is finished and nothing arrives.
    """
    middle = series.time_s - lengths_s(series) / 2
    return np.asarray((middle > run.warmup_s) & (middle <= run.horizon_s))


def over_time(values: Floats, series: PoolSeries, chosen: Bools) -> float:
    """Mean over time of the chosen ones of samples (T,); 0 where none is."""
    seconds = lengths_s(series)[chosen]
    whole = float(seconds.sum())
    return float(values[chosen] @ seconds) / whole if whole > 0 else 0.0


def lengths_s(series: PoolSeries) -> Floats:
    """Time that each sample (T,) covers: since the one before."""
    return np.asarray(np.diff(series.time_s, prepend=0.0))


def in_system(run: ComponentRun) -> Floats:
    """Requests in all pools of a component, waiting or in work, samples (T,)."""
    total = np.zeros(run.series[0].time_s.size)
    for series in run.series:
        total += series.waiting + series.running * series.replicas_up
    return total
