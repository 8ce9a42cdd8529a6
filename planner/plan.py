"""The result: frozen, versioned, plain data that survives JSON. No Pyomo, no physics.

Latencies are in milliseconds here because a plan is read by people and by other programs;
every key carries its unit. `Plan.to_json` sorts keys and holds no NaN.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from planner.errors import InputError

Status = Literal["optimal", "feasible", "infeasible", "no_plan", "interrupted"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LayoutPlan(_Frozen):
    """How the GPUs of one replica share the model."""

    tensor_parallel: int
    pipeline_parallel: int
    attention_data_parallel: int
    expert_parallel: int
    label: str


class MarginPlan(_Frozen):
    """Factors, 1 or more, by which the formulas were kept below the limits."""

    ttft: float = 1.0
    tpot: float = 1.0


class PoolPlan(_Frozen):
    """Identical replicas in one role. Rates are of the whole pool, the rest per replica."""

    id: str
    model: str
    role: Literal["prefill", "decode", "aggregated"]
    site: str
    accelerator: str
    gpus_per_node: int
    layout: LayoutPlan
    weight_precision: str
    kv_precision: str
    engine: str
    draft_tokens: int = 0
    chunk_tokens: int | None = None
    replicas: int
    gpus: int
    cost_usd_per_hour: float
    requests_per_s: dict[str, float]
    step_ms: float | None = None
    batch: float | None = None
    """Mean sequences in flight on one replica."""
    utilization_fraction: dict[str, float]
    """Of each physical roofline (compute, HBM bandwidth, HBM capacity, interconnect, KV
    transfer) and, in `busy`, of what the promises allow."""
    binding: str
    """What more load would break first."""
    band_fraction: tuple[float, float]
    """10-90 % band of the predicted times, as factors."""
    step_time_source: str = "roofline, global constants"
    """Where its step times come from, in words."""
    routing: str = "queued_tokens"
    """How its requests must be spread over the replicas for the promises to hold."""
    margins: dict[str, MarginPlan] = {}
    """By class: what a simulation found the formulas to need here."""


class SloPlan(_Frozen):
    """A promise and what is predicted for it."""

    metric: Literal["ttft", "tpot", "e2e"]
    percentile: float | None
    """In percent; null for a mean."""
    limit_ms: float
    predicted_ms: float
    low_ms: float
    high_ms: float


class ServingShare(_Frozen):
    """Which part of a class one pool serves, in one phase."""

    pool: str
    phase: Literal["prefill", "decode", "aggregated"]
    share_fraction: float


class TokenPrice(_Frozen):
    """Cost per million tokens, by the phase that makes them; idle time is shared by use."""

    input_usd_per_mtok: float
    cached_input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float


class ClassPlan(_Frozen):
    """What one workload gets and what it costs."""

    name: str
    model: str
    requests_per_s: float
    """Planned for, bursts included."""
    mean_requests_per_s: float
    input_tokens_per_s: float
    cached_input_tokens_per_s: float
    output_tokens_per_s: float
    slos: tuple[SloPlan, ...]
    served_by: tuple[ServingShare, ...]
    cost_usd_per_hour: float
    price: TokenPrice


class NodePlan(_Frozen):
    """Nodes taken from one offer."""

    offer: str
    site: str
    accelerator: str
    term: str
    nodes: int
    gpus: int
    idle_gpus: int
    price_usd_per_gpu_hour: float
    cost_usd_per_hour: float
    source: str
    date: str


class Conflict(_Frozen):
    """One way to make an infeasible instance feasible: the smallest change of one kind."""

    requirement: str
    change: str
    amount: float
    unit: str


class MissedSlo(_Frozen):
    """A promise that the simulation of a plan saw missed, or kept by less than its noise."""

    workload: str
    metric: Literal["ttft", "tpot", "e2e"]
    percentile: float | None
    """In percent; null for a mean."""
    limit_ms: float
    predicted_ms: float
    simulated_ms: float | None
    """Null where that many requests were never served."""


class SimulatedRound(_Frozen):
    """One round of solving and simulating: what the fleet cost, and which promises it missed."""

    cost_usd_per_hour: float
    bound_usd_per_hour: float
    gpus: int
    requests: int
    """Requests counted in the simulation."""
    seed: int
    missed: tuple[MissedSlo, ...]


class SearchPlan(_Frozen):
    """How the plan was found, and over what the bound was proven."""

    configurations: int
    options_enumerated: int
    options_after_dominance: int
    options_in_last_program: int
    relaxation_usd_per_hour: float | None
    branch_nodes: int
    enumeration_s: float
    solve_s: float
    solver: str
    solver_version: str
    gap_asked_fraction: float
    time_limit_s: float | None
    threads: int
    seed: int


class Provenance(_Frozen):
    """Everything the plan was made from, so that later commands need only the plan."""

    planner_version: str
    versions: dict[str, str]
    instance_file: str
    instance_sha256: str
    instance: dict[str, Any]
    accelerators: dict[str, dict[str, Any]]
    offers: dict[str, dict[str, Any]]
    models: dict[str, dict[str, Any]]
    constants: dict[str, Any]
    corrections: tuple[dict[str, Any], ...] = ()
    """Measured deployments, each with the correction of its step times."""


class Plan(_Frozen):
    """A fleet and its proof, or why there is none."""

    format_version: Literal[1] = 1
    name: str
    status: Status
    cost_usd_per_hour: float | None = None
    cost_usd_per_month: float | None = None
    bound_usd_per_hour: float | None = None
    gap_fraction: float | None = None
    pools: tuple[PoolPlan, ...] = ()
    classes: tuple[ClassPlan, ...] = ()
    nodes: tuple[NodePlan, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    refusals: dict[str, dict[str, int]] = {}
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    rounds: tuple[SimulatedRound, ...] = ()
    """Of solving and simulating in turn; the last is this plan. Empty where nothing was
    simulated."""
    search: SearchPlan | None = None
    provenance: Provenance | None = None

    @property
    def has_fleet(self) -> bool:
        """Whether there is a fleet to run."""
        return bool(self.pools)

    def to_json(self) -> str:
        """JSON text with sorted keys, two spaces, a final newline."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, file: str = "<plan>") -> Self:
        """Read a plan back. Raises InputError naming every field that does not fit."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{file}:{error.lineno}:{error.colno}: not JSON: {error.msg}"
            ) from error
        if not isinstance(data, Mapping):
            raise InputError(f"{file}: a plan is a JSON object, not a {type(data).__name__}")
        version = data.get("format_version")
        if version != 1:
            raise InputError(
                f"{file}: format_version: {version!r} is not supported; this program reads 1"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = [
                f"{file}: {'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
                for item in error.errors()
            ]
            raise InputError("\n".join(lines)) from error
