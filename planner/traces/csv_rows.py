"""CSV traces: Azure 2023 and 2024, BurstGPT, and plain ones."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from planner.errors import InputError, Problem
from planner.traces.columns import (
    MOST_TOKENS,
    Columns,
    block_ids,
    find_columns,
    hour_of_day,
    seconds,
    tokens,
)
from planner.traces.rows import Rows

CHUNK_ROWS: Final = 65_536
"""Rows converted at once: enough to be fast, little enough to hold in memory."""

_Row = tuple[int, list[str]]


def read_csv(lines: Iterator[str], file: str) -> Rows:
    """Every row of a CSV trace; the header says what the columns are.

    Raises InputError where the header lacks a column, or the text is no CSV. Bad rows are
    collected in the result.
    """
    reader = csv.reader(lines)
    try:
        header = next((row for row in reader if row), [])
        columns = find_columns(header, file, reader.line_num)
        rows = Rows(file, "blocks" in columns.index, "model" in columns.index)
        numbered = ((reader.line_num, row) for row in reader if row)
        while chunk := [*islice(numbered, CHUNK_ROWS)]:
            if rows.start_hour is None and not rows.time_s:
                _clock(chunk, columns, rows)
            try:
                _take(chunk, columns, rows)
            except (ValueError, IndexError):
                _take_one_by_one(chunk, columns, rows)
    except csv.Error as error:
        problem = Problem(f"is no CSV: {error}", file=file, line=reader.line_num)
        raise InputError([problem]) from error
    return rows


def _clock(chunk: Sequence[_Row], columns: Columns, rows: Rows) -> None:
    """Note the hour of the day of the first row whose time can be read."""
    place = columns.index["time"]
    for _, row in chunk:
        try:
            text = row[place]
            hour = hour_of_day(text)
        except (ValueError, IndexError):
            continue
        rows.start_hour = None if hour is None else (seconds(text), hour)
        return


def _take(chunk: Sequence[_Row], columns: Columns, rows: Rows) -> None:
    """A whole chunk at once, column by column; raises ValueError if any row is bad."""
    if any(len(row) != columns.width for _, row in chunk):
        raise ValueError
    values = [*zip(*(row for _, row in chunk), strict=True)]
    index = columns.index
    scale = columns.scale
    time_s = [seconds(text) * scale for text in values[index["time"]]]
    inputs = [*map(int, values[index["input"]])]
    outputs = [*map(int, values[index["output"]])]
    if any(min(column) < 0 or max(column) > MOST_TOKENS for column in (inputs, outputs)):
        raise ValueError
    blocks = [*map(block_ids, values[index["blocks"]])] if rows.has_blocks else []
    rows.time_s += time_s
    rows.input_tokens += inputs
    rows.output_tokens += outputs
    rows.block_ids += blocks
    if rows.has_model:
        rows.model += values[index["model"]]


def _take_one_by_one(chunk: Sequence[_Row], columns: Columns, rows: Rows) -> None:
    """Row by row, each bad one refused with its place."""
    readers: tuple[tuple[str, Callable[[str], Any], list[Any], str], ...] = (
        ("time", seconds, rows.time_s, "give seconds, or a date and time as 2024-05-10 00:00:01"),
        ("input", tokens, rows.input_tokens, "give a whole number of tokens"),
        ("output", tokens, rows.output_tokens, "give a whole number of tokens"),
        ("blocks", block_ids, rows.block_ids, "give ids of blocks such as 0 14-27"),
        ("model", str, rows.model, ""),
    )
    used = [reader for reader in readers if reader[0] in columns.index]
    for line, row in chunk:
        if len(row) != columns.width:
            message = f"has {len(row)} columns, the header {columns.width}"
            rows.refuse(line, "", message, "give every row all columns")
            continue
        found = []
        for kind, read, _, hint in used:
            try:
                found.append(read(row[columns.index[kind]]))
            except ValueError as error:
                rows.refuse(line, columns.name[kind], str(error), hint)
                break
        else:
            found[0] *= columns.scale
            for (_, _, into, _), value in zip(used, found, strict=True):
                into.append(value)
