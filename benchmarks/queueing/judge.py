"""One plan: what the formulas say of each of its pools beside what the simulation measures."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

from benchmarks.queueing.cases import Case, Recipe, drawn_case
from planner.simulate.records import SimulationSettings
from planner.simulate.run import simulate_plan
from planner.simulate.summarise import Results, results

PERCENTILES: Final = (50.0, 90.0, 95.0, 99.0)
JUDGED: Final = 99.0
WITHIN: Final = 0.15
"""Largest error of a formula's p99."""
NARROW: Final = 0.03
"""Half of the simulation's own interval for p99, over its value, to be reached."""
METRICS: Final = {"prefill": ("ttft",), "decode": ("tpot",), "aggregated": ("ttft", "tpot")}
"""What is made in a pool of each role."""
MOST_GROWTH: Final = 12.0


@dataclass(frozen=True, slots=True)
class Effort:
    """Requests of the rarest class: at first, and at most, where the interval stays wide."""

    first: int = 20_000
    most: int = 120_000


@dataclass(frozen=True, slots=True)
class Figure:
    """A percentile of one class, in seconds."""

    workload: str
    metric: str
    percentile: float
    predicted_s: float
    simulated_s: float
    half_width: float
    """Of the simulation's interval, over the value; infinite where it has no end."""

    @property
    def error(self) -> float:
        """Predicted over simulated, less 1."""
        return self.predicted_s / self.simulated_s - 1


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool that was judged."""

    number: int
    recipe: Recipe
    role: str
    replicas: int
    chunk_tokens: int | None
    words: str
    use: float
    ttft_factor: float
    utilisation: float
    """Share of the time that goes to prompts (prefill), of full chunks (aggregated); of decode
    pools the part of a step that the batch makes longer."""
    planned_batch: float | None
    batch: float
    lanes: float
    """Prompts that a replica works on at once."""
    shortest_output: float
    """Mean output tokens of the class with the shortest."""
    requests: int
    figures: tuple[Figure, ...]

    @property
    def judged(self) -> tuple[Figure, ...]:
        """The figures that count: p99."""
        return tuple(each for each in self.figures if each.percentile == JUDGED)

    @property
    def worst(self) -> Figure:
        """The judged figure that is furthest off."""
        return max(self.judged, key=lambda each: abs(each.error))

    @property
    def within(self) -> bool:
        """Whether every judged figure is near enough."""
        return all(abs(each.error) <= WITHIN for each in self.judged)

    @property
    def narrow(self) -> bool:
        """Whether the simulation knows every judged figure well enough."""
        return all(each.half_width < NARROW for each in self.judged)


@dataclass(frozen=True, slots=True)
class Judged:
    """A plan that was simulated."""

    pools: tuple[PoolRow, ...]
    requests: int
    seconds: float
    accounted_for: bool
    little_difference: float


def judged(number: int, recipe: Recipe, seed: int, effort: Effort) -> Judged:
    """Draw a plan and simulate it, longer until its intervals are narrow."""
    started = time.monotonic()
    case = drawn_case(number, recipe, seed)
    wanted = effort.first
    while True:
        settings = SimulationSettings(seed=number, requests_per_class=wanted, workers=1)
        run = simulate_plan(case.embedded, settings)
        found = results(run, case.embedded)
        pools = _rows(case, found)
        widest = max(each.half_width for pool in pools for each in pool.judged)
        if widest < NARROW or wanted >= effort.most:
            break
        growth = min((1.1 * widest / NARROW) ** 2, MOST_GROWTH)
        wanted = min(math.ceil(wanted * max(growth, 1.5)), effort.most)
    requests = sum(part.requests.arrival_s.size for part in run.components)
    return Judged(
        pools=pools,
        requests=requests,
        seconds=time.monotonic() - started,
        accounted_for=all(a.every_request_once and a.every_token_once for a in found.accounts),
        little_difference=max(abs(a.little_difference_fraction) for a in found.accounts),
    )


def _rows(case: Case, found: Results) -> tuple[PoolRow, ...]:
    rows = []
    for pool, seen in zip(case.embedded.plan.pools, found.pools, strict=True):
        figures = tuple(
            Figure(
                workload=each.name,
                metric=figure.metric,
                percentile=figure.percentile,
                predicted_s=_seconds(figure.predicted_ms),
                simulated_s=_seconds(figure.value_ms),
                half_width=(_seconds(figure.high_ms) - (figure.low_ms or 0.0) / 1e3)
                / 2
                / _seconds(figure.value_ms),
            )
            for each in found.classes
            for figure in each.latencies
            if figure.metric in METRICS[pool.role] and figure.percentile in PERCENTILES
        )
        rows.append(
            PoolRow(
                number=case.number,
                recipe=case.recipe,
                role=pool.role,
                replicas=pool.replicas,
                chunk_tokens=pool.chunk_tokens,
                words=case.words,
                use=case.use,
                ttft_factor=case.ttft_factor,
                utilisation=_utilisation(case, pool.id, pool.role, pool.replicas),
                planned_batch=pool.batch,
                batch=seen.running_mean,
                lanes=_lanes(case, pool.id),
                shortest_output=min(each.mix.mean_output for each in case.embedded.classes),
                requests=sum(each.requests for each in found.classes),
                figures=figures,
            )
        )
    return tuple(rows)


def _seconds(value_ms: float | None) -> float:
    return math.inf if value_ms is None else value_ms / 1e3


def _utilisation(case: Case, pool: str, role: str, replicas: int) -> float:
    state = case.check.pools[pool]
    if role == "prefill":
        return math.fsum(state.prefill_seconds.values()) / replicas
    if role == "aggregated":
        cap = case.embedded.configs[pool].engine.aggregated_utilization_cap_fraction
        return state.pressure["prefill_utilization"] * cap
    if not state.step_s:
        return math.nan
    step = case.embedded.backend.compile([case.embedded.configs[pool]])
    context = case.embedded.classes[0].mix.decode_context_mean
    alone = float(step.token_time_s(0, step.verified_tokens_per_step(0)))
    return 1.0 - (alone + float(step.sequence_time_s(0, context))) / state.step_s


def _lanes(case: Case, pool: str) -> float:
    return float(case.embedded.backend.compile([case.embedded.configs[pool]]).prompt_lanes(0))
