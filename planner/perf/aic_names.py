"""What AIConfigurator calls things: its system, engine, checkpoint and quantisation modes.

Only names of aiconfigurator-core 0.12 that its wheel carries are used, so that nothing is ever
fetched: model shapes come from the configs it ships, times from the tables it ships. What has no
name there cannot be predicted; `setup_of` says why in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from planner.perf.config import PoolConfig

SYSTEMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "a100-80gb": "a100_sxm",
        "a100-80gb-pcie": "a100_pcie",
        "b200": "b200_sxm",
        "b300": "b300_sxm",
        "gb200": "gb200",
        "gb300": "gb300",
        "h100": "h100_sxm",
        "h100-pcie": "h100_pcie",
        "h200": "h200_sxm",
        "l4": "l4",
        "l40s": "l40s",
        "rtx-pro-6000": "rtx_pro_6000_server",
    }
)
"""Accelerators of the catalogue whose kernels were measured."""

BLACKWELL: Final = frozenset({"b200_sxm", "b300_sxm", "gb200", "gb300", "rtx_pro_6000_server"})

ENGINES: Final[Mapping[str, str]] = MappingProxyType(
    {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "trtllm"}
)

KV_MODES: Final[Mapping[str, str]] = MappingProxyType({"bf16": "bfloat16", "fp8": "fp8"})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model whose config the wheel carries, with the modes of its matrix multiplications.

    `gemm` and `moe` None stand for what the checkpoint's own config says.
    """

    path: str
    gemm: str | None = None
    moe: str | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """One deployment in AIConfigurator's names; what its estimator is compiled for.

    `moe_tensor_parallel` x `moe_expert_parallel` are the GPUs of a stage, and mean nothing for
    dense models.
    """

    checkpoint: Checkpoint
    system: str
    engine: str
    kv_mode: str
    tensor_parallel: int
    pipeline_parallel: int = 1
    attention_data_parallel: int = 1
    moe_tensor_parallel: int = 1
    moe_expert_parallel: int = 1


def _plain(path: str) -> dict[str, Checkpoint]:
    """A bf16 model: NVIDIA's per-tensor FP8 checkpoints have static scales, vendors' mixtures of
    experts scales per block, NVFP4 mixtures quantise nothing but experts.
    """
    return {
        "bf16": Checkpoint(path, "bfloat16", "bfloat16"),
        "fp8": Checkpoint(path, "fp8_static", "fp8_block"),
        "int4": Checkpoint(path, "int4_wo", "int4_wo"),
        "fp4": Checkpoint(path, "nvfp4", "nvfp4"),
    }


def _mixture(path: str) -> dict[str, Checkpoint]:
    return {
        "bf16": Checkpoint(path, "bfloat16", "bfloat16"),
        "fp8": Checkpoint(path, "fp8_block", "fp8_block"),
        "int4": Checkpoint(path, "int4_wo", "int4_wo"),
        "fp4": Checkpoint(path, "bfloat16", "nvfp4"),
    }


def _deepseek(path: str, fp4: str) -> dict[str, Checkpoint]:
    return {"fp8": Checkpoint(path), "fp4": Checkpoint(fp4)}


def _own(path: str, *precisions: str) -> dict[str, Checkpoint]:
    return {precision: Checkpoint(path) for precision in precisions}


