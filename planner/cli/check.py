"""`planner check`: a plan beside what was measured of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from planner.cli.plan_file import read_plan

if TYPE_CHECKING:
    from planner.calibrate.check import Comparison

EXIT_DIFFERS: Final = 1


@click.command(short_help="Compare a plan with what was measured.")
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument(
    "results", type=click.Path(path_type=Path), metavar="RESULTS...", nargs=-1, required=True
)
@click.option("--pool", metavar="ID", help="The pool measured, where the results do not tell.")
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    help="Replicas that took the load, where the results do not tell. [default: 1]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def check(
    plan: Path, results: tuple[Path, ...], pool: str | None, replicas: int | None, as_json: bool
) -> int:
    """Compare the predictions of PLAN, a plan.json, with the benchmark results in RESULTS.

    Each measurement is matched to a pool by what it records of the deployment, and predicted at
    the load at which it was measured. Says which values are outside the predicted range, by how
    much and why that may be, and whether measured percentiles keep the promises of the plan.

    \b
    Examples:
      planner check plans/today/plan.json bench/*.json
      planner check plan.json sweep.csv --pool llama-3.1-8b-instruct/aggregated-1 --json

    Exit codes: 0 all inside and kept; 1 something is outside, or a promise is missed at a load
    that was planned; 2 wrong usage or input; 4 failure.
    """  # noqa: D301
    from dataclasses import asdict, replace

    from planner.calibrate.check import check_plan
    from planner.calibrate.results import read_once
    from planner.embedded import embedded_plan

    found = read_plan(plan)
    embedded = embedded_plan(found, str(plan))
    read = read_once(results)
    outcome = check_plan(embedded, read.measurements, pool, replicas)
    outcome = replace(outcome, skipped=(*outcome.skipped, *read.repeated))
    if as_json:
        document = {
            "holds": outcome.holds,
            "comparisons": [_comparison(each) for each in outcome.comparisons],
            "promises": [
                {**asdict(each), "kept": each.kept, "counts": each.counts}
                for each in outcome.promises
            ],
            "promises_not_compared": [asdict(each) for each in outcome.not_compared],
            "skipped": [*outcome.skipped],
        }
        click.echo(json.dumps(document, indent=2, sort_keys=True))
    else:
        from planner.report.check import check_document
        from planner.report.terminal import print_document

        print_document(check_document(outcome, found.name), sys.stdout)
    return 0 if outcome.holds else EXIT_DIFFERS


def _comparison(each: Comparison) -> dict[str, Any]:
    """A comparison as JSON; a cause only where there is something to explain."""
    from dataclasses import asdict

    values = {**asdict(each), "verdict": each.verdict, "beyond_fraction": each.beyond_fraction}
    if each.verdict == "inside":
        del values["cause"]
    return values
