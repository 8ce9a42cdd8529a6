"""The wheel as a user gets it: built, installed into an empty environment, used elsewhere."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "-o", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_everything_that_is_read_at_run_time(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = [
        path
        for folder in ("data", "schema", "report")
        for path in (ROOT / "planner" / folder).rglob("*")
        if path.suffix in {".yaml", ".csv", ".json", ".html", ".md", ".j2"}
    ]
    assert {path.relative_to(ROOT).as_posix() for path in shipped} <= names
    for folder in ("models", "instances"):
        files = {
            f"planner/_packed/{path.relative_to(ROOT).as_posix()}"
            for path in (ROOT / folder).rglob("*")
            if path.is_file()
        }
        assert files <= names
    assert "planner/py.typed" in names
    assert not [name for name in names if name.startswith("tests/")]


def test_it_lists_and_solves_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    binaries = venv / ("Scripts" if sys.platform == "win32" else "bin")
    python = binaries / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", wheel, cwd=elsewhere)

    copy = (
        "from pathlib import Path; from planner import resources;"
        "Path('mine.yaml').write_text(resources.read_text('instances/enterprise.yaml'))"
    )
    run(python, "-c", copy, cwd=elsewhere)
    cards = len(list((ROOT / "models").glob("*.yaml")))
    listed = run(binaries / "planner", "list", "models", cwd=elsewhere)
    assert len(listed.splitlines()) == cards + 1
    assert run(binaries / "llm-fleet-planner", "--version", cwd=elsewhere).startswith("planner ")
    assert run(binaries / "planner", "solve", "mine.yaml", cwd=elsewhere)
