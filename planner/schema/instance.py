"""The instance: what is to be served, on what, and how well.

Written as YAML, read by `planner.schema.load`. This module says what a file may hold; it knows
no catalogue, so whether a named model exists is checked in `planner.schema.resolve`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from planner.errors import Problem
from planner.schema.demand import Demand
from planner.schema.fields import (
    FileNames,
    Gap,
    Many,
    Name,
    Part,
    Percent,
    Positive,
    ShareBelowOne,
    Some,
    described,
    mistakes,
)
from planner.schema.fleet import FleetLimits
from planner.schema.serving import (
    Engine,
    KvPrecision,
    Role,
    ServedModel,
    WeightPrecision,
    repeats,
)
from planner.schema.slo import SloItem
from planner.schema.tokens import Conversation, TokenCount
from planner.schema.yaml_positions import FieldPath, Positions, field_name

if TYPE_CHECKING:
    from planner.catalog.cards import ModelCard


def _plain(percentile: float | Literal["mean"]) -> str:
    return percentile if isinstance(percentile, str) else f"{percentile:g}"


class WorkloadSpec(Part):
    """Requests that are alike: one model, one demand, one promise."""

    name: Name = described("Name of the workload, unique in the file.")
    model: Name = described("The model it uses: one of `models`.")
    demand: Demand = described("How many requests come.")
    burst_factor: Annotated[float, Field(ge=1, le=100)] | None = described(
        "Busiest minute over the mean; the plan is made for demand x burst_factor. Left out: "
        "1.0, and said to be assumed.",
        default=None,
    )
    input_tokens: TokenCount | None = described(
        "Tokens of a request's input, cached ones included. Give this or `conversation`.",
        unit="tokens",
        default=None,
    )
    cached_input_fraction: ShareBelowOne | None = described(
        "Share of the input found in the prefix cache. Left out: none.",
        unit="fraction",
        default=None,
    )
    conversation: Conversation | None = described(
        "Turns of a conversation, from which input and cached part follow. Give this or "
        "`input_tokens`.",
        default=None,
    )
    output_tokens: TokenCount = described("Tokens of the answer that users see.", unit="tokens")
    hidden_output_tokens: TokenCount | None = described(
        "Reasoning tokens generated before the answer and not shown. Left out: none.",
        unit="tokens",
        default=None,
    )
    slo: Many[SloItem] = described("What users are promised. Left out: nothing.", default=())
    max_quality_loss_percent: Percent | None = described(
        "Largest loss of answer quality accepted from lower precision. Left out: any.",
        unit="percent",
        default=None,
    )
    weight_precisions: Some[WeightPrecision] | None = described(
        "Weight precisions accepted. Left out: all that the model may be deployed in.",
        default=None,
    )
    kv_precisions: Some[KvPrecision] | None = described(
        "KV cache precisions accepted. Left out: all that the model may be deployed in.",
        default=None,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = repeats("weight_precisions", self.weight_precisions)
        found += repeats("kv_precisions", self.kv_precisions)
        if self.input_tokens is None and self.conversation is None:
            hint = "give input_tokens, or conversation"
            found.append(("input_tokens", "is missing", hint))
        if self.conversation is not None:
            for field in ("input_tokens", "cached_input_fraction"):
                if getattr(self, field) is not None:
                    message = "does not go with conversation, from which it follows"
                    found.append((field, message, "keep one of the two"))
        seen: dict[tuple[str, object], int] = {}
        for index, slo in enumerate(self.slo):
            key = (slo.metric, slo.percentile)
            if key in seen:
                message = f"{slo.metric} at percentile {_plain(slo.percentile)} is given twice"
                found.append((f"slo[{index}]", message, f"slo[{seen[key]}] has it already"))
            seen.setdefault(key, index)
            if (
                slo.metric == "ttft"
                and slo.ttft_share_fraction is not None
                and self.hidden_output_tokens is None
            ):
                message = "applies to ttft only where there are hidden output tokens"
                found.append((f"slo[{index}].ttft_share_fraction", message, "leave it out"))
        mistakes(found)
        return self


class Objective(Part):
    """Least cost, to within a gap, within a time."""

    gap: Gap = described(
        "Relative gap to the proven bound at which solving stops: `0.1%` or 0.001.",
        unit="fraction",
        default=0.001,
    )
    time_limit_s: Positive = described("Longest solving time.", unit="s", default=60.0)


@dataclass(frozen=True, slots=True)
class Source:
    """The text an instance was read from."""

    file: str
    text: str
    sha256: str
    directory: Path
    """Where files that the text names are sought."""
    positions: Positions
    key_positions: Positions

    def problem(self, path: FieldPath, message: str, hint: str = "") -> Problem:
        """A problem at a field of this text."""
        place = self.positions.get(path, (None, None))
        name = field_name(path)
        return Problem(message, hint, file=self.file, line=place[0], column=place[1], field=name)


class Instance(Part):
    """A whole instance. After `load_instance` every name in it is a canonical id."""

    format_version: Literal[1] = described("Version of this format.")
    name: Name = described("Name of the instance, shown in reports.")
    description: str = described("What it is about.", default="")
    engine: Engine = described("The serving engine.", default=Engine())
    roles: Some[Role] = described(
        "Roles that pools may have.", default=("prefill", "decode", "aggregated")
    )
    models: Some[ServedModel] = described("The models to serve.")
    workloads: Some[WorkloadSpec] = described("The workloads to plan for.")
    fleet: FleetLimits = described("What the plan may use.", default=FleetLimits())
    perf: Name = described(
        "Where step times come from: `roofline`, `aiconfigurator` (with the extra of that name), "
        "or a backend that a program has registered.",
        default="roofline",
    )
    calibration: FileNames | None = described(
        "Files of `planner calibrate`, relative to this file, whose measured deployments correct "
        "the roofline. Left out: none.",
        default=None,
    )
    objective: Objective = described("How far to solve.", default=Objective())

    _source: Source | None = PrivateAttr(default=None)
    _cards: Mapping[str, ModelCard] = PrivateAttr(default_factory=dict)

    @property
    def source(self) -> Source:
        """The text this was read from; raises ValueError for an instance made in memory."""
        if self._source is None:
            raise ValueError("this instance was not read from a text")
        return self._source

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        """Model cards by id, those from `card` files included."""
        return self._cards

    def served_model(self, model_id: str) -> ServedModel:
        """The entry of `models` for a canonical id; raises KeyError."""
        for served in self.models:
            if served.model == model_id:
                return served
        raise KeyError(model_id)

    def engine_for(self, model_id: str) -> Engine:
        """Engine settings of a model: its own where given, else the file's."""
        return self.served_model(model_id).engine or self.engine
