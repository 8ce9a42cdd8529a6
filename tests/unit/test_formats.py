"""Each golden result file, read, against values worked out by hand from what is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.calibrate.formats import read_results
from planner.calibrate.measurement import Measurement, Recorded
from planner.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "results"


def only(name: str) -> Measurement:
    (measurement,) = read_results(GOLDEN / name)
    return measurement


def edited(tmp_path: Path, name: str, **changes: Any) -> Path:
    """A copy of a golden JSON object with top-level fields replaced; None takes them out."""
    document = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    document |= changes
    path = tmp_path / name
    kept = {key: value for key, value in document.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
    return path


def test_vllm_serve() -> None:
    found = only("vllm_serve.json")
    assert (found.format, found.place) == ("vllm bench serve", "")
    assert found.input_tokens == 396_000 / 396
    assert found.output_tokens == 39_996 / 396
    assert found.concurrency == 16
    assert found.request_rate_per_s == pytest.approx(396 / 32)
    assert (found.duration_s, found.requests, found.failed) == (32, 396, 4)
    assert (found.tpot_s, found.ttft_s, found.e2e_s) == pytest.approx((0.010, 0.200, 1.200))
    assert found.tpot_percentiles_s == pytest.approx({0.5: 0.0098, 0.9: 0.0115, 0.99: 0.012})
    assert found.ttft_percentiles_s == pytest.approx({0.5: 0.19, 0.9: 0.26, 0.99: 0.3})
    assert found.output_tokens_per_s == 1_249.875
    # 1 + 22,302 accepted / 17,700 drafts
    assert found.accepted_tokens_per_step == pytest.approx(1 + 22_302 / 17_700)
    assert found.recorded == Recorded(
        model="meta-llama/Llama-3.1-8B-Instruct",
        accelerator="H100-80GB SXM",
        weight_precision="fp8",
        tensor_parallel=2,
    )


def test_vllm_append_is_json_lines_and_rates_give_concurrency_by_littles_law() -> None:
    at_rate, capped = read_results(GOLDEN / "vllm_append.jsonl")
    assert (at_rate.place, capped.place) == ("line 1", "line 2")
    # e2e is not in the file: 0.2 + 100 x 0.010 = 1.2 s; times 400 / 100 requests/s
    assert at_rate.e2e_s is None
    assert at_rate.concurrency == pytest.approx(4.8)
    # 0.25 + 100 x 0.012 = 1.45 s; times 400 / 80, below the limit of 8
    assert capped.concurrency == pytest.approx(7.25)
    assert any("Little" in note for note in capped.notes)


def test_vllm_older_spelling_without_failed() -> None:
    found = only("vllm_older.json")
    assert (found.requests, found.failed) == (192, 8)
    assert (found.input_tokens, found.output_tokens) == (512, 129)
    # 2.4 requests/s x (0.06 + 128 x 0.008) s
    assert found.concurrency == pytest.approx(2.4 * 1.084)


def test_vllm_fewer_requests_than_places_never_fill_them(tmp_path: Path) -> None:
    (found,) = read_results(edited(tmp_path, "vllm_serve.json", max_concurrency=1_000))
    assert found.concurrency == pytest.approx(12.375 * 1.2)


def test_vllm_tpot_of_the_means_where_it_was_not_saved(tmp_path: Path) -> None:
    (found,) = read_results(edited(tmp_path, "vllm_serve.json", mean_tpot_ms=None))
    assert found.tpot_s == pytest.approx((1.2 - 0.2) / 100)


def test_answers_of_one_token_have_no_tpot(tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        "vllm_serve.json",
        total_output_tokens=396,
        output_throughput=12.375,
        mean_tpot_ms=0.0,
        median_tpot_ms=0.0,
        p90_tpot_ms=0.0,
        p99_tpot_ms=0.0,
        mean_e2el_ms=201.0,
    )
    (found,) = read_results(path)
    assert found.output_tokens == 1
    assert found.tpot_s is None
    assert found.tpot_percentiles_s == {}


def test_sglang_attention_groups_share_the_ranks() -> None:
    grouped, replicated = read_results(GOLDEN / "sglang_bench.jsonl")
    assert grouped.place == "line 1"
    assert (grouped.input_tokens, grouped.output_tokens) == (2_048, 512)
    assert grouped.concurrency == 64
    assert grouped.request_rate_per_s == 2
    assert (grouped.tpot_s, grouped.ttft_s, grouped.e2e_s) == pytest.approx((0.057, 1.0, 30.13))
    assert grouped.tpot_percentiles_s == pytest.approx(
        {0.5: 0.0568, 0.9: 0.0585, 0.95: 0.059, 0.99: 0.06}
    )
    assert grouped.cached_fraction == 0.25
    assert grouped.accepted_tokens_per_step == 2.5
    assert grouped.failed is None
    assert grouped.disaggregated is False
    assert grouped.recorded == Recorded(
        model="deepseek-ai/DeepSeek-V3",
        engine="sglang",
        weight_precision="fp8",
        tensor_parallel=16 // 8,
        pipeline_parallel=1,
        attention_data_parallel=8,
        expert_parallel=16,
        gpus=16,
        speculative="EAGLE",
    )
    assert replicated.concurrency == 20.4  # measured, as there is no limit
    assert replicated.accepted_tokens_per_step is None
    assert replicated.recorded == Recorded(
        model="Qwen/Qwen3-32B",
        engine="sglang",
        kv_precision="fp8_e4m3",
        tensor_parallel=4,
        pipeline_parallel=2,
        attention_data_parallel=1,
        expert_parallel=1,
        gpus=8,
        replicas=3,
        speculative="none",
    )


def test_sglang_disaggregated_takes_the_decode_server(tmp_path: Path) -> None:
    line = json.loads((GOLDEN / "sglang_bench.jsonl").read_text().splitlines()[0])
    server = line["server_info"]
    line["server_info"] = {"prefill": [server], "decode": [server | {"tp_size": 32, "dp_size": 32}]}
    path = tmp_path / "apart.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
    (found,) = read_results(path)
    assert found.disaggregated is True
    assert found.recorded.tensor_parallel == 1
    assert found.recorded.attention_data_parallel == 32
    assert found.recorded.gpus is None  # how many servers of each kind is not recorded


def test_guidellm_v2() -> None:
    first, second = read_results(GOLDEN / "guidellm_v2.json")
    assert (first.place, second.place) == ("benchmarks[0]", "benchmarks[1]")
    assert (first.input_tokens, first.output_tokens) == (1_024, 101)
    assert (first.concurrency, second.concurrency) == (7.92, 15.5)
    assert (second.requests, second.failed) == (500, 2)
    assert (first.request_rate_per_s, first.duration_s) == (3.3, 100)
    # The inter-token latency, not time_per_output_token (23.76 ms with the first token).
    assert (first.tpot_s, first.ttft_s, first.e2e_s) == pytest.approx((0.020, 0.400, 2.400))
    assert first.tpot_percentiles_s == pytest.approx(
        {0.05: 0.019, 0.5: 0.019, 0.95: 0.024, 0.99: 0.025, 0.999: 0.03}
    )
    assert first.recorded == Recorded(model="Qwen/Qwen3-32B")


def test_guidellm_v1() -> None:
    found = only("guidellm_v1.json")
    assert (found.requests, found.failed) == (330, 5)
    assert found.tpot_s == pytest.approx(0.020)
    assert found.recorded.model == "Qwen/Qwen3-32B"


def guidellm_without(tmp_path: Path, name: str, *metrics: str) -> Path:
    document = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    document["benchmarks"] = document["benchmarks"][:1]
    for metric in metrics:
        del document["benchmarks"][0]["metrics"][metric]
    path = tmp_path / name
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_guidellm_v2_takes_the_first_token_out_of_time_per_output_token(tmp_path: Path) -> None:
    path = guidellm_without(
        tmp_path, "guidellm_v2.json", "inter_token_latency_ms", "request_latency"
    )
    (found,) = read_results(path)
    # (2400 / 101 x 101 - 400) / 100 = 20 ms
    assert found.tpot_s == pytest.approx(0.020)
    assert any("first token" in note for note in found.notes)


def test_guidellm_v1_time_per_output_token_cannot_be_told(tmp_path: Path) -> None:
    path = guidellm_without(
        tmp_path, "guidellm_v1.json", "inter_token_latency_ms", "request_latency"
    )
    with pytest.raises(InputError, match=r"inter_token_latency_ms.successful.mean: is missing"):
        read_results(path)


def test_aiperf_reads_units_and_phases() -> None:
    found = only("aiperf.json")
    assert (found.input_tokens, found.output_tokens) == (3_000, 401)
    assert found.concurrency == 32  # of the phase `profiling`, not of the warm-up
    assert (found.request_rate_per_s, found.duration_s) == (5, 120)
    assert (found.requests, found.failed) == (600, 6)
    # 15,000 us
    assert (found.tpot_s, found.ttft_s, found.e2e_s) == pytest.approx((0.015, 0.300, 6.300))
    assert found.tpot_percentiles_s == pytest.approx(
        {0.5: 0.0148, 0.9: 0.016, 0.95: 0.017, 0.99: 0.019}
    )
    assert found.output_tokens_per_s == 2_005
    assert found.cached_fraction == pytest.approx(0.3)
    assert found.accepted_tokens_per_step == 3.2
    assert found.recorded == Recorded(
        model="openai/gpt-oss-120b", accelerator="NVIDIA H100 80GB HBM3"
    )


def test_genai_perf() -> None:
    found = only("genai_perf.json")
    assert found.concurrency == 5
    assert found.duration_s == pytest.approx(100 / 2)
    assert (found.requests, found.failed) == (100, None)
    assert found.tpot_s == pytest.approx((2.2 - 0.2) / 200)
    assert found.recorded == Recorded(model="meta-llama/Llama-3.1-8B-Instruct")


def test_inference_perf() -> None:
    found = only("inference_perf_stage.json")
    assert (found.input_tokens, found.output_tokens) == (500, 201)
    assert found.concurrency == pytest.approx(10 * 2.1)
    assert (found.duration_s, found.requests, found.failed) == (61, 610, 10)
    assert (found.tpot_s, found.ttft_s, found.e2e_s) == (0.01, 0.1, 2.1)
    assert found.tpot_percentiles_s[0.999] == 0.0125
    assert found.cached_fraction == pytest.approx(76_250 / 305_000)


def inference_perf_with(tmp_path: Path, **latencies: Any) -> Path:
    document = json.loads((GOLDEN / "inference_perf_stage.json").read_text(encoding="utf-8"))
    document["successes"]["latency"] |= latencies
    path = tmp_path / "stage_0_lifecycle_metrics.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_inference_perf_that_counted_chunks_is_corrected(tmp_path: Path) -> None:
    (found,) = read_results(
        inference_perf_with(tmp_path, time_per_output_token={"mean": 0.005, "p99": 0.006})
    )
    assert found.tpot_s == pytest.approx((2.1 - 0.1) / 200)
    assert found.tpot_percentiles_s == {}
    assert any("chunks" in note for note in found.notes)


def test_inference_perf_takes_the_first_token_out(tmp_path: Path) -> None:
    (found,) = read_results(
        inference_perf_with(
            tmp_path,
            time_per_output_token=None,
            request_latency=None,
            normalized_time_per_output_token={"mean": 2.1 / 201},
        )
    )
    assert found.tpot_s == pytest.approx((2.1 - 0.1) / 200)


def test_inference_perf_summary_over_stages_is_refused(tmp_path: Path) -> None:
    path = edited(tmp_path, "inference_perf_stage.json", load_summary={"count": 620})
    with pytest.raises(InputError, match=r"load_summary: .*summary over all stages"):
        read_results(path)


def test_inferencex_single_node() -> None:
    found = read_results(GOLDEN / "inferencex.json")[0]
    assert found.place == "[0]"
    # (28.3008 - 0.6) / 0.03 + 1 = 924.36 tokens of 1,024
    assert found.output_tokens == pytest.approx(924.36)
    assert found.input_tokens == pytest.approx(924.36)
    assert found.concurrency == 64
    assert (found.tpot_s, found.ttft_s, found.e2e_s) == (0.03, 0.6, 28.3008)
    assert found.tpot_percentiles_s == {0.5: 0.029, 0.99: 0.034}
    assert found.output_tokens_per_s == 225 * 8
    assert found.requests is None
    assert found.disaggregated is False
    assert found.recorded == Recorded(
        model="deepseek-ai/DeepSeek-R1-0528",
        accelerator="h200-nv_3",
        engine="sglang",
        weight_precision="fp8",
        tensor_parallel=1,
        attention_data_parallel=8,
        expert_parallel=8,
        gpus=8,
        speculative="none",
    )


def test_inferencex_disaggregated_output_is_per_decode_gpu() -> None:
    found = read_results(GOLDEN / "inferencex.json")[1]
    assert (found.input_tokens, found.output_tokens) == pytest.approx((7_372.8, 921.6))
    assert found.output_tokens_per_s == 1_000 * 16
    assert found.disaggregated is True
    assert found.recorded.gpus == 8 + 16
    assert found.recorded.attention_data_parallel == 16
    assert found.recorded.speculative == "mtp"


def test_llmd_report() -> None:
    found = only("llmd_report.yaml")
    assert (found.input_tokens, found.output_tokens) == (4_000, 501)
    assert found.concurrency == pytest.approx(5 * 5.0)
    assert (found.requests, found.failed, found.duration_s) == (600, 10, 120)
    # ttft is in ms, TPOT in s per token
    assert (found.tpot_s, found.ttft_s, found.e2e_s) == pytest.approx((0.009, 0.5, 5.0))
    assert found.tpot_percentiles_s == {0.5: 0.0088, 0.9: 0.01, 0.99: 0.011, 0.999: 0.0115}
    assert found.ttft_percentiles_s[0.001] == pytest.approx(0.3)
    assert found.disaggregated is True
    assert found.recorded == Recorded(
        model="openai/gpt-oss-120b",
        accelerator="NVIDIA-H100-80GB-HBM3",
        engine="vllm",
        tensor_parallel=4,
        pipeline_parallel=1,
        attention_data_parallel=1,
        expert_parallel=1,
        gpus=4 * 1 + 2 * 4,
    )


def test_llmd_report_from_guidellm_has_the_first_token_in_time_per_output_token(
    tmp_path: Path,
) -> None:
    text = (GOLDEN / "llmd_report.yaml").read_text(encoding="utf-8")
    text = text.replace("tool: inference-perf", "tool: guidellm").replace(
        "{units: s/token, mean: 0.009, p50: 0.0088, p90: 0.01, p99: 0.011, p99p9: 0.0115}",
        "{units: s/token, mean: 0.00998}",
    )
    path = tmp_path / "report.yaml"
    path.write_text(text, encoding="utf-8")
    (found,) = read_results(path)
    assert found.tpot_s == 0.009


def test_table() -> None:
    first, second = read_results(GOLDEN / "table.csv")
    assert (first.format, first.place, second.place) == ("CSV", "line 2", "line 3")
    assert (first.input_tokens, first.output_tokens, first.concurrency) == (1_000, 101, 16)
    assert (first.tpot_s, first.ttft_s) == pytest.approx((0.010, 0.200))
    assert first.tpot_percentiles_s == {0.99: 0.0125}
    assert (first.requests, first.failed, first.cached_fraction) == (400, 4, 0.25)
    assert (second.cached_fraction, second.tpot_percentiles_s) == (None, {})
    assert first.recorded == Recorded(
        model="llama-3.1-8b-instruct",
        accelerator="h100",
        engine="vllm",
        weight_precision="fp8",
        kv_precision="bf16",
        tensor_parallel=2,
        gpus=2,
    )


def test_table_with_the_columns_of_perf_batch_and_semicolons() -> None:
    found = only("table_batch_columns.csv")
    assert found.input_tokens == found.output_tokens == pytest.approx(0.9 * 1_024)
    assert found.tpot_s == pytest.approx((9.513 - 0.312) / (921.6 - 1))
    assert found.concurrency == pytest.approx(4 * 9.513)
    assert found.output_tokens_per_s == 460 * 8
    assert found.disaggregated is False
    assert found.recorded.model == "deepseek-v3"
    assert found.recorded.gpus == found.recorded.attention_data_parallel == 8


def test_content_decides_and_not_the_ending(tmp_path: Path) -> None:
    path = tmp_path / "results.txt"
    path.write_bytes(b"\xef\xbb\xbf" + (GOLDEN / "vllm_serve.json").read_bytes())
    assert read_results(path)[0].format == "vllm bench serve"


def test_the_table_of_the_documentation(tmp_path: Path) -> None:
    page = (GOLDEN.parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    path = tmp_path / "table.csv"
    path.write_text(page.partition("```csv\n")[2].partition("```")[0], encoding="utf-8")
    first, second = read_results(path)
    assert (first.concurrency, second.concurrency) == (16, 32)
    assert first.recorded.tensor_parallel == second.recorded.tensor_parallel == 2
