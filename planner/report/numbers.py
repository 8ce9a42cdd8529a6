"""How figures are written: the same digits and units in every report."""

from __future__ import annotations

import math

MISSING = "-"
"""Shown where a figure does not apply."""

SECONDS_FROM_MS = 10_000.0
"""Latencies are shown in seconds where the promise is this long."""


def usd(amount: float) -> str:
    """Money to the cent: `$1,234.50`."""
    return f"${amount:,.2f}"


def usd_at_least(amount: float) -> str:
    """A lower bound to the cent, rounded down so that it stays one."""
    # A billionth of a cent more, so that 12.34 is not taken for 12.33999...
    return usd(math.floor(amount * 100 + 1e-7) / 100)


def amount(value: float) -> str:
    """Money in a column whose heading names the unit: `1,234.50`."""
    return f"{value:,.2f}"


def unit_price(value: float) -> str:
    """A list price: cents, and up to four decimals where it has them: `1.80`, `0.0325`."""
    whole, _, decimals = f"{value:,.4f}".partition(".")
    return f"{whole}.{decimals[:2]}{decimals[2:].rstrip('0')}"


def token_price(value: float | None) -> str:
    """USD per million tokens: three significant digits below 10, cents above."""
    if value is None:
        return MISSING
    return f"{value:,.2f}" if value == 0 or value >= 10 else significant(value)


def significant(value: float, digits: int = 3) -> str:
    """Fixed notation with this many significant digits; whole part never cut: `0.0123`, `1,234`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    # 9.999 rounds to 10.0, which has one digit more.
    if decimals > 0 and abs(round(value, decimals)) >= 10 ** (digits - decimals):
        decimals -= 1
    return f"{value:,.{max(decimals, 0)}f}"


def percent(fraction: float) -> str:
    """A share or a gap: `0.0421 %`, `12.3 %`, `100 %`."""
    value = 100 * fraction
    return "0 %" if value == 0 else f"{value:.3g} %" if abs(value) < 100 else f"{value:,.0f} %"


def share(fraction: float) -> str:
    """A part of a whole: `86.9 %`, `100 %`."""
    text = f"{100 * fraction:.1f} %"
    return "100 %" if text == "100.0 %" else text


def whole_percent(fraction: float) -> str:
    """A utilisation: `87 %`; never rounded up to 100, never down to 0."""
    value = round(100 * fraction)
    if value == 100 and fraction < 1:
        return ">99 %"
    return "<1 %" if value == 0 and fraction > 0 else f"{value:,} %"


def rate(value: float) -> str:
    """Requests or tokens per second: `0.0123`, `17.8`, `12,345`."""
    return significant(value)


def latency(value_ms: float, limit_ms: float) -> str:
    """A latency in the unit of its limit: `38.1 ms`, `1,000 ms`, `45.0 s`."""
    if limit_ms >= SECONDS_FROM_MS:
        return f"{significant(value_ms / 1000)} s"
    return f"{significant(value_ms)} ms"


def latency_limit(limit_ms: float) -> str:
    """A promised limit, with all the digits it was given."""
    value, unit = (limit_ms / 1000, "s") if limit_ms >= SECONDS_FROM_MS else (limit_ms, "ms")
    text = f"{value:,.3f}".rstrip("0").rstrip(".")
    return f"{text} {unit}"


def optional(value: float | None) -> str:
    """Three significant digits, or the mark for a figure that does not apply."""
    return MISSING if value is None else significant(value)


def seconds(value: float) -> str:
    """A duration of the program itself: `0.04 s`, `12.3 s`, `3 min 20 s`."""
    if value >= 120:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest} s"
    return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
