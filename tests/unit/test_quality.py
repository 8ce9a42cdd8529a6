from __future__ import annotations

from dataclasses import dataclass

import pytest

from planner.catalog.quality import quality_loss_fraction, quality_table


@dataclass(frozen=True)
class Card:
    native_precision: str = "bf16"
    parameters_total: float = 70e9


LARGE, SMALL = Card(), Card(parameters_total=8e9)


@pytest.mark.parametrize(
    ("card", "weights", "kv", "loss"),
    [
        (LARGE, "bf16", "bf16", 0.0),
        (LARGE, "fp8", "bf16", 0.005),
        (LARGE, "bf16", "fp8", 0.01),
        (LARGE, "fp8", "fp8", 0.015),
        (LARGE, "int8", "bf16", 0.03),
        (LARGE, "fp4", "bf16", 0.02),
        (LARGE, "int4", "bf16", 0.02),
        (Card(parameters_total=30e9), "int4", "bf16", 0.02),
        (SMALL, "int4", "bf16", 0.03),
        (SMALL, "int4", "fp8", 0.04),
        # A checkpoint published in a low precision loses nothing in it.
        (Card("int4"), "int4", "bf16", 0.0),
        (Card("fp8"), "fp8", "fp8", 0.01),
    ],
)
def test_bounds(card: Card, weights: str, kv: str, loss: float) -> None:
    assert quality_loss_fraction(card, weights, kv, 8_000) == pytest.approx(loss)


def test_four_bits_are_refused_for_long_inputs() -> None:
    assert quality_loss_fraction(LARGE, "int4", "bf16", 65_536) == pytest.approx(0.02)
    assert quality_loss_fraction(LARGE, "int4", "bf16", 65_537) is None
    assert quality_loss_fraction(LARGE, "fp4", "fp8", 100_000) is None
    assert quality_loss_fraction(LARGE, "fp8", "bf16", 100_000) == pytest.approx(0.005)
    assert quality_loss_fraction(Card("int4"), "int4", "bf16", 100_000) == 0.0


def test_measured_figures_replace_bounds_and_refusals() -> None:
    loss = quality_loss_fraction(
        LARGE, "int4", "fp8", 100_000, measured_weights={"int4": 0.004}, measured_kv={"fp8": 0.001}
    )
    assert loss == pytest.approx(0.005)


def test_a_precision_without_a_bound_is_refused() -> None:
    assert quality_loss_fraction(Card("fp8"), "bf16", "bf16", 10) is None
    assert quality_loss_fraction(LARGE, "bf16", "int4", 10) is None


def test_every_bound_is_sourced() -> None:
    table = quality_table()
    for bounds in (*table.weights.values(), *table.kv_cache.values()):
        for bound in bounds:
            assert 0 < bound.loss_fraction < 0.1
            assert all(source.startswith("https://") for source in bound.sources)
            assert bound.sources
