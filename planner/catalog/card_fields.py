"""The fields of a card file, except its `attention` entries, which `card_shapes` describes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import Field

from planner.catalog.card_shapes import Count, DenseShape, MoeShape, Part

Text = Annotated[str, Field(min_length=1)]
WeightPrecision = Literal["bf16", "fp8", "int8", "int4", "fp4"]
Component = Literal["attention", "dense", "experts", "shared", "head"]
# Up to 4 bytes: a checkpoint may keep a part in fp32.
BytesPerWeight = Annotated[float, Field(gt=0, le=4)]

SUPPORTED_ARCHITECTURES: Final = (
    "BloomForCausalLM",
    "DeepseekV32ForCausalLM",
    "DeepseekV3ForCausalLM",
    "FalconForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Gemma4ForConditionalGeneration",
    "Glm4MoeForCausalLM",
    "GlmMoeDsaForCausalLM",
    "GPTJForCausalLM",
    "GptOssForCausalLM",
    "InternLMForCausalLM",
    "KimiK25ForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "LlamaForCausalLM",
    "MiniMaxM2ForCausalLM",
    "MiniMaxM3ForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "NemotronHForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
)
"""`architectures` of published configs whose layers the shapes here express."""

REFUSED_ARCHITECTURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "DeepseekV4ForCausalLM": (
            "its layers attend to a compressed cache (CSA, HCA) and a raw window at once, "
            "with several residual streams"
        ),
        "DeciLMForCausalLM": "its layers differ from one another in width and kind",
        "MambaForCausalLM": "Mamba-1 selects with per-channel states, not with heads",
    }
)


class MtpFile(Part):
    """Multi-token-prediction layers: each a decoder layer and a projection 2h x h."""

    layers: Count
    attention_group: Annotated[int, Field(ge=0)] = 0
    """Index of the attention entry whose shape they repeat."""
    ffn: Literal["dense", "moe"]


class TotalCountsFile(Part):
    """What a published total includes."""

    embeddings: bool
    mtp: bool


class ActiveCountsFile(Part):
    """What a published active count includes, beside the blocks."""

    embeddings: bool
    head: bool
    indexer: bool = True


class CountsFile(Part):
    """What the published counts include."""

    total: TotalCountsFile
    active: ActiveCountsFile


class PublishedFile(Part):
    """Parameter counts as published, to compare the derived ones with."""

    total_parameters_billion: Annotated[float, Field(gt=0)]
    active_parameters_billion: Annotated[float, Field(gt=0)]
    counts: CountsFile
    note: str = ""
    source: Text


class CardFile(Part):
    """A card as written, without its `attention` entries, which are read one by one."""

    format_version: Literal[1]
    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$")]
    repository: Annotated[str, Field(pattern=r"^[\w.\-]+/[\w.\-]+$")]
    aliases: list[Text]
    family: Text
    licence: Text
    source: Annotated[str, Field(pattern=r"^https?://")]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]
    note: str = ""
    architecture: Text
    hidden_size: Count
    layers: Count
    layout: Literal["sequential", "parallel", "separate"] = "sequential"
    vocabulary_size: Count
    tied_embeddings: bool
    max_context_tokens: Count
    dense_ffn: DenseShape | None = None
    moe: MoeShape | None = None
    mtp: MtpFile | None = None
    native_precision: WeightPrecision
    component_precisions: dict[Component, WeightPrecision] = Field(default_factory=dict)
    precisions: dict[WeightPrecision, dict[Component, BytesPerWeight]] = Field(default_factory=dict)
    published: PublishedFile
