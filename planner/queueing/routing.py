"""Time to first token under a routing policy, from the whole distribution of busy times.

R is the residual life of the busy time S: P(R > x) = E[(S - x)+] / E[S]. A request waits with
probability C, and then for

    Y + X_1 / n + ... + X_N / n,   N geometric: P(N = k) = (1 - phi) phi^k,

with X like R and phi = rho = a / n for Poisson arrivals. Y is the time until the queue moves:

    shared queue, least queued work   the least of n residual lives (van Hoorn and Tijms 1982,
                                      from Tijms, van Hoorn and Federgruen 1981)
    fewest requests                   one residual life: the request is bound to one replica

At n = 1 both are the Pollaczek-Khinchine law, which is exact; for exponential S the first is
Erlang's exact wait. Random, prefix-affine and round-robin routing make n pools of one replica.

**Bursts.** Arrivals with ca2 > 1 come in clumps of geometric size with mean (ca2 + 1) / 2, the
size at which the count of arrivals varies as much in the long run. With q = (ca2 - 1) / (ca2 + 1),
phi = q + (1 - q) rho, and X is like S with probability q / phi (a request of the same clump), else
like R. For n = 1 this is exact for Poisson clumps. Smooth arrivals (round robin)
scale R by (ca2 + cs2) / (1 + cs2), which makes the mean that of Kingman's heavy-traffic limit.

Sums are taken on a lattice by fast Fourier transform: masses are split between neighbouring
points so that means stay and spread can only grow. docs/queueing.md states the errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.queueing.prefill import FloatArray, check_points, wait_probability
from planner.queueing.work import Stations, Work, stations
from planner.schema.serving import Routing

Complex = NDArray[np.complex128]

CELLS: Final = 128
"""Lattice cells up to the time asked about; sixteen times as many lower a p99 by under 1 %."""
EXACT_SERVERS: Final = 8
"""Above this a pooled wait is exponential, so that the spare replicas needed grow with the pool."""
SPANS_PER_DOUBLING: Final = 4
_DAMPING: Final = 1e-8
"""What one turn around the transform multiplies a wait beyond the lattice by."""
_NOISE: Final = 1e-7
"""A table leaves this much of its percentile unused, above the round-off of the transform."""
_BISECTIONS: Final = 26
_CHUNK_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class RoutedPool:
    """One prefill pool at its load. work: one row. load_erlangs: of the whole pool.

    ca2 and imbalance as for `stations`, which also raises what does not fit.
    """

    work: Work
    servers: int
    load_erlangs: float
    routing: Routing
    ca2: float = 1.0
    imbalance: float = 1.0

    def at_work(self) -> tuple[Stations, FloatArray]:
        """Its stations, and the utilisation (1, 1) of the busiest.

        Raises ValueError for a negative load.
        """
        if not self.load_erlangs >= 0.0:
            raise ValueError("the load must not be negative")
        at = stations([self.servers], self.routing, self.ca2, self.imbalance)
        return at, (self.load_erlangs * at.share / at.servers)[np.newaxis]


class _Lattice:
    """The wait at M stations for each of the N pools of `work`, on a lattice up to span_s (N,)."""

    def __init__(self, work: Work, at: Stations, span_s: FloatArray) -> None:
        self.at = at
        self.clump = np.maximum((at.scv - 1.0) / (at.scv + 1.0), 0.0)
        mean, ratio, variation = work.moments()
        # The last point stands for half a cell either side, and has to reach the span.
        self.step_s = span_s / (CELLS - 1)
        self.damping = _DAMPING ** (np.arange(CELLS) / CELLS)
        smooth = np.minimum(at.scv, 1.0)
        scale = 1.0 - (1.0 - smooth) / variation[:, np.newaxis]
        self.large = at.servers > EXACT_SERVERS
        self.turn = np.exp(-2j * np.pi * np.arange(CELLS // 2 + 1) / CELLS) * self.damping[1]
        # The mean wait of those who wait in a large pool, times the spare replicas.
        burst_s = np.maximum(at.scv - 1.0, 0.0) * mean[:, np.newaxis]
        self.patience_s = 0.5 * (scale * ratio[:, np.newaxis] + burst_s)
        grid = np.arange(CELLS + 1.0)
        lives, services, firsts, joins = [], [], [], []
        alone = bool(at.servers.max() == 1.0)
        for row in range(len(span_s)):
            x_s = self.step_s[row] * grid / scale[row][:, np.newaxis]
            tail, life, service = work.tails(row, x_s * at.servers[:, np.newaxis])
            tail, first, join = (tail, life, service) if alone else work.tails(row, x_s)
            lives.append(life)
            services.append(service)
            # A pooled queue moves on at the first of n residual lives, and a clump with it.
            least = tail ** at.servers[:, np.newaxis]
            least = 0.5 * (least[..., 1:] + least[..., :-1])
            single = at.bound | (at.servers[:, np.newaxis] == 1.0)
            firsts.append(np.where(single, first, least))
            joins.append(join if at.bound else service)
        self.life, self.first, self.service, self.join = (
            self._transform(np.stack(means)) for means in (lives, firsts, services, joins)
        )

    def _transform(self, cell_tail: FloatArray) -> Complex:
        """Damped transform of the masses whose tail has these means over the cells."""
        mass = -np.diff(cell_tail, axis=-1, prepend=1.0)
        return np.fft.rfft(mass * self.damping)

    def waiting(self, utilisation: FloatArray) -> tuple[FloatArray, Complex]:
        """C (N, M) and the transform (N, M, F) of the wait of those who wait."""
        rho, q = utilisation[..., np.newaxis], self.clump[:, np.newaxis]
        if self.clump.any():
            phi = np.maximum(q + (1.0 - q) * rho, 1e-300)
            first = (q * self.join + (1.0 - q) * rho * self.first) / phi
            more = (1.0 - phi) / (1.0 - q * self.service - (1.0 - q) * rho * self.life)
        else:
            first, more = self.first, (1.0 - rho) / (1.0 - rho * self.life)
        if self.large.any():
            spare = np.maximum((1.0 - utilisation) * self.at.servers, 1e-300)
            ratio = self.patience_s / spare / self.step_s[:, np.newaxis]
            # The exponential's masses, with its means over the cells as for every other law.
            fall = np.exp(-1.0 / np.maximum(ratio, 1e-300))[..., np.newaxis]
            reach = ratio[..., np.newaxis] * (1.0 - fall)
            tail = 1.0 - reach + reach * (1.0 - fall) * self.turn / (1.0 - fall * self.turn)
            large = self.large[:, np.newaxis]
            first = np.where(large & (not self.at.bound), 1.0, first)
            more = np.where(large, tail, more)
        return _wait_probability(self.at, utilisation), first * more

    def masses(self, utilisation: FloatArray) -> FloatArray:
        """Probabilities (N, M, CELLS) of a wait of 0, 1, ... steps."""
        probability, shape = self.waiting(utilisation)
        mass = probability[..., np.newaxis] * np.fft.irfft(shape, CELLS) / self.damping
        mass[..., 0] += 1.0 - probability
        return np.maximum(mass, 0.0)


def _wait_probability(at: Stations, utilisation: FloatArray) -> FloatArray:
    """Probability of a wait, (N, M)."""
    clump = np.maximum((at.scv - 1.0) / (at.scv + 1.0), 0.0)
    found = clump + (1.0 - clump) * utilisation
    for index in np.flatnonzero(at.servers > 1.0):
        count = at.servers[index]
        scv = float(at.scv[index])
        found[:, index] = wait_probability(count, utilisation[:, index] * count, scv)
    return found


def _on_time(limit_s: float, own_s: FloatArray, weight: FloatArray, step_s: float) -> FloatArray:
    """P(own <= limit - wait) for a wait of 0, 1, ... steps, (CELLS,); a wait above 0 is spread
    evenly over the step around its lattice point.
    """
    slack = (limit_s - own_s) / step_s
    place = np.floor(slack + 0.5)
    cell = np.clip(place, 0, CELLS).astype(np.intp)
    kept = slack >= 0.0
    # Nobody waits a negative time: the lattice point 0 counts in full.
    part = np.where(cell > 0, slack + 0.5 - place, 1.0)
    whole = np.bincount(cell[kept], weight[kept], CELLS + 1)
    parts = np.bincount(cell[kept], (weight * part)[kept], CELLS + 1)
    return np.asarray(np.cumsum(whole[::-1])[::-1][1:] + parts[:-1], dtype=np.float64)


def span_s(time_s: ArrayLike) -> FloatArray:
    """Length of the lattice for a time: the next of four steps per doubling, the same for all.

    Two evaluations of one pool so share a lattice, and a limit that one finds kept the other does.
    """
    steps = np.ceil(np.log2(np.asarray(time_s)) * SPANS_PER_DOUBLING - 1e-9)
    return np.asarray(np.exp2(steps / SPANS_PER_DOUBLING), dtype=np.float64)


def mean_wait_routed_s(work: Work, at: Stations, utilisation: FloatArray) -> FloatArray:
    """Mean wait in seconds (N, M), infinite from full load on; pooled: Lee and Longton (1959)."""
    mean, ratio, variation = work.moments()
    rho = np.minimum(utilisation, 1.0)
    smooth = 1.0 - (1.0 - np.minimum(at.scv, 1.0)) / variation[:, np.newaxis]
    q = np.maximum((at.scv - 1.0) / (at.scv + 1.0), 0.0)
    phi = q + (1.0 - q) * rho
    life = 0.5 * smooth * ratio[:, np.newaxis]
    burst = q * mean[:, np.newaxis] + (1.0 - q) * rho * life
    one = np.where(phi > 0.0, burst / np.maximum(phi, 1e-300), life)
    first = one if at.bound else one / at.servers
    with np.errstate(divide="ignore", invalid="ignore"):
        more = phi / (1.0 - phi) * one / at.servers
        wait = _wait_probability(at, rho) * (first + more)
    return np.where(utilisation < 1.0, wait, np.inf)


def ttft_tail_routed(
    time_s: ArrayLike,
    own_s: FloatArray,
    weight: FloatArray,
    pool: RoutedPool,
) -> FloatArray:
    """P(TTFT > time_s) for times above 0, with the shape of `time_s`.

    own_s, weight: (P,) as in `ttft_tail`; an own time of 0 gives the tail of the wait.
    Raises ValueError for values that do not fit.
    """
    check_points(own_s, weight)
    at, utilisation = pool.at_work()
    time = np.asarray(time_s, dtype=np.float64)
    if not np.all(time > 0.0):
        raise ValueError("times must be positive")
    if utilisation[0, 0] >= 1.0:
        return np.ones_like(time)
    late = np.empty_like(time)
    spans = span_s(time)
    for span in np.unique(spans):
        lattice = _Lattice(pool.work, at, np.array([span]))
        mass = lattice.masses(utilisation)[0, 0]
        for place in np.argwhere(spans == span):
            index = tuple(place)
            kept = _on_time(float(time[index]), own_s, weight, float(lattice.step_s[0]))
            late[index] = 1.0 - mass @ kept
    return np.clip(late, 0.0, 1.0)


def ttft_quantile_routed(
    percentile: float | None,
    own_s: FloatArray,
    weight: FloatArray,
    pool: RoutedPool,
) -> float:
    """Smallest time in seconds that a share `percentile` of requests keeps; None gives the mean.

    Other arguments as for `ttft_tail_routed`. Rounded up by 1e-9 of itself; infinite at full load.
    """
    check_points(own_s, weight)
    at, utilisation = pool.at_work()
    if utilisation[0, 0] >= 1.0:
        return math.inf
    if percentile is None:
        return float(own_s @ weight + mean_wait_routed_s(pool.work, at, utilisation)[0, 0])
    if not 0.0 < percentile < 1.0:
        raise ValueError(f"percentile must lie between 0 and 1, not {percentile}")

    def on_lattice(span: float) -> Callable[[float], bool]:
        lattice = _Lattice(pool.work, at, np.array([span]))
        mass = lattice.masses(utilisation)[0, 0]
        step = float(lattice.step_s[0])
        return lambda time: float(mass @ _on_time(time, own_s, weight, step)) >= percentile

    factor = 2.0 ** (1.0 / SPANS_PER_DOUBLING)
    high = float(span_s(max(float(own_s.max()), float(pool.work.moments()[0][0]))))
    while not (kept := on_lattice(high))(high):
        high *= factor
    while (smaller := on_lattice(high / factor))(high / factor):
        high, kept = high / factor, smaller
    low = high / factor
    while high - low > 1e-9 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if kept(middle) else (middle, high)
    return high


def largest_loads(
    own_s: FloatArray,
    weight: FloatArray,
    limit_s: FloatArray,
    percentile: FloatArray,
    work: Work,
    servers: ArrayLike,
    *,
    routing: Routing,
    ca2: float = 1.0,
    imbalance: float = 1.0,
) -> FloatArray:
    """Largest load in erlangs (N, M) at which each row's limit holds in pools of `servers` (M,).

    own_s (N, P), weight (P,); limit_s (N,); percentile (N,), nan for a limit on the mean; work:
    N rows. 0 where no load keeps the limit. Bisection to 2^-26 of a full load, rounded down.
    Raises ValueError for shapes or values that do not fit.
    """
    check_points(own_s, weight)
    rows = len(own_s)
    if own_s.ndim != 2 or {len(limit_s), len(percentile), len(work.busy_s[0])} != {rows}:
        raise ValueError("own_s and the work must have N rows, and limits and percentiles (N,)")
    if not np.all(limit_s > 0.0):
        raise ValueError("limit_s must be positive")
    if not np.all(np.isnan(percentile) | ((percentile > 0.0) & (percentile < 1.0))):
        raise ValueError("percentiles must lie between 0 and 1, or be nan for the mean")
    pools = stations(servers, routing, ca2, imbalance)
    # Queues of one replica are alike unless their arrivals differ: solve each kind once.
    kinds, first, back = np.unique(
        np.stack([pools.servers, pools.scv]), axis=1, return_index=True, return_inverse=True
    )
    at = Stations(kinds[0], kinds[1], pools.share[first], pools.bound)
    best = np.zeros((rows, len(kinds[0])))
    means = np.isnan(percentile)
    if means.any():
        slack = limit_s - own_s @ weight

        def mean_kept(rho: FloatArray) -> NDArray[np.bool_]:
            return mean_wait_routed_s(work, at, rho) <= slack[:, np.newaxis]

        best[means] = _largest(mean_kept, best.shape)[means]
    tails = np.flatnonzero(~means)
    for start in range(0, len(tails), _CHUNK_ROWS):
        part = tails[start : start + _CHUNK_ROWS]
        kept = _kept(own_s[part], weight, limit_s[part], percentile[part], work.take(part), at)
        best[part] = _largest(kept, (len(part), len(kinds[0])))
    return np.asarray(best[:, back.ravel()] * pools.servers / pools.share, dtype=np.float64)


def _kept(
    own_s: FloatArray,
    weight: FloatArray,
    limit_s: FloatArray,
    percentile: FloatArray,
    work: Work,
    at: Stations,
) -> Callable[[FloatArray], NDArray[np.bool_]]:
    """Whether each row keeps its limit at utilisations (N, M), by Parseval's identity."""
    lattice = _Lattice(work, at, span_s(limit_s))
    on_time = np.stack(
        [
            _on_time(float(limit), own, weight, float(step))
            for limit, own, step in zip(limit_s, own_s, lattice.step_s, strict=True)
        ]
    )
    sides = np.full(CELLS // 2 + 1, 2.0 / CELLS)
    sides[[0, -1]] = 1.0 / CELLS
    target = (sides * np.fft.rfft(on_time / lattice.damping).conj())[:, np.newaxis, :]

    def kept(rho: FloatArray) -> NDArray[np.bool_]:
        probability, shape = lattice.waiting(rho)
        waited = np.einsum("nmf,nmf->nm", shape, np.broadcast_to(target, shape.shape)).real
        share = (1.0 - probability) * on_time[:, :1] + probability * waited
        return np.asarray(share >= percentile[:, np.newaxis] + _NOISE)

    return kept


def _largest(kept: Callable[[FloatArray], NDArray[np.bool_]], shape: tuple[int, ...]) -> FloatArray:
    """Largest utilisation in [0, 1) at which `kept` holds, from its safe side; 0 if none does."""
    low, high = np.zeros(shape), np.ones(shape)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        good = kept(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return low
