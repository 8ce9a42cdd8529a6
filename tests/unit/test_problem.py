from __future__ import annotations

from dataclasses import replace

import pytest
import tiny

from planner.catalog.offers import Offer
from planner.errors import InputError
from planner.problem import without_dearer


def listed(name: str, price: float, site: str = "here", **fields: object) -> Offer:
    """An offer of H100 nodes of 8, without limit unless `fields` say so."""
    plain = Offer(name, "own", site, "on_demand", "h100", price, 8)
    return replace(plain, **fields)  # type: ignore[arg-type]  # fields of an offer


def ids(offers: tuple[Offer, ...]) -> list[str]:
    return [offer.id for offer in offers]


class TestWithoutDearer:
    def test_a_dearer_twin_is_dropped(self) -> None:
        assert ids(without_dearer([listed("a", 2.0), listed("b", 3.0)], set())) == ["a"]
        assert ids(without_dearer([listed("b", 3.0), listed("a", 2.0)], set())) == ["a"]

    def test_of_equal_ones_the_first_is_kept(self) -> None:
        assert ids(without_dearer([listed("a", 2.0), listed("b", 2.0)], set())) == ["a"]

    def test_a_cheaper_offer_that_runs_out_drops_nothing(self) -> None:
        short = listed("a", 2.0, available_nodes=1)
        assert ids(without_dearer([short, listed("b", 3.0)], set())) == ["a", "b"]
        assert ids(without_dearer([listed("a", 2.0), listed("b", 3.0)], {"a"})) == ["a", "b"]

    def test_other_nodes_are_another_kind(self) -> None:
        offers = [listed("a", 2.0), listed("b", 3.0, gpus_per_node=4), listed("c", 9.0)]
        assert ids(without_dearer(offers, set())) == ["a", "b"]

    def test_a_site_that_another_beats_in_everything_is_dropped(self) -> None:
        offers = [
            listed("a", 2.0),
            listed("b", 2.5, "there"),
            listed("c", 1.0, accelerator="l4", gpus_per_node=1),
        ]
        assert ids(without_dearer(offers, set())) == ["a", "c"]

    def test_a_site_with_one_cheaper_kind_is_kept_whole(self) -> None:
        offers = [
            listed("a", 2.0),
            listed("b", 2.5, "there"),
            listed("c", 1.0, "there", accelerator="l4", gpus_per_node=1),
        ]
        assert ids(without_dearer(offers, set())) == ["a", "b", "c"]

    def test_of_two_equal_sites_one_is_kept(self) -> None:
        kept = without_dearer([listed("a", 2.0), listed("b", 2.0, "there")], set())
        assert len(kept) == 1

    def test_an_offer_that_runs_out_keeps_its_cheap_site(self) -> None:
        offers = [listed("a", 2.0), listed("b", 1.5, "there", available_nodes=2)]
        assert ids(without_dearer(offers, set())) == ["a", "b"]

    def test_the_cost_is_that_over_all_offers(self) -> None:
        """The dear twin beside the cheap one changes no plan."""
        cheap = tiny.document(tiny.workload(requests_per_s=120))
        both = tiny.document(
            tiny.workload(requests_per_s=120),
            offers=[
                tiny.offer(id="twin", usd_per_gpu_hour=2.6),
                tiny.offer(),
                tiny.offer(id="far", usd_per_gpu_hour=2.5, region="there"),
            ],
        )
        assert len(tiny.problem(both).offers) == 1
        assert tiny.solve(both).cost_usd_per_hour == tiny.solve(cheap).cost_usd_per_hour


class TestBuildProblem:
    def test_filters_that_leave_nothing(self) -> None:
        content = tiny.document()
        content["fleet"] = {
            "accelerators": ["h100"],
            "providers": ["lambda"],
            "terms": ["spot"],
            "regions": ["us"],
        }
        with pytest.raises(InputError) as caught:
            tiny.problem(content)
        assert "tiny.yaml" in str(caught.value)

    def test_catalogue_offers_pass_through_every_filter(self) -> None:
        content = tiny.document()
        content["fleet"] = {"accelerators": ["h100", "h200"], "terms": ["on_demand"]}
        offers = tiny.problem(content).offers
        assert offers
        assert {offer.accelerator for offer in offers} <= {"h100", "h200"}
        assert {offer.term for offer in offers} == {"on_demand"}

    def test_own_offers_stand_beside_those_of_the_catalogue(self) -> None:
        content = tiny.document()
        content["fleet"]["offers"] = [tiny.offer("h100", 0.01)]
        content["fleet"]["catalogue_offers"] = True
        content["fleet"]["accelerators"] = ["h100", "l4"]
        found = ids(tiny.problem(content).offers)
        assert "h100" in found
        assert len(found) > 1

    def test_an_availability_of_an_accelerator_covers_all_its_offers(self) -> None:
        content = tiny.document(
            offers=[
                tiny.offer(id="a"),
                tiny.offer(id="b", region="there"),
                tiny.offer("l4", 0.5),
            ],
            availability=[{"accelerator": "h100", "nodes": 4}, {"offer": "l4", "nodes": 1}],
        )
        stocks = tiny.problem(content).stocks
        assert [(each.name, set(each.offers), each.nodes) for each in stocks] == [
            ("h100", {"a", "b"}, 4),
            ("l4", {"l4"}, 1),
        ]

    def test_node_groups_are_by_site_accelerator_and_size(self) -> None:
        content = tiny.document(
            offers=[
                tiny.offer(id="a", available_nodes=1),
                tiny.offer(id="b", usd_per_gpu_hour=9.0),
                tiny.offer(id="c", gpus_per_node=8),
            ]
        )
        groups = tiny.problem(content).request().node_groups
        keys = [(each.site, each.accelerator.id, each.gpus_per_node) for each in groups]
        assert keys == [("own/here", "h100", 1), ("own/here", "h100", 8)]

    def test_engine_and_speculation_reach_the_model(self) -> None:
        content = tiny.document(
            models=[
                {
                    "model": tiny.LLAMA_8B,
                    "weight_precisions": ["fp8"],
                    "speculative": {
                        "draft_tokens": 3,
                        "accepted_tokens_per_step": 2.0,
                        "draft_parameters_billion": 0.5,
                    },
                }
            ],
            engine={"name": "sglang", "max_num_seqs": 77},
        )
        (served,) = tiny.problem(content).models
        assert served.engine.name == "sglang"
        assert served.engine.max_num_seqs == 77
        assert served.weight_precisions == ("fp8",)
        assert served.kv_precisions == ("bf16", "fp8")
        assert served.speculative is not None
        assert served.speculative.draft_parameters == 0.5e9

    def test_demand_includes_bursts(self) -> None:
        content = tiny.document(tiny.workload(requests_per_s=10, burst_factor=1.5))
        assert tiny.problem(content).inputs().demand == ((15.0,),)
