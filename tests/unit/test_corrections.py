"""Corrections of measured deployments: what they change in a step, where, and what not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pytest
import tiny
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog import find_accelerator, find_model
from planner.errors import InputError
from planner.perf import Layout, PoolConfig, Speculative, StepModel, engine_profile, load_constants
from planner.perf import backend as backends
from planner.perf.backend import GLOBAL_CONSTANTS, RooflineBackend, find_backend
from planner.perf.corrections import Correction, Corrections, Deployment, fingerprint
from planner.perf.instance import instance_backend
from planner.schema.load import load_instance

VLLM = engine_profile("vllm")
SLOWER = Correction(
    step_time_factor=1.2,
    step_overhead_s=1e-3,
    prefill_time_factor=1.5,
    band=(0.9, 1.1),
    source="corrected by 3 measured points (a.yaml, 2026-11-01)",
)


def config(model: str, chip: str, layout: Layout, drafts: int = 0) -> PoolConfig:
    card = find_model(model)
    guess = Speculative(drafts, 1.8, 1e9) if drafts else None
    precision = card.native_precision
    return PoolConfig(card, find_accelerator(chip), layout, precision, "bf16", VLLM, guess)


CONFIGS = (
    config("llama-3.1-8b-instruct", "h100", Layout(1)),
    config("llama-3.1-70b-instruct", "h100", Layout(4), drafts=3),
    config("deepseek-v3", "h200", Layout(1, 1, 8, 8)),
    config("llama-3.1-405b-instruct", "h100", Layout(8, 2)),
)
PLAIN = StepModel(CONFIGS)
CORRECTED = StepModel(CONFIGS, corrections=[SLOWER] * len(CONFIGS))
ALL = np.arange(len(CONFIGS))


@settings(deadline=None, max_examples=30)
@given(batch=st.floats(1, 1000), context=st.floats(1, 100_000), chunk=st.floats(1, 20_000))
def test_a_step_takes_its_factor_and_its_overhead_once(
    batch: float, context: float, chunk: float
) -> None:
    before = PLAIN.decode_step_s(ALL, batch, context)
    after = CORRECTED.decode_step_s(ALL, batch, context)
    np.testing.assert_allclose(after, 1.2 * before + 1e-3, rtol=1e-9)
    mixed = (ALL, batch, context, chunk, chunk * chunk / 2)
    np.testing.assert_allclose(
        CORRECTED.mixed_step_s(*mixed), 1.2 * PLAIN.mixed_step_s(*mixed) + 1e-3, rtol=1e-9
    )


def test_tokens_sequences_and_draft_still_add_up_to_the_step() -> None:
    queries = CORRECTED.verified_tokens_per_step(ALL)
    parts = (
        CORRECTED.token_time_s(ALL, 64 * queries)
        + 64 * CORRECTED.sequence_time_s(ALL, 3000)
        + CORRECTED.draft_time_s(ALL, 64)
    )
    whole = CORRECTED.decode_step_s(ALL, 64, 3000)
    np.testing.assert_allclose(parts, whole, rtol=1e-12)
    np.testing.assert_allclose(sum(CORRECTED.terms(ALL, 64, 3000).values()), whole, rtol=1e-12)


def test_prefill_takes_a_factor_of_its_own_besides() -> None:
    only_prefill = StepModel(CONFIGS, corrections=[Correction(prefill_time_factor=1.5)] * 4)
    prompt = (ALL, 3000.0, 0.0, 2048.0)
    before, after = PLAIN.prefill_time_s(*prompt), only_prefill.prefill_time_s(*prompt)
    np.testing.assert_allclose(after, 1.5 * before, rtol=1e-12)
    np.testing.assert_allclose(
        only_prefill.prefill_time_factor(ALL), 1.5 * PLAIN.prefill_time_factor(ALL), rtol=1e-12
    )
    # Two chunks of one replica without groups and stages: two steps, each with the overhead.
    busy = CORRECTED.prefill_time_s(0, 3000.0, 0.0, 2048.0)
    assert busy == pytest.approx(1.5 * (1.2 * float(before[0]) + 2e-3), rel=1e-9)


def test_the_bound_knows_no_correction() -> None:
    bound = StepModel(CONFIGS, calibrated=False)
    same = StepModel(CONFIGS, calibrated=False, corrections=[SLOWER] * len(CONFIGS))
    np.testing.assert_array_equal(
        bound.decode_step_s(ALL, 8, 2000), same.decode_step_s(ALL, 8, 2000)
    )
    prompt = (ALL, 3000.0, 0.0, 2048.0)
    np.testing.assert_array_equal(bound.prefill_time_s(*prompt), same.prefill_time_s(*prompt))


def test_taking_some_configurations_takes_their_corrections() -> None:
    mixed = StepModel(CONFIGS, corrections=[None, SLOWER, None, SLOWER])
    part = mixed.take(np.array([3, 0]))
    whole = mixed.decode_step_s(np.array([3, 0]), 16, 1000)
    np.testing.assert_array_equal(part.decode_step_s(np.arange(2), 16, 1000), whole)
    assert whole[1] == PLAIN.decode_step_s(0, 16, 1000)


class TestBackend:
    measured = CONFIGS[0]
    backend = RooflineBackend(
        corrections=Corrections(MappingProxyType({Deployment.of(CONFIGS[0]): SLOWER}))
    )

    @pytest.mark.parametrize(
        "change",
        [
            {"layout": Layout(2)},
            {"kv_precision": "fp8"},
            {"weight_precision": "fp8"},
            {"engine": engine_profile("sglang")},
            {"accelerator": find_accelerator("h200")},
            {"speculative": Speculative(2, 1.5, 1e9)},
        ],
    )
    def test_another_deployment_keeps_the_global_constants(self, change: dict[str, Any]) -> None:
        other = replace(self.measured, **change)
        assert self.backend.corrections.find(other) is None
        assert self.backend.source_of(other) == GLOBAL_CONSTANTS
        assert self.backend.band(other) == find_backend().band(other)

    def test_settings_that_only_admit_requests_do_not_matter(self) -> None:
        fuller = replace(VLLM, memory_utilization_fraction=0.8, chunk_budgets_tokens=(512,))
        assert self.backend.corrections.find(replace(self.measured, engine=fuller)) is SLOWER

    def test_the_measured_one_is_compiled_with_its_correction(self) -> None:
        step = self.backend.compile(CONFIGS)
        after, before = step.decode_step_s(ALL, 32, 1000), PLAIN.decode_step_s(ALL, 32, 1000)
        assert after[0] == pytest.approx(1.2 * before[0] + 1e-3)
        np.testing.assert_array_equal(after[1:], before[1:])

    def test_its_band_and_source_are_those_of_the_measurements(self) -> None:
        assert self.backend.band(self.measured) == (0.9, 1.1)
        assert self.backend.ttft_band(self.measured) == find_backend().ttft_band(self.measured)
        assert self.backend.source_of(self.measured) == f"roofline, {SLOWER.source}"


def test_the_fingerprint_follows_every_constant_but_no_word() -> None:
    constants = load_constants()
    assert fingerprint(replace(constants, source="elsewhere", rows=1)) == fingerprint(constants)
    changed = replace(constants, layer_overhead_s=constants.layer_overhead_s * 1.01)
    assert fingerprint(changed) != fingerprint(constants)


class TestFiles:
    """What an instance's `perf` and `calibration` lead to."""

    POINT: ClassVar[dict[str, Any]] = {
        "file": "bench.json",
        "place": "line 1",
        "concurrency": 8.0,
        "input_tokens": 1000.0,
        "output_tokens": 200.0,
        "tpot_ms": 10.0,
        "predicted_tpot_ms": 9.0,
        "corrected_tpot_ms": 9.9,
        "held_out_tpot_ms": 9.0,
        "predicted_ttft_ms": 90.0,
        "corrected_ttft_ms": 99.0,
    }

    def entry(self, **changes: Any) -> dict[str, Any]:
        return {
            "model": "llama-3.1-8b-instruct",
            "accelerator": "h100",
            "engine": "vllm",
            "weight_precision": "fp8",
            "kv_precision": "fp8",
            "tensor_parallel": 1,
            "date": "2026-11-01",
            "constants": fingerprint(load_constants()),
            "files": [{"name": "bench.json", "sha256": "0" * 64}],
            "fitted": {
                "step_time_factor": 1.1,
                "step_overhead_ms": 0.0,
                "tpot_band_factors": [0.9, 1.12],
            },
            "points": [self.POINT],
        } | changes

    def backend(self, folder: Path, *entries: dict[str, Any], **fields: Any) -> Any:
        for number, entry in enumerate(entries):
            text = yaml.safe_dump({"format_version": 1, "deployments": [entry]}, sort_keys=False)
            (folder / f"c{number}.yaml").write_text(text)
        path = folder / "instance.yaml"
        path.write_text(yaml.safe_dump(tiny.document() | fields, sort_keys=False))
        return instance_backend(load_instance(path))

    def refused(self, folder: Path, *entries: dict[str, Any], **fields: Any) -> str:
        with pytest.raises(InputError) as error:
            self.backend(folder, *entries, **fields)
        return str(error.value)

    def test_the_default_is_the_roofline_as_it_is(self, tmp_path: Path) -> None:
        assert self.backend(tmp_path) is find_backend("roofline")

    @pytest.mark.parametrize("names", ["c0.yaml", ["c0.yaml", "c1.yaml"]])
    def test_files_are_found_beside_the_instance(self, tmp_path: Path, names: object) -> None:
        other = self.entry(tensor_parallel=2)
        found = self.backend(tmp_path, self.entry(), other, calibration=names)
        card, chip = find_model("llama-3.1-8b-instruct"), find_accelerator("h100")
        measured = PoolConfig(card, chip, Layout(1), "fp8", "fp8", VLLM)
        assert found.corrections.find(measured).step_time_factor == 1.1
        wider = found.corrections.find(replace(measured, layout=Layout(2)))
        assert (wider is None) == isinstance(names, str)
        assert found.source_of(measured) == (
            "roofline, corrected by 1 measured point (c0.yaml, 2026-11-01)"
        )

    def test_an_unknown_backend_is_told_with_its_line(self, tmp_path: Path) -> None:
        text = self.refused(tmp_path, perf="rooflin")
        assert "unknown step-time backend 'rooflin'; did you mean 'roofline'?" in text
        line = (tmp_path / "instance.yaml").read_text().split("\n").index("perf: rooflin") + 1
        assert f"instance.yaml:{line}:7: perf: " in text

    def test_a_backend_without_its_package_names_the_extra(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backends, "OPTIONAL", {"aiconfigurator": "not_there_at_all"})
        monkeypatch.delitem(backends._REGISTRY, "aiconfigurator", raising=False)
        text = self.refused(tmp_path, perf="aiconfigurator")
        assert "needs the package not_there_at_all" in text
        assert "pip install 'llm-fleet-planner[aiconfigurator]'" in text

    def test_a_calibration_goes_with_the_roofline_only(self, tmp_path: Path) -> None:
        text = self.refused(tmp_path, self.entry(), perf="other", calibration="c0.yaml")
        assert "corrects the roofline, and step times come from other" in text

    def test_a_missing_file_is_told_at_the_instance(self, tmp_path: Path) -> None:
        text = self.refused(tmp_path, calibration=["c7.yaml"])
        assert "c7.yaml: no such file" in text
        assert "instance.yaml:" in text
        assert "calibration[0]" in text

    def test_a_mistake_in_the_file_is_told_there(self, tmp_path: Path) -> None:
        wrong = self.entry(kv_precision="fp7")
        text = self.refused(tmp_path, wrong, calibration="c0.yaml")
        assert "c0.yaml:" in text
        assert "deployments[0].kv_precision" in text

    def test_other_constants_ask_for_a_new_fit(self, tmp_path: Path) -> None:
        text = self.refused(tmp_path, self.entry(constants="old"), calibration="c0.yaml")
        assert "deployments[0].constants: was fitted to other constants" in text
        assert "run `planner calibrate` again with its results: bench.json" in text

    def test_two_files_may_not_correct_one_deployment(self, tmp_path: Path) -> None:
        names = ["c0.yaml", "c1.yaml"]
        text = self.refused(tmp_path, self.entry(), self.entry(), calibration=names)
        assert "corrects a deployment that c0.yaml: deployments[0] corrects too" in text

    def fitted(self, **changes: Any) -> dict[str, Any]:
        return self.entry(fitted=self.entry()["fitted"] | changes)

    def test_one_file_may_not_be_named_twice(self, tmp_path: Path) -> None:
        text = self.refused(tmp_path, self.entry(), calibration=["c0.yaml", "c0.yaml"])
        assert "calibration[1]: c0.yaml is named twice; keep one of them" in text

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"step_time_factor": 0.1}, "step_time_factor"),
            ({"step_time_factor": 0.1, "step_overhead_ms": -0.5}, "step_time_factor"),
            ({"step_overhead_ms": -50.0}, "step_overhead_ms"),
            ({"prefill_time_factor": 0.1}, "prefill_time_factor"),
        ],
    )
    def test_faster_than_the_bound_is_refused_at_its_line(
        self, tmp_path: Path, changes: dict[str, float], field: str
    ) -> None:
        text = self.refused(tmp_path, self.fitted(**changes), calibration="c0.yaml")
        lines = (tmp_path / "c0.yaml").read_text().split("\n")
        line = next(n for n, each in enumerate(lines, 1) if each.strip().startswith(f"{field}:"))
        assert f"c0.yaml:{line}:" in text
        assert f"deployments[0].fitted.{field}: is {changes[field]:g}: a " in text
        assert "faster than the hardware allows; at least " in text

    def test_the_value_that_is_named_as_right_is_accepted(self, tmp_path: Path) -> None:
        wrong = {"step_time_factor": 0.1, "step_overhead_ms": -50.0, "prefill_time_factor": 0.1}
        for name, value in wrong.items():
            text = self.refused(tmp_path, self.fitted(**{name: value}), calibration="c0.yaml")
            least = float(text.partition("at least ")[2].partition(",")[0])
            right = least + 0.01 * abs(least)
            self.backend(tmp_path, self.fitted(**{name: right}), calibration="c0.yaml")

    @pytest.mark.parametrize(
        ("name", "written"),
        [
            *(("step_time_factor", value) for value in (0, -1, 1e9)),
            *(("prefill_time_factor", value) for value in (0, -1, 1e9)),
            *(("step_overhead_ms", value) for value in (-1e9, 1e9)),
            *(("tpot_band_factors", [0.9, value]) for value in (0, -1, 1e9)),
        ],
    )
    def test_absurd_values_are_refused_at_their_place(
        self, tmp_path: Path, name: str, written: object
    ) -> None:
        text = self.refused(tmp_path, self.fitted(**{name: written}), calibration="c0.yaml")
        assert re.match(rf".*c0\.yaml:\d+:\d+: deployments\[0\]\.fitted\.{name}", text)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_is_no_number_is_refused_at_its_line(self, tmp_path: Path, value: float) -> None:
        text = self.refused(tmp_path, self.fitted(step_time_factor=value), calibration="c0.yaml")
        lines = (tmp_path / "c0.yaml").read_text().split("\n")
        line = next(n for n, each in enumerate(lines, 1) if "step_time_factor" in each)
        assert f"c0.yaml:{line}:" in text
        assert "is not a finite number" in text
