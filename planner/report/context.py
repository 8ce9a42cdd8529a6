"""Plan -> document. Every sentence and figure of a report is made here, once.

The order is that of the questions: what does it cost and is that proven, what do I rent, does it
keep the promises, where is it tight, what does a token cost, what was assumed, how was it found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.plan import Plan, PoolPlan, SearchPlan
from planner.report import numbers
from planner.report.blocks import Bullets, Column, Document, Paragraph, Section, Table, Tone
from planner.report.promises import promise_sections
from planner.report.rounds import round_sections

ROOFLINES = {
    "compute": "compute",
    "hbm_bandwidth": "HBM speed",
    "hbm_capacity": "HBM space",
    "interconnect": "GPU links",
    "kv_transfer": "KV transfer",
}
"""Headings of the physical rooflines."""

LIMITS = {
    "compute": "compute",
    "hbm_bandwidth": "HBM bandwidth",
    "hbm_capacity": "memory for the KV cache",
    "interconnect": "links between GPUs",
    "kv_transfer": "network that moves the KV cache",
    "batch_limit": "sequences the engine runs at once",
    "chunk_budget": "prompt tokens per step",
    "prefill_utilization": "utilisation cap on prompts",
    "prefill_load": "time for prompts",
    "ttft": "TTFT promise",
    "tpot": "TPOT promise",
    "e2e": "end-to-end promise",
    "idle": "nothing: no requests",
    "overload": "already overloaded",
}
"""Words for what breaks first as load grows."""

KINDS = {"slo": "latency", "pool_kinds": "pool kinds"}
"""Words for the kind of requirement that is in the way; the others are told by their names."""
ALL_NEEDED = "These workloads cannot be served by anything allowed; each needs a change."
EACH_ENOUGH = (
    "The smallest change of each kind, all else unchanged. Each kind alone is enough, unless it "
    "says that several are needed together."
)

MOST_USED = " *"
"""Mark of the roofline that a pool uses most."""

COST_WORDS = {
    "optimal": "Cheapest fleet found: {cost}.",
    "feasible": "Best fleet found in the time: {cost}.",
    "interrupted": "Interrupted. Best fleet so far: {cost}.",
}


def document(plan: Plan) -> Document:
    """The report of a plan; also of one that has no fleet."""
    sections: list[Section] = []
    if plan.warnings:
        sections.append(Section("Warnings", (Bullets(plan.warnings, "warning"),)))
    if plan.has_fleet:
        sections += _fleet_sections(plan)
        sections += promise_sections(plan)
        sections += round_sections(plan)
    elif plan.status == "infeasible":
        sections += _infeasible_sections(plan)
    if plan.assumptions:
        sections.append(Section("Assumed", (Bullets(plan.assumptions),)))
    if plan.search is not None:
        sections.append(Section("How it was found", (Bullets(tuple(_found(plan, plan.search))),)))
    return Document(f"Fleet plan: {plan.name}", tuple(_headline(plan)), tuple(sections))


def gap_sentence(plan: Plan) -> str:
    """Why a plan with status `feasible` is not proven within the gap asked."""
    assert plan.gap_fraction is not None
    asked = "" if plan.search is None else _asked(plan.search)
    return f"the gap is {numbers.percent(plan.gap_fraction)}, above what was asked{asked}"


# ---- the answer -------------------------------------------------------------------------------


def _headline(plan: Plan) -> Iterator[Paragraph]:
    if plan.status == "infeasible":
        yield Paragraph("Infeasible: no fleet that was considered can serve this instance.", "bad")
        return
    if not plan.has_fleet or plan.cost_usd_per_hour is None:
        yield Paragraph(_no_fleet(plan), "bad")
        return
    cost = f"{numbers.usd(plan.cost_usd_per_hour)}/hour"
    if plan.cost_usd_per_month is not None:
        cost += f", {numbers.usd(plan.cost_usd_per_month)}/month"
        if plan.cost_usd_per_hour > 0:
            cost += f" of {plan.cost_usd_per_month / plan.cost_usd_per_hour:.0f} hours"
    tone: Tone = "good" if plan.status == "optimal" else "warning"
    yield Paragraph(COST_WORDS[plan.status].format(cost=cost), tone)
    if plan.bound_usd_per_hour is not None and plan.gap_fraction is not None:
        yield Paragraph(_proof(plan, plan.bound_usd_per_hour, plan.gap_fraction), tone)
    yield Paragraph(_size(plan))


def _no_fleet(plan: Plan) -> str:
    if plan.status == "interrupted":
        text = "Interrupted before a fleet was found."
    elif plan.search is None or plan.search.time_limit_s is None:
        text = "No plan: the search ended before a fleet was found."
    else:
        limit = f"{plan.search.time_limit_s:g} s"
        text = f"No plan: no fleet was found within the time limit of {limit}; there may be one."
    if plan.bound_usd_per_hour is not None:
        text += f" Every fleet costs {numbers.usd_at_least(plan.bound_usd_per_hour)}/hour or more."
    return text


def _proof(plan: Plan, bound: float, gap: float) -> str:
    asked = "" if plan.search is None else _asked(plan.search)
    floor = f"no fleet considered costs less than {numbers.usd_at_least(bound)}/hour"
    if plan.status == "optimal":
        return f"Proven: {floor}. Gap {numbers.percent(gap)}{asked}."
    return f"Not proven within the gap asked: {floor}. Gap {numbers.percent(gap)}{asked}."


def _asked(search: SearchPlan) -> str:
    return f" (asked: {numbers.percent(search.gap_asked_fraction)})"


def _size(plan: Plan) -> str:
    used = sum(pool.gpus for pool in plan.pools)
    rented = sum(node.gpus for node in plan.nodes)
    replicas = sum(pool.replicas for pool in plan.pools)
    sites = len({node.site for node in plan.nodes})
    idle = rented - used
    return (
        f"{numbers.plural(len(plan.pools), 'pool')} of {numbers.plural(replicas, 'replica')} on "
        f"{numbers.plural(rented, 'GPU')} ({idle:,} idle), "
        f"{numbers.plural(sum(node.nodes for node in plan.nodes), 'node')} at "
        f"{numbers.plural(sites, 'site')}."
    )


# ---- the fleet --------------------------------------------------------------------------------


def _fleet_sections(plan: Plan) -> Iterator[Section]:
    yield Section("Fleet", (_pool_table(plan), _pool_notes(plan.pools)))
    if plan.nodes:
        yield Section("Nodes to rent", (_node_table(plan), _sources(plan)))
    yield Section(
        "Use of each pool",
        (
            _use_table(plan.pools),
            Paragraph(
                f"The mark{MOST_USED} is on the hardware limit used most. What breaks first as "
                "load grows is a promise or a limit of the engine; beside it, how much of that "
                "limit is used."
            ),
        ),
    )


def _by_model(pools: Sequence[PoolPlan]) -> list[PoolPlan]:
    order = list(dict.fromkeys(pool.model for pool in pools))
    return sorted(pools, key=lambda pool: order.index(pool.model))


def _pool_table(plan: Plan) -> Table:
    columns: tuple[Column, ...] = (
        Column("model"),
        Column("pool"),
        Column("role"),
        Column("hardware"),
        Column("layout"),
        Column("weights/KV", short="weights /KV"),
        Column("replicas", True, "repl."),
        Column("GPUs", True),
        Column("batch", True),
        Column("step ms", True),
        Column("$/hour", True),
    )
    rows: tuple[tuple[str, ...], ...] = tuple(
        (
            pool.model,
            pool.id,
            pool.role,
            f"{pool.accelerator} x{pool.gpus_per_node} @{pool.site}",
            pool.layout.label,
            f"{pool.weight_precision}/{pool.kv_precision}",
            f"{pool.replicas:,}",
            f"{pool.gpus:,}",
            numbers.optional(pool.batch),
            numbers.optional(pool.step_ms),
            numbers.amount(pool.cost_usd_per_hour),
        )
        for pool in _by_model(plan.pools)
    )
    total = (
        "total",
        *[""] * 5,
        f"{sum(pool.replicas for pool in plan.pools):,}",
        f"{sum(pool.gpus for pool in plan.pools):,}",
        "",
        "",
        numbers.amount(sum(pool.cost_usd_per_hour for pool in plan.pools)),
    )
    if all(pool.role in pool.id for pool in plan.pools):
        # The names tell it already, and the row is long.
        columns, total = columns[:2] + columns[3:], total[:2] + total[3:]
        rows = tuple(row[:2] + row[3:] for row in rows)
    return Table(columns, rows, grouped=True, total=total)


def _pool_notes(pools: Sequence[PoolPlan]) -> Bullets:
    """What the table has no room for; pools that share it share a line."""
    sources = [pool.step_time_source for pool in pools]
    return Bullets(
        (
            *_shared("Engine", pools, [_engine_note(pool) for pool in pools]),
            *_shared("Step times", pools, sources),
        )
    )


def _engine_note(pool: PoolPlan) -> str:
    parts = [pool.engine]
    if pool.chunk_tokens is not None:
        parts.append(f"at most {pool.chunk_tokens:,} prompt tokens per step")
    if pool.draft_tokens:
        parts.append(f"{numbers.plural(pool.draft_tokens, 'drafted token')} per step")
    return ", ".join(parts)


def _shared(what: str, pools: Sequence[PoolPlan], texts: Sequence[str]) -> Iterator[str]:
    """One line if all pools share a text, else each text with its pools."""
    by_text: dict[str, list[str]] = {}
    for pool, text in zip(pools, texts, strict=True):
        by_text.setdefault(text, []).append(pool.id)
    for text, ids in by_text.items():
        yield f"{what} of all pools: {text}" if len(by_text) == 1 else f"{text}: {', '.join(ids)}"


def _node_table(plan: Plan) -> Table:
    nodes = plan.nodes
    rows = tuple(
        (
            node.offer,
            node.term,
            f"{node.nodes:,}",
            f"{node.gpus:,}",
            f"{node.idle_gpus:,}",
            numbers.unit_price(node.price_usd_per_gpu_hour),
            numbers.amount(node.cost_usd_per_hour),
            node.date or numbers.MISSING,
        )
        for node in nodes
    )
    total = (
        "total",
        "",
        f"{sum(node.nodes for node in nodes):,}",
        f"{sum(node.gpus for node in nodes):,}",
        f"{sum(node.idle_gpus for node in nodes):,}",
        "",
        numbers.amount(sum(node.cost_usd_per_hour for node in nodes)),
        "",
    )
    columns = (
        Column("offer"),
        Column("term"),
        Column("nodes", True),
        Column("GPUs", True),
        Column("idle", True),
        Column("$/GPU-h", True),
        Column("$/hour", True),
        Column("as of"),
    )
    return Table(columns, rows, total=total)


def _sources(plan: Plan) -> Bullets:
    by_source: dict[str, list[str]] = {}
    for node in plan.nodes:
        by_source.setdefault(node.source or "no source given", []).append(node.offer)
    return Bullets(
        tuple(f"Price of {', '.join(ids)}: {source}" for source, ids in by_source.items())
    )


def _use_table(pools: Sequence[PoolPlan]) -> Table:
    extra = [
        name
        for pool in pools
        for name in pool.utilization_fraction
        if name not in ROOFLINES and name != "busy"
    ]
    names = [*ROOFLINES, *dict.fromkeys(extra)]
    columns = (
        Column("model"),
        Column("pool"),
        *(Column(ROOFLINES.get(name, _words(name)), True) for name in names),
        Column("breaks first"),
        Column("used", True),
    )
    rows = tuple(_use_row(pool, names) for pool in _by_model(pools))
    return Table(columns, rows, grouped=True)


def _use_row(pool: PoolPlan, names: Sequence[str]) -> tuple[str, ...]:
    use = pool.utilization_fraction
    most = max((name for name in names if use.get(name)), key=lambda name: use[name], default="")
    # Blanks as wide as the mark keep the digits of a column in line.
    cells = [
        (numbers.whole_percent(use[name]) if name in use else numbers.MISSING)
        + (MOST_USED if name == most else " " * len(MOST_USED))
        for name in names
    ]
    busy = numbers.whole_percent(use["busy"]) if "busy" in use else numbers.MISSING
    binding = LIMITS.get(pool.binding, _words(pool.binding))
    return (pool.model, pool.id, *cells, binding, busy)


def _words(name: str) -> str:
    return name.replace("_", " ")


# ---- why there is none ------------------------------------------------------------------------


def _infeasible_sections(plan: Plan) -> Iterator[Section]:
    if plan.conflicts:
        stuck = any(each.requirement in ("slo", "hardware") for each in plan.conflicts)
        changes = tuple(
            f"{KINDS.get(each.requirement, _words(each.requirement))}: {each.change}"
            for each in plan.conflicts
        )
        yield Section(
            "What would make it feasible",
            (Paragraph(ALL_NEEDED if stuck else EACH_ENOUGH), Bullets(changes)),
        )
    refused = tuple(
        (name, reason, f"{count:,}")
        for name, reasons in plan.refusals.items()
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    )
    if refused:
        columns = (Column("class"), Column("reason"), Column("configurations", True))
        yield Section("Configurations refused", (Table(columns, refused, grouped=True),))


# ---- the search -------------------------------------------------------------------------------


def _found(plan: Plan, search: SearchPlan) -> Iterator[str]:
    yield (
        f"{numbers.plural(search.configurations, 'configuration')} gave "
        f"{numbers.plural(search.options_enumerated, 'pool option')}; left after dominance: "
        f"{search.options_after_dominance:,}, in the last program: "
        f"{search.options_in_last_program:,}. The bound holds over all of them."
    )
    if search.relaxation_usd_per_hour is not None:
        text = f"The linear relaxation costs {numbers.usd(search.relaxation_usd_per_hour)}/hour"
        if plan.cost_usd_per_hour and plan.cost_usd_per_hour > 0:
            share = 1 - search.relaxation_usd_per_hour / plan.cost_usd_per_hour
            text += f", {numbers.percent(max(share, 0.0))} below the plan"
        yield f"{text}; {numbers.plural(search.branch_nodes, 'branch-and-bound node')}."
    limit = "no time limit" if search.time_limit_s is None else f"limit {search.time_limit_s:g} s"
    yield (
        f"{numbers.seconds(search.enumeration_s)} to enumerate, "
        f"{numbers.seconds(search.solve_s)} to solve ({limit}) with {search.solver} "
        f"{search.solver_version}, {numbers.plural(search.threads, 'thread')}, seed {search.seed}."
    )
    if plan.provenance is not None:
        made = plan.provenance
        yield (
            f"Planner {made.planner_version}, instance {made.instance_file} "
            f"(SHA-256 {made.instance_sha256[:12]})."
        )
