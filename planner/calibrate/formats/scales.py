"""Units that files carry beside their values, as factors to seconds and to per second."""

from __future__ import annotations

from typing import Final

from planner.calibrate.formats.node import Node

TIMES: Final = {
    "ns": 1e-9,
    "nanoseconds": 1e-9,
    "us": 1e-6,
    "microseconds": 1e-6,
    "ms": 1e-3,
    "milliseconds": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "seconds": 1.0,
}


def time_scale(unit: Node) -> float:
    """Seconds per unit of a time, also of one per token (`ms/token`).

    Raises InputError for a unit that is not one of time.
    """
    word = unit.text().removesuffix("/token")
    if word not in TIMES:
        raise unit.error(f"'{word}' is not a unit of time", "known are ms, s, us and ns")
    return TIMES[word]


def rate_scale(unit: Node) -> float:
    """Per second in one of a rate such as `tokens/sec`.

    Raises InputError for a unit that does not end in one of time.
    """
    word = unit.text()
    _, slash, time = word.rpartition("/")
    if not slash or time not in TIMES:
        raise unit.error(f"'{word}' is not a rate", "such as tokens/sec")
    return 1 / TIMES[time]
