from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

import planner
from planner import cli, errors

HEAVY = ("pyomo", "pandas", "numpy", "scipy", "pydantic", "yaml", "rich", "highspy")


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "planner", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("argument", ["--help", "-h", "--version"])
def test_help_and_version_import_nothing_heavy(argument: str) -> None:
    code = (
        "import sys, json; from planner.cli import main; main([sys.argv[1]]);"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, argument], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stderr))
    assert not loaded.intersection(HEAVY)
    assert not [name for name in loaded if name.startswith("planner.cli.")]


def test_help_is_fast() -> None:
    # The best of several, so that a busy machine does not fail the test.
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        assert run("--help").returncode == 0
        best = min(best, time.perf_counter() - start)
    assert best <= 0.25


def test_help_names_every_command() -> None:
    text = run("--help").stdout
    for name, line in cli.COMMANDS.items():
        assert f"  {name}" in text
        assert line in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_exists_and_tells_the_same(name: str) -> None:
    command = getattr(importlib.import_module(f"planner.cli.{name}"), name)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help
    assert command.get_short_help_str(limit=100) == cli.COMMANDS[name]


def test_version_names_the_solvers() -> None:
    text = run("--version").stdout
    assert text.startswith(f"planner {planner.__version__} (pyomo ")
    assert "highspy" in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["slove"], "Did you mean 'solve'?"),
        (["--frobnicate"], "No such option"),
        (["list", "cars"], "is not one of"),
        (["list", "models", "--json", "--csv"], "exclude each other"),
    ],
)
def test_wrong_usage_exits_with_2(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command()
    def broken() -> None:
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: broken)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.InputError("a.yaml:3: rate: is missing"), 2, "error: a.yaml:3: rate: is missing\n"),
        (errors.NoPlanError("no plan in 1 s"), 3, "error: no plan in 1 s\n"),
        (errors.SolverError("HiGHS stopped"), 4, "error: HiGHS stopped\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_with(monkeypatch, error)
    assert cli.main(["solve"]) == code
    assert capsys.readouterr().err.endswith(message)


def test_a_crash_is_one_line_unless_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, ZeroDivisionError("division\nby zero"))
    monkeypatch.delenv("PLANNER_DEBUG", raising=False)
    assert cli.main(["solve"]) == 4
    text = capsys.readouterr().err
    assert text.startswith("internal error: ZeroDivisionError: division by zero; this is a bug")
    assert text.count("\n") == 1
    monkeypatch.setenv("PLANNER_DEBUG", "1")
    assert cli.main(["solve"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_a_command_may_return_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def infeasible() -> int:
        return 1

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: infeasible)
    assert cli.main(["solve"]) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    script = f"{sys.executable} -m planner list offers 2>{log} | head -n 1"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("id ")
    assert log.read_text() == ""


def test_the_public_api_is_lazy_and_complete() -> None:
    assert set(planner.__all__) <= set(dir(planner))
    assert planner.InputError is errors.InputError
    with pytest.raises(AttributeError, match="no attribute 'sovle'"):
        planner.sovle  # noqa: B018
