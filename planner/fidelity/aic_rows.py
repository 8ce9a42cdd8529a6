"""AIConfigurator's own prediction of measured deployments, through its Python API.

What is run is its estimate of aggregated serving (`run_agg` of aiconfigurator-core) exactly as
its own accuracy script runs it (tools/accuracy_regression_testing in ai-dynamo/aiconfigurator):
batch = clients per attention group, one prompt's tokens of prefill per step, the quantisation
modes of the measured file, tables measured with its newest complete version. Where we know more
than the file does, it gets the benefit: true shapes and mean lengths, the precision of the cache,
and the modes that the deployed checkpoint really has:

1. A model path that names a quantised checkpoint (Qwen3-235B-A22B-FP8, gpt-oss) has that
   checkpoint's modes, not the file's; Llama-3.1-8B-Instruct-FP8 likewise.
2. Per-tensor FP8 of a dense model has static scales, as in NVIDIA's checkpoints.
3. Everything else has the modes of the file.
4. Where tables lack for those, experts have block scales, as the published FP8 checkpoints have;
   failing that, the modes are those of the checkpoint that the package ships.

Rules 1, 2 and 4 were settled with the measured times in sight: its figures are at their best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from planner.perf.aic_engine import PACKAGE, Loaded, NotCoveredError, load, quiet, reason_of
from planner.perf.aic_names import Checkpoint, Setup, on_system

PATHS: Final[Mapping[str, str]] = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
    "zhipuai/GLM-5": "zai-org/GLM-5",
}
"""Paths of the measured file for which the package ships the same shapes under another one."""

PUBLISHED: Final[Mapping[tuple[str, str], str]] = {
    ("deepseek-ai/DeepSeek-R1", "fp4"): "nvidia/DeepSeek-V3.1-NVFP4",
    ("deepseek-ai/DeepSeek-V3", "fp4"): "nvidia/DeepSeek-V3.1-NVFP4",
    ("moonshotai/Kimi-K2.5", "fp4"): "nvidia/Kimi-K2.5-NVFP4",
    ("MiniMaxAI/MiniMax-M2.5", "fp4"): "nvidia/MiniMax-M2.5-NVFP4",
    ("zhipuai/GLM-5", "fp4"): "nvidia/GLM-5-NVFP4",
    ("zhipuai/GLM-5", "fp8"): "zai-org/GLM-5-FP8",
    ("Qwen/Qwen3.5-397B-A17B", "fp4"): "nvidia/Qwen3.5-397B-A17B-NVFP4",
}
"""Checkpoints of a precision other than the path's own, with their config in the package."""

QUANTISED: Final = frozenset({"Qwen/Qwen3-235B-A22B-FP8", "openai/gpt-oss-120b"})
"""Paths that are quantised checkpoints themselves."""

DENSE: Final = frozenset(
    {
        "Qwen/Qwen3-32B",
        "meta-llama/Llama-3.1-70B",
        "meta-llama/Llama-3.1-8B-Instruct",
        "nvidia/Llama-3.1-8B-Instruct-FP8",
    }
)


@dataclass(frozen=True, slots=True)
class AicPrediction:
    """Its prediction of one row; times are means, as in the measured file.

    `tokens_per_s_per_gpu` counts output tokens. `fits` is False where it says that the batch
    exceeds the memory, and that its latencies are then too low.
    """

    tpot_s: float
    ttft_s: float
    tokens_per_s_per_gpu: float
    fits: bool
    gemm_mode: str
    moe_mode: str
    tables_version: str


def predict_aic(
    rows: Sequence[Mapping[str, str]], progress: Callable[[int, int], None] | None = None
) -> list[AicPrediction | str]:
    """Its prediction of every row, or the reason why it has none, in the order of `rows`.

    A row holds the columns of the labels (true shape, screening) and of the measured file
    together. `progress` gets the rows done and the rows in all. Deployments are compiled once.
    Raises ModuleNotFoundError if the package is not installed.
    """
    found: list[AicPrediction | str] = []
    for done, row in enumerate(rows):
        found.append(_predict(row))
        if progress is not None:
            progress(done + 1, len(rows))
    return found


def _predict(row: Mapping[str, str]) -> AicPrediction | str:
    first_reason = ""
    for checkpoint in checkpoints(row):
        try:
            return _run(load(_setup(row, checkpoint)), row)
        except NotCoveredError as error:
            first_reason = first_reason or str(error)
    return first_reason


def checkpoints(row: Mapping[str, str]) -> Iterator[Checkpoint]:
    """The checkpoints and modes that a row is tried with, best first (the rules above)."""
    named, weights = row["model_path"], row["weights"]
    path = PATHS.get(named, named)
    gemm, moe = row["gemm_quant_mode"] or None, row["moe_quant_mode"] or None
    if named in QUANTISED:
        yield on_system(Checkpoint(path), row["system"], row["backend"])
        return
    if named in DENSE:
        yield Checkpoint(path, "fp8_static" if gemm == "fp8" else gemm)
        return
    yield Checkpoint(path, gemm, moe)
    if weights == "fp8":
        yield Checkpoint(path, gemm, "fp8_block")
    yield Checkpoint(PUBLISHED.get((named, weights), path))


def _setup(row: Mapping[str, str], checkpoint: Checkpoint) -> Setup:
    gpus, groups = int(row["gpus_per_replica"]), int(row["attention_dp"])
    experts = int(row["expert_parallel"])
    return Setup(
        checkpoint=checkpoint,
        system=row["system"],
        engine=row["backend"],
        kv_mode="fp8" if float(row["kv_bytes_per_element"]) == 1.0 else "bfloat16",
        tensor_parallel=gpus // groups,
        attention_data_parallel=groups,
        moe_tensor_parallel=gpus // experts,
        moe_expert_parallel=experts,
    )


def _run(loaded: Loaded, row: Mapping[str, str]) -> AicPrediction:
    scale = float(row["length_scale"])
    prompt = round(float(row["isl_nominal"]) * scale)
    batch = max(round(float(row["concurrency"]) / float(row["attention_dp"])), 1)
    runtime = import_module(f"{PACKAGE}.sdk.config").RuntimeConfig(
        isl=prompt, osl=round(float(row["osl_nominal"]) * scale), batch_size=batch
    )
    with quiet():
        try:
            summary = loaded.scheduler.run_agg(
                loaded.model, loaded.database, runtime, ctx_tokens=prompt
            )
        except Exception as error:  # it raises many kinds, all of them "cannot predict this"
            raise NotCoveredError(reason_of(error)) from error
    result = summary.get_result_dict()
    return AicPrediction(
        tpot_s=float(result["tpot"]) / 1e3,
        ttft_s=float(result["ttft"]) / 1e3,
        tokens_per_s_per_gpu=float(result["tokens/s/gpu"]),
        fits=not (summary.check_oom() or summary.check_kv_cache_oom()),
        gemm_mode=str(result["gemm"]),
        moe_mode=str(result["moe"]),
        tables_version=str(result["version"]),
    )
