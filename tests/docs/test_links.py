"""Links and paths on the pages lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_pages import DOCS, PAGES, ROOT, blocks

from planner.perf import backend

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
OTHERS = (ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks").glob("*.md")))
TEXTS = (*PAGES, *OTHERS, *sorted((ROOT / "reports").rglob("*.md")))
PATH = re.compile(
    r"`((?:planner|tests|models|instances|docs|benchmarks|reports)/[\w./-]*|"
    r"(?:candidates|catalog|cli|fleet|perf|pools|queueing|report|schema)/[\w/]+\.(?:py|yaml))`"
)


def without_blocks(page: Path) -> str:
    """The text of a page without fenced blocks, where brackets are no links."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, made as GitHub makes them."""
    titles = re.findall(r"^#+ +(.+)$", without_blocks(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> Iterator[str]:
    """Targets of the links of a page that stay in the repository."""
    for target in LINK.findall(without_blocks(page)):
        if not re.match(r"[a-z]+:", target):
            yield target


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(path), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_are_named_exist(page: Path) -> None:
    for name in PATH.findall(without_blocks(page)):
        assert (ROOT / name).exists() or (ROOT / "planner" / name).exists(), name


def test_every_page_is_reached_from_the_readme() -> None:
    reached, stack = set(), [ROOT / "README.md"]
    while stack:
        page = stack.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        stack += [(page.parent / target.partition("#")[0]).resolve() for target in links(page)]
    assert {*DOCS.glob("*.md")} <= reached


def test_the_backend_of_the_architecture_page_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_REGISTRY", {})
    (text,) = (each.text for each in blocks(DOCS / "architecture.md") if each.language == "python")
    exec(compile(text, "architecture.md", "exec"), {"__name__": "example"})
