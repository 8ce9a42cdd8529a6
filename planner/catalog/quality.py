"""How much quality a lower precision may cost: published evaluations read as upper bounds.

The bounds are estimates (`data/quality.yaml` says from what); a figure that the user measured
replaces them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import yaml

from planner import resources

_NOTHING_MEASURED: Mapping[str, float] = {}


class PrecisionFacts(Protocol):
    """What of an LLM card matters here."""

    @property
    def native_precision(self) -> str:
        """Precision of the published checkpoint's main weights."""

    @property
    def parameters_total(self) -> float:
        """Parameters, all experts counted."""


@dataclass(frozen=True, slots=True)
class QualityBound:
    """Upper bound on the loss of one precision for models of at least some size."""

    loss_fraction: float
    parameters_from: float
    note: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QualityTable:
    """All bounds, largest models first, and the rule for long inputs."""

    weights: Mapping[str, tuple[QualityBound, ...]]
    kv_cache: Mapping[str, tuple[QualityBound, ...]]
    long_input_tokens: int
    refused_for_long_inputs: frozenset[str]
    date: str


@cache
def quality_table() -> QualityTable:
    """The shipped table of bounds."""
    document = yaml.safe_load(resources.read_text("quality.yaml"))
    return QualityTable(
        weights={name: _bounds(rows) for name, rows in document["weights"].items()},
        kv_cache={name: _bounds(rows) for name, rows in document["kv_cache"].items()},
        long_input_tokens=int(document["long_input_tokens"]),
        refused_for_long_inputs=frozenset(document["refused_for_long_inputs"]),
        date=str(document["date"]),
    )


def quality_loss_fraction(
    card: PrecisionFacts,
    weight_precision: str,
    kv_precision: str,
    longest_input_tokens: float,
    measured_weights: Mapping[str, float] = _NOTHING_MEASURED,
    measured_kv: Mapping[str, float] = _NOTHING_MEASURED,
) -> float | None:
    """Upper bound on the fraction of quality lost against the published checkpoint, or None.

    None means refused: 4-bit weights below the checkpoint's own precision for inputs beyond the
    limit of the table, or a precision for which there is no bound. The native weight precision and
    a BF16 cache lose nothing. Losses of weights and cache add up, which is safe for a bound.
    `measured_*` are fractions by precision that replace the bounds, also where these refuse.
    """
    table = quality_table()
    weights: float | None
    if weight_precision == card.native_precision:
        weights = 0.0
    elif weight_precision in measured_weights:
        weights = measured_weights[weight_precision]
    elif (
        weight_precision in table.refused_for_long_inputs
        and longest_input_tokens > table.long_input_tokens
    ):
        weights = None
    else:
        weights = _bound(table.weights, weight_precision, card.parameters_total)
    cache_loss: float | None
    if kv_precision == "bf16":
        cache_loss = 0.0
    elif kv_precision in measured_kv:
        cache_loss = measured_kv[kv_precision]
    else:
        cache_loss = _bound(table.kv_cache, kv_precision, card.parameters_total)
    return None if weights is None or cache_loss is None else weights + cache_loss


def _bound(
    table: Mapping[str, tuple[QualityBound, ...]], precision: str, parameters: float
) -> float | None:
    for bound in table.get(precision, ()):
        if parameters >= bound.parameters_from:
            return bound.loss_fraction
    return None


def _bounds(rows: list[dict[str, Any]]) -> tuple[QualityBound, ...]:
    bounds = (
        QualityBound(
            loss_fraction=float(row["loss_percent"]) / 100,
            parameters_from=float(row.get("parameters_from_billion", 0)) * 1e9,
            note=str(row["note"]),
            sources=tuple(map(str, row["sources"])),
        )
        for row in rows
    )
    return tuple(sorted(bounds, key=lambda bound: -bound.parameters_from))
