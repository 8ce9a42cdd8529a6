"""Evaluation -> document: the sections of a plan's report, under the answer for a given fleet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.evaluation import Evaluation, Optimum
from planner.plan import Plan
from planner.report import numbers
from planner.report.blocks import Bullets, Column, Document, Paragraph, Section, Table, Tone
from planner.report.context import LIMITS
from planner.report.context import document as plan_document
from planner.report.promises import METRICS

TITLES = {"Nodes to rent": "Nodes"}
"""Sections of a plan that are about a fleet that stands already."""
FIRST = ("Warnings",)
"""Sections that come before what is special to an evaluation."""


def evaluation_document(evaluation: Evaluation) -> Document:
    """The report of an evaluation."""
    sections = [_adapted(section) for section in plan_document(_as_plan(evaluation)).sections]
    own: list[Section] = []
    if evaluation.violations:
        own.append(Section("What it breaks", (Bullets(evaluation.violations, "bad"),)))
    own += [section for section in sections if section.title in FIRST]
    own.append(_loads(evaluation))
    own += [section for section in sections if section.title not in FIRST]
    title = f"Fleet {evaluation.fleet} for {evaluation.name}"
    return Document(title, tuple(_headline(evaluation)), tuple(own))


def _adapted(section: Section) -> Section:
    """A section of a plan's report; a fleet that serves nothing leaves tables empty."""
    blocks = tuple(block for block in section.blocks if not isinstance(block, Table) or block.rows)
    return replace(section, title=TITLES.get(section.title, section.title), blocks=blocks)


def _as_plan(evaluation: Evaluation) -> Plan:
    """The fleet as a plan, for the sections that both have."""
    return Plan(
        name=evaluation.name,
        status="feasible",
        cost_usd_per_hour=evaluation.cost_usd_per_hour,
        pools=evaluation.pools,
        classes=evaluation.classes,
        nodes=evaluation.nodes,
        assumptions=evaluation.assumptions,
        warnings=evaluation.warnings,
    )


def factor(value: float) -> str:
    """A load factor, rounded down, so that what is read is carried: `1.34 x`."""
    return f"{int(value * 100 + 1e-6) / 100:,.2f} x"


def _headline(evaluation: Evaluation) -> Iterator[Paragraph]:
    tone: Tone = "good" if evaluation.status == "meets" else "bad"
    carries = factor(evaluation.load_factor)
    if evaluation.status == "meets":
        text = f"Meets every promise, and carries {carries} the demand"
    elif evaluation.load_factor < 1:
        text = f"Fails: carries {carries} the demand"
    else:
        text = f"Fails, although it carries {carries} the demand"
    if evaluation.binding is not None:
        limit = evaluation.binding.limit
        words = METRICS.get(limit) or LIMITS.get(limit, limit.replace("_", " "))
        text += f"; first to give way is {evaluation.binding.where}: {words}"
    yield Paragraph(f"{text}.", tone)
    cost = f"{numbers.usd(evaluation.cost_usd_per_hour)}/hour"
    yield Paragraph(f"Costs {cost}, {numbers.usd(evaluation.cost_usd_per_month)}/month.")
    if evaluation.optimum is not None:
        yield Paragraph(_beside(evaluation.optimum))


def _beside(optimum: Optimum) -> str:
    cost = f"{numbers.usd(optimum.cost_usd_per_hour)}/hour"
    saving = optimum.saving_usd_per_hour
    if abs(saving) < 0.005:
        compared = "the same"
    else:
        amount = numbers.usd(abs(saving))
        compared = f"{amount}/hour {'less' if saving > 0 else 'more'}"
    kind = "The cheapest fleet" if optimum.status == "optimal" else "The best fleet found"
    proof = f"bound {numbers.usd_at_least(optimum.bound_usd_per_hour)}/hour"
    return (
        f"{kind} that keeps every promise costs {cost}, {compared} ({proof}, gap "
        f"{numbers.percent(optimum.gap_fraction)})."
    )


def _loads(evaluation: Evaluation) -> Section:
    columns = (
        Column("class"),
        Column("planned req/s", True),
        Column("alone may grow to", True),
        Column("req/s", True),
    )
    rows = tuple(
        (
            workload.name,
            numbers.rate(workload.requests_per_s),
            factor(workload.load_factor),
            numbers.rate(workload.load_factor * workload.requests_per_s),
        )
        for workload in evaluation.classes
    )
    way = "as the file routes it" if evaluation.routing == "given" else "as routed best"
    text = (
        f"All demand together, {way}: {factor(evaluation.load_factor)}. A class alone grows "
        "while the others stay at their demand, or at what the fleet carries of it."
    )
    blocks: list[Table | Paragraph] = [Paragraph(text), Table(columns, rows)]
    if evaluation.shown_at == "carried load":
        blocks.append(
            Paragraph(
                "Where a queue would grow without end at the demand, pools and promises below are "
                "shown at the load that the fleet carries.",
                "warning",
            )
        )
    if evaluation.routing == "given" and evaluation.load_factor < 1:
        blocks.append(Paragraph("Another routing may carry more: --reroute looks for it."))
    return Section("Largest load", tuple(blocks))
