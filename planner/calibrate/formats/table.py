"""A plain CSV, one operating point per row; also with the column names of `planner perf --batch`.

The columns are listed in docs/results.md. `tpot_ms` is (e2e - ttft) / (output - 1). Commas,
semicolons and tabs separate; an empty cell is not recorded; other columns are ignored, except
those that name a quantity without its unit.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from planner.calibrate.formats.draft import MS, Draft
from planner.calibrate.formats.node import Node
from planner.calibrate.formats.percentiles import by_percent, rising
from planner.calibrate.measurement import Measurement, Recorded
from planner.errors import InputError, Problem

NAME: Final = "CSV"
ALIASES: Final[Mapping[str, str]] = {
    "isl_nominal": "input_tokens",
    "osl_nominal": "output_tokens",
    "model_family": "model",
    "gpus_per_replica": "gpus",
    "attention_dp": "attention_data_parallel",
    "kv_cache": "kv",
}
"""Names of `planner perf --batch` and others that mean the same."""
NUMBERS: Final = (
    "input_tokens",
    "output_tokens",
    "length_scale",
    "concurrency",
    "request_rate_per_s",
    "tpot_ms",
    "ttft_ms",
    "e2e_ms",
    "output_tokens_per_s",
    "tok_s_per_gpu",
    "duration_s",
    "requests",
    "failed",
    "cached_fraction",
    "accepted_tokens_per_step",
)
TEXTS: Final = ("model", "accelerator", "engine", "weights", "kv", "speculative")
COUNTS: Final = (
    "tensor_parallel",
    "pipeline_parallel",
    "attention_data_parallel",
    "expert_parallel",
    "gpus",
    "replicas",
)
KNOWN: Final = frozenset({*NUMBERS, *TEXTS, *COUNTS, *ALIASES, "disaggregated"})
_PERCENTILE: Final = re.compile(r"(?P<metric>tpot|ttft)_(?P<which>p\d[\d.]*|median)_ms")
_WITHOUT_UNIT: Final = re.compile(
    r"(mean_|avg_)?(tpot|ttft|e2e|itl)(_(p\d[\d.]*|median|mean|avg))?(_s|_us|_sec|_seconds)?"
)
_SEPARATORS: Final = (",", ";", "\t")
MISSPELT_RATIO: Final = 0.92
"""Likeness from which an unknown column is a slip: one letter or two; `requests_s` is none."""
NOT_WRITTEN: Final = frozenset({"", "na", "n/a", "nan", "null", "none", "-"})


@dataclass(frozen=True, slots=True)
class _Columns:
    separator: str
    names: tuple[str, ...]


def is_table(text: str) -> bool:
    """Whether the first line names at least two of the known columns."""
    return len(_known(_header(text).names)) > 1


def read_table(text: str, file: str) -> list[Measurement]:
    """One measurement per row. Raises InputError with every row that has a mistake."""
    columns = _header(text)
    _check_columns(columns.names, file)
    reader = csv.reader(io.StringIO(text), delimiter=columns.separator, strict=True)
    measurements: list[Measurement] = []
    problems: list[Problem] = []
    filled = (cells for cells in reader if any(cell.strip() for cell in cells))
    try:
        next(filled)
        for cells in filled:
            try:
                measurements.append(_read_row(cells, columns.names, file, reader.line_num))
            except InputError as error:
                problems.extend(error.problems)
    except csv.Error as error:
        problems.append(Problem(f"is not CSV: {error}", file=file, line=reader.line_num))
    if problems:
        raise InputError(problems)
    if not measurements:
        raise InputError([Problem("has no rows", "a header alone holds no result", file=file)])
    return measurements


def _header(text: str) -> _Columns:
    first = text.lstrip("\r\n").partition("\n")[0]
    found = [
        _Columns(separator, tuple(cell.strip().strip('"') for cell in first.split(separator)))
        for separator in _SEPARATORS
    ]
    return max(found, key=lambda columns: len(_known(columns.names)))


def _known(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in KNOWN or _PERCENTILE.fullmatch(name)]


def _check_columns(names: tuple[str, ...], file: str) -> None:
    problems = [
        Problem(
            f"column '{name}' is not in milliseconds by its name",
            "known are tpot_ms, ttft_ms, e2e_ms, tpot_p99_ms and the like",
            file=file,
            line=1,
        )
        for name in names
        if _WITHOUT_UNIT.fullmatch(name)
    ]
    meant = [ALIASES.get(name, name) for name in names]
    problems += [
        Problem(f"column '{name}' stands twice", file=file, line=1)
        for name in dict.fromkeys(meant)
        if name in KNOWN and meant.count(name) > 1
    ]
    problems += [
        Problem(f"unknown column '{name}'", f"did you mean '{near}'?", file=file, line=1)
        for name in names
        if (near := _misspelt(name, meant)) is not None
    ]
    missing = [name for name in ("input_tokens", "output_tokens") if name not in meant]
    if "concurrency" not in meant and "request_rate_per_s" not in meant:
        missing.append("concurrency (or request_rate_per_s)")
    if "tpot_ms" not in meant and not {"e2e_ms", "ttft_ms"} <= set(meant):
        missing.append("tpot_ms (or e2e_ms with ttft_ms)")
    if missing and not problems:
        problems.append(Problem(f"has no column {', '.join(missing)}", file=file, line=1))
    if problems:
        raise InputError(problems)


def _misspelt(name: str, meant: list[str]) -> str | None:
    """The known column that an unknown one was probably meant to be, unless that is there too."""
    if name in KNOWN or _PERCENTILE.fullmatch(name):
        return None
    absent = sorted(KNOWN - {*meant} - ALIASES.keys())
    near = difflib.get_close_matches(name.lower(), absent, n=1, cutoff=MISSPELT_RATIO)
    return near[0] if near else None


def _read_row(cells: list[str], names: tuple[str, ...], file: str, line: int) -> Measurement:
    if len(cells) != len(names):
        message = f"has {len(cells)} cells, the header {len(names)}"
        raise InputError([Problem(message, "is the row complete?", file=file, line=line)])
    row = Node(_values(cells, names, file, line), file, line=line)
    draft = Draft(row, NAME)
    scale = row.at("length_scale").positive() if row.find("length_scale") else 1.0
    draft.take("input_tokens", row.at("input_tokens"), scale)
    draft.take("output_tokens", row.at("output_tokens"), scale)
    for name in (
        "request_rate_per_s",
        "duration_s",
        "output_tokens_per_s",
        "accepted_tokens_per_step",
    ):
        draft.take(name, row.find(name))
    draft.take("ttft_s", row.find("ttft_ms"), MS)
    draft.take("e2e_s", row.find("e2e_ms"), MS)
    draft.take_tpot(row.find("tpot_ms"), MS)
    if "tpot_s" not in draft.values and not draft.tpot_from_means():
        draft.need_tpot("tpot_ms")
    if "output_tokens_per_s" not in draft.values and row.find("gpus"):
        draft.take("output_tokens_per_s", row.find("tok_s_per_gpu"), row.at("gpus").written_count())
    draft.take_load(row.find("concurrency"), closed=True)
    if "concurrency" not in draft.values:
        raise row.missing("concurrency", hint="a rate alone needs ttft_ms or e2e_ms as well")
    requests, failed = row.find("requests"), row.find("failed")
    apart = row.find("disaggregated")
    return draft.finish(
        requests=requests.count(1) if requests else None,
        failed=failed.count() if failed else None,
        tpot_percentiles_s=_percentiles(row, "tpot"),
        ttft_percentiles_s=_percentiles(row, "ttft"),
        recorded=_recorded(row),
        cached_fraction=_cached_fraction(row),
        disaggregated=apart.truth() if apart else None,
    )


def _values(cells: list[str], names: tuple[str, ...], file: str, line: int) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, cell in zip(names, cells, strict=True):
        written = cell.strip()
        name = ALIASES.get(name, name)
        if written.lower() in NOT_WRITTEN:
            continue
        if name in NUMBERS or _PERCENTILE.fullmatch(name):
            try:
                values[name] = float(written)
            except ValueError:
                raise Node(written, file, (name,), line).error(
                    f"'{written:.40}' is not a number"
                ) from None
        else:
            values[name] = written
    return values


def _percentiles(row: Node, metric: str) -> dict[float, float]:
    found: dict[float, Node] = {}
    for key in row.mapping():
        match = _PERCENTILE.fullmatch(key)
        if match is not None and match["metric"] == metric:
            fraction = by_percent(match["which"])
            if fraction is not None:
                found[fraction] = row.at(key)
    return rising(found, MS)


def _cached_fraction(row: Node) -> float | None:
    found = row.find("cached_fraction")
    if found is not None and not 0 <= found.number() <= 1:
        raise found.error(f"{found.number():g} must be between 0 and 1")
    return found.number() if found is not None else None


def _recorded(row: Node) -> Recorded:
    return Recorded(
        model=row.first_text("model"),
        accelerator=row.first_text("accelerator"),
        engine=row.first_text("engine"),
        weight_precision=row.first_text("weights"),
        kv_precision=row.first_text("kv"),
        tensor_parallel=row.first_count("tensor_parallel"),
        pipeline_parallel=row.first_count("pipeline_parallel"),
        attention_data_parallel=row.first_count("attention_data_parallel"),
        expert_parallel=row.first_count("expert_parallel"),
        gpus=row.first_count("gpus"),
        replicas=row.first_count("replicas"),
        speculative=row.first_text("speculative"),
    )
