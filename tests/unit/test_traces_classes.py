"""Classes of made-up traces, lengths as percentiles and histograms, and traces in an instance."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from planner.errors import InputError
from planner.schema import load_instance
from planner.schema.tokens import HistogramTokens
from planner.traces import Trace, read_trace
from planner.traces.clusters import by_clusters, by_grid
from planner.traces.estimate import estimate_trace, scaled_to, stem_of
from planner.traces.lengths import histogram_of, lengths_of, moments_of, rank_correlation
from planner.traces.trace import Ints, sorted_trace
from planner.workload import build_workload

SHARED = Path(__file__).parents[3] / "shared" / "data" / "traces"


def lognormal(rng: np.random.Generator, median: float, width: float, number: int) -> Ints:
    drawn = np.ceil(median * np.exp(width * rng.standard_normal(number)))
    return np.maximum(drawn, 1).astype(np.int64)


def three_kinds(seed: int = 0, requests: int = 6000) -> tuple[Trace, Ints]:
    """Chat, summaries and code: half, a third, a sixth; with the kind of each request."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, requests, p=[1 / 2, 1 / 3, 1 / 6])
    inputs, outputs = np.zeros((2, requests), dtype=np.int64)
    for each, (median_in, median_out) in enumerate([(500, 300), (6000, 150), (1500, 10)]):
        rows = kind == each
        inputs[rows] = lognormal(rng, median_in, 0.3, rows.sum())
        outputs[rows] = lognormal(rng, median_out, 0.3, rows.sum())
    times = np.cumsum(rng.exponential(0.2, requests))
    return sorted_trace(times, inputs, outputs, source="a/Three kinds.csv.gz"), kind


def test_clusters_find_the_kinds() -> None:
    trace, kind = three_kinds()
    label = by_clusters(trace)
    assert label.max() == 2
    assert (label == kind).mean() > 0.99
    assert np.array_equal(label, by_clusters(trace))


def test_the_number_of_classes_can_be_given() -> None:
    trace, _ = three_kinds()
    for number in (1, 2, 5):
        assert by_clusters(trace, number).max() == number - 1
    alike = sorted_trace(np.arange(50.0), [7] * 50, [3] * 50, source="")
    assert by_clusters(alike).max() == 0
    assert by_clusters(alike, 4).max() == 0


def test_classes_are_numbered_by_size_and_rare_requests_join_the_nearest() -> None:
    inputs = np.array([100] * 500 + [1000] * 900 + [50_000] * 5)
    outputs = np.full(len(inputs), 50)
    trace = sorted_trace(np.arange(len(inputs), dtype=np.float64), inputs, outputs, source="")
    for label in (by_clusters(trace, 3), by_grid(trace)):
        assert np.bincount(label).tolist() == [905, 500]
        assert set(label[inputs == 50_000]) == {0}


def test_the_grid_closes_cells_above() -> None:
    inputs, outputs = np.array([512, 513, 4096, 4097]), np.array([128, 128, 128, 129])
    trace = sorted_trace(np.arange(4.0), inputs, outputs, source="")
    label = by_grid(trace)
    assert label[1] == label[2]
    assert len({label[0], label[1], label[3]}) == 3


def test_an_estimate_of_known_kinds() -> None:
    trace, kind = three_kinds()
    estimate = estimate_trace(trace).estimate
    chat = estimate.classes[0]
    rows = kind == 0
    assert chat.name.startswith("three-kinds-in50")
    assert chat.share == pytest.approx(rows.mean(), abs=0.01)
    assert sum(each.rate_per_s for each in estimate.classes) == pytest.approx(trace.rate_per_s)
    assert chat.arrival_scv == pytest.approx(1, abs=0.12)
    assert chat.burst_factor == pytest.approx(1, abs=0.25)
    assert chat.input.mean == pytest.approx(trace.input_tokens[rows].mean(), rel=0.01)
    assert abs(chat.rank_correlation or 0) < 0.1
    assert chat.cache_curve == ()
    assert not estimate.unplannable


