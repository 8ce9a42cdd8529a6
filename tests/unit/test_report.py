from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.atomic import make_folder, write_text
from planner.errors import InputError
from planner.fleet.solver import Progress
from planner.plan import (
    ClassPlan,
    Conflict,
    LayoutPlan,
    NodePlan,
    Plan,
    PoolPlan,
    SearchPlan,
    ServingShare,
    SloPlan,
    TokenPrice,
)
from planner.report import numbers
from planner.report.blocks import Bullets, Column, Document, Paragraph, Section, Table
from planner.report.context import document, gap_sentence
from planner.report.markdown import plan_markdown
from planner.report.markdown import render as render_markdown
from planner.report.progress import ProgressDisplay
from planner.report.terminal import print_plan, render

MODEL = "llama-3.3-70b-instruct"


def pool(number: int, **changes: Any) -> PoolPlan:
    values: dict[str, Any] = {
        "id": f"{MODEL}/decode-{number}",
        "model": MODEL,
        "role": "decode",
        "site": "digitalocean/us",
        "accelerator": "rtx-pro-6000",
        "gpus_per_node": 8,
        "layout": LayoutPlan(
            tensor_parallel=4,
            pipeline_parallel=1,
            attention_data_parallel=2,
            expert_parallel=8,
            label="tp4·dp2·ep8",
        ),
        "weight_precision": "fp8",
        "kv_precision": "bf16",
        "engine": "vllm",
        "replicas": 12,
        "gpus": 96,
        "cost_usd_per_hour": 1_234.5,
        "requests_per_s": {"chat": 80.0},
        "step_ms": 38.149,
        "batch": 127.6,
        "utilization_fraction": {
            "compute": 0.18,
            "hbm_bandwidth": 0.634,
            "hbm_capacity": 0.004,
            "interconnect": 0.0,
            "kv_transfer": 0.08,
            "busy": 0.9991,
        },
        "binding": "tpot",
        "band_fraction": (0.8, 1.3),
    }
    return PoolPlan(**(values | changes))


def slo(**changes: Any) -> SloPlan:
    values: dict[str, Any] = {
        "metric": "ttft",
        "percentile": 95.0,
        "limit_ms": 1000.0,
        "predicted_ms": 442.3,
        "low_ms": 353.8,
        "high_ms": 575.0,
    }
    return SloPlan(**(values | changes))


SEARCH = SearchPlan(
    configurations=1764,
    options_enumerated=4661,
    options_after_dominance=457,
    options_in_last_program=211,
    relaxation_usd_per_hour=1_200.0,
    branch_nodes=25,
    enumeration_s=2.61,
    solve_s=130.2,
    solver="highs",
    solver_version="1.15.1",
    gap_asked_fraction=0.001,
    time_limit_s=60.0,
    threads=1,
    seed=0,
)


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "company",
        "status": "optimal",
        "cost_usd_per_hour": 1_260.1,
        "cost_usd_per_month": 1_260.1 * 730,
        "bound_usd_per_hour": 1_259.559,
        "gap_fraction": 0.000429,
        "pools": (
            pool(1),
            pool(
                2,
                id=f"{MODEL}/prefill-1",
                role="prefill",
                step_ms=None,
                batch=None,
                chunk_tokens=8192,
                binding="hbm_capacity",
                replicas=1,
                gpus=1,
                cost_usd_per_hour=25.6,
            ),
        ),
        "classes": (
            ClassPlan(
                name="chat",
                model=MODEL,
                requests_per_s=80.0,
                mean_requests_per_s=53.33,
                input_tokens_per_s=38_400.0,
                cached_input_tokens_per_s=25_600.0,
                output_tokens_per_s=17_066.7,
                slos=(
                    slo(),
                    slo(metric="tpot", limit_ms=50.0, predicted_ms=47.5, low_ms=38, high_ms=61.7),
                    slo(
                        metric="e2e",
                        percentile=None,
                        limit_ms=45_000.0,
                        predicted_ms=39_000.0,
                        low_ms=31_000.0,
                        high_ms=44_000.0,
                    ),
                ),
                served_by=(
                    ServingShare(pool=f"{MODEL}/decode-1", phase="decode", share_fraction=1.0),
                    ServingShare(pool=f"{MODEL}/prefill-1", phase="prefill", share_fraction=0.869),
                ),
                cost_usd_per_hour=1_260.1,
                price=TokenPrice(input_usd_per_mtok=0.18512, output_usd_per_mtok=12.344),
            ),
        ),
        "nodes": (
            NodePlan(
                offer="aws/us-east-1:rtx-pro-6000:on_demand:g7e.48xlarge",
                site="digitalocean/us",
                accelerator="rtx-pro-6000",
                term="on_demand",
                nodes=13,
                gpus=104,
                idle_gpus=7,
                price_usd_per_gpu_hour=2.5,
                cost_usd_per_hour=1_260.1,
                source="https://example.com/prices",
                date="2026-08-01",
            ),
        ),
        "assumptions": ("chat: 40% of every input is taken as cached, long or short.",),
        "warnings": ("the tail is understated",),
        "search": SEARCH,
    }
    return Plan(**(values | changes))


