"""`planner simulate`: a plan, request by request."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from planner.cli import Verbosity
from planner.cli.plan_file import read_plan

if TYPE_CHECKING:
    from planner.embedded import EmbeddedPlan
    from planner.simulate.carry_out import Carried
    from planner.simulate.records import Failure

EXIT_MISSED: Final = 1
WRITTEN: Final = ("simulation.json", "simulation.md")
PICTURES: Final = ("latencies.png", "pools.png")
HINT: Final = "pip install 'llm-fleet-planner[validate]'"
FAILURE: Final = re.compile(
    r"(?P<what>[^:@]+)(?::(?P<pool>[^@]+))?@(?P<at>[^+]+)(?:\+(?P<down>.+))?"
)
DURATION: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?P<unit>s|m|min|h)?")
SECONDS: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, None: 1.0}


class FailureType(click.ParamType):  # type: ignore[type-arg]  # generic in later versions only
    """`node@600s`, `replica:POOL@10m+5m`: what, of which pool, when, and for how long."""

    name = "failure"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Failure:
        """A Failure; a usage error with the form that would be right otherwise."""
        from planner.simulate.records import Failure

        form = "as in node@600s or replica:POOL@600s+300s"
        found = FAILURE.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is no failure; write what fails, and when, {form}", param, ctx)
        if found["what"] not in ("node", "replica"):
            self.fail(f"{found['what']!r} does not fail; it is node or replica, {form}", param, ctx)
        times = [None if text is None else _seconds(text) for text in (found["at"], found["down"])]
        for text, seconds in zip((found["at"], found["down"]), times, strict=True):
            if text is not None and seconds is None:
                self.fail(f"{text!r} is no time; write 600s, 10m or 1h, {form}", param, ctx)
        assert times[0] is not None
        return Failure(found["what"], found["pool"], times[0], times[1])


def _seconds(text: str) -> float | None:
    found = DURATION.fullmatch(text)
    return None if found is None else float(found["number"]) * SECONDS[found["unit"]]


@click.command(short_help="Simulate a plan, request by request.")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Replay the arrivals and lengths of this trace, at the rates of the plan.",
)
@click.option(
    "--class",
    "trace_class",
    metavar="NAME",
    help="The class whose requests the trace holds. [default: by their lengths]",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of all draws.")
@click.option(
    "--hours",
    type=float,
    metavar="H",
    help="Simulated time after the warm-up.",
)
@click.option(
    "--requests",
    type=int,
    default=10_000,
    show_default=True,
    metavar="N",
    help="Least requests of every class. --hours or a --trace, played once, set the span instead.",
)
@click.option(
    "--rate-factor",
    type=float,
    default=1.0,
    show_default=True,
    metavar="X",
    help="Factor on the rates of the plan.",
)
@click.option(
    "--fail",
    "failures",
    type=FailureType(),
    multiple=True,
    metavar="WHAT@TIME",
    help="node@600s, replica:POOL@10m+5m: what dies, in which pool, when, for how long; repeat it.",
)
@click.option(
    "--spare-replicas",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="More replicas in every pool that --fail hits.",
)
@click.option(
    "--spot-interruptions",
    type=float,
    default=0.0,
    show_default=True,
    metavar="X",
    help="Interruptions per hour of every node of a spot offer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write DIR/simulation.json, DIR/simulation.md and pictures.",
)
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Processes. [default: one per processor, two at most]",
)
@click.pass_obj
def simulate(
    verbosity: Verbosity | None,
    plan: Path,
    trace: Path | None,
    trace_class: str | None,
    seed: int,
    hours: float | None,
    requests: int,
    rate_factor: float,
    failures: tuple[Failure, ...],
    spare_replicas: int,
    spot_interruptions: float,
    as_json: bool,
    out: Path | None,
    workers: int | None,
) -> int:
    """Simulate PLAN, a plan.json, and say whether its percentiles come true.

    Requests arrive as the plan's classes say, or as in a trace, and go through the pools of the
    plan step by step: routing, chunks of prompts, batches, cache memory, transfers. Each promise
    stands beside its simulated value, with a 95 % interval, and what the plan predicted.

    \b
    Examples:
      planner simulate plans/today/plan.json
      planner simulate plan.json --hours 2 --seed 7 --out simulated
      planner simulate plan.json --fail node@600s --spare-replicas 1 --hours 0.5
      planner simulate plan.json --rate-factor 1.2 --json | jq .status

    The result goes to stdout, everything else to stderr. Exit codes: 0 every promise is kept; 1
    the simulated value of one is above its limit; 2 wrong usage or input; 4 failure; 130
    interrupted.
    """  # noqa: D301
    from planner.atomic import make_folder
    from planner.embedded import embedded_plan
    from planner.report.progress import ProgressBar
    from planner.simulate.carry_out import carry_out
    from planner.simulate.records import SimulationSettings

    quiet = verbosity is not None and verbosity.quiet
    embedded = embedded_plan(read_plan(plan), str(plan))
    replayed = None
    if trace is not None:
        from planner.traces.reading import read_trace

        replayed = read_trace(trace)
    settings = SimulationSettings(
        seed=seed,
        hours=hours,
        requests_per_class=requests,
        trace=replayed,
        trace_class=trace_class,
        failures=failures,
        spot_interruptions_per_hour=spot_interruptions,
        spare_replicas=spare_replicas,
        rate_factor=rate_factor,
        workers=workers,
    )
    if out is not None:
        make_folder(out)
    with ProgressBar(sys.stderr, quiet=quiet) as bar:
        carried = carry_out(embedded, settings, bar.update)
    simulation = carried.simulation
    from planner.report.simulation import simulation_document

    report = simulation_document(simulation)
    if out is not None:
        from planner.atomic import write_text
        from planner.report.markdown import render

        write_text(out / "simulation.json", simulation.to_json())
        write_text(out / "simulation.md", render(report))
        pictures = _pictures(carried, embedded, out)
        if not quiet:
            names = ", ".join(str(out / name) for name in (*WRITTEN, *pictures))
            click.echo(f"wrote {names}", err=True)
            if not pictures:
                click.echo(f"no pictures: they need matplotlib; {HINT}", err=True)
    if as_json:
        click.echo(simulation.to_json(), nl=False)
    else:
        from planner.report.terminal import print_document

        print_document(report, sys.stdout)
    return EXIT_MISSED if simulation.status == "missed" else 0


def _pictures(carried: Carried, embedded: EmbeddedPlan, out: Path) -> tuple[str, ...]:
    """Names of the pictures written; none where matplotlib is not installed."""
    from importlib.util import find_spec

    from planner.atomic import write_bytes
    from planner.report.simulation_plots import latencies_png, pools_png

    if find_spec("matplotlib") is None:
        return ()
    write_bytes(out / PICTURES[0], latencies_png(carried.run, embedded))
    write_bytes(out / PICTURES[1], pools_png(carried.run))
    return PICTURES
