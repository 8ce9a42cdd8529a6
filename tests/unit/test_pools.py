from __future__ import annotations

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray

from planner.perf.coefficients import StepModel
from planner.perf.config import Layout, PoolConfig
from planner.pools.decode import PEAK_SIGMAS, Engine
from planner.pools.loads import GROUPS, ClassLoad, class_load, mixed_load, upper_quantile
from planner.pools.prefill import prefill_service
from planner.pools.prompts import ALL, chunk_profile, prompt_queue
from planner.queueing.decode import tpot_tail

Floats = NDArray[np.float64]

CONTENT = tiny.document(
    tiny.workload("chat"),
    tiny.workload("long", input_tokens=5000, output_tokens=40, cached_input_fraction=0.5),
)


@pytest.fixture(scope="module")
def loads() -> list[ClassLoad]:
    return [class_load(workload.mix) for workload in tiny.problem(CONTENT).classes]


@pytest.fixture(scope="module")
def step() -> StepModel:
    request = tiny.problem(CONTENT).request()
    (served,), (group,) = request.models, request.node_groups
    return StepModel(
        [
            PoolConfig(served.card, group.accelerator, layout, "fp8", "fp8", served.engine)
            for layout in (Layout(1), Layout(2))
        ]
    )


def engine(step: StepModel, loads: list[ClassLoad], chunk: float | None = None) -> Engine:
    if chunk is None:
        return Engine(step, loads)
    chunks = np.full(len(step.configs), chunk)
    return Engine(step, loads, [chunk_profile(step, load, chunks) for load in loads])


class TestLoads:
    def test_moments_by_hand(self, loads: list[ClassLoad]) -> None:
        """Fixed lengths: 5000 in, half cached, 40 out; context I + O/2 up to a token."""
        long = loads[1]
        assert long.uncached_mean == pytest.approx(2500)
        assert float(long.prompt @ long.weight) == pytest.approx(5000)
        assert long.output_mean == pytest.approx(40)
        assert long.context_mean == pytest.approx(5020, abs=1)
        assert long.longest_tokens == 5040

    def test_thinning_keeps_the_means(self, loads: list[ClassLoad]) -> None:
        mix = tiny.problem(CONTENT).classes[0].mix
        chat = loads[0]
        assert len(chat.weight) <= sum(count for _, count in GROUPS)
        assert chat.weight.sum() == pytest.approx(1.0)
        assert chat.uncached_mean == pytest.approx(mix.mean_uncached, rel=1e-9)
        assert float(chat.prompt @ chat.weight) == pytest.approx(mix.mean_prompt, rel=1e-9)

    @pytest.mark.parametrize(
        ("percentile", "expected"), [(0.5, 1.0), (0.51, 2.0), (0.9, 3.0), (None, 1.7)]
    )
    def test_quantiles_by_hand(self, percentile: float | None, expected: float) -> None:
        values = np.array([3.0, 1.0, 2.0])
        weight = np.array([0.2, 0.5, 0.3])
        assert float(upper_quantile(values, weight, percentile)) == pytest.approx(expected)


class TestDecode:
    def test_littles_law_at_the_operating_point(
        self, step: StepModel, loads: list[ClassLoad]
    ) -> None:
        decode = engine(step, loads)
        rate = np.array([[5.0, 3.0], [9.0, 1.0]])
        batch, point = decode.operating_point(rate)
        outputs = np.array([200.0, 40.0])
        assert batch == pytest.approx(rate * outputs * point.step_s[:, None], rel=1e-3)
        assert point.step_s == pytest.approx(decode.point(batch).step_s, rel=1e-9)
        assert decode.rates(batch, point.step_s) == pytest.approx(rate, rel=1e-9)

    def test_a_decode_step_is_its_parts(self, step: StepModel, loads: list[ClassLoad]) -> None:
        decode = engine(step, loads)
        batch = np.array([[10.0, 6.0], [3.0, 0.5]])
        expected = step.token_time_s(ALL, batch.sum(axis=-1)) + sum(
            batch[:, k] * step.sequence_time_s(ALL, load.context_mean)
            for k, load in enumerate(loads)
        )
        assert decode.decode_s(batch) == pytest.approx(expected)

    def test_more_load_means_longer_steps_and_tails(
        self, step: StepModel, loads: list[ClassLoad]
    ) -> None:
        decode = engine(step, loads)
        previous = np.zeros(2)
        for rate in (0.1, 1.0, 5.0, 20.0):
            batch, point = decode.operating_point(np.full((2, 2), rate))
            mean = decode.tpot_s(batch, 0, None)
            p90, p99 = decode.tpot_s(batch, 0, 0.9), decode.tpot_s(batch, 0, 0.99)
            assert (point.step_s >= previous).all()
            assert (mean <= p90 * (1 + 1e-12)).all()
            assert (p90 <= p99 * (1 + 1e-12)).all()
            previous = point.step_s

    def test_a_load_without_an_operating_point(
        self, step: StepModel, loads: list[ClassLoad]
    ) -> None:
        decode = engine(step, loads)
        _, point = decode.operating_point(np.array([[1e6, 1e6], [1.0, 1.0]]))
        assert np.isinf(point.step_s[0])
        assert np.isfinite(point.step_s[1])

    def test_a_tail_without_a_fixed_part(self) -> None:
        """Slope times sequences above the whole step: a tangent of a concave step may say so."""
        one = np.ones(1)
        late = tpot_tail(
            np.array([0.004, 0.02, 0.4]),
            1e-8 * np.ones(3),
            0.001 * np.ones(3),
            0.001 * np.ones(3),
            0.9 * np.ones(3),
            10.0 * np.ones(3),
            np.full((3, 1), 50.0),
            one,
        )
        assert (np.diff(late) < 0).all()
        assert (late > 0).all()
        assert (late < 1).all()


