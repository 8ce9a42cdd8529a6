"""`planner workload`: traces and metrics to workload classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from planner.cli import Verbosity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.report.workload import Written
    from planner.traces.estimate import Classes, TraceEstimate, WorkloadEstimate

    Estimated = tuple[list[WorkloadEstimate], list[TraceEstimate | None]]


class _Slo(click.ParamType):  # type: ignore[type-arg]
    """`ttft:p99:1500ms` as (metric, percentile, limit in ms)."""

    name = "METRIC:PERCENTILE:LIMIT"
    _form = re.compile(r"(ttft|tpot|e2e):(?:p?(\d+(?:\.\d+)?)|(mean)):(\d+(?:\.\d+)?)(ms|s)")

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, float | str, float]:
        found = self._form.fullmatch(str(value).strip())
        limit = float(found[4]) if found else 0.0
        if not found or not limit or (found[2] and not 1 <= float(found[2]) < 100):
            self.fail(f"{value!r} is no promise: write one as ttft:p99:1500ms", param, ctx)
        percentile = found[3] or float(found[2])
        return found[1], percentile, limit * (1000.0 if found[5] == "s" else 1.0)


class _Classes(click.ParamType):  # type: ignore[type-arg]
    """`auto`, `grid`, or how many."""

    name = "kind"

    def convert(self, value: Any, param: Any, ctx: Any) -> Classes:
        text = str(value)
        if text == "auto":
            return "auto"
        if text == "grid":
            return "grid"
        if not text.isdecimal() or not 1 <= int(text) <= 20:
            self.fail(f"{text!r} is neither auto, nor grid, nor a number from 1 to 20", param, ctx)
        return int(text)


@click.command(short_help="Turn traces or metrics into workload classes.")
@click.argument(
    "files", type=click.Path(path_type=Path), metavar="FILE...", nargs=-1, required=True
)
@click.option("--model", metavar="NAME", help="Model that the classes use.")
@click.option(
    "--slo",
    "slos",
    type=_Slo(),
    multiple=True,
    help="Promise of every class, as ttft:p99:1500ms; repeatable.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="R",
    help="Requests/s of all classes together; rates and cache sizes are scaled to it.",
)
@click.option(
    "--classes",
    type=_Classes(),
    default="auto",
    show_default=True,
    metavar="KIND",
    help="Classes of a trace: auto (clusters, as many as needed), a number of clusters, or grid.",
)
@click.option(
    "--shape",
    type=click.Choice(["percentiles", "histogram"]),
    default="percentiles",
    show_default=True,
    metavar="NAME",
    help="Tokens as percentiles or as a histogram; metrics always give a histogram.",
)
@click.option(
    "--burst",
    type=click.Choice(["class", "shared"]),
    default="class",
    show_default=True,
    metavar="NAME",
    help="Busiest minute of each class, or shared: of all together, where one fleet serves them.",
)
@click.option("--only", metavar="NAME", help="Only the requests that a trace has for this model.")
@click.option(
    "--block-tokens",
    type=click.IntRange(1, 65_536),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens of a block of prompts, where a trace has blocks.",
)
@click.option("--instance", "whole", is_flag=True, help="Print a whole instance; needs --model.")
@click.option("--json", "as_json", is_flag=True, help="Print all that was found as JSON instead.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write workload.yaml, workload.json and workload.png there.",
)
@click.pass_obj
def workload(
    verbosity: Verbosity | None,
    files: tuple[Path, ...],
    model: str | None,
    slos: tuple[tuple[str, float | str, float], ...],
    rate: float | None,
    classes: Classes,
    shape: Literal["percentiles", "histogram"],
    burst: Literal["class", "shared"],
    only: str | None,
    block_tokens: int,
    whole: bool,
    as_json: bool,
    out: Path | None,
) -> None:
    """Turn traces of requests, or metrics of a service, into workload classes to paste.

    A FILE is a trace (Azure 2023 and 2024, BurstGPT, Mooncake, or a CSV with the columns
    arrival_s, input_tokens, output_tokens and perhaps prefix_block_ids), or the JSON that
    Prometheus returns for a range query on vLLM or SGLang; packed as .gz or not. Each trace has
    classes of its own; metrics are taken as of one service.

    \b
    Examples:
      planner workload trace.csv >> instance.yaml
      planner workload trace.csv --model qwen3-32b --slo ttft:p99:2s --instance
      planner workload metrics.json --rate 50 --out workload

    Exit codes: 0 done; 2 wrong usage or input.
    """  # noqa: D301
    from planner.report.workload import (
        PLACEHOLDER,
        Written,
        instance_yaml,
        warning_of,
        workloads_json,
        workloads_yaml,
    )
    from planner.traces.estimate import scaled_to, stem_of

    if whole and model is None:
        raise click.UsageError("--instance needs --model NAME, a model of the catalogue")
    if whole and as_json:
        raise click.UsageError("--instance prints YAML: leave out --json")
    if whole and model is not None:
        from planner import catalog

        model = catalog.find_model(model).id
    found, requests = _estimates(files, classes, only, block_tokens)
    estimates = scaled_to(found, rate)
    how = Written(model or PLACEHOLDER, slos, shape, burst)
    if whole:
        text = instance_yaml(estimates, how, stem_of(str(files[0])))
    else:
        text = workloads_yaml(estimates, how)
    click.echo(workloads_json(estimates) if as_json else text, nl=False)
    quiet = verbosity is not None and verbosity.quiet
    for estimate in estimates if not quiet else ():
        if (warning := warning_of(estimate)) is not None:
            click.echo(f"warning: {estimate.source}: {warning}", err=True)
    if model is not None and not quiet:
        _warn_of_context(model, estimates, how)
    if out is not None:
        _write(out, text, workloads_json(estimates), estimates, requests, quiet)


def _estimates(
    files: Sequence[Path], classes: Classes, only: str | None, block_tokens: int
) -> Estimated:
    """The estimates of all files, traces first, with the requests of each that has them."""
    from planner.errors import InputError, Problem
    from planner.traces.estimate import BINS, estimate_trace
    from planner.traces.metrics import estimate_metrics
    from planner.traces.reading import read_file
    from planner.traces.trace import Trace

    traces: list[Trace] = []
    dumps = []
    problems: list[Problem] = []
    for path in files:
        try:
            read = read_file(path, block_tokens=block_tokens)
            if isinstance(read, Trace):
                traces.append(read if only is None else read.of_model(only))
            else:
                dumps.append(read)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    estimated: list[TraceEstimate | None] = [estimate_trace(trace, classes) for trace in traces]
    found = [each.estimate for each in estimated if each is not None]
    if dumps:
        services = estimate_metrics(dumps, BINS)
        found += services
        estimated += [None] * len(services)
    return found, estimated


def _warn_of_context(model: str, estimates: Sequence[WorkloadEstimate], how: Written) -> None:
    """Say which classes `planner lint` will refuse for this model."""
    from planner import catalog
    from planner.errors import InputError

    try:
        card = catalog.find_model(model)
    except InputError:
        return  # a card of the user's own; lint knows it
    for estimate in estimates:
        for each in estimate.classes:
            longest = each.input.longest + each.output.longest
            if longest > card.max_context_tokens:
                click.echo(
                    f"warning: {each.name}: its longest request may have {longest:,} tokens, above "
                    f"the {card.max_context_tokens:,} of {card.id}; choose another model, or lower "
                    "its max",
                    err=True,
                )


def _write(
    folder: Path,
    text: str,
    data: str,
    estimates: Sequence[WorkloadEstimate],
    requests: Sequence[TraceEstimate | None],
    quiet: bool,
) -> None:
    from planner.atomic import make_folder, write_bytes, write_text
    from planner.errors import InputError
    from planner.report.workload_plots import workload_png

    make_folder(folder)
    write_text(folder / "workload.yaml", text)
    write_text(folder / "workload.json", data)
    written = "workload.yaml, workload.json"
    try:
        write_bytes(folder / "workload.png", workload_png(estimates, requests))
        written += ", workload.png"
    except InputError as error:
        click.echo(f"warning: no workload.png: {error}", err=True)
    if not quiet:
        click.echo(f"wrote {written} in {folder}", err=True)
