"""`planner calibrate`: correct the performance model by measurements of one deployment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from planner.cli import Verbosity

DEGREE = click.IntRange(min=1)


@click.command(short_help="Correct the performance model by your own measurements.")
@click.argument(
    "results", type=click.Path(path_type=Path), metavar="RESULTS...", nargs=-1, required=True
)
@click.option("--model", help="Model of the catalogue, or the path of a model card (.yaml).")
@click.option("--gpu", help="Accelerator of the catalogue.")
@click.option("--engine", help="vllm, sglang, tensorrt-llm.")
@click.option("--weights", help="Weight precision: bf16, fp8, int8, int4, fp4.")
@click.option("--kv-cache", help="KV cache precision: bf16, fp8.")
@click.option("--gpus", type=DEGREE, help="GPUs of one replica.")
@click.option("--tensor-parallel", type=DEGREE, help="Ranks that share attention.")
@click.option("--pipeline-parallel", type=DEGREE, help="Pipeline stages.")
@click.option("--attention-data-parallel", type=DEGREE, help="Attention groups.")
@click.option("--expert-parallel", type=DEGREE, help="1, or all GPUs of a stage.")
@click.option(
    "--chunk-tokens",
    type=DEGREE,
    default=8192,
    show_default=True,
    help="Most tokens of a step: the engine's token budget.",
)
@click.option("--draft-tokens", type=DEGREE, help="Tokens drafted per step, if any are.")
@click.option(
    "--accepted-tokens-per-step",
    type=click.FloatRange(min=1),
    help="Mean tokens gained per step, where the results do not say.",
)
@click.option(
    "--draft-parameters-billion",
    type=click.FloatRange(min=0, min_open=True),
    help="Size of a draft model of its own.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Calibration file to write, or to add this deployment to.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the deployment as JSON.")
@click.pass_obj
def calibrate(
    verbosity: Verbosity | None,
    results: tuple[Path, ...],
    model: str | None,
    gpu: str | None,
    engine: str | None,
    weights: str | None,
    kv_cache: str | None,
    gpus: int | None,
    tensor_parallel: int | None,
    pipeline_parallel: int | None,
    attention_data_parallel: int | None,
    expert_parallel: int | None,
    chunk_tokens: int,
    draft_tokens: int | None,
    accepted_tokens_per_step: float | None,
    draft_parameters_billion: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Fit a correction of one deployment to the benchmark results in RESULTS.

    Reads the files of vllm bench serve, SGLang bench_serving, GuideLLM, AIPerf and genai-perf,
    inference-perf, InferenceMAX, llm-d reports, and CSV. What they do not record of the
    deployment is asked for; what they record must agree with the options. Degrees of parallelism
    left out beside --tensor-parallel are 1, as in the engines.

    \b
    Examples:
      planner calibrate bench/*.json --model llama-3.1-8b --gpu h100 --engine vllm \\
        --tensor-parallel 1 --weights bf16 --kv-cache bf16 --out calibration.yaml

    An instance that says `calibration: calibration.yaml` plans with the correction. A deployment
    that the file holds already is replaced, others stay. Exit codes: 0 done; 2 wrong usage or
    input, and measurements that the hardware cannot have made; 4 failure.
    """  # noqa: D301
    from datetime import UTC, datetime

    from planner.calibrate.correct import fit_deployment
    from planner.calibrate.deployment import Stated, measured_config
    from planner.calibrate.file import add_to_file, earlier_deployments, entry_of
    from planner.calibrate.points import usable_points
    from planner.calibrate.results import read_once
    from planner.perf.constants import load_constants

    if out is not None:
        earlier_deployments(out)  # raises before the fit, not after it
    found = read_once(results)
    stated = Stated(
        model=model,
        accelerator=gpu,
        engine=engine,
        weight_precision=weights,
        kv_precision=kv_cache,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        attention_data_parallel=attention_data_parallel,
        expert_parallel=expert_parallel,
        gpus=gpus,
        draft_tokens=draft_tokens,
        accepted_tokens_per_step=accepted_tokens_per_step,
        draft_parameters_billion=draft_parameters_billion,
    )
    points, skipped = usable_points(found.measurements)
    measured = measured_config(stated, [point.measurement for point in points])
    constants = load_constants()
    fitted = fit_deployment(measured.config, points, constants, chunk_tokens)
    notes = [*found.repeated, *measured.notes]
    entry = entry_of(fitted, found.digests, constants, datetime.now(UTC).date(), notes)
    if out is not None:
        replaced = add_to_file(out, entry)
        if verbosity is None or not verbosity.quiet:
            words = "replaced the earlier entry of this deployment in" if replaced else "wrote"
            click.echo(f"{words} {out}", err=True)
    if as_json:
        document = {**entry.model_dump(mode="json"), "skipped": skipped}
        click.echo(json.dumps(document, indent=2, sort_keys=True))
        return
    from planner.report.calibration import calibration_document
    from planner.report.terminal import print_document

    print_document(calibration_document(entry, skipped), sys.stdout)
