"""Model cards: agreement with published counts and sizes, derived sizes by hand, refusals."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog.card_file import find_model, load_card, load_models, parse_card
from planner.catalog.cards import ModelCard
from planner.errors import InputError, UnsupportedModelError

MODELS = Path(__file__).parents[2] / "models"
CARD_PATHS = sorted(MODELS.glob("*.yaml"))
CARDS = load_models(CARD_PATHS)
every_card = pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))

MINIMAL = """\
format_version: 1
id: tiny
repository: someone/Tiny
aliases: []
family: tiny
licence: MIT
source: https://example.com/config.json
date: 2026-11
architecture: LlamaForCausalLM
hidden_size: 64
layers: 2
vocabulary_size: 100
tied_embeddings: false
max_context_tokens: 1024
attention:
  - kind: full
    mechanism: gqa
    layers: 2
    heads: 4
    kv_heads: 2
    head_dim: 16
dense_ffn:
  layers: 2
  intermediate_size: 128
native_precision: bf16
published:
  total_parameters_billion: 0.0001
  active_parameters_billion: 0.0001
  counts:
    total: {embeddings: true, mtp: false}
    active: {embeddings: true, head: true}
  source: https://example.com
"""


def problems_of(text: str, error: type[InputError] = InputError) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse_card(text, "card.yaml")
    assert type(caught.value) is error
    return [str(problem) for problem in caught.value.problems]


# --- agreement with what is published -------------------------------------------------------


@every_card
def test_total_parameters_within_one_percent_of_published(card: ModelCard) -> None:
    published = card.published.total_parameters_billion * 1e9
    assert card.published_total() == pytest.approx(published, rel=0.01)


@every_card
def test_active_parameters_within_rounding_of_published(card: ModelCard) -> None:
    published = card.published.active_parameters_billion
    decimals = len(f"{published:g}".partition(".")[2])
    assert card.published_active() / 1e9 == pytest.approx(published, abs=0.5 * 10**-decimals)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Safetensors totals without quantization scales, of checkpoints that repeat no tensor.
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.3-70b", 70_553_706_496),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-32b", 32_762_123_264),
        ("qwen3-235b-a22b", 235_093_634_560),
        ("qwen3-coder-480b-a35b", 480_154_875_392),
        ("kimi-k2", 1_026_408_235_864),
        ("gpt-oss-120b", 116_829_156_672),
        ("mistral-small-24b", 23_572_403_200),
        ("nemotron-3-nano", 31_577_937_344),
        ("nemotron-3-super", 123_611_012_096),
        ("glm-5", 753_864_139_008),
    ],
)
def test_total_is_the_safetensors_count_but_for_norms(name: str, parameters: int) -> None:
    card = find_model(name, CARDS)
    assert card.published_total() == pytest.approx(parameters, rel=2e-4)


@pytest.mark.parametrize(("name", "gib"), [("gpt-oss-120b", 60.8), ("gpt-oss-20b", 12.8)])
def test_native_weight_bytes_are_the_published_checkpoint_size(name: str, gib: float) -> None:
    # gpt-oss model card (arXiv:2508.10925), table 1.
    weights = CARDS[name].weight_bytes(CARDS[name].native_precision)
    assert weights / 2**30 == pytest.approx(gib, rel=0.005)


@every_card
def test_card_is_named_after_its_file_and_repository(card: ModelCard) -> None:
    assert (MODELS / f"{card.id}.yaml").is_file()
    repository = card.repository.split("/")[1].lower()
    # The one id that conventions shorten.
    assert card.id == repository or card.id == repository.removesuffix("-instruct")
    assert card.source == f"https://huggingface.co/{card.repository}/blob/main/config.json"


def test_names_are_unique_and_measured_families_resolve() -> None:
    families = ("minimax", "llama70", "llama8", "qwen32", "qwen235", "qwen35", "gptoss", "dsr1")
    families += ("kimi", "glm5")
    assert len({find_model(name, CARDS).id for name in families}) == len(families)
    assert find_model("DeepSeek-AI/deepseek_r1", CARDS).id == "deepseek-r1"
    with pytest.raises(InputError, match="did you mean deepseek-r1"):
        find_model("deepseek-r11", CARDS)


# --- KV cache and state ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("deepseek-v3", 61 * (512 + 64) * 2),  # 70,272
        ("llama-3.1-70b", 80 * 2 * 8 * 128 * 2),  # 327,680
        ("deepseek-v3.2", 61 * ((512 + 64) * 2 + 128 + 4)),  # latent and fp8 index keys
        ("gpt-oss-120b", 18 * 2 * 8 * 64 * 2),  # full layers only
        ("qwen3.5-397b-a17b", 15 * 2 * 2 * 256 * 2),
        ("gemma-4-26b-a4b", 5 * 2 * 2 * 512 * 2),  # k_eq_v still caches both
        ("minimax-m3", 60 * 2 * 4 * 128 * 2 + 57 * 128 * 2),
    ],
)
def test_kv_bytes_per_token(name: str, bytes_per_token: int) -> None:
    assert find_model(name, CARDS).kv_bytes_per_token("bf16") == bytes_per_token


def test_known_kv_sizes_literally() -> None:
    assert CARDS["deepseek-v3"].kv_bytes_per_token("bf16") == 70_272
    assert CARDS["llama-3.1-70b-instruct"].kv_bytes_per_token("bf16") == 327_680
    assert CARDS["llama-3.1-70b-instruct"].kv_bytes_per_token("fp8") == 163_840
    # Index keys do not shrink with the KV precision.
    assert CARDS["glm-5"].kv_bytes_per_token("fp8") == 78 * (576 + 132)


@pytest.mark.parametrize(
    ("name", "state_bytes"),
    [
        # fp32 state of every value head, and the last three bf16 inputs of q, k and v.
        ("qwen3.5-397b-a17b", 45 * (64 * 128 * 128 * 4 + (2 * 16 * 128 + 64 * 128) * 3 * 2)),
        ("kimi-k3", 69 * (96 * 128 * 128 * 4 + 3 * 96 * 128 * 3 * 2)),
        ("nemotron-3-nano", 23 * (64 * 64 * 128 * 4 + (64 * 64 + 2 * 8 * 128) * 3 * 2)),
        ("llama-3.1-8b", 0),
    ],
)
def test_state_bytes_per_sequence(name: str, state_bytes: int) -> None:
    card = find_model(name, CARDS)
    assert card.state_bytes_per_sequence == state_bytes
    assert card.kv_bytes_per_sequence(0.0, "bf16") == state_bytes


def test_sliding_windows_saturate() -> None:
    card = CARDS["gpt-oss-120b"]
    per_layer = 2 * 8 * 64 * 2
    for context, kept in ((0, 0), (100, 100), (128, 128), (50_000, 128)):
        expected = 18 * per_layer * (context + kept)
        assert card.kv_bytes_per_sequence(float(context), "bf16") == expected


def test_kv_bytes_of_an_array_are_those_of_its_elements() -> None:
    contexts = np.array([1.0, 1000.0, 9000.0, 200_000.0])
    for card in CARDS.values():
        together = card.kv_bytes_per_sequence(contexts, "fp8")
        assert together.tolist() == [card.kv_bytes_per_sequence(c, "fp8") for c in contexts]


@settings(max_examples=30)
@given(st.sampled_from(sorted(CARDS)), st.floats(0, 1e6), st.floats(0, 1e6))
def test_kv_bytes_grow_with_context_and_fp8_never_holds_more(name: str, a: float, b: float) -> None:
    card = CARDS[name]
    small, large = (card.kv_bytes_per_sequence(c, "bf16") for c in sorted((a, b)))
    assert small <= large
    assert card.kv_bytes_per_sequence(a, "fp8") <= card.kv_bytes_per_sequence(a, "bf16")


# --- attention groups ------------------------------------------------------------------------


def test_latent_attention_by_hand() -> None:
    (group,) = CARDS["deepseek-v3"].attention
    assert group.parameters_per_layer == (
        7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    )
    assert group.decode_flops_per_pair == 2 * 128 * (2 * 512 + 64)
    assert group.prefill_flops_per_pair == 2 * 128 * (128 + 64 + 128)
    assert (group.kv_shards, group.overhead_kind) == (1, "mla")


def test_sparse_attention_by_hand() -> None:
    (group,) = CARDS["deepseek-v3.2"].attention
    assert (group.kind, group.mechanism, group.overhead_kind) == ("sparse", "mla", "sparse")
    assert (group.top_k, group.window) == (2048, None)
    assert group.index_bytes_per_token == 132
    assert group.index_flops_per_pair == 2 * 64 * 128
    assert group.index_parameters_per_layer == 1536 * 64 * 128 + 7168 * (128 + 64)


def test_chunks_cap_what_is_seen_and_kept() -> None:
    full, chunked = CARDS["llama-4-scout-17b-16e-instruct"].attention
    assert (full.layers, full.window) == (12, None)
    assert (chunked.kind, chunked.layers, chunked.window) == ("chunked", 36, 8192)


def test_latent_and_ungated_experts_by_hand() -> None:
    card = find_model("nemotron-3-super", CARDS)
    assert card.expert_parameters == 2 * 1024 * 2688
    shared = 2 * 4096 * 5376 + 2 * 4096 * 1024
    assert card.shared_parameters_per_layer == shared + 4096 * 512
    assert card.overhead_layers == card.layers / 2 == 44


@every_card
def test_linear_groups_have_a_state_and_no_cache(card: ModelCard) -> None:
    for group in card.attention:
        assert (group.kind == "linear") == (group.state_bytes_per_sequence > 0)
        assert (group.kind == "linear") == (group.kv_elements_per_token == 0)
        assert (group.kind == "sparse") == (group.top_k is not None)
        assert (group.kind in ("sliding", "chunked")) == (group.window is not None)


# --- weight precisions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "precision", "attention", "dense", "experts"),
    [
        ("dsr1", "fp8", 1.0, 1.0, 1.0),
        ("dsr1", "fp4", 1.1, 0.5625, 0.5625),
        ("glm5", "bf16", 2.0, 2.0, 2.0),
        ("glm5", "fp8", 1.0, 1.0, 1.0),
        ("glm5", "fp4", 2.0, 2.0, 0.5625),
        ("gptoss", "int4", 2.0, 2.0, 0.53125),
        ("gptoss", "fp4", 2.0, 2.0, 0.53125),
        ("kimi", "int4", 2.0, 2.0, 0.53125),
        ("kimi", "fp4", 2.0, 2.0, 0.5625),
        ("minimax", "fp4", 2.0, 0.5625, 0.5625),
        ("llama70", "fp4", 0.5625, 0.5625, 0.5625),
        ("llama70", "int4", 0.53125, 0.53125, 0.53125),
        ("qwen35", "fp4", 2.0, 2.0, 0.5625),
        ("qwen235", "fp4", 0.5625, 2.0, 0.5625),
    ],
)
def test_component_bytes(
    name: str, precision: str, attention: float, dense: float, experts: float
) -> None:
    card = find_model(name, CARDS)
    per_weight = card.component_bytes(precision)
    assert per_weight.attention == attention
    assert per_weight.head == 2.0
    if card.dense_ffn_layers:
        assert per_weight.dense == dense
    if card.moe_layers:
        assert per_weight.experts == experts


@every_card
def test_every_precision_is_no_larger_than_native(card: ModelCard) -> None:
    native = card.weight_bytes(card.native_precision)
    assert card.weight_precisions[0] == card.native_precision
    for precision in card.weight_precisions:
        # NVFP4 of a 4-bit model carries more scales than MXFP4 or INT4 does: 4.5 against 4.25 bits.
        assert card.weight_bytes(precision) <= native * (4.5 / 4.25)
        assert card.weight_bytes(precision, with_mtp=True) >= card.weight_bytes(precision)


def test_shared_layers_mix_the_router_in() -> None:
    card = CARDS["deepseek-v3"]
    router, shared = 7168 * 256, 3 * 7168 * 2048
    assert card.component_bytes("fp8").shared == pytest.approx(
        (2 * router + shared) / (router + shared)
    )


def test_wider_than_native_is_refused() -> None:
    with pytest.raises(InputError, match=r"deepseek-v3 has no bf16 weights; .* fp8, int8, int4"):
        CARDS["deepseek-v3"].component_bytes("bf16")


# --- mistakes in cards -----------------------------------------------------------------------


def test_minimal_card_by_hand() -> None:
    card = parse_card(MINIMAL)
    attention = 64 * (64 + 2 * 32) + 64 * 64
    assert card.parameters_total == 2 * (attention + 3 * 64 * 128) + 2 * 100 * 64
    assert card.parameters_active == card.parameters_total - 100 * 64


def test_all_mistakes_at_once_with_their_places() -> None:
    text = (
        MINIMAL.replace("hidden_size: 64", "hidden_size: -64")
        .replace("vocabulary_size", "vocabulary")
        .replace("    kv_heads: 2", "    kv_heads: two")
        .replace("native_precision: bf16", "native_precision: fp16")
        .replace("  intermediate_size: 128", "  intermediate: 128")
    )
    found = problems_of(text)
    expected = [
        r"card\.yaml:1:1: vocabulary_size: is required",
        r"card\.yaml:10:14: hidden_size: should be greater than 0 \(it is '-64'\)",
        r"card\.yaml:12:13: vocabulary: unknown field; did you mean vocabulary_size\?",
        r"card\.yaml:20:15: attention\[0\]\.kv_heads: should be a valid integer \(it is 'two'\)",
        r"card\.yaml:23:3: dense_ffn\.intermediate_size: is required",
        r"card\.yaml:24:17: dense_ffn\.intermediate: unknown field; did you mean intermediate_size",
        r'card\.yaml:25:19: native_precision: should be "bf16", "fp8", .* \(it is \'fp16\'\)',
    ]
    assert len(found) == len(expected)
    for pattern, problem in zip(expected, found, strict=True):
        assert re.match(pattern, problem), problem


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: full", "kind: compressed", r":16:11: attention\[0\]\.kind: unknown kind"),
        ("mechanism: gqa", "mechanism: rwkv", r":17:16: .*supported: gqa, mla, gdn, kda, mamba2"),
        ("kind: full", "kind: linear", "gqa cannot be linear; supported: full, sliding"),
        ("LlamaForCausalLM", "RwkvForCausalLM", "unknown architecture 'RwkvForCausalLM'; supp"),
        ("LlamaForCausalLM", "DeepseekV4ForCausalLM", "cannot be expressed: .*compressed cache"),
    ],
)
def test_what_cannot_be_expressed_is_refused(old: str, new: str, message: str) -> None:
    found = problems_of(MINIMAL.replace(old, new), UnsupportedModelError)
    assert any(re.search(message, problem) for problem in found), found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    layers: 2\n", "    layers: 3\n", "attention have 3 layers together, the model has 2"),
        ("kind: full", "kind: sliding", r"attention\[0\]\.window_tokens: is required for sliding"),
        ("kind: full", "kind: sparse", r"attention\[0\]\.indexer: is required for sparse"),
        ("head_dim: 16", "head_dim: 16\n    window_tokens: 8", "does not go with full attention"),
        ("    kv_heads: 2", "    kv_heads: 3", "3 does not divide heads 4"),
        ("  - kind: full\n    m", "  - m", r"attention\[0\]\.kind: is required"),
        ("native_precision: bf16", "native_precision: fp8\nprecisions: {bf16: {head: 2.0}}", "bel"),
        ("dense_ffn:", "mtp: {layers: 1, ffn: moe}\ndense_ffn:", "the card has no moe block"),
        ("format_version: 1", "format_version: 2", "format_version: should be 1"),
        ("id: tiny", "id: Tiny Model", r":2:5: id: is not in the right form .*; lower-case"),
        ("date: 2026-11", "date:", r":8:1: date: should be a valid string \(it is empty\)"),
        (
            "dense_ffn:",
            "mtp: {layers: 1, ffn: dense, attention_group: 1}\ndense_ffn:",
            r"mtp\.attention_group: there are 1 attention entries; it counts from 0",
        ),
        ("dense_ffn:", "moe: 3\ndense_ffn:", "moe: must be a mapping of fields"),
        ("licence: MIT", "licence: MIT\nlicence: GPL", "duplicate key 'licence'"),
    ],
)
def test_mistakes(old: str, new: str, message: str) -> None:
    found = problems_of(MINIMAL.replace(old, new, 1))
    assert any(re.search(message, problem) for problem in found), found


@pytest.mark.parametrize("text", ["[1, 2]", "just words", "attention: []"])
def test_what_is_not_a_card(text: str) -> None:
    assert problems_of(text)


def test_shared_names_are_reported_with_the_file(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(MINIMAL)
    second.write_text(MINIMAL.replace("id: tiny", "id: other").replace("[]", "[TINY]"))
    with pytest.raises(InputError, match=r"b\.yaml: aliases: the name 'tiny' belongs to tiny"):
        load_models([first, second])


def test_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_card(tmp_path / "absent.yaml")


def test_the_card_in_the_docs_is_the_shipped_one() -> None:
    text = (MODELS.parent / "docs" / "models.md").read_text("utf-8")
    example = re.search(r"```yaml\n(format_version.*?)```", text, re.DOTALL)
    assert example is not None
    card = parse_card(example.group(1))
    assert card.attention == CARDS["qwen3-8b"].attention
    assert card.weight_bytes("bf16") == CARDS["qwen3-8b"].weight_bytes("bf16")
