"""A plan simulated: its components side by side in processes, the same whatever their number."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Final

import numpy as np

from planner.embedded import EmbeddedPlan
from planner.simulate import build
from planner.simulate.build import Component, components, spare_replicas
from planner.simulate.chance import generator
from planner.simulate.component import Outage, Resident, simulate_component
from planner.simulate.draw import drawn_arrivals, drawn_residents, merged
from planner.simulate.placement import SPOT_DOWN_S, Loss, interruptions, losses, placed
from planner.simulate.records import ComponentRun, SimulationRun, SimulationSettings
from planner.simulate.replay import classes_of, replayed_arrivals
from planner.simulate.requests import Arrivals

POLL_S: Final = 0.2

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """All that one process needs to simulate a component."""

    component: Component
    residents: tuple[Resident, ...]
    outages: tuple[Outage, ...]
    settings: SimulationSettings


def simulate_plan(
    embedded: EmbeddedPlan,
    settings: SimulationSettings,
    progress: Progress = lambda fraction, what: None,
) -> SimulationRun:
    """Simulate a plan. `progress` gets the share done, 0 to 1, and what is being done.

    The result depends on the settings but not on `workers`. Raises InputError where a failure
    names a pool that the plan does not have.
    """
    started = time.monotonic()
    progress(0.0, "preparing step times")
    parts = components(embedded, settings)
    nodes = placed(embedded.plan, spare_replicas(embedded, settings))
    lost = list(losses(embedded.plan, settings.failures, nodes))
    span_s = max(part.horizon_s for part in parts)
    lost += interruptions(nodes, settings.spot_interruptions_per_hour, span_s, settings.seed)
    jobs = [_job(part, lost, settings) for part in parts]
    runs = _run_all(jobs, settings.workers, progress)
    return SimulationRun(
        seed=settings.seed,
        components=tuple(runs),
        elapsed_s=time.monotonic() - started,
        assumptions=_assumptions(parts, settings),
    )


def _job(part: Component, lost: Sequence[Loss], settings: SimulationSettings) -> _Job:
    residents: list[Resident] = []
    for index, pool in enumerate(part.model.pools):
        residents += drawn_residents(index, pool, part.classes, part.rate_factors, settings.seed)
    return _Job(part, tuple(residents), tuple(_outages(part, lost)), settings)


def _outages(part: Component, lost: Sequence[Loss]) -> list[Outage]:
    """Losses as far as they hit this component, on its clock."""
    place = {pool.id: index for index, pool in enumerate(part.model.pools)}
    found = []
    for loss in lost:
        mine = [each for each in loss.replicas if each[0] in place]
        counts = {name: sum(each[0] == name for each in mine) for name, _ in mine}
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        for number, (name, replica) in enumerate(mine):
            text = f"{loss.what} ({told})" if number == 0 else ""
            at_s = part.warmup_s + loss.at_s
            found.append(Outage(place[name], replica, at_s, loss.down_s, text))
    return found


def _arrivals(job: _Job) -> Arrivals:
    part, settings = job.component, job.settings
    trace = settings.trace
    own = settings.trace_class
    kinds = None
    if part.replayed and trace is not None:
        kinds = np.zeros(trace.requests, dtype=np.int64)
        if own is not None:
            kinds += part.model.classes.index(own)
        elif len(part.classes) > 1:
            kinds = classes_of(trace, part.classes)
    found = []
    for k, workload in enumerate(part.classes):
        rate = part.rates_per_s[workload.name]
        rows = np.flatnonzero(kinds == k) if kinds is not None else np.zeros(0, dtype=np.int64)
        if trace is not None and len(rows):
            seed, span_s = settings.seed, trace.span_s
            found.append(
                replayed_arrivals(trace, rows, span_s, k, rate, part.end_s, seed, workload.mix)
            )
        else:
            found.append(drawn_arrivals(workload, k, rate, part.end_s, settings.seed))
    return merged(found, part.warmup_s, part.horizon_s)


def _simulate(job: _Job, note: Callable[[float], None]) -> ComponentRun:
    part = job.component
    names = sorted(pool.id for pool in part.model.pools)
    return simulate_component(
        part.model,
        _arrivals(job),
        horizon_s=part.horizon_s,
        warmup_s=part.warmup_s,
        residents=job.residents,
        outages=job.outages,
        seed=int(generator(job.settings.seed, "routing", *names).integers(2**63)),
        note=note,
    )


# ---- processes ----------------------------------------------------------------------------------


def _run_all(jobs: Sequence[_Job], workers: int | None, progress: Progress) -> list[ComponentRun]:
    """Every job, the longest first."""
    processes = min(workers or min(os.cpu_count() or 1, 2), len(jobs))
    share = np.array([job.component.requests for job in jobs])
    share = share / share.sum()
    what = f"simulating {sum(job.component.requests for job in jobs):,.0f} requests"
    if processes == 1:
        runs, before = [], 0.0
        for job, part in zip(jobs, share.tolist(), strict=True):
            start = before

            def note(fraction: float, start: float = start, part: float = part) -> None:
                progress(start + part * fraction, what)

            runs.append(_simulate(job, note))
            before += part
        return runs
    done: SynchronizedArray[float] = multiprocessing.Array("d", len(jobs))
    with ProcessPoolExecutor(processes, initializer=_share_progress, initargs=(done,)) as pool:
        order = np.argsort(-share, kind="stable").tolist()
        futures = {index: pool.submit(_in_process, index, jobs[index]) for index in order}
        pending = set(futures.values())
        try:
            while pending:
                _, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
                progress(float(share @ np.array(done[:])), what)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            # Leaving the pool waits for what its processes are at.
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        return [futures[index].result() for index in range(len(jobs))]


_done: SynchronizedArray[float] | None = None


def _share_progress(done: SynchronizedArray[float]) -> None:
    global _done  # noqa: PLW0603  # how an initializer hands something to its process
    _done = done


def _in_process(index: int, job: _Job) -> ComponentRun:
    done = _done
    assert done is not None

    def note(fraction: float) -> None:
        done[index] = fraction

    run = _simulate(job, note)
    note(1.0)
    return run


def _assumptions(parts: Sequence[Component], settings: SimulationSettings) -> tuple[str, ...]:
    found = [
        "Step times are those of the performance model, without noise, and the replicas of a "
        "pool are all alike.",
        "Attention groups and pipeline stages of a replica step together; its sequences are "
        "spread evenly over them.",
        "A cache moves at the full rate of the slower network side, whatever else moves.",
        "Partly filled blocks of the cache are in the engine's page efficiency; preempted "
        "requests are computed again.",
    ]
    if any(each.mix.mean_cached > 0 for part in parts for each in part.classes):
        found.append("What a class finds in the prefix cache is taken as found by every replica.")
    if any(each.mix.max_hidden_tokens > 0 for part in parts for each in part.classes):
        found.append("Long hidden parts go with long outputs.")
    short = [part for part in parts if part.fewest < settings.requests_per_class]
    if settings.hours is None and any(not part.replayed for part in short):
        found.append(
            f"Where rates lie far apart the span ends at {build.MOST_IN_COMPONENT:,} requests, and "
            "the rarest class has fewer requests than asked."
        )
    if settings.trace is not None:
        found.append(
            "The trace is played in shifted copies, so that bursts keep their length; copies "
            "share no cached blocks."
        )
    if settings.spot_interruptions_per_hour > 0:
        found.append(f"An interrupted spot node is replaced after {SPOT_DOWN_S:g} s.")
    return tuple(found)
