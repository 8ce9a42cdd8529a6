"""What queues of a pool see: the busy times of its requests, and the stations that serve them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.queueing.prefill import FloatArray, check_points
from planner.schema.serving import Routing

SPLIT: Final[frozenset[Routing]] = frozenset({"prefix_affine", "round_robin", "random"})
"""Policies that bind a request to a replica without looking at its queue."""
POOLED: Final[frozenset[Routing]] = frozenset({"shared_queue", "queued_tokens"})
"""Policies under which a request waits only while every replica of its pool has others to do."""


@dataclass(frozen=True, slots=True)
class Work:
    """Busy times of the classes in a pool.

    busy_s: for each of K classes (N, P_k) seconds, one row per pool; weight: for each (P_k,)
    probabilities. share: (K,) of the requests that each class sends, or None for any mix, and
    then every quantity is that of the worst class, which no mix exceeds.

    Raises ValueError for shapes that do not match, shares that do not add up to 1, or a class
    without work.
    """

    busy_s: Sequence[FloatArray]
    weight: Sequence[FloatArray]
    share: FloatArray | None = None

    def __post_init__(self) -> None:
        if not self.busy_s or len(self.busy_s) != len(self.weight):
            raise ValueError("busy_s and weight must list the same classes, at least one")
        for busy, weight in zip(self.busy_s, self.weight, strict=True):
            check_points(busy, weight)
            if busy.ndim != 2 or weight.ndim != 1 or len(busy) != len(self.busy_s[0]):
                raise ValueError("busy_s must be (N, P) with the same N, weight (P,)")
            if not np.all(busy @ weight > 0.0):
                raise ValueError("every class must keep a replica busy")
        if self.share is not None:
            check_points(np.zeros(len(self.busy_s)), self.share)

    def take(self, rows: NDArray[np.intp]) -> Work:
        """The same classes in some of the pools."""
        return Work([busy[rows] for busy in self.busy_s], self.weight, self.share)

    def moments(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """E[S], E[S^2] / E[S] and 1 + cs2 = E[S^2] / E[S]^2, each (N,); see `share`."""
        pairs = list(zip(self.busy_s, self.weight, strict=True))
        mean = np.stack([busy @ weight for busy, weight in pairs])
        square = np.stack([busy**2 @ weight for busy, weight in pairs])
        if self.share is not None:
            mean, square = (self.share @ mean)[np.newaxis], (self.share @ square)[np.newaxis]
        ratio = (square / mean).max(axis=0)
        return mean.max(axis=0), ratio, ratio / mean.min(axis=0)

    def tails(self, row: int, x_s: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """P(R > x) at x_s (..., G + 1), rising, and the means of P(R > x) and P(S > x) between."""
        first, second = zip(
            *(_excess(b[row], w, x_s) for b, w in zip(self.busy_s, self.weight, strict=True)),
            strict=True,
        )
        once_s, twice_s2 = np.stack(first), np.stack(second)
        if self.share is not None:
            once_s = np.tensordot(self.share, once_s, axes=1)[np.newaxis]
            twice_s2 = np.tensordot(self.share, twice_s2, axes=1)[np.newaxis]
        whole_s = once_s.reshape(len(once_s), -1)[:, 0].reshape(-1, *(1,) * x_s.ndim)
        step_s = np.diff(x_s, axis=-1)
        service = -np.diff(once_s, axis=-1) / step_s
        between = -np.diff(twice_s2, axis=-1) / (step_s * whole_s)
        return (once_s / whole_s).max(axis=0), between.max(axis=0), service.max(axis=0)


def _excess(
    busy_s: FloatArray, weight: FloatArray, x_s: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """E[(S - x)+] and its integral from x on, at each x; exact for points (P,) of S."""
    order = np.argsort(busy_s, kind="stable")
    nodes, mass = np.append(0.0, busy_s[order]), np.append(0.0, weight[order])
    above = np.cumsum(mass[::-1])[::-1]
    once = np.cumsum((mass * nodes)[::-1])[::-1] - nodes * above
    pieces = 0.5 * (once[1:] + once[:-1]) * np.diff(nodes)
    twice = np.append(np.cumsum(pieces[::-1])[::-1], 0.0)
    # The excess is linear between the points of S, so that interpolation is exact.
    here = np.interp(x_s, nodes, once)
    right = np.minimum(np.searchsorted(nodes, x_s), len(nodes) - 1)
    rest = 0.5 * (here + once[right]) * np.maximum(nodes[right] - x_s, 0.0)
    return here, twice[right] + rest


@dataclass(frozen=True, slots=True)
class Stations:
    """A pool as its queues see it: one pool of n replicas, or n pools of one replica.

    servers (M,) of one station; scv (M,) of the times between its arrivals; share (M,): the
    station's load in erlangs over that of the pool, at the busiest station.
    """

    servers: FloatArray
    scv: FloatArray
    share: FloatArray
    bound: bool
    """Whether a request waits for one replica rather than for the first that is free."""


def stations(servers: ArrayLike, routing: Routing, ca2: float, imbalance: float) -> Stations:
    """The stations of pools of `servers` (M,) replicas.

    Random splitting takes arrivals of scv ca2 to 1 + (ca2 - 1) / n, taking turns to ca2 / n.
    imbalance: load of the busiest replica over the mean, for `prefix_affine` alone.
    Raises ValueError for servers or an imbalance below 1, or ca2 below 1.
    """
    count = np.asarray(servers, dtype=np.float64)
    if not np.all(count >= 1.0):
        raise ValueError("a pool needs at least one replica")
    if not ca2 >= 1.0:
        raise ValueError("ca2 must be at least 1: plan smoother arrivals as Poisson")
    if not imbalance >= 1.0:
        raise ValueError("imbalance is the busiest replica's load over the mean, at least 1")
    one = np.ones_like(count)
    if routing not in SPLIT:
        bound = routing == "least_outstanding"
        return Stations(count, np.full_like(count, ca2), one, bound)
    hot = np.minimum(imbalance, count) if routing == "prefix_affine" else one
    scv = ca2 / count if routing == "round_robin" else 1.0 + (ca2 - 1.0) * hot / count
    return Stations(one, scv, hot / count, bound=True)
