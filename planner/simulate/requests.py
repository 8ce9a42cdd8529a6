"""The requests of a component while they are simulated: plain lists, one entry a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.simulate.records import NO_PLACE, Bools, Floats, Ints, Outcome, RequestLog

NAN = float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """Requests to simulate, arrays (R,) in order of arrival."""

    class_index: Ints
    arrival_s: Floats
    input_tokens: Ints
    cached_tokens: Ints
    output_tokens: Ints
    hidden_tokens: Ints
    counted: Bools
    block_ids: tuple[Sequence[int], ...] | None = None
    """Blocks of each prompt in a prefix cache; None: `cached_tokens` are found anyhow."""
    block_tokens: int = 1

    def __len__(self) -> int:
        return len(self.arrival_s)


class Requests:
    """Fixed facts and the state of every request, by its index.

    Requests that fill the engines at the start have no arrival: they stand behind the `count`
    real ones, and leave no trace in the log.
    """

    def __init__(self, arrivals: Arrivals) -> None:
        count = len(arrivals)
        self.count = count
        self.class_index: list[int] = arrivals.class_index.tolist()
        self.arrival_s: list[float] = arrivals.arrival_s.tolist()
        self.inputs: list[int] = arrivals.input_tokens.tolist()
        self.found: list[int] = arrivals.cached_tokens.tolist()
        self.outputs: list[int] = arrivals.output_tokens.tolist()
        self.hidden: list[int] = arrivals.hidden_tokens.tolist()
        self.counted: list[bool] = arrivals.counted.tolist()
        self.blocks = arrivals.block_ids
        self.block_tokens = arrivals.block_tokens
        self.prefill_start_s = [NAN] * count
        self.engine_first_s = [NAN] * count
        self.first_s = [NAN] * count
        self.visible_s = [NAN] * count
        self.finish_s = [NAN] * count
        self.shift_s = [0.0] * count
        """What the user waits longer than the engine works, for every token alike."""
        self.done = [0] * count
        """Prompt tokens in the cache of the replica that works on it, found ones included."""
        self.need = list(self.inputs)
        """Tokens to be in the cache before decoding: the prompt, after a preemption also what
        was generated."""
        self.generated = [0] * count
        self.prefill_pool = [NO_PLACE] * count
        self.prefill_replica = [NO_PLACE] * count
        self.decode_pool = [NO_PLACE] * count
        self.decode_replica = [NO_PLACE] * count
        self.preemptions = [0] * count
        self.restarts = [0] * count
        self.outcome = [int(Outcome.UNFINISHED)] * count

    def add(self, class_index: int, inputs: int, outputs: int, generated: int) -> int:
        """One more request, that was there before the start; its index."""
        index = len(self.inputs)
        self.class_index.append(class_index)
        self.arrival_s.append(0.0)
        self.inputs.append(inputs)
        self.found.append(0)
        self.outputs.append(outputs)
        self.hidden.append(0)
        self.counted.append(False)
        for times in (
            self.prefill_start_s,
            self.engine_first_s,
            self.first_s,
            self.visible_s,
            self.finish_s,
        ):
            times.append(NAN)
        self.shift_s.append(0.0)
        self.done.append(inputs)
        self.need.append(inputs)
        self.generated.append(generated)
        for places in (
            self.prefill_pool,
            self.prefill_replica,
            self.decode_pool,
            self.decode_replica,
        ):
            places.append(NO_PLACE)
        self.preemptions.append(0)
        self.restarts.append(0)
        self.outcome.append(int(Outcome.UNFINISHED))
        return index

    def blocks_of(self, index: int) -> Sequence[int]:
        """Block ids of a prompt; empty where it has none."""
        if self.blocks is None or index >= self.count:
            return ()
        return self.blocks[index]

    def log(self, arrived: int) -> RequestLog:
        """The first `arrived` requests as arrays."""

        def whole(values: Sequence[int]) -> Ints:
            return np.array(values[:arrived], dtype=np.int64)

        def real(values: Sequence[float]) -> Floats:
            return np.array(values[:arrived], dtype=np.float64)

        return RequestLog(
            class_index=whole(self.class_index),
            arrival_s=real(self.arrival_s),
            prefill_start_s=real(self.prefill_start_s),
            engine_first_token_s=real(self.engine_first_s),
            first_token_s=real(self.first_s),
            visible_first_token_s=real(self.visible_s),
            finish_s=real(self.finish_s),
            input_tokens=whole(self.inputs),
            cached_tokens=whole(self.found),
            output_tokens=whole(self.outputs),
            hidden_tokens=whole(self.hidden),
            generated_tokens=whole(self.generated),
            prefill_pool=whole(self.prefill_pool),
            prefill_replica=whole(self.prefill_replica),
            decode_pool=whole(self.decode_pool),
            decode_replica=whole(self.decode_replica),
            preemptions=whole(self.preemptions),
            restarts=whole(self.restarts),
            outcome=whole(self.outcome),
            counted=np.array(self.counted[:arrived], dtype=np.bool_),
        )
