from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.schema import parse_instance
from planner.workload import LatencyLimit, Slo, TokenMix, Workload, build_workload
from planner.workload.classes import binding, derived_limits
from planner.workload.distribution import POINTS, Distribution, equal_probability_points
from planner.workload.precisions import largest_product

BASE = """\
format_version: 1
name: t
models:
  - model: llama-3.3-70b-instruct
workloads:
  - name: chat
    model: llama-3.3-70b-instruct
    demand: {requests_per_s: 2}
    burst_factor: 1.5
    input_tokens: 1000
    output_tokens: 201
"""


def built(*changes: tuple[str, str], extra: str = "") -> Workload:
    text = BASE + extra
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return build_workload(parse_instance(text))


# Distributions


def test_deterministic() -> None:
    alike = Distribution.deterministic(70)
    assert (alike.mean, alike.scv, alike.longest) == (70, 0, 70)
    assert alike.quantile(0.01) == alike.quantile(0.999) == 70


def test_lognormal_has_the_moments_asked_for() -> None:
    spread = Distribution.lognormal(1200, 1.1, 16_000)
    assert len(spread.points) == POINTS
    assert spread.mean == pytest.approx(1200, rel=1e-12)
    assert spread.scv == pytest.approx(1.1, rel=1e-6)
    # A lognormal's median is its mean / sqrt(1 + scv); cutting the tail moves it a little.
    assert spread.quantile(0.5) == pytest.approx(1200 / math.sqrt(2.1), rel=0.03)
    assert spread.quantile(0.9999) == 16_000


def test_a_lognormal_that_cannot_spread_so_far_is_the_widest_there_is() -> None:
    tight = Distribution.lognormal(1000, 5.0, 1500)
    assert tight.mean == pytest.approx(1000)
    # No distribution on [1, 1500] with this mean exceeds (1500 - 1000)(1000 - 1) / 1000^2.
    assert 0.44 < tight.scv <= 0.4995
    assert tight.points.max() <= 1500


@settings(max_examples=60, deadline=None)
@given(
    mean=st.floats(1.5, 50_000),
    scv=st.floats(0.001, 4.0),
    stretch=st.floats(1.05, 50.0),
)
def test_lognormal_keeps_its_mean(mean: float, scv: float, stretch: float) -> None:
    longest = mean * stretch
    spread = Distribution.lognormal(mean, scv, longest)
    assert spread.mean == pytest.approx(mean, rel=1e-9)
    assert spread.points.min() >= 1 - 1e-9
    assert spread.points.max() <= longest * (1 + 1e-9)
    assert np.all(np.diff(spread.points) >= 0)
    assert spread.scv <= scv * (1 + 1e-6)


@settings(max_examples=40, deadline=None)
@given(p=st.floats(0.0, 1.0), q=st.floats(0.0, 1.0))
def test_quantiles_rise(p: float, q: float) -> None:
    spread = Distribution.lognormal(300, 1.0, 4096)
    low, high = sorted((p, q))
    assert spread.quantile(low) <= spread.quantile(high)


def test_percentiles_are_met_and_joined_in_the_logarithm() -> None:
    spread = Distribution.percentiles([(0.5, 100), (0.9, 400)], longest=10_000, shortest=10)
    assert spread.quantile(0.5) == pytest.approx(100, rel=0.01)
    assert spread.quantile(0.9) == pytest.approx(400, rel=0.01)
    assert spread.quantile(0.7) == pytest.approx(200, rel=0.01)  # halfway between 100 and 400
    assert spread.quantile(0.25) == pytest.approx(math.sqrt(10 * 100), rel=0.01)
    assert np.all(np.diff(spread.points) > 0)


def test_without_a_shortest_the_low_end_is_flat() -> None:
    flat = Distribution.percentiles([(0.5, 100)], longest=1000)
    assert flat.points.min() == pytest.approx(100)
    assert flat.mean > Distribution.percentiles([(0.5, 100)], 1000, shortest=1).mean


def test_histogram_by_hand() -> None:
    bins = Distribution.histogram([100, 200, 400], [0.5, 0.5, 0.0])
    assert bins.mean == 150
    assert bins.moment(2) == (100**2 + 200**2) / 2
    assert bins.longest == 200
    assert bins.quantile(0.5) == 100
    assert bins.quantile(0.51) == 200


