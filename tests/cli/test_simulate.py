"""`planner simulate`: what it prints and writes, its exit codes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import planner
from planner import api, cli
from planner.embedded import embedded_plan
from planner.plan import Plan
from planner.report.progress import ProgressBar
from planner.simulate.predictions import predictions_s
from planner.simulate.summary import Simulation

ROOT = Path(__file__).parents[2]
POOL = "llama-3.1-8b-instruct/aggregated-1"
SHORT = ("--requests", "1500", "--workers", "1")


@pytest.fixture(scope="session")
def plan() -> Plan:
    return api.solve(api.load(ROOT / "instances" / "single-model.yaml"))


class Desk:
    """Writes a plan and simulates it on the command line."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], plan: Plan) -> None:
        self.folder = folder
        self.capsys = capsys
        self.path = folder / "plan.json"
        self.path.write_text(plan.to_json())

    def run(self, *options: str) -> tuple[int, str, str]:
        code = cli.main(["simulate", str(self.path), *options])
        shown = self.capsys.readouterr()
        return code, shown.out, shown.err

    def simulate(self, *options: str) -> tuple[int, Simulation]:
        code, out, err = self.run("--json", *SHORT, *options)
        assert out, err
        return code, Simulation.from_json(out)

    def refused(self, *options: str) -> str:
        code, out, err = self.run(*options)
        assert (code, out) == (2, "")
        return err


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: Plan) -> Desk:
    return Desk(tmp_path, capsys, plan)


