"""Files of traces and metrics: opened, unpacked, and told apart by their first line."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from planner.errors import InputError, Problem
from planner.traces.csv_rows import read_csv
from planner.traces.json_rows import read_json_lines
from planner.traces.trace import Trace

if TYPE_CHECKING:
    from planner.traces.prometheus import MetricsDump

_GZIP: Final = b"\x1f\x8b"
_HEAD_BYTES: Final = 65_536
BLOCK_TOKENS: Final = 512
"""Of Mooncake's traces, and of others that do not say."""


def read_trace(path: str | Path, *, block_tokens: int = BLOCK_TOKENS) -> Trace:
    """The trace in a file: Azure, BurstGPT or plain CSV, or Mooncake's JSON lines; also .gz.

    `block_tokens` is the size of the blocks of prompts where the trace has them. Raises
    InputError with every bad row (up to ten), or with what the file is instead of a trace.
    """
    found = read_file(path, block_tokens=block_tokens)
    if not isinstance(found, Trace):
        message = "is a dump of metrics, and has no single requests"
        raise InputError([Problem(message, "give a trace", file=str(path))])
    return found


def read_file(path: str | Path, *, block_tokens: int = BLOCK_TOKENS) -> Trace | MetricsDump:
    """As `read_trace`, or the result of a Prometheus range query where the file is one."""
    file = str(path)
    with _opened(Path(path)) as stream:
        first = next((line for line in stream if line.strip()), "")
        if not first:
            raise InputError([Problem("is empty", "give a trace or a dump", file=file)])
        lines = chain([first], stream)
        start = first.lstrip()[:1]
        if start in "{[":
            head = _parsed(first)
            if isinstance(head, dict) and not ({"data", "status", "resultType"} & head.keys()):
                return read_json_lines(lines, file).trace(block_tokens)
            return _metrics(lines, file)
        return read_csv(lines, file).trace(block_tokens)


def _metrics(lines: Iterator[str], file: str) -> MetricsDump:
    from planner.traces.prometheus import metrics_from

    text = "".join(lines)
    try:
        document = json.loads(text)
    except RecursionError:
        raise InputError([Problem("is nested too deeply", file=file)]) from None
    except ValueError as error:
        line = getattr(error, "lineno", None)
        hint = "save what /api/v1/query_range returns, or one request a line"
        raise InputError([Problem(f"is no JSON: {error}", hint, file=file, line=line)]) from None
    return metrics_from(document, file)


def _parsed(line: str) -> Any:
    """A line as JSON, None where it is only the beginning of a longer document."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The text of a file, unpacked if need be; what goes wrong on the way is an InputError."""
    file = str(path)
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == _GZIP
            with gzip.open(raw) if packed else raw as binary:
                head = binary.peek(_HEAD_BYTES)
                if b"\0" in head:
                    hint = "give a CSV or JSON file in UTF-8, as it is or packed by gzip"
                    raise InputError([Problem("is not a text", hint, file=file)])
                yield io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
    except UnicodeDecodeError as error:
        problem = Problem("is not a text in UTF-8", "save it as UTF-8", file=file)
        raise InputError([problem]) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError([Problem(f"cannot be unpacked: {error}", file=file)]) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError([Problem(f"cannot be read: {reason}", file=file)]) from error
