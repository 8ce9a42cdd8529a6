"""The parts of a report, free of any output format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tone = Literal["plain", "good", "warning", "bad"]


@dataclass(frozen=True, slots=True)
class Column:
    """Heading of a table column; `numeric` ones are aligned to the right.

    Where space is short, `short` stands for the heading, a line for each of its words.
    """

    heading: str
    numeric: bool = False
    short: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text, one row per thing.

    Where `grouped`, rows that share their first cell stand together, and it may be shown once
    above them where space is short. `total` is a last row, set apart.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    grouped: bool = False
    total: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Sentences, and what they mean for the reader."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]
    tone: Tone = "plain"


Block = Table | Paragraph | Bullets


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A report: title, the answer in a few sentences, then the details."""

    title: str
    lead: tuple[Paragraph, ...]
    sections: tuple[Section, ...]
