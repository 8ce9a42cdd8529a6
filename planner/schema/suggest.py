"""Did you mean: the nearest known word, and the unit that was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final

from planner.schema.yaml_positions import shown

_UNIT_WORDS: Final = {
    "ms": "milliseconds",
    "s": "seconds",
    "sec": "seconds",
    "seconds": "seconds",
    "us": "microseconds",
    "minutes": "minutes",
    "min": "minutes",
    "hours": "hours",
    "percent": "percent",
    "pct": "percent",
    "fraction": "a fraction of one",
    "share": "a fraction of one",
    "tokens": "tokens",
    "per_s": "per second",
    "per_second": "per second",
    "per_sec": "per second",
    "per_minute": "per minute",
    "per_min": "per minute",
    "per_hour": "per hour",
    "per_day": "per day",
    "per_month": "per month",
    "per_gpu_hour": "per GPU and hour",
    "usd": "USD",
    "usd_per_hour": "USD per hour",
    "usd_per_gpu_hour": "USD per GPU and hour",
    "per_gpu_month": "per GPU and month",
    "usd_per_gpu_month": "USD per GPU and month",
    "usd_per_month": "USD per month",
    "usd_per_year": "USD per year",
    "billion": "billions",
    "million": "millions",
    "gb": "GB",
    "gib": "GiB",
    "bytes": "bytes",
}
_UNIT: Final = re.compile(
    r"_(" + "|".join(sorted(map(re.escape, _UNIT_WORDS), key=len, reverse=True)) + r")$"
)
_MOST_LISTED: Final = 12


def without_unit(key: str) -> tuple[str, str]:
    """A key split into its stem and its unit suffix: `limit_ms` is (`limit`, `ms`)."""
    match = _UNIT.search(key)
    return (key[: match.start()], match.group(1)) if match else (key, "")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, letter case and punctuation aside; None if none is near."""
    by_plain: dict[str, str] = {}
    for name in known:
        by_plain.setdefault(_plain(name), name)
    near = difflib.get_close_matches(_plain(word), by_plain, n=1, cutoff=0.6)
    return by_plain[near[0]] if near else None


def hint_for_word(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the known words where none is near."""
    words = list(known)
    near = nearest(word, words)
    if near is not None:
        return f"did you mean {shown(near)}?"
    listed = ", ".join(words[:_MOST_LISTED])
    more = f" and {len(words) - _MOST_LISTED} more" if len(words) > _MOST_LISTED else ""
    return f"known: {listed}{more}"


def key_meant(key: str, known: Iterable[str]) -> str | None:
    """The known key that an unknown one probably stands for: other unit first, then spelling."""
    words = list(known)
    stem = without_unit(key)[0]
    for word in words:
        if stem == without_unit(word)[0]:
            return word
    return nearest(key, words)


def hint_for_key(key: str, known: Iterable[str]) -> str:
    """What to write instead of an unknown key; says the unit where only that differs."""
    words = list(known)
    meant = key_meant(key, words)
    if meant is None:
        return hint_for_word(key, words)
    stem, unit = without_unit(meant)
    own_stem, own_unit = without_unit(key)
    if stem == own_stem and unit != own_unit:
        words_of_unit = _UNIT_WORDS.get(unit, unit) or "without a unit"
        return f"did you mean {shown(meant)} ({words_of_unit})?"
    return f"did you mean {shown(meant)}?"


def _plain(word: str) -> str:
    return re.sub(r"[\s_\-./]+", "-", word.strip().lower())
