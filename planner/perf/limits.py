"""How fast a corrected deployment may be: no step and no prompt below its physical bound.

The fit keeps a correction inside these limits, and a calibration file that was edited is held
against them again before a plan uses it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.perf.coefficients import StepModel
from planner.perf.config import PoolConfig
from planner.perf.constants import Constants
from planner.perf.corrections import Correction
from planner.perf.serving import DEFAULT_BUDGET_TOKENS

Floats = NDArray[np.float64]

ROUNDING: Final = 1e-4
"""Share by which values rounded to the digits of a file may miss a limit that the fit kept."""


def step_limits(config: PoolConfig, constants: Constants | None = None) -> tuple[Floats, Floats]:
    """Steps of a deployment at which a correction must keep the bound: predicted and bound
    seconds (K,). They are decode steps of every batch that fits and prompts of every usual
    chunk; last, the fixed overhead, which a negative overhead may use up but not more.
    """
    model = StepModel([config], constants)
    bound = StepModel([config], constants, calibrated=False)
    most = float(model.max_num_seqs(0))
    batches = np.array([n for n in (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0) if n <= most])
    contexts = np.array([512.0, 4096.0, 32768.0])
    batch, context = (axis.ravel() for axis in np.meshgrid(batches, contexts))
    chunk = np.array([512.0, 2048.0, 8192.0]) * float(model.prompt_lanes(0))
    pairs = chunk * chunk / 2
    overhead = model.token_terms(0, 1.0)["overhead"]
    steps = (
        model.decode_step_s(0, batch, context),
        model.prefill_step_s(0, chunk, pairs),
        np.atleast_1d(overhead),
    )
    bounds = (
        bound.decode_step_s(0, batch, context),
        bound.prefill_step_s(0, chunk, pairs),
        np.zeros(1),
    )
    return np.concatenate(steps), np.concatenate(bounds)


def least_step_factor(
    config: PoolConfig, overhead_s: float, constants: Constants | None = None
) -> float:
    """The smallest step factor that keeps every limit beside an overhead of so many seconds."""
    steps, bounds = step_limits(config, constants)
    return float(np.max((bounds - overhead_s) / steps)) * (1 - ROUNDING)


def least_overhead_s(
    config: PoolConfig, factor: float, constants: Constants | None = None
) -> float:
    """The smallest overhead in seconds, negative as a rule, that keeps every limit beside a step
    factor.
    """
    steps, bounds = step_limits(config, constants)
    return float(np.max(bounds - factor * steps))


def least_prefill_factor(
    config: PoolConfig,
    correction: Correction,
    prompt_tokens: ArrayLike,
    cached_fraction: ArrayLike = 0.0,
    chunk_tokens: float = DEFAULT_BUDGET_TOKENS,
    constants: Constants | None = None,
) -> float:
    """The smallest prefill factor with which no prompt of `prompt_tokens` (N,), of which a share
    is cached, is faster than its bound beside the correction's step factor and overhead.
    """
    stepped = Correction(correction.step_time_factor, correction.step_overhead_s)
    model = StepModel([config], constants, corrections=[stepped])
    bound = StepModel([config], constants, calibrated=False)
    prompt = np.asarray(prompt_tokens, dtype=np.float64)
    fresh = np.maximum(prompt * (1 - np.asarray(cached_fraction, dtype=np.float64)), 1.0)
    work = (0, fresh, np.maximum(prompt - fresh, 0.0), chunk_tokens)
    least = bound.prefill_time_s(*work, alone=True) / model.prefill_time_s(*work, alone=True)
    return float(np.max(least)) * (1 - ROUNDING)
