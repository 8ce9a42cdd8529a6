"""`planner workload`: what is printed can be pasted and passes lint; files; mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from planner.cli import main
from planner.schema import load_instance

MODEL = "llama-3.1-8b-instruct"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Turns of conversations, of two kinds, for ten minutes."""
    rng = np.random.default_rng(0)
    lines = []
    grown = {talk: [talk * 1000] for talk in range(60)}
    fresh = 10**6
    for time_ms in np.cumsum(rng.exponential(300, 2000)).astype(int):
        talk = int(rng.integers(60))
        grown[talk].append(fresh)
        fresh += 1
        if len(grown[talk]) > 8:
            grown[talk] = [talk * 1000]
        ids = grown[talk]
        short = talk % 2
        item = {
            "timestamp": int(time_ms),
            "input_length": len(ids) * 512 - int(rng.integers(0, 500)),
            "output_length": int(rng.integers(5, 20) if short else rng.integers(200, 800)),
            "hash_ids": ids,
        }
        lines.append(json.dumps(item))
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_whole_instance_passes_lint(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["workload", str(trace), "--model", MODEL, "--slo", "ttft:p99:2s"]
    for shape in ("percentiles", "histogram"):
        for extra in ([], ["--rate", "40", "--burst", "shared", "--classes", "grid"]):
            assert main([*arguments, "--instance", "--shape", shape, *extra]) == 0
            path = tmp_path / "instance.yaml"
            path.write_text(capsys.readouterr().out, encoding="utf-8")
            assert main(["lint", str(path)]) == 0
            capsys.readouterr()
            workloads = load_instance(path).workloads
            assert len(workloads) >= 2
            total = sum(each.demand.requests_per_s for each in workloads)  # type: ignore[union-attr]
            assert total == pytest.approx(40 if extra else 3.3, rel=0.03)
            assert any(each.cached_input_by_cache_size for each in workloads)
            for each in workloads:
                found = each.cached_input_by_cache_size is not None
                assert found == (each.cached_request_fraction is not None)
                assert (each.slo[0].metric, each.slo[0].limit_ms) == ("ttft", 2000)


def test_the_classes_paste_below_workloads(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["workload", str(trace), "--classes", "2"]) == 0
    items = capsys.readouterr().out
    assert "# the name of one of the file's models" in items
    path = tmp_path / "mine.yaml"
    head = f"format_version: 1\nname: mine\nmodels: [{{model: {MODEL}}}]\nworkloads:\n"
    path.write_text(head + items, encoding="utf-8")
    assert main(["lint", str(path)]) == 2
    assert "'MODEL' is not one of the file's models" in capsys.readouterr().err
    path.write_text((head + items).replace("model: MODEL", f"model: {MODEL}"), encoding="utf-8")
    assert main(["lint", str(path)]) == 0
    assert capsys.readouterr().out.startswith("ok: 2 classes")


def test_json_has_the_same_numbers(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["workload", str(trace), "--json"]) == 0
    (source,) = json.loads(capsys.readouterr().out)["sources"]
    assert main(["workload", str(trace)]) == 0
    written = yaml.safe_load(capsys.readouterr().out)
    assert [each["name"] for each in written] == [each["name"] for each in source["classes"]]
    for mine, found in zip(written, source["classes"], strict=True):
        assert mine["demand"]["requests_per_s"] == pytest.approx(found["requests_per_s"], rel=1e-3)
        assert mine["input_tokens"]["p50"] == found["input_tokens"]["percentiles"]["p50"]
        assert mine["burst_factor"] >= found["burst_factor"] - 1e-9
        curve = mine["cached_input_by_cache_size"]
        assert curve[-1]["fraction"] <= found["cached_input_by_cache_size"][-1]["fraction"]
        assert mine["cached_request_fraction"] > curve[-1]["fraction"]


def test_a_folder_gets_text_numbers_and_a_picture(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    assert main(["workload", str(trace), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert (out / "workload.yaml").read_text(encoding="utf-8") == printed.out
    assert json.loads((out / "workload.json").read_text(encoding="utf-8"))["format_version"] == 1
    assert (out / "workload.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote workload.yaml, workload.json, workload.png" in printed.err


def test_without_matplotlib_there_is_no_picture_but_the_rest(
    trace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "out"
    assert main(["workload", str(trace), "--out", str(out)]) == 0
    assert "no workload.png: the picture needs matplotlib; pip install" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["workload.json", "workload.yaml"]


def test_a_trace_too_bursty_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = np.sort(np.concatenate([np.arange(600.0), np.full(80, 300.5)]))
    path = tmp_path / "bursty.csv"
    rows = "".join(f"{time},100,20\n" for time in times)
    path.write_text("arrival_s,input_tokens,output_tokens\n" + rows, encoding="utf-8")
    assert main(["workload", str(path)]) == 0
    printed = capsys.readouterr()
    assert "too bursty to be provisioned for: its busiest second has 7" in printed.err
    assert "# WARNING: too bursty to be provisioned for" in printed.out
    assert len(yaml.safe_load(printed.out)) == 1
    assert main(["-q", "workload", str(path)]) == 0
    assert capsys.readouterr().err == ""


def test_a_model_with_too_short_a_context_is_told(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = trace.read_text(encoding="utf-8").replace(
        '"output_length": 5,', '"output_length": 200000,'
    )
    trace.write_text(text, encoding="utf-8")
    assert main(["workload", str(trace), "--model", MODEL]) == 0
    assert "above the 131,072 of llama-3.1-8b-instruct" in capsys.readouterr().err


def test_mistakes_of_all_files_are_told_at_once(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("a,b\n1,2\n", encoding="utf-8")
    assert main(["workload", str(bad), str(trace), str(tmp_path / "none.csv")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "bad.csv:1: no column gives the time of arrival" in printed.err
    assert "none.csv: cannot be read: No such file" in printed.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--slo", "ttft:99"], "write one as ttft:p99:1500ms"),
        (["--slo", "ttft:p0.5:1s"], "write one as ttft:p99:1500ms"),
        (["--classes", "0"], "neither auto, nor grid, nor a number from 1 to 20"),
        (["--rate", "0"], "0"),
        (["--instance"], "--instance needs --model NAME"),
        (["--instance", "--model", MODEL, "--json"], "leave out --json"),
        (["--instance", "--model", "lama-3.1-8b-instruct"], "unknown model"),
        (["--only", "gpt"], "has no request for 'gpt'"),
        (["--block-tokens", "16"], "more tokens than its blocks hold"),
    ],
)
def test_wrong_usage(
    trace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert main(["workload", str(trace), *arguments]) == 2
    printed = capsys.readouterr()
    assert complaint in printed.err
    assert printed.out == ""
