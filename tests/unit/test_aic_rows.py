"""AIConfigurator as a competitor: which modes a measured row is tried with, and what comes back."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from planner.fidelity import aic_rows
from planner.fidelity.aic_rows import AicPrediction, checkpoints, predict_aic
from planner.perf.aic_engine import Loaded, NotCoveredError
from planner.perf.aic_names import Checkpoint, Setup

ROW = {
    "id": "row",
    "model_path": "MiniMaxAI/MiniMax-M2.5",
    "system": "h200_sxm",
    "backend": "vllm",
    "gemm_quant_mode": "fp8",
    "moe_quant_mode": "fp8",
    "weights": "fp8",
    "gpus_per_replica": "8",
    "attention_dp": "2",
    "expert_parallel": "8",
    "concurrency": "64",
    "isl_nominal": "1024",
    "osl_nominal": "512",
    "length_scale": "0.9",
    "kv_bytes_per_element": "1.0",
}


def row(**changed: str) -> dict[str, str]:
    return {**ROW, **changed}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {},
            [
                Checkpoint("MiniMaxAI/MiniMax-M2.5", "fp8", "fp8"),
                Checkpoint("MiniMaxAI/MiniMax-M2.5", "fp8", "fp8_block"),
                Checkpoint("MiniMaxAI/MiniMax-M2.5"),
            ],
        ),
        (
            {"model_path": "openai/gpt-oss-120b", "backend": "trtllm", "system": "b200_sxm"},
            [Checkpoint("openai/gpt-oss-120b", None, "w4a8_mxfp4_mxfp8")],
        ),
        (
            {"model_path": "meta-llama/Llama-3.1-70B"},
            [Checkpoint("meta-llama/Meta-Llama-3.1-70B", "fp8_static")],
        ),
        (
            {"model_path": "Qwen/Qwen3-32B", "gemm_quant_mode": "", "weights": "na"},
            [Checkpoint("Qwen/Qwen3-32B")],
        ),
        (
            {
                "model_path": "zhipuai/GLM-5",
                "weights": "fp4",
                "gemm_quant_mode": "nvfp4",
                "moe_quant_mode": "nvfp4",
            },
            [
                Checkpoint("zai-org/GLM-5", "nvfp4", "nvfp4"),
                Checkpoint("nvidia/GLM-5-NVFP4"),
            ],
        ),
    ],
)
def test_the_modes_that_a_row_is_tried_with(
    changed: dict[str, str], expected: list[Checkpoint]
) -> None:
    assert list(checkpoints(row(**changed))) == expected


class Scheduler:
    """A stand-in for its aggregated estimate: remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int, int]] = []

    def run_agg(self, model: Any, database: Any, runtime: Any, *, ctx_tokens: int) -> Any:
        self.asked.append((runtime.isl, runtime.osl, runtime.batch_size, ctx_tokens))
        result = {
            "tpot": 12.5,
            "ttft": 300.0,
            "tokens/s/gpu": 640.0,
            "gemm": "fp8",
            "moe": "fp8_block",
            "version": "0.24.0",
        }
        return SimpleNamespace(
            get_result_dict=lambda: result,
            check_oom=lambda: False,
            check_kv_cache_oom=lambda: True,
        )


def test_a_row_is_predicted_at_its_true_shape_with_the_first_modes_that_have_tables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler, setups = Scheduler(), []

    def load(setup: Setup) -> Loaded:
        setups.append(setup)
        if setup.checkpoint.moe != "fp8_block":
            raise NotCoveredError("MoE data missing")
        return Loaded("model", "tables", scheduler)

    monkeypatch.setattr(aic_rows, "load", load)
    monkeypatch.setattr(
        aic_rows, "import_module", lambda _: SimpleNamespace(RuntimeConfig=SimpleNamespace)
    )
    seen: list[tuple[int, int]] = []
    qwen = row(model_path="openai/gpt-oss-120b")
    found = predict_aic([ROW, qwen], lambda done, of: seen.append((done, of)))
    assert found[0] == AicPrediction(0.0125, 0.3, 640.0, False, "fp8", "fp8_block", "0.24.0")
    assert found[1] == "MoE data missing"
    assert scheduler.asked == [(922, 461, 32, 922)]
    assert seen == [(1, 2), (2, 2)]
    assert setups[1] == Setup(
        Checkpoint("MiniMaxAI/MiniMax-M2.5", "fp8", "fp8_block"),
        "h200_sxm",
        "vllm",
        "fp8",
        4,
        1,
        2,
        1,
        8,
    )


@pytest.mark.skipif(
    find_spec("aiconfigurator_core") is None, reason="needs aiconfigurator-core, of an extra"
)
def test_measured_rows_through_the_package() -> None:
    common = {"expert_parallel": "1", "attention_dp": "1", "kv_bytes_per_element": "2.0"}
    dense = row(
        model_path="Qwen/Qwen3-32B",
        system="h100_sxm",
        backend="trtllm",
        weights="na",
        gemm_quant_mode="",
        moe_quant_mode="",
        gpus_per_replica="2",
        concurrency="16",
        **common,
    )
    missing = row(model_path="openai/gpt-oss-120b", system="l4", backend="vllm", **common)
    found, reason = predict_aic([dense, missing])
    assert isinstance(found, AicPrediction)
    assert 0.008 < found.tpot_s < 0.03
    assert found.ttft_s > found.tpot_s
    assert found.fits
    assert reason == "no queryable versions defined for vllm on l4"
