from __future__ import annotations

import csv
import io

import pytest

from planner import catalog
from planner.catalog.offers import COLUMNS, parse_offers
from planner.errors import InputError
from planner.units import TERMS

GOOD = {
    "id": "lambda/us:h100:on_demand:8x",
    "provider": "lambda",
    "region": "us",
    "accelerator": "h100",
    "term": "on_demand",
    "price_usd_per_gpu_hour": "3.99",
    "gpus_per_node": "8",
    "source": "https://lambda.ai/pricing",
    "date": "2026-09-19",
}


def text(*rows: dict[str, str]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def problems(content: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_offers(content, catalog.accelerators(), file="prices.csv")
    return str(caught.value)


# Accelerators for which no public price was found that maps onto a term.
WITHOUT_PRICE = {"h800", "h20", "gh200-144gb", "rtx-4090", "gaudi2", "gaudi3", "tpu-v7"}


def test_every_accelerator_with_a_public_price_has_an_offer() -> None:
    offered = {offer.accelerator for offer in catalog.offers().values()}
    assert offered == set(catalog.accelerators()) - WITHOUT_PRICE


def test_ids_say_what_the_offer_is() -> None:
    for offer in catalog.offers().values():
        assert offer.id.startswith(f"{offer.site}:{offer.accelerator}:{offer.term}")


def test_values_are_plausible() -> None:
    for offer in catalog.offers().values():
        assert offer.term in TERMS
        assert 0.05 < offer.price_usd_per_gpu_hour < 30, offer.id
        assert 1 <= offer.gpus_per_node <= 16
        assert offer.source.startswith("https://")
        assert "2025-02" <= offer.date <= "2026-12"
        assert offer.available_nodes is None


def test_commitments_are_cheaper_than_on_demand() -> None:
    offers = catalog.offers()
    for offer in offers.values():
        if offer.term == "on_demand":
            for term in ("spot", "reserved_1y", "reserved_3y"):
                other = offers.get(offer.id.replace(":on_demand", f":{term}"))
                if other is not None:
                    assert other.price_usd_per_gpu_hour < offer.price_usd_per_gpu_hour


@pytest.mark.parametrize(
    ("offer_id", "price", "node"),
    [
        ("lambda/us:h100:on_demand:8x", 3.99, 8),
        ("aws/us-east-1:h100:on_demand", 6.88, 8),
        ("gcp/us-east5:tpu-v6e:on_demand", 2.70, 8),
        ("azure/eastus:gb200:on_demand", 27.04, 4),
        ("aws/us-east-1:a10g:on_demand:g5.48xlarge", 2.036, 8),
    ],
)
def test_known_prices(offer_id: str, price: float, node: int) -> None:
    offer = catalog.find_offer(offer_id)
    assert offer.price_usd_per_gpu_hour == pytest.approx(price)
    assert offer.gpus_per_node == node
    assert offer.price_usd_per_node_hour == pytest.approx(price * node)


def test_unknown_offer() -> None:
    with pytest.raises(InputError, match="did you mean lambda/us:h100:on-demand:8x"):
        catalog.find_offer("lambda/us:h100:ondemand:8x")


def test_a_row_is_read() -> None:
    offers = parse_offers(text(GOOD | {"available_nodes": "3"}), catalog.accelerators())
    (offer,) = offers.values()
    assert offer.site == "lambda/us"
    assert offer.available_nodes == 3
    written = {name: str(value) for name, value in offer.as_row().items() if value}
    assert written == GOOD | {"available_nodes": "3"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"term": "reserved"}, "prices.csv:2: term: unknown term 'reserved'; one of on_demand"),
        ({"accelerator": "h10"}, "unknown accelerator 'h10'; did you mean h100"),
        ({"price_usd_per_gpu_hour": "-1"}, "must be a number, 0 or more"),
        ({"price_usd_per_gpu_hour": "nan"}, "must be a number, 0 or more"),
        ({"price_usd_per_gpu_hour": "free"}, "must be a number, 0 or more"),
        ({"gpus_per_node": "0"}, "must be a whole number above 0"),
        ({"available_nodes": "many"}, "must be a whole number, or empty"),
        ({"date": "yesterday"}, "must be YYYY-MM-DD or YYYY-MM"),
        ({"id": "cheap"}, "must be lambda/us:h100:on_demand"),
        ({"source": ""}, "source: is missing"),
    ],
)
def test_wrong_rows(changes: dict[str, str], message: str) -> None:
    assert message in problems(text(GOOD | changes))


def test_all_problems_come_at_once() -> None:
    report = problems(text(GOOD | {"term": "x"}, GOOD, GOOD))
    assert "prices.csv:2: term" in report
    assert "prices.csv:4: id: the id 'lambda/us:h100:on_demand:8x' is used twice" in report


def test_wrong_columns() -> None:
    assert "expected id,provider" in problems("a,b\n1,2\n")
    assert f"expected {len(COLUMNS)} columns" in problems(text(GOOD) + "too,short\n")
