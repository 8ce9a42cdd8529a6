"""A trace: when requests arrived, how long they were, and what their prompts share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError, Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

BlockIds = tuple[tuple[int, ...], ...]
"""Of each request, the ids of the blocks of its prompt from the head on; the last may be partly
filled. Two requests with the same id at the same place share the prompt up to there."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """R requests in the order of arrival; the arrays have shape (R,) and are read-only."""

    arrival_s: Floats
    """Seconds since the first arrival, rising from 0."""
    input_tokens: Ints
    output_tokens: Ints
    block_ids: BlockIds | None = None
    """None where the trace does not say what prompts share."""
    block_tokens: int = 512
    """Tokens of a block of `block_ids`."""
    model: tuple[str, ...] | None = None
    """Name of the model each request went to, as the trace has it."""
    source: str = ""
    """File the trace was read from."""
    start_hour: float | None = None
    """Hour of the day (0 to 24, in the time zone of the file) of the first arrival; None where
    the trace has no dates."""
    notes: tuple[str, ...] = field(default=())
    """What the reader did to the rows, a sentence each."""

    @property
    def requests(self) -> int:
        """Number of requests R."""
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return float(self.arrival_s[-1]) if self.requests else 0.0

    @property
    def rate_per_s(self) -> float:
        """Mean requests per second; the first arrival opens the span and is not counted.

        Raises ValueError where all requests arrive at once.
        """
        if self.span_s <= 0:
            raise ValueError("a trace without a span has no rate")
        return (self.requests - 1) / self.span_s

    def select(self, rows: Flags) -> Trace:
        """The requests for which `rows` (R,) is true, on the clock of the whole trace."""
        chosen = np.flatnonzero(rows)
        return replace(
            self,
            arrival_s=frozen(self.arrival_s[chosen]),
            input_tokens=frozen(self.input_tokens[chosen]),
            output_tokens=frozen(self.output_tokens[chosen]),
            block_ids=None
            if self.block_ids is None
            else tuple(self.block_ids[index] for index in chosen),
            model=None if self.model is None else tuple(self.model[index] for index in chosen),
        )

    def of_model(self, name: str) -> Trace:
        """The requests for one model. Raises InputError where the trace has none for it."""
        models = self.model or ()
        rows = np.array([model == name for model in models], dtype=np.bool_)
        if not rows.any():
            known = ", ".join(sorted(set(models))[:10])
            hint = f"it has {known}" if known else "it does not say which model requests are for"
            raise InputError([Problem(f"has no request for {name!r}", hint, file=self.source)])
        part = self.select(rows)
        return replace(
            part,
            arrival_s=frozen(part.arrival_s - part.arrival_s[0]),
            start_hour=None
            if self.start_hour is None
            else (self.start_hour + float(part.arrival_s[0]) / 3600) % 24,
        )


def sorted_trace(
    time_s: Floats,
    input_tokens: Sequence[int] | Ints,
    output_tokens: Sequence[int] | Ints,
    *,
    source: str,
    block_ids: Sequence[tuple[int, ...]] | None = None,
    block_tokens: int = 512,
    model: Sequence[str] | None = None,
    start_hour: float | None = None,
    notes: Sequence[str] = (),
) -> Trace:
    """A trace of rows in any order on any clock: put in order, the first arrival at 0.

    All sequences have one entry per request. That rows were out of order is noted.
    """
    told = list(notes)
    order = np.arange(len(time_s))
    late = int(np.count_nonzero(np.diff(time_s) < 0))
    if late:
        order = np.argsort(time_s, kind="stable")
        told.append(f"{late:,} rows were earlier than the row before them and have been sorted")
    time_s = time_s[order]
    return Trace(
        arrival_s=frozen(time_s - time_s[0] if len(time_s) else time_s),
        input_tokens=frozen(np.asarray(input_tokens, dtype=np.int64)[order]),
        output_tokens=frozen(np.asarray(output_tokens, dtype=np.int64)[order]),
        block_ids=None if block_ids is None else tuple(block_ids[int(index)] for index in order),
        block_tokens=block_tokens,
        model=None if model is None else tuple(model[int(index)] for index in order),
        source=source,
        start_hour=start_hour,
        notes=tuple(told),
    )


def frozen(values: NDArray[np.generic]) -> NDArray:  # type: ignore[type-arg]
    """A copy that cannot be written to."""
    array = values.copy()
    array.setflags(write=False)
    return array
