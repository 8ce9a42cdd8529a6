"""Published results: the table, the regimes by hand, and that every figure is accounted for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from planner import resources
from planner.catalog import find_accelerator, find_model
from planner.errors import InputError
from planner.fidelity.public_cases import (
    CaseResult,
    PublicCase,
    load_cases,
    predict_cases,
    summarise,
)
from planner.fidelity.public_data import (
    COLUMNS,
    METRICS,
    NOTES,
    RATES,
    REGIMES,
    TABLE,
    load_notes,
    parse_cases,
    parse_notes,
)
from planner.fidelity.public_regimes import PREDICTORS, Runs, open_sequences
from planner.perf import Layout, PoolConfig, StepModel, engine_profile
from planner.perf.serving import serving_point

CASES = load_cases()
RESULTS = predict_cases()
REQUIRED_GROUPS = {
    "AMD-MI300X-2502",
    "DEEPSEEK-D6",
    "GAUDI3",
    "INFPERF-H100",
    "LMDEPLOY",
    "MOONCAKE-PD",
    "NIM-LLM",
    "SGLANG-EP96",
    "SGLANG-H20",
    "SPLITWISE",
    "TPU-V6E",
    "TRTLLM-0.11",
    "TRTLLM-0.14-serving",
}


def case_of(point_id: str) -> PublicCase:
    return next(case for case in CASES if case.point_id == point_id)


def result_of(point_id: str, metric: str) -> CaseResult:
    return next(r for r in RESULTS if (r.point_id, r.metric) == (point_id, metric))


def step_of(model: str, accelerator: str, tensor_parallel: int, engine: str) -> StepModel:
    config = PoolConfig(
        find_model(model),
        find_accelerator(accelerator),
        Layout(tensor_parallel),
        "bf16",
        "bf16",
        engine_profile(engine),
    )
    return StepModel([config])


# --- the table ------------------------------------------------------------------------------


def test_the_table_holds_every_published_point_once() -> None:
    points = [case.point_id for case in CASES]
    # One end-to-end figure is a prefill and a decode rate, on two lines.
    assert len(points) == 911
    assert len(set(points)) == 910
    assert {case.group for case in CASES} >= REQUIRED_GROUPS
    assert {case.group for case in CASES} == set(load_notes().groups)


def test_every_case_has_a_source_and_every_source_and_reason_is_used() -> None:
    notes = load_notes()
    assert all(case.source_url.startswith("https://") for case in CASES)
    assert {case.source_url for case in CASES} == set(notes.sources.values())
    assert {case.left_out for case in CASES} - {""} == set(notes.reasons.values())
    assert {case.accelerator for case in CASES} >= set(notes.accelerators)


def test_a_chip_of_the_notes_differs_from_its_base_only_where_it_says() -> None:
    h20, variant = find_accelerator("h20"), load_notes().accelerators["h20-3e"]
    assert variant.peak_flops == h20.peak_flops
    assert variant.hbm_bytes == 140.4 * 2**30
    assert variant.hbm_bytes_per_s == 4.8e12
    assert variant.scale_out_bytes_per_s == 25e9


HEADER = ",".join(COLUMNS)
GOOD = {
    "point_id": "X1",
    "group": "SPLITWISE",
    "regime": "decode_step",
    "model": "llama-2-70b",
    "accelerator": "h100",
    "tensor_parallel": "8",
    "attention_data_parallel": "1",
    "expert_parallel": "1",
    "weights": "bf16",
    "kv": "bf16",
    "engine": "vllm",
    "input_tokens": "512",
    "output_tokens": "128",
    "sequences": "4",
    "tpot_ms": "30",
    "source": "splitwise",
}


def table(**changes: str) -> str:
    row = GOOD | changes
    return HEADER + "\n" + ",".join(row.get(name, "") for name in COLUMNS) + "\n"


def test_a_good_line_is_read_in_base_units() -> None:
    (case,) = parse_cases(table(cached_tokens="12"), load_notes())
    assert case.measured == {"tpot": 0.030}
    assert (case.gpus, case.cached_tokens, case.left_out) == (8, 12.0, "")
    assert math.isnan(case.requests)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": "SPLITWIZE"}, "unknown group 'SPLITWIZE'"),
        ({"regime": "decode"}, "unknown regime 'decode'"),
        ({"source": "somewhere"}, "unknown source 'somewhere'"),
        ({"left_out": "because"}, "unknown left_out 'because'"),
        ({"tensor_parallel": "1.5"}, "tensor_parallel: '1.5' is not a whole number"),
        ({"sequences": "many"}, "sequences: 'many' is not a number"),
        ({"sequences": ""}, "sequences: is required for decode_step"),
        ({"model": ""}, "model: is required"),
        ({"tpot_ms": ""}, "nothing is measured"),
        ({"tpot_ms": "0"}, "tpot_ms: a measured value is above 0"),
        ({"tpot_ms": "-3"}, "tpot_ms: '-3' is not a number of at least 0"),
        ({"output_tokens_per_s": "100"}, "throughput_gpus: is required"),
    ],
)
def test_a_bad_line_is_an_error_with_its_place(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=f"{TABLE}:2: .*") as caught:
        parse_cases(table(**changes), load_notes())
    assert message in str(caught.value)


def test_a_missing_column_a_repeated_point_and_an_unknown_model_are_errors() -> None:
    with pytest.raises(InputError, match="columns missing: regime"):
        parse_cases(table().replace(",regime", "", 1), load_notes())
    twice = table() + table().splitlines()[1] + "\n"
    with pytest.raises(InputError, match=r":3: point_id: tpot of X1 is there twice"):
        parse_cases(twice, load_notes())
    with pytest.raises(InputError, match="unknown model 'llama-9'"):
        predict_cases(cases=parse_cases(table(model="llama-9"), load_notes()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("groups:", "bands:"),
        ("    runs:", "    run:"),
        ("base: h20", "base: [h20"),
        ("hbm_gib: 140.4", "hbm_gib: much"),
    ],
)
def test_malformed_notes_are_an_error(old: str, new: str) -> None:
    text = resources.read_text(NOTES)
    assert old in text
    with pytest.raises(InputError, match="malformed notes"):
        parse_notes(text.replace(old, new))


def test_a_source_must_be_an_address() -> None:
    text = resources.read_text(NOTES).replace("splitwise: https://", "splitwise: ")
    with pytest.raises(InputError, match="splitwise: is not an https:// address"):
        parse_notes(text)


# --- everything is accounted for ------------------------------------------------------------


def test_every_measured_figure_has_one_result() -> None:
    asked = [(case.point_id, metric) for case in CASES for metric in case.measured]
    assert [(r.point_id, r.metric) for r in RESULTS] == asked


def test_a_result_is_predicted_or_says_why_not() -> None:
    for result in RESULTS:
        if result.left_out:
            assert math.isnan(result.predicted)
        else:
            assert result.predicted > 0
            assert math.isfinite(result.predicted)
    named = {case.point_id for case in CASES if case.left_out}
    assert {r.point_id for r in RESULTS if r.left_out} == named


def test_predictions_are_never_better_than_the_bound() -> None:
    for result in RESULTS:
        if result.left_out:
            continue
        if result.metric in RATES:
            assert result.predicted <= result.bound * (1 + 1e-9), result
        else:
            assert result.predicted >= result.bound * (1 - 1e-9), result


def test_summaries_count_every_result_once() -> None:
    summaries = summarise(RESULTS)
    counted = sum(e.count for s in summaries for e in s.errors)
    left = sum(count for s in summaries for _, count in s.left_out)
    assert counted == sum(not r.left_out for r in RESULTS)
    assert counted + left == len(RESULTS)
    assert [s.group.name for s in summaries] == list(load_notes().groups)


def result(measured: float, predicted: float, left_out: str = "") -> CaseResult:
    url = "https://example.com"
    return CaseResult("X", "SPLITWISE", "tpot", measured, predicted, 0.001, left_out, url)


def test_errors_by_hand() -> None:
    results = [result(1.0, 1.1), result(1.0, 0.8), result(2.0, 3.0), result(1.0, math.nan, "no")]
    (summary,) = summarise(results)
    (error,) = summary.errors
    assert error.count == 3
    assert error.median_ape_fraction == pytest.approx(0.2)
    assert error.mean_ape_fraction == pytest.approx((0.1 + 0.2 + 0.5) / 3)
    assert error.p90_ape_fraction == pytest.approx(0.44)
    assert error.median_log_error == pytest.approx(math.log(1.1))
    assert summary.left_out == (("no", 1),)
    assert summary.source_urls == ("https://example.com",)


def test_a_measurement_better_than_the_bound_is_noticed() -> None:
    assert result(0.0009, 0.002).beats_bound
    assert not result(0.0011, 0.002).beats_bound
    rate = replace(result(10.0, 5.0), metric="requests_per_s", bound=8.0)
    assert rate.beats_bound


def test_every_group_has_its_sources() -> None:
    found = {summary.group.name: summary.source_urls for summary in summarise(RESULTS)}
    assert set(found) == {case.group for case in CASES}
    assert all(urls and all(url.startswith("https://") for url in urls) for urls in found.values())
    assert any("deepseek-ai/profile-data" in url for urls in found.values() for url in urls)


# --- regimes by hand ------------------------------------------------------------------------


def test_every_regime_has_a_predictor_and_gives_what_is_measured() -> None:
    assert set(PREDICTORS) == set(REGIMES)
    assert {case.regime for case in CASES} == set(REGIMES)
    assert {metric for case in CASES for metric in case.measured} == set(METRICS)


def test_splitwise_decode_is_one_decode_step() -> None:
    case = next(
        c for c in CASES if c.group == "SPLITWISE" and c.regime == "decode_step" and c.sequences > 8
    )
    step = step_of(case.model, case.accelerator, case.tensor_parallel, "vllm")
    context = case.input_tokens + case.output_tokens / 2
    expected = float(step.decode_step_s(0, case.sequences, context))
    assert result_of(case.point_id, "tpot").predicted == pytest.approx(expected)


def test_splitwise_prefill_is_one_step_of_all_prompts() -> None:
    case = next(
        c
        for c in CASES
        if c.group == "SPLITWISE" and c.regime == "prefill_step" and c.sequences > 1
    )
    step = step_of(case.model, case.accelerator, case.tensor_parallel, "vllm")
    tokens = case.sequences * case.input_tokens
    pairs = tokens * case.input_tokens / 2
    alone = step.mixed_step_s(0, 0.0, 0.0, tokens, pairs, case.sequences)
    expected = float(alone * step.prefill_time_factor(0))
    assert result_of(case.point_id, "ttft").predicted == pytest.approx(expected)


def test_a_static_batch_is_a_prefill_and_its_decode_steps() -> None:
    case = next(c for c in CASES if c.group == "GAUDI3" and c.model.startswith("llama-3.1-8b"))
    case = replace(case, weights="bf16", kv="bf16", sequences=4.0)
    (found,) = predict_cases(cases=[case])
    step = step_of(case.model, "gaudi3", 1, "vllm")
    tokens = 4 * case.input_tokens
    alone = step.mixed_step_s(0, 0.0, 0.0, tokens, tokens * case.input_tokens / 2, 4.0)
    first = float(alone * step.prefill_time_factor(0))
    rest = float(step.decode_step_s(0, 4.0, case.input_tokens + case.output_tokens / 2))
    total = first + (case.output_tokens - 1) * rest
    assert found.predicted == pytest.approx(4 * case.output_tokens / total)


def test_rates_count_the_gpus_that_the_publication_counts() -> None:
    per_node = case_of("P05183")
    assert (per_node.gpus, per_node.throughput_gpus) == (72, 8)
    (whole,) = predict_cases(cases=[replace(per_node, throughput_gpus=72.0)])
    node = result_of("P05183", "output_tokens_per_s").predicted
    assert whole.predicted == pytest.approx(9 * node)


def test_a_burst_that_fits_is_one_wave_and_one_that_does_not_is_several() -> None:
    case = next(c for c in CASES if c.group == "LMDEPLOY" and c.output_tokens == 2048)
    step = step_of(case.model, case.accelerator, 1, "vllm")
    prompt, answer = case.input_tokens, case.output_tokens
    few = replace(case, requests=8.0, max_sequences=8.0)
    many = replace(case, requests=20.0, max_sequences=8.0)
    rate = {}
    for name, each in (("few", few), ("many", many)):
        found = predict_cases(cases=[each])
        rate[name] = next(r.predicted for r in found if r.metric == "output_tokens_per_s")
    eight, four = serving_point(step, 0, np.array([8.0, 4.0]), prompt, answer).tpot_s
    assert rate["few"] == pytest.approx(8 / eight)
    # Two waves of eight and one of four.
    assert rate["many"] == pytest.approx(20 / (2 * eight + four))


def runs(**values: float) -> Runs:
    numbers = {
        "input_tokens": 467.0,
        "output_tokens": 256.0,
        "cached_tokens": 0.0,
        "sequences": math.nan,
        "requests": 500.0,
        "offered_requests_per_s": 4.0,
        "clients_limit": math.nan,
        "chunk_tokens": math.nan,
    } | values
    columns = {name: np.array([value]) for name, value in numbers.items()}
    return Runs(**columns, reserves_all=np.array([True]))


def test_open_arrivals_satisfy_littles_law() -> None:
    step = step_of("llama-3.1-8b", "h100", 1, "tensorrt-llm")
    for rate in (0.5, 4.0, 16.0):
        there, overloaded = open_sequences(step, np.array([0]), runs(offered_requests_per_s=rate))
        point = serving_point(step, 0, there, 467.0, 256.0)
        latency = float(point.ttft_s[0] + 255 * point.tpot_s[0])
        assert not overloaded[0]
        assert there[0] == pytest.approx(1 + rate * latency, rel=1e-6)


def test_more_than_the_replica_can_do_is_overload() -> None:
    step = step_of("llama-3.1-8b", "h100", 1, "tensorrt-llm")
    for rate in (500.0, math.inf):
        there, overloaded = open_sequences(step, np.array([0]), runs(offered_requests_per_s=rate))
        assert overloaded[0]
        assert there[0] <= 500


def test_a_load_generator_with_a_limit_makes_overload_a_closed_loop() -> None:
    overloaded = [
        r
        for c in CASES
        if c.group == "INFPERF-H100" and c.offered_requests_per_s > 200 and c.cached_tokens == 0
        for r in RESULTS
        if r.point_id == c.point_id
    ]
    by_point: dict[str, dict[str, float]] = {}
    for each in overloaded:
        by_point.setdefault(each.point_id, {})[each.metric] = each.predicted
    assert by_point
    for found in by_point.values():
        # The ramp at the end of a minute is all that is missing from 440 open requests.
        assert found["requests_per_s"] * found["e2e"] == pytest.approx(440, rel=0.1)


def test_prefix_hits_shorten_prompts_but_not_contexts() -> None:
    case = next(c for c in CASES if c.group == "VLLM-FP8KV" and not c.left_out)
    hit = replace(case, cached_tokens=case.input_tokens - 100)
    cold = {r.metric: r.predicted for r in predict_cases(cases=[case])}
    warm = {r.metric: r.predicted for r in predict_cases(cases=[hit])}
    assert warm["ttft"] < cold["ttft"] / 3
    assert warm["itl_median"] == pytest.approx(cold["itl_median"])
    assert warm["output_tokens_per_s"] > cold["output_tokens_per_s"]


def test_a_case_without_room_is_left_out_with_the_reason() -> None:
    case = next(c for c in CASES if c.group == "TPU-V6E")
    found = predict_cases(cases=[replace(case, tensor_parallel=4, throughput_gpus=4.0)])
    assert {r.left_out for r in found} == {
        "does not fit beside the weights, by the planner's memory model"
    }
    (summary,) = summarise(found)
    assert summary.errors == ()


def test_disaggregated_ttft_is_prefill_and_transfer() -> None:
    case = next(c for c in CASES if c.model == "qwen3-8b" and c.input_tokens == 32768)
    step = step_of("qwen3-8b", "h800", 8, "vllm")
    prefill = float(step.prefill_time_s(0, 32768.0, 0.0, 8192.0, alone=True))
    # 36 layers, 8 heads of 128, keys and values, two bytes; 200 GB/s of network.
    moved = 32768 * 36 * 8 * 128 * 2 * 2
    expected = float(step.ttft_fixed_s(0, 32768.0)) + prefill + moved / 200e9
    assert result_of(case.point_id, "ttft").predicted == pytest.approx(expected, rel=1e-6)
