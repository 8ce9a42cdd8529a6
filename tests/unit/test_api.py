from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

import planner
from planner import api
from planner.candidates.build import build_candidates
from planner.candidates.options import CandidateTable
from planner.candidates.request import CandidateRequest
from planner.errors import InputError, SolverError
from planner.fleet.solver import Progress
from planner.plan import Plan

ROOT = Path(__file__).parents[2]
EXIT_INTERRUPTED = 130


def test_load_and_solve_are_the_public_names(tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny.document()))
    plan = planner.solve(planner.load(path))
    assert plan.status == "optimal"
    assert plan.cost_usd_per_hour == pytest.approx(2.5)
    assert plan.provenance is not None
    assert plan.provenance.instance_file == str(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        planner.load(tmp_path / "none.yaml")


def test_gap_and_time_limit_default_to_the_instance() -> None:
    content = tiny.document()
    content["objective"] = {"gap": 0.05, "time_limit_s": 7}
    plan = api.solve(tiny.instance(content))
    assert plan.search is not None
    assert plan.search.gap_asked_fraction == 0.05
    assert plan.search.time_limit_s == 7
    other = api.solve(tiny.instance(content), gap_fraction=0.01, time_limit_s=3.0)
    assert other.search is not None
    assert (other.search.gap_asked_fraction, other.search.time_limit_s) == (0.01, 3.0)


def test_what_was_searched_is_told() -> None:
    notes: list[str] = []
    plan = tiny.solve(tiny.document(), note=notes.append)
    assert plan.search is not None
    assert plan.search.options_enumerated >= plan.search.options_after_dominance > 0
    assert any("options" in each for each in notes)
    assert plan.search.relaxation_usd_per_hour is not None
    assert plan.search.relaxation_usd_per_hour <= 2.5


def test_progress_goes_down_to_the_bound() -> None:
    lines: list[Progress] = []
    content = tiny.document(
        *[tiny.workload(f"class-{k}", 13 + 7 * k, input_tokens=300 * (k + 1)) for k in range(3)],
        roles=("aggregated", "prefill", "decode"),
        offers=[tiny.offer(gpus_per_node=2), tiny.offer("l40s", 1.07, 4)],
    )
    plan = tiny.solve(content, progress=lines.append)
    assert plan.cost_usd_per_hour is not None
    assert all(each.incumbent >= plan.cost_usd_per_hour * (1 - 1e-9) for each in lines)
    assert all(each.bound <= plan.cost_usd_per_hour * (1 + 1e-9) for each in lines)


def test_a_fleet_that_fails_verification_is_tried_again_then_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Options that promise twice what they carry: never a plan that breaks a promise."""
    content = tiny.document(tiny.workload(requests_per_s=120))

    def optimistic(request: CandidateRequest) -> CandidateTable:
        table = build_candidates(request)
        half = tuple(replace(o, coefficients=o.coefficients * 0.5) for o in table.options)
        return replace(table, options=half)

    monkeypatch.setattr(api, "build_candidates", optimistic)
    notes: list[str] = []
    with pytest.raises(SolverError, match="breaks a promise"):
        tiny.solve(content, note=notes.append)
    assert sum("solving again, tighter" in each for each in notes) == api.TIGHTENINGS + 1


def test_slightly_optimistic_rows_are_tightened_until_the_plan_is_sound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = tiny.document(tiny.workload(requests_per_s=1000))
    honest = tiny.solve(content)
    per_replica = 1000 / sum(pool.replicas for pool in honest.pools)

    def optimistic(request: CandidateRequest) -> CandidateTable:
        table = build_candidates(request)
        near = tuple(replace(o, coefficients=o.coefficients * 0.999) for o in table.options)
        return replace(table, options=near)

    # Demand at which a full fleet of the optimistic rows is just too small.
    option = tiny.inputs(content).options[0]
    full = 1 / float(option.coefficients.max())
    assert full >= per_replica
    content["workloads"][0]["demand"]["requests_per_s"] = full * 20 * 1.0005
    monkeypatch.setattr(api, "build_candidates", optimistic)
    notes: list[str] = []
    plan = tiny.solve(content, note=notes.append)
    assert any("solving again, tighter" in each for each in notes)
    assert tiny.verified(plan, content).sound
    assert sum(pool.replicas for pool in plan.pools) == 21
    assert plan.bound_usd_per_hour is not None
    assert plan.bound_usd_per_hour <= 20 * 2.5 + 1e-6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interruption_keeps_the_best_plan(tmp_path: Path) -> None:
    command = [
        *[sys.executable, "-m", "planner", "solve", "instances/enterprise.yaml"],
        *["--gap", "0", "--time-limit", "120", "--out", str(tmp_path)],
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            # The search has found a first fleet and goes on: a gap of 0 takes minutes.
            if "incumbent" in line:
                break
        running.send_signal(signal.SIGINT)
        running.stderr.read()
        assert running.wait(timeout=30) == EXIT_INTERRUPTED
    plan = Plan.from_json((tmp_path / "plan.json").read_text())
    assert plan.status == "interrupted"
    assert plan.has_fleet
    assert plan.bound_usd_per_hour is not None
    assert plan.cost_usd_per_hour is not None
    assert plan.bound_usd_per_hour <= plan.cost_usd_per_hour
