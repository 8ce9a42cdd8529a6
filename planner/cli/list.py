"""`planner list`: what the catalogue holds, with the source and date of every figure."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import click

from planner import catalog
from planner.units import GB

if TYPE_CHECKING:
    from planner.catalog.accelerators import Accelerator
    from planner.catalog.cards import ModelCard
    from planner.catalog.offers import Offer

TERA: Final = 1e12
Row = dict[str, str | float | int | None]


@click.command(short_help="Show the models, accelerators and offers of the catalogue.")
@click.argument("what", type=click.Choice(["models", "accelerators", "offers"]))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def list(what: str, as_json: bool, as_csv: bool) -> None:
    """Show the models, accelerators or offers that can be planned with.

    Every row says where its figures come from and when they were read. The first column is the
    name by which an instance refers to the row.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    rows = ROWS[what]()
    if as_json:
        document = {"format_version": 1, what: rows}
        click.echo(json.dumps(document, indent=2, sort_keys=True, allow_nan=False))
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, fieldnames=tuple(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif sys.stdout.isatty():
        _print_table(what, rows)
    else:
        _print_plain(rows)


def _model_row(card: ModelCard) -> Row:
    return {
        "id": card.id,
        "parameters_billion": round(card.parameters_total / 1e9, 2),
        "active_billion": round(card.parameters_active / 1e9, 2),
        "layers": card.layers,
        "native_precision": card.native_precision,
        "max_context_tokens": card.max_context_tokens,
        "kv_bytes_per_token_bf16": round(card.kv_bytes_per_token("bf16")),
        "date": card.date,
        "source": card.source,
    }


def _accelerator_row(accelerator: Accelerator) -> Row:
    peaks = accelerator.peak_flops
    row: Row = {"id": accelerator.id}
    for precision in ("bf16", "fp8", "int8", "fp4"):
        peak = peaks.get(precision)
        row[f"{precision}_dense_tflops"] = None if peak is None else _rounded(peak / TERA)
    return row | {
        "hbm_gb": round(accelerator.hbm_bytes / GB, 1),
        "hbm_tb_per_s": _rounded(accelerator.hbm_bytes_per_s / TERA),
        "scale_up_domain": accelerator.scale_up_domain,
        "scale_up_gb_per_s": _rounded(accelerator.scale_up_bytes_per_s / GB),
        "scale_out_gb_per_s": _rounded(accelerator.scale_out_bytes_per_s / GB),
        "power_w": accelerator.power_w,
        "gpus_per_node": accelerator.usual_node_size,
        "confidence": accelerator.confidence,
        "assumed": " ".join(accelerator.assumed),
        "date": accelerator.date,
        "source": accelerator.source,
        "note": accelerator.note,
    }


def _offer_row(offer: Offer) -> Row:
    return offer.as_row()


ROWS: Final[Mapping[str, Callable[[], Sequence[Row]]]] = {
    "models": lambda: [_model_row(card) for card in catalog.models().values()],
    "accelerators": lambda: [_accelerator_row(one) for one in catalog.accelerators().values()],
    "offers": lambda: [_offer_row(offer) for offer in catalog.offers().values()],
}

# Columns of the table on a terminal; everything else is in the plain, CSV and JSON forms.
HEADINGS: Final[Mapping[str, Mapping[str, str]]] = {
    "models": {
        "id": "id",
        "parameters_billion": "params B",
        "active_billion": "active B",
        "layers": "layers",
        "native_precision": "native",
        "max_context_tokens": "context",
        "kv_bytes_per_token_bf16": "KV B/token",
        "date": "date",
        "source": "source",
    },
    "accelerators": {
        "id": "id",
        "bf16_dense_tflops": "BF16 TF/s",
        "fp8_dense_tflops": "FP8",
        "int8_dense_tflops": "INT8",
        "fp4_dense_tflops": "FP4",
        "hbm_gb": "HBM GB",
        "hbm_tb_per_s": "TB/s",
        "scale_up_domain": "domain",
        "scale_up_gb_per_s": "link GB/s",
        "confidence": "conf.",
        "date": "date",
        "source": "source",
    },
    "offers": {
        "id": "id",
        "price_usd_per_gpu_hour": "USD/GPU-h",
        "gpus_per_node": "GPUs/node",
        "date": "date",
        "source": "source",
    },
}


def _print_table(what: str, rows: Sequence[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="Sources in full, notes and more columns: --csv or --json, or pipe the output.",
        caption_justify="left",
    )
    columns = HEADINGS[what]
    cells = [
        [
            _text(_short_source(str(row[name])) if name == "source" else row[name])
            for name in columns
        ]
        for row in rows
    ]
    for index, (name, heading) in enumerate(columns.items()):
        widest = max(len(heading), *(len(line[index]) for line in cells))
        table.add_column(
            heading,
            justify="right" if any(isinstance(row[name], int | float) for row in rows) else "left",
            overflow="fold",
            min_width=16 if name == "source" else widest,
        )
    for line in cells:
        table.add_row(*line)
    console = Console()
    # On a narrow terminal let lines run on: figures cut short would be wrong figures.
    options = console.options.update(width=1000)
    console.width = max(console.width, console.measure(table, options=options).minimum)
    console.print(table)


def _short_source(source: str) -> str:
    """The site of the first source, and how many more there are."""
    first, *more = source.split("; ")
    address = first.removeprefix("https://").split(" ")[0].rstrip("/")
    parts = address.split("/")
    site = "/".join(parts[1:3]) if parts[0] in ("github.com", "huggingface.co") else parts[0]
    return f"{site} +{len(more)}" if more else site


def _print_plain(rows: Sequence[Row]) -> None:
    """Aligned columns, nothing cut off: for grep, awk and files."""
    names = tuple(rows[0])
    cells = [names, *(tuple(_text(row[name]) or "-" for name in names) for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(names))]
    for line in cells:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _text(value: str | float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)
