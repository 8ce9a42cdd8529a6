"""Random plans, simulated: how far the formulas' percentiles lie from those of their pools."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Final

from benchmarks.queueing.cases import Recipe
from benchmarks.queueing.judge import (
    NARROW,
    PERCENTILES,
    WITHIN,
    Effort,
    Figure,
    Judged,
    PoolRow,
    judged,
)
from benchmarks.queueing.mixes import KINDS, LONG, SPREAD
from benchmarks.queueing.tables import milliseconds, percent, pipes, quantile, signed

Note = Callable[[str], None]

BOX: Final = (Recipe("box", "split"), Recipe("box", "aggregated"))
OUTSIDE: Final = (
    Recipe("prefill utilisation 0.7-0.9", "aggregated", prefill_utilisation=(0.7, 0.9)),
    Recipe("contexts to 100k", "split", kinds=(LONG,)),
    Recipe("contexts to 100k", "aggregated", kinds=(LONG,)),
    Recipe("SCV of prompts 8", "split", kinds=(SPREAD,)),
    Recipe("SCV of prompts 8", "aggregated", kinds=(SPREAD,)),
    Recipe("one replica, 1.1-1.4 x S99", "split", KINDS, (1,), (1.1, 1.4), 1.1),
    Recipe("one replica, 1.1-1.4 x S99", "aggregated", KINDS, (1,), (1.1, 1.4), 1.1),
    Recipe("arrivals with ca2 2-8", "split", arrival_scv=(2.0, 8.0)),
    Recipe("arrivals with ca2 2-8", "aggregated", arrival_scv=(2.0, 8.0)),
    Recipe("least outstanding", "split", KINDS, (2, 4, 8, 16, 32), routing=("least_outstanding",)),
    Recipe("round robin", "split", KINDS, (2, 4, 8, 16, 32), routing=("round_robin",)),
    Recipe("random", "split", KINDS, (2, 4, 8, 16, 32), routing=("random",)),
)
SIZES: Final = ((1, 1), (2, 4), (5, 12), (13, 32))
ROLES: Final = ("prefill", "decode", "aggregated")
OUTSIDE_FROM: Final = 1000
"""Plans outside the box are numbered from here, a hundred to a recipe."""


LONG_RUN: Final = Effort()


@dataclass(frozen=True, slots=True)
class Scale:
    """How many plans, and how long each is simulated."""

    box_plans: int = 100
    outside_plans: int = 4
    """Of each recipe."""
    effort: Effort = LONG_RUN


QUICK: Final = Scale(box_plans=4, outside_plans=0, effort=Effort(1_000, 1_000))


def study(seed: int, scale: Scale, workers: int, note: Note) -> str:
    """Draw, simulate and judge; the section of the report."""
    jobs = [(number, BOX[number % len(BOX)], seed) for number in range(scale.box_plans)]
    for index, recipe in enumerate(OUTSIDE):
        first = OUTSIDE_FROM + 100 * index
        jobs += [(first + number, recipe, seed) for number in range(scale.outside_plans)]
    found = []
    with ProcessPoolExecutor(workers) as pool:
        futures = [pool.submit(judged, *job, scale.effort) for job in jobs]
        for done, future in enumerate(futures, start=1):
            found.append(future.result())
            note(f"plan {done} of {len(jobs)}: {found[-1].seconds:.0f} s")
    return section(found, seed)


def section(found: Sequence[Judged], seed: int) -> str:
    """The report's section on random plans."""
    rows = [*chain.from_iterable(each.pools for each in found)]
    box = [row for row in rows if row.recipe.group == "box"]
    plans = len({row.number for row in box})
    good = sum(row.within for row in box)
    simulated = sum(each.requests for each in found)
    little = max(each.little_difference for each in found)
    kept = "every" if all(each.accounted_for for each in found) else "NOT every"
    wide = sum(not row.narrow for row in box)
    return f"""## 1. Random plans

{plans} plans with {len(box)} pools in the box and {len(rows) - len(box)} outside, of seed {seed}.
A plan serves one or two of five kinds of traffic (chat, code, summarisation, retrieval, agents;
prompts with an SCV of 0.3 to 3, mean outputs of 8 to 1,000 tokens, contexts to 32,000) on one of
twelve deployments (dense and expert models of 8 to 671 billion parameters; L40S, H100, H200, B200;
tensor, expert and attention data parallel). It has a pool for prefill and one for decode, or
an aggregated pool with chunks of 512, 2,048 or 8,192 tokens. The pool of prompts has 1 to 32
replicas and 30 to 100 % of the load that the formulas allow for p99 limits of 1.1 to 5 times p99
without a queue (at least 1.5 times for one replica; TPOT 1.3 to 4 times), aggregated
pools at most a prefill utilisation of 0.7. Routing is by queued tokens.

**{good} of {len(box)} pools ({percent(good / len(box))}) have every p99 within
{percent(WITHIN, 0)} of simulation**: TTFT where prompts are computed, TPOT where tokens are made,
of every class served.

{_by_size(box)}

In each cell: pools within {percent(WITHIN, 0)}, of all, and the mean error of their worst p99.

{_by_percentile(box)}

Errors are predicted over simulated, less 1: above 0 the formula is on the safe side. In all
{simulated:,} requests were simulated. {len(box) - wide} of {len(box)} pools have an
interval below ±{percent(NARROW, 0)} around every simulated p99; a wider one of a pool that fails is
given.

### Operating points

{_operating(box)}

The simulated batch of an aggregated pool has the prompts under way in it, the planned one has not.
Of {kept} plan all requests and tokens were accounted for; Little's law differs by
{percent(little, 2)} at most.

### Pools that fail

{_failing(box)}

### Outside the box

{_outside(rows)}

The last three groups are plans of the box with another router, for prefill and decode.
"""


