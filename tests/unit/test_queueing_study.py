"""The study of the queueing formulas: what it draws, how it judges, and that it runs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The study is no part of the package: it is found in the checkout.
sys.path.insert(0, str(ROOT))

from benchmarks import queueing_study  # noqa: E402
from benchmarks.queueing.cases import Recipe, drawn_case, largest_rate, use_of  # noqa: E402
from benchmarks.queueing.judge import Figure, PoolRow  # noqa: E402
from benchmarks.queueing.pools import why  # noqa: E402
from benchmarks.queueing.replays import BURSTS  # noqa: E402
from benchmarks.queueing.tables import percent, pipes, signed  # noqa: E402


def row(error: float, *, role: str = "decode", **changes: object) -> PoolRow:
    metric = "ttft" if role == "prefill" else "tpot"
    values: dict[str, object] = {
        "number": 1,
        "recipe": Recipe("box", "split"),
        "role": role,
        "replicas": 2,
        "chunk_tokens": None,
        "words": "a model",
        "use": 0.5,
        "ttft_factor": 2.0,
        "utilisation": 0.5,
        "planned_batch": 10.0,
        "batch": 10.0,
        "lanes": 1.0,
        "shortest_output": 200.0,
        "requests": 1000,
        "figures": (Figure("chat", metric, 99.0, 0.1 * (1 + error), 0.1, 0.01),),
    }
    return PoolRow(**{**values, **changes})  # type: ignore[arg-type]


def test_largest_rate_is_where_the_use_reaches_its_limit() -> None:
    assert largest_rate(lambda rate: rate / 7.0) == pytest.approx(7.0, rel=5e-3)
    assert largest_rate(lambda rate: rate / 7.0) <= 7.0
    assert largest_rate(lambda rate: math.inf) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("role", ["split", "aggregated"])
def test_a_drawn_plan_keeps_what_the_formulas_allow_and_is_the_same_again(role: str) -> None:
    case, again = (drawn_case(4, Recipe("box", role), seed=3) for _ in range(2))
    assert case.embedded.plan == again.embedded.plan
    assert 0.3 <= case.use <= 1.0
    assert use_of(case.check) <= 1.0
    assert case.embedded.plan.pools[0].replicas == 6
    for workload in case.embedded.classes:
        assert workload.mix.max_prompt_tokens + workload.mix.max_output_tokens <= 32_000


def test_a_pool_is_within_where_every_class_is() -> None:
    good = Figure("chat", "tpot", 99.0, 1.1, 1.0, 0.01)
    bad = Figure("code", "tpot", 99.0, 0.8, 1.0, 0.04)
    median = Figure("code", "tpot", 50.0, 3.0, 1.0, 0.01)
    assert row(0.0, figures=(good, median)).within
    both = row(0.0, figures=(good, bad))
    assert not both.within
    assert not both.narrow
    assert both.worst is bad


def test_reasons_follow_the_sign_of_the_error() -> None:
    assert "few in flight" in why(row(0.4, planned_batch=0.5))
    assert "router evens" in why(row(0.4))
    assert why(row(0.4, replicas=1)) == "-"
    assert "step under way" in why(row(-0.4, shortest_output=12.0))
    assert "attention groups" in why(row(-0.4, role="prefill", lanes=8.0))
    assert "share chunks" in why(row(0.4, role="prefill", utilisation=0.9))
    noisy = Figure("chat", "tpot", 99.0, 0.84, 1.0, 0.1)
    assert "noise" in why(row(0.0, figures=(noisy,)))


def test_bursts_are_taken_out_of_an_instance() -> None:
    text = "  - name: a\n    burst_factor: 1.21  # of all\n    arrival_scv: 1.01\n    model: m\n"
    assert BURSTS.sub("", text) == "  - name: a\n    model: m\n"


def test_text_of_figures() -> None:
    assert signed(0.123) == "+12 %"
    assert percent(0.5) == "50.0 %"
    assert percent(math.inf) == "inf"
    assert signed(math.nan) == "-"
    assert pipes(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_sections_are_found_by_part() -> None:
    text = "# Title\n\n## 1. Random plans\n\none\n\n### Operating points\n\n## 3. Traces\n\nthree\n"
    found = queueing_study.sections(text)
    assert found == {
        "pools": "## 1. Random plans\n\none\n\n### Operating points\n",
        "replays": "## 3. Traces\n\nthree\n",
    }


@pytest.mark.slow
def test_every_part_runs_and_writes_its_section(tmp_path: Path) -> None:
    report = tmp_path / "queueing.md"
    command = [sys.executable, "-m", "benchmarks.queueing_study", "--quick", "--workers", "1"]
    command += ["--traces", str(tmp_path), "--write", str(report)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    text = report.read_text(encoding="utf-8")
    assert [part for part in ("## 1.", "## 2.", "## 3.") if part in text] == [
        "## 1.",
        "## 2.",
        "## 3.",
    ]
    assert "Of every plan all requests and tokens were accounted for" in text
    assert text.count("Left out: the trace was not there.") == 2
