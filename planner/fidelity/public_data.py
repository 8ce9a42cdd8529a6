"""Published measurements as shipped: `data/public_cases.csv` and the YAML file beside it, checked.

A line of the table is one published result: what ran, how it was run (`regime`), and every figure
measured. The YAML file says what is assumed about each group and where the figures are published.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import yaml

from planner import resources
from planner.catalog import find_accelerator
from planner.catalog.accelerators import BITS_PER_BYTE, TERA, Accelerator
from planner.errors import InputError, Problem
from planner.units import GB, GIB

TABLE = "public_cases.csv"
NOTES = "public_cases.yaml"

REGIMES = (
    "prefill_step",
    "prefill_rate",
    "decode_step",
    "static_batch",
    "burst",
    "closed_loop",
    "open_loop",
    "disaggregated_ttft",
)

METRICS = MappingProxyType(
    {
        "tpot": "tpot_ms",
        "itl_median": "itl_median_ms",
        "ttft": "ttft_ms",
        "e2e": "e2e_ms",
        "output_tokens_per_s": "output_tokens_per_s",
        "input_tokens_per_s": "input_tokens_per_s",
        "requests_per_s": "requests_per_s",
    }
)
"""Metrics and their columns. Latencies are seconds here, milliseconds in the table; token rates
count `throughput_gpus` GPUs, request rates the replica."""

RATES = frozenset({"output_tokens_per_s", "input_tokens_per_s", "requests_per_s"})
"""Metrics of which more is better."""

_TEXTS = ("point_id", "group", "regime", "model", "accelerator", "weights", "kv", "engine")
_DEGREES = ("tensor_parallel", "attention_data_parallel", "expert_parallel")
_NUMBERS = (
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "sequences",
    "requests",
    "offered_requests_per_s",
    "clients_limit",
    "max_sequences",
    "chunk_tokens",
    "memory_fraction",
    "throughput_gpus",
)
COLUMNS = (*_TEXTS, *_DEGREES, *_NUMBERS, *METRICS.values(), "left_out", "source")

_NEEDS = MappingProxyType(
    {
        "prefill_step": ("input_tokens", "sequences"),
        "prefill_rate": ("input_tokens", "chunk_tokens", "throughput_gpus"),
        "decode_step": ("input_tokens", "sequences"),
        "static_batch": ("input_tokens", "output_tokens", "sequences"),
        "burst": ("input_tokens", "output_tokens", "requests"),
        "closed_loop": ("input_tokens", "output_tokens", "sequences"),
        "open_loop": ("input_tokens", "output_tokens", "requests", "offered_requests_per_s"),
        "disaggregated_ttft": ("input_tokens",),
    }
)
"""Numbers that a predicted line of each regime must have."""


@dataclass(frozen=True, slots=True)
class PublicCase:
    """One published result. Optional numbers are NaN where the publication has none.

    `sequences` decode at once or keep a request open, `requests` is the length of the run, both of
    the replica. `left_out` is empty, or why the case is not predicted. `measured` by metric, in
    seconds or per second.
    """

    point_id: str
    group: str
    regime: str
    model: str
    accelerator: str
    weights: str
    kv: str
    engine: str
    tensor_parallel: int
    attention_data_parallel: int
    expert_parallel: int
    input_tokens: float
    output_tokens: float
    cached_tokens: float
    sequences: float
    requests: float
    offered_requests_per_s: float
    clients_limit: float
    max_sequences: float
    chunk_tokens: float
    memory_fraction: float
    throughput_gpus: float
    measured: Mapping[str, float]
    left_out: str
    source_url: str

    @property
    def gpus(self) -> int:
        """GPUs of the replica."""
        return self.tensor_parallel * self.attention_data_parallel


@dataclass(frozen=True, slots=True)
class PublicGroup:
    """How the results of one publication came about, and what is assumed about them."""

    name: str
    runs: str
    assumed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PublicNotes:
    """The file beside the table: groups, chips of its own, reasons and sources by key."""

    groups: Mapping[str, PublicGroup]
    accelerators: Mapping[str, Accelerator]
    reasons: Mapping[str, str]
    sources: Mapping[str, str]


def parse_notes(text: str, file: str = NOTES) -> PublicNotes:
    """The notes in a YAML text. Raises InputError where it is malformed."""
    try:
        data = yaml.safe_load(text)
        groups = {
            str(name): PublicGroup(str(name), str(row["runs"]), tuple(map(str, row["assumed"])))
            for name, row in data["groups"].items()
        }
        chips = {str(name): _variant(str(name), row) for name, row in data["accelerators"].items()}
        reasons = {str(key): str(value) for key, value in data["left_out"].items()}
        sources = {str(key): str(value) for key, value in data["sources"].items()}
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        hint = "it needs groups (runs, assumed), accelerators, left_out and sources"
        raise InputError([Problem(f"malformed notes: {error!r}", hint, file=file)]) from error
    problems = [
        Problem("is not an https:// address", "where the figures are published", file, field=key)
        for key, url in sources.items()
        if not url.startswith("https://")
    ]
    if problems:
        raise InputError(problems)
    return PublicNotes(groups, chips, reasons, sources)


def _variant(name: str, row: Mapping[str, Any]) -> Accelerator:
    """A chip of the catalogue with other memory or another network."""
    chip = replace(find_accelerator(str(row["base"])), id=name, name=name, note=str(row["note"]))
    if "hbm_gib" in row:
        chip = replace(chip, hbm_bytes=float(row["hbm_gib"]) * GIB)
    if "hbm_tb_per_s" in row:
        chip = replace(chip, hbm_bytes_per_s=float(row["hbm_tb_per_s"]) * TERA)
    if "scale_out_gbit_per_s" in row:
        rate = float(row["scale_out_gbit_per_s"]) * GB / BITS_PER_BYTE
        chip = replace(chip, scale_out_bytes_per_s=rate)
    return chip


def parse_cases(text: str, notes: PublicNotes, file: str = TABLE) -> tuple[PublicCase, ...]:
    """The cases in a CSV text, in its order. Raises InputError with every mistake, by line."""
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        hint = "the first line names the columns"
        raise InputError([Problem(f"columns missing: {', '.join(missing)}", hint, file, 1)])
    problems: list[Problem] = []
    cases: list[PublicCase] = []
    seen: set[tuple[str, str]] = set()
    for row in reader:
        line = _Line(row, file, reader.line_num)
        case = line.case(notes)
        for metric in case.measured:
            if (case.point_id, metric) in seen:
                line.add("point_id", f"{metric} of {case.point_id} is there twice")
            seen.add((case.point_id, metric))
        problems += line.problems
        cases.append(case)
    if problems:
        raise InputError(problems)
    return tuple(cases)


class _Line:
    """One line of the table, its mistakes collected."""

    def __init__(self, row: Mapping[str, str | None], file: str, number: int) -> None:
        self.row = row
        self.file = file
        self.number = number
        self.problems: list[Problem] = []

    def add(self, field: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(message, hint, self.file, self.number, field=field))

    def text(self, name: str) -> str:
        return (self.row.get(name) or "").strip()

    def number_of(self, name: str, default: float = math.nan) -> float:
        """The number in a column, `default` where it is empty; must not be negative."""
        text = self.text(name)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value) or value < 0:
            self.add(name, f"{text!r} is not a number of at least 0")
            return default
        return value

    def degree(self, name: str) -> int:
        value = self.number_of(name)
        if value >= 1 and value.is_integer():
            return int(value)
        self.add(name, f"{self.text(name)!r} is not a whole number of at least 1")
        return 1

    def known(self, name: str, names: Mapping[str, Any] | tuple[str, ...]) -> str:
        value = self.text(name)
        if value not in names:
            self.add(name, f"unknown {name} {value!r}", f"known: {', '.join(names)}")
        return value

    def case(self, notes: PublicNotes) -> PublicCase:
        texts = {name: self.text(name) for name in _TEXTS}
        for name, value in texts.items():
            if not value:
                self.add(name, "is required")
        self.known("group", notes.groups)
        regime = self.known("regime", REGIMES)
        source = self.known("source", notes.sources)
        reason = self.known("left_out", notes.reasons) if self.text("left_out") else ""
        numbers = {name: self.number_of(name) for name in _NUMBERS}
        numbers["cached_tokens"] = self.number_of("cached_tokens", 0.0)
        degrees = {name: self.degree(name) for name in _DEGREES}
        values: dict[str, Any] = {**texts, **degrees, **numbers}
        measured = self._measured()
        if not reason:
            for name in _NEEDS.get(regime, ()):
                if math.isnan(numbers[name]):
                    self.add(name, f"is required for {regime}")
        if math.isnan(numbers["throughput_gpus"]) and any("tokens" in name for name in measured):
            self.add("throughput_gpus", "is required with tokens per second", "GPUs they count")
        return PublicCase(
            **values,
            measured=MappingProxyType(measured),
            left_out=notes.reasons.get(reason, ""),
            source_url=notes.sources.get(source, ""),
        )

    def _measured(self) -> dict[str, float]:
        measured: dict[str, float] = {}
        for metric, column in METRICS.items():
            value = self.number_of(column)
            if math.isnan(value):
                continue
            if value == 0:
                self.add(column, "a measured value is above 0")
            measured[metric] = value / 1000 if column.endswith("_ms") else value
        if not measured:
            self.add("point_id", "nothing is measured", f"one of {', '.join(METRICS.values())}")
        return measured


def load_notes() -> PublicNotes:
    """The notes shipped with the program."""
    return parse_notes(resources.read_text(NOTES))


def load_cases() -> tuple[PublicCase, ...]:
    """The cases shipped with the program, in the order of the file."""
    return parse_cases(resources.read_text(TABLE), load_notes())
