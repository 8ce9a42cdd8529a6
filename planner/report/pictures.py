"""Figures and their PNG bytes; matplotlib is an extra, loaded when a picture is made."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from planner.errors import InputError, Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(
    width_inches: float, height_inches: float, needs: str = "the pictures need"
) -> Figure:
    """An empty figure. Raises InputError that names the extra if matplotlib is not installed;
    `needs` begins its sentence.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        hint = "pip install 'llm-fleet-planner[validate]'"
        raise InputError([Problem(f"{needs} matplotlib", hint=hint)]) from error
    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def png(figure: Figure, dots_per_inch: int) -> bytes:
    """The figure as PNG, without date and version, so that the same data gives the same file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return stream.getvalue()
