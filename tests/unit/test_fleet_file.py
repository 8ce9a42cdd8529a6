"""Every kind of mistake in a fleet file is told with its place and what would be right."""

from __future__ import annotations

import pytest
import tiny

from planner.errors import InputError
from planner.schema.fleet_file import GivenFleet, parse_fleet
from planner.schema.instance import Instance

GOOD = """\
format_version: 1
pools:
  - model: llama-3.1-8b-instruct
    role: aggregated
    accelerator: h100
    site: own/here
    weight_precision: fp8
    chunk_tokens: 2048
    replicas: 2
    classes: [chat]
  - {model: llama-3.1-8b-instruct, role: decode, offer: h100, replicas: 1}
nodes: {h100: 3}
"""


@pytest.fixture(scope="module")
def instance() -> Instance:
    offers = [
        tiny.offer(),
        tiny.offer("l40s"),
        tiny.offer("l40s", id="l40s-four", gpus_per_node=4),
    ]
    return tiny.instance(
        tiny.document(
            tiny.workload(),
            tiny.workload("moe", model=tiny.QWEN_MOE),
            offers=offers,
        )
    )


def parse(text: str, instance: Instance) -> GivenFleet:
    return parse_fleet(text, "f.yaml", instance)


def test_names_and_defaults_are_filled_in(instance: Instance) -> None:
    text = GOOD.replace("model: llama-3.1-8b-instruct", "model: meta-llama/Llama-3.1-8B-Instruct")
    fleet = parse(text.replace("accelerator: h100", "accelerator: H100_SXM"), instance)
    first, second = fleet.pools
    assert fleet.name == "f"
    assert (first.model, first.accelerator, first.gpus_per_node) == (tiny.LLAMA_8B, "h100", 1)
    assert (second.site, second.accelerator) == ("own/here", "h100")
    assert second.weight_precision == "bf16"
    assert [pool.name for pool in fleet.pools] == [
        f"{tiny.LLAMA_8B}/aggregated-1",
        f"{tiny.LLAMA_8B}/decode-1",
    ]
    assert fleet.nodes == {"h100": 3}
    assert not fleet.routed


def test_names_made_up_avoid_those_given(instance: Instance) -> None:
    taken = f"{tiny.LLAMA_8B}/aggregated-1"
    text = GOOD.replace("role: decode, ", f"role: decode, name: {taken}, ")
    assert [pool.name for pool in parse(text, instance).pools] == [
        f"{tiny.LLAMA_8B}/aggregated-2",
        taken,
    ]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("format_version: 1\n", "", "1:1: format_version: is missing; write format_version: 1"),
        ("replicas: 2", "replica: 2", "9:5: pools[0].replica: unknown key 'replica'; did you mean"),
        ("replicas: 2", "replicas: 0", "9:15: pools[0].replicas: is 0; must be at least 1"),
        ("replicas: 2", "replicas: 5000", "is 5000; must be at most 4096"),
        ("replicas: 2", "replicas: two", "pools[0].replicas: is the text 'two', not a whole"),
        (
            "role: aggregated",
            "role: agregated",
            "4:11: pools[0].role: unknown value 'agregated'; did",
        ),
        (
            "weight_precision: fp8",
            "weight_precision: fp9",
            "unknown value 'fp9'; did you mean 'fp8'?",
        ),
        ("site: own/here", "site: own/there", "no offer has h100 at 'own/there'; did you mean"),
        ("    site: own/here\n", "", "pools[0].site: is missing, as no offer is named"),
        (
            "accelerator: h100",
            "accelerator: h10",
            "5:18: pools[0].accelerator: unknown accelerator 'h10'",
        ),
        (
            "offer: h100",
            "offer: h1000",
            "11:57: pools[1].offer: unknown offer 'h1000'; did you mean",
        ),
        ("offer: h100", "offer: h100, site: own/here", "pools[1].site: does not go with offer"),
        ("classes: [chat]", "classes: [chta]", "10:15: pools[0].classes[0]: 'chta' is not one of"),
        ("classes: [chat]", "classes: [moe]", "moe uses qwen3-30b-a3b, and the pool serves llama"),
        ("classes: [chat]", "classes: [chat, chat]", "'chat' is listed twice"),
        ("classes: [chat]", "classes: []", "is an empty list"),
        (
            "model: llama-3.1-8b-instruct\n",
            "model: llama-3.1-9b\n",
            "is not one of the instance's models",
        ),
        ("    chunk_tokens: 2048\n", "", "chunk_tokens: is missing in the aggregated pool"),
        ("role: decode", "role: decode, chunk_tokens: 9", "does not apply to decode pools"),
        (
            "role: decode",
            "role: decode, speculative: true",
            "has no speculative decoding for llama",
        ),
        (
            "role: aggregated",
            "role: prefill\n    speculative: true",
            "pools[0].speculative: does not apply to prefill pools",
        ),
        ("accelerator: h100", "accelerator: l40s", "comes in nodes of 1, 4 GPUs at own/here; give"),
        (
            "accelerator: h100",
            "accelerator: l40s\n    gpus_per_node: 8",
            "no offer has l40s in nodes of 8 at own/here; known: 1, 4",
        ),
        (
            "nodes: {h100: 3}",
            "nodes: {h10: 3}",
            "12:14: nodes.h10: unknown offer 'h10'; did you mean",
        ),
        ("nodes: {h100: 3}", "nodes: {h100: -1}", "12:15: nodes.h100: is -1; must be at least 0"),
        (
            "role: decode",
            "role: decode, requests_per_s: {chat: 1}",
            "pools[0].requests_per_s: is missing, and pools[1] has it",
        ),
        (
            "classes: [chat]",
            "classes: [chat]\n    requests_per_s: {moe: 1}",
            "pools[0].requests_per_s.moe: is not among the classes of the pool",
        ),
        ("role: decode", "role: decode, weight_precision: fp8, kv_precision: fp4", "unknown value"),
        ("pools:", "pool:", "unknown key 'pool'; did you mean 'pools'?"),
    ],
)
def test_mistakes(old: str, new: str, told: str, instance: Instance) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        parse(GOOD.replace(old, new, 1), instance)
    text = str(caught.value)
    assert told in text
    assert all(line.startswith("f.yaml:") for line in text.splitlines())


def test_a_name_given_twice(instance: Instance) -> None:
    text = GOOD.replace("role: aggregated", "role: aggregated\n    name: x")
    with pytest.raises(InputError, match=r"pools\[1\]\.name: pools\[0\] has the name 'x' already"):
        parse(text.replace("role: decode", "role: decode, name: x"), instance)


@pytest.mark.parametrize("text", ["", "7", "[1, 2]", "pools: []", "a: [", "pools: 3", "{}"])
def test_what_is_no_fleet(text: str, instance: Instance) -> None:
    with pytest.raises(InputError, match=r"f\.yaml"):
        parse(text, instance)


def test_a_precision_above_the_published_one(instance: Instance) -> None:
    text = GOOD.replace("weight_precision: fp8", "weight_precision: bf16")
    assert parse(text, instance).pools[0].weight_precision == "bf16"
