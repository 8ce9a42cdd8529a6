"""Simulation -> document: what every class got beside what was promised and predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from planner.report import numbers
from planner.report.blocks import Block, Bullets, Column, Document, Paragraph, Section, Table, Tone
from planner.report.promises import METRICS
from planner.simulate.summary import (
    Account,
    ClassResult,
    Comparison,
    Disturbance,
    LatencyResult,
    PoolResult,
    ShareResult,
    Simulation,
    SloResult,
    WindowSlo,
)

METRIC_NAMES: Final = {**METRICS, "first_token": "first token"}
INTERVAL_NOTE: Final = (
    "In brackets: what the figure lies in with 95 % confidence; a dash where the requests are too "
    "few to tell. Within: requests within the limit. Predicted: what the plan's formulas say."
)
BOUND_NOTE: Final = (
    "Predicted percentiles of end to end, and of TTFT with hidden tokens, are bounds: they add up "
    "percentiles of their parts. A dash: overloaded by the formulas."
)
GOOD_NOTE: Final = (
    "Good: requests that kept the limit of every percentile promised to their class; goodput is "
    "how many of them there were per second."
)
POOL_NOTE: Final = (
    "Means over the counted time, the largest sample in brackets. Waiting is of the whole pool; in "
    "work, busy and KV cache are of one replica. Planned is the mean in work by the plan."
)
LITTLE_NOTE: Final = (
    "Requests in the pools, counted over time and by Little's law (arrivals per second times mean "
    "stay). The two differ by what is in flight at both ends."
)
WINDOW_NOTE: Final = (
    "Requests by their arrival: before the failure, from it until no more requests wait or are in "
    "work than before it, and after that."
)
FIGURES: Final[tuple[float | None, ...]] = (None, 50.0, 90.0, 95.0, 99.0)


def simulation_document(simulation: Simulation) -> Document:
    """The report of one simulation."""
    sections = [Section("Promises", tuple(_promises(simulation.classes)))]
    for each in simulation.disturbances:
        title = "What the failures did" + (
            f" to {', '.join(each.classes)}" if len(simulation.disturbances) > 1 else ""
        )
        sections.append(Section(title, tuple(_disturbance(each))))
    if simulation.comparisons:
        sections.append(Section("Beside each other", (_side_by_side(simulation),)))
    sections += [
        Section("Requests", (_requests(simulation.classes), Paragraph(GOOD_NOTE))),
        Section("Latencies", (_latencies(simulation.classes), Paragraph(BOUND_NOTE))),
        Section("Pools", (_pools(simulation.pools), Paragraph(POOL_NOTE))),
        Section("Account", tuple(_account(simulation))),
    ]
    if simulation.assumptions:
        sections.append(Section("Assumed", (Bullets(simulation.assumptions),)))
    title = f"Simulation of {simulation.name}"
    return Document(title, tuple(_lead(simulation)), tuple(sections))


# ---- the answer -------------------------------------------------------------------------------


def _lead(simulation: Simulation) -> Iterator[Paragraph]:
    slos = [slo for workload in simulation.classes for slo in workload.slos]
    missed = [
        f"{workload.name} {_promise(slo)}"
        for workload in simulation.classes
        for slo in workload.slos
        if slo.verdict == "missed"
    ]
    tone: Tone = "good"
    if not slos:
        text = "Nothing was promised, so nothing is missed."
    elif missed:
        tone = "bad"
        text = f"{len(missed)} of {numbers.plural(len(slos), 'promise')} missed: "
        text += f"{', '.join(missed)}."
    else:
        text = "The promise is kept." if len(slos) == 1 else f"All {len(slos)} promises are kept."
    yield Paragraph(text, tone)
    uncertain = [
        f"{workload.name} {_promise(slo)}"
        for workload in simulation.classes
        for slo in workload.slos
        if not slo.certain
    ]
    if uncertain:
        yield Paragraph(
            f"Not certain with so few requests, as the interval includes the limit: "
            f"{', '.join(uncertain)}. More --requests or --hours narrow it.",
            "warning",
        )
    asked = simulation.asked
    total = sum(each.requests for each in simulation.classes)
    drawn = "drawn from the plan's classes" if asked.trace is None else f"replayed, {asked.trace}"
    factor = "" if asked.rate_factor == 1 else f", at {asked.rate_factor:g} x the planned rates"
    yield Paragraph(
        f"{numbers.plural(total, 'request')} after the warm-up, {drawn}{factor}, seed {asked.seed}."
    )
    if asked.failures:
        spare = (
            f"; {numbers.plural(asked.spare_replicas, 'spare replica')} in each pool that is hit"
            if asked.spare_replicas
            else ""
        )
        yield Paragraph(f"What fails: {'; '.join(asked.failures)}{spare}.", "warning")
    if asked.spot_interruptions_per_hour:
        yield Paragraph(
            f"Nodes of spot offers are interrupted {asked.spot_interruptions_per_hour:g} times an "
            "hour each.",
            "warning",
        )


def _promise(slo: SloResult | WindowSlo) -> str:
    return f"{METRIC_NAMES[slo.metric]} {_which(slo.percentile)}"


def _which(percentile: float | None) -> str:
    return "mean" if percentile is None else f"p{percentile:g}"


def verdict_words(slo: SloResult) -> str:
    """`kept`, `missed`, with a word where the interval includes the limit."""
    return slo.verdict if slo.certain else f"{slo.verdict}, not certain"


# ---- promises ---------------------------------------------------------------------------------


def _promises(classes: Sequence[ClassResult]) -> Iterator[Block]:
    columns = (
        Column("class"),
        Column("promise"),
        Column("limit", True),
        Column("simulated", True),
        Column("interval", True),
        Column("predicted", True),
        Column("within", True),
        Column("interval", True),
        Column("verdict"),
    )
    rows = tuple(
        (
            workload.name,
            _promise(slo),
            numbers.latency_limit(slo.limit_ms),
            _latency(slo.value_ms, slo.limit_ms),
            _interval(slo, slo.limit_ms),
            _latency(slo.predicted_ms, slo.limit_ms),
            _share(slo.within.fraction),
            _share_interval(slo.within),
            verdict_words(slo),
        )
        for workload in classes
        for slo in workload.slos
    )
    if not rows:
        yield Paragraph("Nothing was promised to these classes.")
        return
    yield Table(columns, rows)
    yield Paragraph(INTERVAL_NOTE)


def _latency(value_ms: float | None, limit_ms: float) -> str:
    return numbers.MISSING if value_ms is None else numbers.latency(value_ms, limit_ms)


def _interval(figure: LatencyResult, limit_ms: float) -> str:
    low = _latency(figure.low_ms, limit_ms).rpartition(" ")[0] or numbers.MISSING
    return f"[{low} to {_latency(figure.high_ms, limit_ms)}]"


def _share(fraction: float) -> str:
    """A share whose distance from 1 matters: never rounded up to 100 %."""
    text = f"{100 * fraction:.2f} %"
    if text == "100.00 %":
        return "100 %" if fraction == 1 else ">99.99 %"
    return text


def _share_interval(share: ShareResult) -> str:
    low = _share(share.low_fraction).removesuffix(" %")
    return f"[{low} to {_share(share.high_fraction)}]"


def _requests(classes: Sequence[ClassResult]) -> Table:
    columns = (
        Column("class"),
        Column("requests", True),
        Column("per s", True),
        Column("good", True),
        Column("interval", True),
        Column("goodput/s", True),
        Column("rejected", True),
        Column("unfinished", True),
        Column("preempted", True),
        Column("restarted", True),
        Column("cached input", True),
    )
    rows = tuple(
        (
            each.name,
            f"{each.requests:,}",
            numbers.rate(each.requests_per_s),
            _share(each.good.fraction),
            _share_interval(each.good),
            numbers.rate(each.goodput_requests_per_s),
            f"{each.rejected:,}",
            f"{each.unfinished:,}",
            f"{each.preemptions:,}",
            f"{each.restarts:,}",
            numbers.share(each.cached_input_fraction),
        )
        for each in classes
    )
    return Table(columns, rows)


def _latencies(classes: Sequence[ClassResult]) -> Table:
    columns = (
        Column("class"),
        Column("latency, ms"),
        Column(""),
        *(Column(_which(figure), True) for figure in FIGURES),
    )
    rows = []
    for workload in classes:
        for metric in dict.fromkeys(each.metric for each in workload.latencies):
            mine = {each.percentile: each for each in workload.latencies if each.metric == metric}
            figures = [mine[figure] for figure in FIGURES]
            name = METRIC_NAMES[metric]
            simulated = (numbers.optional(each.value_ms) for each in figures)
            predicted = (numbers.optional(each.predicted_ms) for each in figures)
            rows.append((workload.name, name, "simulated", *simulated))
            rows.append((workload.name, name, "predicted", *predicted))
    return Table(columns, tuple(rows), grouped=True)


# ---- pools ------------------------------------------------------------------------------------


def _pools(pools: Sequence[PoolResult]) -> Table:
    columns = (
        Column("model"),
        Column("pool"),
        Column("replicas", True),
        Column("waiting", True),
        Column("in work", True),
        Column("planned", True),
        Column("busy", True),
        Column("KV cache", True),
        Column("preempted", True),
    )
    rows = tuple(
        (
            each.id.rpartition("/")[0],
            each.id,
            f"{each.replicas:,}",
            f"{numbers.significant(each.waiting_mean)} [{numbers.significant(each.waiting_max)}]",
            f"{numbers.significant(each.running_mean)} [{numbers.significant(each.running_max)}]",
            numbers.optional(each.planned_batch),
            numbers.whole_percent(each.busy_fraction),
            f"{numbers.whole_percent(each.kv_fraction)} "
            f"[{numbers.whole_percent(each.kv_max_fraction)}]",
            f"{each.preemptions:,}",
        )
        for each in pools
    )
    return Table(columns, rows, grouped=True)


def _account(simulation: Simulation) -> Iterator[Block]:
    if simulation.every_request_accounted_for:
        yield Paragraph(
            "Every request and every token is accounted for: each request arrived once and "
            "finished, was rejected or was left unfinished once, and each that finished has all "
            "its tokens.",
            "good",
        )
    else:
        yield Paragraph(
            "Requests or tokens are not accounted for. This is a fault of the program.", "bad"
        )
    columns = (
        Column("classes"),
        Column("requests", True),
        Column("simulated", True),
        Column("warm-up", True),
        Column("steps", True),
        Column("in the pools", True),
        Column("by Little's law", True),
        Column("difference", True),
    )
    yield Table(columns, tuple(_account_row(each) for each in simulation.accounts))
    yield Paragraph(LITTLE_NOTE)
    yield Paragraph(f"Simulated in {numbers.seconds(simulation.elapsed_s)}.")


def _account_row(each: Account) -> tuple[str, ...]:
    return (
        ", ".join(each.classes),
        f"{each.requests:,}",
        numbers.seconds(each.simulated_s),
        numbers.seconds(each.warmup_s),
        f"{each.steps:,}",
        numbers.significant(each.in_system_mean),
        numbers.significant(each.arrivals_times_stay),
        f"{100 * each.little_difference_fraction:+.2f} %",
    )


# ---- failures ---------------------------------------------------------------------------------


def _disturbance(each: Disturbance) -> Iterator[Block]:
    yield Bullets(each.events)
    if each.normal_s is None:
        yield Paragraph("The pools were not back to normal by the end.", "bad")
    elif each.normal_s <= each.first_s:
        yield Paragraph("The pools took it: no more requests waited than before.", "good")
    else:
        after = numbers.seconds(each.normal_s - each.first_s)
        yield Paragraph(f"The pools were back to normal {after} after the first failure.")
    columns = (
        Column("class"),
        Column("when"),
        Column("for", True),
        Column("requests", True),
        Column("rejected", True),
        Column("promise"),
        Column("limit", True),
        Column("simulated", True),
        Column("within", True),
    )
    rows = tuple(
        (
            window.workload,
            window.when,
            numbers.seconds(window.seconds),
            f"{window.requests:,}",
            f"{window.rejected:,}",
            _promise(slo),
            numbers.latency_limit(slo.limit_ms),
            _latency(slo.value_ms, slo.limit_ms),
            _share(slo.within.fraction) if window.requests else numbers.MISSING,
        )
        for window in each.windows
        for slo in window.slos
    )
    yield Table(columns, rows, grouped=True)
    yield Paragraph(WINDOW_NOTE)


def _side_by_side(simulation: Simulation) -> Table:
    """Every promise to the classes that were hit over the whole time, with the failure and
    without.
    """
    spare = simulation.asked.spare_replicas
    name = "failure" + (f", {numbers.plural(spare, 'spare replica')}" if spare else "")
    this = Comparison(name=name, status=simulation.status, classes=simulation.classes)
    order = [simulation.comparisons[0], *simulation.comparisons[1:], this]
    columns = (
        Column("class"),
        Column("promise"),
        Column("limit", True),
        *(Column(each.name, True) for each in order),
    )
    rows = []
    hit = {name for each in simulation.disturbances for name in each.classes}
    for index, workload in enumerate(this.classes):
        if hit and workload.name not in hit:
            continue
        for place, slo in enumerate(workload.slos):
            cells = [
                f"{_latency(other.value_ms, slo.limit_ms)}, {_share(other.within.fraction)} within"
                for other in (each.classes[index].slos[place] for each in order)
            ]
            limit = numbers.latency_limit(slo.limit_ms)
            rows.append((workload.name, _promise(slo), limit, *cells))
        rejected = [f"{each.classes[index].rejected:,}" for each in order]
        rows.append((workload.name, "rejected", "", *rejected))
    return Table(columns, tuple(rows))
