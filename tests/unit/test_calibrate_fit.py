"""The fit of a correction: what it recovers, how far it goes on few points, what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.calibrate.correct import FittedDeployment, fit_deployment
from planner.calibrate.fit import StepTerms, fit_prefill, fit_steps
from planner.calibrate.measurement import Measurement
from planner.calibrate.points import Point, Predictions, point_of, usable_points
from planner.catalog import find_accelerator, find_model
from planner.errors import InputError
from planner.perf import Layout, PoolConfig, Speculative, StepModel, engine_profile
from planner.perf.corrections import Correction

CONFIG = PoolConfig(
    find_model("llama-3.1-8b-instruct"),
    find_accelerator("h100"),
    Layout(1),
    "bf16",
    "bf16",
    engine_profile("vllm"),
)
LOADS = [
    (clients, tokens) for clients in (1.0, 4.0, 16.0, 64.0, 128.0) for tokens in (500.0, 3000.0)
]


def measurement(
    clients: float, tokens: float, tpot_s: float | None, ttft_s: float | None = None
) -> Measurement:
    return Measurement(
        file="bench.csv",
        place=f"line {clients:g}/{tokens:g}",
        format="csv",
        input_tokens=tokens,
        output_tokens=200.0,
        concurrency=clients,
        request_rate_per_s=None,
        duration_s=None,
        requests=100,
        failed=0,
        tpot_s=tpot_s,
        ttft_s=ttft_s,
        e2e_s=None,
    )


def made_by(
    truth: Correction, loads: list[tuple[float, float]] = LOADS, ttft: bool = True
) -> list[Point]:
    """Points as a deployment with this correction would give them, without noise."""
    probes = [point_of(measurement(*load, tpot_s=1.0)) for load in loads]
    served = Predictions(CONFIG, probes).serving(truth)
    return [
        point_of(
            measurement(*load, float(served.tpot_s[n]), float(served.ttft_s[n]) if ttft else None)
        )
        for n, load in enumerate(loads)
    ]


def errors(fitted: FittedDeployment) -> np.ndarray:
    return np.array([each.corrected_tpot_s / each.point.tpot_s - 1 for each in fitted.points])


class TestRecovery:
    truth = Correction(step_time_factor=1.15, step_overhead_s=1.5e-3, prefill_time_factor=1.4)

    def test_many_points_bring_back_what_made_them(self) -> None:
        fitted = fit_deployment(CONFIG, made_by(self.truth, 4 * LOADS)).correction
        assert fitted.step_time_factor == pytest.approx(1.15, abs=0.01)
        assert fitted.step_overhead_s == pytest.approx(1.5e-3, abs=0.05e-3)
        assert fitted.prefill_time_factor == pytest.approx(1.4, abs=0.03)

    def test_a_deployment_that_is_as_predicted_is_left_alone(self) -> None:
        fitted = fit_deployment(CONFIG, made_by(Correction())).correction
        assert fitted.step_time_factor == pytest.approx(1.0, abs=1e-6)
        assert fitted.step_overhead_s == pytest.approx(0.0, abs=1e-9)
        assert fitted.prefill_time_factor == pytest.approx(1.0, abs=1e-6)

    def test_one_wild_point_among_many_moves_little(self) -> None:
        points = made_by(self.truth)
        points[3] = replace(points[3], tpot_s=2 * points[3].tpot_s)
        found = np.delete(np.abs(errors(fit_deployment(CONFIG, points))), 3)
        assert np.median(found) < 0.03

    def test_the_order_of_points_does_not_matter(self) -> None:
        points = made_by(self.truth)
        forward, back = (fit_deployment(CONFIG, each) for each in (points, points[::-1]))
        assert forward.steps.factor == pytest.approx(back.steps.factor, rel=1e-6)
        assert forward.steps.band == pytest.approx(back.steps.band, rel=1e-6)

    def test_speculation_and_cached_input_enter_the_prediction(self) -> None:
        drafting = replace(CONFIG, speculative=Speculative(3, 2.0, 1e9))
        plain = measurement(8, 3000, tpot_s=0.01)
        more = replace(plain, accepted_tokens_per_step=3.0)
        cached = replace(plain, cached_fraction=0.9)
        served = Predictions(drafting, [point_of(each) for each in (plain, more, cached)]).serving()
        assert served.tpot_s[1] < served.tpot_s[0] / 1.3
        assert served.prefill_s[2] < served.prefill_s[0] / 4
        assert served.tpot_s[2] < served.tpot_s[0]

    def test_a_load_over_several_replicas_is_shared(self) -> None:
        each = measurement(64, 500, tpot_s=0.01)
        recorded = replace(each, recorded=replace(each.recorded, replicas=4))
        assert point_of(recorded).concurrency == 16
        assert point_of(each, replicas=2).concurrency == 32
        assert point_of(recorded, replicas=2).concurrency == 16


class TestFewPoints:
    slow = Correction(step_time_factor=1.4)

    def test_one_point_goes_part_of_the_way_and_has_no_error(self) -> None:
        fitted = fit_deployment(CONFIG, made_by(self.slow, LOADS[4:5], ttft=False))
        assert 1 / 1.4 - 1 < errors(fitted)[0] < -0.005
        assert fitted.steps.factor_error is None
        assert fitted.steps.overhead_error_s is None
        assert fitted.prefill is None
        assert fitted.correction.ttft_band is None
        assert any("no standard error" in note for note in fitted.notes)

    def test_more_points_go_further(self) -> None:
        everywhere = Predictions(CONFIG, made_by(self.slow))
        truth = everywhere.serving(self.slow).tpot_s
        left = []
        for count in (1, 3, 10):
            loads = LOADS[:: len(LOADS) // count][:count]
            fitted = fit_deployment(CONFIG, made_by(self.slow, loads)).correction
            left.append(np.max(np.abs(everywhere.serving(fitted).tpot_s / truth - 1)))
        assert left[0] > left[1] > left[2]

    def test_points_that_disagree_widen_band_and_error(self) -> None:
        calm = made_by(self.slow)
        rng = np.random.default_rng(1)
        noise = np.exp(rng.normal(0, 0.15, len(calm)))
        wild = [replace(p, tpot_s=p.tpot_s * e) for p, e in zip(calm, noise, strict=True)]
        steady, shaky = (fit_deployment(CONFIG, each).steps for each in (calm, wild))
        assert shaky.band[0] < steady.band[0] < 1 < steady.band[1] < shaky.band[1]
        assert steady.factor_error is not None
        assert shaky.factor_error is not None
        assert shaky.factor_error > 3 * steady.factor_error

    def test_the_band_covers_four_in_five_of_what_comes_next(self) -> None:
        # Deployments drawn as the priors say, three points each, judged on the other seven.
        rng = np.random.default_rng(7)
        predictions = Predictions(CONFIG, made_by(Correction()))
        before, steps = predictions.serving().tpot_s, predictions.steps()
        limit_s, bound_s = predictions.limits()
        inside = []
        for _ in range(60):
            factor, overhead = np.exp(rng.normal(0, 0.15)), abs(rng.normal(0, 1e-3))
            truth = (factor * before + overhead * steps) * np.exp(rng.normal(0, 0.08, len(before)))
            chosen = rng.permutation(len(before))[:3]
            terms = StepTerms(
                truth[chosen],
                before[chosen],
                steps[chosen],
                predictions.single_step_s(),
                limit_s,
                bound_s,
            )
            fit = fit_steps(terms)
            predicted = fit.factor * before + fit.overhead_s * steps
            ratio = np.delete(truth / predicted, chosen)
            inside += [fit.band[0] <= each <= fit.band[1] for each in ratio]
        assert 0.75 <= np.mean(inside) <= 0.95


class TestBound:
    def test_a_measurement_below_the_bound_is_refused_with_place_and_causes(self) -> None:
        with pytest.raises(InputError) as error:
            fit_deployment(CONFIG, [point_of(measurement(4, 500, tpot_s=2e-3))])
        text = str(error.value)
        assert text.startswith("bench.csv: line 4/500: TPOT 2 ms is below the ")
        assert "another GPU or a wider layout" in text
        assert "speculative decoding" in text
        assert "counts the first token" in text

    def test_a_prompt_faster_than_the_bound_points_at_the_prefix_cache(self) -> None:
        points = [point_of(measurement(1, 6000, tpot_s=0.02, ttft_s=0.01))]
        with pytest.raises(InputError, match=r"TTFT 10 ms is below the .*prefix cache"):
            fit_deployment(CONFIG, points)

    def test_a_cached_prompt_may_be_that_fast(self) -> None:
        each = replace(measurement(1, 6000, tpot_s=0.02, ttft_s=0.05), cached_fraction=0.95)
        assert fit_deployment(CONFIG, [point_of(each)]).prefill is not None

    @pytest.mark.parametrize("shrink", [1.0, 1.02, 1.1])
    def test_no_step_of_a_fit_is_faster_than_the_bound(self, shrink: float) -> None:
        predictions = Predictions(CONFIG, made_by(Correction()))
        fastest = predictions.bound_step_s() * shrink
        points = [
            replace(point, tpot_s=float(seconds), ttft_s=None)
            for point, seconds in zip(predictions.points, fastest, strict=True)
        ]
        # What decodes at once depends on the measured TPOT; iterate to what is just possible.
        for _ in range(20):
            bound = Predictions(CONFIG, points).bound_step_s() * shrink * 1.0001
            points = [replace(p, tpot_s=float(s)) for p, s in zip(points, bound, strict=True)]
        fitted = fit_deployment(CONFIG, points)
        model = StepModel([CONFIG], corrections=[fitted.correction])
        limit = StepModel([CONFIG], calibrated=False)
        batch, context = np.meshgrid([1.0, 4.0, 16.0, 64.0, 256.0, 1024.0], [512, 4096, 32768])
        steps = model.decode_step_s(0, batch, context)
        assert np.all(steps >= limit.decode_step_s(0, batch, context) * (1 - 1e-9))
        chunks = np.array([512.0, 2048.0, 8192.0])
        prefill = model.prefill_step_s(0, chunks, chunks**2 / 2)
        assert np.all(prefill >= limit.prefill_step_s(0, chunks, chunks**2 / 2) * (1 - 1e-9))
        assert fitted.steps.limited
        assert any("physical bound" in note for note in fitted.notes)

    def test_a_prefill_factor_stops_at_its_bound(self) -> None:
        fit = fit_prefill(np.full(5, 0.1), np.full(5, 0.5), np.zeros(5), least_factor=0.6)
        assert fit.factor == 0.6


class TestUsable:
    def test_what_cannot_be_used_is_told_and_the_rest_is(self) -> None:
        good = measurement(4, 500, tpot_s=0.01)
        bad = [
            measurement(4, 500, tpot_s=None),
            replace(good, concurrency=None),
            replace(good, disaggregated=True),
            replace(good, requests=80, failed=20),
        ]
        points, skipped = usable_points([good, *bad])
        assert [point.measurement for point in points] == [good]
        words = ("has no TPOT", "has no concurrency", "prefill and decode apart", "20 of 100")
        assert len(skipped) == len(words)
        for text, word in zip(skipped, words, strict=True):
            assert word in text
            assert text.startswith("bench.csv: line")

    def test_few_failures_are_tolerated(self) -> None:
        few = replace(measurement(4, 500, tpot_s=0.01), requests=95, failed=5)
        assert len(usable_points([few])[0]) == 1

    def test_nothing_usable_is_an_error_with_all_reasons(self) -> None:
        with pytest.raises(InputError) as error:
            usable_points([measurement(4, 500, tpot_s=None)])
        assert "has no TPOT" in str(error.value)
        assert "no measurement can be used" in str(error.value)

    def test_a_request_that_cannot_fit_is_refused(self) -> None:
        points = [point_of(measurement(1, 1_500_000, tpot_s=0.1))]
        with pytest.raises(InputError, match="not even one such request fits"):
            fit_deployment(CONFIG, points)
