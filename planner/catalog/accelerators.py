"""Accelerators: peak rates, memory, links and power of one GPU or chip, in base units.

Peaks are dense; the data file says where each figure comes from and how sure it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeGuard

import yaml

from planner.catalog.names import normalise
from planner.errors import InputError, Problem
from planner.units import GB, GIB, WEIGHT_BYTES

TERA: Final = 1e12
BITS_PER_BYTE: Final = 8
CONFIDENCES: Final = ("A", "B", "C")

_PEAK_KEYS: Final = {
    "bf16": "bf16_dense_tflops",
    "fp8": "fp8_dense_tflops",
    "int8": "int8_dense_tops",
    "fp4": "fp4_dense_tflops",
}
_REQUIRED_NUMBERS: Final = (
    "bf16_dense_tflops",
    "hbm_gib",
    "hbm_tb_per_s",
    "scale_up_domain",
    "scale_up_gb_per_s",
    "scale_out_gbit_per_s",
    "usual_node_size",
)
_OPTIONAL_NUMBERS: Final = (
    "fp8_dense_tflops",
    "int8_dense_tops",
    "fp4_dense_tflops",
    "board_power_w",
)
_WHOLE_NUMBERS: Final = ("scale_up_domain", "usual_node_size")
_REQUIRED_TEXTS: Final = ("id", "name", "vendor", "confidence", "date")
_OTHER_KEYS: Final = (
    "aliases",
    "sources",
    "note",
    "assumed",
    "scale_up_spans_nodes",
    "scale_up_mesh",
)
_ALL_KEYS: Final = frozenset(
    (*_REQUIRED_NUMBERS, *_OPTIONAL_NUMBERS, *_REQUIRED_TEXTS, *_OTHER_KEYS)
)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One GPU or chip. Rates are per chip, link rates per direction; nothing is sparse."""

    id: str
    name: str
    vendor: str
    peak_flops: Mapping[str, float] = field(hash=False)
    """Dense FLOP/s (or integer operations/s) of each precision the chip has natively."""
    hbm_bytes: float
    """Memory as the driver reports it."""
    hbm_bytes_per_s: float
    scale_up_domain: int
    """Chips that share the fast link (NVLink, xGMI, ICI); 1 when boards have only PCIe."""
    scale_up_bytes_per_s: float
    scale_out_bytes_per_s: float
    usual_node_size: int
    scale_up_spans_nodes: bool = False
    """True when the fast domain is larger than one rented node (racks, slices)."""
    scale_up_mesh: bool = False
    """True when chips are wired to each other without a switch, so that a pair has one link."""
    power_w: float | None = None
    confidence: str = "C"
    assumed: tuple[str, ...] = ()
    """Fields that are assumptions rather than figures of a source."""
    source: str = ""
    date: str = ""
    note: str = ""
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "peak_flops", MappingProxyType(dict(self.peak_flops)))

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only view cannot be pickled; rebuild it from a plain dict in the other process.
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["peak_flops"] = dict(self.peak_flops)
        return Accelerator, tuple(values.values())

    def compute_precision(self, weight_precision: str) -> str:
        """The precision in which weights of `weight_precision` are multiplied here.

        FP8, INT8 and FP4 weights compute natively where the chip has units for them that are no
        slower than its BF16 ones (B300 keeps only a remnant of INT8); otherwise, and always for
        INT4 weights, they are expanded to BF16 on the way in and save memory traffic only.
        Raises KeyError for a precision outside `WEIGHT_BYTES`.
        """
        if weight_precision not in WEIGHT_BYTES:
            raise KeyError(weight_precision)
        native = self.peak_flops.get(weight_precision, 0.0)
        return weight_precision if native >= self.peak_flops["bf16"] else "bf16"

    def peak(self, weight_precision: str) -> float:
        """Dense FLOP/s at which a layer with weights of `weight_precision` can compute."""
        return self.peak_flops[self.compute_precision(weight_precision)]

    def scale_up_within_bytes_per_s(self, chips: int) -> float:
        """Link rate of one chip inside a group of `chips` of its domain, per direction.

        Behind a switch a chip has its whole rate for any group; in a full mesh only the links to
        the group's other members count, (chips - 1) of the domain's (domain - 1).
        """
        if not self.scale_up_mesh or chips >= self.scale_up_domain or chips <= 1:
            return self.scale_up_bytes_per_s
        return self.scale_up_bytes_per_s * (chips - 1) / (self.scale_up_domain - 1)

    def ridge_flops_per_byte(self, compute_precision: str = "bf16") -> float:
        """FLOP per byte of memory traffic above which the chip is bound by compute.

        Williams, Waterman and Patterson, "Roofline" (CACM 2009).
        """
        return self.peak_flops[compute_precision] / self.hbm_bytes_per_s

    def critical_batch_tokens(
        self, weight_precision: str = "bf16", compute_precision: str | None = None
    ) -> float:
        """Tokens in a step at which reading the weights takes as long as multiplying by them.

        A weight of b bytes costs 2 FLOP for each token and b / bandwidth seconds for the step, so
        the two are equal at ridge * b / 2 tokens. Attention and everything else is left out.
        """
        compute = compute_precision or self.compute_precision(weight_precision)
        return self.ridge_flops_per_byte(compute) * WEIGHT_BYTES[weight_precision] / 2

    def as_row(self) -> dict[str, Any]:
        """The entry as the data file writes it (units in the keys); `parse_row` reads it back."""
        row: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "vendor": self.vendor,
            "aliases": list(self.aliases),
            "hbm_gib": _tidy(self.hbm_bytes / GIB),
            "hbm_tb_per_s": _tidy(self.hbm_bytes_per_s / TERA),
            "scale_up_domain": self.scale_up_domain,
            "scale_up_spans_nodes": self.scale_up_spans_nodes,
            "scale_up_mesh": self.scale_up_mesh,
            "scale_up_gb_per_s": _tidy(self.scale_up_bytes_per_s / GB),
            "scale_out_gbit_per_s": _tidy(self.scale_out_bytes_per_s * BITS_PER_BYTE / GB),
            "usual_node_size": self.usual_node_size,
            "confidence": self.confidence,
            "assumed": list(self.assumed),
            "sources": self.source.split("; ") if self.source else [],
            "date": self.date,
            "note": self.note,
        }
        for precision, key in _PEAK_KEYS.items():
            if precision in self.peak_flops:
                row[key] = _tidy(self.peak_flops[precision] / TERA)
        if self.power_w is not None:
            row["board_power_w"] = self.power_w
        return row


