"""Made-up answers of Prometheus: known requests, scraped into counters and read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.errors import InputError
from planner.traces.buckets import next_edge, refined
from planner.traces.estimate import WorkloadEstimate
from planner.traces.lengths import moments_of
from planner.traces.metrics import estimate_metrics
from planner.traces.prometheus import MetricsDump, increase, metrics_from
from planner.traces.reading import read_file
from planner.traces.trace import Floats

EDGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
STEP_S = 30
START_S = 1_700_006_400  # a midnight
VLLM = ("vllm:request_prompt_tokens", "vllm:request_generation_tokens")
SGLANG = ("sglang:prompt_tokens_histogram", "sglang:generation_tokens_histogram")


def series(
    name: str, values: Floats, times: Sequence[float] | None = None, **labels: str
) -> dict[str, Any]:
    times = [START_S + STEP_S * index for index in range(len(values))] if times is None else times
    pairs = [[time, str(value)] for time, value in zip(times, values, strict=True)]
    metric = {"__name__": name, "model_name": "org/Some-8B", **labels}
    return {"metric": metric, "values": pairs}


def answer(result: list[dict[str, Any]]) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


def scraped(
    name: str, tokens: list[np.ndarray[Any, Any]], restart: int | None = None, **labels: str
) -> list[dict[str, Any]]:
    """Counters of a histogram after each interval's requests; from 0 again after `restart`."""
    found = []
    for edge in [*EDGES, np.inf]:
        counts = np.array([0] + [int((part <= edge).sum()) for part in tokens]).cumsum()
        found.append((f"{name}_bucket", counts, {"le": "+Inf" if edge == np.inf else f"{edge}.0"}))
    found.append((f"{name}_sum", np.array([0] + [int(p.sum()) for p in tokens]).cumsum(), {}))
    result = []
    for each, counts, own in found:
        values = counts.astype(np.float64)
        if restart is not None:
            values[restart:] -= values[restart - 1]
        result.append(series(each, values, **own, **labels))
    return result


def requests(seed: int, median: float, intervals: int, mean: float = 60) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [
        np.ceil(median * np.exp(0.7 * rng.standard_normal(rng.poisson(mean))))
        for _ in range(intervals)
    ]


def estimated(*documents: Any) -> list[WorkloadEstimate]:
    return estimate_metrics([metrics_from(each, "m.json") for each in documents], 40)


@pytest.mark.parametrize("names", [VLLM, SGLANG])
@pytest.mark.parametrize("restart", [None, 17])
def test_a_service_is_read_back(names: tuple[str, str], restart: int | None) -> None:
    inputs, outputs = requests(1, 600, 200), requests(2, 150, 200)
    found = scraped(names[0], inputs, restart) + scraped(names[1], outputs, restart)
    tokens = np.array([0] + [part.sum() for part in inputs]).cumsum()
    if names is VLLM:
        found.append(series("vllm:prefix_cache_queries_total", tokens))
        found.append(series("vllm:prefix_cache_hits_total", tokens * 0.3))
    else:
        found.append(series("sglang:prompt_tokens_total", tokens))
        found.append(series("sglang:cached_tokens_total", tokens * 0.2, cache_source="device"))
        found.append(series("sglang:cached_tokens_total", tokens * 0.1, cache_source="host"))
    (estimate,) = estimated(answer(found))
    (each,) = estimate.classes
    assert estimate.kind == ("vLLM" if names is VLLM else "SGLang")
    everything = np.concatenate(inputs)
    # A restart between two samples loses nothing here: the counter began again right after one.
    assert estimate.requests == len(everything)
    assert each.rate_per_s == pytest.approx(len(everything) / (200 * STEP_S))
    assert each.input.mean == pytest.approx(everything.mean(), rel=0.01)
    assert each.output.mean == pytest.approx(np.concatenate(outputs).mean(), rel=0.01)
    # The few requests above the last bucket count as twice its edge, so the SCV is too large.
    scv = everything.var() / everything.mean() ** 2
    assert scv < each.input.scv < 1.4 * scv
    assert each.cached_fraction == pytest.approx(0.3)
    assert each.burst_factor == pytest.approx(1, abs=0.1)
    assert each.name.startswith("some-8b-in")
    assert each.arrival_scv is None


def test_replicas_add_up_and_models_stay_apart() -> None:
    inputs, outputs = requests(1, 600, 20), requests(2, 150, 20)
    one = scraped(VLLM[0], inputs, engine="0") + scraped(VLLM[1], outputs, engine="0")
    two = scraped(VLLM[0], inputs, 5, engine="1") + scraped(VLLM[1], outputs, 5, engine="1")
    other = scraped(VLLM[0], inputs) + scraped(VLLM[1], outputs)
    for each in other:
        each["metric"]["model_name"] = "another"
    apart, both = estimated(answer(one), answer(two + other))
    assert both.rate_per_s == pytest.approx(2 * apart.rate_per_s)
    assert both.classes[0].input.histogram == apart.classes[0].input.histogram


