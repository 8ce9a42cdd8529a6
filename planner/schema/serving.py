"""The models to serve and the engine that serves them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from planner.schema.fields import (
    Count,
    Name,
    Part,
    Positive,
    ShareOfOne,
    Some,
    Whole,
    described,
    mistakes,
    repeated,
)

WeightPrecision = Literal["bf16", "fp8", "int8", "int4", "fp4"]
KvPrecision = Literal["bf16", "fp8"]
EngineName = Literal["vllm", "sglang", "tensorrt-llm"]
Role = Literal["prefill", "decode", "aggregated"]
Routing = Literal[
    "shared_queue",
    "queued_tokens",
    "least_outstanding",
    "prefix_affine",
    "round_robin",
    "random",
]


def repeats(field: str, values: tuple[str, ...] | None) -> list[tuple[str, str, str]]:
    """A mistake for each value listed twice in a field."""
    return [
        (f"{field}[{index}]", f"{values[index]!r} is listed twice", "list it once")
        for index in repeated(values or ())
        if values
    ]


DEFAULT_ENGINE: EngineName = "vllm"


class Engine(Part):
    """Settings of the serving engine, for all models or for one.

    A setting left out is the engine's own default, kept with its source in the program's data;
    in a model's `engine`, it is that of the file's `engine`.
    """

    name: EngineName | None = described(
        "Engine whose defaults and measured overheads are used. Left out: vllm.", default=None
    )
    page_efficiency_fraction: ShareOfOne | None = described(
        "Share of the allocated KV pages that holds tokens.", unit="fraction", default=None
    )
    kv_occupancy_limit_fraction: ShareOfOne | None = described(
        "Mean KV occupancy is kept below this; room for a fluctuating batch is kept beside it.",
        unit="fraction",
        default=None,
    )
    memory_utilization_fraction: ShareOfOne | None = described(
        "Share of the accelerator's memory the engine may use (vLLM's gpu_memory_utilization).",
        unit="fraction",
        default=None,
    )
    chunk_budgets_tokens: Some[Count] | None = described(
        "Token budgets of one step that an aggregated engine may be run with.",
        unit="tokens",
        default=None,
    )
    max_num_seqs: Count | None = described(
        "Most sequences in one batch of a replica.", unit="requests", default=None
    )
    prefix_cache: bool | None = described(
        "Whether repeated input is found in a prefix cache.", default=None
    )
    routing: Routing | None = described(
        "How requests are spread over the replicas of a pool: shared_queue (a replica takes the "
        "next when it is free), queued_tokens (to the least queued work), least_outstanding (to "
        "the fewest requests), prefix_affine (to the replica that may hold the prefix), "
        "round_robin or random.",
        default=None,
    )
    aggregated_utilization_cap_fraction: ShareOfOne | None = described(
        "Largest share of time that an aggregated replica may be busy with prefill, within the "
        "range in which its formulas were tested.",
        unit="fraction",
        default=None,
    )

    @property
    def engine_name(self) -> EngineName:
        """The engine's name, given or default."""
        return self.name or DEFAULT_ENGINE

    def overrides(self) -> dict[str, Any]:
        """The settings given, by name (the engine's name apart)."""
        given: dict[str, Any] = self.model_dump(exclude_none=True, exclude={"name"})
        return given

    def over(self, base: Engine) -> Engine:
        """These settings where given, those of `base` elsewhere.

        Settings of `base` do not carry over to another engine than it names.
        """
        if self.engine_name != base.engine_name and self.name is not None:
            return self
        return base.model_copy(update={"name": self.name or base.engine_name, **self.overrides()})

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = [
            (f"chunk_budgets_tokens[{index}]", "is listed twice", "list it once")
            for index in repeated(self.chunk_budgets_tokens or ())
        ]
        mistakes(found)
        return self


class Speculative(Part):
    """Speculative decoding: a draft proposes tokens, the model checks them in one step."""

    draft_tokens: Annotated[int, Field(ge=1, le=64), Whole] = described(
        "Tokens proposed in each step.", unit="tokens"
    )
    accepted_tokens_per_step: Annotated[float, Field(ge=1)] = described(
        "Mean tokens gained in each step, the model's own included.", unit="tokens"
    )
    draft_parameters_billion: Positive | None = described(
        "Size of the draft model. Left out: the model's own multi-token-prediction layers.",
        unit="10^9 parameters",
        default=None,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.accepted_tokens_per_step > self.draft_tokens + 1:
            message = (
                f"is {self.accepted_tokens_per_step:g}, above draft_tokens + 1 "
                f"= {self.draft_tokens + 1}"
            )
            hint = "a step gains at most the draft and one token of the model"
            mistakes([("accepted_tokens_per_step", message, hint)])
        return self


class ServedModel(Part):
    """A model that workloads use: one of the catalogue's, or a card of your own."""

    model: Name | None = described(
        "Id, repository or alias of a model card. Give this or `card`.", default=None
    )
    card: Name | None = described(
        "Path of a model card, relative to this file. Give this or `model`.", default=None
    )
    weight_precisions: Some[WeightPrecision] | None = described(
        "Weight precisions it may be deployed in. Left out: all that the card allows.",
        default=None,
    )
    kv_precisions: Some[KvPrecision] | None = described(
        "KV cache precisions it may be deployed in. Left out: bf16 and fp8.", default=None
    )
    speculative: Speculative | None = described("Speculative decoding, if used.", default=None)
    engine: Engine | None = described(
        "Engine settings for this model; a setting left out is that of the file's `engine`.",
        default=None,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = repeats("weight_precisions", self.weight_precisions)
        found += repeats("kv_precisions", self.kv_precisions)
        if self.model is None and self.card is None:
            found.append(("", "neither model nor card is given", "name a model"))
        if self.model is not None and self.card is not None:
            found.append(("card", "model and card are both given", "keep one of the two"))
        mistakes(found)
        return self