def test_a_larger_fleet_needs_a_larger_cache_for_the_same_hits() -> None:
    blocks = [(0, 1, 2 + index % 5) for index in range(400)]
    trace = sorted_trace(
        np.arange(400.0), [1536] * 400, [9] * 400, source="t.jsonl", block_ids=blocks
    )
    (one,) = scaled_to([estimate_trace(trace).estimate], None)
    (ten,) = scaled_to([one], 10 * one.rate_per_s)
    assert one.classes[0].cache_curve[-1][1] > 0.9
    for small, large in zip(one.classes[0].cache_curve, ten.classes[0].cache_curve, strict=True):
        assert large == (pytest.approx(10 * small[0]), small[1])
    assert ten.classes[0].rate_per_s == pytest.approx(10 * one.classes[0].rate_per_s)
    assert ten.classes[0].burst_factor == one.classes[0].burst_factor
    assert ten.scale == pytest.approx(10)


def test_names_are_told_apart() -> None:
    trace, _ = three_kinds()
    estimate = estimate_trace(trace, 1).estimate
    names = [each.name for found in scaled_to([estimate] * 3, None) for each in found.classes]
    assert names == [names[0], f"{names[0]}-2", f"{names[0]}-3"]
    assert stem_of("/x/Azure LLM_conv.csv.gz") == "azure-llm-conv"
    assert stem_of("//.csv") == "trace"


def test_a_trace_without_a_span_has_no_rate() -> None:
    trace = sorted_trace(np.zeros(5), [1] * 5, [1] * 5, source="t.csv")
    with pytest.raises(InputError, match=r"t\.csv: has no span of time"):
        estimate_trace(trace)


def test_percentiles_are_kept_by_as_many_requests() -> None:
    tokens = np.arange(1, 1001)
    lengths = lengths_of(tokens, 40)
    assert dict(lengths.percentiles) == {
        10: 100, 25: 250, 50: 500, 75: 750, 90: 900, 95: 950, 99: 990
    }  # fmt: skip
    assert (lengths.shortest, lengths.longest, lengths.median) == (1, 1000, 500)


@pytest.mark.parametrize("bins", [7, 40, 200])
def test_a_histogram_is_safe_and_close(bins: int) -> None:
    tokens = lognormal(np.random.default_rng(5), 700, 1.0, 20_000)
    found = histogram_of(tokens, bins)
    edges = [edge for edge, _ in found]
    assert len(found) <= bins
    assert edges == sorted(set(edges))
    assert edges[-1] == tokens.max()
    assert sum(share for _, share in found) == pytest.approx(1)
    reached = np.cumsum([share for _, share in found])
    for edge, share in zip(edges, reached, strict=True):
        assert share == pytest.approx((tokens <= edge).mean())
    mean, _ = moments_of(found)
    assert tokens.mean() <= mean <= tokens.mean() * (1 + 4 / bins)


def test_few_values_stay_exact() -> None:
    assert histogram_of(np.array([5, 5, 9, 5]), 10) == ((5, 0.75), (9, 0.25))


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation(np.array([1, 2, 3]), np.array([10, 100, 1000])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3]), np.array([9, 5, 1])) == pytest.approx(-1)
    # Ranks 1.5, 1.5, 3, 4 against 1, 2, 3, 4: 1 - the sum of products by hand.
    tied = rank_correlation(np.array([1, 1, 2, 3]), np.array([1, 2, 3, 4]))
    assert tied == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert rank_correlation(np.array([4, 4]), np.array([1, 2])) == 0


INSTANCE = """format_version: 1
name: traced
models: [{model: llama-3.1-8b-instruct}]
workloads:
  - name: chat
    model: llama-3.1-8b-instruct
    demand: {requests_per_s: 20}
    input_tokens: {trace: requests.csv}
    output_tokens: {trace: requests.csv}
"""


