"""The result files of one call, each counted once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.calibrate.formats import read_results
from planner.calibrate.measurement import Measurement
from planner.errors import InputError, Problem


@dataclass(frozen=True, slots=True)
class Results:
    """Measurements of result files. `digests` holds the SHA-256 of each file that was read, by
    its path; `repeated` says which paths hold the same bytes as an earlier one and were not read.
    """

    measurements: tuple[Measurement, ...]
    digests: dict[Path, str]
    repeated: tuple[str, ...]


def read_once(paths: Sequence[Path]) -> Results:
    """Read result files; the same bytes twice are one file, or its points would count double.

    Raises InputError as `read_results`.
    """
    measurements: list[Measurement] = []
    first: dict[str, Path] = {}
    repeated = []
    for path in paths:
        found = digest(path)
        if found in first:
            same = "given twice" if first[found] == path else f"the same bytes as {first[found]}"
            repeated.append(f"{path}: {same}, counted once")
            continue
        first[found] = path
        measurements += read_results(path)
    return Results(
        tuple(measurements), {path: found for found, path in first.items()}, tuple(repeated)
    )


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises InputError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise InputError([Problem("does not exist", file=str(path))]) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError([Problem(f"cannot be read: {reason}", file=str(path))]) from error
