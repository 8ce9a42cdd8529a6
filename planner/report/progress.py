"""How far solving is, on stderr: one row that is rewritten on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TextIO

from planner.report import numbers

if TYPE_CHECKING:
    from planner.fleet.solver import Progress

EVERY_S: Final = 2.0
"""Least time between two plain lines."""
HEADING: Final = f"{'time':>8} | {'incumbent $/h':>14} | {'bound $/h':>14} | {'gap':>8}"
NEW: Final = " *"
"""Marks an incumbent better than the one before."""
CLEAR: Final = "\r\x1b[2K"
BAR_WIDTH: Final = 30
BAR_AFTER_S: Final = 2.0
"""What is done sooner needs no bar."""
BAR_GUESSES_FROM: Final = 0.02
"""Part done from which the time left is more than a guess."""


class _Row:
    """One row of a stream that is rewritten on a terminal; plain lines elsewhere, none under -q.

    A context manager: leaving it, even by an error, leaves the stream at the start of a line.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        quiet: bool = False,
        interactive: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._quiet = quiet
        dumb = os.environ.get("TERM") == "dumb"
        self._interactive = stream.isatty() and not dumb if interactive is None else interactive
        self._clock = clock
        self._started = self._told_s = clock()

    def __enter__(self) -> Self:
        return self

    def _tell(self, now: float, text: str) -> None:
        """A plain line, if the last one is long enough ago."""
        if now - self._told_s >= EVERY_S:
            self._told_s = now
            self._write(text + "\n")

    @staticmethod
    def _fitted(row: str) -> str:
        # A row that wraps cannot be rewritten.
        return row[: max(shutil.get_terminal_size().columns - 1, 1)]

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class ProgressDisplay(_Row):
    """Shows progress and notes; a context manager, so that the row always ends with a newline."""

    def __init__(
        self,
        stream: TextIO,
        *,
        quiet: bool = False,
        interactive: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stream, quiet=quiet, interactive=interactive, clock=clock)
        self._row = ""
        self._has_heading = False
        self._best = math.inf

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._row:
            self._write("\n")
            self._row = ""

    def update(self, progress: Progress) -> None:
        """Take a report of the solver. Seconds are counted here: it may start more than once."""
        if self._quiet:
            return
        now = self._clock()
        better = progress.incumbent < self._best
        self._best = min(self._best, progress.incumbent)
        cells = _Cells(now - self._started, progress.incumbent, progress.bound)
        if self._interactive:
            self._show(cells.row() + (NEW if better else ""))
        else:
            self._tell(now, cells.sentence())

    def simulated(self, fraction: float, what: str) -> None:
        """Take how much of a simulation is done."""
        if self._quiet:
            return
        now = self._clock()
        told = f"{100 * fraction:3.0f} % simulated  {what}"
        if self._interactive:
            self._row = self._fitted(told)
            self._write(CLEAR + self._row)
        else:
            self._tell(now, told.strip())

    def note(self, text: str) -> None:
        """A line of its own, above the row."""
        if self._quiet:
            return
        self._write(f"{CLEAR if self._row else ''}{text}\n{self._row}")

    def _show(self, row: str) -> None:
        if not self._has_heading:
            self._write(self._fitted(HEADING) + "\n")
            self._has_heading = True
        self._row = self._fitted(row)
        self._write(CLEAR + self._row)


class _Cells:
    """The four figures as text; a dash for what there is not yet."""

    def __init__(self, elapsed_s: float, incumbent: float, bound: float) -> None:
        has_incumbent, has_bound = math.isfinite(incumbent), math.isfinite(bound)
        self.time = f"{elapsed_s:.1f} s"
        self.incumbent = f"{incumbent:,.2f}" if has_incumbent else numbers.MISSING
        self.bound = f"{bound:,.2f}" if has_bound else numbers.MISSING
        self.gap = numbers.MISSING
        if has_incumbent and has_bound and incumbent > 0:
            self.gap = numbers.percent(max(incumbent - bound, 0.0) / incumbent)

    def row(self) -> str:
        return f"{self.time:>8} | {self.incumbent:>14} | {self.bound:>14} | {self.gap:>8}"

    def sentence(self) -> str:
        return (
            f"{self.time}: incumbent {self.incumbent} $/hour, bound {self.bound} $/hour, "
            f"gap {self.gap}"
        )


class ProgressBar(_Row):
    """How much of a task is done: a bar on a terminal, plain lines elsewhere, none under -q.

    A context manager: the row is removed at the end. Nothing is shown in the first two seconds.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        quiet: bool = False,
        interactive: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stream, quiet=quiet, interactive=interactive, clock=clock)
        self._told_s = self._started + BAR_AFTER_S - EVERY_S
        self._shown = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            self._write(CLEAR)
            self._shown = False

    def update(self, fraction: float, what: str) -> None:
        """Take how much is done, between 0 and 1, and what is being done."""
        now = self._clock()
        elapsed_s = now - self._started
        if self._quiet or elapsed_s < BAR_AFTER_S:
            return
        fraction = min(max(fraction, 0.0), 1.0)
        left = ""
        if fraction >= BAR_GUESSES_FROM:
            left = f", about {numbers.seconds(elapsed_s * (1 / fraction - 1))} left"
        told = f"{100 * fraction:3.0f} %  {what}  {numbers.seconds(elapsed_s)}{left}"
        if self._interactive:
            full = round(BAR_WIDTH * fraction)
            row = f"{'#' * full}{'.' * (BAR_WIDTH - full)} {told}"
            self._write(CLEAR + self._fitted(row))
            self._shown = True
        else:
            self._tell(now, told.strip())