def _by_size(rows: Sequence[PoolRow]) -> str:
    lines = []
    for role in ROLES:
        line = [role]
        for low, high in SIZES:
            line.append(_cell([r for r in rows if r.role == role and low <= r.replicas <= high]))
        lines.append([*line, _cell([r for r in rows if r.role == role])])
    names = ["1" if low == high else f"{low}-{high}" for low, high in SIZES]
    heading = ["role", *(f"{name} replica{'' if name == '1' else 's'}" for name in names), "all"]
    return pipes(heading, lines)


def _cell(rows: Sequence[PoolRow]) -> str:
    if not rows:
        return "-"
    mean = math.fsum(row.worst.error for row in rows) / len(rows)
    return f"{sum(row.within for row in rows)} of {len(rows)}, {signed(mean)}"


def _by_percentile(rows: Sequence[PoolRow]) -> str:
    lines = []
    for role, metric in (
        ("prefill", "ttft"),
        ("aggregated", "ttft"),
        ("decode", "tpot"),
        ("aggregated", "tpot"),
    ):
        for level in PERCENTILES:
            errors = [
                figure.error
                for row in rows
                if row.role == role
                for figure in row.figures
                if (figure.metric, figure.percentile) == (metric, level)
            ]
            if errors:
                inside = sum(abs(error) <= WITHIN for error in errors) / len(errors)
                lines.append(
                    [
                        f"{metric.upper()} p{level:g}, {role}",
                        str(len(errors)),
                        percent(inside, 0),
                        *(signed(quantile(errors, q)) for q in (0.0, 0.05, 0.5, 0.95, 1.0)),
                    ]
                )
    heading = [
        "figure",
        "figures",
        f"within {percent(WITHIN, 0)}",
        "least",
        "5 %",
        "median",
        "95 %",
        "most",
    ]
    return pipes(heading, lines)


def _operating(rows: Sequence[PoolRow]) -> str:
    lines = []
    for role in ("decode", "aggregated"):
        for name, low, high in (
            ("below 2", 0.0, 2.0),
            ("2 to 20", 2.0, 20.0),
            ("20 and more", 20.0, math.inf),
        ):
            off = [
                row.batch / row.planned_batch - 1
                for row in rows
                if row.role == role and row.planned_batch and low <= row.planned_batch < high
            ]
            if off:
                lines.append(
                    [
                        f"{role}, batch {name}",
                        str(len(off)),
                        *(signed(quantile(off, q)) for q in (0.0, 0.5, 1.0)),
                    ]
                )
    heading = ["mean batch, simulated over planned", "pools", "least", "median", "most"]
    return pipes(heading, lines)


