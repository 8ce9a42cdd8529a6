"""Exact dominance: options that no optimal fleet needs.

Inside one model, accelerator, node size and role, option A makes option B useless when B's
GPUs hold `copies` = floor(gpus_B / gpus_A) >= 1 replicas of A, and those copies carry every
load that one replica of B does: B's loads are {x >= 0: row_s(B) x <= 1 for every row s}, so

    max over that set of row_r(A) x  <=  min over s of max_k A[r,k] / B[s,k]  <=  copies

for every row r is enough (a single row of B is a relaxation of its set). A must admit every
class of B. Never across accelerators: their prices, stock and idle nodes differ. Prefill
options are compared by load as well: copies of A must have at least the capacity of B for
every number of replicas.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from planner.candidates.options import PoolOption

Floats = NDArray[np.float64]

CHECKED_REPLICAS: Final = 64
"""Pool sizes at which prefill capacities are compared; above it both lines have slope 1."""
SLACK: Final = 1e-9


def undominated(options: Sequence[PoolOption]) -> list[PoolOption]:
    """The options that no other makes useless, in their order. Ties keep the first."""
    kept: list[int] = []
    for members in _groups(options, by_kv=True).values():
        chosen = [options[index] for index in members]
        kept.extend(members[position] for position in _survivors(chosen))
    return _without_idle_precisions([options[index] for index in sorted(kept)])


def _groups(options: Sequence[PoolOption], by_kv: bool) -> dict[tuple[str, ...], list[int]]:
    """Indices of options that may be compared: same model, hardware and role; prefill and decode
    options also in the same KV precision unless `by_kv` is off.
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, option in enumerate(options):
        kv = option.config.kv_precision if by_kv and option.role != "aggregated" else ""
        hardware = (option.config.accelerator.id, str(option.gpus_per_node))
        groups[option.model, *hardware, option.role, kv].append(index)
    return groups


def _without_idle_precisions(options: list[PoolOption]) -> list[PoolOption]:
    """Drop a KV precision of prefill and decode pools that another replaces everywhere.

    Caches move inside one precision, so an option alone cannot be replaced by one of another
    precision; but all of a model's options on a vendor's chips can, together, when each is
    dominated: the whole exchange then moves over.
    """
    beaten: dict[tuple[str, str, str, str], list[bool]] = defaultdict(list)
    split = [option for option in options if option.role != "aggregated"]
    for members in _groups(split, by_kv=False).values():
        chosen = [split[index] for index in members]
        table = _Rows(chosen)
        precisions = sorted({option.config.kv_precision for option in chosen})
        for mine in precisions:
            for other in precisions:
                if mine == other:
                    continue
                first = chosen[0]
                key = (first.model, first.config.accelerator.vendor, mine, other)
                targets = [
                    position
                    for position, option in enumerate(chosen)
                    if option.config.kv_precision == mine
                ]
                covered = set()
                for position, option in enumerate(chosen):
                    if option.config.kv_precision == other:
                        covered |= set(table.beaten_by(position, np.array(targets)))
                beaten[key].append(len(covered) == len(targets))
        if len(precisions) == 1:
            # Hardware that knows one precision only can be left to no other.
            first = chosen[0]
            for other in ("bf16", "fp8"):
                if other != precisions[0]:
                    key = (first.model, first.config.accelerator.vendor, precisions[0], other)
                    beaten[key].append(False)
    idle: set[tuple[str, str, str]] = set()
    for (model, vendor, mine, other), flags in sorted(beaten.items(), reverse=True):
        if all(flags) and (model, vendor, other) not in idle:
            idle.add((model, vendor, mine))
    return [
        option
        for option in options
        if option.role == "aggregated"
        or (option.model, option.config.accelerator.vendor, option.config.kv_precision) not in idle
    ]


class _Rows:
    """Options as arrays, for comparing one with many."""

    def __init__(self, options: Sequence[PoolOption]) -> None:
        self.options = options
        classes = sorted({k for option in options for k in option.classes})
        self.rows = np.stack([option.coefficients[:, classes] for option in options])
        self.gpus = np.array([float(option.gpus) for option in options])
        self.served = np.asarray(np.isfinite(self.rows).all(axis=1))

    def beaten_by(self, position: int, rest: NDArray[np.int64]) -> list[int]:
        """Which of the options at `rest` the one at `position` makes useless."""
        beaten = rest[_dominates(position, rest, self.rows, self.gpus, self.served)].tolist()
        return [other for other in beaten if _carries(self.options[position], self.options[other])]


def _survivors(options: Sequence[PoolOption]) -> list[int]:
    """Positions that survive, testing the most capable per GPU first."""
    table = _Rows(options)
    use = np.where(np.isfinite(table.rows), table.rows, 0.0).max(axis=1) * table.gpus[:, None]
    count = table.served.sum(axis=1)
    # Serve many classes at few GPUs per request: such options dominate most.
    score = np.where(table.served, use, 0.0).sum(axis=1) / np.maximum(count, 1)
    alive = np.ones(len(options), dtype=bool)
    for position in np.lexsort((score, -count)).tolist():
        if not alive[position]:
            continue
        rest = np.flatnonzero(alive)
        rest = rest[rest != position]
        if len(rest):
            alive[table.beaten_by(position, rest)] = False
    return np.flatnonzero(alive).tolist()


def _dominates(
    position: int, rest: NDArray[np.int64], rows: Floats, gpus: Floats, served: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of `rest` the option at `position` makes useless by its rows."""
    copies = np.floor(gpus[rest] / gpus[position] + SLACK)
    covers = (served[position] | ~served[rest]).all(axis=1) & (copies >= 1)
    result = np.zeros(len(rest), dtype=bool)
    candidates = np.flatnonzero(covers)
    if not len(candidates):
        return result
    own = np.where(np.isfinite(rows[position]), rows[position], 0.0)
    other = rows[rest[candidates]]
    theirs = np.where(served[rest[candidates]][:, None, :], other, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        # (candidates, own rows, their rows): worst use of one of my rows by a load that fills
        # one of theirs; classes they do not serve contribute nothing.
        ratio = np.where(
            own[None, :, None, :] > 0, own[None, :, None, :] / theirs[:, None, :, :], 0.0
        ).max(axis=3)
    worst = ratio.min(axis=2).max(axis=1)
    result[candidates] = worst <= copies[candidates] * (1 + SLACK)
    return result


def _carries(option: PoolOption, other: PoolOption) -> bool:
    """Whether copies of an option may stand in wherever another may, and in prefill pools carry
    what any number of its replicas does; elsewhere the rows say that.
    """
    if option.least_replicas > (other.gpus // option.gpus) * other.least_replicas:
        return False
    if option.capacity is None or other.capacity is None:
        return True
    if option.service_s is None or other.service_s is None:
        return True
    copies = other.gpus // option.gpus
    columns = list(other.classes)
    ratio = float((option.service_s[columns] / other.service_s[columns]).max())
    replicas = np.arange(1, CHECKED_REPLICAS + 1)
    mine = option.capacity.load(copies * replicas)
    theirs = other.capacity.load(replicas)
    # Beyond the table both grow by their slope per replica, so the end decides.
    mine_grows, theirs_grow = copies * option.capacity.slope, other.capacity.slope
    grows = mine_grows >= ratio * theirs_grow * (1 - SLACK)
    return bool((mine >= ratio * theirs * (1 - SLACK)).all() and grows)
