"""The pages of the documentation, their fenced blocks, and the `planner` commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from planner.cli import cli

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
README: Final = ROOT / "README.md"
PAGES: Final = (README, *sorted(DOCS.glob("*.md")))
PROMPT: Final = "$ "
SHELLS: Final = ("console", "bash", "sh")
FENCE: Final = re.compile(r"^```(\w*)[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
OPERATORS: Final = frozenset({"|", "||", "&&", ";", "&", ">", ">>", "<", "2>"})


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its text, and the line above it."""

    page: Path
    language: str
    text: str
    above: str


@dataclass(frozen=True, slots=True)
class Run:
    """A command at a prompt and the lines printed below it."""

    arguments: tuple[str, ...]
    output: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        above = text[: found.start()].rstrip("\n").rpartition("\n")[2]
        yield Block(page, found[1], found[2], above.strip())


def between(page: Path, name: str) -> str:
    """What stands between `<!-- NAME: start -->` and `<!-- NAME: end -->`."""
    text = page.read_text(encoding="utf-8")
    return text.split(f"<!-- {name}: start -->\n")[1].split(f"<!-- {name}: end -->")[0]


def replaced(text: str, name: str, inside: str) -> str:
    """The text with something else between the marks of that name."""
    start, end = f"<!-- {name}: start -->\n", f"<!-- {name}: end -->"
    before, rest = text.split(start)
    return before + start + inside + end + rest.split(end)[1]


def table_rows(text: str) -> list[list[str]]:
    """Cells of the pipe tables in a text, without headings and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = []
    for index, line in enumerate(lines):
        rule = set(line) <= set("|- :")
        heads = index + 1 < len(lines) and set(lines[index + 1]) <= set("|- :")
        if not rule and not heads:
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            rows.append([cell.strip().replace("\\|", "|") for cell in cells])
    return rows


def shell_lines(block: Block) -> Iterator[str]:
    """Commands of a shell block: after prompts where it has prompts, else every line."""
    lines = block.text.replace("\\\n", " ").splitlines()
    prompted = [line.removeprefix(PROMPT) for line in lines if line.startswith(PROMPT)]
    yield from prompted or lines


def planner_arguments(line: str) -> Iterator[list[str]]:
    """The arguments of every call of `planner` in one line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    call: list[str] = []
    for word in [*lexer, ";"]:
        if word not in OPERATORS:
            call.append(word)
            continue
        if call and Path(call[0]).name == "planner":
            yield call[1:]
        elif call[1:3] == ["-m", "planner"]:
            yield call[3:]
        # What follows a redirection is a file, and is no call.
        call = [] if word not in {">", ">>", "<", "2>"} else ["file"]


def parse(arguments: list[str]) -> None:
    """Parse a command line as click does, without running it. Raises click.UsageError."""
    try:
        group = cli.make_context("planner", list(arguments))
        rest = [*group._protected_args, *group.args]
        if not rest:
            return
        name, command, remaining = cli.resolve_command(group, rest)
        assert command is not None
        with group:
            command.make_context(name, remaining, parent=group)
    except click.exceptions.Exit:
        return  # --help and --version end here


def runs(block: Block) -> Iterator[Run]:
    """The `planner` commands at prompts in a block, with their output."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    for part in parts:
        line, _, output = part.partition("\n")
        (arguments,) = planner_arguments(line)
        yield Run(tuple(arguments), tuple(output.splitlines()))
