"""Time and memory of `planner solve`, as a user pays for them: whole processes, start to end.

    python benchmarks/solve_instances.py [--repeats 5] [--write reports/benchmarks.md] [INSTANCE...]

Every instance is solved by a new process; its wall-clock time, the CPU time that it used in user
mode and its largest resident memory come from the operating system. The start-up of `planner
--help` stands beside that of an empty Python.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = ("pyomo", "highspy", "numpy", "scipy", "pydantic", "click")
GIB: Final = 2.0**30
STARTS_PER_REPEAT: Final = 4
"""Start-up is short, so it is measured this many times more often."""
SOLVE_HEADING: Final = (
    "instance",
    "status",
    "USD/hour",
    "gap",
    "options",
    "in program",
    "wall s",
    "from-to s",
    "user s",
    "enumerate s",
    "solve s",
    "peak MB",
)
START_HEADING: Final = ("command", "wall ms", "from-to ms")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process took: seconds and bytes."""

    wall_s: float
    user_s: float
    peak_bytes: float
    output: str


def measure(command: Sequence[str]) -> Usage:
    """Run a command to its end. Raises RuntimeError when it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment
        )
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode("utf-8")
    # 1 is a valid answer: the instance is infeasible.
    if process.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    # Linux counts in KiB, macOS in bytes.
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return Usage(wall_s, used.ru_utime, used.ru_maxrss * unit, text)


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> tuple[str, str]:
    """Median, and least to largest."""
    scaled = [value * scale for value in values]
    return f"{median(scaled):.{digits}f}", f"{min(scaled):.{digits}f}-{max(scaled):.{digits}f}"


def solve_row(instance: Path, repeats: int) -> list[str]:
    """One line of the table of instances."""
    command = [sys.executable, "-m", "planner", "-q", "solve", str(instance), "--json"]
    runs = [measure(command) for _ in range(repeats)]
    plans = [json.loads(run.output) for run in runs]
    plan: dict[str, Any] = plans[-1]
    search = plan["search"]
    cost, gap = plan["cost_usd_per_hour"], plan["gap_fraction"]
    wall, between = spread([run.wall_s for run in runs])
    return [
        instance.stem,
        plan["status"],
        "-" if cost is None else f"{cost:,.2f}",
        "-" if gap is None else f"{gap:.3%}",
        f"{search['options_enumerated']:,}",
        f"{search['options_in_last_program']:,}",
        wall,
        between,
        spread([run.user_s for run in runs])[0],
        spread([each["search"]["enumeration_s"] for each in plans])[0],
        spread([each["search"]["solve_s"] for each in plans])[0],
        spread([run.peak_bytes for run in runs], 1e-6, 0)[0],
    ]


def start_rows(repeats: int) -> list[list[str]]:
    """Start-up of the program and of Python itself, measured in turns."""
    commands = {
        "planner --help": [sys.executable, "-m", "planner", "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    runs: dict[str, list[Usage]] = {name: [] for name in commands}
    for _ in range(STARTS_PER_REPEAT * repeats):
        for name, command in commands.items():
            runs[name].append(measure(command))
    # Not the memory: a child's peak starts at what this process had when it forked.
    return [[name, *spread([run.wall_s for run in taken], 1e3, 0)] for name, taken in runs.items()]


def processor() -> str:
    """The CPU's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(load: float) -> list[str]:
    """What the figures were measured on, in lines. `load` is the load before the first run."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return [
        f"Date: {datetime.datetime.now(datetime.UTC).date().isoformat()}",
        f"Machine: {os.cpu_count()} cores of {processor()}, {memory:.0f} GiB of memory, "
        f"{platform.system()}; load average before the first run {load:.2f}",
        f"Python {platform.python_version()}, {versions}",
    ]


def aligned(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal."""
    lines = [heading, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def pipes(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, rule, *rows))


def report(
    about: Sequence[str], solves: Sequence[Sequence[str]], starts: Sequence[Sequence[str]], n: int
) -> str:
    """The page that `--write` writes."""
    return f"""# Benchmarks

Written by `python benchmarks/solve_instances.py --repeats {n} --write reports/benchmarks.md`.
Every figure is of a whole process, from its start to its end, imports included.

{chr(10).join(f"- {line}" for line in about)}

## `planner solve`

Medians over {n} repeats, and the fastest and slowest. One thread. `options` were evaluated by the
performance model, `in program` were in the last mixed-integer program; the gap is proven over all.

{pipes(SOLVE_HEADING, solves)}

`enumerate` and `solve` are parts of the wall-clock time; the rest is start-up, verification and
writing. A row at its time limit is not an optimum: its gap says how far it can be.

## Start-up

Medians over {STARTS_PER_REPEAT * n} starts, taken in turns.

{pipes(START_HEADING, starts)}
"""


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("instances", nargs="*", type=Path, metavar="INSTANCE")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    chosen = arguments.instances or sorted((ROOT / "instances").glob("*.yaml"))
    instances = [
        path.resolve().relative_to(ROOT) if path.resolve().is_relative_to(ROOT) else path.resolve()
        for path in chosen
    ]
    about = machine(os.getloadavg()[0])
    starts = start_rows(arguments.repeats)
    print("\n".join(about), aligned(START_HEADING, starts), sep="\n\n", end="\n\n", flush=True)
    solves = []
    for instance in instances:
        solves.append(solve_row(instance, arguments.repeats))
        print(f"{instance}: {solves[-1][6]} s", file=sys.stderr, flush=True)
    print(aligned(SOLVE_HEADING, solves))
    if arguments.write:
        text = report(about, solves, starts, arguments.repeats)
        arguments.write.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
