"""A plan read for its physics: its classes, the configurations of its pools, and their backend.

All of it is embedded in the plan, so a plan is checked against what it was made from, whatever
the catalogue and the constants have become since.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from planner.catalog.accelerators import parse_row
from planner.catalog.cards import ModelCard
from planner.errors import InputError, Problem
from planner.perf.backend import RooflineBackend
from planner.perf.config import Layout, PoolConfig, Speculative
from planner.perf.constants import Constants
from planner.perf.corrections import Correction, Corrections, Deployment
from planner.perf.engines import engine_profile
from planner.plan import Plan, PoolPlan, Provenance
from planner.schema.instance import Instance
from planner.schema.serving import Engine
from planner.workload.build import build_workload
from planner.workload.classes import WorkloadClass


@dataclass(frozen=True, slots=True)
class EmbeddedPlan:
    """A plan with a fleet, the backend of its step times, the configuration of each pool, and
    the workload classes of its instance, in the order of the instance.
    """

    plan: Plan
    backend: RooflineBackend
    configs: Mapping[str, PoolConfig]
    classes: tuple[WorkloadClass, ...]


def embedded_plan(plan: Plan, file: str) -> EmbeddedPlan:
    """The physics in a plan. Raises InputError where there is none, or none that this program
    understands.
    """
    if not plan.has_fleet or plan.provenance is None:
        raise InputError([Problem(f"holds no fleet: its status is {plan.status}", file=file)])
    source = plan.provenance
    foreign = [pool for pool in plan.pools if not _is_roofline(pool)]
    if foreign:
        message = f"step times of {foreign[0].id} come from another source than the roofline"
        hint = "such predictions cannot be repeated from the plan alone"
        raise InputError([Problem(f"{message}: {foreign[0].step_time_source}", hint, file=file)])
    try:
        constants = rebuilt(Constants, source.constants)
        corrections = {
            rebuilt(Deployment, each["deployment"]): rebuilt(Correction, each["correction"])
            for each in source.corrections
        }
        configs = {pool.id: _config(pool, source) for pool in plan.pools}
        classes = build_workload(_instance(source)).classes
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        made = f"made by planner {source.planner_version}"
        message = f"what is embedded in it cannot be understood ({made}): {error}"
        raise InputError([Problem(message, "solve the instance again", file=file)]) from error
    backend = RooflineBackend(constants, Corrections(MappingProxyType(corrections)))
    return EmbeddedPlan(plan, backend, configs, classes)


def _is_roofline(pool: PoolPlan) -> bool:
    return pool.step_time_source.startswith(RooflineBackend.name)


def _instance(source: Provenance) -> Instance:
    """The instance as it was resolved, with the cards that the plan holds."""
    # A model from a card file has its id beside the name of the file, which is not read again.
    models = [{**each, "card": None} for each in source.instance["models"]]
    instance = Instance.model_validate({**source.instance, "models": models})
    cards = {name: rebuilt(ModelCard, card) for name, card in source.models.items()}
    instance._cards = cards
    return instance


def _config(pool: PoolPlan, source: Provenance) -> PoolConfig:
    served = next(each for each in source.instance["models"] if each["model"] == pool.model)
    model = rebuilt(ModelCard, source.models[pool.model])
    settings = Engine.model_validate(served["engine"] or {})
    draft = served["speculative"]
    speculative = None
    if pool.draft_tokens:
        billions = draft["draft_parameters_billion"]
        speculative = Speculative(
            draft["draft_tokens"],
            draft["accepted_tokens_per_step"],
            model.mtp_parameters if billions is None else billions * 1e9,
        )
    layout = pool.layout
    return PoolConfig(
        model=model,
        accelerator=parse_row(source.accelerators[pool.accelerator]),
        layout=Layout(
            layout.tensor_parallel,
            layout.pipeline_parallel,
            layout.attention_data_parallel,
            layout.expert_parallel,
        ),
        weight_precision=pool.weight_precision,
        kv_precision=pool.kv_precision,
        engine=replace(engine_profile(pool.engine), **settings.overrides()),
        speculative=speculative,
    )


def rebuilt(kind: Any, value: Any) -> Any:
    """A value of type `kind` from the plain JSON value that it was written as.

    Dataclasses, tuples, mappings and unions with None, by their type hints. Raises KeyError or
    TypeError where the value does not fit.
    """
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind, localns={"Mapping": Mapping})
        return kind(
            **{each.name: rebuilt(hints[each.name], value[each.name]) for each in fields(kind)}
        )
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return (
            None if value is None else rebuilt(next(x for x in inner if x is not type(None)), value)
        )
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return tuple(rebuilt(inner[0], each) for each in value)
        return tuple(rebuilt(each, part) for each, part in zip(inner, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return MappingProxyType({key: rebuilt(inner[1], each) for key, each in value.items()})
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
