from __future__ import annotations

from pathlib import Path

import pytest

from planner import resources
from planner.errors import PlannerError

ROOT = Path(__file__).parents[2]


def test_a_bare_name_is_in_data() -> None:
    assert resources.read_text("accelerators.yaml") == resources.read_text("data/accelerators.yaml")


def test_cards_and_instances_are_those_of_the_checkout() -> None:
    cards = [path.name for path in resources.model_card_paths()]
    assert cards == sorted(path.name for path in (ROOT / "models").glob("*.yaml"))
    instances = [path.name for path in resources.instance_paths()]
    assert instances == sorted(path.name for path in (ROOT / "instances").glob("*.yaml"))
    assert resources.read_text(f"instances/{instances[0]}")


@pytest.mark.parametrize("name", ["nowhere/x.yaml", "data/x.yaml", "x.yaml", "models/x.yaml"])
def test_missing_files_are_said_to_be_missing(name: str) -> None:
    with pytest.raises(PlannerError, match="missing from this installation"):
        resources.read_text(name)
