"""Largest loads of prefill pools, by bisection on the tail of the TTFT formula itself.

Pools of one to three replicas follow the whole distribution of busy times: sums of residual
lives on a lattice, by direct recursion. Larger ones wait for an exponential time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.queueing import erlang_c

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

BISECTIONS = 24
CELLS = 128
LARGEST_LATTICE = 3
"""Replicas up to which the tail of the prompts shows in that of the wait."""


@dataclass(frozen=True)
class MixedWork:
    """Busy times (N, P) of each class with weights (P,), in mixes that split the load in erlangs.

    `split` is (mixes, classes).
    """

    busy_s: list[Floats]
    weight: list[Floats]
    split: Floats

    @property
    def ratio_s(self) -> Floats:
        """E[S^2] / E[S] of every mix, (N, mixes)."""
        each = [
            (busy**2 @ weight) / (busy @ weight)
            for busy, weight in zip(self.busy_s, self.weight, strict=True)
        ]
        return np.asarray(np.stack(each, axis=-1) @ self.split.T)

    def residual_tail(self, edges_s: Floats) -> tuple[Floats, Floats]:
        """P(R > x) at `edges_s` and its mean between them, (N, mixes, edges) and one fewer.

        P(R > x) = E[(S - x)+] / E[S], and the integral of E[(S - x)+] from x on is
        E[(S - x)+^2] / 2.
        """
        at, between = [], []
        width = np.diff(edges_s)
        for busy, weight in zip(self.busy_s, self.weight, strict=True):
            over = np.maximum(busy[:, None, :] - edges_s[:, None], 0.0)
            mean = (busy @ weight)[:, None]
            at.append((over @ weight) / mean)
            between.append(-np.diff(over**2 @ weight, axis=-1) / (2.0 * width * mean))
        return tuple(  # type: ignore[return-value]  # a pair from a generator
            np.einsum("mk,kne->nme", self.split, np.stack(each)) for each in (at, between)
        )


def largest_loads(
    servers: Floats,
    work: MixedWork,
    own_s: Floats,
    weight: Floats,
    limit_s: float,
    percentile: float | None,
) -> Floats:
    """Largest load in erlangs that keeps one limit, (N, pool sizes, mixes); 0 where none does."""
    ratio_s = work.ratio_s
    found = []
    for count in servers.tolist():
        if percentile is not None and count <= LARGEST_LATTICE:
            keeps = _by_lattice(count, work, own_s, weight, limit_s, percentile)
        else:
            keeps = _by_exponential(count, ratio_s, own_s, weight, limit_s, percentile)
        low, high = np.zeros(ratio_s.shape), np.full(ratio_s.shape, count)
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            good = keeps(middle)
            low, high = np.where(good, middle, low), np.where(good, high, middle)
        found.append(low)
    return np.stack(found, axis=1)


def _by_exponential(
    count: float,
    ratio_s: Floats,
    own_s: Floats,
    weight: Floats,
    limit_s: float,
    percentile: float | None,
) -> Callable[[Floats], Flags]:
    """theta = ratio / (2 (n - a)), P(late) = (1 - C) P(own > t) + C E[exp(-(t - own)+ / theta)]."""
    patience = np.maximum(limit_s - own_s, 0.0)[:, None, :]
    late_alone = ((own_s > limit_s) @ weight)[:, None]
    mean_own = (own_s @ weight)[:, None]

    def keeps(load: Floats) -> Flags:
        theta = ratio_s / (2.0 * np.maximum(count - load, 1e-300))
        waits = erlang_c(np.full_like(load, count), load)
        if percentile is None:
            return np.asarray(mean_own + waits * theta <= limit_s)
        late = np.exp(-patience / theta[..., None]) @ weight
        return np.asarray((1 - waits) * late_alone + waits * late <= 1.0 - percentile)

    return keeps


def _by_lattice(
    count: float,
    work: MixedWork,
    own_s: Floats,
    weight: Floats,
    limit_s: float,
    percentile: float,
) -> Callable[[Floats], Flags]:
    """With probability C a wait of Y + X_1 / n + ... + X_N / n, P(N = k) = (1 - rho) rho^k.

    X are residual lives, Y is the least of n of them.
    """
    step_s = limit_s / CELLS
    edges = step_s * np.arange(CELLS + 2.0)
    tail, between = work.residual_tail(edges)
    # Masses half a cell either side of each point have the means of the tails in the cells.
    least = tail**count
    least = between if count == 1 else 0.5 * (least[..., 1:] + least[..., :-1])
    first = -np.diff(least, axis=-1, prepend=1.0)
    _, between = work.residual_tail(count * edges)
    life = -np.diff(between, axis=-1, prepend=1.0)
    slack = (limit_s - step_s * np.arange(CELLS + 1.0))[:, None]
    part = np.clip((own_s[:, None, :] - slack) / step_s + 0.5, 0.0, 1.0)
    part[:, 0, :] = own_s > limit_s
    late = part @ weight
    # Late after the first part and j more steps; whatever reaches past the limit is late.
    beyond = np.concatenate([late, np.ones_like(late)], axis=-1)
    shifted = np.lib.stride_tricks.sliding_window_view(beyond, CELLS + 1, axis=-1)[:, : CELLS + 1]
    missed = np.einsum("nmi,nji->nmj", first, shifted) + 1.0 - first.sum(axis=-1, keepdims=True)

    def keeps(load: Floats) -> Flags:
        rho = load / count
        sums = np.empty_like(life)
        scale = 1.0 / (1.0 - rho * life[..., 0])
        sums[..., 0] = (1.0 - rho) * scale
        for j in range(1, CELLS + 1):
            earlier = (life[..., 1 : j + 1] * sums[..., j - 1 :: -1]).sum(axis=-1)
            sums[..., j] = rho * scale * earlier
        waits = erlang_c(np.full_like(load, count), load)
        waited = (sums * missed).sum(axis=-1) + 1.0 - sums.sum(axis=-1)
        share = (1.0 - waits) * late[:, :1] + waits * waited
        return np.asarray(share <= 1.0 - percentile)

    return keeps
