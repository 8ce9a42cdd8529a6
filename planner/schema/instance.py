"""The instance: what is to be served, on what, and how well.

Written as YAML, read by `planner.schema.load`. This module says what a file may hold; it knows
no catalogue, so whether a named model exists is checked in `planner.schema.resolve`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

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
    ShareOfOne,
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


CACHE_FIELDS: Final = (
    "cached_input_fraction",
    "cached_input_by_cache_size",
    "cached_request_fraction",
)


class HitPoint(Part):
    """How much of the input a prefix cache of one size finds."""

    cache_tokens: Positive = described(
        "Tokens that the prefix cache of the pool has room for, all its replicas together.",
        unit="tokens",
    )
    fraction: ShareBelowOne = described("Share of the input found in it.", unit="fraction")


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
    arrival_scv: Annotated[float, Field(ge=0, le=100)] | None = described(
        "Squared coefficient of variation of the times between requests: 1 for independent users "
        "(Poisson), more where they come in clumps. Left out: 1.0, and said to be assumed.",
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
    cached_input_by_cache_size: Some[HitPoint] | None = described(
        "Share of the input found in the prefix cache, by the tokens that the cache of a pool has "
        "room for; the plan buys the room. Give this or `cached_input_fraction`.",
        default=None,
    )
    cached_request_fraction: ShareOfOne | None = described(
        "Share of the requests that find anything in the prefix cache; they share what is found. "
        "Left out: all requests, each the same share of its input.",
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
            for field in ("input_tokens", *CACHE_FIELDS):
                if getattr(self, field) is not None:
                    message = "does not go with conversation, from which it follows"
                    found.append((field, message, "keep one of the two"))
        found += self._cache_mistakes()
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

    def _cache_mistakes(self) -> list[tuple[str, str, str]]:
        """What is wrong with the prefix cache: two forms, a falling curve, too few requests."""
        found: list[tuple[str, str, str]] = []
        curve = self.cached_input_by_cache_size or ()
        if curve and self.cached_input_fraction is not None:
            message = "does not go with cached_input_by_cache_size"
            found.append(("cached_input_fraction", message, "keep one of the two"))
        for index, (low, high) in enumerate(pairwise(curve), start=1):
            field = f"cached_input_by_cache_size[{index}]"
            if high.cache_tokens <= low.cache_tokens:
                message = f"is {high.cache_tokens:g}, not above the size before it"
                found.append((f"{field}.cache_tokens", message, "sort the points by cache_tokens"))
            if high.fraction < low.fraction:
                message = f"is {high.fraction:g}, below the fraction of a smaller cache"
                found.append((f"{field}.fraction", message, "a larger cache finds no less"))
        share = self.cached_request_fraction
        if share is None:
            return found
        largest = max((point.fraction for point in curve), default=self.cached_input_fraction)
        if largest is None:
            message = "says which requests find something, but nothing is cached"
            hint = "give cached_input_fraction or cached_input_by_cache_size"
            found.append(("cached_request_fraction", message, hint))
        elif largest >= share:
            message = f"is {share:g}: so few requests cannot find {largest:g} of all input"
            hint = f"it is above {largest:g}, as no request finds all of its input"
            found.append(("cached_request_fraction", message, hint))
        return found


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
