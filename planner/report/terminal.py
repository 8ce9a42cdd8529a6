"""Document -> text for a terminal, a pipe or a file: aligned, without frames, nothing cut off.

Colour is used on a terminal only; NO_COLOR and FORCE_COLOR are respected. A table that is wider
than the terminal is shown row by row instead; in a pipe its lines run on, for grep and awk.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, Self, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from planner.plan import Plan
from planner.report.blocks import Block, Bullets, Column, Document, Paragraph, Table, Tone
from planner.report.context import document
from planner.report.numbers import MISSING

PROSE_WIDTH: Final = 100
"""Longest line of running text; longer ones are hard to read."""
GAP: Final = "  "
STYLES: Final[Mapping[Tone, str]] = {
    "plain": "",
    "good": "green",
    "warning": "yellow",
    "bad": "bold red",
}


def print_plan(plan: Plan, stream: TextIO) -> None:
    """Write the report of a plan to a terminal, or plainly to anything else."""
    print_document(document(plan), stream)


def print_document(report: Document, stream: TextIO) -> None:
    """Write a report to a terminal, or plainly to anything else."""
    interactive = stream.isatty()
    seen = Console(file=stream)
    text = render(
        report,
        width=seen.width if interactive else None,
        colour=seen.is_terminal and not seen.is_dumb_terminal,
    )
    # A stream that cannot hold a middle dot should show a question mark, not fail.
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, errors="replace").decode(encoding))
    stream.flush()


def render(report: Document, width: int | None = None, colour: bool = False) -> str:
    """The report as text. `width` in columns; None where lines of tables may run on."""
    prose = PROSE_WIDTH if width is None else max(min(width, PROSE_WIDTH), 20)
    target = io.StringIO()
    console = Console(
        file=target,
        # Measured above; lines are laid out here, and the console must not fold them.
        width=10_000,
        force_terminal=colour,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )

    def put(line: Text) -> None:
        line.rstrip()
        console.print(line, no_wrap=True, overflow="ignore", crop=False)

    put(Text(report.title, "bold"))
    for paragraph in report.lead:
        for line in _wrapped(paragraph.text.split(), STYLES[paragraph.tone], prose):
            put(line)
    for section in report.sections:
        put(Text())
        put(Text(section.title, "bold underline"))
        for index, block in enumerate(section.blocks):
            if index and isinstance(block, Table):
                put(Text())
            for line in _lines(block, prose, width):
                put(line)
    return target.getvalue()


def _lines(block: Block, prose: int, width: int | None) -> Iterator[Text]:
    if isinstance(block, Paragraph):
        yield from _wrapped(block.text.split(), STYLES[block.tone], prose)
    elif isinstance(block, Bullets):
        for item in block.items:
            yield from _wrapped(item.split(), STYLES[block.tone], prose, "- ", "  ")
    else:
        grid = _Grid.of(block)
        if grid.width > (width or PROSE_WIDTH):
            grid = grid.narrower()
        fits = width is None or grid.width <= width
        yield from grid.aligned() if fits else _records(grid, prose)


def _wrapped(
    words: Sequence[str], style: str, width: int, first: str = "", rest: str = ""
) -> Iterator[Text]:
    """Lines of at most `width` columns; a longer word has a line of its own and is not cut."""
    start, line = first, ""
    for word in words:
        longer = f"{line} {word}" if line else word
        if line and cell_len(start) + cell_len(longer) > width:
            yield Text(start + line, style)
            start, line = rest, word
        else:
            line = longer
    yield Text(start + line, style)


# ---- tables -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Grid:
    """Rows under headings in groups; a table without groups has one, of no name."""

    columns: tuple[Column, ...]
    groups: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    total: tuple[str, ...] | None
    headings: tuple[tuple[str, ...], ...]
    """Of each column, in one line or several."""

    @classmethod
    def of(cls, table: Table) -> Self:
        # A total of one row would only repeat it.
        total = table.total if len(table.rows) > 1 else None
        columns = table.columns
        groups: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (("", table.rows),)
        if table.grouped:
            columns = columns[1:]
            total = total and (total[0], *total[2:])
            groups = tuple(
                (name, tuple((row[1].removeprefix(f"{name}/"), *row[2:]) for row in rows))
                for name, rows in groupby(table.rows, key=lambda row: row[0])
            )
        return cls(columns, groups, total, tuple((column.heading,) for column in columns))

    def narrower(self) -> _Grid:
        """The same with short headings where they are wider than the cells."""
        headings = tuple(
            tuple((column.short or column.heading).split())
            if cell_len(column.heading) > width
            else (column.heading,)
            for column, width in zip(self.columns, self._widths(headings=False), strict=True)
        )
        return replace(self, headings=headings)

    @property
    def width(self) -> int:
        """Columns of the terminal that it takes."""
        widths = self._widths()
        return sum(widths) + len(GAP) * (len(widths) - 1)

    def _widths(self, headings: bool = True) -> list[int]:
        rows = [row for _, group in self.groups for row in group]
        rows += [] if self.total is None else [self.total]
        widths = [max(map(cell_len, cells)) for cells in zip(*rows, strict=True)]
        if not headings:
            return widths
        return [
            max(width, *map(cell_len, heading))
            for width, heading in zip(widths, self.headings, strict=True)
        ]

    def aligned(self) -> Iterator[Text]:
        """Lines of aligned columns."""
        widths = self._widths()

        def line(cells: Sequence[str]) -> str:
            return GAP.join(
                " " * (width - cell_len(cell)) + cell
                if column.numeric
                else cell + " " * (width - cell_len(cell))
                for cell, width, column in zip(cells, widths, self.columns, strict=True)
            )

        height = max(map(len, self.headings))
        # Headings stand on the line above the figures.
        stacked = [("",) * (height - len(each)) + each for each in self.headings]
        for words in zip(*stacked, strict=True):
            yield Text(line(words), "dim")
        for name, rows in self.groups:
            if name:
                yield Text(name, "cyan")
            for row in rows:
                yield Text(line(row))
        if self.total is not None:
            yield Text(line(self.total), "bold")


def _records(grid: _Grid, width: int) -> Iterator[Text]:
    """Row by row: its first cell, then every other one behind its heading."""
    groups = grid.groups if grid.total is None else (*grid.groups, ("", (grid.total,)))
    for name, rows in groups:
        if name:
            yield Text(name, "cyan")
        for row in rows:
            yield Text(row[0], "bold")
            # Each part is one word to the wrapping, so that a heading stays with its value.
            parts = [
                f"{column.heading} {cell.strip()}"
                for column, cell in zip(grid.columns[1:], row[1:], strict=True)
                if cell.strip() not in ("", MISSING)
            ]
            words = [f"{part}," for part in parts[:-1]] + parts[-1:]
            yield from _wrapped(words, "", width, GAP, GAP)
