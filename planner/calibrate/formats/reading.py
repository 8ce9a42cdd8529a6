"""`read_results`: any known result file to measurements, recognised by what is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from planner.calibrate.formats import (
    aiperf,
    guidellm,
    inference_perf,
    inferencex,
    llmd_report,
    sglang_bench,
    table,
    vllm_bench,
)
from planner.calibrate.formats.node import Node
from planner.calibrate.formats.text import json_nodes, looks_like_json, read_text, yaml_node
from planner.calibrate.measurement import Measurement
from planner.errors import InputError, Problem


@dataclass(frozen=True, slots=True)
class Format:
    """A tool's result object: the keys that tell it from others, and its reader."""

    name: str
    keys: frozenset[str]
    read: Callable[[Node], list[Measurement]]


FORMATS: Final = tuple(
    Format(module.NAME, module.KEYS, module.read)
    for module in (
        vllm_bench,
        sglang_bench,
        guidellm,
        aiperf,
        inference_perf,
        inferencex,
        llmd_report,
    )
)
LEAST_KEYS: Final = 2
"""Keys that must be there before a file counts as of a format; one alone may be chance."""

MOST_PROBLEMS: Final = 20
"""Problems told at once; of a file with thousands of rows nobody reads more."""


def read_results(path: Path) -> tuple[Measurement, ...]:
    """Every measurement of a result file.

    Raises InputError with all mistakes found: their file, place and field, and what would be
    right. A file is read whole or not at all.
    """
    try:
        return _read(path)
    except InputError as error:
        more = len(error.problems) - MOST_PROBLEMS
        if more <= 0:
            raise
        last = Problem(f"and {more} more", "mend these first", file=str(path))
        raise InputError([*error.problems[:MOST_PROBLEMS], last]) from error


def _read(path: Path) -> tuple[Measurement, ...]:
    text, file = read_text(path), str(path)
    if looks_like_json(text):
        nodes = json_nodes(text, file)
    elif table.is_table(text):
        return tuple(table.read_table(text, file))
    else:
        nodes = [yaml_node(text, file)]
    measurements: list[Measurement] = []
    problems: list[Problem] = []
    for node in nodes:
        try:
            measurements += format_of(node).read(node)
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    return tuple(measurements)


def format_of(node: Node) -> Format:
    """The format that most keys of an object belong to. Raises InputError if none fits."""
    present = node.value.keys() if isinstance(node.value, dict) else ()
    best = max(FORMATS, key=lambda known: len(known.keys & set(present)))
    if len(best.keys & set(present)) < LEAST_KEYS:
        names = ", ".join(known.name for known in FORMATS)
        raise node.error(
            "is not a benchmark result of a known format", f"known are {names}, and CSV"
        )
    return best
