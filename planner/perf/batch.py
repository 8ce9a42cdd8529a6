"""Predictions for a table of operating points: rows as read from CSV in, rows out.

All good rows go through one `StepModel`; a row that cannot be predicted says why in `error`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from planner.atomic import write_text
from planner.errors import InputError, Problem
from planner.perf.backend import find_backend
from planner.perf.coefficients import StepModel
from planner.perf.config import Layout, PoolConfig, config_problem
from planner.perf.engines import engine_profile
from planner.perf.serving import serving_point

if TYPE_CHECKING:
    from planner.catalog.accelerators import Accelerator
    from planner.catalog.cards import ComponentBytes, ModelCard

OUTPUT_COLUMNS = (
    "id",
    "tpot_ms",
    "ttft_ms",
    "tok_s_per_gpu",
    "tpot_low_ms",
    "tpot_high_ms",
    "error",
)
REQUIRED_COLUMNS = (
    "id",
    "model_family",
    "accelerator",
    "engine",
    "weights",
    "gpus_per_replica",
    "concurrency",
    "isl_nominal",
    "osl_nominal",
)
"""The other columns (expert_parallel, attention_dp, length_scale, kv_bytes_per_element and the
bytes per weight) may be absent or empty: 1, 1, 1, bf16, and what the card says."""

NATIVE = "na"

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """One row as a configuration and its closed loop."""

    config: PoolConfig
    component_bytes: ComponentBytes
    concurrency: float
    input_tokens: float
    output_tokens: float


class Catalogue:
    """Names looked up once per distinct spelling; a failed look-up is remembered as well."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], object] = {}

    def model(self, name: str) -> ModelCard:
        """The card of this name; InputError if there is none."""
        from planner.catalog import find_model

        return self._once("model", name, find_model)

    def accelerator(self, name: str) -> Accelerator:
        """The accelerator of this name; InputError if there is none."""
        from planner.catalog import find_accelerator

        return self._once("accelerator", name, find_accelerator)

    def _once(self, kind: str, name: str, find: Callable[[str], _Found]) -> _Found:
        key = (kind, name)
        if key not in self._found:
            try:
                self._found[key] = find(name)
            except InputError as error:
                self._found[key] = error
        value = self._found[key]
        if isinstance(value, InputError):
            raise value
        return value  # type: ignore[return-value]