class TestAggregated:
    def test_steps_hold_the_prefill_they_cause(
        self, step: StepModel, loads: list[ClassLoad]
    ) -> None:
        plain, mixed = engine(step, loads), engine(step, loads, 1024.0)
        batch = np.array([[20.0, 2.0], [20.0, 2.0]])
        point = mixed.point(batch)
        assert (point.step_s > plain.point(batch).step_s).all()
        assert (point.full_step_s >= point.step_s).all()
        per_step = batch / np.array([200.0, 40.0])
        uncached = np.array([load.uncached_mean for load in loads])
        assert point.prefill_tokens == pytest.approx(per_step @ uncached, rel=1e-3)

    def test_larger_chunks_have_longer_full_steps(
        self, step: StepModel, loads: list[ClassLoad]
    ) -> None:
        batch = np.full((2, 2), 8.0)
        full = [engine(step, loads, chunk).point(batch).full_step_s for chunk in (512.0, 4096.0)]
        assert (full[0] < full[1]).all()

    def test_percentiles_rise_and_more_replicas_wait_less(
        self, step: StepModel, loads: list[ClassLoad]
    ) -> None:
        mixed = engine(step, loads, 2048.0)
        batch = np.full((2, 2), 20.0)
        for index in (0, 1):
            first = [mixed.first_token_s(batch, index, p) for p in (0.5, 0.9, 0.99)]
            each = [mixed.tpot_s(batch, index, p) for p in (0.5, 0.9, 0.99)]
            for values in (first, each):
                assert (values[0] < values[1]).all()
                assert (values[1] < values[2]).all()
            alone, four = (mixed.first_token_s(batch, index, 0.95, n) for n in (1, 4))
            assert (four < alone).all()

    def test_a_first_token_by_hand_where_nobody_else_is(
        self, step: StepModel, loads: list[ClassLoad]
    ) -> None:
        """2,500 uncached tokens in chunks of 1,024 ride in three steps, behind half of one."""
        mixed = engine(step, loads, 1024.0)
        batch = np.array([[0.0, 1e-6], [0.0, 1e-6]])
        one = step.token_time_s(ALL, 1.0)
        rides = [step.token_time_s(ALL, 1.0 + tokens, 1.0) - one for tokens in (1024.0, 452.0)]
        stall = 2 * rides[0] + rides[1] + mixed.profiles[1].attention_mean_s  # type: ignore[index]
        decode = one + step.sequence_time_s(ALL, loads[1].context_mean)
        shown = step.ttft_decode_steps(ALL)
        expected = (3 + shown) * decode + stall + step.ttft_fixed_s(ALL, 5000)
        assert (shown > 0.5).all()
        assert mixed.first_token_s(batch, 1, None) == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("chunk", [512.0, 8192.0])
    @pytest.mark.parametrize("replicas", [1, 4])
    def test_quick_answers_are_those_of_the_quantiles(
        self, step: StepModel, chunk: float, replicas: int
    ) -> None:
        """Also where a batch above its mean makes steps longer than a full one at the mean."""
        content = tiny.document(
            tiny.workload(
                input_tokens={"mean": 300, "scv": 1.0, "max": 2400},
                output_tokens={"mean": 1000, "scv": 1.0, "max": 8000},
            )
        )
        load = mixed_load(tiny.problem(content).classes[0].mix, 2.0)
        total = np.geomspace(1.0, 300.0, 12)
        many = step.take(np.zeros(len(total), dtype=np.int64))
        mixed = engine(many, [load], chunk)
        batch = total[:, None]
        point = mixed.point(batch)
        queue = prompt_queue(mixed, batch, point)
        servers = np.full(len(total), replicas)
        longest = np.zeros(len(total))
        for percentile in (0.5, 0.95, 0.99, None):
            first = mixed.first_token_s(batch, 0, percentile, replicas)
            each = mixed.tpot_s(batch, 0, percentile, replicas)
            longest = np.maximum(longest, each)
            for factor in (0.9, 0.999, 1.001, 1.1):
                kept = (
                    mixed.keeps_ttft(0, percentile, first * factor, servers, queue),
                    mixed.keeps_tpot(batch, 0, percentile, each * factor, servers, point, queue),
                )
                for flags in kept:
                    assert (flags == (factor > 1)).all(), (percentile, factor)
        if chunk < 1000:
            assert (longest > point.full_step_s).any()

    def test_decode_tokens_count_against_the_budget(
        self, step: StepModel, loads: list[ClassLoad]
    ) -> None:
        mixed = engine(step, loads, 512.0)
        room = mixed.chunk_room_tokens(np.array([[100.0, 12.0], [600.0, 0.0]]))
        assert room == pytest.approx(
            512.0 * np.array([1, 1]) * mixed.profiles[0].lanes - [112, 511]
        )  # type: ignore[index]


