from __future__ import annotations

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray

from planner.perf.coefficients import StepModel
from planner.perf.config import Layout, PoolConfig
from planner.pools.decode import ALL, Engine, EnginePoint, chunk_profile, tail_tpot_s
from planner.pools.loads import GROUPS, ClassLoad, class_load, upper_quantile
from planner.pools.prefill import prefill_service

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
            mean = decode.tpot_s(batch, None)
            p90, p99 = decode.tpot_s(batch, 0.9), decode.tpot_s(batch, 0.99)
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
        tail = tail_tpot_s(0.010 * one, 50.0 * one, 0.001 * one, 0.001 * one, 0.95)
        assert np.isfinite(tail).all()
        assert (tail >= 0.010).all()


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

    def test_the_tail_is_a_full_step(self, step: StepModel, loads: list[ClassLoad]) -> None:
        mixed = engine(step, loads, 2048.0)
        batch = np.full((2, 2), 4.0)
        point = mixed.point(batch)
        assert mixed.tpot_s(batch, 0.95) == pytest.approx(point.full_step_s)
        assert mixed.tpot_s(batch, None) == pytest.approx(point.step_s)

    def test_a_first_token_takes_a_step_per_chunk(
        self, step: StepModel, loads: list[ClassLoad]
    ) -> None:
        """2,500 uncached tokens in chunks of 1,024: the step under way and three more."""
        mixed = engine(step, loads, 1024.0)
        point = EnginePoint(*(np.full(2, value) for value in (0.8, 0.001, 0.9, 100.0, 0.1)))
        first = mixed.first_token_s(point, 1, 0.95)
        assert first == pytest.approx(4 * 0.9 + step.ttft_fixed_s(ALL, 5000))

    def test_a_first_token_shows_after_some_decode_steps(
        self, step: StepModel, loads: list[ClassLoad]
    ) -> None:
        """Where those take longer than the step under way, they count in its stead."""
        mixed = engine(step, loads, 1024.0)
        point = EnginePoint(*(np.full(2, value) for value in (0.8, 0.7, 0.9, 100.0, 0.1)))
        steps = step.ttft_decode_steps(ALL)
        assert (steps * 0.7 > 0.9).all()
        first = mixed.first_token_s(point, 1, None)
        assert first == pytest.approx(steps * 0.7 + 3 * 0.9 + step.ttft_fixed_s(ALL, 5000))


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
