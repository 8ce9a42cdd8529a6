"""README.md has the two commands that CI types, and says what the program does."""

from __future__ import annotations

import re
import shlex

import pytest
from docs_pages import README, blocks, planner_arguments, shell_lines

from planner import cli

INSTALL = "python3 -m venv .venv && .venv/bin/pip install"


def ci_command(name: str) -> str:
    """The command in the fenced block right after `<!-- ci: NAME -->`."""
    found = [each for each in blocks(README) if each.above == f"<!-- ci: {name} -->"]
    assert len(found) == 1, f"README.md has no block right after <!-- ci: {name} -->"
    lines = found[0].text.splitlines()
    assert len(lines) == 1, "one line, as a reader copies it"
    return lines[0]


@pytest.mark.parametrize("name", ["main", "test"])
def test_marked_commands_start_from_nothing(name: str) -> None:
    command = ci_command(name)
    assert command.startswith(INSTALL)
    assert not command.startswith("$")
    assert shlex.split(command)


def test_the_main_command_solves_the_enterprise_instance() -> None:
    (arguments,) = planner_arguments(ci_command("main"))
    assert arguments[:2] == ["solve", "instances/enterprise.yaml"]
    assert (README.parent / arguments[1]).is_file()


def test_the_test_command_runs_pytest() -> None:
    assert ".venv/bin/pytest" in ci_command("test")
    assert '".[dev]"' in ci_command("test")


def test_every_command_is_named() -> None:
    named = {
        words[1]
        for words in (span.split() for span in re.findall(r"`(planner [^`]+)`", README.read_text()))
    }
    assert set(cli.COMMANDS) <= named


def test_instances_in_commands_exist() -> None:
    for block in blocks(README):
        for line in shell_lines(block):
            for arguments in planner_arguments(line):
                for word in arguments:
                    if word.startswith("instances/"):
                        assert (README.parent / word).is_file(), word