class TestFluctuation:
    def test_a_batch_that_does_not_feed_itself_is_poisson(
        self, step: StepModel, loads: list[ClassLoad]
    ) -> None:
        """One request now and then: 99 % of the time B + 2.33 sqrt(B) are enough."""
        decode = engine(step, loads)
        batch = np.array([[0.5, 0.0], [0.0, 0.25]])
        total = batch.sum(axis=-1)
        peak = decode.batch_peak(batch, decode.point(batch))
        assert peak == pytest.approx(total + 2.33 * np.sqrt(total))
        assert PEAK_SIGMAS == 2.33

    def test_longer_batches_fluctuate_more(self, step: StepModel, loads: list[ClassLoad]) -> None:
        """The variance is B step / (t0 + m): the decode step linearised at the batch."""
        decode = engine(step, loads)
        batch = np.array([[80.0, 0.0], [80.0, 0.0]])
        step_s = decode.decode_s(batch)
        slope_s = decode.decode_s(batch * 81 / 80) - step_s
        expected = 80 + 2.33 * np.sqrt(80 * step_s / (step_s - 79 * slope_s))
        assert decode.batch_peak(batch, decode.point(batch)) == pytest.approx(expected)

    def test_caches_of_unlike_sizes_need_more_room(
        self, step: StepModel, loads: list[ClassLoad]
    ) -> None:
        decode = engine(step, loads)
        batch = np.array([[40.0, 0.0], [0.0, 40.0]])
        point = decode.point(batch)
        spare = decode.kv_bytes_peak(batch, point) / decode.kv_bytes(batch) - 1
        counted = decode.batch_peak(batch, point) / 40 - 1
        # Lengths of the first class vary, those of the second hardly at all.
        assert spare[0] > 1.2 * counted[0]
        assert spare[1] == pytest.approx(counted[1], rel=1e-2)

    def test_bursts_widen_the_batch(self, step: StepModel) -> None:
        mix = tiny.problem(CONTENT).classes[0].mix
        batch = np.full((2, 1), 30.0)
        peaks = []
        for scv in (1.0, 2.0, 4.0):
            decode = engine(step, [class_load(mix, scv)])
            peaks.append(decode.batch_peak(batch, decode.point(batch)) - 30)
        assert (peaks[0] < peaks[1]).all()
        assert (peaks[1] < peaks[2]).all()
        smooth = engine(step, [class_load(mix, 0.5)])
        assert smooth.batch_peak(batch, smooth.point(batch)) - 30 == pytest.approx(peaks[0])


class TestPrefill:
    def test_transfer_delays_the_token_but_occupies_no_replica(
        self, step: StepModel, loads: list[ClassLoad]
    ) -> None:
        chunks = np.full(2, 2048.0)
        fast, slow = (
            prefill_service(step, loads[1], chunks, np.full(2, rate))[0] for rate in (1e11, 1e9)
        )
        assert slow.busy_s == pytest.approx(fast.busy_s)
        moved = step.kv_transfer_bytes((ALL, None), loads[1].prompt)
        assert slow.own_s - fast.own_s == pytest.approx(moved * (1e-9 - 1e-11))

    def test_packing_helps_short_prompts(self, step: StepModel) -> None:
        short = class_load(
            tiny.problem(tiny.document(tiny.workload(input_tokens=100))).classes[0].mix
        )
        alone, packed = prefill_service(step, short, np.full(2, 2048.0), np.full(2, 1e11))
        assert (packed.busy_s < alone.busy_s).all()

    def test_moments(self, step: StepModel, loads: list[ClassLoad]) -> None:
        service = prefill_service(step, loads[0], np.full(2, 2048.0), np.full(2, 1e11))[0]
        mean, square = service.moments(loads[0].weight)
        assert (square >= mean**2).all()
        assert mean == pytest.approx((service.busy_s * loads[0].weight).sum(axis=-1))
