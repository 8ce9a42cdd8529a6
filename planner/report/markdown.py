"""Document -> Markdown with pipe tables, as GitHub and most wikis show it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from planner.plan import Plan
from planner.report.blocks import Block, Bullets, Document, Paragraph, Table
from planner.report.context import document

SIGNS: Final = re.compile(
    r"[\\`|~]"  # code, table cells, struck-out text
    r"|\*(?=\S)|(?<=\S)\*"  # emphasis, unless the star stands alone
    r"|(?<!\w)_|_(?!\w)"  # emphasis, unless inside a word
    r"|<(?=[A-Za-z/!?])|(?<=\])\("  # HTML and links
    r"|^[#>+](?=\s|$)|^-(?=\s)"  # headings, quotes and lists at the start
)
"""Signs that would format the text."""


def plan_markdown(plan: Plan) -> str:
    """The report of a plan as Markdown text with a final newline."""
    return render(document(plan))


def render(report: Document) -> str:
    """A document as Markdown text with a final newline."""
    parts = [f"# {_plain(report.title)}"]
    for index, paragraph in enumerate(report.lead):
        text = _plain(paragraph.text)
        parts.append(f"**{text}**" if index == 0 else text)
    for section in report.sections:
        parts.append(f"## {_plain(section.title)}")
        parts += ["\n".join(_lines(block)) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _lines(block: Block) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield _plain(block.text)
    elif isinstance(block, Bullets):
        for item in block.items:
            yield f"- {_plain(item)}"
    else:
        yield from _table(block)


def _table(table: Table) -> Iterator[str]:
    yield _row(tuple(_plain(column.heading) for column in table.columns))
    yield _row(tuple("---:" if column.numeric else "---" for column in table.columns))
    for row in table.rows:
        yield _row(tuple(_plain(cell.strip()) for cell in row))
    if table.total is not None and len(table.rows) > 1:
        cells = (cell.strip() for cell in table.total)
        yield _row(tuple(f"**{_plain(cell)}**" if cell else "" for cell in cells))


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line; signs without a meaning are left alone."""
    return SIGNS.sub(r"\\\g<0>", " ".join(text.split()))
