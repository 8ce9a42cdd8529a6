from __future__ import annotations

import csv
import io
import json

import pytest

from planner import catalog, cli

KINDS = ["models", "accelerators", "offers"]


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(["list", *args]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("what", KINDS)
def test_json(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(printed(capsys, what, "--json"))
    assert document["format_version"] == 1
    ids = [row["id"] for row in document[what]]
    assert ids == list(getattr(catalog, what)())
    assert all(row["source"] and row["date"] for row in document[what])


@pytest.mark.parametrize("what", KINDS)
def test_csv(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(printed(capsys, what, "--csv"))))
    assert [row["id"] for row in rows] == list(getattr(catalog, what)())


@pytest.mark.parametrize("what", KINDS)
def test_piped_output_is_plain_and_whole(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, what).splitlines()
    assert len(lines) == len(getattr(catalog, what)()) + 1
    assert "\x1b" not in "".join(lines)
    assert lines[0].split()[0] == "id"


def test_offers_as_csv_are_the_shipped_file(capsys: pytest.CaptureFixture[str]) -> None:
    from planner.catalog.offers import parse_offers

    text = printed(capsys, "offers", "--csv")
    assert parse_offers(text, catalog.accelerators()) == dict(catalog.offers())


@pytest.mark.parametrize("what", KINDS)
def test_a_terminal_gets_a_table_and_no_color_is_respected(
    what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    text = printed(capsys, what)
    assert "─" in text
    assert next(iter(getattr(catalog, what)())) in text
    assert "\x1b[3" not in text


def test_a_narrow_terminal_cuts_no_figure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    row = next(
        line for line in printed(capsys, "accelerators").splitlines() if line.startswith("l40s")
    )
    assert row.split()[1:5] == ["362.05", "733", "733", "48.3"]
