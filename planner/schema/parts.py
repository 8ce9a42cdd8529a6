"""The parts of an instance while it is being read; a part with mistakes is None."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planner.schema.fleet import FleetLimits
from planner.schema.instance import WorkloadSpec
from planner.schema.serving import Engine, ServedModel


@dataclass(frozen=True, slots=True)
class InstanceParts:
    """What could be read of a file, beside the file's plain values."""

    raw: dict[str, Any]
    engine: Engine | None
    models: list[ServedModel | None]
    workloads: list[WorkloadSpec | None]
    fleet: FleetLimits | None

    def texts(self, key: str, field: str) -> list[tuple[int, str]]:
        """(index, text) of a text field over the items of a list, from the plain values."""
        items = self.raw.get(key)
        if not isinstance(items, list):
            return []
        return [
            (index, item[field])
            for index, item in enumerate(items)
            if isinstance(item, dict) and isinstance(item.get(field), str)
        ]
