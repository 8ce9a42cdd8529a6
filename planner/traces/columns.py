"""Columns of traces: which name means what, and the text in them as numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from planner.errors import InputError, Problem

ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "time": (
        "arrival_s",
        "timestamp",
        "arrival_time",
        "arrived_at",
        "time_s",
        "t_s",
        "timestamp_s",
        "arrival_ms",
        "timestamp_ms",
        "time_ms",
    ),
    "input": (
        "input_tokens",
        "contexttokens",
        "context_tokens",
        "request_tokens",
        "prompt_tokens",
        "input_length",
        "input_len",
        "prompt_len",
        "num_prefill_tokens",
        "isl",
    ),
    "output": (
        "output_tokens",
        "generatedtokens",
        "generated_tokens",
        "response_tokens",
        "completion_tokens",
        "output_length",
        "output_len",
        "num_decode_tokens",
        "osl",
    ),
    "blocks": ("prefix_block_ids", "block_ids", "hash_ids"),
    "model": ("model", "model_name"),
}
"""Names that a column may have, in lower case with `_` for anything but letters and digits."""
NEEDED: Final = ("time", "input", "output")
WRITTEN: Final = "arrival_s,input_tokens,output_tokens"

MOST_TOKENS: Final = 10**8
LATEST_S: Final = 1e11
"""The year 5138; a larger number is a time in milliseconds or less."""
LARGEST_BLOCKS: Final = 10**6
"""Ids in one range."""
LARGEST_ID: Final = 2**63
"""Ids are kept in 64 bits; larger ones, as hashes may be, are cut to the lower 63."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Columns:
    """Where each kind of value stands in a row, and the name it has there."""

    index: dict[str, int]
    name: dict[str, str]
    width: int

    @property
    def scale(self) -> float:
        """Seconds in one unit of the time column, by its name."""
        return 1e-3 if plain(self.name["time"]).endswith("_ms") else 1.0


def plain(name: str) -> str:
    """A name of a column without case, blanks and punctuation."""
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def find_columns(header: Sequence[str], file: str, line: int) -> Columns:
    """The columns that a header names.

    Raises InputError where one that is needed is missing, or two mean the same.
    """
    index: dict[str, int] = {}
    problems = []
    for place, name in enumerate(header):
        for kind, names in ALIASES.items():
            if plain(name) not in names:
                continue
            if kind in index:
                message = f"{header[index[kind]]!r} and {name!r} both give the {_WORDS[kind]}"
                problems.append(Problem(message, "keep one of them", file=file, line=line))
            index.setdefault(kind, place)
    missing = [_WORDS[kind] for kind in NEEDED if kind not in index]
    if missing:
        shown = ", ".join(name[:40] for name in header[:12]) or "nothing"
        message = f"no column gives the {' or the '.join(missing)}; the header has {shown}"
        hint = f"name the columns {WRITTEN}, or as Azure, BurstGPT or Mooncake traces do"
        problems.append(Problem(message, hint, file=file, line=line))
    if problems:
        raise InputError(problems)
    return Columns(index, {kind: header[place] for kind, place in index.items()}, len(header))


_WORDS: Final = {
    "time": "time of arrival",
    "input": "input tokens",
    "output": "output tokens",
    "blocks": "blocks of the prompt",
    "model": "model",
}


def seconds(text: str) -> float:
    """A time in seconds: a number as it is, a date and time since 1970.

    A time without a zone is taken as UTC; digits beyond microseconds are dropped. Raises
    ValueError with what is wrong.
    """
    try:
        value = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            message = f"is {text[:40]!r}, neither seconds nor a date and time"
            raise ValueError(message) from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return (moment - _EPOCH).total_seconds()
    if not -LATEST_S < value < LATEST_S:
        raise ValueError(f"is {text[:40]!r}, which is no time in seconds")
    return value


def hour_of_day(text: str) -> float | None:
    """The hour of the day that a date and time shows on its own clock; None for a number."""
    try:
        float(text)
    except ValueError:
        moment = datetime.fromisoformat(text.strip())
        return moment.hour + moment.minute / 60 + moment.second / 3600
    return None


def tokens(value: str | float) -> int:
    """A whole number of tokens, 0 or more. Raises ValueError with what is wrong."""
    try:
        count = int(value) if isinstance(value, str) else value
    except ValueError:
        try:
            count = float(value)
        except ValueError:
            raise ValueError(f"is {str(value)[:40]!r}, not a number of tokens") from None
    if isinstance(count, bool) or not 0 <= count <= MOST_TOKENS:  # NaN fails too
        raise ValueError(f"is {str(value)[:40]}, not a number from 0 to {MOST_TOKENS:,}")
    if count != int(count):
        raise ValueError(f"is {str(value)[:40]}, not a whole number")
    return int(count)


def block_ids(text: str) -> tuple[int, ...]:
    """Ids of blocks written as `0 14-27 91`. Raises ValueError with what is wrong."""
    found: list[int] = []
    for word in text.split():
        first, dash, last = word.partition("-")
        try:
            low, high = int(first) % LARGEST_ID, int(last if dash else first) % LARGEST_ID
        except ValueError:
            raise ValueError(f"has {word[:40]!r}, neither an id nor a range such as 3-7") from None
        if not low <= high < min(low + LARGEST_BLOCKS, LARGEST_ID):
            raise ValueError(f"has {word[:40]!r}, not a range from a smaller id to a larger")
        found.extend(range(low, high + 1))
    return tuple(found)