INFEASIBLE = Plan(
    name="company",
    status="infeasible",
    conflicts=(
        Conflict(
            requirement="stock",
            change="have 4 more nodes of own-h100",
            amount=4.0,
            unit="nodes",
        ),
    ),
    refusals={"chat": {"weights do not fit in memory": 3, "latency limits not met (decode)": 120}},
    search=SEARCH,
)


def squeezed(text: str) -> str:
    """On one line with single blanks, so that line breaks do not matter."""
    return " ".join(text.split())


def unescaped(markdown: str) -> str:
    return re.sub(r"\\(.)", r"\1", markdown)


def texts(report: Document) -> Iterator[str]:
    """Every sentence, heading and cell of a report."""
    yield report.title
    yield from (paragraph.text for paragraph in report.lead)
    for section in report.sections:
        yield section.title
        for block in section.blocks:
            if isinstance(block, Paragraph):
                yield block.text
            elif isinstance(block, Bullets):
                yield from block.items
            else:
                yield from (cell for row in block.rows for cell in row)


@pytest.mark.parametrize("made", [plan(), INFEASIBLE], ids=["fleet", "infeasible"])
@pytest.mark.parametrize("width", [None, 160, 100, 80, 40])
def test_both_forms_say_everything_at_every_width(made: Plan, width: int | None) -> None:
    report = document(made)
    shown = squeezed(render(report, width))
    markdown = squeezed(unescaped(plan_markdown(made)))
    for text in texts(report):
        # A pool stands below the name of its model on a terminal.
        assert squeezed(text).removeprefix(f"{MODEL}/") in shown
        assert squeezed(text) in markdown


@pytest.mark.parametrize("width", [160, 100, 80])
def test_lines_fit_the_terminal(width: int) -> None:
    assert max(map(len, render(document(plan()), width).splitlines())) <= width


def test_headline_of_a_proven_plan() -> None:
    text = render(document(plan()))
    assert "Cheapest fleet found: $1,260.10/hour, $919,873.00/month of 730 hours." in text
    # The bound is rounded down, so that it stays one.
    assert "Proven: no fleet considered costs less than $1,259.55/hour." in text
    assert "Gap 0.0429 % (asked: 0.1 %)." in text
    assert "2 pools of 13 replicas on 104 GPUs (7 idle), 13 nodes at 1 site." in text


def test_a_plan_above_the_gap_is_not_called_proven() -> None:
    made = plan(status="feasible", gap_fraction=0.0123)
    text = render(document(made))
    assert "Not proven within the gap asked" in text
    assert "Cheapest" not in text
    assert gap_sentence(made) == "the gap is 1.23 %, above what was asked (asked: 0.1 %)"


def test_an_interrupted_plan_says_so() -> None:
    assert "Interrupted. Best fleet so far: $1,260.10/hour" in render(
        document(plan(status="interrupted"))
    )


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ("no_plan", "no fleet was found within the time limit of 60 s; there may be one."),
        ("interrupted", "Interrupted before a fleet was found."),
    ],
)
def test_without_a_fleet(status: Any, sentence: str) -> None:
    made = Plan(name="x", status=status, bound_usd_per_hour=12.349, search=SEARCH)
    text = squeezed(render(document(made)))
    assert sentence in text
    assert "Every fleet costs $12.34/hour or more." in text


def rows(made: Plan, title: str, index: int = 0) -> tuple[tuple[str, ...], ...]:
    section = next(each for each in document(made).sections if each.title == title)
    tables = [block for block in section.blocks if isinstance(block, Table)]
    return tuple(tuple(cell.strip() for cell in row) for row in tables[index].rows)


def test_fleet_table() -> None:
    first, second = rows(plan(), "Fleet")
    assert first == (
        MODEL,
        f"{MODEL}/decode-1",
        "rtx-pro-6000 x8 @digitalocean/us",
        "tp4·dp2·ep8",
        "fp8/bf16",
        "12",
        "96",
        "128",
        "38.1",
        "1,234.50",
    )
    assert second[-3:] == ("-", "-", "25.60")
    assert f"at most 8,192 prompt tokens per step: {MODEL}/prefill-1" in render(document(plan()))


