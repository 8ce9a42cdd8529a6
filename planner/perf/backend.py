"""Where step times come from: the protocol, its registry, and the roofline that stands by default.

A backend compiles configurations into an object that answers in arrays, as `StepModel` does.
Measured times, another program's model or a simulator register under a name of their own and
take the roofline's place without the optimisation noticing.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.errors import InputError, Problem
from planner.perf.coefficients import StepModel
from planner.perf.config import PoolConfig, kind_of
from planner.perf.constants import Constants, load_constants
from planner.perf.corrections import NO_CORRECTIONS, Corrections
from planner.perf.memory import Index
from planner.perf.work import FloatArray

GLOBAL_CONSTANTS: Final = "roofline, global constants"
"""The source of step times that nothing measured stands behind."""


class StepTimes(Protocol):
    """Step times, memory and physical coefficients of compiled configurations.

    Everything that pools, candidates and verification ask of the physics. Meanings, shapes
    and units are those of `StepModel`, which satisfies it: `i` addresses configurations.
    """

    @property
    def configs(self) -> tuple[PoolConfig, ...]:
        """The configurations, in the order in which they are addressed."""
        ...

    def take(self, indices: NDArray[np.int64]) -> Self:
        """The same for some of the configurations."""
        ...

    def token_time_s(
        self,
        i: Index,
        tokens: ArrayLike,
        head_tokens: ArrayLike | None = None,
        coverage_tokens: ArrayLike | None = None,
    ) -> FloatArray:
        """Seconds of a step that its tokens cause."""
        ...

    def sequence_time_s(self, i: Index, context: ArrayLike) -> FloatArray:
        """Seconds that one sequence adds to a step."""
        ...

    def draft_time_s(self, i: Index, sequences: ArrayLike) -> FloatArray:
        """Seconds of the draft model in one step."""
        ...

    def accepted_per_step(self, i: Index) -> FloatArray:
        """Tokens that a step yields per sequence."""
        ...

    def verified_tokens_per_step(self, i: Index) -> FloatArray:
        """Tokens that a step computes per sequence."""
        ...

    def prompt_lanes(self, i: Index) -> FloatArray:
        """Prompts that a replica works on at once."""
        ...

    def prefill_time_factor(self, i: Index) -> FloatArray:
        """The factor on prefill time: the engine's, and that of a measured deployment."""
        ...

    def prefill_time_s(
        self,
        i: Index,
        uncached: ArrayLike,
        cached: ArrayLike,
        chunk_tokens: ArrayLike,
        alone: bool = False,
    ) -> FloatArray:
        """Seconds of one prompt's prefill."""
        ...

    def ttft_fixed_s(self, i: Index, prompt: ArrayLike) -> FloatArray:
        """Seconds of TTFT that no step explains, for a prompt of so many tokens."""
        ...

    def ttft_decode_steps(self, i: Index) -> FloatArray:
        """Decode steps of an aggregated engine that pass before a first token shows."""
        ...

    def compute_s_per_token(self, i: Index) -> FloatArray:
        """Seconds of FLOPs per token at dense peak."""
        ...

    def compute_s_per_sequence(self, i: Index, context: ArrayLike) -> FloatArray:
        """Seconds of attention FLOPs per sequence and step at dense peak."""
        ...

    def prefill_compute_s(self, i: Index, uncached: ArrayLike, cached: ArrayLike) -> FloatArray:
        """Seconds of FLOPs per prompt at dense peak."""
        ...

    def weight_read_s(self, i: Index, tokens: ArrayLike | None = None) -> FloatArray:
        """Seconds of reading the weights once at full bandwidth."""
        ...

    def kv_read_s(self, i: Index, context: ArrayLike) -> FloatArray:
        """Seconds of reading one sequence's cache at full bandwidth."""
        ...

    def collective_s_per_token(self, i: Index) -> FloatArray:
        """Seconds of collectives per token at full link rate."""
        ...

    def max_num_seqs(self, i: Index) -> FloatArray:
        """Sequences that the engine admits to a replica."""
        ...

    def max_num_seqs_per_rank(self, i: Index) -> FloatArray:
        """Sequences that the engine admits to one attention group."""
        ...

    def kv_bytes_per_sequence(self, i: Index, tokens: ArrayLike) -> FloatArray:
        """Bytes of `kv_room_bytes` that one sequence takes."""
        ...

    def kv_room_bytes(self, i: Index, batched_tokens: ArrayLike) -> FloatArray:
        """Bytes of one GPU left for the cache."""
        ...

    def longest_fits(
        self, i: Index, tokens: ArrayLike, batched_tokens: ArrayLike = 512
    ) -> NDArray[np.bool_]:
        """Whether one sequence of so many tokens fits."""
        ...

    def kv_transfer_bytes(self, i: Index, tokens: ArrayLike) -> FloatArray:
        """Bytes of cache that a request moves from prefill to decode."""
        ...

    def nic_bytes_per_s(self, i: Index) -> FloatArray:
        """Scale-out bandwidth of a replica."""
        ...