def _failing(rows: Sequence[PoolRow]) -> str:
    failed = sorted((row for row in rows if not row.within), key=lambda row: row.worst.error)
    if not failed:
        return "None."
    lines = [
        [
            str(row.number),
            f"{row.role}, {row.replicas}"
            + (f", {row.chunk_tokens}" if row.role == "aggregated" else ""),
            row.words,
            f"{row.utilisation:.2f}",
            "-" if row.planned_batch is None else f"{row.planned_batch:.3g}",
            _figure(row.worst),
            why(row),
        ]
        for row in failed
    ]
    unsafe = sum(row.worst.error < 0 for row in failed)
    heading = [
        "plan",
        "role, replicas, chunk",
        "deployment, input/output tokens",
        "use",
        "batch",
        "p99: predicted, simulated",
        "likely why",
    ]
    return (
        f"{len(failed)}, of which {unsafe} err to the unsafe side (predicted too low).\n\n"
        f"{pipes(heading, lines, words=3)}\n\n"
        "`use`: share of the time that goes to prompts (prefill), of full chunks (aggregated); in "
        "decode pools\nthe part of the mean step that a step with one sequence does not have."
    )


def _figure(figure: Figure) -> str:
    wide = "" if figure.half_width < NARROW else f" ± {percent(figure.half_width, 0)}"
    return (
        f"{figure.metric.upper()} {milliseconds(figure.predicted_s)}, "
        f"{milliseconds(figure.simulated_s)} ms{wide}, {signed(figure.error)}"
    )


FEW_SEQUENCES: Final = 2.0
SHORT_OUTPUT: Final = 60.0
BUSY: Final = 0.65


def why(row: PoolRow) -> str:
    """The known weakness of the formulas that fits a pool and the sign of its error."""
    figure = row.worst
    safe = figure.error > 0
    beyond = abs(figure.error) - WITHIN
    if not row.narrow and beyond < figure.half_width < math.inf:
        return "within the noise of the simulation"
    if figure.metric == "tpot":
        if safe and (row.planned_batch or 0.0) < FEW_SEQUENCES:
            return "few in flight: a request meets none or one other, the law is continuous"
        if safe and row.replicas > 1:
            return "the router evens batches out, the law takes them as independent"
        if not safe and row.role == "decode" and row.shortest_output < SHORT_OUTPUT:
            return "short outputs: the wait for the step under way counts"
    elif row.lanes > 1:
        return "attention groups wait for each other"
    elif safe and row.utilisation > BUSY:
        return "prompts share chunks when many wait, the law takes them one by one"
    elif not safe and row.replicas == 1:
        return "one replica, heavy tail of prompts"
    return "-"


def _outside(rows: Sequence[PoolRow]) -> str:
    lines = []
    groups = dict.fromkeys(recipe.group for recipe in OUTSIDE)
    for group in groups:
        for role, mine in _roles(rows, group):
            errors = [figure.error for row in mine for figure in row.judged]
            lines.append(
                [
                    group,
                    role,
                    f"{sum(row.within for row in mine)} of {len(mine)}",
                    *(signed(quantile(errors, q)) for q in (0.0, 0.5, 1.0)),
                    str(sum(not row.narrow for row in mine)),
                ]
            )
    if not lines:
        return "Nothing was drawn there."
    heading = ["group", "role", f"within {percent(WITHIN, 0)}", "least", "median", "most", "wide"]
    return pipes(heading, lines, words=2)


def _roles(rows: Sequence[PoolRow], group: str) -> Iterator[tuple[str, list[PoolRow]]]:
    for role in ROLES:
        mine = [row for row in rows if row.recipe.group == group and row.role == role]
        if mine:
            yield role, mine
