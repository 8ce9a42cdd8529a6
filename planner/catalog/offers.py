"""Offers: what one GPU-hour costs, of which accelerator, where, on which term, by which node."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from planner.catalog.names import unknown
from planner.errors import InputError, Problem
from planner.units import TERMS

COLUMNS: Final = (
    "id",
    "provider",
    "region",
    "accelerator",
    "term",
    "price_usd_per_gpu_hour",
    "gpus_per_node",
    "available_nodes",
    "instance_type",
    "source",
    "date",
    "note",
)
_MAY_BE_EMPTY: Final = ("available_nodes", "instance_type", "note")
_DATE: Final = re.compile(r"\d{4}-\d{2}(-\d{2})?")


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to rent or own an accelerator. The price is for one GPU (chip) and hour."""

    id: str
    """Stable: provider/region:accelerator:term, and the machine where that leaves several."""
    provider: str
    region: str
    term: str
    accelerator: str
    price_usd_per_gpu_hour: float
    gpus_per_node: int
    available_nodes: int | None = None
    """None where nobody publishes it: taken as unlimited, and said to be assumed."""
    source: str = ""
    date: str = ""
    note: str = ""
    instance_type: str = ""

    @property
    def site(self) -> str:
        """Where it is: replicas of one pool share a site."""
        return f"{self.provider}/{self.region}"

    @property
    def price_usd_per_node_hour(self) -> float:
        """Price of a whole node, the unit that is rented."""
        return self.price_usd_per_gpu_hour * self.gpus_per_node

    def as_row(self) -> dict[str, str | float | int | None]:
        """The offer as the data file writes it, units in the keys."""
        return {name: getattr(self, name) for name in COLUMNS}


def parse_offers(
    text: str, accelerators: Collection[str], file: str = "<string>"
) -> dict[str, Offer]:
    """Offers by id from CSV text with the columns `COLUMNS`; `accelerators` are the known ids.

    Raises InputError with every problem found, each with its line.
    """
    reader = csv.DictReader(io.StringIO(text))
    header = tuple(reader.fieldnames or ())
    if header != COLUMNS:
        expected = ",".join(COLUMNS)
        raise InputError([Problem("wrong columns", hint=f"expected {expected}", file=file, line=1)])
    problems: list[Problem] = []
    found: dict[str, Offer] = {}
    for row in reader:
        wrong = _problems(row, accelerators)
        if row["id"] in found:
            wrong.append(("id", Problem(f"the id {row['id']!r} is used twice")))
        if wrong:
            problems += [
                Problem(
                    problem.message, hint=problem.hint, file=file, line=reader.line_num, field=name
                )
                for name, problem in wrong
            ]
        else:
            found[row["id"]] = _offer(row)
    if problems:
        raise InputError(problems)
    return found


def _offer(row: Mapping[str, str]) -> Offer:
    return Offer(
        id=row["id"],
        provider=row["provider"],
        region=row["region"],
        term=row["term"],
        accelerator=row["accelerator"],
        price_usd_per_gpu_hour=float(row["price_usd_per_gpu_hour"]),
        gpus_per_node=int(row["gpus_per_node"]),
        available_nodes=int(row["available_nodes"]) if row["available_nodes"] else None,
        source=row["source"],
        date=row["date"],
        note=row["note"],
        instance_type=row["instance_type"],
    )


def _problems(
    row: Mapping[str, str | None], accelerators: Collection[str]
) -> list[tuple[str, Problem]]:
    """(column, problem) of everything wrong with a row."""
    if None in row or None in row.values():
        return [("", Problem(f"expected {len(COLUMNS)} columns"))]
    found: list[tuple[str, Problem]] = []

    def value(name: str) -> str:
        return row[name] or ""

    found += [
        (name, Problem("is missing"))
        for name in COLUMNS
        if not value(name) and name not in _MAY_BE_EMPTY
    ]
    if value("term") and value("term") not in TERMS:
        problem = Problem(f"unknown term {value('term')!r}", hint=f"one of {', '.join(TERMS)}")
        found.append(("term", problem))
    if value("accelerator") and value("accelerator") not in accelerators:
        problem = unknown(value("accelerator"), accelerators, "accelerator")
        found.append(("accelerator", problem))
    if not _is_price(value("price_usd_per_gpu_hour")):
        found.append(("price_usd_per_gpu_hour", Problem("must be a number, 0 or more")))
    if not _is_count(value("gpus_per_node")) or int(value("gpus_per_node")) == 0:
        found.append(("gpus_per_node", Problem("must be a whole number above 0")))
    if value("available_nodes") and not _is_count(value("available_nodes")):
        found.append(("available_nodes", Problem("must be a whole number, or empty if unknown")))
    if value("date") and not _DATE.fullmatch(value("date")):
        found.append(("date", Problem("must be YYYY-MM-DD or YYYY-MM")))
    prefix = f"{value('provider')}/{value('region')}:{value('accelerator')}:{value('term')}"
    if value("id") != prefix and not value("id").startswith(f"{prefix}:"):
        found.append(("id", Problem(f"must be {prefix}, or that and ':' with what tells it apart")))
    return found


def _is_price(text: str) -> bool:
    try:
        number = float(text)
    except ValueError:
        return False
    return math.isfinite(number) and number >= 0


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit()