class TestResult:
    def test_a_plan_that_keeps_its_promises_is_0(self, desk: Desk) -> None:
        code, out, err = desk.run(*SHORT)
        assert code == 0, err
        assert "All 2 promises are kept." in out
        assert "Every request and every token is accounted for" in out

    def test_figures_hang_together(self, desk: Desk) -> None:
        code, found = desk.simulate()
        (chat,) = found.classes
        assert (code, found.status, chat.name) == (0, "kept", "chat")
        assert chat.requests == chat.finished + chat.rejected + chat.unfinished
        assert chat.requests >= 1500
        assert chat.goodput_requests_per_s == pytest.approx(
            chat.requests_per_s * chat.good.fraction
        )
        for slo in chat.slos:
            assert slo.value_ms is not None
            assert slo.value_ms <= slo.limit_ms
            assert slo.within.low_fraction <= slo.within.fraction <= slo.within.high_fraction
            assert slo.within.fraction >= 0.95
        for metric in ("ttft", "tpot", "e2e"):
            mine = [each for each in chat.latencies if each.metric == metric]
            assert [each.percentile for each in mine] == [None, 50, 90, 95, 99]
            values = [each.value_ms for each in mine[1:]]
            assert values == sorted(values)
        (pool,) = found.pools
        assert (pool.id, pool.replicas) == (POOL, 3)
        assert 0 < pool.kv_fraction <= pool.kv_max_fraction <= 1
        assert found.every_request_accounted_for
        (account,) = found.accounts
        assert abs(account.little_difference_fraction) < 0.05

    def test_predictions_are_those_of_the_plan(self, desk: Desk, plan: Plan) -> None:
        _, found = desk.simulate()
        for planned, simulated in zip(plan.classes[0].slos, found.classes[0].slos, strict=True):
            assert simulated.predicted_ms == pytest.approx(planned.predicted_ms)
            assert simulated.value_ms == pytest.approx(planned.predicted_ms, rel=0.25)

    def test_the_seed_decides_and_the_workers_do_not(self, desk: Desk) -> None:
        def figures(*options: str) -> dict[str, Any]:
            _, found = desk.simulate(*options)
            return found.model_dump(exclude={"elapsed_s"})

        first = figures("--seed", "3")
        assert first == figures("--seed", "3", "--workers", "2")
        assert first["classes"] != figures("--seed", "4")["classes"]

    def test_overload_is_1(self, desk: Desk) -> None:
        code, out, _ = desk.run("--rate-factor", "1.6", *SHORT)
        assert code == 1
        assert "missed: chat T" in out
        assert "at 1.6 x the planned rates" in out

    def test_beyond_capacity_nothing_is_predicted(self, plan: Plan) -> None:
        embedded = embedded_plan(plan, "plan.json")
        key = ("chat", "tpot", 0.95)
        usual = predictions_s(embedded, [key])[key]
        assert predictions_s(embedded, [key], 1.1)[key] > usual
        assert not predictions_s(embedded, [key], 20.0)[key] < 100 * usual

    def test_hours_set_the_span(self, desk: Desk) -> None:
        _, found = desk.simulate("--hours", "0.02")
        assert found.accounts[0].simulated_s == pytest.approx(72.0)

    def test_files_are_written(self, desk: Desk) -> None:
        out = desk.folder / "simulated"
        code, shown, err = desk.run("--out", str(out), "--json", *SHORT)
        assert code == 0
        assert (out / "simulation.json").read_text() == shown
        assert (out / "simulation.md").read_text().startswith("# Simulation of single-model\n")
        assert "simulation.json" in err

    def test_pictures_are_written(self, desk: Desk) -> None:
        pytest.importorskip("matplotlib")
        out = desk.folder / "simulated"
        desk.run("--out", str(out), "--fail", "replica@10s+5s", *SHORT)
        for name in ("latencies.png", "pools.png"):
            assert (out / name).read_bytes().startswith(b"\x89PNG")

    def test_without_matplotlib_the_rest_is_written(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        out = desk.folder / "simulated"
        code, _, err = desk.run("--out", str(out), *SHORT)
        assert code == 0
        assert "no pictures: they need matplotlib; pip install" in err
        assert sorted(path.name for path in out.iterdir()) == ["simulation.json", "simulation.md"]

    def test_a_trace_is_replayed(self, desk: Desk) -> None:
        trace = desk.folder / "trace.csv"
        rows = "".join(f"{0.1 * n:.2f},{400 + 7 * (n % 90)},{50 + n % 40}\n" for n in range(1200))
        trace.write_text("arrival_s,input_tokens,output_tokens\n" + rows)
        _, found = desk.simulate("--trace", str(trace), "--class", "chat")
        assert found.asked.trace is not None
        assert "trace.csv" in found.asked.trace
        assert found.every_request_accounted_for

    def test_the_api_does_the_same(self, desk: Desk, plan: Plan) -> None:
        _, printed = desk.simulate()
        settings = planner.SimulationSettings(requests_per_class=1500, workers=1)
        for given in (plan, desk.path):
            found = planner.simulate_plan(given, settings)
            assert found.classes == printed.classes


class TestFailures:
    def test_with_and_without_side_by_side(self, desk: Desk) -> None:
        options = ("--fail", "replica@30s", "--spare-replicas", "1", "--hours", "0.03")
        code, found = desk.simulate(*options)
        assert code in (0, 1)
        assert [each.name for each in found.comparisons] == [
            "nothing fails",
            "failure, no spare replicas",
        ]
        (hit,) = found.disturbances
        assert hit.first_s == pytest.approx(30.0)
        whens = {window.when for window in hit.windows}
        assert "before" in whens
        assert sum(window.requests for window in hit.windows) == found.classes[0].requests
        nothing, bare = (each.classes[0] for each in found.comparisons)
        assert nothing.restarts == 0
        assert bare.restarts > 0
        # Who loses a third of its replicas for good is slower than who loses nothing.
        assert bare.slos[1].value_ms > nothing.slos[1].value_ms
        assert found.pools[0].replicas == 4

    def test_the_report_tells_them(self, desk: Desk) -> None:
        fail = f"replica:{POOL.rpartition('/')[2]}@0.5m+20"
        _, out, _ = desk.run("--fail", fail, "--hours", "0.03", "--workers", "1")
        assert f"a replica of {POOL} dies at 30 s, for 20 s" in " ".join(out.split())
        assert "What the failures did" in out
        assert "Beside each other" in out
        assert "during" in out


class TestBadInput:
    def test_an_unknown_pool(self, desk: Desk) -> None:
        error = desk.refused("--fail", "replica:llama/aggregated-2@10s")
        assert "the plan has no pool 'llama/aggregated-2'" in error
        assert POOL in error

    @pytest.mark.parametrize(
        ("fail", "text"),
        [
            ("node", "write what fails, and when, as in node@600s"),
            ("rack@600s", "'rack' does not fail; it is node or replica"),
            ("node@soon", "'soon' is no time; write 600s, 10m or 1h"),
            ("node@-5s", "'-5s' is no time"),
            ("node@nan", "'nan' is no time"),
            ("node@10s+0s", "0 s is no duration above 0; leave it out for a failure for good"),
            ("node@50h", "180000 s is after the end"),
        ],
    )
    def test_a_failure_that_cannot_be(self, desk: Desk, fail: str, text: str) -> None:
        assert text in desk.refused("--fail", fail)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (("--hours", "nan"), "--hours: nan is no number above 0"),
            (("--hours", "-1"), "--hours: -1 is no number above 0"),
            (("--rate-factor", "0"), "--rate-factor: 0 is no number above 0"),
            (("--rate-factor", "inf"), "--rate-factor: inf is no number above 0"),
            (("--spot-interruptions", "nan"), "--spot-interruptions: nan is no number of 0"),
            (("--requests", "0"), "--requests: 0 is not 1 or more"),
            (("--seed", "-1"), "--seed: -1 is not 0 or more"),
            (("--workers", "0"), "--workers: 0 is not 1 or more"),
            (("--spare-replicas", "-1"), "--spare-replicas: -1 is not 0 or more"),
            (("--spare-replicas", "1"), "nothing fails that they could stand in for"),
            (("--class", "chat"), "--class: it says whose requests a trace holds"),
            (("--class", "chatt"), "the plan has no class 'chatt'; it has chat"),
        ],
    )
    def test_numbers_that_cannot_be(self, desk: Desk, options: tuple[str, ...], text: str) -> None:
        assert text in desk.refused(*options)

    def test_every_mistake_is_told_at_once(self, desk: Desk) -> None:
        error = desk.refused("--hours", "-1", "--rate-factor", "0", "--fail", "node:x@1s")
        assert error.count("\n") == 3

    def test_more_than_can_be_done(self, desk: Desk) -> None:
        error = desk.refused("--hours", "1000")
        assert "this would be about 118,800,000 requests and some 99 minutes" in error
        assert "; at most 42\n" in error

    def test_a_plan_without_a_fleet(self, desk: Desk, plan: Plan) -> None:
        empty = plan.model_copy(update={"pools": (), "status": "infeasible"})
        desk.path.write_text(empty.to_json())
        assert "holds no fleet: its status is infeasible" in desk.refused()

    @pytest.mark.parametrize("text", ["{}", "[1]", "name: x\n", '{"format_version": 1}'])
    def test_what_is_no_plan(self, desk: Desk, text: str) -> None:
        desk.path.write_text(text)
        error = desk.refused()
        assert "is not a plan; give the plan.json that `planner solve --out` writes" in error

    def test_a_trace_with_another_number_of_columns(self, desk: Desk) -> None:
        trace = desk.folder / "trace.csv"
        trace.write_text("arrival_s,input_tokens,output_tokens\n0,1,2\n1,2\n")
        error = desk.refused("--trace", str(trace))
        assert f"{trace}:3" in error

    def test_a_folder_that_cannot_be(self, desk: Desk) -> None:
        (desk.folder / "taken").write_text("")
        assert "taken" in desk.refused("--out", str(desk.folder / "taken"))


class TestBar:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    def shown(self, interactive: bool, **options: bool) -> str:
        import io

        stream, clock = io.StringIO(), self.Clock()
        with ProgressBar(stream, interactive=interactive, clock=clock, **options) as bar:
            for second in range(8):
                clock.now = float(second)
                bar.update(second / 10, "simulating")
        return stream.getvalue()

    def test_a_row_that_is_rewritten(self) -> None:
        rows = self.shown(True).split("\r\x1b[2K")
        assert len(rows) == 1 + 6 + 1
        assert rows[1].startswith("######........................  20 %  simulating  2.0 s")
        assert rows[-1] == ""

    def test_plain_lines_elsewhere(self) -> None:
        lines = self.shown(False).splitlines()
        assert [line.split()[0] for line in lines] == ["20", "40", "60"]
        assert lines[1] == "40 %  simulating  4.0 s, about 6.0 s left"

    def test_nothing_when_quiet(self) -> None:
        assert self.shown(True, quiet=True) == ""


def test_json_holds_no_nan(desk: Desk) -> None:
    _, out, _ = desk.run("--json", "--rate-factor", "3", *SHORT)

    def fail(name: str) -> None:
        raise AssertionError(name)

    json.loads(out, parse_constant=fail)
