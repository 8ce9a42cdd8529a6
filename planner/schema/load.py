"""From a file to a checked instance: every mistake is collected, then raised at once.

The parts of a file are read one by one first, so that a mistake in one workload hides none in
another, nor any that only shows between parts (`checks`) or against the catalogue (`resolve`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from planner.errors import InputError, Problem
from planner.schema.checks import check_parts
from planner.schema.fields import Part
from planner.schema.fleet import FleetLimits
from planner.schema.instance import Instance, Objective, Source, WorkloadSpec
from planner.schema.messages import Places, problems_of
from planner.schema.parts import InstanceParts
from planner.schema.resolve import resolve
from planner.schema.serving import Engine, ServedModel
from planner.schema.yaml_positions import FieldPath, parse_yaml, read_text_file

P = TypeVar("P", bound=Part)

MOST_REPORTED = 100
"""Problems reported at once; more would scroll the first ones away."""


def load_instance(path: str | Path) -> Instance:
    """Read and check the instance at `path`, names resolved to canonical ids.

    Raises InputError with every mistake found. `card` files are sought beside the instance.
    """
    path = Path(path)
    return parse_instance(read_text_file(path), str(path), directory=path.parent)


def parse_instance(
    text: str, file: str = "<string>", *, directory: str | Path | None = None
) -> Instance:
    """As `load_instance`, from a text; `directory` is where `card` files are sought (here).

    Raises InputError with every mistake found.
    """
    document = parse_yaml(text, file)
    places = Places.of(document, file)
    raw = document.value
    if not isinstance(raw, dict):
        message, hint = "is not an instance", "write fields such as format_version: 1"
        raise InputError([places.problem((), message, hint)])
    problems: list[Problem] = []
    parts = _read_parts(raw, places, problems)
    problems += check_parts(parts, places)
    resolved, found = resolve(parts, places, Path(directory or "."))
    problems += found
    if not problems:
        try:
            instance = Instance.model_validate(raw)
        except ValidationError as error:  # no part had one, so this is of the whole
            problems += problems_of(error, Instance, places, ())
    if problems:
        raise InputError(_in_order(problems))
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    instance = resolved.apply(instance)
    instance._source = Source(
        file=file,
        text=text,
        sha256=digest,
        directory=Path(directory or "."),
        positions=document.positions,
        key_positions=document.key_positions,
    )
    return instance


def _read_parts(raw: dict[str, Any], places: Places, problems: list[Problem]) -> InstanceParts:
    """Read every part on its own; a part with mistakes is None."""

    def read(model: type[P], value: object, at: FieldPath) -> P | None:
        try:
            return model.model_validate(value)
        except ValidationError as error:
            problems.extend(problems_of(error, model, places, at))
            return None

    def read_items(model: type[P], key: str) -> list[P | None]:
        items = raw.get(key)
        if not isinstance(items, list):
            return []
        return [read(model, item, (key, index)) for index, item in enumerate(items)]

    parts = InstanceParts(
        raw=raw,
        engine=read(Engine, raw["engine"], ("engine",)) if "engine" in raw else Engine(),
        models=read_items(ServedModel, "models"),
        workloads=read_items(WorkloadSpec, "workloads"),
        fleet=read(FleetLimits, raw["fleet"], ("fleet",)) if "fleet" in raw else FleetLimits(),
    )
    if "objective" in raw:
        read(Objective, raw["objective"], ("objective",))
    # What is left: the fields at the top, with the parts that were read replaced by good ones.
    read(Instance, _stand_ins(raw, parts), ())
    return parts


def _stand_ins(raw: dict[str, Any], parts: InstanceParts) -> dict[str, Any]:
    """The file with every part that was already read replaced by a valid one."""
    model = ServedModel(model="stand-in")
    workload = WorkloadSpec.model_validate(
        {
            "name": "stand-in",
            "model": "stand-in",
            "demand": {"requests_per_s": 1},
            "input_tokens": 1,
            "output_tokens": 1,
        }
    )
    good = dict(raw)
    for key, stand_in in (("models", model), ("workloads", workload)):
        if isinstance(raw.get(key), list):
            good[key] = [stand_in] * len(raw[key])
    for key in ("engine", "fleet", "objective"):
        good.pop(key, None)
    return good


def _in_order(problems: list[Problem]) -> list[Problem]:
    """Sorted by place, doubles dropped, and cut where nobody reads on."""
    unique = dict.fromkeys(problems)
    ordered = sorted(unique, key=lambda problem: (problem.line or 0, problem.column or 0))
    if len(ordered) > MOST_REPORTED:
        more = len(ordered) - MOST_REPORTED
        last = Problem(f"and {more} more", "mend these first", file=ordered[0].file)
        return [*ordered[:MOST_REPORTED], last]
    return ordered
