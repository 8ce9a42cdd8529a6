"""What can go wrong, and the exit code of each.

    PlannerError               4   anything this program raises on purpose
    ├── InputError             2   a file or an argument is wrong; carries every problem found
    │   ├── UnsupportedModelError   an architecture that the model cannot express
    │   └── SolverUnavailableError  the solver asked for is not installed
    ├── NoPlanError            3   no plan within the limit, or above the gap under --strict-gap
    └── SolverError            4   the solver failed, or a plan did not survive verification

Infeasibility is not an error: it is a plan whose status says so (exit code 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in the input: where it is, what is wrong, what would be right."""

    message: str
    hint: str = ""
    file: str = ""
    line: int | None = None
    column: int | None = None
    field: str = ""

    def __str__(self) -> str:
        place = self.file
        if self.line is not None:
            place += f":{self.line}" + (f":{self.column}" if self.column is not None else "")
        parts = [part for part in (place, self.field) if part]
        text = self.message + (f"; {self.hint}" if self.hint else "")
        return ": ".join([*parts, text])


class PlannerError(Exception):
    """Base of every error raised on purpose; its text is meant for the user."""

    exit_code: ClassVar[int] = 4


class InputError(PlannerError):
    """Wrong input. `problems` holds every mistake found, so that all are fixed in one go."""

    exit_code: ClassVar[int] = 2

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems: tuple[Problem, ...] = (
            (Problem(problems),) if isinstance(problems, str) else tuple(problems)
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UnsupportedModelError(InputError):
    """An architecture that the performance model cannot express, with the reason."""


class SolverUnavailableError(InputError):
    """The solver asked for cannot be reached; the text names those that can."""


class NoPlanError(PlannerError):
    """No plan within the time limit, or none within the gap that was insisted on."""

    exit_code: ClassVar[int] = 3


class SolverError(PlannerError):
    """The solver failed, or its answer did not pass the independent verification."""
