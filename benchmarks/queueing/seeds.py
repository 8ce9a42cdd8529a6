"""Plans on fresh seeds: those of `planner solve --simulate`, beside those of a mean model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.queueing.tables import percent, pipes, signed
from planner.api import load, solve, solve_and_simulate
from planner.embedded import embedded_plan
from planner.plan import Plan
from planner.schema.instance import Instance
from planner.simulate.latencies import class_latencies, estimate, good, within
from planner.simulate.records import SimulationSettings
from planner.simulate.run import simulate_plan
from planner.simulate.summarise import verdict
from planner.workload.build import build_workload
from planner.workload.classes import WorkloadClass

Note = Callable[[str], None]

ROOT: Final = Path(__file__).resolve().parents[2]
INSTANCES: Final = (
    "single-model",
    "tight-latency",
    "disaggregated",
    "long-context",
    "reasoning-heavy",
)
FRESH: Final = 1_000
"""The first fresh seed; rounds of `--simulate` count from 0."""


MISSED: Final = (
    "instance",
    "plan",
    "promise",
    "seeds",
    "worst simulated / limit",
    "least requests within",
)


@dataclass(frozen=True, slots=True)
class Scale:
    """Instances, fresh seeds, and requests of the rarest class on each."""

    instances: tuple[str, ...] = INSTANCES
    seeds: int = 20
    requests: int = 20_000


QUICK: Final = Scale(("single-model",), 2, 1_000)


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise on one seed: simulated over limit, and the share of requests within."""

    name: str
    use: float
    kept: bool
    within: float


@dataclass(frozen=True, slots=True)
class Seen:
    """A plan on one seed."""

    promises: tuple[Promise, ...]
    good: float
    """Requests that kept every limit, over all of all classes."""


def study(scale: Scale, workers: int, note: Note) -> str:
    """Solve, simulate on fresh seeds, and write the section of the report."""
    lines, missed = [], []
    for name in scale.instances:
        instance = load(ROOT / "instances" / f"{name}.yaml")
        plans = {
            "formulas": solve(instance),
            "--simulate": solve_and_simulate(instance),
            "mean model": solve(of_means(instance)),
        }
        dearest = plans["--simulate"].cost_usd_per_hour or math.nan
        for kind, plan in plans.items():
            seen = on_seeds(plan, instance, scale, workers)
            note(f"{name}, {kind}: {sum(_kept(each) for each in seen)} of {len(seen)} seeds kept")
            lines.append(_line(name, kind, plan, seen, dearest))
            missed += _misses(name, kind, seen)
    heading = [
        "instance",
        "plan",
        "USD/hour",
        "to --simulate",
        "rounds",
        "seeds that keep every SLO",
        "worst simulated / limit",
        "promise",
        "requests that keep all",
    ]
    return f"""## 2. Plans on fresh seeds

Each plan is simulated on {scale.seeds} seeds that it was not made with, from {FRESH}, with at least
{scale.requests:,} requests of every class. `formulas` is `planner solve`; `--simulate` solves again
with margins where the simulation is slower; `mean model` solves the same instance with the word
`mean` in the place of every percentile, bursts kept, and is held to the percentiles all the same.

{pipes(heading, lines, words=2)}

Promises missed on some seed:

{pipes(MISSED, missed, words=3) if missed else "None."}
"""


def of_means(instance: Instance) -> Instance:
    """The same instance with a promise on the mean in the place of each percentile."""
    workloads = tuple(
        each.model_copy(
            update={"slo": tuple(slo.model_copy(update={"percentile": "mean"}) for slo in each.slo)}
        )
        for each in instance.workloads
    )
    # A copy shares the cards that its models were resolved with.
    return instance.model_copy(update={"workloads": workloads})


def on_seeds(plan: Plan, instance: Instance, scale: Scale, workers: int) -> list[Seen]:
    """The promises of `instance` on each fresh seed."""
    classes = build_workload(instance).classes
    seeds = range(FRESH, FRESH + scale.seeds)
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(seen_on, plan, classes, seed, scale.requests) for seed in seeds]
        return [job.result() for job in jobs]


def seen_on(plan: Plan, classes: tuple[WorkloadClass, ...], seed: int, requests: int) -> Seen:
    """A plan on one seed, and what it does for the promises to `classes`."""
    embedded = replace(embedded_plan(plan, plan.name), classes=classes)
    settings = SimulationSettings(seed=seed, requests_per_class=requests, workers=1)
    run = simulate_plan(embedded, settings)
    promises, good_count, count = [], 0, 0
    for part in run.components:
        for workload in embedded.classes:
            if workload.name not in part.classes:
                continue
            latencies = class_latencies(part, workload.name)
            flags = good(latencies, workload.slos)
            good_count, count = good_count + int(flags.sum()), count + flags.size
            for slo in workload.slos:
                value = estimate(latencies, slo.metric, slo.percentile)
                promises.append(
                    Promise(
                        name=f"{workload.name} {str(slo).partition(' <=')[0]}",
                        use=value.value / slo.limit_s,
                        kept=verdict(value, slo.limit_s) == "kept",
                        within=within(latencies, slo).value,
                    )
                )
    return Seen(tuple(promises), good_count / count)


def _kept(seen: Seen) -> bool:
    return all(promise.kept for promise in seen.promises)


def _line(name: str, kind: str, plan: Plan, seen: Sequence[Seen], other: float) -> list[str]:
    cost = plan.cost_usd_per_hour or math.nan
    worst = max((p for each in seen for p in each.promises), key=lambda promise: promise.use)
    return [
        name,
        kind,
        f"{cost:,.2f}",
        signed(cost / other - 1),
        str(len(plan.rounds) or 1),
        f"{sum(_kept(each) for each in seen)} of {len(seen)}",
        f"{worst.use:.2f}",
        worst.name,
        percent(math.fsum(each.good for each in seen) / len(seen)),
    ]


def _misses(name: str, kind: str, seen: Sequence[Seen]) -> list[list[str]]:
    by_name: dict[str, list[Promise]] = {}
    for each in seen:
        for promise in each.promises:
            by_name.setdefault(promise.name, []).append(promise)
    return [
        [
            name,
            kind,
            key,
            f"{sum(not each.kept for each in promises)} of {len(promises)}",
            f"{max(each.use for each in promises):.2f}",
            percent(min(each.within for each in promises)),
        ]
        for key, promises in by_name.items()
        if not all(each.kept for each in promises)
    ]