def test_sum_of_independent_numbers() -> None:
    first = Distribution.histogram([10, 20], [0.5, 0.5])
    both = first.plus(Distribution.histogram([1, 3], [0.25, 0.75]))
    assert both.mean == pytest.approx(15 + 2.5)
    assert both.points.tolist() == [11, 13, 21, 23]
    assert both.weight.tolist() == [0.125, 0.375, 0.125, 0.375]
    one, two = Distribution.lognormal(300, 1, 4000), Distribution.lognormal(2000, 0.5, 9000)
    total = one.plus(two)
    assert len(total.points) == POINTS
    assert total.mean == pytest.approx(2300)
    variance = one.scv * one.mean**2 + two.scv * two.mean**2
    assert total.scv * total.mean**2 == pytest.approx(variance, rel=0.01)


@given(
    st.lists(
        st.tuples(st.floats(1, 1e6), st.floats(0.01, 1.0)), min_size=1, max_size=30, unique=True
    )
)
def test_equal_probability_points_keep_the_mean(pairs: list[tuple[float, float]]) -> None:
    values = np.array(sorted(value for value, _ in pairs))
    weights = np.array([weight for _, weight in pairs])
    weights /= weights.sum()
    points, share = equal_probability_points(values, weights, 50)
    assert share @ points == pytest.approx(weights @ values)
    assert np.all(np.diff(points) >= -1e-6 * values[-1])


def test_arrays_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Distribution.deterministic(5).points[0] = 6


# Token mixes


def test_decode_context_by_hand() -> None:
    # Outputs of 2 and 4 tokens, prompts of 10: contexts seen by decoded tokens are 10 + j, in the
    # continuous reading of which token j weighs dj: E[I] + E[O^2] / (2 E[O]) = 10 + 10 / 6.
    mix = TokenMix.of(
        Distribution.deterministic(10),
        Distribution.histogram([2, 4], [0.5, 0.5]),
        cached_fraction=0.3,
    )
    assert mix.decode_context_mean == pytest.approx(10 + 10 / 6)
    # The same integral of (10 + j)^2 over both answers, over the 6 tokens decoded.
    integral = ((12**3 - 10**3) + (14**3 - 10**3)) / 3
    assert mix.decode_context_second_moment == pytest.approx(integral / 6)
    assert (mix.mean_prompt, mix.mean_cached, mix.mean_uncached) == (10, 3, 7)


def test_hidden_tokens_count_as_output() -> None:
    mix = TokenMix.of(
        Distribution.deterministic(100),
        Distribution.deterministic(50),
        Distribution.histogram([200, 1000], [0.9, 0.1]),
    )
    assert mix.mean_output == pytest.approx(50 + 280)
    assert mix.hidden_tokens_mean == pytest.approx(280)
    assert mix.hidden_quantile(0.95) == 1000
    assert mix.output_quantile(0.9) == 250
    assert mix.max_output_tokens == 1050


def test_conversation_by_hand() -> None:
    answer = Distribution.deterministic(30)
    mix = TokenMix.conversation(3, 100, 20, answer, cache_hit_fraction=0.5)
    assert mix.prompt_tokens.tolist() == [120, 170, 220]
    assert mix.cached_tokens.tolist() == [0, 0.5 * (120 + 30), 0.5 * (170 + 30)]
    assert mix.mean_prompt == pytest.approx(170)
    assert mix.max_prompt_tokens == 220


def test_after_hidden_tokens_only_the_earlier_prompt_is_cached() -> None:
    answer, thought = Distribution.deterministic(30), Distribution.deterministic(500)
    mix = TokenMix.conversation(3, 100, 20, answer, thought, cache_hit_fraction=0.5)
    assert mix.prompt_tokens.tolist() == [120, 170, 220]  # hidden tokens do not come back
    assert mix.cached_tokens.tolist() == [0, 60, 85]


# Limits


def test_promises_on_the_two_latencies_pass_through() -> None:
    slos = [Slo("ttft", 1.0, 0.95), Slo("tpot", 0.05, None)]
    first, each = derived_limits(slos, TokenMix.deterministic(100, 50))
    assert first == (LatencyLimit(1.0, 0.95),)
    assert each == (LatencyLimit(0.05, None),)