CHECKPOINTS: Final[Mapping[str, Mapping[str, Checkpoint]]] = MappingProxyType(
    {
        "deepseek-r1": _deepseek("deepseek-ai/DeepSeek-R1", "nvidia/DeepSeek-V3.1-NVFP4"),
        "deepseek-v3": _deepseek("deepseek-ai/DeepSeek-V3", "nvidia/DeepSeek-V3.1-NVFP4"),
        "deepseek-v3.2": _deepseek("deepseek-ai/DeepSeek-V3.2", "nvidia/DeepSeek-V3.2-NVFP4"),
        "glm-5": {
            "bf16": Checkpoint("zai-org/GLM-5"),
            "fp8": Checkpoint("zai-org/GLM-5-FP8"),
            "fp4": Checkpoint("nvidia/GLM-5-NVFP4"),
        },
        "gpt-oss-120b": _own("openai/gpt-oss-120b", "int4", "fp4"),
        "gpt-oss-20b": _own("openai/gpt-oss-20b", "int4", "fp4"),
        "kimi-k2.5": {
            "int4": Checkpoint("moonshotai/Kimi-K2.5"),
            "fp4": Checkpoint("nvidia/Kimi-K2.5-NVFP4"),
        },
        "llama-3.1-405b-instruct": _plain("meta-llama/Meta-Llama-3.1-405B"),
        "llama-3.1-70b-instruct": _plain("meta-llama/Meta-Llama-3.1-70B"),
        "llama-3.1-8b-instruct": _plain("meta-llama/Meta-Llama-3.1-8B"),
        "llama-3.3-70b-instruct": _plain("meta-llama/Meta-Llama-3.1-70B"),
        # The checkpoint has block scales throughout; the tables that match what was measured are
        # those of per-tensor multiplications outside the experts.
        "minimax-m2.5": {
            "fp8": Checkpoint("MiniMaxAI/MiniMax-M2.5", "fp8", "fp8_block"),
            "fp4": Checkpoint("nvidia/MiniMax-M2.5-NVFP4"),
        },
        "qwen3-235b-a22b": {
            **_mixture("Qwen/Qwen3-235B-A22B"),
            "fp8": Checkpoint("Qwen/Qwen3-235B-A22B-FP8"),
            "fp4": Checkpoint("nvidia/Qwen3-235B-A22B-NVFP4"),
        },
        "qwen3-30b-a3b": {
            **_mixture("Qwen/Qwen3-30B-A3B"),
            "fp8": Checkpoint("Qwen/Qwen3-30B-A3B-FP8"),
        },
        "qwen3-32b": _plain("Qwen/Qwen3-32B"),
        "qwen3-8b": _plain("Qwen/Qwen3-8B"),
        "qwen3-coder-480b-a35b": _mixture("Qwen/Qwen3-Coder-480B-A35B-Instruct"),
        "qwen3.5-397b-a17b": {
            **_mixture("Qwen/Qwen3.5-397B-A17B"),
            "fp8": Checkpoint("Qwen/Qwen3.5-397B-A17B", "fp8", "fp8_block"),
            "fp4": Checkpoint("nvidia/Qwen3.5-397B-A17B-NVFP4"),
        },
    }
)
"""Model cards by weight precision: the checkpoint that is deployed in it."""


def on_system(checkpoint: Checkpoint, system: str, engine: str) -> Checkpoint:
    """The same checkpoint with the modes it runs in there: TensorRT-LLM multiplies the MXFP4
    experts of gpt-oss with MXFP8 activations on Blackwell, everywhere else with bf16.
    """
    mxfp4 = checkpoint.path.startswith("openai/gpt-oss") and checkpoint.moe is None
    if mxfp4 and engine == "trtllm" and system in BLACKWELL:
        return Checkpoint(checkpoint.path, checkpoint.gemm, "w4a8_mxfp4_mxfp8")
    return checkpoint


def setup_of(config: PoolConfig) -> Setup | str:
    """AIConfigurator's names for a configuration, or why it has none, in words."""
    system = SYSTEMS.get(config.accelerator.id)
    if system is None:
        return f"{config.accelerator.name} was not measured"
    engine = ENGINES.get(config.engine.name)
    if engine is None:
        return f"the engine {config.engine.name} was not measured"
    if config.speculative is not None:
        return "speculative decoding is not in the tables"
    known = CHECKPOINTS.get(config.model.id)
    if known is None:
        return f"{config.model.id} is not among the models of the tables"
    checkpoint = known.get(config.weight_precision)
    if checkpoint is None:
        return f"{config.model.id} in {config.weight_precision} is not in the tables"
    if config.kv_precision not in KV_MODES:
        return f"a cache in {config.kv_precision} is not in the tables"
    layout = config.layout
    whole_experts = layout.expert_parallel > 1
    return Setup(
        checkpoint=on_system(checkpoint, system, engine),
        system=system,
        engine=engine,
        kv_mode=KV_MODES[config.kv_precision],
        tensor_parallel=layout.tensor_parallel,
        pipeline_parallel=layout.pipeline_parallel,
        attention_data_parallel=layout.attention_data_parallel,
        moe_tensor_parallel=1 if whole_experts else layout.stage_gpus,
        moe_expert_parallel=layout.expert_parallel,
    )
