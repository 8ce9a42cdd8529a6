"""The rounds of solving and simulating, and the margins that they left in the plan."""

from __future__ import annotations

from planner.plan import MissedSlo, Plan
from planner.report import numbers
from planner.report.blocks import Bullets, Column, Paragraph, Section, Table

NOTE = (
    "Missed: promises that the simulation of the round saw missed, or kept by less than its noise. "
    "Each bound is over all fleets that keep the formulas and the margins of its round."
)


def round_sections(plan: Plan) -> list[Section]:
    """A table of the rounds; nothing for a plan that was not simulated."""
    if not plan.rounds:
        return []
    columns = (
        Column("round", True),
        Column("cost/hour", True),
        Column("bound", True),
        Column("GPUs", True),
        Column("requests", True),
        Column("seed", True),
        Column("missed"),
    )
    rows = tuple(
        (
            str(number),
            numbers.usd(done.cost_usd_per_hour),
            numbers.usd(done.bound_usd_per_hour),
            f"{done.gpus:,}",
            f"{done.requests:,}",
            str(done.seed),
            ", ".join(_missed(each) for each in done.missed) or "none",
        )
        for number, done in enumerate(plan.rounds, start=1)
    )
    blocks: list[Table | Paragraph | Bullets] = [Table(columns, rows), Paragraph(NOTE)]
    margins = tuple(
        f"{name} on {pool.id}: TTFT {margin.ttft:.3f}, TPOT {margin.tpot:.3f}"
        for pool in plan.pools
        for name, margin in sorted(pool.margins.items())
    )
    if margins:
        blocks += [
            Paragraph("Margins by which the formulas stay below the limits:"),
            Bullets(margins),
        ]
    return [Section("Solved and simulated in turn", tuple(blocks))]


def _missed(each: MissedSlo) -> str:
    which = "mean" if each.percentile is None else f"p{each.percentile:g}"
    found = (
        "never" if each.simulated_ms is None else numbers.latency(each.simulated_ms, each.limit_ms)
    )
    return f"{each.workload} {each.metric.upper()} {which} {found}"
