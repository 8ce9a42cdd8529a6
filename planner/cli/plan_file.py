"""Reading a plan.json that a command is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.plan import Plan


def read_plan(path: Path) -> Plan:
    """A plan.json. Raises InputError, also for what is JSON or text but no plan at all."""
    from planner.errors import InputError, Problem
    from planner.plan import Plan
    from planner.schema.yaml_positions import read_text_file

    text = read_text_file(path)
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        data = None
    if not isinstance(data, dict) or "format_version" not in data or "status" not in data:
        hint = "give the plan.json that `planner solve --out` writes"
        raise InputError([Problem("is not a plan", hint, file=str(path))])
    return Plan.from_json(text, str(path))