def parse_accelerators(text: str, file: str = "<string>") -> dict[str, Accelerator]:
    """Accelerators by id from a YAML text in the format of `data/accelerators.yaml`.

    Raises InputError with every problem found in any entry, also for aliases used twice.
    """
    try:
        document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise InputError([Problem(f"not valid YAML: {error}", file=file)]) from error
    rows = document.get("accelerators") if isinstance(document, Mapping) else None
    if not isinstance(rows, list):
        raise InputError([Problem("expected a list under 'accelerators'", file=file)])
    problems: list[Problem] = []
    found: dict[str, Accelerator] = {}
    for index, row in enumerate(rows):
        try:
            accelerator = parse_row(row, file=file, place=f"accelerators[{index}]")
        except InputError as error:
            problems += error.problems
        else:
            if accelerator.id in found:
                problems.append(Problem(f"the id {accelerator.id!r} is used twice", file=file))
            found[accelerator.id] = accelerator
    problems += [Problem(message, file=file) for message in _alias_clashes(found.values())]
    if problems:
        raise InputError(problems)
    return found


def parse_row(row: object, file: str = "<string>", place: str = "accelerator") -> Accelerator:
    """One accelerator from one entry of the data file, checked and converted to base units.

    Raises InputError listing every problem of the entry.
    """
    if not isinstance(row, Mapping):
        raise InputError([Problem("expected a mapping", file=file, field=place)])
    problems = _problems(row)
    if problems:
        raise InputError(
            [
                Problem(message, file=file, field=f"{place}.{key}" if key else place)
                for key, message in problems
            ]
        )
    power = row.get("board_power_w")
    return Accelerator(
        id=str(row["id"]),
        name=str(row["name"]),
        vendor=str(row["vendor"]),
        peak_flops={
            precision: float(row[key]) * TERA
            for precision, key in _PEAK_KEYS.items()
            if row.get(key) is not None
        },
        hbm_bytes=float(row["hbm_gib"]) * GIB,
        hbm_bytes_per_s=float(row["hbm_tb_per_s"]) * TERA,
        scale_up_domain=int(row["scale_up_domain"]),
        scale_up_bytes_per_s=float(row["scale_up_gb_per_s"]) * GB,
        scale_out_bytes_per_s=float(row["scale_out_gbit_per_s"]) * GB / BITS_PER_BYTE,
        usual_node_size=int(row["usual_node_size"]),
        scale_up_spans_nodes=bool(row.get("scale_up_spans_nodes", False)),
        scale_up_mesh=bool(row.get("scale_up_mesh", False)),
        power_w=None if power is None else float(power),
        confidence=str(row["confidence"]),
        assumed=tuple(map(str, row.get("assumed", ()))),
        source="; ".join(map(str, row["sources"])),
        date=str(row["date"]),
        note=str(row.get("note", "")),
        aliases=tuple(map(str, row.get("aliases", ()))),
    )


