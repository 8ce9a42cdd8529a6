"""Every kind of bad input gets the exact text written down in bad_input.yaml, place included."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import cli
from planner.errors import InputError
from planner.schema import parse_instance
from planner.workload import build_workload

DATA: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("bad_input.yaml").read_text(encoding="utf-8")
)
GOOD: str = DATA["good"]
CASES: list[dict[str, Any]] = DATA["cases"]


def text_of(case: dict[str, Any]) -> str:
    text: str = case.get("text", GOOD)
    for old, new in case.get("change", {}).items():
        assert old in text
        text = text.replace(old, new, 1)
    return text


def complaints(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        build_workload(parse_instance(text, "f.yaml"))
    return [str(problem) for problem in caught.value.problems]


def test_the_unchanged_instance_is_good() -> None:
    assert build_workload(parse_instance(GOOD, "f.yaml")).classes[0].name == "chat"


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_message(case: dict[str, Any]) -> None:
    assert complaints(text_of(case)) == [f"f.yaml:{line}" for line in case["told"]]


def test_many_kinds_and_no_doubles() -> None:
    names = [case["name"] for case in CASES]
    assert len(names) == len(set(names)) >= 45


def test_few_of_a_thousand_mistakes_are_told() -> None:
    text = GOOD + "engine:\n" + "".join(f"  key{index}: 1\n" for index in range(1000))
    found = complaints(text)
    assert len(found) == 101
    assert found[-1] == "f.yaml: and 900 more; mend these first"


JUNK = st.sampled_from(
    ["", "7", "-1", "1e9", "true", "x", "''", "[]", "[1, x]", "{}", "{a: 1}", "~", "0.5%", "[[[]]]"]
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_change_is_read_or_refused(data: st.DataObject) -> None:
    """Replacing any word or part of a line by junk never crashes."""
    words = GOOD.replace("{", "{ ").replace("}", " }").split(" ")
    index = data.draw(st.integers(0, len(words) - 1))
    words[index] = data.draw(JUNK)
    with suppress(InputError):
        build_workload(parse_instance(" ".join(words), "f.yaml"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lint(*paths: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["lint", *paths])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_lint_good(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "good.yaml").write_text(GOOD, encoding="utf-8")
    assert lint("good.yaml", capsys=capsys) == (0, "ok: 1 class, 1 model\n", "")


def test_lint_reads_a_byte_order_mark(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bom.yaml").write_text(GOOD, encoding="utf-8-sig")
    assert lint("bom.yaml", capsys=capsys)[0] == 0


def test_lint_tells_of_every_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "good.yaml").write_text(GOOD, encoding="utf-8")
    (folder / "bad.yaml").write_text(GOOD.replace("12}", "0}"), encoding="utf-8")
    code, out, err = lint("bad.yaml", "good.yaml", "none.yaml", capsys=capsys)
    assert code == 2
    assert out == "good.yaml: ok: 1 class, 1 model\n"
    assert err == (
        "error: bad.yaml:8:30: workloads[0].demand.requests_per_s: is 0; must be greater than 0\n"
        "none.yaml: no such file; check the path\n"
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name: \xff\xfe", "f.yaml:1:7: is not UTF-8 text (byte 0xff); save it as UTF-8"),
        (b"\xff\xfea\x00", "f.yaml: is UTF-16 text; save it as UTF-8"),
        (b"PK\x03\x04\x00\x00", "f.yaml: is a binary file; give a YAML text file"),
        (b"", "f.yaml:1:1: the file is empty"),
        (
            b"# " + b"x" * 5_000_000,
            "f.yaml: is 5.0 MB, larger than the 5 MB that are read; "
            "split it, or leave out what is not an instance",
        ),
    ],
    ids=["not UTF-8", "UTF-16", "binary", "empty", "too large"],
)
def test_files_that_are_no_text(
    content: bytes, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "f.yaml").write_bytes(content)
    assert lint("f.yaml", capsys=capsys) == (2, "", f"error: {told}\n")


def test_directory_and_pipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "d").mkdir()
    assert lint("d", capsys=capsys)[2] == "error: d: is a directory; name a file in it\n"
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "p")
        told = "error: p: is not a regular file; give a text file\n"
        assert lint("p", capsys=capsys)[2] == told


def test_dangling_link(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "l").symlink_to("nowhere")
    told = "error: l: is a link to a file that does not exist; check the path\n"
    assert lint("l", capsys=capsys)[2] == told


def test_card_beside_the_instance(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "my.yaml").write_text("id: 7\n", encoding="utf-8")
    text = GOOD.replace("  - model: llama-3.3-70b-instruct", "  - card: my.yaml", 1)
    (folder / "sub" / "f.yaml").write_text(text, encoding="utf-8")
    code, _, err = lint(str(Path("sub", "f.yaml")), capsys=capsys)
    assert code == 2
    assert all("my.yaml:" in line for line in err.splitlines())


def test_schema_is_printed_alike_by_the_runner() -> None:
    result = CliRunner().invoke(cli.cli, ["schema"])
    assert result.exit_code == 0
    assert result.output.startswith('{\n  "$defs"')
