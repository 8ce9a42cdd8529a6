"""From result files to a calibration file, and from there to a plan."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from planner import api, cli
from planner.calibrate.measurement import Measurement
from planner.calibrate.points import Predictions, point_of
from planner.catalog import find_accelerator, find_model
from planner.perf import Layout, PoolConfig, engine_profile
from planner.perf.backend import RooflineBackend
from planner.perf.corrections import Correction
from planner.perf.instance import instance_backend
from planner.schema.calibration import load_calibration
from planner.schema.load import load_instance

RESULTS = Path(__file__).parents[1] / "golden" / "results"
DEPLOYMENT = [
    *("--model", tiny.LLAMA_8B, "--gpu", "h100", "--engine", "vllm"),
    *("--weights", "fp8", "--kv-cache", "fp8", "--tensor-parallel", "1"),
]
TRUTH = Correction(step_time_factor=1.25, step_overhead_s=1e-3, prefill_time_factor=1.2)


def sweep(truth: Correction = TRUTH, **columns: str) -> str:
    """A CSV of a deployment on one H100 that differs from the prediction by `truth`."""
    card, chip = find_model(tiny.LLAMA_8B), find_accelerator("h100")
    config = PoolConfig(card, chip, Layout(1), "fp8", "fp8", engine_profile("vllm"))
    points = [
        point_of(
            Measurement(
                *("made", "here", "csv", tokens, 200.0, clients),
                *(None, None, None, None, 1.0, None, None),
            )
        )
        for clients in (1.0, 8.0, 32.0, 96.0)
        for tokens in (400.0, 2000.0)
    ]
    served = Predictions(config, points).serving(truth)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("concurrency", "input_tokens", "output_tokens", "tpot_ms", "ttft_ms")
    writer.writerow([*names, *columns])
    for n, point in enumerate(points):
        load = (point.concurrency, point.measurement.input_tokens, 200)
        measured = (f"{served.tpot_s[n] * 1e3:.6g}", f"{served.ttft_s[n] * 1e3:.6g}")
        writer.writerow([*load, *measured, *columns.values()])
    return text.getvalue()


class Desk:
    """Writes files into a folder and runs commands on them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys

    def write(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def run(self, *args: str) -> tuple[int, str, str]:
        code = cli.main(["calibrate", *args])
        shown = self.capsys.readouterr()
        return code, shown.out, shown.err

    def refused(self, *args: str) -> str:
        code, out, error = self.run(*args)
        assert (code, out) == (2, "")
        return error

    def entry(self, *args: str) -> dict[str, Any]:
        code, out, _ = self.run(*args, "--json")
        assert code == 0
        found: dict[str, Any] = json.loads(out)
        return found


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)


class TestFit:
    def test_what_made_the_measurements_is_found(self, desk: Desk) -> None:
        found = desk.entry(desk.write("a.csv", sweep()), *DEPLOYMENT)
        assert found["fitted"]["step_time_factor"] == pytest.approx(1.25, abs=0.04)
        assert found["fitted"]["step_overhead_ms"] == pytest.approx(1.0, abs=0.15)
        assert found["fitted"]["prefill_time_factor"] == pytest.approx(1.2, abs=0.1)
        assert len(found["points"]) == 8
        assert found["files"][0]["name"].endswith("a.csv")
        assert found["standard_errors"]["step_time_factor"] < 0.1

    def test_the_table_has_errors_before_and_after(self, desk: Desk) -> None:
        code, out, _ = desk.run(desk.write("a.csv", sweep()), *DEPLOYMENT)
        assert code == 0
        assert "Calibration: llama-3.1-8b-instruct on h100, tp1, fp8/fp8, vllm" in out
        assert "8 points: median TPOT error" in out
        assert "Time to first token" in out
        assert "step time, factor" in out

    def test_what_the_file_records_need_not_be_stated(self, desk: Desk) -> None:
        columns = {
            "model": "meta-llama/Llama-3.1-8B-Instruct",
            "accelerator": "NVIDIA H100 80GB HBM3",
            "engine": "vllm",
            "weights": "fp8",
            "kv": "fp8_e4m3",
            "tensor_parallel": "1",
        }
        found = desk.entry(desk.write("a.csv", sweep(**columns)))
        assert found["model"] == tiny.LLAMA_8B
        assert found["kv_precision"] == "fp8"

    def test_points_that_cannot_be_used_are_told(self, desk: Desk) -> None:
        text = sweep() + "4,400,1,,50\n"
        code, out, _ = desk.run(desk.write("a.csv", text), *DEPLOYMENT)
        assert code == 0
        assert "Not used" in out
        assert "line 10: has no TPOT" in " ".join(out.split())


