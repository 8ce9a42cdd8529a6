"""The constants file that the planner ships, written by the calibration itself."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Final

import numpy as np

from planner.errors import PlannerError
from planner.fidelity.fit import PARAMETERS, values_of
from planner.fidelity.silicon import Silicon
from planner.fidelity.study import RESAMPLES
from planner.perf.constants import Constants

DIGITS: Final = 4
_SET: Final = "\nset:\n"
_BANDS: Final = "\nbands:\n"
_HEAD: Final = """\
# Constants of the calibrated roofline: what is fitted, what is set, and where each comes from.
# None belongs to one model or one chip. Written by `planner validate --refit`; the sections `set`
# and `memory` are kept as they are. Standard errors are of a bootstrap over deployments.
format_version: 2
source: >-
  robust least squares on log TPOT and log TTFT over silicon_sample.csv of PyPI
  aiconfigurator-core (Apache-2.0): measured vLLM, SGLang and TensorRT-LLM deployments of
  {families} model families
data_version: {version}
rows: {rows}
deployments: {deployments}
folds: model families, one left out at a time, for the bands
resamples: {resamples}
accelerators: [{accelerators}]
date: {date}
"""


def constants_text(
    shipped: str, data: Silicon, constants: Constants, errors: Sequence[float]
) -> str:
    """The text of a constants file: fitted values and bands of `constants`, `errors` (standard, in
    the order of `PARAMETERS`), and everything that is set as in the text `shipped`.

    Raises PlannerError if `shipped` has no such sections.
    """
    start, end = shipped.find(_SET), shipped.find(_BANDS)
    if not 0 <= start < end:
        raise PlannerError("the shipped constants file has no sections 'set' and 'bands'")
    head = _HEAD.format(
        families=np.unique(data.family).size,
        version=data.version,
        rows=len(data),
        deployments=np.unique(data.deployment).size,
        resamples=RESAMPLES,
        accelerators=", ".join(dict.fromkeys(row["accelerator"] for row in data.labels)),
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    )
    values = dict(zip(PARAMETERS, values_of(constants), strict=True))
    deviation = dict(zip(PARAMETERS, errors, strict=True))
    shared = [parameter for parameter in PARAMETERS if not parameter.engine]
    lines = ["fitted:", *(f"  {each.name}: {_number(values[each])}" for each in shared)]
    lines += ["engines:"]
    for engine in sorted(constants.engines):
        own = [parameter for parameter in PARAMETERS if parameter.engine == engine]
        lines += [f"  {engine}:", *(f"    {each.name}: {_number(values[each])}" for each in own)]
    lines += ["standard_errors:"]
    lines += [f"  {each.label}: {_number(deviation[each])}" for each in PARAMETERS]
    bands = ["bands:"]
    bands += [
        "  # by kind of model, factors on a prediction between which 80 % of the measurements"
    ]
    bands += [
        "  # of model families lie that the constants had not seen; of published results elsewhere"
    ]
    for kind, band in constants.bands.items():
        tpot = ", ".join(_number(value) for value in band.tpot)
        ttft = ", ".join(_number(value) for value in band.ttft)
        bands += [f"  {kind}: {{tpot: [{tpot}], ttft: [{ttft}], rows: {band.rows}}}"]
    kept = shipped[start + 1 : end]
    return head + "\n".join(lines) + "\n" + kept + "\n" + "\n".join(bands) + "\n"


def _number(value: float) -> str:
    return f"{value:.{DIGITS}g}"
