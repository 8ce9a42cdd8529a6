"""`planner evaluate`: what a given fleet costs, keeps and carries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from planner.cli import EXIT_INTERRUPTED, Verbosity

EXIT_FAILS: Final = 1


@click.command(short_help="Cost, latencies and spare capacity of a given fleet.")
@click.argument("instance", type=click.Path())
@click.option(
    "--fleet",
    type=click.Path(),
    metavar="FLEET",
    required=True,
    help="The fleet: a fleet file (YAML), or the plan.json of an earlier plan.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the evaluation as JSON.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write DIR/evaluation.json and DIR/evaluation.md.",
)
@click.option("--no-optimum", is_flag=True, help="Leave out the cheapest fleet to compare with.")
@click.option("--reroute", is_flag=True, help="Find the best routing even where the fleet has one.")
@click.pass_obj
def evaluate(
    verbosity: Verbosity | None,
    instance: str,
    fleet: str,
    as_json: bool,
    out: Path | None,
    no_optimum: bool,
    reroute: bool,
) -> int:
    """Price and check a fleet that you have against the demand of INSTANCE.

    Says whether it keeps every promise, the largest load that it carries ("1.34 x the demand"),
    how far each workload alone may grow, what it breaks, and what the cheapest fleet would cost.
    Where the fleet does not say which requests go where, the best routing is looked for.

    \b
    Examples:
      planner evaluate instances/single-model.yaml --fleet instances/fleets/single-model.yaml
      planner evaluate instance.yaml --fleet plans/today/plan.json --reroute
      planner evaluate instance.yaml --fleet fleet.yaml --no-optimum --json | jq .load_factor

    The evaluation goes to stdout, everything else to stderr. Exit codes: 0 it keeps every promise;
    1 it does not, or breaks something else; 2 wrong usage or input; 4 failure; 130 interrupted.
    """  # noqa: D301
    from planner import api
    from planner.atomic import make_folder
    from planner.report.progress import ProgressDisplay

    quiet = verbosity is not None and verbosity.quiet
    problem = api.load(instance)
    given = api.load_fleet(fleet, problem)
    if out is not None:
        make_folder(out)
    with ProgressDisplay(sys.stderr, quiet=quiet) as display:
        evaluation = api.evaluate(
            problem,
            given,
            reroute=reroute,
            optimum=not no_optimum,
            progress=display.update,
            note=display.note,
        )
    from planner.report.evaluation import evaluation_document

    report = evaluation_document(evaluation)
    if out is not None:
        from planner.atomic import write_text
        from planner.report.markdown import render

        write_text(out / "evaluation.json", evaluation.to_json())
        write_text(out / "evaluation.md", render(report))
        if not quiet:
            names = f"{out / 'evaluation.json'} and {out / 'evaluation.md'}"
            click.echo(f"wrote {names}", err=True)
    if as_json:
        click.echo(evaluation.to_json(), nl=False)
    else:
        from planner.report.terminal import print_document

        print_document(report, sys.stdout)
    if evaluation.optimum is not None and evaluation.optimum.status == "interrupted":
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    return EXIT_FAILS if evaluation.status == "fails" else 0
