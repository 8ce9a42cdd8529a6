"""The instance file: its fields, units, defaults, and the checks made before solving.

Names are loaded when first used: the catalogue reads YAML through this package and must not
wait for pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.schema.instance import Instance
    from planner.schema.json_schema import instance_json_schema
    from planner.schema.load import load_instance, parse_instance

__all__ = ["Instance", "instance_json_schema", "load_instance", "parse_instance"]

_HOME = {
    "Instance": "planner.schema.instance",
    "instance_json_schema": "planner.schema.json_schema",
    "load_instance": "planner.schema.load",
    "parse_instance": "planner.schema.load",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
