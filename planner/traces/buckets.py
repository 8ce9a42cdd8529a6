"""Histograms of metrics, whose buckets are wide, as finer ones with the right mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from planner.traces.trace import Floats

STEPS: Final = (1, 2, 5)
_STEEPEST: Final = 60.0
_HALVINGS: Final = 80


def next_edge(edge: float) -> int:
    """The next of 1, 2, 5, 10, 20 ... above `edge`.

    vLLM's last finite bucket is the largest of these that the context of the model allows, so
    that none of its requests is as long as the next.
    """
    power = 1
    while True:
        for step in STEPS:
            if step * power > edge:
                return step * power
        power *= 10


def refined(
    edges: Sequence[float], counts: Floats, mean: float | None, bins: int
) -> tuple[tuple[int, float], ...]:
    """(upper edge, share) of at most `bins` bins, or one for each bucket where those are more.

    `edges` (B,) are the upper edges of the buckets, rising and finite, `counts` (B,) the requests
    in each. Buckets are cut in equal ratios, with weights rising or falling by one factor from
    part to part, the same in all of them, such that the mean of the upper edges is `mean`, or as
    near as the buckets allow. With `mean` None every request is as long as its bucket: safe.
    """
    used = [index for index, count in enumerate(counts) if count > 0]
    parts = 1 if mean is None else max(1, bins // len(used))
    tops: list[Floats] = []
    for index in used:
        low = max(edges[index - 1] if index else 0.0, 0.0)
        cuts = np.geomspace(max(low, 1.0), max(edges[index], 1.0), parts + 1)[1:]
        tops.append(np.ceil(cuts - 1e-9))
    top = np.stack(tops)  # (used, parts)
    held = counts[used] / counts[used].sum()
    place = np.linspace(-1.0, 0.0, parts)

    def shares(slope: float) -> Floats:
        weight = np.exp(slope * (place - (0.0 if slope >= 0 else -1.0)))
        found: Floats = held[:, None] * (weight / weight.sum())[None, :]
        return found

    low_slope, high_slope = -_STEEPEST, _STEEPEST
    if mean is not None and parts > 1:
        for _ in range(_HALVINGS):
            middle = (low_slope + high_slope) / 2
            if float((shares(middle) * top).sum()) < mean:
                low_slope = middle
            else:
                high_slope = middle
    merged: dict[int, float] = {}
    for edge, share in zip(top.ravel(), shares(high_slope).ravel(), strict=True):
        merged[int(edge)] = merged.get(int(edge), 0.0) + float(share)
    return tuple((edge, merged[edge]) for edge in sorted(merged) if merged[edge] > 1e-9)
