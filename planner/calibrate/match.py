"""Which pool of a plan a measurement is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from planner import catalog
from planner.calibrate.deployment import KV_WORDS, WEIGHT_WORDS
from planner.calibrate.measurement import Measurement, Recorded
from planner.embedded import EmbeddedPlan
from planner.errors import InputError, Problem
from planner.perf.config import PoolConfig
from planner.perf.engines import engine_profile

DEGREES: Final = (
    "tensor_parallel",
    "pipeline_parallel",
    "attention_data_parallel",
    "expert_parallel",
    "gpus",
)


def matched_pool(embedded: EmbeddedPlan, each: Measurement, chosen: str | None) -> str:
    """The id of the pool that a measurement is of: `chosen`, or the only one that agrees with
    all that the file records.

    Raises InputError where there is none, or more than one and nothing is chosen.
    """
    ids = [pool.id for pool in embedded.plan.pools]
    if chosen is not None and chosen not in ids:
        raise InputError([Problem(f"the plan has no pool '{chosen}'", f"it has {', '.join(ids)}")])
    reasons = {
        pool: differences(each.recorded, embedded.configs[pool])
        for pool in (ids if chosen is None else [chosen])
    }
    matching = [pool for pool, found in reasons.items() if not found]
    if len(matching) == 1:
        return matching[0]
    if matching:
        message = f"could be of {', '.join(matching)}"
        raise InputError([Problem(message, "choose one with --pool", each.file, field=each.place)])
    listed = "; ".join(f"{pool}: {', '.join(found)}" for pool, found in reasons.items())
    message = f"is of no pool of the plan ({listed})" if chosen is None else f"differs ({listed})"
    hint = "check that the results are of this plan"
    raise InputError([Problem(message, hint, each.file, field=each.place)])


def differences(recorded: Recorded, config: PoolConfig) -> list[str]:
    """What a file records that is not so in a configuration, in words."""
    found = []
    names: Sequence[tuple[str, str | None, Callable[[str], str | None], str]] = (
        ("model", recorded.model, _model_id, config.model.id),
        ("accelerator", recorded.accelerator, _accelerator_id, config.accelerator.id),
        ("engine", recorded.engine, _engine_name, config.engine.name),
        ("weights", recorded.weight_precision, _word(WEIGHT_WORDS), config.weight_precision),
        ("KV cache", recorded.kv_precision, _word(KV_WORDS), config.kv_precision),
    )
    for what, written, find, planned in names:
        known = None if written is None else find(written)
        if known is not None and known != planned:
            found.append(f"{what} {written} instead of {planned}")
    for name in DEGREES:
        value, planned_degree = getattr(recorded, name), getattr(config.layout, name)
        if value is not None and value != planned_degree:
            found.append(f"{name.replace('_', ' ')} {value} instead of {planned_degree}")
    return found


def _model_id(name: str) -> str | None:
    """The id of a catalogue model; None for a served name or a path, which tell nothing."""
    try:
        return catalog.find_model(name).id
    except InputError:
        return None


def _accelerator_id(name: str) -> str | None:
    try:
        return catalog.find_accelerator(name).id
    except InputError:
        return None


def _engine_name(name: str) -> str | None:
    try:
        return engine_profile(name).name
    except InputError:
        return None


def _word(words: Mapping[str, str]) -> Callable[[str], str | None]:
    return lambda text: words.get(text.strip().lower().replace("-", "_"))