def test_two_dumps_of_one_series_after_each_other_are_one() -> None:
    found = scraped(VLLM[0], requests(1, 600, 40)) + scraped(VLLM[1], requests(2, 150, 40))
    early, late = json.loads(json.dumps([found, found]))
    for each in early:
        each["values"] = each["values"][:25]
    for each in late:
        each["values"] = each["values"][20:]
    (whole,) = estimated(answer(found))
    (joined,) = estimated(answer(early), answer(late))
    assert joined.requests == whole.requests
    assert joined.classes == whole.classes


def test_a_day_has_a_profile_by_the_hour() -> None:
    intervals = 24 * 3600 // STEP_S
    busy = [400 if (index * STEP_S) // 3600 == 5 else 200 for index in range(intervals)]
    inputs = [np.full(number, 100.0) for number in busy]
    (estimate,) = estimated(answer(scraped(VLLM[0], inputs) + scraped(VLLM[1], inputs)))
    assert estimate.hourly_profile is not None
    assert estimate.hourly_profile[5] == pytest.approx(2 / (25 / 24))
    assert estimate.classes[0].burst_factor == pytest.approx(2 / (25 / 24), abs=0.1)


def test_requests_above_the_last_bucket_are_told() -> None:
    inputs = [np.array([100.0, 6000.0])] * 10
    (estimate,) = estimated(answer(scraped(VLLM[0], inputs) + scraped(VLLM[1], inputs)))
    assert estimate.classes[0].input.longest == 10_000
    assert any("50 % of the requests lie above the last bucket" in note for note in estimate.notes)


def test_a_counter_that_falls_was_reset() -> None:
    assert increase(np.array([5.0, 8, 2, 3])).tolist() == [0, 3, 5, 6]


def test_the_next_edge() -> None:
    assert [next_edge(edge) for edge in (1, 5, 20, 131_072)] == [2, 10, 50, 200_000]


def test_buckets_are_refined_to_the_mean_where_they_allow_it() -> None:
    counts = np.array([10.0, 0, 30])
    for mean in (160.0, 190.0, 240.0):
        found = refined([100, 200, 300], counts, mean, 40)
        assert moments_of(found)[0] == pytest.approx(mean, rel=0.01)
        below = sum(share for edge, share in found if edge <= 100)
        assert below == pytest.approx(0.25)
        assert not [edge for edge, _ in found if 100 < edge <= 200]
    assert moments_of(refined([100, 200, 300], counts, 9e9, 40))[0] == pytest.approx(250, rel=0.02)
    assert refined([100, 200, 300], counts, None, 40) == ((100, 0.25), (300, 0.75))


def told(document: Any) -> str:
    with pytest.raises(InputError) as caught:
        estimated(document)
    return str(caught.value)


def test_answers_that_are_no_use() -> None:
    assert "Prometheus answered with an error: bad query" in told(
        {"status": "error", "error": "bad query"}
    )
    vector = {"status": "success", "data": {"resultType": "vector", "result": []}}
    assert "has a result of type vector, not a matrix" in told(vector)
    assert "is no answer of Prometheus" in told([3])
    assert "no histogram of tokens of vLLM or SGLang, but no series" in told(answer([]))
    rates = answer([{"metric": {"model_name": "m"}, "values": [[0, "1"]]}])
    assert "a series has no name (model_name=m)" in told(rates)
    flat = scraped(VLLM[0], [np.zeros(0)] * 3) + scraped(VLLM[1], [np.zeros(0)] * 3)
    assert "vllm:request_prompt_tokens of org/Some-8B has no request in this time" in told(
        answer(flat)
    )
    finite = [
        each
        for each in scraped(VLLM[0], requests(1, 600, 3)) + scraped(VLLM[1], requests(2, 150, 3))
        if each["metric"].get("le") != "+Inf"
    ]
    finite[0]["metric"]["le"] = "odd"
    assert "has no bucket le=+Inf with two samples" in told(answer(finite))
    for values in ([[0, "x"]], [[0]], [[0, "-1"]], [[0, "+Inf"]]):
        bad = answer([{"metric": {"__name__": "vllm:x"}, "values": values}])
        assert "m.json: vllm:x: a" in told(bad)


def test_marks_of_absence_are_skipped() -> None:
    dump = metrics_from(
        answer([{"metric": {"__name__": "vllm:x"}, "values": [[0, "1"], [1, "NaN"], [2, "4"]]}]),
        "m.json",
    )
    ((times, values),) = dump.series.values()
    assert times.tolist() == [0, 2]
    assert values.tolist() == [1, 4]


def test_a_file_is_known_as_a_dump_on_one_line_or_many(tmp_path: Path) -> None:
    document = answer(scraped(VLLM[0], requests(1, 600, 3)))
    for indent in (None, 2):
        path = tmp_path / "metrics.json"
        path.write_text(json.dumps(document, indent=indent), encoding="utf-8")
        assert isinstance(read_file(path), MetricsDump)