def test_e2e_by_hand() -> None:
    mix = TokenMix.of(
        Distribution.deterministic(100), Distribution.histogram([101, 401], [0.98, 0.02])
    )
    # p95 leaves 5 %, a third each: outputs at 98.3 % are 401 tokens, 400 after the first.
    first, each = derived_limits([Slo("e2e", 10.0, 0.95, 0.2)], mix)
    assert first[0].limit_s == pytest.approx(2.0)
    assert each[0].limit_s == pytest.approx(8.0 / 400)
    assert first[0].percentile == each[0].percentile == pytest.approx(1 - 0.05 / 3)


def test_e2e_of_means() -> None:
    first, each = derived_limits([Slo("e2e", 10.0, None, 0.25)], TokenMix.deterministic(100, 76))
    assert first == (LatencyLimit(2.5, None),)
    assert each == (LatencyLimit(pytest.approx(0.1), None),)


def test_e2e_of_a_single_token_is_its_ttft() -> None:
    first, each = derived_limits([Slo("e2e", 10.0, 0.9)], TokenMix.deterministic(100, 1))
    assert first == (LatencyLimit(10.0, 0.9),)
    assert each == ()


def test_ttft_behind_hidden_tokens() -> None:
    mix = TokenMix.of(
        Distribution.deterministic(100),
        Distribution.deterministic(50),
        Distribution.histogram([200, 1000], [0.9, 0.1]),
    )
    first, each = derived_limits([Slo("ttft", 30.0, 0.91, 0.1)], mix)
    assert first[0].limit_s == pytest.approx(3.0)
    assert each[0].limit_s == pytest.approx(27.0 / 1000)
    assert each[0].percentile == pytest.approx(0.97)


def test_implied_limits_are_dropped() -> None:
    loose, tight = LatencyLimit(2.0, 0.9), LatencyLimit(1.0, 0.99)
    mean = LatencyLimit(0.5, None)
    assert binding([loose, tight, mean, LatencyLimit(0.7, None)]) == (mean, tight)
    both = [LatencyLimit(1.0, 0.9), LatencyLimit(2.0, 0.99)]
    assert set(binding(both)) == set(both)


@settings(max_examples=30, deadline=None)
@given(
    share=st.floats(0.05, 0.95),
    p=st.floats(0.5, 0.99),
    first_scale=st.floats(0.1, 1.0),
    seed=st.integers(0, 10**6),
)
def test_derived_limits_keep_the_promise(
    share: float, p: float, first_scale: float, seed: int
) -> None:
    """Latencies that just keep the derived limits keep the end-to-end one."""
    mix = TokenMix.of(Distribution.deterministic(9), Distribution.lognormal(300, 1.0, 4000))
    first, each = derived_limits([Slo("e2e", 10.0, p, share)], mix)
    inner = first[0].percentile
    assert inner is not None
    generator = np.random.default_rng(seed)
    count = 20_000
    # Misses of one kind are as bad as can be, and fall on other requests than the other kind's.
    order = generator.permutation(count)
    misses = int((1 - inner) * count)
    ttft = np.full(count, first[0].limit_s * first_scale)
    tpot = np.full(count, each[0].limit_s)
    ttft[order[:misses]] = 1e9
    tpot[order[misses : 2 * misses]] = 1e9
    output = generator.choice(mix.output_tokens, size=count, p=mix.output_weight)
    kept = ttft + (output - 1) * tpot <= 10.0 * (1 + 1e-9)
    assert kept.mean() >= p - 0.01  # sampling noise of the outputs


# Precisions


def test_largest_product() -> None:
    pairs = {("bf16", "bf16"), ("fp8", "bf16"), ("bf16", "fp8")}
    assert largest_product(pairs) == ({"bf16", "fp8"}, {"bf16"})
    assert largest_product({("fp8", "fp8")}) == ({"fp8"}, {"fp8"})
    assert largest_product(set()) == (frozenset(), frozenset())


