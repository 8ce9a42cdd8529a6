"""`planner solve`: the cheapest fleet for an instance, with a proven bound."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from planner.cli import EXIT_INTERRUPTED, Verbosity
from planner.errors import NoPlanError

if TYPE_CHECKING:
    from planner.plan import Plan

EXIT_INFEASIBLE: Final = 1
EXIT_NO_PLAN: Final = NoPlanError.exit_code
LARGEST_GAP: Final = 0.5


def _gap(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """`0.1%` or `0.001` as a fraction; 50 % or more is refused with an explanation."""
    if value is None:
        return None
    text = value.strip()
    in_percent = text.endswith("%")
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise click.BadParameter(f"{text!r} is not a gap; write 0.1% or 0.001")
    fraction = number / 100 if in_percent else number
    if fraction >= LARGEST_GAP:
        hint = "give less than 50%" if in_percent else f"did you mean {number:g}%?"
        raise click.BadParameter(f"{text} would let {fraction:.0%} of the cost be wasted; {hint}")
    return fraction


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Seconds, 0 or more; no NaN and no infinity."""
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise click.BadParameter(f"{value!r} is not a number of seconds, 0 or more")
    return number


@click.command(short_help="Find the cheapest fleet for an instance, with a proven bound.")
@click.argument("instance", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write DIR/plan.json and DIR/plan.md.",
)
@click.option(
    "--gap",
    callback=_gap,
    metavar="GAP",
    help="Stop once the cost is within this of the bound: 0.1% or 0.001. [default: the instance's]",
)
@click.option(
    "--time-limit",
    callback=_seconds,
    metavar="SECONDS",
    help="Stop solving after this time. [default: the instance's]",
)
@click.option(
    "--solver",
    default="highs",
    show_default=True,
    metavar="NAME",
    help="highs, or any MIP solver that Pyomo reaches: scip, cbc, gurobi, ...",
)
@click.option(
    "--strict-gap", is_flag=True, help="Exit with 3 when the gap is not reached in the time."
)
@click.option(
    "--simulate",
    is_flag=True,
    help="Simulate the plan, and solve again with margins until it keeps every promise there too.",
)
@click.pass_obj
def solve(
    verbosity: Verbosity | None,
    instance: str,
    as_json: bool,
    out: Path | None,
    gap: float | None,
    time_limit: float | None,
    solver: str,
    strict_gap: bool,
    simulate: bool,
) -> int:
    """Find the fleet of least cost that keeps every promise of INSTANCE.

    Models, precisions, layouts, hardware and replica counts are chosen together, and the report
    says how far from the least cost the fleet can be at most, what is rented, what each workload
    gets and pays, and where it is tight. Ctrl-C stops the search and keeps the best fleet so far.

    \b
    Examples:
      planner solve instances/single-model.yaml
      planner solve instances/enterprise.yaml --gap 0.5% --time-limit 120 --out plans/today
      planner solve instance.yaml --json | jq .cost_usd_per_hour
      planner solve instances/tight-latency.yaml --simulate

    The plan goes to stdout, everything else to stderr. Exit codes: 0 a plan, also one above the
    gap asked, with a warning; 1 infeasible, or a promise missed in the last simulation; 2 wrong
    usage or input; 3 no plan within the time limit, or above the gap under --strict-gap; 4
    failure; 130 interrupted.
    """  # noqa: D301 - click wants the control character
    from planner import api
    from planner.atomic import make_folder
    from planner.report.progress import ProgressDisplay

    quiet = verbosity is not None and verbosity.quiet
    problem = api.load(instance)
    if out is not None:
        # Before solving: an hour of search must not end in a folder that cannot be written.
        make_folder(out)
    with ProgressDisplay(sys.stderr, quiet=quiet) as display:
        if simulate:
            plan = api.solve_and_simulate(
                problem,
                gap_fraction=gap,
                time_limit_s=time_limit,
                solver=solver,
                progress=display.update,
                simulated=display.simulated,
                note=display.note,
            )
        else:
            plan = api.solve(
                problem,
                gap_fraction=gap,
                time_limit_s=time_limit,
                solver=solver,
                progress=display.update,
                note=display.note,
            )
    if out is not None:
        _write(plan, out, quiet)
    if as_json:
        click.echo(plan.to_json(), nl=False)
    else:
        from planner.report.terminal import print_plan

        print_plan(plan, sys.stdout)
    return _conclude(plan, strict_gap, quiet)


def _write(plan: Plan, folder: Path, quiet: bool) -> None:
    """Write both files; an earlier plan is not replaced by none at all."""
    from planner.atomic import write_text
    from planner.report.markdown import plan_markdown

    if not plan.has_fleet and plan.status != "infeasible":
        if not quiet:
            click.echo(f"nothing written to {folder}: there is no plan", err=True)
        return
    write_text(folder / "plan.json", plan.to_json())
    write_text(folder / "plan.md", plan_markdown(plan))
    if not quiet:
        click.echo(f"wrote {folder / 'plan.json'} and {folder / 'plan.md'}", err=True)


def _conclude(plan: Plan, strict_gap: bool, quiet: bool) -> int:
    """The exit code of a plan, with a line on stderr where it is not simply 0."""
    if plan.status == "interrupted":
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    if plan.status == "infeasible":
        return EXIT_INFEASIBLE
    if plan.status == "no_plan":
        click.echo("error: no plan within the time limit", err=True)
        return EXIT_NO_PLAN
    if plan.rounds and plan.rounds[-1].missed:
        click.echo(f"error: {plan.warnings[-1]}", err=True)
        return EXIT_INFEASIBLE
    if plan.status == "feasible":
        from planner.report.context import gap_sentence

        if strict_gap:
            click.echo(f"error: {gap_sentence(plan)}", err=True)
            return EXIT_NO_PLAN
        if not quiet:
            click.echo(f"warning: {gap_sentence(plan)}; a longer --time-limit may help", err=True)
    return 0
