from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from planner.schema import Instance, instance_json_schema, load_instance, parse_instance
from planner.schema.serving import Engine
from planner.schema.suggest import hint_for_key, hint_for_word, key_meant, nearest, without_unit
from planner.schema.tokens import MeanTokens, PercentileTokens
from planner.schema.yaml_positions import field_name

ROOT = Path(__file__).parents[2]
INSTANCES = sorted((ROOT / "instances").glob("*.yaml"))

SMALL = """\
format_version: 1
name: small
models:
  - model: meta-llama/Llama-3.1-8B-Instruct
workloads:
  - name: chat
    model: llama8
    demand: {requests_per_s: 2}
    input_tokens: 1e3
    output_tokens: 200
fleet:
  accelerators: [NVIDIA H100, l4]
  offers:
    - {id: mine, provider: own, region: dc1, accelerator: H100_SXM, price_usd_per_gpu_hour: 2, gpus_per_node: 8}
  availability:
    - {accelerator: "h100 sxm", nodes: 2}
"""  # noqa: E501


def small(old: str = "", new: str = "", extra: str = "") -> Instance:
    assert old in SMALL
    return parse_instance(SMALL.replace(old, new, 1) + extra)


# The format


def test_the_committed_json_schema_is_current() -> None:
    committed = ROOT / "planner" / "schema" / "instance.schema.json"
    update = "planner schema > planner/schema/instance.schema.json"
    assert committed.read_text(encoding="utf-8") == instance_json_schema(), update


def test_json_schema_says_unit_and_meaning() -> None:
    schema = json.loads(instance_json_schema())
    for name, part in {**schema["$defs"], "Instance": schema}.items():
        assert part["additionalProperties"] is False
        assert part["description"], name
        for key, field in part["properties"].items():
            assert field["description"].endswith((".", "`.")), f"{name}.{key}"
    assert schema["$defs"]["SloItem"]["properties"]["limit_ms"]["unit"] == "ms"
    # Constraints are in the words of JSON Schema, not of pydantic.
    assert not re.search(r'"(gt|ge|lt|le)":', instance_json_schema())


def test_unit_suffixes_agree_with_units() -> None:
    schema = json.loads(instance_json_schema())
    suffixes = {
        "_ms": "ms",
        "_fraction": "fraction",
        "_percent": "percent",
        "_tokens": "tokens",
        "_usd_per_hour": "USD/hour",
        "_per_s": "requests/s",
    }
    for part in [schema, *schema["$defs"].values()]:
        for key, field in part["properties"].items():
            for suffix, unit in suffixes.items():
                if key.endswith(suffix):
                    assert field["unit"] == unit, key


@pytest.mark.parametrize("path", INSTANCES, ids=[path.stem for path in INSTANCES])
def test_shipped_instances_load(path: Path) -> None:
    instance = load_instance(path)
    assert instance.name == path.stem
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == ("# yaml-language-server: $schema=../planner/schema/instance.schema.json")
    assert "# What to notice:" in "\n".join(lines)


def test_enterprise_is_a_whole_company() -> None:
    instance = load_instance(ROOT / "instances" / "enterprise.yaml")
    assert len(instance.workloads) >= 5
    assert len(instance.models) >= 4
    assert len(instance.fleet.accelerators or ()) >= 8


# Loading


def test_names_become_canonical_ids() -> None:
    instance = small()
    assert instance.models[0].model == "llama-3.1-8b-instruct"
    assert instance.workloads[0].model == "llama-3.1-8b-instruct"
    assert instance.fleet.accelerators == ("h100", "l4")
    assert instance.fleet.offers[0].accelerator == "h100"
    assert instance.fleet.availability[0].accelerator == "h100"
    assert list(instance.cards) == ["llama-3.1-8b-instruct"]


def test_the_source_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    source = load_instance(path).source
    assert source.file == str(path)
    assert source.text == SMALL
    assert source.sha256 == hashlib.sha256(SMALL.encode()).hexdigest()
    assert source.positions[("workloads", 0, "demand", "requests_per_s")] == (8, 30)


def test_a_card_of_your_own(tmp_path: Path) -> None:
    card = (ROOT / "models" / "llama-3.1-8b-instruct.yaml").read_text(encoding="utf-8")
    (tmp_path / "my.yaml").write_text(card, encoding="utf-8")
    (tmp_path / "f.yaml").write_text(
        SMALL.replace("model: meta-llama/Llama-3.1-8B-Instruct", "card: my.yaml"),
        encoding="utf-8",
    )
    instance = load_instance(tmp_path / "f.yaml")
    assert instance.models[0].model == "llama-3.1-8b-instruct"
    assert instance.cards["llama-3.1-8b-instruct"].layers == 32