class TestRefused:
    def test_what_nobody_says_is_asked_for_in_one_go(self, desk: Desk) -> None:
        error = desk.refused(desk.write("a.csv", sweep()), "--model", tiny.LLAMA_8B)
        assert "do not record the accelerator, engine, weight precision" in error
        assert "give --gpu, --engine, --weights, --kv-cache, --tensor-parallel" in error

    def test_a_conflict_names_both_sides(self, desk: Desk) -> None:
        path = desk.write("a.csv", sweep(accelerator="h200"))
        error = desk.refused(path, *DEPLOYMENT)
        assert f"accelerator: --gpu says h100, {path}, line 2 says h200" in error

    def test_two_files_of_two_deployments_are_refused(self, desk: Desk) -> None:
        one = desk.write("a.csv", sweep(tensor_parallel="1"))
        two = desk.write("b.csv", sweep(tensor_parallel="2"))
        error = desk.refused(one, two, *DEPLOYMENT[:-2])
        assert f"tensor parallel: {one}, line 2 says 1, {two}, line 2 says 2" in error

    def test_gpus_of_a_dense_model_are_its_tensor_parallel(self, desk: Desk) -> None:
        found = desk.entry(desk.write("a.csv", sweep()), *DEPLOYMENT[:-2], "--gpus", "1")
        assert found["tensor_parallel"] == 1
        error = desk.refused(desk.write("a.csv", sweep()), *DEPLOYMENT, "--gpus", "2")
        assert "tp1 is a replica of 1 GPU, and --gpus says 2; state every degree" in error
        assert "--tensor-parallel, --pipeline-parallel" in error

    def test_gpus_of_a_mixture_of_experts_do_not_tell_the_layout(self, desk: Desk) -> None:
        path = desk.write("a.csv", sweep())
        given = ["--model", tiny.QWEN_MOE, *DEPLOYMENT[2:-2], "--gpus", "4"]
        assert "give --tensor-parallel" in desk.refused(path, *given)

    def test_a_deployment_that_cannot_exist(self, desk: Desk) -> None:
        path = desk.write("a.csv", sweep())
        error = desk.refused(path, "--model", "llama-3.1-405b-instruct", *DEPLOYMENT[2:])
        assert "this deployment cannot exist" in error

    def test_speculation_is_asked_for_where_a_file_shows_it(self, desk: Desk) -> None:
        given = ["--engine", "vllm", "--kv-cache", "bf16"]
        error = desk.refused(str(RESULTS / "vllm_serve.json"), *given)
        assert "give --draft-tokens" in error
        error = desk.refused(str(RESULTS / "vllm_serve.json"), *given, "--draft-tokens", "3")
        assert "give --draft-parameters-billion" in error

    def test_faster_than_the_hardware(self, desk: Desk) -> None:
        text = "concurrency,input_tokens,output_tokens,tpot_ms\n8,500,200,0.9\n"
        path = desk.write("a.csv", text)
        error = desk.refused(path, *DEPLOYMENT)
        assert f"{path}: line 2: TPOT 0.9 ms is below the" in error
        assert "likely causes: another GPU" in error

    def test_a_missing_file_and_an_unknown_name(self, desk: Desk) -> None:
        assert "nowhere.json: does not exist" in desk.refused("nowhere.json", *DEPLOYMENT)
        path = desk.write("a.csv", sweep())
        assert "h10" in desk.refused(path, *DEPLOYMENT, "--gpu", "h10")


class TestUnknownNames:
    def test_the_option_is_believed_and_a_note_says_so(self, desk: Desk) -> None:
        path = desk.write("a.csv", sweep(accelerator="GB999", model="my-llama"))
        notes = desk.entry(path, *DEPLOYMENT)["notes"]
        assert f"{path}, line 2 says model my-llama, which is not known; --model is believed." in (
            notes
        )
        told = [note for note in notes if "accelerator GB999" in note]
        assert len(told) == 1
        assert told[0].endswith("--gpu is believed.")

    @pytest.mark.parametrize("other", ["h100", "GB998"])
    def test_without_the_option_two_names_are_two_deployments(self, desk: Desk, other: str) -> None:
        one = desk.write("a.csv", sweep(accelerator="GB999"))
        two = desk.write("b.csv", sweep(Correction(), accelerator=other))
        rest = [*DEPLOYMENT[:2], *DEPLOYMENT[4:]]
        for paths in ((one, two), (two, one)):
            error = desk.refused(*paths, *rest)
            assert f"{one}, line 2 says GB999" in error
            assert f"{two}, line 2 says {other}" in error
            assert "give --gpu" in error

    def test_one_unknown_name_asks_for_the_option(self, desk: Desk) -> None:
        path = desk.write("a.csv", sweep(accelerator="GB999"))
        error = desk.refused(path, *DEPLOYMENT[:2], *DEPLOYMENT[4:])
        assert "GB999" in error
        assert "give --gpu" in error


