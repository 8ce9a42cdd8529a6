"""AIConfigurator's own predictions of the same rows, as one of a study's methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from planner.errors import InputError, Problem
from planner.fidelity.aic_rows import AicPrediction, predict_aic
from planner.fidelity.silicon import Silicon
from planner.fidelity.study import Prediction

EVERY_ROWS: Final = 200


def predict_rival(
    data: Silicon, tell: Callable[[str], None] = lambda _: None
) -> tuple[Prediction, Mapping[str, int]]:
    """Its TPOT, TTFT and tok/s/GPU of every row, `nan` where it has none, and how often it gave
    which reason for that.

    Raises InputError that names the extra if the package is not installed.
    """

    def told(done: int, rows: int) -> None:
        if done % EVERY_ROWS == 0 or done == rows:
            tell(f"AIConfigurator: {done:,} of {rows:,} rows")

    merged = [{**label, **row} for label, row in zip(data.labels, data.measured, strict=True)]
    try:
        answers = predict_aic(merged, told)
    except ModuleNotFoundError as error:
        hint = "pip install 'llm-fleet-planner[validate]'"
        raise InputError([Problem(f"--aic needs the package {error.name}", hint=hint)]) from error
    found = [each if isinstance(each, AicPrediction) else None for each in answers]
    reasons = Counter(each for each in answers if isinstance(each, str))

    def column(name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([np.nan if each is None else getattr(each, name) for each in found])

    prediction = Prediction(column("tpot_s"), column("ttft_s"), column("tokens_per_s_per_gpu"))
    return prediction, dict(reasons.most_common())
