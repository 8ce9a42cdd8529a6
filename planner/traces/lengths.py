"""Numbers of tokens as percentiles, as a histogram, and by their variation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from planner.traces.trace import Floats, Ints

PERCENTILES: Final = (10, 25, 50, 75, 90, 95, 99)
MOST_BINS: Final = 200


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of requests: their moments, percentiles, and a histogram (upper edge, share)."""

    mean: float
    scv: float
    shortest: int
    longest: int
    percentiles: tuple[tuple[int, int], ...]
    """(percentile, tokens); empty where only a histogram is known."""
    histogram: tuple[tuple[int, float], ...]

    @property
    def median(self) -> int:
        """Tokens that half of the requests keep."""
        for percentile, tokens in self.percentiles:
            if percentile == 50:
                return tokens
        reached = np.cumsum([share for _, share in self.histogram])
        return self.histogram[int(np.searchsorted(reached, 0.5 - 1e-9))][0]


def lengths_of(tokens: Ints, bins: int) -> Lengths:
    """Of the numbers of tokens (R,), each at least 1, with a histogram of at most `bins` bins.

    A percentile is a number of tokens that occurs, the smallest that as many requests keep.
    """
    values = np.sort(tokens)
    mean = float(values.mean())
    places = [int(np.ceil(p / 100 * len(values))) - 1 for p in PERCENTILES]
    return Lengths(
        mean=mean,
        scv=float(values.var()) / mean**2,
        shortest=int(values[0]),
        longest=int(values[-1]),
        percentiles=tuple(
            (p, int(values[max(place, 0)])) for p, place in zip(PERCENTILES, places, strict=True)
        ),
        histogram=histogram_of(values, bins),
    )


def histogram_of(tokens: Ints, bins: int = MOST_BINS) -> tuple[tuple[int, float], ...]:
    """(upper edge, share of the requests) of at most `bins` bins over the tokens (R,).

    Every edge occurs in `tokens`, so no request is counted as shorter than it is, and none as
    longer than the longest. A bin of width w adds about w / 2 to its requests; with density f the
    sum of f w over a given number of bins is least for w as 1 / sqrt(f), so edges stand at equal
    steps of the integral of sqrt(f). Few different values stay exact.
    """
    values, counts = np.unique(tokens, return_counts=True)
    if len(values) > bins:
        gaps = np.diff(values, prepend=values[0] - 1)
        steps = np.cumsum(np.sqrt(counts * gaps))
        kept = np.unique(np.searchsorted(steps, np.linspace(0, steps[-1], bins + 1)[1:]))
        kept = np.unique(np.append(kept[kept < len(values) - 1], len(values) - 1))
        reached = np.cumsum(counts)
        counts = np.diff(reached[kept], prepend=0)
        values = values[kept]
    shares = counts / counts.sum()
    return tuple((int(edge), float(share)) for edge, share in zip(values, shares, strict=True))


def rank_correlation(first: Ints, second: Ints) -> float:
    """Spearman's correlation of the ranks of two samples (R,), ties at their mean rank; 0 where
    one of them does not vary.
    """
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def _ranks(values: Ints) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2.0)[place]
    return ranks


def moments_of(histogram: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Mean and squared coefficient of variation of a histogram at its upper edges."""
    edges = np.array([edge for edge, _ in histogram], dtype=np.float64)
    shares = np.array([share for _, share in histogram])
    mean = float(edges @ shares)
    return mean, max(float(edges**2 @ shares) / mean**2 - 1, 0.0)