def test_where_step_times_come_from_is_told_once_or_by_pool() -> None:
    assert "Step times of all pools: roofline, global constants" in render(document(plan()))
    measured = "roofline, corrected by 12 measured points (mine.yaml, 2026-11-01)"
    made = plan(
        pools=(plan().pools[0], plan().pools[1].model_copy(update={"step_time_source": measured}))
    )
    text = " ".join(render(document(made)).split())
    assert f"{measured}: {MODEL}/prefill-1" in text
    assert f"roofline, global constants: {MODEL}/decode-1" in text


def test_the_role_has_a_column_where_the_names_do_not_tell_it() -> None:
    made = plan(pools=(pool(1, id="big"),))
    assert rows(made, "Fleet")[0][:3] == (MODEL, "big", "decode")


def test_use_of_each_pool() -> None:
    first, second = rows(plan(), "Use of each pool")
    assert first[1:] == (
        f"{MODEL}/decode-1",
        "18 %",
        "63 % *",
        "<1 %",
        "0 %",
        "8 %",
        "TPOT promise",
        ">99 %",
    )
    assert second[-2] == "memory for the KV cache"


def test_promises() -> None:
    table = rows(plan(), "Promises")
    assert table == (
        ("chat", "TTFT p95", "1,000 ms", "442 ms", "354 to 575 ms", "55.8 %"),
        ("chat", "TPOT p95", "50 ms", "47.5 ms", "38.0 to 61.7 ms [2]", "5.0 %"),
        ("chat", "end to end mean", "45 s", "39.0 s", "31.0 to 44.0 s", "13.3 %"),
    )
    text = squeezed(render(document(plan())))
    assert "[2] The upper end of the band is over the limit" in text
    assert "Missed" not in text


def test_a_missed_promise_is_named() -> None:
    workload = plan().classes[0].model_copy(update={"slos": (slo(predicted_ms=1001.0),)})
    text = render(document(plan(classes=(workload,))))
    assert "Missed: chat TTFT p95." in text
    assert "[1]" not in text


def test_where_served_and_what_it_costs() -> None:
    serving = rows(plan(), "Demand and where it is served", 1)
    assert serving == (
        ("chat", "prefill", f"{MODEL}/prefill-1", "86.9 %", "69.5"),
        ("chat", "decode", f"{MODEL}/decode-1", "100 %", "80.0"),
    )
    costs = rows(plan(), "Cost by workload and token")
    assert costs == (("chat", "1,260.10", "0.185", "-", "12.34"),)


def test_how_it_was_found() -> None:
    text = squeezed(render(document(plan())))
    assert "1,764 configurations gave 4,661 pool options; left after dominance: 457" in text
    assert "costs $1,200.00/hour, 4.77 % below the plan; 25 branch-and-bound nodes." in text
    assert "2.6 s to enumerate, 2 min 10 s to solve (limit 60 s) with highs 1.15.1" in text


def test_infeasible_tells_the_way_out_and_the_refusals_most_common_first() -> None:
    text = squeezed(render(document(INFEASIBLE)))
    assert "Infeasible: no fleet that was considered can serve this instance." in text
    assert "Each kind alone is enough" in text
    assert "- stock: have 4 more nodes of own-h100" in text
    assert rows(INFEASIBLE, "Configurations refused") == (
        ("chat", "latency limits not met (decode)", "120"),
        ("chat", "weights do not fit in memory", "3"),
    )


def test_a_workload_that_nothing_serves_needs_its_own_change() -> None:
    conflict = Conflict(requirement="slo", change="relax it", amount=1.3, unit="factor")
    text = render(document(INFEASIBLE.model_copy(update={"conflicts": (conflict,)})))
    assert "cannot be served by anything allowed" in text
    assert "- latency: relax it" in text


# ---- terminal ---------------------------------------------------------------------------------


def test_a_pipe_gets_no_escape_codes_and_whole_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "20")
    target = io.StringIO()
    print_plan(plan(), target)
    assert "\x1b" not in target.getvalue()
    assert "aws/us-east-1:rtx-pro-6000:on_demand:g7e.48xlarge" in target.getvalue()


def test_force_color_and_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = io.StringIO()
    print_plan(plan(), coloured)
    assert "\x1b[32m" in coloured.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = io.StringIO()
    print_plan(plan(), plain)
    assert "\x1b[3" not in plain.getvalue()


