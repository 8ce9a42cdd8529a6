"""A plan simulated as asked: the run, its result, and the runs to compare it with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.embedded import EmbeddedPlan
from planner.simulate.asked import checked
from planner.simulate.disturbances import disturbances
from planner.simulate.records import Failure, SimulationRun, SimulationSettings
from planner.simulate.run import simulate_plan
from planner.simulate.summarise import results
from planner.simulate.summary import Asked, Comparison, Simulation

ProgressOf = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """The result, and the run behind it for pictures."""

    simulation: Simulation
    run: SimulationRun


def carry_out(
    embedded: EmbeddedPlan,
    settings: SimulationSettings,
    progress: ProgressOf = lambda fraction, what: None,
) -> Carried:
    """Simulate a plan. With failures, also without them, and where there are spare replicas also
    without these, with the same requests. `progress` gets the part done and what is being done.

    Raises InputError where the settings cannot be.
    """
    started = time.monotonic()
    settings = checked(embedded, settings)
    others = _others(settings)
    count = 1 + len(others)

    def told(index: int) -> ProgressOf:
        def tell(fraction: float, what: str) -> None:
            progress((index + fraction) / count, what)

        return tell

    run = simulate_plan(embedded, settings, told(0))
    main = results(run, embedded, settings.rate_factor)
    comparisons = []
    for index, (name, other) in enumerate(others, start=1):
        found = results(simulate_plan(embedded, other, told(index)), embedded, settings.rate_factor)
        comparisons.append(Comparison(name=name, status=found.status, classes=found.classes))
    simulation = Simulation(
        name=embedded.plan.name,
        status=main.status,
        certain=main.certain,
        asked=_asked(settings),
        classes=main.classes,
        pools=main.pools,
        accounts=main.accounts,
        every_request_accounted_for=all(
            each.every_request_once and each.every_token_once for each in main.accounts
        ),
        disturbances=(disturbances(run.components, embedded.classes) if settings.failures else ()),
        comparisons=tuple(comparisons),
        assumptions=run.assumptions,
        elapsed_s=time.monotonic() - started,
    )
    return Carried(simulation, run)


def _others(settings: SimulationSettings) -> list[tuple[str, SimulationSettings]]:
    """What a run with failures stands beside."""
    if not settings.failures:
        return []
    bare = replace(settings, spare_replicas=0)
    others = [("nothing fails", replace(bare, failures=()))]
    if settings.spare_replicas:
        others.append(("failure, no spare replicas", bare))
    return others


def _asked(settings: SimulationSettings) -> Asked:
    return Asked(
        seed=settings.seed,
        hours=settings.hours,
        requests_per_class=settings.requests_per_class,
        rate_factor=settings.rate_factor,
        trace=settings.trace.source if settings.trace else None,
        failures=tuple(in_words(each) for each in settings.failures),
        spare_replicas=settings.spare_replicas,
        spot_interruptions_per_hour=settings.spot_interruptions_per_hour,
    )


def in_words(failure: Failure) -> str:
    """`a node of POOL dies at 600 s, for good`."""
    where = f" of {failure.pool}" if failure.pool else ""
    down = "for good" if failure.down_s is None else f"for {failure.down_s:g} s"
    return f"a {failure.what}{where} dies at {failure.at_s:g} s, {down}"
