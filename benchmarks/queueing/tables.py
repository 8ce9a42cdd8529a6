"""Figures as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def pipes(heading: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table in Markdown, its first `words` columns to the left and the others to the right."""
    rule = ["---"] * words + ["---:"] * (len(heading) - words)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, rule, *rows))


def percent(value: float, digits: int = 1) -> str:
    """12.3 %; a dash where there is none, `inf` where it has no end."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "inf"


def signed(value: float) -> str:
    """+12 % or -3 %; a dash where there is none, `inf` where it has no end."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:+.0f} %" if math.isfinite(value) else "inf"


def milliseconds(seconds: float) -> str:
    """Three digits of a time in ms."""
    return f"{seconds * 1e3:,.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def quantile(values: Sequence[float], fraction: float) -> float:
    """A quantile of some figures; nan of none."""
    return float(np.quantile(values, fraction)) if len(values) else math.nan