class TestNotes:
    def test_the_same_bytes_count_once(self, desk: Desk) -> None:
        one, again = desk.write("a.csv", sweep()), desk.write("b.csv", sweep())
        found = desk.entry(one, again, one, *DEPLOYMENT)
        assert len(found["points"]) == 8
        assert [each["name"] for each in found["files"]] == [one]
        assert f"{again}: the same bytes as {one}, counted once" in found["notes"]
        assert f"{one}: given twice, counted once" in found["notes"]

    @pytest.mark.parametrize(
        ("truth", "text"),
        [
            (Correction(step_time_factor=3.0), "Steps take"),
            (Correction(prefill_time_factor=6.0), "Prefill takes"),
        ],
    )
    def test_a_factor_beyond_two_has_likely_causes(
        self, desk: Desk, truth: Correction, text: str
    ) -> None:
        found = desk.entry(desk.write("a.csv", sweep(truth)), *DEPLOYMENT)
        assert [note for note in found["notes"] if note.startswith(text) and "likely: " in note]
        usual = desk.entry(desk.write("b.csv", sweep()), *DEPLOYMENT)
        assert not any("likely: " in note for note in usual["notes"])


def vllm_results(desk: Desk) -> list[str]:
    """What `vllm bench serve` saves, one object a file, of a deployment like `TRUTH`."""
    paths = []
    for row in csv.DictReader(io.StringIO(sweep())):
        if float(row["input_tokens"]) != 400:
            continue
        clients, tpot_ms, ttft_ms = (
            float(row[key]) for key in ("concurrency", "tpot_ms", "ttft_ms")
        )
        e2e_s = (ttft_ms + 199 * tpot_ms) / 1e3
        result = {
            "date": "20261104-101500",
            "backend": "openai",
            "model_id": "meta-llama/Llama-3.1-8B-Instruct",
            "num_prompts": 400,
            "request_rate": "inf",
            "max_concurrency": int(clients),
            "duration": 400 / clients * e2e_s,
            "completed": 400,
            "total_input_tokens": 400 * 400,
            "total_output_tokens": 400 * 200,
            "request_throughput": clients / e2e_s,
            "output_throughput": 200 * clients / e2e_s,
            "mean_ttft_ms": ttft_ms,
            "mean_tpot_ms": tpot_ms,
            "mean_e2el_ms": e2e_s * 1e3,
            "p99_tpot_ms": 1.2 * tpot_ms,
        }
        paths.append(desk.write(f"b{clients:g}.json", json.dumps(result)))
    return paths


class TestOneObjectFiles:
    def test_from_results_to_a_plan_and_back(self, desk: Desk) -> None:
        results = vllm_results(desk)
        out = str(desk.folder / "calibration.yaml")
        code, shown, _ = desk.run(*results, *DEPLOYMENT, "--out", out)
        assert code == 0
        assert "json," not in shown
        points = load_calibration(out).deployments[0].points
        assert [(each.file, each.place) for each in points] == [(path, "") for path in results]
        content = tiny.document(max_gpus_per_replica=1) | {"calibration": "calibration.yaml"}
        instance = desk.write("instance.yaml", yaml.safe_dump(content, sort_keys=False))
        plan = api.solve(load_instance(instance))
        assert "corrected by 4 measured points" in plan.pools[0].step_time_source
        assert not any("corrects no pool" in warning for warning in plan.warnings)
        saved = desk.write("plan.json", plan.to_json())
        code = cli.main(["check", saved, *results])
        shown = desk.capsys.readouterr().out
        assert code in (0, 1)
        assert "measured values inside the predicted range" in shown
        assert "json," not in shown
        assert "p99 measured, promised is p95: not compared" in " ".join(shown.split())

    def test_a_conflict_names_the_file_alone(self, desk: Desk) -> None:
        one = vllm_results(desk)[0]
        error = desk.refused(one, "--model", "qwen3-32b", *DEPLOYMENT[2:])
        assert f"--model says qwen3-32b, {one} says meta-llama/" in error


