"""What the physics needs to know of a workload class: a few moments and the prompt points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from planner.workload.mix import TokenMix

Floats = NDArray[np.float64]

Groups: TypeAlias = tuple[tuple[float, int], ...]

GROUPS: Final[Groups] = ((0.8, 20), (0.98, 36), (1.0, 8))
"""Prompt points kept: up to each share of the requests, so many groups. Promises are about the
upper tail, where a group is half a percent wide or less."""

MIXED_GROUPS: Final[Groups] = ((0.8, 4), (0.98, 7), (1.0, 3))
OUTPUT_GROUPS: Final[Groups] = ((0.8, 4), (0.98, 2), (1.0, 1))
"""Outputs vary what a request sees of a batch, over decades of length; few points do."""


@dataclass(frozen=True, slots=True)
class ClassLoad:
    """Moments of one class, and the squared variation of the times between its requests.

    Prompt points are sorted by uncached length; `weight` sums to 1. Contexts are weighted by
    decode token: E[I O]/E[O] + E[O^2]/(2 E[O]), so that long outputs count for as many steps
    as they take.
    """

    uncached: Floats
    cached: Floats
    weight: Floats
    outputs: Floats
    output_weight: Floats
    output_mean: float
    context_mean: float
    context_std: float
    longest_tokens: float
    arrival_scv: float

    @property
    def prompt(self) -> Floats:
        """Whole prompt of each point: what the KV cache holds and a transfer moves."""
        return self.uncached + self.cached

    @property
    def uncached_mean(self) -> float:
        """Prompt tokens that must be computed, per request."""
        return float(self.uncached @ self.weight)


def class_load(mix: TokenMix, arrival_scv: float = 1.0, groups: Groups = GROUPS) -> ClassLoad:
    """Moments and thinned points of a token mix."""
    uncached, cached, weight = _thin(
        mix.prompt_tokens - mix.cached_tokens, mix.cached_tokens, mix.prompt_weight, groups
    )
    nothing = np.zeros_like(mix.output_tokens)
    outputs, _, output_weight = _thin(mix.output_tokens, nothing, mix.output_weight, OUTPUT_GROUPS)
    mean = mix.decode_context_mean
    variance = max(mix.decode_context_second_moment - mean**2, 0.0)
    return ClassLoad(
        uncached=uncached,
        cached=cached,
        weight=weight,
        outputs=outputs,
        output_weight=output_weight,
        output_mean=mix.mean_output,
        context_mean=mean,
        context_std=float(np.sqrt(variance)),
        longest_tokens=mix.max_prompt_tokens + mix.max_output_tokens,
        arrival_scv=arrival_scv,
    )


def mixed_load(mix: TokenMix, arrival_scv: float = 1.0) -> ClassLoad:
    """The same with fewer points, for the laws of aggregated engines, which are dear."""
    return class_load(mix, arrival_scv, MIXED_GROUPS)


def _thin(
    uncached: Floats, cached: Floats, weight: Floats, groups: Groups
) -> tuple[Floats, Floats, Floats]:
    """Group sorted prompt points, fine in the upper tail; group means keep E[U] and E[C]."""
    order = np.lexsort((cached, uncached))
    uncached, cached, weight = uncached[order], cached[order], weight[order]
    if len(weight) <= sum(count for _, count in groups):
        return uncached, cached, weight
    starts_at = (0.0, *(share for share, _ in groups))
    edges = np.concatenate(
        [
            np.linspace(start, end, count, endpoint=False)
            for start, (end, count) in zip(starts_at, groups, strict=False)
        ]
    )
    middle = np.cumsum(weight) - weight / 2
    group = np.searchsorted(edges, middle, side="right") - 1
    _, starts = np.unique(group, return_index=True)
    total = np.add.reduceat(weight, starts)
    return (
        np.add.reduceat(uncached * weight, starts) / total,
        np.add.reduceat(cached * weight, starts) / total,
        total,
    )


def upper_quantile(values: Floats, weight: Floats, percentile: float | None) -> Floats:
    """Smallest value with P(X <= value) >= percentile along the last axis; mean for None."""
    if percentile is None:
        return np.asarray(values @ weight)
    order = np.argsort(values, axis=-1)
    cumulative = np.cumsum(weight[order], axis=-1)
    index = np.minimum((cumulative < percentile - 1e-12).sum(axis=-1), values.shape[-1] - 1)
    position = np.take_along_axis(order, index[..., None], axis=-1)
    return np.asarray(np.take_along_axis(values, position, axis=-1)[..., 0])
