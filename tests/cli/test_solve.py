from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from planner import api, cli
from planner.fleet.solver import Progress
from planner.plan import Plan
from planner.report.progress import ProgressDisplay
from planner.schema.instance import Instance

INSTANCES = Path(__file__).parents[2] / "instances"

TINY = """\
format_version: 1
name: tiny
roles: [aggregated]
models:
  - model: llama-3.1-8b-instruct
workloads:
  - name: chat
    model: llama-3.1-8b-instruct
    demand: {requests_per_s: 5}
    input_tokens: {mean: 600, scv: 1.0, max: 4000}
    output_tokens: {mean: 150, scv: 1.0, max: 1000}
    slo:
      - {metric: ttft, percentile: 95, limit_ms: 1000}
      - {metric: tpot, percentile: 95, limit_ms: 50}
fleet:
  catalogue_offers: false
  max_gpus_per_replica: 1
  offers:
    - id: own-h100
      provider: own
      region: dc1
      accelerator: h100
      term: owned
      price_usd_per_gpu_hour: 2
      gpus_per_node: 4
      available_nodes: 1
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def too_big(tmp_path: Path) -> Path:
    path = tmp_path / "too-big.yaml"
    path.write_text(TINY.replace("requests_per_s: 5}", "requests_per_s: 5000}"))
    return path


def pretend(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let the solve end with other results than it has."""
    real = api.solve

    def solve(instance: Instance, **options: Any) -> Plan:
        return real(instance, **options).model_copy(update=changes)

    monkeypatch.setattr(api, "solve", solve)


def test_a_plan(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["solve", str(tiny)]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Fleet plan: tiny\n")
    assert "$8.00/hour" in shown.out
    assert "own-h100" in shown.out
    assert "enumerating" in shown.err
    assert "\x1b" not in shown.out + shown.err


def test_json(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["solve", str(tiny), "--json"]) == 0

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} in JSON")

    text = capsys.readouterr().out
    document = json.loads(text, parse_constant=refuse)
    assert document["format_version"] == 1
    assert document["status"] == "optimal"
    assert document["cost_usd_per_hour"] == pytest.approx(8.0)
    assert 0 < document["bound_usd_per_hour"] <= document["cost_usd_per_hour"]
    assert 0 <= document["gap_fraction"] <= 1e-3
    assert text == json.dumps(document, sort_keys=True, indent=2) + "\n"
    assert Plan.from_json(text).name == "tiny"


def test_out_writes_both_files_and_still_prints(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "plans" / "today"
    assert cli.main(["solve", str(tiny), "--json", "--out", str(folder)]) == 0
    shown = capsys.readouterr()
    assert (folder / "plan.json").read_text() == shown.out
    assert (folder / "plan.md").read_text().startswith("# Fleet plan: tiny\n")
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "plan.md"]
    assert str(folder / "plan.json") in shown.err


