"""The log of ideas for the step model: what each did to errors on rows it had not seen."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from planner import resources


@dataclass(frozen=True, slots=True)
class Idea:
    """A change of the model's structure, the figures that judged it, and what became of it."""

    idea: str
    figures: str
    verdict: str


def load_tried() -> tuple[Idea, ...]:
    """Every idea of `data/tried.yaml`, in order."""
    rows = yaml.safe_load(resources.read_text("tried.yaml"))["ideas"]
    return tuple(Idea(str(r["idea"]), str(r["figures"]), str(r["verdict"])) for r in rows)
