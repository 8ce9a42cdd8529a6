"""`planner validate` on a made-up sample: report, pictures, refit, and what can be wrong."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from planner.cli import main
from planner.fidelity.fit import PARAMETERS
from planner.fidelity.silicon import Silicon, read_labels
from planner.perf.aic_names import SYSTEMS
from planner.perf.constants import constants_from_mapping

COLUMNS = (
    "id",
    "silicon_data_source",
    "mode",
    "isl",
    "osl",
    "backend",
    "system",
    "model_path",
    "precision",
    "decode_num_workers",
    "decode_batch_size",
    "decode_tp_size",
    "decode_attention_dp_size",
    "decode_moe_ep_size",
    "silicon_ttft_ms",
    "silicon_tpot_ms",
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample in the package's shape: some labelled deployments, "measured" by the model with a
    tenth of error, and one pair of decode workers.
    """
    clean = [row for row in read_labels() if row["screen"] == "clean"]
    chosen = {*dict.fromkeys(row["deployment"] for row in clean)}
    chosen = {*sorted(chosen)[::20]}
    labels = [row for row in clean if row["deployment"] in chosen]
    blank = [{"silicon_tpot_ms": "1", "silicon_ttft_ms": "1"} for _ in labels]
    served = Silicon(labels, blank, "made up").serve()
    rows = [
        {
            "id": label["id"],
            "mode": "agg",
            "isl": label["isl_nominal"],
            "osl": label["osl_nominal"],
            "backend": label["engine"],
            "system": SYSTEMS[label["accelerator"]],
            "silicon_tpot_ms": f"{served.tpot_s[n] * 1e3 * (0.9, 1.0, 1.1)[n % 3]:.6f}",
            "silicon_ttft_ms": f"{served.ttft_s[n] * 1e3 * (0.8, 1.0, 1.3)[n % 3]:.6f}",
        }
        for n, label in enumerate(labels)
    ]
    rows.append(
        {
            "id": "pair",
            "silicon_data_source": "x; silicon_concurrency=40",
            "mode": "disagg",
            "isl": "2000",
            "osl": "1000",
            "backend": "trtllm",
            "system": "h100_sxm",
            "model_path": "Qwen/Qwen3-32B",
            "precision": "fp8",
            "decode_num_workers": "2",
            "decode_batch_size": "16",
            "decode_tp_size": "2",
            "decode_attention_dp_size": "1",
            "decode_moe_ep_size": "1",
            "silicon_ttft_ms": "400",
            "silicon_tpot_ms": "15",
        }
    )
    path = tmp_path_factory.mktemp("sample") / "sample.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_writes_a_report_with_pictures(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="pictures are of the extra 'validate'")
    out = tmp_path / "fidelity.md"
    assert main(["validate", "--sample", str(sample), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    for words in (
        "| goal | rows | at most | measured | verdict |",
        "one model family left out at a time",
        "pure roofline: efficiency 1, no overhead",
        "SPLITWISE",
        "DEEPSEEK-D6",
        "What was tried",
        "](fidelity/predicted.png)",
    ):
        assert words in text
    # In sample the errors are those that were put in: 0, 1/0.9 - 1 and 1 - 1/1.1.
    assert "| fitted on all rows, these among them | TPOT | 78 | 9.1 % | 6.7 % |" in text
    for name in ("predicted.png", "errors.png"):
        assert (tmp_path / "fidelity" / name).read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    assert "Goals" in captured.out
    assert f"wrote {out}" in captured.err


def test_refit_writes_a_file_that_loads(sample: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are of the extra 'validate'")
    target = tmp_path / "constants.yaml"
    arguments = ["-q", "validate", "--sample", str(sample), "--out", str(tmp_path / "f.md")]
    assert main([*arguments, "--refit", str(target)]) == 0
    read = constants_from_mapping(yaml.safe_load(target.read_text(encoding="utf-8")))
    assert read.rows == 78
    assert set(read.standard_errors) == {each.label for each in PARAMETERS}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no column id, mode"),
        ("id,mode\n1,agg\n", "has no column system, backend"),
        ("\xff\xfe", "has no column"),
        (
            ",".join(COLUMNS) + "\nnobody,,agg,h100_sxm" + "," * (len(COLUMNS) - 4) + "\n",
            "none of its rows is known",
        ),
    ],
)
def test_a_bad_sample_is_refused(
    content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sample.csv"
    path.write_bytes(content.encode("utf-8"))
    out = tmp_path / "fidelity.md"
    assert main(["validate", "--sample", str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "sample.csv" in error
    assert not out.exists()


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("planner.fidelity.silicon.util.find_spec", lambda _: None)
    assert main(["validate", "--out", str(tmp_path / "fidelity.md")]) == 2
    assert "pip install 'llm-fleet-planner[validate]'" in capsys.readouterr().err
