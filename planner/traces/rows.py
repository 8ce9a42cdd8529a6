"""Rows of a trace while they are read: bad ones collected, failed ones dropped and counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from planner.errors import InputError, Problem
from planner.traces.trace import Trace, sorted_trace

MOST_TOLD: Final = 10
"""Bad rows told one by one; the rest are counted."""


@dataclass(slots=True)
class Rows:
    """What has been read so far; the lists have one entry per good row."""

    file: str
    has_blocks: bool
    has_model: bool
    time_s: list[float] = field(default_factory=list)
    input_tokens: list[int] = field(default_factory=list)
    output_tokens: list[int] = field(default_factory=list)
    block_ids: list[tuple[int, ...]] = field(default_factory=list)
    model: list[str] = field(default_factory=list)
    start_hour: tuple[float, float] | None = None
    """Time (s) and hour of the day of one row; None where times are plain numbers."""
    problems: list[Problem] = field(default_factory=list)
    bad: int = 0

    def refuse(self, line: int, column: str, message: str, hint: str) -> None:
        """Note a row that cannot be read."""
        self.bad += 1
        if len(self.problems) < MOST_TOLD:
            problem = Problem(message, hint, file=self.file, line=line, field=column)
            self.problems.append(problem)

    def trace(self, block_tokens: int) -> Trace:
        """All good rows as a trace, without those of failed requests (no input or no output).

        Raises InputError for bad rows, where nothing is left, and for prompts that have more
        tokens than their blocks hold.
        """
        if self.problems:
            more = self.bad - len(self.problems)
            last = [Problem(f"and {more:,} more bad rows", file=self.file)] if more else []
            raise InputError([*self.problems, *last])
        time_s = np.array(self.time_s, dtype=np.float64)
        inputs = np.array(self.input_tokens, dtype=np.int64)
        outputs = np.array(self.output_tokens, dtype=np.int64)
        notes = []
        kept = (inputs > 0) & (outputs > 0)
        failed = int(len(kept) - np.count_nonzero(kept))
        if failed:
            notes.append(f"{failed:,} rows without input or output tokens failed and are left out")
        if not kept.any():
            message = "has no request" if not failed else "has only failed requests"
            hint = "each row after the header is a request with input and output tokens"
            raise InputError([Problem(message, hint, file=self.file)])
        rows = np.flatnonzero(kept)
        blocks = [self.block_ids[index] for index in rows] if self.has_blocks else None
        if blocks is not None:
            held = np.array([len(ids) for ids in blocks], dtype=np.int64) * block_tokens
            short = int(np.count_nonzero(held < inputs[rows]))
            if short > len(rows) // 2:
                message = f"in {short:,} rows the prompt has more tokens than its blocks hold"
                hint = f"blocks are taken as of {block_tokens} tokens; give their true size"
                raise InputError([Problem(message, hint, file=self.file)])
        start_hour = None
        if self.start_hour is not None:
            at, hour = self.start_hour
            start_hour = (hour + (float(time_s[rows].min()) - at) / 3600) % 24
        return sorted_trace(
            time_s[rows],
            inputs[rows],
            outputs[rows],
            source=self.file,
            block_ids=blocks,
            block_tokens=block_tokens,
            model=[self.model[index] for index in rows] if self.has_model else None,
            start_hour=start_hour,
            notes=notes,
        )
