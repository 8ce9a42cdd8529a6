"""From single values to a checked measurement: conversions, load, and what cannot be.

Tools differ in what they call the time per output token. One that counts the first token,
e2e / output, becomes (incl x output - ttft) / (output - 1). Means need care: of the mean of
ratios and the ratio of means, tools give the one or the other, and they part when lengths vary.
What parts by more than a factor of two is a wrong unit or a wrong count, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from planner.calibrate.formats.node import Node
from planner.calibrate.measurement import Measurement, Recorded
from planner.errors import InputError, Problem

MS: Final = 1e-3

LONGEST_TTFT_S: Final = 3_600.0
LONGEST_TPOT_S: Final = 5.0
SHORTEST_TPOT_S: Final = 1e-4
SHORTEST_TTFT_S: Final = 1e-4
"""Outside these no server is measured; a time written in another unit often is."""
MOST_APART: Final = 2.0
"""Allowed ratio between the TPOT of a file and the one that its other means give."""
SAME: Final = 0.01
"""Relative difference below which two means count as one; rounding in a file stays under it."""
MOST_OVERFULL: Final = 1.5
"""Requests in flight by Little's law over the concurrency; the start and the end of a run, and
answers of different lengths, stay below."""
TOLD_APART: Final = 0.03
"""Relative difference above which two readings of TPOT are different statements."""
ROUNDING: Final = 1.001

NOT_STREAMED: Final = "were the answers streamed? without it the first token has no time"


@dataclass(slots=True)
class Draft:
    """Values of one run as they are read, each with the node that it came from."""

    node: Node
    format: str
    sources: dict[str, Node] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take(self, name: str, node: Node | None, scale: float = 1.0, hint: str = "") -> None:
        """Read a number above 0, times `scale`, under `name`; nothing if there is no node."""
        if node is not None:
            self.values[name] = node.positive(hint) * scale
            self.sources[name] = node

    def take_tpot(self, node: Node | None, scale: float) -> None:
        """Read TPOT without the first token; answers of one token have none.

        Output tokens must have been taken before. Raises InputError on a TPOT of zero, which
        tools write where there were no tokens to time.
        """
        if node is None or self.values["output_tokens"] <= 1:
            return
        self.take("tpot_s", node, scale, NOT_STREAMED)

    def get(self, name: str) -> float | None:
        """The value under this name, in base units, if there is one."""
        return self.values.get(name)

    def derive(self, name: str, value: float, note: str, source: Node) -> None:
        """Set a value that no field holds, and say how it came about."""
        self.values[name] = value
        self.sources[name] = source
        self.notes.append(note)

    def tpot_of_means_s(self) -> float | None:
        """(e2e - ttft) / (output - 1) of the means, where all three are known and it exists."""
        e2e_s, ttft_s = self.get("e2e_s"), self.get("ttft_s")
        gaps = self.values["output_tokens"] - 1
        if e2e_s is None or ttft_s is None or gaps <= 0 or e2e_s <= ttft_s:
            return None
        return (e2e_s - ttft_s) / gaps

    def tpot_from_means(self) -> bool:
        """Set TPOT from mean e2e, TTFT and output where the file has none; True if it could."""
        tpot_s = self.tpot_of_means_s()
        if tpot_s is None:
            return False
        self.derive(
            "tpot_s",
            tpot_s,
            "TPOT is (e2e - TTFT) / (output - 1) of the means",
            self.sources["e2e_s"],
        )
        return True

    def tpot_from_inclusive(self, inclusive: Node, scale: float) -> None:
        """Set TPOT from a time per token that counts the first: e2e / output.

        Raises InputError when TTFT is unknown or the result is not above 0.
        """
        ttft_s, output = self.get("ttft_s"), self.values["output_tokens"]
        if output <= 1:
            return
        if ttft_s is None:
            raise inclusive.error(
                "counts the first token, and there is no time to first token to take it out"
            )
        tpot_s = (inclusive.positive() * scale * output - ttft_s) / (output - 1)
        if tpot_s <= 0:
            raise inclusive.error(
                f"times {output:g} output tokens is below the time to first token",
                "one of the two is in another unit, or not what it is called",
            )
        self.derive("tpot_s", tpot_s, "TPOT is without the first token, taken out", inclusive)

    def need_tpot(self, *keys: str) -> None:
        """Raise InputError for a missing TPOT below `keys`, unless answers have one token."""
        if "tpot_s" not in self.values and self.values["output_tokens"] > 1:
            raise self.node.missing(
                *keys, hint="without it, or e2e with time to first token, nothing can be compared"
            )

    def mean_e2e_s(self) -> float | None:
        """e2e as recorded, else ttft + tpot (output - 1)."""
        e2e_s, ttft_s = self.get("e2e_s"), self.get("ttft_s")
        if e2e_s is not None or ttft_s is None:
            return e2e_s
        return ttft_s + self.values.get("tpot_s", 0.0) * (self.values["output_tokens"] - 1)

    def take_load(self, limit: Node | None, *, closed: bool, measured: Node | None = None) -> None:
        """Set concurrency: the limit of a closed loop, else as measured, else by Little's law.

        `closed` says that every place is taken again at once, so that the limit is reached.
        """
        if limit is not None and closed:
            self.take("concurrency", limit)
        elif measured is not None:
            self.take("concurrency", measured)
        else:
            rate_per_s, e2e_s = self.get("request_rate_per_s"), self.mean_e2e_s()
            if rate_per_s is not None and e2e_s is not None:
                flight = rate_per_s * e2e_s
                most = limit.positive() if limit is not None else flight
                self.derive(
                    "concurrency",
                    min(flight, most),
                    "concurrency by Little's law: requests/s x mean e2e",
                    limit or self.node,
                )
            else:
                self.take("concurrency", limit)

    def finish(
        self,
        *,
        requests: int | None,
        failed: int | None,
        tpot_percentiles_s: Mapping[float, float],
        ttft_percentiles_s: Mapping[float, float],
        recorded: Recorded | None = None,
        cached_fraction: float | None = None,
        disaggregated: bool | None = None,
    ) -> Measurement:
        """The measurement. Raises InputError with every value that cannot be as it is written."""
        problems = [*self._implausible(), *self._inconsistent(), *self._overfull()]
        if problems:
            raise InputError(problems)
        value = self.values.get
        return Measurement(
            file=self.node.file,
            place=self.node.place,
            format=self.format,
            input_tokens=self.values["input_tokens"],
            output_tokens=self.values["output_tokens"],
            concurrency=value("concurrency"),
            request_rate_per_s=value("request_rate_per_s"),
            duration_s=value("duration_s"),
            requests=requests,
            failed=failed,
            tpot_s=value("tpot_s"),
            ttft_s=value("ttft_s"),
            e2e_s=value("e2e_s"),
            tpot_percentiles_s=tpot_percentiles_s,
            ttft_percentiles_s=ttft_percentiles_s,
            output_tokens_per_s=value("output_tokens_per_s"),
            cached_fraction=cached_fraction,
            accepted_tokens_per_step=value("accepted_tokens_per_step"),
            disaggregated=disaggregated,
            recorded=recorded or Recorded(),
            notes=tuple(self.notes),
        )

    def _problem(self, name: str, message: str, hint: str) -> Problem:
        return self.sources[name].problem(message, hint)

    def _implausible(self) -> list[Problem]:
        bounds = (
            ("tpot_s", SHORTEST_TPOT_S, LONGEST_TPOT_S, "between two tokens"),
            ("ttft_s", SHORTEST_TTFT_S, LONGEST_TTFT_S, "to the first token"),
        )
        problems: list[Problem] = []
        for name, least, most, what in bounds:
            value = self.get(name)
            if value is None:
                continue
            if value > most:
                message = f"would be {value:,.6g} s {what}, which no server takes"
                problems.append(
                    self._problem(name, message, "likely a wrong unit: milliseconds for seconds?")
                )
            elif value < least:
                message = f"would be {value * 1e6:,.3g} microseconds {what}, which no server can"
                problems.append(
                    self._problem(name, message, "likely a wrong unit: seconds for milliseconds?")
                )
        accepted = self.get("accepted_tokens_per_step")
        if accepted is not None and accepted < 1:
            problems.append(
                self._problem(
                    "accepted_tokens_per_step",
                    f"{accepted:g} tokens per step are fewer than the model alone makes",
                    "count the model's own token too, so at least 1; or is it a share?",
                )
            )
        return problems

    def _inconsistent(self) -> list[Problem]:
        e2e_s, ttft_s, tpot_s = self.get("e2e_s"), self.get("ttft_s"), self.get("tpot_s")
        if e2e_s is None:
            return []
        for name, value in (("ttft_s", ttft_s), ("tpot_s", tpot_s)):
            if value is not None and value > e2e_s * ROUNDING:
                return [
                    self._problem(
                        name,
                        f"would be {value:.6g} s, longer than the whole request, {e2e_s:.6g} s",
                        "likely a wrong unit in one of the two",
                    )
                ]
        of_means_s = self.tpot_of_means_s()
        if tpot_s is None or of_means_s is None:
            return []
        inclusive_s = e2e_s / self.values["output_tokens"]
        if (
            abs(tpot_s - inclusive_s) <= SAME * inclusive_s
            and abs(tpot_s - of_means_s) > TOLD_APART * of_means_s
        ):
            return [
                self._problem(
                    "tpot_s",
                    f"is e2e / output tokens, {inclusive_s * 1e3:.4g} ms: it counts the first",
                    "give the time without it, (e2e - ttft) / (output - 1) = "
                    f"{of_means_s * 1e3:.4g} ms",
                )
            ]
        if not 1 / MOST_APART <= tpot_s / of_means_s <= MOST_APART:
            return [
                self._problem(
                    "tpot_s",
                    f"is {tpot_s * 1e3:.4g} ms, but (e2e - ttft) / (output - 1) of the same run "
                    f"is {of_means_s * 1e3:.4g} ms",
                    "likely a wrong unit, or tokens counted in another way",
                )
            ]
        return []

    def _overfull(self) -> list[Problem]:
        """More in flight by Little's law than there was room for; and tokens per GPU for all."""
        rate_per_s, e2e_s = self.get("request_rate_per_s"), self.mean_e2e_s()
        concurrency, tokens_per_s = self.get("concurrency"), self.get("output_tokens_per_s")
        problems: list[Problem] = []
        if rate_per_s is None:
            return problems
        if concurrency is not None and e2e_s is not None:
            flight = rate_per_s * e2e_s
            if flight > MOST_OVERFULL * concurrency:
                problems.append(
                    self._problem(
                        "concurrency",
                        f"is {concurrency:.4g}, but {rate_per_s:.4g} requests/s of {e2e_s:.4g} s "
                        f"each are {flight:.4g} at once",
                        "likely a wrong unit of a time, or the concurrency of one of several",
                    )
                )
        if tokens_per_s is not None:
            expected = rate_per_s * self.values["output_tokens"]
            if not 1 / MOST_APART <= tokens_per_s / expected <= MOST_APART:
                problems.append(
                    self._problem(
                        "output_tokens_per_s",
                        f"would be {tokens_per_s:.4g} tokens/s, but requests/s x output tokens "
                        f"are {expected:.4g}",
                        "give that of the whole deployment, not of one GPU or user",
                    )
                )
        return problems