def instance(folder: Path, rows: str, text: str = INSTANCE) -> Path:
    (folder / "requests.csv").write_text(
        "arrival_s,input_tokens,output_tokens\n" + rows, encoding="utf-8"
    )
    path = folder / "instance.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_trace_in_an_instance_becomes_a_histogram(tmp_path: Path) -> None:
    loaded = load_instance(instance(tmp_path, "0,100,7\n1,100,8\n2,400,8\n3,100,8\n"))
    workload = loaded.workloads[0]
    assert isinstance(workload.input_tokens, HistogramTokens)
    assert [(bin_.up_to, bin_.share) for bin_ in workload.input_tokens.histogram] == [
        (100, 0.75),
        (400, 0.25),
    ]
    mix = build_workload(loaded).classes[0].mix
    assert mix.mean_prompt == pytest.approx(175)
    assert mix.mean_output == pytest.approx(7.75)
    # What a plan embeds holds the numbers and no file.
    assert "requests.csv" not in loaded.model_dump_json()


def test_mistakes_of_a_trace_in_an_instance_have_their_place(tmp_path: Path) -> None:
    path = instance(tmp_path, "0,100,7\n1,many,8\n")
    with pytest.raises(InputError) as caught:
        load_instance(path)
    (problem,) = caught.value.problems
    assert problem.file.endswith("requests.csv")
    assert (problem.line, problem.field) == (3, "input_tokens")

    text = INSTANCE.replace("input_tokens: {trace: requests.csv}", "input_tokens: {trace: no.csv}")
    hidden = "    hidden_output_tokens: {trace: requests.csv}\n"
    with pytest.raises(InputError) as caught:
        load_instance(instance(tmp_path, "0,100,7\n1,1,8\n", text + hidden))
    told = [(problem.line, problem.field) for problem in caught.value.problems]
    assert told == [
        (8, "workloads[0].input_tokens.trace"),
        (10, "workloads[0].hidden_output_tokens.trace"),
    ]


def test_a_trace_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the longest request has 200,008 tokens"):
        load_instance(instance(tmp_path, "0,200000,7\n1,1,8\n"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public traces are not here")
def test_published_figures_of_public_traces() -> None:
    chat = estimate_trace(read_trace(SHARED / "azure2023_conv_full.csv.gz")).estimate
    assert chat.busiest_minute == pytest.approx(1.52, abs=0.01)
    assert not chat.unplannable
    code = estimate_trace(read_trace(SHARED / "azure2023_code_full.csv.gz")).estimate
    assert code.unplannable
    assert (code.busiest_second or 0) > 26
    talk = estimate_trace(read_trace(SHARED / "mooncake_conversation_full.csv.gz")).estimate
    assert talk.busiest_minute == pytest.approx(1.21, abs=0.01)
    assert talk.tick_s == pytest.approx(3)
    curve = dict(talk.cache_curve)
    assert curve[1e6] == pytest.approx(0.0543, abs=0.005)
    assert curve[5e6] == pytest.approx(0.2111, abs=0.01)
    assert talk.cache_curve[-1][1] == pytest.approx(0.3736, abs=0.002)


@pytest.mark.slow
def test_two_million_rows_are_read_in_time(tmp_path: Path) -> None:
    import time

    path = tmp_path / "big.csv"
    with path.open("w", encoding="utf-8") as stream:
        stream.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for index in range(2_000_000):
            minute, second = divmod(index // 1000, 60)
            clock = f"{minute // 60:02d}:{minute % 60:02d}:{second:02d}.{index % 1000:03d}000"
            stream.write(f"2024-05-10 {clock}+00:00,{index % 3000 + 1},{index % 900 + 1}\n")
    started = time.process_time()
    assert read_trace(path).requests == 2_000_000
    assert time.process_time() - started < 20
    os.remove(path)
