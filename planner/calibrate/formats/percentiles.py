"""Percentiles of a run: fraction of requests to seconds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from planner.calibrate.formats.node import Node

_PERCENT: Final = re.compile(r"p(\d{1,2}(?:\.\d+)?)")
_DIGITS: Final = re.compile(r"p(\d{2,4})")


def by_percent(key: str) -> float | None:
    """`median` is 0.5, `p99` is 0.99, `p99.9` is 0.999; None for other keys."""
    if key == "median":
        return 0.5
    match = _PERCENT.fullmatch(key)
    return _fraction(match.group(1)) if match else None


def by_digits(key: str) -> float | None:
    """GuideLLM's spelling, digits after the point: `p05` is 0.05, `p999` is 0.999."""
    match = _DIGITS.fullmatch(key)
    return float(f"0.{match.group(1)}") if match else None


def by_point(key: str) -> float | None:
    """llm-d's spelling, `p` for the point: `p99p9` is 0.999, `p0p1` is 0.001."""
    return by_percent(key[:1] + key[1:].replace("p", "."))


def read_percentiles(
    node: Node | None, fraction_of: Callable[[str], float | None], scale: float
) -> dict[float, float]:
    """Percentiles among the keys of a mapping, in rising order; {} if there is no node.

    Raises InputError for one that is below 0, or less than a lower one.
    """
    if node is None:
        return {}
    found = {
        fraction: node.at(key)
        for key, value in node.mapping().items()
        if value is not None and (fraction := fraction_of(key)) is not None
    }
    return rising(found, scale)


def rising(found: Mapping[float, Node], scale: float) -> dict[float, float]:
    """Seconds by fraction, in rising order, without zeros. Raises InputError where they fall."""
    seconds: dict[float, float] = {}
    before = 0.0
    for fraction in sorted(found):
        node = found[fraction]
        value = node.number() * scale
        if value < 0:
            raise node.error(f"{node.number():g} must not be below 0")
        if value == 0:  # tokens that came together: no time to compare
            continue
        if value < before:
            raise node.error(
                f"is {value:.6g} s, less than a lower percentile, {before:.6g} s",
                "percentiles rise",
            )
        seconds[fraction] = before = value
    return seconds


def _fraction(percent: str) -> float:
    # Through the decimal digits, so that 99.9 % is 0.999 and not its neighbour.
    return float(f"{percent}e-2")
