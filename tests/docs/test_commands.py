"""docs/commands.md has every command and option, and no page mentions one that does not exist.

`python tests/docs/test_commands.py` rewrites the tables of options there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from docs_pages import (
    DOCS,
    PAGES,
    ROOT,
    SHELLS,
    between,
    blocks,
    parse,
    planner_arguments,
    replaced,
    shell_lines,
    table_rows,
)

from planner import cli
from planner.errors import InputError, NoPlanError, PlannerError, SolverError

PAGE = DOCS / "commands.md"
NAMES = ("planner", *cli.COMMANDS)
SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")


def command(name: str) -> click.Command:
    """A command by its name; `planner` is the group."""
    if name == "planner":
        return cli.cli
    found = cli.cli.get_command(click.Context(cli.cli), name)
    assert found is not None
    return found


def options(name: str) -> list[click.Option]:
    """Every option of a command but --help, which all have."""
    return [each for each in command(name).params if isinstance(each, click.Option)]


def metavar(option: click.Option, context: click.Context) -> str:
    """What follows the option: nothing for flags."""
    if option.is_flag or option.count:
        return ""
    written = option.make_metavar(context)
    return {"INTEGER RANGE": " N", "TEXT": " NAME"}.get(written, f" {written}")


def option_table(name: str) -> str:
    """The options of a command as a table."""
    if not options(name):
        return "\nNo options of its own.\n\n"
    context = click.Context(command(name))
    text = "\n| option | default | meaning |\n| --- | --- | --- |\n"
    for option in options(name):
        spelled = ", ".join(option.opts)
        meaning = (option.help or "").replace("|", "\\|")
        default = "required" if option.required else "–"
        shown = re.search(r" \[default: (.+)\]$", meaning)
        if shown:
            default, meaning = shown[1], meaning[: shown.start()]
        elif option.show_default and option.default is not None:
            default = f"`{option.default}`"
        text += f"| `{spelled}{metavar(option, context)}` | {default} | {meaning} |\n"
    return text + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_documented(name: str) -> None:
    assert between(PAGE, f"options {name}") == option_table(name), (
        "run python tests/docs/test_commands.py"
    )
    assert all(option.help for option in options(name))


def test_every_command_has_a_section_with_an_example() -> None:
    text = PAGE.read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    titles = [section.partition("\n")[0].strip("`") for section in sections]
    for name in cli.COMMANDS:
        section = sections[titles.index(f"planner {name}")]
        assert f"$ planner {name}" in section or f"$ planner -q {name}" in section
    commands = [title for title in titles if title.startswith("planner ")]
    assert [title.split()[1] for title in commands] == [*cli.COMMANDS]


def test_exit_codes_are_those_of_the_program() -> None:
    rows = {row[0]: row[1] for row in table_rows(between(PAGE, "exit codes"))}
    codes = {InputError.exit_code, NoPlanError.exit_code, SolverError.exit_code}
    codes |= {0, 1, PlannerError.exit_code, cli.EXIT_USAGE, cli.EXIT_INTERRUPTED}
    assert {int(code.strip("`")) for code in rows} == codes


def shell_commands(page: Path) -> Iterator[list[str]]:
    """Arguments of `planner` in the shell blocks of a page."""
    for block in blocks(page):
        if block.language in SHELLS:
            for line in shell_lines(block):
                yield from planner_arguments(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_shell_blocks_parse(page: Path) -> None:
    for arguments in shell_commands(page):
        parse(arguments)


def known_options() -> set[str]:
    """Long and short options of `planner`, of the benchmarks and of the tests."""
    found = {
        "--help",
        "-h",
        *(text for name in NAMES for each in options(name) for text in each.opts),
    }
    scripts = [*(ROOT / "benchmarks").glob("*.py"), ROOT / "tests" / "conftest.py"]
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        found |= set(re.findall(r"add(?:_argument|option)\(\s*\"(--[a-z-]+)\"", text))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_mentions_what_does_not_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    known = known_options()
    for span in (" ".join(each.split()) for each in SPAN.findall(text)):
        words = span.split()
        if words[0] == "planner" and len(words) > 1:
            assert words[1] in cli.COMMANDS or words[1] in known or words[1] == "COMMAND", span
        if words[0] == "planner" or words[0].startswith("--"):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span):
                assert option in known, span


def test_a_wrong_command_is_noticed() -> None:
    for arguments in (["slove"], ["solve"], ["solve", "a.yaml", "--gapp", "1%"], ["list", "cars"]):
        with pytest.raises(click.UsageError):
            parse(arguments)


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    for each in NAMES:
        page = replaced(page, f"options {each}", option_table(each))
    PAGE.write_text(page, encoding="utf-8")
