"""Checks of what a simulation is asked for, before any of it is simulated."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from planner.embedded import EmbeddedPlan
from planner.errors import InputError, Problem
from planner.plan import Plan
from planner.simulate.build import components
from planner.simulate.placement import hit_pool
from planner.simulate.records import Failure, SimulationSettings

MOST_REQUESTS: Final = 5_000_000
"""Requests of one simulation; more would not fit the memory of a small machine."""
REQUESTS_PER_S: Final = 20_000.0
"""Requests that two processors simulate in a second, roughly; only for the message."""
KINDS: Final = ("node", "replica")


def checked(embedded: EmbeddedPlan, settings: SimulationSettings) -> SimulationSettings:
    """The settings for a plan, with every pool by its full id.

    Raises InputError with everything in them that cannot be, or cannot be done.
    """
    plan = embedded.plan
    problems = [*_numbers(settings)]
    failures = []
    for failure in settings.failures:
        named, problem = _pool(plan, failure)
        failures.append(named)
        problems += [problem] if problem else [*_failure(named)]
    problems += _trace(plan, settings)
    if not problems:
        settings = replace(settings, failures=tuple(failures))
        problems += _size(embedded, settings)
    if problems:
        raise InputError(problems)
    return settings


def _numbers(settings: SimulationSettings) -> Iterator[Problem]:
    positive = {"hours": settings.hours, "rate_factor": settings.rate_factor}
    for name, value in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            yield _problem(name, f"{value:g} is no number above 0")
    spot = settings.spot_interruptions_per_hour
    if not (math.isfinite(spot) and spot >= 0):
        yield _problem("spot_interruptions", f"{spot:g} is no number of 0 or more")
    if settings.requests_per_class < 1:
        yield _problem("requests", f"{settings.requests_per_class} is not 1 or more")
    if settings.seed < 0:
        yield _problem("seed", f"{settings.seed} is not 0 or more")
    if settings.spare_replicas < 0:
        yield _problem("spare_replicas", f"{settings.spare_replicas} is not 0 or more")
    elif settings.spare_replicas and not settings.failures:
        hint = "say with --fail what fails; spares stand in the pools that it hits"
        yield _problem("spare_replicas", "nothing fails that they could stand in for", hint)
    if settings.workers is not None and settings.workers < 1:
        yield _problem("workers", f"{settings.workers} is not 1 or more")


def _problem(name: str, message: str, hint: str = "") -> Problem:
    return Problem(message, hint, field=f"--{name.replace('_', '-')}")


def _pool(plan: Plan, failure: Failure) -> tuple[Failure, Problem | None]:
    """The failure with the full id of its pool; the part behind the model is enough if it is
    that of one pool only.
    """
    if failure.pool is None:
        return failure, None
    ids = [pool.id for pool in plan.pools]
    found = [each for each in ids if failure.pool in (each, each.rpartition("/")[2])]
    if len(found) == 1:
        return replace(failure, pool=found[0]), None
    if found:
        message = f"{failure.pool!r} could be {' or '.join(found)}"
        return failure, _problem("fail", message, "give the whole id")
    near = difflib.get_close_matches(failure.pool, ids, n=2, cutoff=0.5) or ids
    message = f"the plan has no pool {failure.pool!r}"
    return failure, _problem("fail", message, f"it has {', '.join(near)}")


def _failure(failure: Failure) -> Iterator[Problem]:
    if failure.what not in KINDS:
        yield _problem("fail", f"{failure.what!r} does not fail", f"it is {' or '.join(KINDS)}")
    if not (math.isfinite(failure.at_s) and failure.at_s >= 0):
        yield _problem("fail", f"{failure.at_s:g} s is no time of 0 or more")
    down_s = failure.down_s
    if down_s is not None and not (math.isfinite(down_s) and down_s > 0):
        hint = "leave it out for a failure for good"
        yield _problem("fail", f"{down_s:g} s is no duration above 0", hint)


def _trace(plan: Plan, settings: SimulationSettings) -> Iterator[Problem]:
    name = settings.trace_class
    if name is None:
        return
    if settings.trace is None:
        yield _problem("class", "it says whose requests a trace holds", "give it with --trace")
    names = [workload.name for workload in plan.classes]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=2, cutoff=0.5) or names
        yield _problem("class", f"the plan has no class {name!r}", f"it has {', '.join(near)}")


# ---- how long it is, and how much -------------------------------------------------------------


def _size(embedded: EmbeddedPlan, settings: SimulationSettings) -> Iterator[Problem]:
    """Refusal of what would take hours, and of failures after the end."""
    parts = components(embedded, settings)
    runs = 1 if not settings.failures else 2 + (settings.spare_replicas > 0)
    total = runs * math.fsum(part.requests for part in parts)
    if total > MOST_REQUESTS:
        yield _too_many(settings, total)
    for failure in settings.failures:
        pool = hit_pool(embedded.plan, failure).id
        (part,) = (each for each in parts if pool in [model.id for model in each.model.pools])
        end_s = part.horizon_s - part.warmup_s
        if failure.at_s >= end_s:
            message = f"{failure.at_s:g} s is after the end: {end_s:,.0f} s of {pool} are simulated"
            hours = max(math.ceil(2 * failure.at_s / 36) / 100, 0.01)
            yield _problem("fail", message, f"give {hours:g} --hours, or more")


def _too_many(settings: SimulationSettings, total: float) -> Problem:
    minutes = math.ceil(total / REQUESTS_PER_S / 60)
    message = f"this would be about {total:,.0f} requests and some {minutes:,} minutes of computing"
    name, value = "hours", settings.hours
    if value is None:
        name, value = "requests", float(settings.requests_per_class)
        if settings.trace is not None:
            return _problem("trace", message, "give --hours, for a part of it")
    # Two digits, rounded down, so that the hint itself is accepted.
    most = value * MOST_REQUESTS / total
    unit = 10.0 ** (math.floor(math.log10(most)) - 1)
    return _problem(name, message, f"at most {math.floor(most / unit) * unit:g}")
