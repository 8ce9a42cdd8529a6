"""A workload in numbers: rates, tokens, and the limits that its promises put on two latencies.

Plans are made for the time to the first token (hidden or not) and the time per output token.
Promises on other things are turned into limits on these two, safely: with an error budget of
1 - p, the first token, the number of tokens and the time per token may each miss with a third of
it, so that all three hold at once with at least p, whatever their dependence (union bound).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.schema.slo import DEFAULT_TTFT_SHARE
from planner.workload.mix import TokenMix


@dataclass(frozen=True, slots=True)
class LatencyLimit:
    """A latency's percentile (in (0, 1); None: its mean) stays at or below `limit_s`."""

    limit_s: float
    percentile: float | None


@dataclass(frozen=True, slots=True)
class Slo:
    """A promise as written: `metric` is ttft, tpot or e2e; the percentile as in LatencyLimit."""

    metric: str
    limit_s: float
    percentile: float | None
    ttft_share_fraction: float = DEFAULT_TTFT_SHARE
    """Share of the limit kept for the first token; used for e2e, and ttft with hidden tokens."""

    def __str__(self) -> str:
        which = "mean" if self.percentile is None else f"p{self.percentile * 100:g}"
        return f"{self.metric} {which} <= {self.limit_s * 1000:g} ms"


@dataclass(frozen=True, slots=True, eq=False)
class HitLevel:
    """What the requests find in a prefix cache with room for at least `cache_tokens`."""

    cache_tokens: float
    mix: TokenMix


@dataclass(frozen=True, slots=True, eq=False)
class WorkloadClass:
    """What the optimiser needs to know of a workload."""

    name: str
    model: str
    """Id of the model card."""
    rate_per_s: tuple[float, ...]
    """Requests per second in each period, burst factor included."""
    mix: TokenMix
    slos: tuple[Slo, ...]
    """As promised."""
    ttft_limits: tuple[LatencyLimit, ...]
    """On the first token, hidden or not; derived."""
    tpot_limits: tuple[LatencyLimit, ...]
    """On the time per output token; derived."""
    weight_precisions: frozenset[str]
    kv_precisions: frozenset[str]
    """Every pair from these two sets is accepted."""
    precision_pairs: frozenset[tuple[str, str]] = frozenset()
    """All accepted (weight, KV) pairs: at least those of the two sets."""
    burst_factor: float = 1.0
    """Already in `rate_per_s`; divide by it for the mean rate."""
    arrival_scv: float = 1.0
    """Squared coefficient of variation of the times between arrivals; 1 for Poisson."""
    hit_levels: tuple[HitLevel, ...] = ()
    """By rising size of the prefix cache; `mix` is what a pool without room for one sees."""


def derived_limits(
    slos: Iterable[Slo], mix: TokenMix
) -> tuple[tuple[LatencyLimit, ...], tuple[LatencyLimit, ...]]:
    """Limits on the first token and on the time per output token that imply every promise.

    Own TPOT promises pass through, and so do TTFT promises without hidden tokens. Otherwise a
    limit L at p is split by the share s: first token s L, time per token (1 - s) L / n, both at
    1 - (1 - p) / 3, with n the number of tokens after the first, at the same percentile: all
    output tokens but one for e2e, the hidden tokens for ttft. For means n is a mean too, which
    takes time per token and number of tokens of a request to be independent.
    """
    first: list[LatencyLimit] = []
    each: list[LatencyLimit] = []
    for slo in slos:
        if slo.metric == "tpot":
            each.append(LatencyLimit(slo.limit_s, slo.percentile))
            continue
        hidden = slo.metric == "ttft"
        if hidden and mix.max_hidden_tokens == 0:
            first.append(LatencyLimit(slo.limit_s, slo.percentile))
            continue
        inner = None if slo.percentile is None else 1 - (1 - slo.percentile) / 3
        if inner is None:
            after = mix.hidden_tokens_mean if hidden else mix.mean_output - 1
        else:
            after = mix.hidden_quantile(inner) if hidden else mix.output_quantile(inner) - 1
        if after <= 0:  # the first token is the last one too
            first.append(LatencyLimit(slo.limit_s, slo.percentile))
            continue
        share = slo.ttft_share_fraction
        first.append(LatencyLimit(share * slo.limit_s, inner))
        each.append(LatencyLimit((1 - share) * slo.limit_s / after, inner))
    return binding(first), binding(each)


def binding(limits: Sequence[LatencyLimit]) -> tuple[LatencyLimit, ...]:
    """The limits that no other one implies: a lower limit at a higher percentile does."""
    kept: list[LatencyLimit] = []
    means = [limit for limit in limits if limit.percentile is None]
    if means:
        kept.append(min(means, key=lambda limit: limit.limit_s))
    ranked = sorted(
        (limit for limit in limits if limit.percentile is not None),
        key=lambda limit: (-(limit.percentile or 0.0), limit.limit_s),
    )
    lowest = float("inf")
    for limit in ranked:
        if limit.limit_s < lowest:
            kept.append(limit)
            lowest = limit.limit_s
    return tuple(kept)
