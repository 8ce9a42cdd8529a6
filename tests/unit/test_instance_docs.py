"""docs/instance.md lists every field as the schema has it.

`python tests/unit/test_instance_docs.py` rewrites the tables there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planner.schema import instance_json_schema, parse_instance
from planner.schema.fields import Part

PAGE = Path(__file__).parents[2] / "docs" / "instance.md"
START, END = "<!-- fields: start -->\n", "<!-- fields: end -->\n"

PARTS = {
    "": "The file",
    "Engine": "`engine`",
    "ServedModel": "`models[]`",
    "Speculative": "`models[].speculative`",
    "WorkloadSpec": "`workloads[]`",
    "RequestRate": "`demand` as a rate",
    "TokenVolume": "`demand` as tokens a day",
    "UserDemand": "`demand` as people",
    "MeanTokens": "Tokens by mean and spread",
    "PercentileTokens": "Tokens by percentiles",
    "HistogramTokens": "Tokens by a histogram",
    "HistogramBin": "`histogram[]`",
    "TraceTokens": "Tokens by a trace",
    "HitPoint": "`cached_input_by_cache_size[]`",
    "Conversation": "`conversation`",
    "SloItem": "`slo[]`",
    "FleetLimits": "`fleet`",
    "OwnOffer": "`fleet.offers[]`",
    "Availability": "`fleet.availability[]`",
    "Objective": "`objective`",
}


MODELS = Part.__subclasses__()


def kind(field: dict[str, Any]) -> str:
    """The type of a field in a word or two."""
    options = field.get("anyOf") or field.get("oneOf")
    if options:
        words = [kind(option) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "enum" in field:
        return ", ".join(f"`{word}`" for word in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "$ref" in field:
        return "mapping"
    if field.get("type") == "array":
        return f"list of {kind(field['items'])}"
    return {
        "number": "number",
        "integer": "whole number",
        "string": "text",
        "boolean": "true or false",
    }[field["type"]]


def default(key: str, field: dict[str, Any], required: list[str]) -> str:
    """The default as shown."""
    if key in required:
        return "required"
    value = field.get("default")
    if value in (None, "", [], {}) or isinstance(value, dict):
        return "–"
    if isinstance(value, list):
        return "`[" + ", ".join(map(str, value)) + "]`"
    return f"`{json.dumps(value).strip(chr(34))}`"


def tables() -> str:
    """One table for each part of an instance."""
    schema = json.loads(instance_json_schema())
    assert set(PARTS) == {"", *schema["$defs"]}
    text = ""
    for name, title in PARTS.items():
        part = schema["$defs"][name] if name else schema
        text += f"\n### {title}\n\n{part['description']}\n\n"
        text += "| field | type | unit | default | meaning |\n| --- | --- | --- | --- | --- |\n"
        required = part.get("required", [])
        model = next(each for each in MODELS if each.__name__ == (name or "Instance"))
        for key in model.model_fields:
            field = part["properties"][key]
            meaning = field["description"].replace("|", "\\|")
            text += (
                f"| `{key}` | {kind(field)} | {field.get('unit', '')} | "
                f"{default(key, field, required)} | {meaning} |\n"
            )
    return text + "\n"


def test_every_field_is_documented() -> None:
    page = PAGE.read_text(encoding="utf-8")
    shown = page.split(START)[1].split(END)[0]
    assert shown == tables(), "run python tests/unit/test_instance_docs.py"


def test_examples_on_the_page_are_good() -> None:
    page = PAGE.read_text(encoding="utf-8")
    examples = [block.split("```")[0] for block in page.split("```yaml\n")[1:]]
    whole = [text for text in examples if text.startswith("format_version")]
    assert whole
    for text in whole:
        parse_instance(text)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    PAGE.write_text(before + START + tables() + END + after, encoding="utf-8")
