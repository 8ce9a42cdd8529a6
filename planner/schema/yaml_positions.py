"""YAML read safely, with the line and column of every value.

PyYAML's event stream (its C parser where installed) is turned into plain dicts, lists and
scalars with an explicit stack, so neither the parser nor this module recurses on nesting.

The dialect is the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema): only
`true` and `false` are booleans, so `NO` stays the country; `1:30` is text; `1e3` is a number.
Refused, each with its place: anchors and aliases, tags, merge keys, duplicate keys, keys that
are not text, nesting deeper than 50, several documents, numbers beyond 1e18, NaN and infinity,
control characters, empty files, files over 5 MB.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from planner.errors import InputError, Problem

FieldPath = tuple[str | int, ...]
"""Keys and list indices from the top of the file down to a value."""
Positions = dict[FieldPath, tuple[int, int]]
"""Line and column, both counted from 1."""

MAX_BYTES: Final = 5_000_000
MAX_DEPTH: Final = 50
MAX_NUMBER: Final = 1e18
MAX_PROBLEMS: Final = 50
"""Structural mistakes collected before reading stops: more than anybody reads."""

FAST_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# YAML's printable characters; a lone surrogate is not among them.
_UNPRINTABLE: Final = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEAN: Final = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_DECIMAL: Final = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE: Final = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LONGEST_INTEGER_DIGITS: Final = 40
_START_OF_NUMBER: Final = frozenset("+-.0123456789")


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """A parsed file: plain values, and where each value and each key stands."""

    value: object
    positions: Positions
    key_positions: Positions


def shown(text: str, limit: int = 60) -> str:
    """`text` in quotes, control characters escaped and long text cut, fit for a terminal."""
    return repr(text if len(text) <= limit else text[:limit] + "…")


def field_name(path: FieldPath) -> str:
    """The path as people write it: `workloads[2].slo[0].limit_ms`."""
    name = ""
    for part in path:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            plain = part if re.fullmatch(r"[\w\-]{1,60}", part) else shown(part)
            name += f".{plain}" if name else plain
    return name


def read_text_file(path: str | Path) -> str:
    """The text of a UTF-8 file of at most 5 MB (a byte order mark is dropped).

    Raises InputError for a missing file, a directory, a device, no permission, a file that is
    too large, binary, or not UTF-8.
    """
    path = Path(path)
    name = str(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError([Problem("is a directory", "name a file in it", file=name)])
        if not stat.S_ISREG(status.st_mode):
            raise InputError([Problem("is not a regular file", "give a text file", file=name)])
        if status.st_size > MAX_BYTES:
            raise InputError([_too_large(status.st_size, name)])
        with path.open("rb") as stream:
            # The size may have changed since it was asked for.
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        message = "no such file"
        if path.is_symlink():
            message = "is a link to a file that does not exist"
        raise InputError([Problem(message, "check the path", file=name)]) from None
    except PermissionError:
        problem = Problem("cannot be read: permission denied", file=name)
        raise InputError([problem]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError([Problem(f"cannot be read: {reason}", file=name)]) from None
    if len(data) > MAX_BYTES:
        raise InputError([_too_large(len(data), name)])
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError([Problem("is UTF-16 text", "save it as UTF-8", file=name)])
    if b"\0" in data:
        raise InputError([Problem("is a binary file", "give a YAML text file", file=name)])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        message = f"is not UTF-8 text (byte 0x{data[error.start]:02x})"
        problem = Problem(message, "save it as UTF-8", file=name, line=line, column=column)
        raise InputError([problem]) from None


def load_yaml_with_positions(text: str, file: str) -> tuple[object, Positions]:
    """The plain value of a YAML text, and the line and column of every value in it.

    Raises InputError with every structural mistake (see the module's text); a syntax error ends
    the reading.
    """
    document = parse_yaml(text, file)
    return document.value, document.positions


def parse_yaml(text: str, file: str, loader: Any = FAST_LOADER) -> YamlDocument:
    """As `load_yaml_with_positions`, with the places of keys too."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise InputError([_too_large(size, file)])
    text = text.removeprefix("\ufeff")
    if (bad := _UNPRINTABLE.search(text)) is not None:
        line = text.count("\n", 0, bad.start()) + 1
        column = bad.start() - text.rfind("\n", 0, bad.start())
        message = f"control character U+{ord(bad.group()):04X}"
        raise InputError([Problem(message, "remove it", file=file, line=line, column=column)])
    return _Builder(file).build(_events(text, file, loader))


@dataclass(slots=True)
class _Frame:
    """A mapping or a list that is still open."""

    value: dict[str, Any] | list[Any]
    path: FieldPath
    key: str | None = None
    key_position: tuple[int, int] = (1, 1)

    def awaits_key(self) -> bool:
        return self.key is None and isinstance(self.value, dict)


class _StopReading(Exception):
    """Reading further would help nobody: too many mistakes, or too deep."""


@dataclass(slots=True)
class _Builder:
    """Turns the event stream into values, collecting mistakes.

    After a mistake the values are kept going only to find further ones; they are not returned.
    """

    file: str
    problems: list[Problem] = field(default_factory=list)
    positions: Positions = field(default_factory=dict)
    key_positions: Positions = field(default_factory=dict)
    stack: list[_Frame] = field(default_factory=list)
    documents: int = 0
    top: object = None

    def build(self, events: Iterator[Any]) -> YamlDocument:
        try:
            for event in events:
                self._take(event)
        except _StopReading:
            pass
        except InputError as error:  # a syntax error: report it after what was found before it
            raise InputError([*self.problems, *error.problems]) from None
        if self.problems:
            raise InputError(self.problems)
        if self.top is None:
            raise InputError([Problem("the file is empty", file=self.file, line=1, column=1)])
        return YamlDocument(self.top, self.positions, self.key_positions)

    def _take(self, event: Any) -> None:
        place = (event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.ScalarEvent):
            self._refuse_decoration(event, place)
            self._scalar(event, place)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._refuse_decoration(event, place)
            self._open({} if isinstance(event, yaml.MappingStartEvent) else [], place)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self.stack.pop()
        elif isinstance(event, yaml.AliasEvent):
            hint = "write the value out where it is used"
            self._problem(place, "aliases are not allowed", hint)
            if self.stack and self.stack[-1].awaits_key():
                raise _StopReading
            self._add(None, place)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                hint = "keep one document per file"
                self._problem(place, "a second document starts here", hint)
                raise _StopReading

    def _refuse_decoration(self, event: Any, place: tuple[int, int]) -> None:
        if event.anchor is not None:
            hint = f"remove {shown('&' + event.anchor)}"
            self._problem(place, "anchors are not allowed", hint)
        if event.tag is not None:
            self._problem(place, "tags are not allowed", f"remove {shown(event.tag)}")

    def _open(self, value: dict[str, Any] | list[Any], place: tuple[int, int]) -> None:
        if len(self.stack) >= MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels"
            self._problem(place, message, "no field needs such nesting")
            raise _StopReading
        if self.stack and self.stack[-1].awaits_key():
            self._problem(place, "a key must be text", "put lists and mappings after the colon")
            raise _StopReading
        self.stack.append(_Frame(value, self._add(value, place)))

    def _scalar(self, event: Any, place: tuple[int, int]) -> None:
        plain = event.style in (None, "")
        frame = self.stack[-1] if self.stack else None
        if frame is not None and frame.awaits_key():
            self._key(frame, event.value, plain, place)
            return
        if plain and event.value == "" and frame is not None and frame.key is not None:
            # An absent value has no place of its own: point at its key.
            place = frame.key_position
        self._add(self._resolve(event.value, place) if plain else event.value, place)

    def _key(self, frame: _Frame, text: str, plain: bool, place: tuple[int, int]) -> None:
        path = (*frame.path, text)
        if plain and text == "<<":
            self._problem(place, "merge keys are not allowed", "write the fields out")
        elif plain and not isinstance(self._resolve(text, place), str):
            self._problem(place, f"the key {shown(text)} is not text", "put it in quotes")
        elif text in frame.value:
            first = self.key_positions.get(path, place)[0]
            message = f"duplicate key {shown(text)} (first given in line {first})"
            self._problem(place, message, "keep one of the two")
        else:
            self.key_positions[path] = place
        frame.key, frame.key_position = text, place

    def _add(self, value: Any, place: tuple[int, int]) -> FieldPath:
        """Put a value where it belongs; its path."""
        if not self.stack:
            self.top = value
            self.positions[()] = place
            return ()
        frame = self.stack[-1]
        if isinstance(frame.value, list):
            path: FieldPath = (*frame.path, len(frame.value))
            frame.value.append(value)
        else:
            assert frame.key is not None  # the events alternate key and value
            path = (*frame.path, frame.key)
            frame.value[frame.key] = value
            frame.key = None
        self.positions[path] = place
        return path

    def _resolve(self, text: str, place: tuple[int, int]) -> object:
        """A plain scalar by the core schema of YAML 1.2."""
        if text in _NULL:
            return None
        if text in _BOOLEAN:
            return _BOOLEAN[text]
        if text[0] not in _START_OF_NUMBER:
            return text
        number: float
        if _DECIMAL.fullmatch(text):
            # Python refuses to convert integers of thousands of digits: a float will do there.
            number = int(text) if len(text) <= _LONGEST_INTEGER_DIGITS else float(text)
        elif _OTHER_BASE.fullmatch(text):
            number = int(text, 8 if text[1] == "o" else 16)
        elif _FLOAT.fullmatch(text):
            number = float(text)
        elif _NOT_FINITE.fullmatch(text):
            self._problem(place, f"{text} is not a finite number", "give a finite number")
            return 0.0
        else:
            return text
        if abs(number) > MAX_NUMBER:
            hint = f"numbers go up to {MAX_NUMBER:g}"
            self._problem(place, f"the number {shown(text, 30)} is too large", hint)
            return 0.0
        return number

    def _problem(self, place: tuple[int, int], message: str, hint: str) -> None:
        line, column = place
        self.problems.append(Problem(message, hint, file=self.file, line=line, column=column))
        if len(self.problems) >= MAX_PROBLEMS:
            raise _StopReading


def _events(text: str, file: str, loader: Any) -> Iterator[Any]:
    """The parser's events; its syntax errors become InputError."""
    try:
        yield from yaml.parse(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = error.problem or error.context or "cannot be read"
        hint = ""
        if error.context and error.problem:
            hint = error.context
            if error.context_mark is not None:
                hint += f" that starts in line {error.context_mark.line + 1}"
        if "nesting depth" in message:  # the C parser's own limit, met while it looks ahead
            message, hint = f"nested deeper than {MAX_DEPTH} levels", "no field needs such nesting"
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (None, None)
        if mark is not None and _tab_at(text, mark.line):
            hint = "indent with spaces, not with tabs"
        problem = Problem(f"not valid YAML: {message}", hint, file=file, line=line, column=column)
        raise InputError([problem]) from None


def _tab_at(text: str, line: int) -> bool:
    """Whether the indentation of a line holds a tab."""
    lines = text.split("\n", line + 1)
    if line >= len(lines):
        return False
    indentation = lines[line][: len(lines[line]) - len(lines[line].lstrip())]
    return "\t" in indentation


def _too_large(size: int, file: str) -> Problem:
    message = f"is {size / 1e6:.1f} MB, larger than the {MAX_BYTES / 1e6:g} MB that are read"
    return Problem(message, "split it, or leave out what is not an instance", file=file)