def test_out_that_cannot_be_written_fails_before_solving(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(api, "solve", None)
    assert cli.main(["solve", str(tiny), "--out", str(tiny / "below")]) == 2
    assert "cannot write here: Not a directory" in capsys.readouterr().err


def test_infeasible(too_big: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["solve", str(too_big), "--out", str(tmp_path / "out")]) == 1
    assert "less of chat" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["status"] == "infeasible"
    assert cli.main(["solve", str(too_big), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "infeasible"
    assert document["cost_usd_per_hour"] is None
    assert document["conflicts"]


def test_no_plan_within_the_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.json").write_text("an earlier plan")
    instance = str(INSTANCES / "single-model.yaml")
    assert cli.main(["solve", instance, "--time-limit", "0", "--out", str(tmp_path)]) == 3
    shown = capsys.readouterr()
    assert "No plan: no fleet was found within the time limit of 0 s" in shown.out
    assert "error: no plan within the time limit" in shown.err
    assert (tmp_path / "plan.json").read_text() == "an earlier plan"


def test_above_the_gap(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, status="feasible", gap_fraction=0.02)
    assert cli.main(["solve", str(tiny)]) == 0
    shown = capsys.readouterr()
    assert "Not proven within the gap asked" in shown.out
    assert "warning: the gap is 2 %" in shown.err
    assert cli.main(["solve", str(tiny), "--strict-gap"]) == 3
    shown = capsys.readouterr()
    assert "$8.00/hour" in shown.out
    assert "error: the gap is 2 %" in shown.err


def test_interrupted_prints_and_writes_the_best_plan(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, status="interrupted")
    assert cli.main(["solve", str(tiny), "--out", str(tmp_path / "out")]) == 130
    shown = capsys.readouterr()
    assert "Interrupted. Best fleet so far: $8.00/hour" in shown.out
    assert shown.err.endswith("interrupted\n")
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"gap_fraction": None, "time_limit_s": None, "solver": "highs"}),
        (["--gap", "0.1%"], {"gap_fraction": 0.001}),
        (["--gap", " 2 % "], {"gap_fraction": 0.02}),
        (["--gap", "0.001"], {"gap_fraction": 0.001}),
        (["--gap", "0"], {"gap_fraction": 0.0}),
        (["--time-limit", "1.5"], {"time_limit_s": 1.5}),
        (["--solver", "scip"], {"solver": "scip"}),
    ],
)
def test_options_reach_the_solver(
    options: list[str], expected: dict[str, Any], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def solve(_instance: Instance, **given: Any) -> Plan:
        seen.update(given)
        return Plan(name="x", status="infeasible")

    monkeypatch.setattr(api, "solve", solve)
    assert cli.main(["solve", str(tiny), *options]) == 1
    assert {name: seen[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gap", "0.5"], "0.5 would let 50% of the cost be wasted; did you mean 0.5%?"),
        (["--gap", "1"], "did you mean 1%?"),
        (["--gap", "60%"], "give less than 50%"),
        (["--gap", "tiny"], "'tiny' is not a gap; write 0.1% or 0.001"),
        (["--gap", "nan"], "is not a gap"),
        (["--gap=-1%"], "is not a gap"),
        (["--time-limit", "nan"], "is not a number of seconds"),
        (["--time-limit=-1"], "is not a number of seconds"),
        (["--solver", "nope"], "solver 'nope' cannot be reached"),
    ],
)
def test_wrong_options(
    options: list[str], message: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["solve", str(tiny), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_and_a_wrong_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.yaml"
    assert cli.main(["solve", str(missing), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert str(missing) in shown.err
    assert not (tmp_path / "out").exists()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(TINY.replace("name: tiny", "nam: tiny"))
    assert cli.main(["solve", str(wrong)]) == 2
    assert f"{wrong}:2" in capsys.readouterr().err


def test_quiet_says_nothing_on_stderr(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-q", "solve", str(tiny), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out != ""


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["solve", "--help"]) == 0
    text = capsys.readouterr().out
    assert "planner solve instances/enterprise.yaml --gap 0.5% --time-limit 120" in text
    assert "130 interrupted" in " ".join(text.split())


def test_the_same_input_gives_the_same_plan_but_for_times(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = []
    for _ in range(2):
        assert cli.main(["solve", str(tiny), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert math.isfinite(document["search"].pop("enumeration_s"))
        assert math.isfinite(document["search"].pop("solve_s"))
        plans.append(document)
    assert plans[0] == plans[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_keeps_the_best_fleet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(_display: ProgressDisplay, progress: Progress) -> None:
        if math.isfinite(progress.incumbent):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ProgressDisplay, "update", press)
    instance = str(INSTANCES / "enterprise.yaml")
    assert cli.main(["solve", instance, "--gap", "0", "--json"]) == 130
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "interrupted"
    assert document["pools"]
    assert document["bound_usd_per_hour"] < document["cost_usd_per_hour"]
