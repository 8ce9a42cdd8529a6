"""Each golden result file, corrupted in five ways, and the text of each error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.calibrate.formats import read_results
from planner.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "results"

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Corruptible:
    """Where a format keeps a time and a field that it cannot do without."""

    name: str
    time: Keys
    needed: Keys
    wrong_unit: float
    place: str = ""
    """What stands between the file and the field: the line, in JSON Lines and CSV."""


GUIDE = ("benchmarks", 0, "metrics")
REPORT = ("results", "request_performance", "aggregate")
FORMATS = (
    Corruptible("vllm_serve.json", ("mean_tpot_ms",), ("total_output_tokens",), 1e-3),
    Corruptible("vllm_append.jsonl", ("mean_ttft_ms",), ("mean_tpot_ms",), 1e-4, ":1"),
    Corruptible("vllm_older.json", ("mean_ttft_ms",), ("duration",), 1e-3),
    Corruptible("sglang_bench.jsonl", ("mean_tpot_ms",), ("total_input_tokens",), 1e-3, ":1"),
    Corruptible(
        "guidellm_v2.json",
        (*GUIDE, "inter_token_latency_ms", "successful", "mean"),
        (*GUIDE, "output_token_count", "successful", "mean"),
        1e-3,
    ),
    Corruptible(
        "guidellm_v1.json",
        (*GUIDE, "time_to_first_token_ms", "successful", "mean"),
        (*GUIDE, "prompt_token_count", "successful", "mean"),
        1e3,
    ),
    Corruptible(
        "aiperf.json", ("inter_token_latency", "avg"), ("output_sequence_length", "avg"), 1e-3
    ),
    Corruptible(
        "genai_perf.json", ("time_to_first_token", "avg"), ("inter_token_latency", "unit"), 1e3
    ),
    Corruptible(
        "inference_perf_stage.json",
        ("successes", "latency", "time_per_output_token", "mean"),
        ("successes", "count"),
        1e3,
    ),
    Corruptible("inferencex.json", (1, "mean_tpot"), (1, "osl"), 1e3),
    Corruptible(
        "llmd_report.yaml",
        (*REPORT, "latency", "time_per_output_token", "mean"),
        (*REPORT, "requests", "output_length", "mean"),
        1e3,
    ),
)
by_name = pytest.mark.parametrize("case", FORMATS, ids=lambda case: case.name)


def text_of(keys: Keys) -> str:
    parts = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return parts.removeprefix(".")


def corrupted(tmp_path: Path, case: Corruptible, change: Callable[[Any, str | int], None]) -> Path:
    """A copy with `change` applied to the container of the field that it names."""
    text = (GOLDEN / case.name).read_text(encoding="utf-8")
    path = tmp_path / case.name
    if path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(change_at(yaml.safe_load(text), change)), encoding="utf-8")
    elif path.suffix == ".jsonl":
        first, *rest = text.splitlines()
        lines = [json.dumps(change_at(json.loads(first), change)), *rest]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        path.write_text(json.dumps(change_at(json.loads(text), change)), encoding="utf-8")
    return path


def change_at(document: Any, change: Callable[[Any, str | int], None]) -> Any:
    keys = change.keys  # type: ignore[attr-defined]
    here = document
    for key in keys[:-1]:
        here = here[key]
    change(here, keys[-1])
    return document


def at(keys: Keys, value: Callable[[Any], Any] | None) -> Callable[[Any, str | int], None]:
    """A change of one field: to `value` of what it was, or taken out."""

    def change(container: Any, key: str | int) -> None:
        if value is None:
            del container[key]
        else:
            container[key] = value(container[key])

    change.keys = keys  # type: ignore[attr-defined]
    return change


def error_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_results(path)
    return str(caught.value)


@by_name
def test_missing_field(tmp_path: Path, case: Corruptible) -> None:
    path = corrupted(tmp_path, case, at(case.needed, None))
    assert f"{path}{case.place}: {text_of(case.needed)}: is missing" in error_of(path)


@by_name
def test_wrong_type(tmp_path: Path, case: Corruptible) -> None:
    path = corrupted(tmp_path, case, at(case.time, lambda _: "fast"))
    expected = f"{path}{case.place}: {text_of(case.time)}: is the text 'fast'; must be a number"
    assert expected in error_of(path)


@by_name
def test_wrong_unit(tmp_path: Path, case: Corruptible) -> None:
    path = corrupted(tmp_path, case, at(case.time, lambda value: value * case.wrong_unit))
    error = error_of(path)
    assert f"{path}{case.place}: {text_of(case.time)}: " in error
    assert "wrong unit" in error


@by_name
def test_not_a_number(tmp_path: Path, case: Corruptible) -> None:
    path = corrupted(tmp_path, case, at(case.time, lambda _: math.nan))
    assert f"{path}{case.place}: {text_of(case.time)}: is not a finite number" in error_of(path)


@by_name
def test_negative(tmp_path: Path, case: Corruptible) -> None:
    path = corrupted(tmp_path, case, at(case.time, lambda value: -value))
    error = error_of(path)
    assert f"{path}{case.place}: {text_of(case.time)}: -" in error
    assert "must be above 0" in error


@by_name
def test_truncated(tmp_path: Path, case: Corruptible) -> None:
    path = tmp_path / case.name
    data = (GOLDEN / case.name).read_bytes()
    path.write_bytes(data[: len(data) * 3 // 5])
    error = error_of(path)
    assert str(path) in error
    if path.suffix == ".yaml":
        assert "results" in error
        assert "is missing" in error
    else:
        assert "is not JSON" in error
        assert "is the file complete?" in error


@by_name
def test_empty(tmp_path: Path, case: Corruptible) -> None:
    path = tmp_path / case.name
    path.write_text(" \n", encoding="utf-8")
    assert error_of(path).startswith(f"{path}: is empty")


@by_name
def test_wrong_encoding(tmp_path: Path, case: Corruptible) -> None:
    path = tmp_path / case.name
    path.write_bytes((GOLDEN / case.name).read_text(encoding="utf-8").encode("utf-16"))
    assert error_of(path).startswith(f"{path}:1: is not UTF-8 text")


HEADER = "concurrency,input_tokens,output_tokens,tpot_ms,ttft_ms,e2e_ms\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("concurrency,input_tokens,tpot_ms\n1,2,3\n", ":1: has no column output_tokens"),
        (HEADER + "16,1000,101,fast,200,1200\n", ":2: tpot_ms: 'fast' is not a number"),
        (HEADER + "16,1000,101,0.01,200,\n", ":2: tpot_ms: would be 10 microseconds"),
        (HEADER + "16,1000,101,10,5e6,\n", ":2: ttft_ms: would be 5,000 s to the first token"),
        (HEADER + "16,1000,101,-10,200,1200\n", ":2: tpot_ms: -10 must be above 0"),
        (HEADER + "16,1000,101,inf,200,1200\n", ":2: tpot_ms: is not a finite number"),
        (HEADER + "16,1000,101,,200,\n", ":2: tpot_ms: is missing"),
        (HEADER + "16,1000,101,10,200,1200\n16,1000,10\n", ":3: has 3 cells, the header 6"),
        (HEADER, ": has no rows"),
        ("", ": is empty"),
        (
            HEADER.replace("concurrency", "concurency") + "16,1000,101,10,200,1200\n",
            ":1: unknown column 'concurency'; did you mean 'concurrency'?",
        ),
        (
            HEADER.replace("ttft_ms", "TTFT_ms") + "16,1000,101,10,200,1200\n",
            ":1: unknown column 'TTFT_ms'; did you mean 'ttft_ms'?",
        ),
        (HEADER.replace("tpot_ms", "tpot") + "16,1000,101,10,200,1200\n", ":1: column 'tpot'"),
        (HEADER.replace("e2e_ms", "isl_nominal") + "1,1,1,1,1,1\n", ":1: column 'input_tokens' st"),
    ],
)
def test_tables(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    assert f"{path}{expected}" in error_of(path)


def test_every_bad_row_is_told(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(HEADER + "16,1000,101,-1,200,\n" * 30, encoding="utf-8")
    lines = error_of(path).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("and 10 more; mend these first")


def test_first_token_in_tpot_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    # e2e / output = 1200 / 101 = 11.88; without the first token (1200 - 200) / 100 = 10
    path.write_text(HEADER + "16,1000,101,11.88,200,1200\n", encoding="utf-8")
    error = error_of(path)
    assert f"{path}:2: tpot_ms: is e2e / output tokens, 11.88 ms" in error
    assert "10 ms" in error


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"completed": 0}, "completed", "no request was completed"),
        ({"mean_tpot_ms": 0}, "mean_tpot_ms", "were the answers streamed?"),
        ({"mean_tpot_ms": 25.0}, "mean_tpot_ms", "is 25 ms, but (e2e - ttft) / (output - 1)"),
        ({"mean_ttft_ms": 1300.0}, "mean_ttft_ms", "longer than the whole request"),
        ({"p99_tpot_ms": 1.0}, "p99_tpot_ms", "less than a lower percentile"),
        ({"output_throughput": 156.2}, "output_throughput", "whole deployment, not of one GPU"),
        ({"max_concurrency": 4}, "max_concurrency", "are 14.85 at once"),
        ({"request_rate": "fast"}, "request_rate", "is the text 'fast'"),
        ({"tp": "two"}, "tp", "must be a whole number"),
        ({"spec_decode_acceptance_length": 0.4}, "spec_decode_acceptance_length", "at least 1"),
    ],
)
def test_what_cannot_be(tmp_path: Path, changes: dict[str, Any], field: str, expected: str) -> None:
    document = json.loads((GOLDEN / "vllm_serve.json").read_text(encoding="utf-8")) | changes
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    error = error_of(path)
    assert f"{path}: {field}: " in error
    assert expected in error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', "is not a benchmark result of a known format"),
        ("hello", "is not a benchmark result of a known format"),
        ("[]", "is an empty list"),
        ("[" * 100_000, "is nested too deeply"),
        ("- " * 100_000, ": cannot be read as "),
        ("when: 2026-13-45", "cannot be read as YAML"),
        ("a: [1, 2", ":1: cannot be read as JSON, YAML or CSV"),
        ('{"benchmarks": [], "metadata": {}}', "benchmarks: is empty"),
        ('{"version": "0.1", "run": {}, "scenario": {}}', "version: version 0.1 is not known"),
    ],
)
def test_other_files(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "file"
    path.write_text(text, encoding="utf-8")
    assert expected in error_of(path)


def test_folders_and_absent_files(tmp_path: Path) -> None:
    assert error_of(tmp_path) == f"{tmp_path}: is a folder; name the files in it"
    assert error_of(tmp_path / "none.json") == f"{tmp_path / 'none.json'}: does not exist"


def test_a_bad_line_of_json_lines_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    good = (GOLDEN / "vllm_append.jsonl").read_text(encoding="utf-8")
    path.write_text(good + '\n{"date": "2026', encoding="utf-8")
    assert error_of(path).startswith(f"{path}:3:")
