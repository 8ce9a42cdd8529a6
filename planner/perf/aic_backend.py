"""The step-time backend `aiconfigurator`: NVIDIA's measured kernel tables, the roofline elsewhere.

A configuration is covered when every step that is sampled has data; otherwise its times are the
roofline's, and `source_of` says why. Tables are sampled when a configuration is first compiled and
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from planner.perf import aic_engine
from planner.perf.aic_engine import EngineHandle, NotCoveredError
from planner.perf.aic_names import Setup, setup_of
from planner.perf.aic_steps import AicSteps
from planner.perf.aic_tables import BATCHES, CONTEXTS, LEVELS, Samples, StepTable, sample, split
from planner.perf.backend import RooflineBackend
from planner.perf.coefficients import StepModel
from planner.perf.config import PoolConfig

TYPICAL_BATCHED_TOKENS: Final = 8192
"""Token budget with which the batches that fit are estimated; it only weights the split."""

NOTICEABLE_FRACTION: Final = 0.01
"""Lengthening of a step by the physical bound that is told."""

BAND: Final = (0.86, 1.35)
"""Tenth and ninetieth percentile of measured over predicted TPOT: these tables in the planner's own
serving model on 1,596 labelled rows of aiconfigurator-core's silicon_sample.csv, 143 deployments.
"""
TTFT_BAND: Final = (0.63, 2.2)
"""The same of TTFT."""


class AicBackend:
    """Step times of AIConfigurator where it covers a configuration, else of the roofline.

    `handle_of` compiles a setup and raises NotCoveredError.
    """

    name = "aiconfigurator"

    def __init__(
        self,
        handle_of: Callable[[Setup], EngineHandle] = aic_engine.handle,
        roofline: RooflineBackend | None = None,
        version: str | None = None,
    ) -> None:
        self._handle_of = handle_of
        self._roofline = roofline or RooflineBackend()
        self._version = version or aic_engine.package_version()
        self._samples: dict[Setup, Samples | str] = {}
        self._tables: dict[PoolConfig, StepTable | str] = {}

    @property
    def source(self) -> str:
        """The package, and what stands in for it."""
        return (
            f"NVIDIA kernel tables of aiconfigurator-core {self._version}; "
            f"elsewhere {self._roofline.source}"
        )

    def band(self, config: PoolConfig) -> tuple[float, float]:
        """Measured over predicted TPOT on the labelled deployments that the tables cover."""
        covered = isinstance(self._table(config), StepTable)
        return BAND if covered else self._roofline.band(config)

    def ttft_band(self, config: PoolConfig) -> tuple[float, float]:
        """The same for TTFT."""
        covered = isinstance(self._table(config), StepTable)
        return TTFT_BAND if covered else self._roofline.ttft_band(config)

    def source_of(self, config: PoolConfig) -> str:
        """The tables used and how well the split and the bound agree with them, or why none."""
        table = self._table(config)
        if isinstance(table, str):
            return f"{self._roofline.source_of(config)} (not in the kernel tables: {table})"
        setup = setup_of(config)
        assert isinstance(setup, Setup)
        words = [
            f"NVIDIA kernel tables, aiconfigurator-core {self._version}, "
            f"{setup.engine} on {setup.system}",
            f"split into tokens and sequences within {100 * table.split_error:.0f} %",
        ]
        share = self._raised_share(config, table)
        if share > 0:
            words.append(
                f"raised to the physical bound at {100 * share:.0f} % of the steps sampled"
            )
        return "; ".join(words)

    def compile(self, configs: Sequence[PoolConfig]) -> AicSteps:
        """Step times of `configs`; tables of those that are new are sampled now."""
        found = [self._table(config) for config in configs]
        tables = [table if isinstance(table, StepTable) else None for table in found]
        return AicSteps(configs, tables, self._roofline.constants)

    def _table(self, config: PoolConfig) -> StepTable | str:
        if config not in self._tables:
            self._tables[config] = self._sampled(config)
        return self._tables[config]

    def _sampled(self, config: PoolConfig) -> StepTable | str:
        setup = setup_of(config)
        if isinstance(setup, str):
            return setup
        samples = self._answers(setup)
        if isinstance(samples, str):
            return samples
        bound = StepModel([config], self._roofline.constants, calibrated=False)
        lanes = float(bound.prompt_lanes(0))
        room = np.maximum(bound.kv_room_bytes(0, TYPICAL_BATCHED_TOKENS), 0.0)
        fits = room / bound.kv_bytes_per_sequence(0, CONTEXTS) / lanes
        limit = np.where(config.model.max_context_tokens >= CONTEXTS, fits, 0.0)
        floor_s = float(bound.sequence_time_s(0, CONTEXTS[0])) * lanes
        try:
            return split(samples, limit, floor_s)
        except NotCoveredError as error:
            return str(error)

    def _answers(self, setup: Setup) -> Samples | str:
        if setup not in self._samples:
            try:
                self._samples[setup] = sample(self._handle_of(setup))
            except NotCoveredError as error:
                self._samples[setup] = str(error)
        return self._samples[setup]

    def _raised_share(self, config: PoolConfig, table: StepTable) -> float:
        """Share of decode steps, by batch and context, that the bound lengthens noticeably."""
        bound = StepModel([config], self._roofline.constants, calibrated=False)
        lanes = float(bound.prompt_lanes(0))
        batches = BATCHES[:, None]
        token_s = np.interp(batches, LEVELS, table.token_s)
        plain = token_s + batches * table.sequence_s
        raised = np.maximum(token_s, bound.token_time_s(0, batches * lanes)) + batches * np.maximum(
            table.sequence_s, bound.sequence_time_s(0, CONTEXTS) * lanes
        )
        return float((raised > plain * (1 + NOTICEABLE_FRACTION)).mean())
