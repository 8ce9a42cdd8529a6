"""JSON-lines traces: Mooncake, and plain ones with the same names as a CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from planner.errors import InputError, Problem
from planner.traces.columns import (
    LARGEST_ID,
    LATEST_S,
    Columns,
    find_columns,
    plain,
    seconds,
    tokens,
)
from planner.traces.rows import Rows


def read_json_lines(lines: Iterator[str], file: str) -> Rows:
    """Every line of a JSON-lines trace; the keys of the first say what they are.

    A bare `timestamp` beside `input_length` is Mooncake's and counts milliseconds. Raises
    InputError where the first object lacks a value. Bad lines are collected in the result.
    """
    rows: Rows | None = None
    columns: Columns | None = None
    scale = 1.0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError):
            item = None
        if rows is None or columns is None:
            if not isinstance(item, dict):
                message = "is not a JSON object"
                raise InputError([Problem(message, "one request a line", file=file, line=number)])
            columns = find_columns([*item], file, number)
            rows = Rows(file, "blocks" in columns.index, "model" in columns.index)
            mooncake = (columns.name["time"], columns.name["input"]) == (
                "timestamp",
                "input_length",
            )
            scale = 1e-3 if mooncake else columns.scale
        if not isinstance(item, dict):
            rows.refuse(number, "", "is not a JSON object", "one request a line")
        else:
            _take(item, number, columns, rows, scale)
    if rows is None:
        raise InputError([Problem("is empty", file=file)])
    return rows


def _take(item: dict[str, Any], line: int, columns: Columns, rows: Rows, scale: float) -> None:
    found: dict[str, Any] = {}
    for kind, name in columns.name.items():
        if name not in item:
            near = [key for key in item if plain(key) == plain(name)]
            hint = f"it has {near[0]!r}" if near else "give every line the keys of the first"
            rows.refuse(line, name, "is missing", hint)
            return
        try:
            found[kind] = _READERS[kind](item[name])
        except ValueError as error:
            rows.refuse(line, name, str(error), "")
            return
    rows.time_s.append(found["time"] * scale)
    rows.input_tokens.append(found["input"])
    rows.output_tokens.append(found["output"])
    if rows.has_blocks:
        rows.block_ids.append(found["blocks"])
    if rows.has_model:
        rows.model.append(found["model"])


def _number(value: Any) -> float:
    if isinstance(value, str):
        return seconds(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is not a number")
    if not -LATEST_S * 1e3 < value < LATEST_S * 1e3:
        raise ValueError(f"is {value}, which is no time")
    return float(value)


def _tokens(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is not a whole number of tokens")
    return tokens(value)


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(each) is not int for each in value):
        raise ValueError("is not a list of whole numbers")
    return tuple(each % LARGEST_ID for each in value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not a text")
    return value


_READERS = {"time": _number, "input": _tokens, "output": _tokens, "blocks": _ids, "model": _text}
