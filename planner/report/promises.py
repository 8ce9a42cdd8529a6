"""What every class is promised, gets, and costs: the part of the report about the workloads."""

from __future__ import annotations

from collections.abc import Iterator

from planner.plan import ClassPlan, Plan, ServingShare, SloPlan
from planner.report import numbers
from planner.report.blocks import Block, Column, Paragraph, Section, Table

METRICS = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end to end"}

BAND_NOTE = (
    "Band: where four in five measurements lie about a prediction like this one, of times per "
    "token and of times to the first token."
)
OVER = " [2]"
"""Mark of a band that reaches over its limit."""
OVER_NOTE = (
    "[2] The upper end of the band is over the limit: the promise holds by the prediction, "
    "not by its worst case. Measure before you rely on it."
)


def promise_sections(plan: Plan) -> Iterator[Section]:
    """Promises, where each class is served, and what it costs; nothing for a plan of no class."""
    if not plan.classes:
        return
    if any(workload.slos for workload in plan.classes):
        yield Section("Promises", tuple(_promises(plan.classes)))
    yield Section("Demand and where it is served", (_demand_table(plan), _serving_table(plan)))
    yield Section(
        "Cost by workload and token",
        (
            _price_table(plan),
            Paragraph(
                "The three last columns are USD per million tokens of the mean traffic; input is "
                "what was not cached. Idle time is shared by use."
            ),
        ),
    )


def _promises(classes: tuple[ClassPlan, ...]) -> Iterator[Block]:
    columns = (
        Column("class"),
        Column("promise"),
        Column("limit", True),
        Column("predicted", True),
        Column("band", True),
        Column("room", True),
    )
    rows = [(workload.name, slo) for workload in classes for slo in workload.slos]
    yield Table(columns, tuple(_promise_row(name, slo) for name, slo in rows))
    missed = [
        f"{name} {promise(slo)}" for name, slo in rows if slo.predicted_ms > _limit_with_slack(slo)
    ]
    if missed:
        yield Paragraph(f"Missed: {', '.join(missed)}.", "bad")
    yield Paragraph(BAND_NOTE)
    if any(slo.high_ms > _limit_with_slack(slo) for _, slo in rows):
        yield Paragraph(OVER_NOTE, "warning")


def promise(slo: SloPlan) -> str:
    """`TTFT p95`, `TPOT mean`."""
    which = "mean" if slo.percentile is None else f"p{slo.percentile:g}"
    return f"{METRICS[slo.metric]} {which}"


def _limit_with_slack(slo: SloPlan) -> float:
    # The limit itself is kept; only round-off is forgiven.
    return slo.limit_ms * (1 + 1e-6)


def _promise_row(name: str, slo: SloPlan) -> tuple[str, ...]:
    limit = slo.limit_ms
    low = numbers.latency(slo.low_ms, limit).rpartition(" ")[0]
    over = slo.high_ms > _limit_with_slack(slo)
    return (
        name,
        promise(slo),
        numbers.latency_limit(limit),
        numbers.latency(slo.predicted_ms, limit),
        f"{low} to {numbers.latency(slo.high_ms, limit)}" + (OVER if over else " " * len(OVER)),
        numbers.share(1 - slo.predicted_ms / limit),
    )


def _demand_table(plan: Plan) -> Table:
    columns = (
        Column("class"),
        Column("model"),
        Column("planned req/s", True),
        Column("mean req/s", True),
        Column("new input tok/s", True),
        Column("cached tok/s", True),
        Column("output tok/s", True),
    )
    rows = tuple(
        (
            workload.name,
            workload.model,
            numbers.rate(workload.requests_per_s),
            numbers.rate(workload.mean_requests_per_s),
            numbers.rate(workload.input_tokens_per_s),
            numbers.rate(workload.cached_input_tokens_per_s),
            numbers.rate(workload.output_tokens_per_s),
        )
        for workload in plan.classes
    )
    return Table(columns, rows)


def _serving_table(plan: Plan) -> Table:
    columns = (
        Column("class"),
        Column("phase"),
        Column("pool"),
        Column("share", True),
        Column("req/s", True),
    )
    rows = tuple(
        _serving_row(workload, share)
        for workload in plan.classes
        for share in sorted(
            workload.served_by, key=lambda each: (each.phase == "decode", -each.share_fraction)
        )
    )
    return Table(columns, rows)


def _serving_row(workload: ClassPlan, share: ServingShare) -> tuple[str, ...]:
    return (
        workload.name,
        share.phase,
        share.pool,
        numbers.share(share.share_fraction),
        numbers.rate(share.share_fraction * workload.requests_per_s),
    )


def _price_table(plan: Plan) -> Table:
    columns = (
        Column("class"),
        Column("$/hour", True),
        Column("input", True),
        Column("cached input", True),
        Column("output", True),
    )
    rows = tuple(
        (
            workload.name,
            numbers.amount(workload.cost_usd_per_hour),
            numbers.token_price(workload.price.input_usd_per_mtok),
            numbers.token_price(workload.price.cached_input_usd_per_mtok),
            numbers.token_price(workload.price.output_usd_per_mtok),
        )
        for workload in plan.classes
    )
    total = numbers.amount(sum(workload.cost_usd_per_hour for workload in plan.classes))
    return Table(columns, rows, total=("total", total, "", "", ""))
