"""Commands under `<!-- run -->` on the pages print what stands there.

The files that they read are the YAML blocks under `<!-- file: NAME -->` on the same page, with
`(wrong)` behind the name where mistakes are the point, and `instances/`. `<!-- run until: TEXT -->`
shows the output before the first line that starts with TEXT. `python tests/docs/test_examples.py`
runs all of them and rewrites what they print.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path
from typing import Final

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from docs_pages import PAGES, ROOT, Run, blocks, runs

from planner import cli
from planner.schema import parse_instance

MARK: Final = re.compile(r"<!-- run(?: until: (.+))? -->")
FILE: Final = re.compile(r"<!-- file: (\S+?)( \(wrong\))? -->")
MORE: Final = "..."
EXAMPLES: Final = [page for page in PAGES if MARK.search(page.read_text(encoding="utf-8"))]


def printed(arguments: tuple[str, ...]) -> list[str]:
    """What a command prints: stdout, or stderr where stdout stays empty."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        cli.main(arguments)
    return (out.getvalue() or err.getvalue()).rstrip("\n").split("\n")


def shown(lines: list[str], until: str | None) -> list[str]:
    """The part of an output that a page shows."""
    if until is None:
        return lines
    end = next(index for index, line in enumerate(lines) if line.startswith(until))
    part = lines[:end]
    while part and not part[-1]:
        part.pop()
    return [*part, MORE]


def prepare(page: Path, folder: Path) -> None:
    """Write the files that a page names, and make the instances reachable."""
    (folder / "instances").symlink_to(ROOT / "instances")
    for block in blocks(page):
        name = FILE.fullmatch(block.above)
        if name:
            (folder / name[1]).write_text(block.text, encoding="utf-8")


def examples(page: Path) -> list[tuple[str, Run, str | None]]:
    """Block text, command and where its output is cut, in order."""
    found = []
    for block in blocks(page):
        mark = MARK.fullmatch(block.above)
        if mark:
            found += [(block.text, run, mark[1]) for run in runs(block)]
    return found


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_examples_print_what_is_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for _, run, until in examples(page):
        assert shown(printed(run.arguments), until) == [*run.output], (
            f"planner {' '.join(run.arguments)}: run python tests/docs/test_examples.py"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_instances_on_the_pages_are_good(page: Path) -> None:
    for block in blocks(page):
        wrong = "(wrong)" in block.above
        if block.language == "yaml" and "\nworkloads:" in block.text and not wrong:
            parse_instance(block.text, file=page.name)


def refresh(page: Path) -> None:
    """Rewrite the outputs on a page."""
    text = page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        prepare(page, Path(folder))
        with contextlib.chdir(folder):
            for block, run, until in examples(page):
                line = next(
                    each
                    for each in block.splitlines()
                    if each.startswith("$ ") and tuple(each.split()[2:]) == run.arguments
                )
                old = "\n".join([line, *run.output]) + "\n"
                new = "\n".join([line, *shown(printed(run.arguments), until)]) + "\n"
                assert text.count(old) == 1, line
                text = text.replace(old, new)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for each in EXAMPLES:
        refresh(each)