def predict_rows(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """One output row per input row, in order, with the columns of `OUTPUT_COLUMNS`.

    `gpus_per_replica` is the true number of GPUs; `weights` is a precision or `na` for the
    card's own; lengths are nominal and multiplied by `length_scale`. TPOT and TTFT are means.
    """
    catalogue = Catalogue()
    outcome: list[dict[str, str]] = []
    points: list[OperatingPoint] = []
    places: list[int] = []
    for number, row in enumerate(rows):
        outcome.append(dict.fromkeys(OUTPUT_COLUMNS, "") | {"id": row.get("id") or ""})
        try:
            points.append(operating_point_of(row, catalogue))
            places.append(number)
        except InputError as error:
            outcome[number]["error"] = "; ".join(str(problem) for problem in error.problems)
    if points:
        _fill(outcome, points, places)
    return outcome


def _fill(outcome: list[dict[str, str]], points: list[OperatingPoint], places: list[int]) -> None:
    configs, indices = distinct(points)
    model = StepModel(
        [points[n].config for n in configs],
        component_bytes=[points[n].component_bytes for n in configs],
    )
    backend = find_backend()
    served = serving_point(
        model,
        np.array(indices),
        np.array([point.concurrency for point in points]),
        np.array([point.input_tokens for point in points]),
        np.array([point.output_tokens for point in points]),
    )
    for n, (point, place) in enumerate(zip(points, places, strict=True)):
        if served.capacity[n] < 1:
            outcome[place]["error"] = (
                f"a sequence of {served.context_tokens[n]:.0f} tokens does not fit beside the "
                f"weights on {point.config.layout.gpus} x {point.config.accelerator.name}"
            )
            continue
        low, high = backend.band(point.config)
        tpot_ms = float(served.tpot_s[n]) * 1e3
        per_gpu = float(served.output_tokens_per_s[n]) / point.config.layout.gpus
        values = {
            "tpot_ms": tpot_ms,
            "ttft_ms": float(served.ttft_s[n]) * 1e3,
            "tok_s_per_gpu": per_gpu,
            "tpot_low_ms": tpot_ms * low,
            "tpot_high_ms": tpot_ms * high,
        }
        outcome[place].update({name: f"{value:.6g}" for name, value in values.items()})


def distinct(points: Sequence[OperatingPoint]) -> tuple[list[int], list[int]]:
    """Positions of the distinct configurations, and for every point its place among them."""
    order: dict[tuple[object, ...], int] = {}
    firsts: list[int] = []
    indices: list[int] = []
    for n, point in enumerate(points):
        config = point.config
        key = (
            config.model.id,
            config.accelerator.id,
            config.layout,
            config.weight_precision,
            config.kv_precision,
            config.engine.name,
            point.component_bytes,
        )
        if key not in order:
            order[key] = len(firsts)
            firsts.append(n)
        indices.append(order[key])
    return firsts, indices


def operating_point_of(row: Mapping[str, str], catalogue: Catalogue) -> OperatingPoint:
    """The configuration and load of one row. Raises InputError if it cannot exist."""
    model = catalogue.model(_text(row, "model_family"))
    accelerator = catalogue.accelerator(_text(row, "accelerator"))
    engine = engine_profile(_text(row, "engine"))
    gpus = _count(row, "gpus_per_replica")
    data_parallel = _count(row, "attention_dp", 1)
    expert_parallel = _count(row, "expert_parallel", 1)
    if gpus % data_parallel:
        raise InputError(
            [
                Problem(
                    f"attention_dp {data_parallel} does not divide {gpus} GPUs",
                    field="attention_dp",
                )
            ]
        )
    layout = Layout(
        tensor_parallel=gpus // data_parallel,
        attention_data_parallel=data_parallel,
        # Experts over some of the ranks cost about the same as over all of them.
        expert_parallel=gpus if expert_parallel > 1 and model.moe_layers else 1,
    )
    stated = _text(row, "weights")
    weights = model.native_precision if stated == NATIVE else stated
    each = _component_bytes(row, model, weights)
    config = PoolConfig(model, accelerator, layout, weights, _kv_precision(row), engine)
    held = weights if weights in model.weight_precisions else model.native_precision
    problem = config_problem(
        PoolConfig(model, accelerator, layout, held, config.kv_precision, engine),
        component_bytes=each,
    )
    if problem:
        raise InputError([Problem(problem)])
    scale = _number(row, "length_scale", 1.0)
    return OperatingPoint(
        config=config,
        component_bytes=each,
        concurrency=_number(row, "concurrency"),
        input_tokens=_number(row, "isl_nominal") * scale,
        output_tokens=_number(row, "osl_nominal") * scale,
    )


def _component_bytes(row: Mapping[str, str], model: ModelCard, weights: str) -> ComponentBytes:
    """Bytes per weight as the row states them, else as the card has them for `weights`."""
    from planner.catalog.cards import ComponentBytes

    names = ("attention", "dense", "expert")
    stated = [_number(row, f"{name}_bytes_per_weight", math.nan) for name in names]
    if weights in model.weight_precisions:
        base = model.component_bytes(weights)
    elif all(not math.isnan(value) for value in stated):
        base = model.component_bytes(model.native_precision)
    else:
        return model.component_bytes(weights)
    attention, dense, experts = stated
    return ComponentBytes(
        attention=base.attention if math.isnan(attention) else attention,
        dense=base.dense if math.isnan(dense) else dense,
        experts=base.experts if math.isnan(experts) else experts,
        shared=base.shared if math.isnan(dense) else dense,
        head=base.head,
        mtp=base.mtp,
    )


def _kv_precision(row: Mapping[str, str]) -> str:
    element = _number(row, "kv_bytes_per_element", 2.0)
    known = {1.0: "fp8", 2.0: "bf16"}
    if element not in known:
        raise InputError(
            [Problem(f"{element:g} bytes per element", "1 or 2", field="kv_bytes_per_element")]
        )
    return known[element]


def _text(row: Mapping[str, str], name: str) -> str:
    value = (row.get(name) or "").strip()
    if not value:
        raise InputError([Problem("is missing", field=name)])
    return value


def _number(row: Mapping[str, str], name: str, default: float | None = None) -> float:
    written = (row.get(name) or "").strip()
    if not written and default is not None:
        return default
    written = _text(row, name)
    try:
        value = float(written)
    except ValueError:
        raise InputError([Problem(f"'{written}' is not a number", field=name)]) from None
    if not (math.isfinite(value) and value > 0):
        raise InputError([Problem(f"{written} must be a finite number above 0", field=name)])
    return value


def _count(row: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = _number(row, name, default)
    if value != int(value):
        raise InputError([Problem(f"{value:g} must be a whole number", field=name)])
    return int(value)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file. Raises InputError if it cannot be read or lacks columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = [*reader]
            have = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError([Problem(f"cannot be read: {error}", file=str(path))]) from error
    missing = [name for name in REQUIRED_COLUMNS if name not in have]
    if missing:
        raise InputError([Problem(f"has no column {', '.join(missing)}", file=str(path), line=1)])
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Writes a CSV of `OUTPUT_COLUMNS` whole or not at all: to a temporary file, then renamed.

    Raises InputError if the place cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, OUTPUT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
