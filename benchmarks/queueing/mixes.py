"""Random workload classes: five kinds of traffic, drawn within what such services see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from planner.workload.classes import LatencyLimit, Slo, WorkloadClass
from planner.workload.distribution import Distribution
from planner.workload.mix import TokenMix

Range = tuple[float, float]

LONGEST_TOKENS: Final = 32_000
"""Prompt and output together, in the box."""
PERCENTILE: Final = 0.99


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of traffic draws from: tokens, squared variations, fractions."""

    name: str
    input_tokens: Range
    input_scv: Range
    output_tokens: Range
    cached_fraction: Range = (0.0, 0.0)
    longest_tokens: int = LONGEST_TOKENS


KINDS: Final = (
    Kind("chat", (300, 1500), (0.8, 3.0), (100, 500)),
    Kind("code", (1500, 5000), (0.4, 1.2), (8, 60), (0.0, 0.6)),
    Kind("summarisation", (3000, 9000), (0.3, 0.9), (100, 500)),
    Kind("retrieval", (2500, 6000), (0.3, 1.0), (100, 400), (0.0, 0.2)),
    Kind("agents", (5000, 9000), (0.3, 0.9), (200, 1000), (0.5, 0.9)),
)
LONG: Final = Kind(
    "long documents", (20_000, 40_000), (0.4, 1.0), (100, 600), longest_tokens=100_000
)
SPREAD: Final = Kind("uneven chat", (800, 1500), (8.0, 8.0), (100, 500))


def between(draw: np.random.Generator, limits: Range) -> float:
    """A number within limits, its logarithm even where they are positive."""
    low, high = limits
    if low > 0:
        return math.exp(draw.uniform(math.log(low), math.log(high)))
    return float(draw.uniform(low, high))


def drawn_class(
    draw: np.random.Generator, kind: Kind, model: str, arrival_scv: float = 1.0
) -> WorkloadClass:
    """A class of one kind, without a rate and promises yet."""
    output_mean = between(draw, kind.output_tokens)
    longest_output = float(min(math.ceil(10 * output_mean), kind.longest_tokens // 8))
    longest_input = kind.longest_tokens - longest_output
    mix = TokenMix.of(
        Distribution.lognormal(
            between(draw, kind.input_tokens), between(draw, kind.input_scv), longest_input
        ),
        Distribution.lognormal(output_mean, float(draw.uniform(0.4, 1.5)), longest_output),
        cached_fraction=between(draw, kind.cached_fraction),
    )
    both = frozenset({"bf16", "fp8", "fp4"})
    return WorkloadClass(
        name=kind.name,
        model=model,
        rate_per_s=(1.0,),
        mix=mix,
        slos=(),
        ttft_limits=(),
        tpot_limits=(),
        weight_precisions=both,
        kv_precisions=both,
        precision_pairs=frozenset((weight, kv) for weight in both for kv in both),
        arrival_scv=arrival_scv,
    )


def limits_of(slos: tuple[Slo, ...], metric: str) -> tuple[LatencyLimit, ...]:
    """The limits that promises on one metric are."""
    return tuple(LatencyLimit(s.limit_s, s.percentile) for s in slos if s.metric == metric)
