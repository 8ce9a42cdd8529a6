"""Files to parsed values: JSON, JSON Lines and YAML, told apart by content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from planner.calibrate.formats.node import Node
from planner.errors import InputError, Problem

MAX_BYTES: Final = 500_000_000
"""Larger files are per-request traces, not results; reading one would fill the memory."""

YAML_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(path: Path) -> str:
    """The text of a file. Raises InputError if there is none, naming file and reason."""
    file = str(path)
    try:
        if path.is_dir():
            raise InputError([Problem("is a folder", "name the files in it", file=file)])
        if not path.exists():
            raise InputError([Problem("does not exist", file=file)])
        if not path.is_file():
            raise InputError([Problem("is not a regular file", file=file)])
        if path.stat().st_size > MAX_BYTES:
            hint = "give the summary of the run, not its requests"
            raise InputError([Problem("is larger than 500 MB", hint, file=file)])
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError([Problem(f"cannot be read: {error}", file=file)]) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8 text (byte {error.start})"
        hint = "save it as UTF-8; a compressed file must be unpacked first"
        raise InputError([Problem(message, hint, file=file, line=line)]) from error
    if not text.strip():
        hint = "the benchmark may have stopped before it wrote"
        raise InputError([Problem("is empty", hint, file=file)])
    return text


def looks_like_json(text: str) -> bool:
    """Whether the text starts as a JSON object or list does."""
    return text.lstrip()[:1] in ("{", "[")


def json_nodes(text: str, file: str) -> list[Node]:
    """The objects of a JSON file, of a list in one, or of JSON Lines.

    Raises InputError with the line where reading stopped.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise InputError([Problem("is nested too deeply", file=file)]) from error
    except ValueError as error:
        lines = list(_filled_lines(text))
        if len(lines) > 1 and _is_json(lines[0][1]):
            return [_json_line(line, number, file) for number, line in lines]
        raise _json_error(error, file) from error
    if isinstance(value, list):
        if not value:
            raise InputError([Problem("is an empty list", "it holds no result", file=file)])
        return list(Node(value, file).items())
    return [Node(value, file)]


def yaml_node(text: str, file: str) -> Node:
    """The value of a YAML file. Raises InputError with the line where reading stopped."""
    try:
        value = yaml.load(text, Loader=YAML_LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = min(mark.line, text.count("\n")) + 1 if mark is not None else None
        reason = getattr(error, "problem", None) or "it is not YAML"
        message = f"cannot be read as JSON, YAML or CSV: {reason}"
        raise InputError([Problem(message, file=file, line=line)]) from error
    except (ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        # Values that YAML's types refuse, such as the 35th of a month.
        message = f"cannot be read as YAML: {error}"
        raise InputError([Problem(message, file=file)]) from error
    return Node(value, file)


def _filled_lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_line(line: str, number: int, file: str) -> Node:
    try:
        value = json.loads(line)
    except RecursionError as error:
        raise InputError([Problem("is nested too deeply", file=file, line=number)]) from error
    except ValueError as error:
        raise _json_error(error, file, number) from error
    return Node(value, file, line=number)


def _json_error(error: ValueError, file: str, line: int | None = None) -> InputError:
    if not isinstance(error, json.JSONDecodeError):
        return InputError([Problem(f"is not JSON: {error}", file=file, line=line)])
    hint = "is the file complete? a benchmark that was stopped leaves a part"
    message = f"is not JSON: {error.msg}"
    at = error.lineno if line is None else line
    return InputError([Problem(message, hint, file=file, line=at, column=error.colno)])
