"""Step times of one pool as tables, so that an event of the simulation costs no array call.

Everything is read off the performance model once: the token part of a step by its tokens, the
part that one sequence adds by its context (with its bytes of cache) as straight pieces, and the
attention of a prompt as a running sum over its tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from planner.perf.coefficients import StepModel
from planner.simulate.records import Floats, Ints

DENSE: Final = 4096
"""Whole numbers of tokens tabulated one by one; above, every `STRIDE`-th, and straight between."""
STRIDE: Final = 64
STRAIGHT_ERROR: Final = 1e-5
"""Largest error of a straight piece, as a share of the largest value."""


class Curve:
    """A function of a whole number, tabulated: exact up to `DENSE`, straight pieces above.

    `function` takes and returns float arrays (N,).
    """

    __slots__ = ("_coarse", "_dense")

    def __init__(self, function: Callable[[Floats], Floats], largest: int) -> None:
        dense = np.arange(min(largest, DENSE) + 1, dtype=np.float64)
        self._dense: list[float] = np.asarray(function(dense)).tolist()
        coarse = np.arange(0.0, largest + 2 * STRIDE, STRIDE)
        self._coarse: list[float] = np.asarray(function(coarse)).tolist()

    def __call__(self, count: int) -> float:
        if count < len(self._dense):
            return self._dense[count]
        place, rest = divmod(count, STRIDE)
        low = self._coarse[place]
        return low + (self._coarse[place + 1] - low) * (rest / STRIDE)


class Growth:
    """What a sequence adds to a step, and the cache it holds, by its context: straight pieces.

    Piece p covers contexts up to `ends[p]`; there a step takes `step_at[p] + step_slope[p] x
    context` seconds longer, and the cache holds `bytes_at[p] + bytes_slope[p] x context`.
    """

    __slots__ = ("bytes_at", "bytes_slope", "ends", "step_at", "step_slope")

    def __init__(self, step_s: Floats, held_bytes: Floats) -> None:
        """From both values at 0, 1, 2, ... tokens, (M,) with M at least 2."""
        knots = _knots((step_s, held_bytes))
        starts, ends = knots[:-1], knots[1:]
        self.ends: list[float] = [*ends[:-1].astype(float).tolist(), float("inf")]
        self.step_slope, self.step_at = _pieces(step_s, starts, ends)
        self.bytes_slope, self.bytes_at = _pieces(held_bytes, starts, ends)

    def piece(self, context: float) -> int:
        """The piece that holds a context."""
        return bisect_right(self.ends, context)

    def held_bytes(self, context: float) -> float:
        """Cache of a sequence, bytes of the room of a replica."""
        piece = bisect_right(self.ends, context)
        return self.bytes_at[piece] + self.bytes_slope[piece] * context


def _pieces(values: Floats, starts: Ints, ends: Ints) -> tuple[list[float], list[float]]:
    slope = (values[ends] - values[starts]) / (ends - starts)
    return slope.tolist(), (values[starts] - slope * starts).tolist()


def _knots(curves: Sequence[Floats]) -> Ints:
    """Where straight pieces must meet to stay within `STRAIGHT_ERROR` of every curve.

    A piece is split where it is furthest from the curve (Ramer, Douglas and Peucker), which
    finds the ends of windows exactly.
    """
    last = len(curves[0]) - 1
    knots = {0, last}
    stack = [(0, last)]
    while stack:
        start, end = stack.pop()
        if end - start < 2:
            continue
        share = np.arange(end - start + 1) / (end - start)
        worst, at = 0.0, start
        for curve in curves:
            chord = curve[start] + (curve[end] - curve[start]) * share
            error = np.abs(curve[start : end + 1] - chord)
            largest = int(np.argmax(error))
            relative = float(error[largest]) / max(float(np.abs(curve).max()), 1e-300)
            if relative > worst:
                worst, at = relative, start + largest
        if worst > STRAIGHT_ERROR:
            knots.add(at)
            stack += [(start, at), (at, end)]
    return np.array(sorted(knots), dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class StepTables:
    """Step times and memory of one replica. Seconds, bytes of one GPU, tokens of the replica.

    A step with B sequences and prompt chunks of which the fullest lane has c tokens, all lanes
    together C, takes `shared_s(B q + lanes c) + experts_s(B q + C) + head_s + draft_s(B)` plus
    what the sequences and the attention of the chunks add; q tokens of a sequence are verified.
    Lanes step together: attention and dense layers wait for the fullest, experts share all tokens.
    """

    lanes: int
    stages: int
    chunk_tokens: int
    """Prompt and decode tokens of one lane in one step, at most."""
    verified: int
    accepted: float
    shared_s: Curve
    experts_s: Curve
    head_s: Curve
    draft_s: Curve
    decode_s: Curve
    """Step of so many sequences, without what their contexts add."""
    attention_s: list[float]
    """Prefill attention of the first x tokens of a prompt on its lane, by x."""
    prefill_factor: float
    growth: Growth
    room_bytes: float
    longest_bytes: float
    """Cache of one sequence at most: what its own attention group has room for."""
    max_sequences: int
    first_token_steps: float
    """Decode steps that pass before a first token shows (aggregated)."""
    launch_s: float
    launch_per_token_s: float
    """TTFT that no step explains: fixed, and per prompt token."""
    transfer_bytes: Curve
    """Cache that moves from prefill to decode, by prompt tokens."""


def step_tables(step: StepModel, chunk_tokens: int | None, longest_tokens: int) -> StepTables:
    """The tables of the only configuration of `step`.

    `chunk_tokens` None is a decode pool: prompts are only computed again there, in the largest
    chunks that its engine offers. `longest_tokens` is the longest context of its requests.
    """
    lanes = int(step.prompt_lanes(0))
    verified = int(step.verified_tokens_per_step(0))
    sequences = int(step.max_num_seqs(0))
    engine = step.configs[0].engine
    chunk = chunk_tokens or max(engine.chunk_budgets_tokens)
    room = float(step.kv_room_bytes(0, (chunk_tokens or 0) + float(step.max_num_seqs_per_rank(0))))
    groups = step.configs[0].layout.attention_data_parallel
    tokens = lanes * chunk + sequences * verified
    contexts = np.arange(longest_tokens + 2, dtype=np.float64)

    def term(name: str) -> Callable[[Floats], Floats]:
        return lambda count: np.asarray(step.token_terms(0, count)[name] + 0.0 * count)

    def shared(count: Floats) -> Floats:
        terms = step.token_terms(0, count, 0.0)
        return np.asarray(sum(terms[name] for name in terms if name not in ("experts", "head")))

    def decode(count: Floats) -> Floats:
        at_least = np.maximum(count, 1.0)
        return np.asarray(
            step.token_time_s(0, at_least * verified) + step.draft_time_s(0, at_least)
        )

    head_s = Curve(term("head"), sequences * verified + lanes)
    launch = [float(step.ttft_fixed_s(0, prompt)) for prompt in (0.0, 1000.0)]
    return StepTables(
        lanes=lanes,
        stages=step.configs[0].layout.pipeline_parallel,
        chunk_tokens=chunk,
        verified=verified,
        accepted=float(step.accepted_per_step(0)),
        shared_s=Curve(shared, tokens),
        experts_s=Curve(term("experts"), tokens),
        head_s=head_s,
        draft_s=Curve(lambda count: step.draft_time_s(0, np.maximum(count, 1.0)), sequences),
        decode_s=Curve(decode, sequences),
        attention_s=_attention(step, chunk, lanes, head_s(lanes), contexts).tolist(),
        prefill_factor=float(step.prefill_time_factor(0)),
        growth=Growth(step.sequence_time_s(0, contexts), step.kv_bytes_per_sequence(0, contexts)),
        room_bytes=room,
        longest_bytes=room / groups,
        max_sequences=sequences,
        first_token_steps=float(step.ttft_decode_steps(0)),
        launch_s=launch[0],
        launch_per_token_s=(launch[1] - launch[0]) / 1000.0,
        transfer_bytes=Curve(lambda count: step.kv_transfer_bytes(0, count), longest_tokens),
    )


def _attention(step: StepModel, chunk: int, lanes: int, head_s: float, tokens: Floats) -> Floats:
    """Attention seconds of the first `tokens` (M,) of a prompt, on its lane: the time of its
    chunks (`prefill_time_s`) less what the tokens and the output head take of it.
    """
    factor = float(step.prefill_time_factor(0))
    lane_s = step.prefill_time_s(0, tokens, 0.0, float(chunk)) * lanes / factor
    whole, rest = np.divmod(tokens, chunk)
    full_s = float(step.token_time_s(0, float(chunk * lanes), 0.0))
    rest_s = np.where(rest > 0, step.token_time_s(0, rest * lanes, 0.0), 0.0)
    own = lane_s - whole * full_s - rest_s - np.where(tokens > 0, head_s, 0.0)
    return np.asarray(np.maximum.accumulate(np.maximum(own, 0.0)))
