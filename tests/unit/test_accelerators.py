from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from planner import catalog
from planner.catalog.accelerators import Accelerator, alias_table, parse_accelerators, parse_row
from planner.catalog.names import normalise
from planner.errors import InputError
from planner.units import GIB

CANONICAL = {
    "l4",
    "a10g",
    "l40s",
    "a100-40gb",
    "a100-80gb",
    "h100-pcie",
    "h100",
    "h100-nvl",
    "h800",
    "h20",
    "h200",
    "gh200",
    "b200",
    "b300",
    "gb200",
    "gb300",
    "rtx-pro-6000",
    "mi300x",
    "mi325x",
    "mi350x",
    "mi355x",
    "gaudi2",
    "gaudi3",
    "tpu-v5e",
    "tpu-v5p",
    "tpu-v6e",
    "tpu-v7",
    "trainium1",
    "trainium2",
    "inferentia2",
}


def row(**changes: object) -> dict[str, object]:
    entry = catalog.find_accelerator("h100").as_row() | changes
    return {key: value for key, value in entry.items() if value is not ...}


def problems(**changes: object) -> str:
    with pytest.raises(InputError) as caught:
        parse_row(row(**changes), file="mine.yaml")
    return str(caught.value)


def test_every_canonical_accelerator_is_there() -> None:
    assert set(catalog.accelerators()) >= CANONICAL
    assert len(catalog.accelerators()) == 33


# Dense figures of the vendors' documents. Sparse ones, twice these, are what sheets headline:
# 1979 (BF16) and 3958 (FP8) for H100, 624 for A100.
@pytest.mark.parametrize(
    ("name", "bf16", "fp8"),
    [
        ("a100-80gb", 312, None),
        ("h100", 989, 1979),
        ("h200", 989, 1979),
        ("b200", 2250, 4500),
        ("gb200", 2500, 5000),
        ("mi300x", 1307.4, 2614.9),
        ("mi355x", 2516.6, 5033.2),
        ("l4", 121, 242.5),
        ("l40s", 362.05, 733),
        ("tpu-v6e", 918, 918),
        ("trainium2", 667, 1299),
    ],
)
def test_peaks_are_dense(name: str, bf16: float, fp8: float | None) -> None:
    peaks = catalog.accelerators()[name].peak_flops
    assert peaks["bf16"] == pytest.approx(bf16 * 1e12)
    assert peaks.get("fp8") == (None if fp8 is None else pytest.approx(fp8 * 1e12))


def test_fp4_of_blackwell_ultra_is_dense_too() -> None:
    # Sparse it is 18 and 20 PFLOP/s, which is not twice the dense rate.
    assert catalog.accelerators()["b300"].peak_flops["fp4"] == pytest.approx(13.5e15)
    assert catalog.accelerators()["gb300"].peak_flops["fp4"] == pytest.approx(15e15)


def test_ridge_point_of_h100() -> None:
    # 989 TFLOP/s over 3.35 TB/s.
    assert catalog.find_accelerator("h100").ridge_flops_per_byte() == pytest.approx(295, abs=0.5)


def test_critical_batches_of_tpu_v5e() -> None:
    # The JAX scaling book: 240 tokens in BF16, 120 with INT8 weights that compute in BF16.
    chip = catalog.find_accelerator("tpu-v5e")
    assert chip.critical_batch_tokens("bf16") == pytest.approx(240, abs=1)
    assert chip.critical_batch_tokens("int8", "bf16") == pytest.approx(120, abs=1)
    # In INT8 throughout, the doubled rate makes up for the halved bytes.
    assert chip.critical_batch_tokens("int8") == pytest.approx(240, abs=1)


def test_memory_is_what_the_driver_reports() -> None:
    # A marketed "80 GB" H100 shows 81559 MiB.
    assert catalog.find_accelerator("h100").hbm_bytes == pytest.approx(81559 * 2**20, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "weights", "computes_in"),
    [
        ("h100", "int4", "bf16"),
        ("h100", "fp8", "fp8"),
        ("h100", "fp4", "bf16"),
        ("b200", "fp4", "fp4"),
        ("a100-80gb", "fp8", "bf16"),
        ("a100-80gb", "int8", "int8"),
        ("gaudi3", "int8", "bf16"),
        # Its INT8 units are a remnant, fifteen times slower than BF16.
        ("b300", "int8", "bf16"),
    ],
)
def test_compute_precision(name: str, weights: str, computes_in: str) -> None:
    accelerator = catalog.accelerators()[name]
    assert accelerator.compute_precision(weights) == computes_in
    assert accelerator.peak(weights) == accelerator.peak_flops[computes_in]


def test_compute_precision_of_an_unknown_precision() -> None:
    with pytest.raises(KeyError):
        catalog.find_accelerator("h100").compute_precision("fp16")


def test_lower_precision_is_never_slower() -> None:
    for accelerator in catalog.accelerators().values():
        assert accelerator.peak("fp4") >= accelerator.peak("bf16")
        assert accelerator.peak("int8") >= accelerator.peak("bf16")
        assert accelerator.peak("fp8") >= accelerator.peak("bf16")