@given(
    st.sets(st.tuples(st.sampled_from(["bf16", "fp8", "int4"]), st.sampled_from(["bf16", "fp8"])))
)
def test_every_combination_of_the_product_is_accepted(pairs: set[tuple[str, str]]) -> None:
    weights, caches = largest_product(pairs)
    assert {(weight, cache) for weight in weights for cache in caches} <= pairs
    assert bool(weights) == bool(pairs)


# From an instance


def test_rates() -> None:
    assert built().classes[0].rate_per_s == (3.0,)
    users = "users: 3000, requests_per_user_per_hour: 6, active_fraction: 0.2"
    rate = built(("requests_per_s: 2", users)).classes[0].rate_per_s
    assert rate == (pytest.approx(1.5 * 3000 * 0.2 * 6 / 3600),)
    rate = built(("requests_per_s: 2", "tokens_per_day: 103766400")).classes[0].rate_per_s
    assert rate == (pytest.approx(1.5 * 1201 / 1201),)  # 86,400 x 1,201 tokens a day


def test_an_exact_instance_assumes_only_what_it_must() -> None:
    fleet = "fleet: {accelerators: [h100], availability: [{accelerator: H100_SXM, nodes: 9}]}\n"
    slo = "    slo: [{metric: ttft, percentile: 99, limit_ms: 900}]\n"
    exact = "    arrival_scv: 1.0\n"
    assert built(extra=exact + slo + fleet).assumptions == ()


def test_every_assumption_is_said() -> None:
    found = built(
        ("requests_per_s: 2", "users: 50, requests_per_user_per_hour: 4"),
        ("    burst_factor: 1.5\n", ""),
        ("input_tokens: 1000", "input_tokens: {mean: 1000}\n    cached_input_fraction: 0.5"),
        ("output_tokens: 201", "output_tokens: {p50: 100, p99: 900, max: 1000}"),
        extra="    slo: [{metric: e2e, percentile: 95, limit_ms: 9000}]\n"
        "    max_quality_loss_percent: 1\n",
    ).assumptions
    said = "\n".join(found)
    for words in (
        "chat: input tokens are taken as lognormal with an SCV of 1, as none is given and at most "
        "10,000, as no max is given.",
        "chat: output tokens are taken as 100 below p50, as no min is given, which is safe.",
        "Input and output lengths of a request are taken to be independent.",
        "chat: 50% of every input is taken as cached, long or short.",
        "chat: all its users are taken as active at once.",
        "chat: no burst_factor is given, so the plan is made for the mean rate.",
        "chat: requests are taken to come independently of each other (Poisson).",
        "chat: of the limit e2e p95 <= 9000 ms, 20% is kept for the first token, as no "
        "ttft_share_fraction is given; the tokens after it have the rest.",
        "Availability is taken as unlimited",
        "upper bounds from published evaluations",
    ):
        assert words in said
    assert len(found) == len(set(found))


def test_precisions_of_model_and_workload_meet() -> None:
    workload = built(
        ("  - model: llama-3.3-70b-instruct\n", "  - model: llama70\n    kv_precisions: [fp8]\n"),
        extra="    weight_precisions: [fp8, bf16]\n",
    ).classes[0]
    assert workload.model == "llama-3.3-70b-instruct"
    assert workload.weight_precisions == {"bf16", "fp8"}
    assert workload.kv_precisions == {"fp8"}
    assert workload.precision_pairs == {("bf16", "fp8"), ("fp8", "fp8")}


def test_the_published_checkpoint_loses_nothing() -> None:
    workload = built(extra="    max_quality_loss_percent: 0\n").classes[0]
    assert workload.precision_pairs == {("bf16", "bf16")}


def test_a_conversation_must_fit_its_model() -> None:
    with pytest.raises(InputError, match=r"<string>:10:19: .*the last turn can reach"):
        built(("input_tokens: 1000", "conversation: {turns: 900, user_tokens: 10}"))


def test_percentiles_in_fractions_and_limits_in_seconds() -> None:
    workload = built(extra="    slo: [{metric: tpot, percentile: 99.9, limit_ms: 40}]\n").classes[0]
    assert workload.slos[0].percentile == pytest.approx(0.999)
    assert workload.tpot_limits[0].limit_s == pytest.approx(0.04)
    assert str(workload.slos[0]) == "tpot p99.9 <= 40 ms"