def test_defaults() -> None:
    instance = small()
    assert instance.objective.gap == 0.001
    assert instance.objective.time_limit_s == 60
    assert instance.roles == ("prefill", "decode", "aggregated")
    assert instance.fleet.terms == ("on_demand",)
    assert instance.fleet.offers[0].term == "owned"
    assert instance.engine.engine_name == "vllm"
    assert instance.engine.overrides() == {}


def test_numbers() -> None:
    assert small(extra="objective: {gap: 0.5%}\n").objective.gap == pytest.approx(0.005)
    assert small(extra="objective: {gap: 0.02}\n").objective.gap == 0.02
    assert small("nodes: 2", "nodes: 1e3").fleet.availability[0].nodes == 1000
    assert small().workloads[0].input_tokens == 1000.0


def test_a_model_takes_the_engine_of_the_file_where_it_has_none() -> None:
    engine = "engine: {name: sglang, max_num_seqs: 256, prefix_cache: false}\n"
    own = "Llama-3.1-8B-Instruct\n    engine: {max_num_seqs: 64}"
    instance = small("Llama-3.1-8B-Instruct", own, extra=engine)
    merged = instance.engine_for("llama-3.1-8b-instruct")
    assert merged.engine_name == "sglang"
    assert merged.overrides() == {"max_num_seqs": 64, "prefix_cache": False}


def test_settings_do_not_carry_over_to_another_engine() -> None:
    base = Engine(name="sglang", memory_utilization_fraction=0.8)
    assert Engine(name="vllm").over(base).memory_utilization_fraction is None
    assert Engine(name="sglang").over(base).memory_utilization_fraction == 0.8


def test_an_instance_cannot_change_and_survives_a_round_trip() -> None:
    instance = small()
    with pytest.raises(ValidationError):
        instance.name = "other"  # type: ignore[misc]
    again = Instance.model_validate(instance.model_dump())
    assert again.model_dump() == instance.model_dump()
    assert Instance.model_validate_json(instance.model_dump_json()) == again


def test_an_instance_made_in_memory_has_no_source() -> None:
    instance = Instance.model_validate(small().model_dump())
    with pytest.raises(ValueError, match="not read from a text"):
        _ = instance.source


def test_unknown_model_ids() -> None:
    with pytest.raises(KeyError):
        small().served_model("gpt-2")


def test_token_defaults() -> None:
    assert MeanTokens(mean=100).longest == 1000
    assert MeanTokens(mean=100).effective_scv == 1.0
    assert MeanTokens(mean=100, scv=0).longest == 100
    # Where max leaves no room for an SCV of 1, half of what it leaves room for is assumed.
    assert MeanTokens(mean=100, max=150).effective_scv == pytest.approx(0.5 * 50 * 99 / 100**2)
    assert PercentileTokens(p90=9, p50=5, max=20).given == [("p50", 0.5, 5.0), ("p90", 0.9, 9.0)]


def test_reading_yaml_does_not_load_pydantic() -> None:
    code = (
        "import sys, planner.schema.yaml_positions, planner.catalog\n"
        "assert 'pydantic' not in sys.modules\n"
        "import planner.schema.load\n"
        "assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# Suggestions


@pytest.mark.parametrize(
    ("key", "known", "hint"),
    [
        ("limit_s", ["limit_ms", "metric"], "did you mean 'limit_ms' (milliseconds)?"),
        ("limit", ["limit_ms", "metric"], "did you mean 'limit_ms' (milliseconds)?"),
        ("turns_tokens", ["turns"], "did you mean 'turns' (without a unit)?"),
        ("metrik", ["limit_ms", "metric"], "did you mean 'metric'?"),
        ("zzz", ["limit_ms", "metric"], "known: limit_ms, metric"),
        (
            "price_usd_per_month",
            ["price_usd_per_gpu_hour"],
            "did you mean 'price_usd_per_gpu_hour' (USD per GPU and hour)?",
        ),
    ],
)
def test_hints_for_keys(key: str, known: list[str], hint: str) -> None:
    assert hint_for_key(key, known) == hint


def test_hints_for_words() -> None:
    assert hint_for_word("On Demand", ["on_demand", "spot"]) == "did you mean 'on_demand'?"
    many = [f"word-{index}" for index in range(40)]
    assert hint_for_word("zz", many).endswith("word-11 and 28 more")
    assert nearest("qqq", many) is None
    assert without_unit("budget_usd_per_hour") == ("budget", "usd_per_hour")
    assert without_unit("name") == ("name", "")


@given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=8))
def test_a_key_meant_is_a_known_one(key: str, known: list[str]) -> None:
    assert key_meant(key, known) in {*known, None}


def test_field_names() -> None:
    assert field_name(()) == ""
    assert field_name(("a", 0, "b")) == "a[0].b"