def test_only_racks_and_slices_span_nodes() -> None:
    spanning = {a.id for a in catalog.accelerators().values() if a.scale_up_spans_nodes}
    assert spanning == {"gb200", "gb300", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-v7"}
    for accelerator in catalog.accelerators().values():
        if not accelerator.scale_up_spans_nodes:
            assert accelerator.scale_up_domain <= accelerator.usual_node_size


def test_assumptions_are_flagged() -> None:
    assumed = {a.id: a.assumed for a in catalog.accelerators().values() if a.assumed}
    assert assumed == {
        "h100-pcie": ("scale_out_gbit_per_s",),
        "rtx-4090": ("scale_out_gbit_per_s",),
    }


def test_every_figure_has_a_source_and_a_date() -> None:
    for accelerator in catalog.accelerators().values():
        assert accelerator.source
        assert accelerator.date.startswith("20")
        assert accelerator.confidence in {"A", "B", "C"}


@pytest.mark.parametrize(
    "name",
    [
        "H100",
        "h100_sxm",
        "H100-80GB SXM",
        "nvidia-h100-80gb",
        " NVIDIA H100 80GB HBM3 ",
        "H100 SXM",
    ],
)
def test_aliases_of_h100(name: str) -> None:
    assert catalog.find_accelerator(name).id == "h100"


@pytest.mark.parametrize(
    ("name", "suggestion"), [("H20O", "h200"), ("a100", "a100"), ("mi300", "mi300x")]
)
def test_names_are_never_guessed(name: str, suggestion: str) -> None:
    with pytest.raises(InputError, match="did you mean") as caught:
        catalog.find_accelerator(name)
    assert suggestion in str(caught.value)


def test_a_name_unlike_any_other_points_to_the_list() -> None:
    with pytest.raises(InputError, match="planner list accelerators"):
        catalog.find_accelerator("abacus")


def test_every_alias_finds_its_owner() -> None:
    table = alias_table(catalog.accelerators().values())
    for accelerator in catalog.accelerators().values():
        for name in (accelerator.id, accelerator.name, *accelerator.aliases):
            assert table[normalise(name)] is accelerator


def test_rows_round_trip() -> None:
    for accelerator in catalog.accelerators().values():
        assert parse_row(accelerator.as_row()) == accelerator


def test_values_are_frozen_hashable_and_picklable() -> None:
    accelerator = catalog.find_accelerator("b200")
    with pytest.raises(AttributeError):
        accelerator.id = "b201"  # type: ignore[misc]
    with pytest.raises(TypeError):
        accelerator.peak_flops["bf16"] = 1.0  # type: ignore[index]
    copy = pickle.loads(pickle.dumps(accelerator))
    assert copy == accelerator
    assert hash(copy) == hash(accelerator)
    assert isinstance(replace(accelerator, power_w=None), Accelerator)


def test_problems_name_file_field_and_value() -> None:
    text = problems(hbm_gib=-1, bf16_dense_tflops="fast", colour="green", vendor=...)
    assert "mine.yaml: accelerator.hbm_gib: must be a number above 0, not -1" in text
    assert "accelerator.bf16_dense_tflops: must be a number above 0, not 'fast'" in text
    assert "accelerator.colour: unknown field" in text
    assert "accelerator.vendor: is missing" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # FP8 below BF16 is how a sparse BF16 figure beside a dense FP8 one shows.
        ({"bf16_dense_tflops": 1979, "fp8_dense_tflops": 989}, "below the BF16 peak"),
        ({"fp4_dense_tflops": 100}, "below the FP8 peak"),
        ({"scale_up_domain": 7.5}, "must be a whole number"),
        ({"usual_node_size": True}, "must be a number above 0"),
        ({"hbm_gib": float("nan")}, "must be a number above 0"),
        ({"confidence": "D"}, "must be one of A, B, C"),
        ({"sources": []}, "at least one public source"),
        ({"aliases": "h100"}, "must be a list"),
    ],
)
def test_wrong_entries(changes: dict[str, object], message: str) -> None:
    assert message in problems(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("[]", "expected a list under 'accelerators'"),
        ("accelerators: [1]", "expected a mapping"),
    ],
)
def test_wrong_files(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_accelerators(text)


def test_ids_and_aliases_are_unique() -> None:
    import yaml

    twice = yaml.safe_dump({"accelerators": [row(), row()]})
    with pytest.raises(InputError, match="the id 'h100' is used twice"):
        parse_accelerators(twice)
    clash = yaml.safe_dump({"accelerators": [row(), row(id="h101")]})
    with pytest.raises(InputError, match="names both h100 and h101"):
        parse_accelerators(clash)


def test_base_units() -> None:
    accelerator = parse_row(row(hbm_gib=2, scale_out_gbit_per_s=400, scale_up_gb_per_s=450))
    assert accelerator.hbm_bytes == 2 * GIB
    assert accelerator.scale_out_bytes_per_s == 50e9
    assert accelerator.scale_up_bytes_per_s == 450e9


def test_a_pair_in_a_mesh_has_one_link() -> None:
    mesh, switched = catalog.find_accelerator("mi300x"), catalog.find_accelerator("h100")
    assert mesh.scale_up_within_bytes_per_s(2) == pytest.approx(64e9)
    assert mesh.scale_up_within_bytes_per_s(4) == pytest.approx(192e9)
    assert mesh.scale_up_within_bytes_per_s(8) == pytest.approx(448e9)
    assert switched.scale_up_within_bytes_per_s(2) == pytest.approx(450e9)
