"""What the queueing formulas are worth: random pools, fresh seeds, replayed traces.

    python -m benchmarks.queueing_study pools [--seed 1]
    python -m benchmarks.queueing_study seeds
    python -m benchmarks.queueing_study replays [--traces DIR]
    python -m benchmarks.queueing_study --write reports/queueing.md

Run it in the checkout. Without the name of a part it runs all of them. Parts print their section of
the report; `--write` puts it into the report and leaves the sections of other parts as they are.
`pools` draws plans at random and sets the formulas beside the simulation, `seeds` simulates the
plans of `planner solve --simulate` and of a mean model on seeds that they were not made with, and
`replays` plays public traces, in the formats that they are published in, through plans made from
their own workload files. The result depends on the seed but not on the number of processes.
`--quick` is a few seconds of each, to see that it runs.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.queueing import pools, replays, seeds

PARTS: Final = ("pools", "seeds", "replays")
TITLES: Final = {"pools": "## 1.", "seeds": "## 2.", "replays": "## 3."}
TRACES: Final = Path("traces")
HEAD: Final = """# Queueing: the formulas beside the simulation

Written by `python -m benchmarks.queueing_study --write reports/queueing.md`. What is simulated is
in [simulation.md](../docs/simulation.md), the formulas in [queueing.md](../docs/queueing.md). Step
times are those of the performance model on both sides: this page is about waiting, not about them.
"""


def note(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def run(part: str, arguments: argparse.Namespace) -> str:
    """One part, and its section of the report with what it took."""
    started = time.monotonic()
    quick, workers = arguments.quick, arguments.workers
    if part == "pools":
        scale = pools.QUICK if quick else pools.Scale()
        text = pools.study(arguments.seed, scale, workers, note)
    elif part == "seeds":
        text = seeds.study(seeds.QUICK if quick else seeds.Scale(), workers, note)
    else:
        text = replays.study(arguments.traces, replays.Scale(0.02 if quick else None), note)
    minutes = (time.monotonic() - started) / 60
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"{text.rstrip()}\n\n{date}; {minutes:.1f} minutes in {workers} processes.\n"


def sections(text: str) -> dict[str, str]:
    """The sections of a report by part."""
    found = {}
    for part, title in TITLES.items():
        _, mark, rest = text.partition(f"\n{title}")
        if mark:
            found[part] = f"{title}{rest.partition(chr(10) + '## ')[0]}".rstrip() + "\n"
    return found


def main() -> None:
    """Run the parts asked for, print them, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--traces", type=Path, default=TRACES, metavar="DIR")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: it is one of {', '.join(PARTS)}")
    target: Path | None = arguments.write
    for part in arguments.parts or PARTS:
        text = run(part, arguments)
        print(text, flush=True)
        if target:
            before = target.read_text(encoding="utf-8") if target.exists() else ""
            found = {**sections(before), part: text}
            body = "\n".join(found[each] for each in PARTS if each in found)
            target.write_text(f"{HEAD}\n{body}", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
