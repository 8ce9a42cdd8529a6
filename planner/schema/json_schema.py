"""The JSON Schema of the instance format, for editors."""

from __future__ import annotations

import json

from planner.schema.instance import Instance


def instance_json_schema() -> str:
    """The schema as text with a final newline; equal to the committed instance.schema.json."""
    schema = Instance.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "LLM fleet planner instance"
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
