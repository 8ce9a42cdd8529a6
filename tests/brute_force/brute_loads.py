"""Largest loads of prefill pools, by bisection on the tail of the TTFT formula itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.queueing import erlang_c

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

BISECTIONS = 40


def largest_loads(
    servers: Floats,
    ratio_s: Floats,
    own_s: Floats,
    weight: Floats,
    limit_s: float,
    percentile: float | None,
) -> Floats:
    """Largest load in erlangs that keeps one limit, (N, pool sizes, mixes); 0 where none does.

    theta = ratio / (2 (n - a)), P(late) = (1 - C) P(own > t) + C E[exp(-(t - own)+ / theta)].
    """
    count = np.broadcast_to(servers[None, :, None], (len(own_s), len(servers), ratio_s.shape[1]))
    own = own_s[:, None, None, :]
    patience = np.maximum(limit_s - own, 0.0)
    late_alone = ((own > limit_s) * weight).sum(axis=-1)
    mean_own = (own * weight).sum(axis=-1)

    def keeps(load: Floats) -> Flags:
        theta = ratio_s[:, None, :] / (2.0 * np.maximum(count - load, 1e-300))
        waits = erlang_c(count, load)
        if percentile is None:
            return np.asarray(mean_own + waits * theta <= limit_s)
        late = (1 - waits) * late_alone + waits * (
            np.exp(-patience / theta[..., None]) * weight
        ).sum(axis=-1)
        return np.asarray(late <= 1.0 - percentile)

    low, high = np.zeros(count.shape), np.array(count)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        good = keeps(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return low