def test_a_stream_that_knows_only_ascii_gets_question_marks() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_plan(plan(), stream)
    assert b"tp4?dp2?ep8" in raw.getvalue()


def test_markup_in_names_is_shown_as_it_is() -> None:
    assert "[bold]x[/bold] :smile:" in render(document(plan(name="[bold]x[/bold] :smile:")))


# ---- Markdown ---------------------------------------------------------------------------------


def test_markdown_tables_have_as_many_cells_in_every_row() -> None:
    for table in re.findall(r"(?:^\|.*\n)+", plan_markdown(plan()), flags=re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a|b", r"a\|b"),
        ("on_demand", "on_demand"),
        ("_x_", r"\_x\_"),
        ("*x*", r"\*x\*"),
        ("18 % *", "18 % *"),
        ("<script>", r"\<script>"),
        ("<1 %", "<1 %"),
        ("[x](y)", r"[x]\(y)"),
        ("# x", r"\# x"),
        ("two\nlines", "two lines"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, written: str) -> None:
    report = Document(
        "t", (), (Section("s", (Bullets((text,)), Table((Column("c"),), ((text,),)))),)
    )
    lines = render_markdown(report).splitlines()
    assert f"- {written}" in lines
    assert f"| {written} |" in lines


# ---- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.012345, "0.0123"),
        (0.9999, "1.00"),
        (9.999, "10.0"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (12.345, "12.3"),
    ],
)
def test_significant(value: float, text: str) -> None:
    assert numbers.significant(value) == text


@given(st.floats(1e-6, 1e9))
def test_significant_digits_are_within_half_a_percent(value: float) -> None:
    assert float(numbers.significant(value).replace(",", "")) == pytest.approx(value, rel=5e-3)


@given(st.floats(0, 1e7))
def test_a_written_bound_is_never_above_the_bound(bound: float) -> None:
    written = float(numbers.usd_at_least(bound)[1:].replace(",", ""))
    assert bound - 0.011 <= written <= bound + 1e-6


@pytest.mark.parametrize(
    ("price", "text"), [(1.8, "1.80"), (0.0325, "0.0325"), (2.0, "2.00"), (1234.567, "1,234.567")]
)
def test_unit_price(price: float, text: str) -> None:
    assert numbers.unit_price(price) == text


# ---- progress ---------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_on_a_terminal_is_one_row_below_the_notes() -> None:
    target, clock = io.StringIO(), Clock()
    with ProgressDisplay(target, interactive=True, clock=clock) as display:
        display.note("enumerating")
        clock.now += 1.5
        display.update(Progress(0.1, float("inf"), 80.0))
        display.update(Progress(0.2, 100.0, 90.0))
        display.note("solving again")
        display.update(Progress(0.0, 100.0, 95.0))
    text = target.getvalue()
    assert text.startswith("enumerating\n    time |")
    assert text.count("\n") == 4
    assert text.endswith("   1.5 s |         100.00 |          95.00 |      5 %\n")
    assert "\r\x1b[2K   1.5 s |         100.00 |          90.00 |     10 % *" in text
    assert "\r\x1b[2Ksolving again\n" in text


def test_progress_in_a_pipe_is_a_line_every_two_seconds_at_most() -> None:
    target, clock = io.StringIO(), Clock()
    with ProgressDisplay(target, interactive=False, clock=clock) as display:
        for _ in range(11):
            display.update(Progress(0.1, 100.0, 90.0))
            clock.now += 0.5
    assert target.getvalue().splitlines() == [
        "2.0 s: incumbent 100.00 $/hour, bound 90.00 $/hour, gap 10 %",
        "4.0 s: incumbent 100.00 $/hour, bound 90.00 $/hour, gap 10 %",
    ]


def test_quiet_progress_says_nothing() -> None:
    target = io.StringIO()
    with ProgressDisplay(target, quiet=True, interactive=True) as display:
        display.note("enumerating")
        display.update(Progress(0.1, 100.0, 90.0))
    assert target.getvalue() == ""


# ---- files ------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    make_folder(folder)
    write_text(folder / "plan.md", "old\n")
    write_text(folder / "plan.md", "new ·\n")
    assert (folder / "plan.md").read_bytes() == "new ·\n".encode()
    assert [path.name for path in folder.iterdir()] == ["plan.md"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "x", "\ud800")
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.below: cannot write here: Not a directory"):
        make_folder(tmp_path / "file" / "below")
    with pytest.raises(InputError, match=r"none.x: cannot be written: No such file"):
        write_text(tmp_path / "none" / "x", "text")
