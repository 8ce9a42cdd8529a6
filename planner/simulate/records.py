"""What a simulation is asked for and what it leaves: settings, a log of requests, samples of pools.

Times are in seconds from the start of the simulated span of a component. A component is a set of
pools and classes that share nothing with the rest of the fleet; each has a span of its own,
because the rates of classes can lie a thousandfold apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from planner.traces.trace import Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NO_PLACE: Final = -1
"""Pool or replica of a phase that a request does not have, or never reached."""
DEFAULT_REQUESTS: Final = 10_000
SERIES_SAMPLES: Final = 200


class Outcome(IntEnum):
    """How a request ended."""

    FINISHED = 0
    REJECTED = 1
    """It fits on no replica, or no replica is left for it."""
    UNFINISHED = 2
    """The simulation ended first."""


@dataclass(frozen=True, slots=True, eq=False)
class RequestLog:
    """Every request of a component in order of arrival, arrays (R,).

    Times of what did not happen are nan. `prefill_pool` and `decode_pool` index
    `ComponentRun.pools`; both are the same in an aggregated pool, and where the first token is the
    last.
    """

    class_index: Ints
    """Into `ComponentRun.classes`."""
    arrival_s: Floats
    prefill_start_s: Floats
    """When the first prompt tokens were computed (of the last start, after a restart)."""
    engine_first_token_s: Floats
    """End of the step with the prompt's last tokens."""
    first_token_s: Floats
    """First token, hidden or not, as the decode side or the user has it."""
    visible_first_token_s: Floats
    """First token after the hidden ones, as the user has it."""
    finish_s: Floats
    input_tokens: Ints
    """Cached ones included."""
    cached_tokens: Ints
    output_tokens: Ints
    """Hidden ones included."""
    hidden_tokens: Ints
    generated_tokens: Ints
    """Output tokens made by the end: all of them where it finished."""
    prefill_pool: Ints
    prefill_replica: Ints
    decode_pool: Ints
    decode_replica: Ints
    preemptions: Ints
    """Times that it lost its cache for want of memory and was computed again."""
    restarts: Ints
    """Times that it lost its replica and began again."""
    outcome: Ints
    """Values of `Outcome`."""
    counted: Bools
    """Whether it arrived after the warm-up; statistics are of these."""


@dataclass(frozen=True, slots=True, eq=False)
class PoolSeries:
    """Samples of a pool over time, arrays (T,); each is the mean since the sample before."""

    pool: str
    time_s: Floats
    """End of the interval that each sample covers."""
    replicas_up: Floats
    waiting: Floats
    """Requests that wait in the whole pool, its shared queue included."""
    running: Floats
    """Requests in work, mean per replica that is up."""
    kv_fraction: Floats
    """KV cache in use over the room for it, mean over replicas that are up; 0 for prefill."""
    busy_fraction: Floats
    """Share of the time that replicas are stepping, of those that are up."""


@dataclass(frozen=True, slots=True, eq=False)
class ComponentRun:
    """One component, simulated."""

    classes: tuple[str, ...]
    pools: tuple[str, ...]
    horizon_s: float
    """Counted arrivals end here. Others follow, not counted and perhaps unfinished, so that the
    last counted ones meet engines as busy as the first."""
    warmup_s: float
    requests: RequestLog
    series: tuple[PoolSeries, ...]
    steps: int
    """Engine steps that were simulated."""
    events: tuple[tuple[float, str], ...]
    """Failures and returns of replicas, with their time."""


@dataclass(frozen=True, slots=True, eq=False)
class SimulationRun:
    """All components of a plan, simulated."""

    seed: int
    components: tuple[ComponentRun, ...]
    elapsed_s: float
    assumptions: tuple[str, ...]
    """What the simulation takes for granted, a sentence each."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A node or a replica that dies.

    `pool` names the pool that is hit; None is the one with most GPUs. A node takes the replicas
    of other pools with it: it is the node with most replicas of the pool. `at_s` counts from the
    end of the warm-up; `down_s` None means for good.
    """

    what: str
    """`node` or `replica`."""
    pool: str | None
    at_s: float
    down_s: float | None = None


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """How to simulate a plan."""

    seed: int = 0
    hours: float | None = None
    """Simulated time after the warm-up; None: until every class has `requests_per_class`, and
    for a component that replays a trace the span of the trace."""
    requests_per_class: int = DEFAULT_REQUESTS
    """Least counted requests of every class, where `hours` is None."""
    trace: Trace | None = None
    """Arrivals and lengths to replay; None: drawn from the plan's classes."""
    trace_class: str | None = None
    """The class that the trace is of; None: classes share it by their token mixes."""
    failures: tuple[Failure, ...] = ()
    spot_interruptions_per_hour: float = 0.0
    """Per node of a spot offer."""
    spare_replicas: int = 0
    """Added to every pool that `failures` hit."""
    rate_factor: float = 1.0
    """On the arrival rate of every class."""
    workers: int | None = None
    """Processes; None: as many as there are processors, two at most."""
