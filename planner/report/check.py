"""A plan beside measurements -> document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.calibrate.check import Check, Comparison, OtherPercentiles, PromiseCheck
from planner.calibrate.measurement import where
from planner.report import numbers
from planner.report.blocks import Bullets, Column, Document, Paragraph, Section, Table
from planner.report.promises import METRICS

UNITS = {"tpot": "ms", "ttft": "ms", "output tokens/s": "tok/s"}


def check_document(check: Check, plan: str) -> Document:
    """The report of a check of the plan called `plan`."""
    inside = sum(each.verdict == "inside" for each in check.comparisons)
    total = len(check.comparisons)
    sections: list[Section] = []
    if check.comparisons:
        sections.append(Section("Predictions", (_predictions(check.comparisons),)))
    outside = [each for each in check.comparisons if each.verdict != "inside"]
    if outside:
        sections.append(Section("Where they part", (Bullets(_causes(outside), "bad"),)))
    if check.promises or check.not_compared:
        sections.append(Section("Promises", tuple(_promise_blocks(check))))
    if check.skipped:
        sections.append(Section("Not compared", (Bullets(check.skipped, "warning"),)))
    lead = [
        Paragraph(
            f"{inside} of {numbers.plural(total, 'measured value')} inside the predicted range.",
            "good" if inside == total else "bad",
        )
    ]
    missed = sum(not each.kept and each.counts for each in check.promises)
    if check.promises:
        kept = sum(each.kept for each in check.promises)
        count = numbers.plural(len(check.promises), "promise")
        lead.append(Paragraph(f"{kept} of {count} kept as measured.", "bad" if missed else "good"))
    return Document(f"Check of {plan}", tuple(lead), tuple(sections))


def _predictions(comparisons: Sequence[Comparison]) -> Table:
    columns = (
        Column("pool"),
        Column("where"),
        Column("requests at once", True),
        Column("what"),
        Column("measured", True),
        Column("predicted", True),
        Column("range", True),
        Column("verdict"),
    )
    rows = tuple(
        (
            each.pool,
            where(each.file, each.place),
            numbers.significant(each.concurrency),
            f"{each.metric}, ms" if UNITS[each.metric] == "ms" else each.metric,
            numbers.significant(each.measured),
            numbers.significant(each.predicted),
            f"{numbers.significant(each.low)} - {numbers.significant(each.high)}",
            _verdict(each),
        )
        for each in comparisons
    )
    return Table(columns, rows, grouped=True)


def _verdict(each: Comparison) -> str:
    if each.verdict == "inside":
        return "inside"
    return f"{numbers.whole_percent(each.beyond_fraction)} {each.verdict}"


def _causes(outside: Sequence[Comparison]) -> tuple[str, ...]:
    """One line for each metric of a pool on one side of its range, with the likely causes."""
    groups: dict[tuple[str, str, str, str], list[Comparison]] = {}
    for each in outside:
        groups.setdefault((each.pool, each.metric, each.verdict, each.cause), []).append(each)
    lines = []
    for (pool, metric, verdict, cause), found in groups.items():
        worst = max(found, key=lambda each: each.beyond_fraction)
        lines.append(
            f"{pool}: {metric} {verdict} its range at {numbers.plural(len(found), 'point')}, by "
            f"{numbers.whole_percent(worst.beyond_fraction)} at "
            f"{numbers.significant(worst.concurrency)} requests at once; likely: {cause}"
        )
    return tuple(lines)


def _promise_blocks(check: Check) -> Iterator[Table | Paragraph | Bullets]:
    if check.promises:
        yield from _promises(check.promises)
    lines = tuple(dict.fromkeys(_other_percentiles(each) for each in check.not_compared))
    if lines:
        yield Bullets(lines, "warning")


def _other_percentiles(each: OtherPercentiles) -> str:
    *rest, last = (_percentile(value) for value in each.measured_percentiles)
    measured = f"{', '.join(rest)} and {last}" if rest else last
    return (
        f"{each.workload}, {METRICS[each.metric]} on {each.pool}: {measured} measured, promised is "
        f"{_percentile(each.percentile)}: not compared"
    )


def _promises(promises: Sequence[PromiseCheck]) -> tuple[Table | Paragraph, ...]:
    columns = (
        Column("class"),
        Column("pool"),
        Column("where"),
        Column("promise"),
        Column("limit ms", True),
        Column("measured ms", True),
        Column("load", True),
        Column("verdict"),
    )
    rows = tuple(
        (
            each.workload,
            each.pool,
            where(each.file, each.place),
            f"{METRICS[each.metric]} {_percentile(each.percentile)}",
            numbers.latency_limit(each.limit_ms),
            numbers.latency(each.measured_ms, each.limit_ms),
            "" if each.load_fraction is None else f"{each.load_fraction:.2f} x",
            _kept(each),
        )
        for each in promises
    )
    text = (
        "Load is requests in flight on a replica, over those of the plan. What is missed beyond "
        "the planned load breaks no promise."
    )
    return Table(columns, rows, grouped=True), Paragraph(text)


def _percentile(percentile: float | None) -> str:
    return "mean" if percentile is None else f"p{percentile:g}"


def _kept(each: PromiseCheck) -> str:
    if each.kept:
        return "kept"
    return "missed" if each.counts else "missed beyond the plan"