def alias_table(accelerators: Iterable[Accelerator]) -> dict[str, Accelerator]:
    """Every accelerator by its normalised id, name and aliases."""
    return {
        normalise(name): accelerator
        for accelerator in accelerators
        for name in (accelerator.id, accelerator.name, *accelerator.aliases)
    }


def _problems(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(field, message) of everything wrong with an entry."""
    found = [(key, "unknown field") for key in row if key not in _ALL_KEYS]
    found += [
        (key, "is missing")
        for key in (*_REQUIRED_NUMBERS, *_REQUIRED_TEXTS)
        if row.get(key) in (None, "")
    ]
    for key in (*_REQUIRED_NUMBERS, *_OPTIONAL_NUMBERS):
        value = row.get(key)
        if value is None:
            continue
        if not _is_positive(value):
            found.append((key, f"must be a number above 0, not {value!r}"))
        elif key in _WHOLE_NUMBERS and not isinstance(value, int):
            found.append((key, f"must be a whole number, not {value!r}"))
    if row.get("confidence") not in (None, *CONFIDENCES):
        found.append(("confidence", f"must be one of {', '.join(CONFIDENCES)}"))
    for key in ("aliases", "sources", "assumed"):
        if not isinstance(row.get(key, []), list):
            found.append((key, "must be a list"))
    if not row.get("sources"):
        found.append(("sources", "name at least one public source"))
    bf16, fp8, fp4 = (row.get(_PEAK_KEYS[precision]) for precision in ("bf16", "fp8", "fp4"))
    # INT8 may be slower than BF16 (B300 dropped most of its INT8 units); floating point never is.
    if _is_positive(bf16) and _is_positive(fp8) and fp8 < bf16:
        found.append((_PEAK_KEYS["fp8"], f"{fp8} is below the BF16 peak {bf16}"))
    if _is_positive(fp8) and _is_positive(fp4) and fp4 < fp8:
        found.append((_PEAK_KEYS["fp4"], f"{fp4} is below the FP8 peak {fp8}"))
    return found


def _alias_clashes(accelerators: Iterable[Accelerator]) -> list[str]:
    owners: dict[str, str] = {}
    clashes = []
    for accelerator in accelerators:
        for name in (accelerator.id, accelerator.name, *accelerator.aliases):
            owner = owners.setdefault(normalise(name), accelerator.id)
            if owner != accelerator.id:
                clashes.append(f"{name!r} names both {owner} and {accelerator.id}")
    return clashes


def _is_positive(value: object) -> TypeGuard[float]:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value > 0
    )


def _tidy(value: float) -> float:
    """Without the dust of a unit conversion there and back."""
    return float(f"{value:.12g}")
