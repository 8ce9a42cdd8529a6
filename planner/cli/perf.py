"""`planner perf`: one operating point as a bill, or a CSV of them predicted in one go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from planner.units import GB

if TYPE_CHECKING:
    from planner.perf.bill import Bill, MemoryBill, StepBill

TERM_LABELS: Final[Mapping[str, str]] = {
    "attention_projections": "attention projections",
    "dense_ffn": "dense and shared feed-forward",
    "experts": "experts",
    "head": "output head",
    "activations": "activation traffic",
    "communication": "communication",
    "overhead": "fixed overhead",
    "attention_kv": "attention over the KV cache",
    "attention_pairs": "attention among prompt tokens",
    "sequence_overhead": "overhead per sequence",
    "draft": "draft model",
}
RESOURCE_LABELS: Final[Mapping[str, str]] = {
    "compute": "compute",
    "hbm": "HBM bandwidth",
    "links": "links between GPUs",
}
WIDTH: Final = 34
"""Columns of a label; numbers stand to the right of it."""


@click.command(short_help="Predict the performance of a model on an accelerator.")
@click.argument("model", required=False)
@click.argument("accelerator", required=False)
@click.option("--tensor-parallel", type=click.IntRange(min=1), help="Ranks that share attention.")
@click.option("--pipeline-parallel", type=click.IntRange(min=1), help="Pipeline stages.")
@click.option(
    "--attention-data-parallel",
    type=click.IntRange(min=1),
    help="Attention groups with sequences of their own.",
)
@click.option(
    "--expert-parallel",
    type=click.IntRange(min=1),
    help="1 to cut experts over a stage's GPUs, or all of these to keep experts whole.",
)
@click.option("--weights", help="Weight precision: bf16, fp8, int8, int4, fp4. [default: native]")
@click.option("--kv", default="bf16", show_default=True, help="KV cache precision: bf16, fp8.")
@click.option("--engine", default="vllm", show_default=True, help="vllm, sglang, tensorrt-llm.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Requests at once. [default: as many as fit, at most 64]",
)
@click.option(
    "--input-tokens", type=click.IntRange(min=1), default=2048, show_default=True, help="Prompt."
)
@click.option(
    "--output-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Answer."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--batch",
    "table",
    type=click.Path(path_type=Path),
    metavar="IN.csv",
    help="Predict every row of this CSV instead; needs --out.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="OUT.csv", help="Where --batch writes."
)
def perf(
    model: str | None,
    accelerator: str | None,
    tensor_parallel: int | None,
    pipeline_parallel: int | None,
    attention_data_parallel: int | None,
    expert_parallel: int | None,
    weights: str | None,
    kv: str,
    engine: str,
    batch_size: int | None,
    input_tokens: int,
    output_tokens: int,
    as_json: bool,
    table: Path | None,
    out: Path | None,
) -> None:
    """Predict what MODEL does on ACCELERATOR at one operating point.

    Prints where the memory of a GPU and the time of a step go, which resource binds, the physical
    bound beside the calibrated prediction and its band, and TTFT, TPOT and throughput. Without a
    layout, the one with the fewest GPUs that fits is taken.

    With --batch, every row of a CSV is predicted and written to --out; a row that cannot be has
    the reason in its column `error`.
    """
    if table is not None or out is not None:
        if table is None or out is None:
            raise click.UsageError("--batch and --out go together")
        if model is not None or as_json:
            raise click.UsageError("--batch takes neither MODEL nor --json")
        _predict_table(table, out)
        return
    if model is None or accelerator is None:
        raise click.UsageError("needs MODEL and ACCELERATOR, or --batch and --out")
    from planner.perf.bill import as_document, operating_point
    from planner.perf.choose import choose_config

    config = choose_config(
        model,
        accelerator,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        attention_data_parallel=attention_data_parallel,
        expert_parallel=expert_parallel,
        weights=weights,
        kv=kv,
        engine=engine,
        request_tokens=input_tokens + output_tokens,
    )
    bill = operating_point(config, input_tokens, output_tokens, batch_size)
    if as_json:
        click.echo(json.dumps(as_document(bill), indent=2, sort_keys=True, allow_nan=False))
    else:
        click.echo(render(bill))


def _predict_table(table: Path, out: Path) -> None:
    from planner.perf.batch import predict_rows, read_rows, write_rows

    rows = predict_rows(read_rows(table))
    write_rows(out, rows)
    failed = sum(1 for row in rows if row["error"])
    note = f"; {failed} not predicted, see the column error" if failed else ""
    click.echo(f"{len(rows) - failed} of {len(rows)} rows predicted: {out}{note}", err=True)


def render(bill: Bill) -> str:
    """The bill as text."""
    config = bill.config
    low, high = bill.band
    lines = [
        f"{config.model.id} on {config.layout.gpus} x {config.accelerator.name}, "
        f"{config.layout.label}, weights {config.weight_precision}, KV {config.kv_precision}, "
        f"{config.engine.name}",
        f"{bill.batch} requests at once, {bill.input_tokens} tokens in, {bill.output_tokens} out, "
        f"mean context {bill.context_tokens:.0f}",
        "",
        *_memory_lines(bill.memory),
        "",
        *_step_lines("Decode step", bill.decode),
        "",
        *_step_lines(f"Prefill step of {bill.prefill_tokens:.0f} tokens", bill.prefill),
        "",
        "Serving, means",
        _row("TPOT", f"{bill.tpot_s * 1e3:.2f} ms")
        + f"   80 % band {bill.tpot_s * low * 1e3:.2f} to {bill.tpot_s * high * 1e3:.2f} ms",
        _row("TTFT", f"{bill.ttft_s * 1e3:.0f} ms"),
        _row("output", f"{bill.output_tokens_per_s:.0f} tokens/s"),
        _row("output per GPU", f"{bill.tokens_per_s_per_gpu:.0f} tokens/s"),
    ]
    return "\n".join(lines)


def _memory_lines(memory: MemoryBill) -> list[str]:
    def row(label: str, size: float) -> str:
        return _row(label, f"{size / GB:.2f} GB") + f"  {100 * size / memory.hbm_bytes:5.1f} %"

    return [
        "Memory of one GPU",
        row("weights", memory.weights_bytes),
        row("activations and reserve", memory.reserve_bytes),
        row("KV cache", memory.kv_room_bytes),
        row("  of which this batch uses", memory.kv_used_bytes),
        row("left outside the engine", memory.outside_bytes),
        _row("HBM", f"{memory.hbm_bytes / GB:.2f} GB"),
        f"  Maximum concurrency for {memory.request_tokens:,} tokens per request: "
        f"{memory.max_concurrency:.2f}x ({memory.cache_tokens:,.0f} tokens of cache)",
    ]


def _step_lines(title: str, step: StepBill) -> list[str]:
    lines = [title]
    for name, seconds in sorted(step.terms_s.items(), key=lambda term: -term[1]):
        share = 100 * seconds / step.total_s
        lines.append(_row(TERM_LABELS[name], f"{seconds * 1e3:.3f} ms") + f"  {share:5.1f} %")
    lines.append(_row("calibrated total", f"{step.total_s * 1e3:.3f} ms"))
    parts = ", ".join(
        f"{RESOURCE_LABELS[name]} {seconds * 1e3:.3f}" for name, seconds in step.resources_s.items()
    )
    lines.append(_row("physical bound", f"{step.bound_s * 1e3:.3f} ms") + f"   ({parts})")
    lines.append(f"  Binds: {RESOURCE_LABELS[step.binds]}")
    return lines


def _row(label: str, value: str) -> str:
    return f"  {label:<{WIDTH}}{value:>16}"
