"""docs/plan-format.md lists every key of plan.json and evaluation.json as the models have them.

`python tests/docs/test_plan_format.py` rewrites the tables; meanings are kept by key, and a new
key gets a row without one, which a person fills in.
"""

from __future__ import annotations

import sys
import types
import typing
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).parent))

from docs_pages import DOCS, between, replaced, table_rows

from planner import evaluation, plan

PAGE: Final = DOCS / "plan-format.md"
PARTS: Final[dict[str, type[BaseModel]]] = {
    "plan": plan.Plan,
    "pools": plan.PoolPlan,
    "margins": plan.MarginPlan,
    "layout": plan.LayoutPlan,
    "classes": plan.ClassPlan,
    "slos": plan.SloPlan,
    "served_by": plan.ServingShare,
    "price": plan.TokenPrice,
    "nodes": plan.NodePlan,
    "rounds": plan.SimulatedRound,
    "missed": plan.MissedSlo,
    "conflicts": plan.Conflict,
    "search": plan.SearchPlan,
    "provenance": plan.Provenance,
    "evaluation": evaluation.Evaluation,
    "evaluation classes": evaluation.ClassEvaluation,
    "binding": evaluation.Limit,
    "optimum": evaluation.Optimum,
}
"""Every object in the two files, by the mark of its table."""

UNITS: Final = {
    "_usd_per_hour": "USD/hour",
    "_usd_per_month": "USD/month",
    "_usd_per_gpu_hour": "USD/GPU-hour",
    "_usd_per_mtok": "USD/million tokens",
    "requests_per_s": "requests/s",
    "_tokens_per_s": "tokens/s",
    "_tokens": "tokens",
    "_fraction": "fraction",
    "_factor": "factor",
    "_ms": "ms",
    "_s": "s",
}
"""Units by the end of a key; the first that fits."""
COUNTS: Final = {
    "percentile": "percent",
    "replicas": "replicas",
    "gpus": "GPUs",
    "idle_gpus": "GPUs",
    "gpus_per_node": "GPUs",
    "batch": "requests",
    "requests": "requests",
    "ttft": "factor",
    "tpot": "factor",
    "threads": "threads",
}
"""Units of keys that are counts, where the type is a number."""
WORDS: Final[dict[Any, str]] = {
    str: "text",
    float: "number",
    int: "whole number",
    bool: "true or false",
    Any: "value",
}


def fields(part: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields of a part, without those of the plan's class that an evaluation's adds to."""
    inherited = set(plan.ClassPlan.model_fields) if part is evaluation.ClassEvaluation else set()
    return {key: each for key, each in part.model_fields.items() if key not in inherited}


def unit(key: str, kind: str) -> str:
    """The unit of a key: by its end, or by what it counts."""
    if "text" in kind.split() or ("object" in kind.split() and "number" not in kind):
        return ""
    if key in COUNTS:
        return COUNTS[key]
    return next((text for end, text in UNITS.items() if key.endswith(end)), "")


def kind(annotation: Any) -> str:
    """A type in a word or two, as JSON has it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        words = [kind(each) for each in inner if each is not type(None)]
        return " or ".join([*words, "null"] if type(None) in inner else words)
    if origin is tuple:
        several = inner[-1] is Ellipsis
        return f"list of {kind(inner[0])}" if several else f"{len(inner)} x {kind(inner[0])}"
    if origin is dict:
        return f"object of {kind(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    return WORDS[annotation]


def rows(part: type[BaseModel]) -> list[tuple[str, str, str]]:
    """Key, type and unit of every field."""
    found = []
    for key, each in fields(part).items():
        word = kind(each.annotation)
        found.append((f"`{key}`", word, unit(key, word)))
    return found


@pytest.mark.parametrize("mark", PARTS)
def test_every_key_is_documented_as_it_is(mark: str) -> None:
    shown = table_rows(between(PAGE, f"keys {mark}"))
    assert [tuple(row[:3]) for row in shown] == rows(PARTS[mark]), (
        "run python tests/docs/test_plan_format.py"
    )
    for key, *_, meaning in shown:
        assert meaning, f"{mark}: {key} has no meaning"


def nested(part: type[BaseModel]) -> set[type[BaseModel]]:
    """The part and every part inside it."""
    found: set[type[BaseModel]] = {part}
    stack: list[Any] = [each.annotation for each in part.model_fields.values()]
    while stack:
        annotation = stack.pop()
        stack += typing.get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found |= nested(annotation)
    return found


def test_no_part_is_left_out() -> None:
    assert nested(plan.Plan) | nested(evaluation.Evaluation) == set(PARTS.values())


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    for name, each in PARTS.items():
        known = {row[0]: row[-1] for row in table_rows(between(PAGE, f"keys {name}"))}
        table = "\n| key | type | unit | meaning |\n| --- | --- | --- | --- |\n"
        for cells in rows(each):
            meaning = known.get(cells[0], "").replace("|", "\\|")
            table += f"| {' | '.join(cells)} | {meaning} |\n"
        text = replaced(text, f"keys {name}", table + "\n")
    PAGE.write_text(text, encoding="utf-8")
