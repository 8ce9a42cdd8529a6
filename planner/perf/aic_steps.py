"""Step times of many configurations, those that AIConfigurator's tables cover taken from them.

`AicSteps` is the roofline's `StepModel` with tokens, sequences and prompts replaced where there is
a table. Memory, physical coefficients, draft models and what engines add to TTFT stay. No time is
below the physical bound: the larger of both is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.perf.aic_tables import CONTEXTS, LEVELS, StepTable, interpolate, interpolate_two
from planner.perf.coefficients import StepModel
from planner.perf.config import PoolConfig
from planner.perf.constants import Constants
from planner.perf.memory import Index
from planner.perf.work import FloatArray


class AicSteps(StepModel):
    """A `StepModel` of `configs`; `tables` has None where the roofline answers.

    Tables tell neither output head nor expert coverage from the rest of a step, so
    `head_tokens` and `coverage_tokens` change nothing where there is one.
    """

    def __init__(
        self,
        configs: Sequence[PoolConfig],
        tables: Sequence[StepTable | None],
        constants: Constants | None = None,
    ) -> None:
        super().__init__(configs, constants)
        self._physics = StepModel(configs, constants, calibrated=False)
        covered = [table for table in tables if table is not None]
        self._row = np.full(len(configs), -1)
        self._row[[n for n, table in enumerate(tables) if table is not None]] = np.arange(
            len(covered)
        )
        self._any = bool(covered)
        if self._any:
            self._token_s = np.stack([table.token_s for table in covered])
            self._each_s = np.stack([table.sequence_s for table in covered])
            self._prompt_s = np.stack([table.prompt_s for table in covered])

    def take(self, indices: NDArray[np.int64]) -> Self:
        part = super().take(indices)
        part._physics = self._physics.take(indices)
        part._row = self._row[indices]
        return part

    def _choose(self, i: Index, table_s: FloatArray, roofline_s: FloatArray) -> FloatArray:
        chosen: FloatArray = np.where(self._row[i] >= 0, table_s, roofline_s)
        return chosen

    def token_time_s(
        self,
        i: Index,
        tokens: ArrayLike,
        head_tokens: ArrayLike | None = None,
        coverage_tokens: ArrayLike | None = None,
    ) -> FloatArray:
        """g(T) of the table, or the bound where that is longer."""
        roofline = super().token_time_s(i, tokens, head_tokens, coverage_tokens)
        if not self._any:
            return roofline
        each = np.asarray(tokens, dtype=np.float64) / self.prompt_lanes(i)
        table = interpolate(LEVELS, self._token_s, self._row[i], each)
        bound = self._physics.token_time_s(i, tokens, head_tokens, coverage_tokens)
        return self._choose(i, np.maximum(table, bound), roofline)

    def sequence_time_s(self, i: Index, context: ArrayLike) -> FloatArray:
        """r(c) of the table, or the bound where that is longer."""
        roofline = super().sequence_time_s(i, context)
        if not self._any:
            return roofline
        table = interpolate(CONTEXTS, self._each_s, self._row[i], context) / self.prompt_lanes(i)
        bound = self._physics.sequence_time_s(i, context)
        return self._choose(i, np.maximum(table, bound), roofline)

    def _prefill_busy_s(
        self, i: Index, new: FloatArray, old: FloatArray, chunk: FloatArray
    ) -> FloatArray:
        """Chunks as steps of g, and the attention of the whole prompt."""
        roofline = super()._prefill_busy_s(i, new, old, chunk)
        if not self._any:
            return roofline
        lanes = self.prompt_lanes(i)
        whole = np.floor(new / chunk)
        rest = new - whole * chunk
        busy = whole * self.token_time_s(i, chunk * lanes, 0.0)
        busy = busy + np.where(rest > 0, self.token_time_s(i, rest * lanes, 0.0), 0.0)
        attention = interpolate_two(self._prompt_s, self._row[i], new, old)
        busy = busy + np.where(new > 0, attention, 0.0)
        bound = self._physics._prefill_busy_s(i, new, old, chunk)
        return self._choose(i, np.maximum(busy, bound), roofline)

    def mixed_step_s(
        self,
        i: Index,
        sequences: ArrayLike,
        context: ArrayLike,
        tokens: ArrayLike,
        pairs: ArrayLike,
        prompts: ArrayLike = 1.0,
    ) -> FloatArray:
        """All tokens take g, every sequence r, a chunk its attention among its prompt besides."""
        roofline = super().mixed_step_s(i, sequences, context, tokens, pairs, prompts)
        if not self._any:
            return roofline
        batch = np.asarray(sequences, dtype=np.float64)
        chunk = np.asarray(tokens, dtype=np.float64)
        own = chunk / self.prompt_lanes(i)
        visible = np.asarray(pairs, dtype=np.float64) / np.maximum(chunk, 1e-9)
        before = np.maximum(visible - own / 2, 0.0)
        attention = interpolate_two(self._prompt_s, self._row[i], own, before)
        table = (
            self.token_time_s(i, batch + chunk)
            + batch * self.sequence_time_s(i, context)
            + np.where(chunk > 0, attention, 0.0)
        )
        bound = self._physics.mixed_step_s(i, sequences, context, tokens, pairs, prompts)
        return self._choose(i, np.maximum(table, bound), roofline)