class StepTimeBackend(Protocol):
    """A source of step times. `source` says in words where its numbers come from."""

    @property
    def name(self) -> str:
        """The name it registers under."""
        ...

    @property
    def source(self) -> str:
        """Where its numbers come from, in words."""
        ...

    def band(self, config: PoolConfig) -> tuple[float, float]:
        """Factors on a predicted TPOT between which 80 % of measured ones are expected."""
        ...

    def ttft_band(self, config: PoolConfig) -> tuple[float, float]:
        """The same for a predicted TTFT, at least."""
        ...

    def source_of(self, config: PoolConfig) -> str:
        """Where the step times of this configuration come from, in a few words for the plan."""
        ...

    def compile(self, configs: Sequence[PoolConfig]) -> StepTimes:
        """Step times of `configs`, addressed by their positions."""
        ...


class RooflineBackend:
    """The calibrated roofline of `StepModel` with one set of global constants, and with the
    corrections of the deployments that the user has measured.
    """

    name = "roofline"

    def __init__(
        self, constants: Constants | None = None, corrections: Corrections = NO_CORRECTIONS
    ) -> None:
        self.constants = constants or load_constants()
        self.corrections = corrections

    @property
    def source(self) -> str:
        """What the constants were fitted on."""
        return f"{self.constants.source}; {self.constants.rows} rows, {self.constants.date}"

    def band(self, config: PoolConfig) -> tuple[float, float]:
        """That of the correction where the deployment was measured; else by kind of model: errors
        on models that the fit did not see.
        """
        correction = self.corrections.find(config)
        if correction is not None:
            return correction.band
        return self.constants.band(kind_of(config.model), config.accelerator.id).tpot

    def ttft_band(self, config: PoolConfig) -> tuple[float, float]:
        """That of the correction where TTFT was measured; else by kind of model as `band`."""
        correction = self.corrections.find(config)
        if correction is not None and correction.ttft_band is not None:
            return correction.ttft_band
        return self.constants.band(kind_of(config.model), config.accelerator.id).ttft

    def source_of(self, config: PoolConfig) -> str:
        """`roofline, global constants`, or the measurements that correct it."""
        correction = self.corrections.find(config)
        return GLOBAL_CONSTANTS if correction is None else f"roofline, {correction.source}"

    def compile(self, configs: Sequence[PoolConfig]) -> StepModel:
        """The calibrated `StepModel` of `configs`, each with its correction if there is one."""
        found = [self.corrections.find(config) for config in configs]
        return StepModel(configs, self.constants, corrections=found)


_REGISTRY: dict[str, StepTimeBackend] = {}

OPTIONAL: Final[Mapping[str, str]] = {"aiconfigurator": "planner.perf.aic"}
"""Backends of extras: the module that registers each under its name when it is imported. An
import that fails for a missing package is told as the extra to install.
"""


def register(backend: StepTimeBackend) -> None:
    """Makes a backend available under its name. Raises InputError if the name is taken."""
    if backend.name in _REGISTRY:
        raise InputError([Problem(f"a step-time backend named '{backend.name}' exists already")])
    _REGISTRY[backend.name] = backend


def find_backend(name: str = RooflineBackend.name) -> StepTimeBackend:
    """The backend of this name, imported when it is first asked for.

    Raises InputError with the nearest name if there is none, and with the extra to install if
    the package behind it is missing.
    """
    if name not in _REGISTRY and name == RooflineBackend.name:
        register(RooflineBackend())
    if name not in _REGISTRY and name in OPTIONAL:
        try:
            import_module(OPTIONAL[name])
        except ModuleNotFoundError as error:
            message = f"the step-time backend '{name}' needs the package {error.name}"
            hint = f"pip install 'llm-fleet-planner[{name}]'"
            raise InputError([Problem(message, hint)]) from error
    if name in _REGISTRY:
        return _REGISTRY[name]
    known = [*dict.fromkeys([RooflineBackend.name, *OPTIONAL, *_REGISTRY])]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    raise InputError([Problem(f"unknown step-time backend '{name}'", hint=hint)])