class TestFile:
    def test_result_files_may_have_long_paths(self, desk: Desk) -> None:
        path = desk.write(f"{'long-' * 30}.csv", sweep())
        out = str(desk.folder / "calibration.yaml")
        assert desk.run(path, *DEPLOYMENT, "--out", out)[0] == 0
        assert load_calibration(out).deployments[0].files[0].name == path

    def test_a_missing_folder_is_told_before_anything_is_read(self, desk: Desk) -> None:
        out = str(desk.folder / "none" / "c.yaml")
        error = desk.refused("nowhere.csv", *DEPLOYMENT, "--out", out)
        assert f"{out}: cannot be written: there is no folder" in error

    @pytest.mark.parametrize("ttft", [True, False])
    @pytest.mark.parametrize("factor", [0.52, 0.58, 0.62])
    def test_what_the_fit_writes_is_accepted_even_at_its_limits(
        self, desk: Desk, factor: float, ttft: bool
    ) -> None:
        text = sweep(Correction(step_time_factor=factor, prefill_time_factor=0.9))
        if not ttft:
            text = "".join(line.rpartition(",")[0] + "\n" for line in text.splitlines())
        out = str(desk.folder / "calibration.yaml")
        code, shown, _ = desk.run(desk.write("a.csv", text), *DEPLOYMENT, "--out", out)
        assert code == 0
        assert "holds the fit back" in " ".join(shown.split())
        content = tiny.document() | {"calibration": "calibration.yaml"}
        instance = load_instance(desk.write("instance.yaml", yaml.safe_dump(content)))
        assert isinstance(instance_backend(instance), RooflineBackend)

    def test_a_calibration_of_other_deployments_is_a_warning(self, desk: Desk) -> None:
        out = str(desk.folder / "calibration.yaml")
        other = [*DEPLOYMENT[:-4], "--kv-cache", "bf16", *DEPLOYMENT[-2:]]
        assert desk.run(desk.write("a.csv", sweep()), *other, "--out", out)[0] == 0
        content = tiny.document(max_gpus_per_replica=1) | {"calibration": "calibration.yaml"}
        instance = desk.write("instance.yaml", yaml.safe_dump(content, sort_keys=False))
        plan = api.solve(load_instance(instance))
        assert plan.pools[0].kv_precision == "fp8"
        told = [each for each in plan.warnings if "calibration.yaml corrects no pool" in each]
        assert len(told) == 1

    def test_it_is_added_to_and_entries_are_replaced(self, desk: Desk) -> None:
        out = str(desk.folder / "calibration.yaml")
        first, second = desk.write("a.csv", sweep()), desk.write("b.csv", sweep(Correction()))
        assert desk.run(first, *DEPLOYMENT, "--out", out)[2] == f"wrote {out}\n"
        other = [*DEPLOYMENT[:-4], "--kv-cache", "bf16", *DEPLOYMENT[-2:]]
        assert desk.run(second, *other, "--out", out)[0] == 0
        assert len(load_calibration(out).deployments) == 2
        said = desk.run(second, *DEPLOYMENT, "--out", out)[2]
        assert "replaced the earlier entry of this deployment" in said
        found = load_calibration(out).deployments
        assert [each.kv_precision for each in found] == ["bf16", "fp8"]
        assert found[1].fitted.step_time_factor == pytest.approx(1.0, abs=0.02)

    def test_another_file_is_not_overwritten(self, desk: Desk) -> None:
        out = desk.write("notes.yaml", "format_version: 1\nname: mine\n")
        error = desk.refused(desk.write("a.csv", sweep()), *DEPLOYMENT, "--out", out)
        assert "notes.yaml:1:1: is not a calibration" in error
        assert error.count("\n") == 1
        assert (desk.folder / "notes.yaml").read_text() == "format_version: 1\nname: mine\n"

    def test_a_plan_rides_on_it_and_says_so(self, desk: Desk) -> None:
        content = tiny.document(max_gpus_per_replica=1)
        before = api.solve(tiny.instance(content))
        out = str(desk.folder / "calibration.yaml")
        assert desk.run(desk.write("a.csv", sweep()), *DEPLOYMENT, "--out", out)[0] == 0
        document = yaml.safe_dump(content | {"calibration": "calibration.yaml"}, sort_keys=False)
        plan = api.solve(load_instance(desk.write("instance.yaml", document)))
        source = plan.pools[0].step_time_source
        assert source.startswith("roofline, corrected by 8 measured points (calibration.yaml, ")
        assert before.pools[0].step_time_source == "roofline, global constants"
        # Slower steps than predicted need more replicas, never fewer.
        assert plan.pools[0].replicas >= before.pools[0].replicas
        fitted = load_calibration(out).deployments[0].fitted
        assert plan.pools[0].band_fraction == fitted.tpot_band_factors
        assert plan.provenance is not None
        embedded = plan.provenance.corrections[0]["correction"]
        assert embedded["step_time_factor"] == fitted.step_time_factor
