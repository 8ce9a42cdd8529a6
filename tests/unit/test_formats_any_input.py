"""Whatever is in a file, it is read or refused with `InputError`; nothing else is raised."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.calibrate.formats.node import Node
from planner.calibrate.formats.reading import FORMATS, read_results
from planner.calibrate.measurement import Measurement
from planner.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "results"
DOCUMENTS: list[Any] = [
    json.loads(line)
    for path in sorted(GOLDEN.glob("*.json*"))
    for line in (
        path.read_text(encoding="utf-8").splitlines()
        if path.suffix == ".jsonl"
        else [path.read_text(encoding="utf-8")]
    )
]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([0, 1, -1, 1e-300, 1e300, 10**400, "inf", "true", "ms", "s/token", ""])
)
KEYS = st.sampled_from(sorted({key for known in FORMATS for key in known.keys}))
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS | st.sampled_from(["avg", "unit", "mean", "units"]), inner)
    ),
    max_leaves=12,
)
QUICK = settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow], database=None
)


def check(measurement: Measurement) -> None:
    """What every measurement promises."""
    numbers = (
        measurement.input_tokens,
        measurement.output_tokens,
        measurement.concurrency,
        measurement.request_rate_per_s,
        measurement.duration_s,
        measurement.tpot_s,
        measurement.ttft_s,
        measurement.e2e_s,
        measurement.output_tokens_per_s,
        *measurement.tpot_percentiles_s.values(),
        *measurement.ttft_percentiles_s.values(),
    )
    assert all(math.isfinite(number) and number > 0 for number in numbers if number is not None)


@given(st.sampled_from(FORMATS), st.dictionaries(KEYS | st.text(max_size=4), VALUES, max_size=8))
@QUICK
def test_random_objects_handed_to_any_reader(known: Any, value: dict[str, Any]) -> None:
    with suppress(InputError):
        for measurement in known.read(Node(value, "file")):
            check(measurement)


def fields(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    found = [path] if path else []
    for key, below in inner:
        found += fields(below, (*path, key))
    return found


def replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    here = copy
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = new
    return copy


@given(st.data())
@QUICK
def test_golden_files_with_any_field_replaced(tmp_path_factory: Any, data: st.DataObject) -> None:
    document = data.draw(st.sampled_from(DOCUMENTS))
    path = data.draw(st.sampled_from(fields(document)))
    changed = replaced(document, path, data.draw(VALUES))
    file = tmp_path_factory.getbasetemp() / "replaced.json"
    file.write_text(json.dumps(changed), encoding="utf-8")
    with suppress(InputError):
        for measurement in read_results(file):
            check(measurement)


@given(st.text(alphabet='{}[]",:;\n\t-.0123456789abcdefms_ ', max_size=80) | st.binary(max_size=60))
@QUICK
def test_any_text_or_bytes(tmp_path_factory: Any, content: str | bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with suppress(InputError):
        read_results(file)


HEADERS = "concurrency,input_tokens,output_tokens,tpot_ms,ttft_ms,e2e_ms,gpus,disaggregated"


@given(st.lists(st.text(alphabet="0123456789.-e,\"'naif \n", max_size=40), max_size=4))
@QUICK
def test_any_rows_of_a_table(tmp_path_factory: Any, rows: list[str]) -> None:
    file = tmp_path_factory.getbasetemp() / "any.csv"
    file.write_text("\n".join([HEADERS, *rows]), encoding="utf-8")
    with suppress(InputError):
        for measurement in read_results(file):
            check(measurement)
