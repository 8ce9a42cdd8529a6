"""The result of a simulation: frozen, versioned, plain data that survives JSON.

Latencies are in milliseconds, as in a plan. A figure is null where it is infinite or unknown: the
value of a percentile that never comes, the end of an interval that too few requests bound, a
prediction for a pool that is overloaded at this rate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from planner.errors import InputError

Metric = Literal["ttft", "first_token", "tpot", "e2e"]
Verdict = Literal["kept", "missed"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ShareResult(_Frozen):
    """A share of requests, with the interval that holds the true one with 95 %."""

    fraction: float
    low_fraction: float
    high_fraction: float


class LatencyResult(_Frozen):
    """One figure of a latency of a class."""

    metric: Metric
    """`ttft` is the first token that the user sees, `first_token` the first one, hidden or not."""
    percentile: float | None
    """In percent; null for a mean."""
    value_ms: float | None
    low_ms: float | None
    high_ms: float | None
    predicted_ms: float | None
    """What the plan's formulas say at the simulated rate; for e2e, and for ttft with hidden
    tokens, a bound that adds up percentiles."""


class SloResult(LatencyResult):
    """A promise beside what was simulated."""

    limit_ms: float
    within: ShareResult
    """Requests within the limit."""
    verdict: Verdict
    """By the simulated value itself."""
    certain: bool
    """Whether the interval of `within` leaves out the percentile, or that of a mean the limit."""


class ClassResult(_Frozen):
    """What one workload got. Requests are those that arrived after the warm-up."""

    name: str
    model: str
    requests: int
    finished: int
    rejected: int
    unfinished: int
    requests_per_s: float
    """As they arrived."""
    goodput_requests_per_s: float
    """Requests that kept the limit of every percentile promised to their class."""
    good: ShareResult
    """The same as a share of all requests."""
    preemptions: int
    restarts: int
    cached_input_fraction: float
    """Input tokens found in the prefix cache."""
    slos: tuple[SloResult, ...]
    latencies: tuple[LatencyResult, ...]


class PoolResult(_Frozen):
    """The use of one pool over the counted time, means over time unless they say otherwise."""

    id: str
    role: Literal["prefill", "decode", "aggregated"]
    replicas: int
    """Spare ones included."""
    waiting_mean: float
    """Requests that wait in the whole pool."""
    waiting_max: float
    """Of the samples, each a mean over its interval."""
    running_mean: float
    """Requests in work on one replica."""
    running_max: float
    planned_batch: float | None
    """The plan's mean number in flight on one replica, at the planned rate."""
    busy_fraction: float
    """Time in which a replica is in a step."""
    kv_fraction: float
    """KV cache in use over the room for it."""
    kv_max_fraction: float
    preemptions: int


class Account(_Frozen):
    """Whether every request and token of a component is accounted for, and Little's law."""

    classes: tuple[str, ...]
    requests: int
    """Every one, those of the warm-up included."""
    every_request_once: bool
    """Finished, rejected or unfinished: exactly one of these, in the order that time allows."""
    every_token_once: bool
    """Finished requests have all their output tokens, and no request has more."""
    in_system_mean: float
    """Requests in the pools, counted over time."""
    arrivals_times_stay: float
    """The same by Little's law: arrivals per second times the mean stay in the pools."""
    little_difference_fraction: float
    """How far the first is from the second."""
    simulated_s: float
    """Counted time."""
    warmup_s: float
    steps: int
    """Engine steps that were simulated."""


class FailureWindow(_Frozen):
    """The requests of a class that arrived before, during or after a disturbance."""

    workload: str
    when: Literal["before", "during", "after"]
    seconds: float
    requests: int
    rejected: int
    slos: tuple[WindowSlo, ...]


class WindowSlo(_Frozen):
    """A promise over part of the time."""

    metric: Metric
    percentile: float | None
    limit_ms: float
    value_ms: float | None
    within: ShareResult


class Disturbance(_Frozen):
    """What failures did to the classes of one component."""

    classes: tuple[str, ...]
    events: tuple[str, ...]
    first_s: float
    """Of the first event, since the end of the warm-up."""
    normal_s: float | None
    """When no more requests were in the pools than before; null if that did not happen."""
    windows: tuple[FailureWindow, ...]


class Comparison(_Frozen):
    """The same requests under other circumstances."""

    name: str
    status: Verdict
    classes: tuple[ClassResult, ...]


class Asked(_Frozen):
    """What the simulation was asked for."""

    seed: int
    hours: float | None
    requests_per_class: int
    rate_factor: float
    trace: str | None
    failures: tuple[str, ...]
    spare_replicas: int
    spot_interruptions_per_hour: float


class Simulation(_Frozen):
    """A plan, simulated: what every class got, beside what was promised and predicted."""

    format_version: Literal[1] = 1
    name: str
    """Of the plan."""
    status: Verdict
    """Missed where the simulated value of any promise is above its limit."""
    certain: bool
    """Whether the verdict on every promise is."""
    asked: Asked
    classes: tuple[ClassResult, ...]
    pools: tuple[PoolResult, ...]
    accounts: tuple[Account, ...]
    every_request_accounted_for: bool
    """Whether no request and no token was lost or counted twice."""
    disturbances: tuple[Disturbance, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    assumptions: tuple[str, ...] = ()
    elapsed_s: float
    """Time that the computer took, comparisons included."""

    def to_json(self) -> str:
        """JSON text with sorted keys, two spaces, a final newline."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, file: str = "<simulation>") -> Self:
        """Read a result back. Raises InputError naming every field that does not fit."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            place = f"{file}:{error.lineno}:{error.colno}"
            raise InputError(f"{place}: not JSON: {error.msg}") from error
        if not isinstance(data, Mapping):
            raise InputError(f"{file}: a simulation is a JSON object")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = [
                f"{file}: {'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
                for item in error.errors()
            ]
            raise InputError("\n".join(lines)) from error


FailureWindow.model_rebuild()
