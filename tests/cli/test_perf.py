"""`planner perf`: the bill, its JSON, and tables of operating points."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import pytest

from planner.cli import main
from planner.perf.batch import OUTPUT_COLUMNS

HEADER = (
    "id,model_family,accelerator,engine,weights,gpus_per_replica,expert_parallel,attention_dp,"
    "concurrency,isl_nominal,osl_nominal,length_scale,kv_bytes_per_element,"
    "attention_bytes_per_weight,dense_bytes_per_weight,expert_bytes_per_weight"
)
GOOD = "a,llama70,h100,vllm,fp8,4,1,1,16,1024,1024,0.9,2.0,1.0,1.0,1.0"


def predict(tmp_path: Path, *rows: str, header: str = HEADER) -> tuple[int, list[dict[str, str]]]:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    code = main(["perf", "--batch", str(source), "--out", str(target)])
    if not target.exists():
        return code, []
    with target.open(encoding="utf-8", newline="") as stream:
        return code, [*csv.DictReader(stream)]


def test_bill_shows_memory_time_and_serving(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", "llama-3.1-70b-instruct", "h100", "--tensor-parallel", "4"]) == 0
    out = capsys.readouterr().out
    for words in (
        "llama-3.1-70b-instruct on 4 x ",
        "weights",
        "Maximum concurrency for 2,304 tokens per request: ",
        "attention over the KV cache",
        "Binds: HBM bandwidth",
        "Binds: compute",
        "physical bound",
        "80 % band",
        "TPOT",
        "TTFT",
        "output per GPU",
    ):
        assert words in out


def test_json_is_whole_and_consistent(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["perf", "deepseek-v3", "h200", "--attention-data-parallel", "8"]
    arguments += ["--expert-parallel", "8", "--batch-size", "64", "--kv", "fp8", "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format_version"] == 1
    assert document["layout"]["gpus"] == 8
    assert document["batch_size"] == 64
    assert document["tpot_low_ms"] < document["tpot_ms"] < document["tpot_high_ms"]
    per_gpu = document["output_tokens_per_s_per_gpu"]
    assert document["output_tokens_per_s"] == pytest.approx(8 * per_gpu)
    step = document["decode_step"]
    assert sum(step["terms_ms"].values()) == pytest.approx(step["total_ms"])
    assert step["bound_ms"] <= step["total_ms"]


def test_smallest_layout_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perf", "llama-3.1-8b-instruct", "h100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"]["label"] == "tp1"
    assert main(["perf", "llama-3.1-70b-instruct", "l40s", "--weights", "fp8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"]["pipeline_parallel"] > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-model", "h100"], "unknown model"),
        (["llama-3.1-8b-instruct", "h1000"], "unknown accelerator"),
        (["llama-3.1-8b-instruct", "h100", "--engine", "vlm"], "did you mean 'vllm'"),
        (["llama-3.1-70b-instruct", "h100", "--tensor-parallel", "1"], "no room"),
        (["llama-3.1-70b-instruct", "h100", "--tensor-parallel", "16"], "scale-up domain"),
        (["llama-3.1-8b-instruct", "h100", "--input-tokens", "200000"], "context of 131072"),
        (["llama-3.1-8b-instruct", "h100", "--batch-size", "100000"], "do not fit"),
        (["llama-3.1-8b-instruct", "h100", "--kv", "fp4"], "bf16 or fp8"),
        (["llama-3.1-8b-instruct"], "needs MODEL and ACCELERATOR"),
        (["--batch", "x.csv"], "go together"),
        (["--batch", "no-such.csv", "--out", "out.csv"], "cannot be read"),
    ],
)
def test_wrong_input_is_named(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["perf", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_table(tmp_path: Path) -> None:
    code, rows = predict(tmp_path, GOOD, GOOD.replace("a,", "b,", 1).replace(",16,", ",64,"))
    assert code == 0
    assert tuple(rows[0]) == OUTPUT_COLUMNS
    assert [row["id"] for row in rows] == ["a", "b"]
    first, second = (
        {k: float(v) for k, v in row.items() if k not in ("id", "error")} for row in rows
    )
    assert all(not row["error"] for row in rows)
    assert 5 < first["tpot_ms"] < 20
    assert first["tpot_low_ms"] < first["tpot_ms"] < first["tpot_high_ms"]
    assert second["tpot_ms"] > first["tpot_ms"]
    assert second["tok_s_per_gpu"] > first["tok_s_per_gpu"]


def test_table_names_what_it_cannot_predict(tmp_path: Path) -> None:
    bad = {
        "unknown model": GOOD.replace("llama70", "llama71"),
        "is not a number": GOOD.replace(",16,", ",many,"),
        "above 0": GOOD.replace(",16,", ",-1,"),
        "finite": GOOD.replace(",16,", ",nan,"),
        "is missing": GOOD.replace(",16,", ",,"),
        "does not divide": GOOD.replace(",4,1,1,", ",4,1,3,"),
        "no room": GOOD.replace(",fp8,4,", ",na,1,").replace("1.0,1.0,1.0", "2.0,2.0,2.0"),
        "does not fit beside": GOOD.replace(",1024,1024,", ",4000000,1024,"),
        "1 or 2": GOOD.replace("0.9,2.0", "0.9,3.0"),
    }
    code, rows = predict(tmp_path, GOOD, *bad.values())
    assert code == 0
    assert not rows[0]["error"]
    for words, row in zip(bad, rows[1:], strict=True):
        assert words in row["error"]
        assert row["tpot_ms"] == ""


def test_table_needs_only_the_columns_without_a_default(tmp_path: Path) -> None:
    header = (
        "id,model_family,accelerator,engine,weights,gpus_per_replica,concurrency,isl_nominal,"
        "osl_nominal"
    )
    code, rows = predict(tmp_path, "a,llama70,h100,trtllm,na,4,16,1000,500", header=header)
    assert code == 0
    assert math.isfinite(float(rows[0]["ttft_ms"]))
    code, _ = predict(tmp_path, "a,llama70", header="id,model_family")
    assert code == 2


def test_table_overrides_the_bytes_of_the_card(tmp_path: Path) -> None:
    heavy = GOOD.replace("2.0,1.0,1.0,1.0", "2.0,2.0,1.0,1.0")
    _, rows = predict(tmp_path, GOOD, heavy)
    assert float(rows[1]["tpot_ms"]) > float(rows[0]["tpot_ms"])


def test_table_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    predict(tmp_path, GOOD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o666 & ~mask
    missing = tmp_path / "no" / "out.csv"
    assert main(["perf", "--batch", str(tmp_path / "in.csv"), "--out", str(missing)]) == 2
