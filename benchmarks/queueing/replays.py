"""Traces replayed through the plans that were made from their own workload files."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.queueing.tables import percent, pipes
from planner.api import load, solve, solve_and_simulate
from planner.embedded import EmbeddedPlan, embedded_plan
from planner.plan import Plan
from planner.report.workload import Written, instance_yaml
from planner.simulate.records import SimulationSettings
from planner.simulate.run import simulate_plan
from planner.simulate.summarise import Results, results
from planner.traces.estimate import Classes, estimate_trace, scaled_to
from planner.traces.reading import read_trace
from planner.traces.trace import Trace

Note = Callable[[str], None]

BURSTS: Final = re.compile(r"^ +(?:burst_factor|arrival_scv):.*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Replay:
    """A trace and the fleet that it is to be served by."""

    name: str
    files: tuple[str, ...]
    """Names that the trace may have: the excerpt's and the original's, packed or not."""
    model: str
    rate_per_s: float
    slos: tuple[tuple[str, float, float], ...]
    routing: tuple[str, ...]
    classes: Classes = "auto"


REPLAYS: Final = (
    Replay(
        "Azure 2023 conversation",
        ("azure2023_conv_full.csv", "AzureLLMInferenceTrace_conv.csv"),
        "llama-3.3-70b-instruct",
        60.0,
        (("ttft", 99.0, 2000.0), ("tpot", 99.0, 60.0)),
        ("queued_tokens",),
    ),
    Replay(
        "Mooncake conversation",
        ("mooncake_conversation_full.csv", "conversation_trace.jsonl"),
        "llama-3.3-70b-instruct",
        50.0,
        (("ttft", 99.0, 30_000.0), ("tpot", 99.0, 80.0)),
        ("prefix_affine", "queued_tokens"),
        # What is found hangs on the room of the cache only in pools of one class.
        classes=1,
    ),
)
FLEET: Final = """
engine: {{routing: {routing}}}
fleet:
  accelerators: [h100, h200]
  providers: [nebius]
objective: {{gap: 1%, time_limit_s: 60}}
"""


@dataclass(frozen=True, slots=True)
class Scale:
    """Hours of each replay; None: the span of the trace."""

    hours: float | None = None


@dataclass(frozen=True, slots=True)
class _Made:
    """A plan from a workload file, with words for it."""

    words: str
    plan: Plan


def study(folder: Path, scale: Scale, note: Note) -> str:
    """Read, plan, replay, and write the section of the report."""
    parts = []
    for replay in REPLAYS:
        path = _found(folder, replay.files)
        if path is None:
            message = f"{replay.name}: no {' or '.join(replay.files)} in {folder}; left out"
            note(message)
            parts.append(f"### {replay.name}\n\nLeft out: the trace was not there.")
            continue
        parts.append(_part(replay, path, scale, note))
    return f"""## 3. Traces replayed

`planner workload` turns the trace into classes; `planner solve` plans for them at a fleet's rate
(H100 and H200 on demand); the trace is then played through that plan at that mean rate, in shifted
copies that keep its bursts. *With bursts* keeps the workload file's `burst_factor` (of all classes
together) and `arrival_scv`, *mean rate* drops both. An SLO is kept by a class if its percentile is.
Copies peak at different minutes, so the more of them there are, the calmer the whole: a fleet for
many copies of a trace needs less than its burst factor says.

{chr(10).join(parts)}
"""


def _found(folder: Path, names: Sequence[str]) -> Path | None:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def _part(replay: Replay, path: Path, scale: Scale, note: Note) -> str:
    trace = read_trace(path)
    (estimate,) = scaled_to([estimate_trace(trace, replay.classes).estimate], replay.rate_per_s)
    written = Written(replay.model, replay.slos, burst="shared")
    whole = instance_yaml([estimate], written, "replay")
    lines: list[list[str]] = []
    for routing in replay.routing:
        for words, text in (("with bursts", whole), ("mean rate", BURSTS.sub("", whole))):
            label = f"{routing.replace('_', ' ')}, {words}"
            for made in _plans(text, routing, label, words == "with bursts"):
                lines += _lines(made, trace, scale, note, replay.name)
    promised = ", ".join(
        f"{metric.upper()} p{level:g} {limit_ms / 1e3:g} s"
        for metric, level, limit_ms in replay.slos
    )
    hours = trace.span_s / 3600
    heading = ["plan", "USD/hour", "class", "requests", "SLO", "predicted", "simulated", "within"]
    return f"""### {replay.name}

{trace.requests:,} requests in {hours:.2f} hours at {trace.rate_per_s:.2f}/s, planned and played at
{replay.rate_per_s:g}/s with {replay.model}; classes: {len(estimate.classes)}; busiest minute
{estimate.busiest_minute or math.nan:.2f} times the mean. Promised to every class: {promised}.

{pipes(heading, lines)}
"""


def _plans(text: str, routing: str, label: str, simulate: bool) -> list[_Made]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "replay.yaml"
        path.write_text(text + FLEET.format(routing=routing), encoding="utf-8")
        instance = load(path)
        if not simulate:
            return [_Made(label, solve(instance))]
        plan = solve_and_simulate(instance)
        if len(plan.rounds) < 2:
            # The first simulation kept every promise: both are one plan.
            return [_Made(f"{label}, also --simulate", plan)]
        return [_Made(label, solve(instance)), _Made(f"{label}, --simulate", plan)]


def _lines(made: _Made, trace: Trace, scale: Scale, note: Note, name: str) -> list[list[str]]:
    plan = made.plan
    if not plan.has_fleet:
        note(f"{name}, {made.words}: {plan.status}")
        return [[made.words, "-", f"no plan: {plan.status}", "", "", "", "", ""]]
    embedded = embedded_plan(plan, plan.name)
    run = simulate_plan(embedded, SimulationSettings(seed=1, hours=scale.hours, trace=trace))
    found = results(run, embedded)
    note(f"{name}, {made.words}: ${plan.cost_usd_per_hour:,.2f}/hour, {found.status}")
    return [*_class_lines(made, found), _overall(made, found, embedded)]


def _class_lines(made: _Made, found: Results) -> list[list[str]]:
    return [
        [
            made.words,
            f"{made.plan.cost_usd_per_hour:,.2f}",
            _short(each.name),
            f"{each.requests:,}",
            f"{slo.metric.upper()} p{slo.percentile:g} {slo.limit_ms:,.0f} ms",
            _ms(slo.predicted_ms),
            f"{_ms(slo.value_ms)}, {slo.verdict}",
            percent(slo.within.fraction, 2),
        ]
        for each in found.classes
        for slo in each.slos
    ]


def _overall(made: _Made, found: Results, embedded: EmbeddedPlan) -> list[str]:
    requests = sum(each.requests for each in found.classes)
    kept = sum(each.good.fraction * each.requests for each in found.classes)
    gpus = sum(pool.gpus for pool in embedded.plan.pools)
    slos = [*found.slos]
    return [
        f"**{made.words}**",
        f"**{made.plan.cost_usd_per_hour:,.2f}**",
        f"all, {gpus} GPUs",
        f"{requests:,}",
        "all of them at once",
        "",
        f"{sum(slo.verdict == 'kept' for slo in slos)} of {len(slos)} kept",
        percent(kept / requests, 2),
    ]


def _short(name: str) -> str:
    """The part of a class's name behind that of its source: `in1026-out129`."""
    return name[name.index("-in") + 1 :] if "-in" in name else name


def _ms(value: float | None) -> str:
    return "never" if value is None else f"{value:,.0f} ms" if value >= 1000 else f"{value:.3g} ms"
