"""Percentiles of aggregated engines, whose steps carry decode tokens and prompt chunks together.

A step takes t0 + the sum of x over its decoding sequences + the time of the prompt chunks it
carries, first come first served, at most `full_ride_s` of them. A prompt adds its stall s, its
share of full chunks is s / full_ride_s, and a prompt queue is busy in full steps. With the
decode step t_d = t0 + Y, Y the batch's part, and rates per replica,

    rho_s = rate E[s]                      share of the time that goes to prompts
    rho_p = rho_s (t_d + ride) / ride      load of the prompt queue; it must stay below 1
    tau   = t_d / (1 - rho_s)              mean step

TTFT is the step under way, the wait for the prompts ahead, and the own chunks. TPOT is t_d and the
prompt work per step, which is a share of a full chunk and follows a beta law: over few steps
it is close to none or all, over many close to its mean. A request starts to decode behind its own
prefill, when the prompt queue is more often busy than in a random step, so short outputs see
slower steps. The batch fluctuates as in `planner.queueing.decode`; both times are averaged over
it. docs/queueing.md derives the forms and states their error against simulation.
"""

from __future__ import annotations

from planner.queueing.aggregated.first_token import (
    aggregated_ttft_quantile,
    aggregated_ttft_tail,
)
from planner.queueing.aggregated.load import AggregatedLoad, peakedness, stall_moments
from planner.queueing.aggregated.per_token import (
    aggregated_tpot_quantile,
    aggregated_tpot_tail,
)

__all__ = [
    "AggregatedLoad",
    "aggregated_tpot_quantile",
    "aggregated_tpot_tail",
    "aggregated_ttft_quantile",
    "aggregated_ttft_tail",
    "peakedness",
    "stall_moments",
]
