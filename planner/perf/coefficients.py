"""`StepModel`: seconds of one engine step, for many configurations at once.

One step of a replica with T tokens, of which B sequences decode at mean context ctx, takes

    g(T) + B * r(ctx)        (+ the draft model's time under speculative decoding)

g holds everything that depends on the tokens alone (projections, feed-forward, experts, head,
activation traffic, communication, fixed overhead), r what one sequence adds (its cache or state
read, its attention arithmetic, its bookkeeping). The split is exact, not an approximation: the
compute and memory time of the attention core are both proportional to the visible context.

Within a component, compute c and memory m join as sqrt(c^2 + m^2); components add up. With
`calibrated=False` there are no fitted constants: the step is max(sum of compute, sum of memory,
collectives) at efficiency 1, a bound that no engine beats. Tokens of a pipeline are cut into as
many lanes as there are stages; each lane passes the whole model on one stage's GPUs while other
lanes hold the other stages, so one lane's time is the period of the whole replica.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from planner.perf.memory import Index
from planner.perf.physical import PhysicalModel, join
from planner.perf.work import FloatArray, causal_pairs


class StepModel(PhysicalModel):
    """Step times and memory of a sequence of configurations.

    `i` is an index or int array into `configs`; every method broadcasts `i` against its float
    arguments and returns float64 seconds (or bytes). Token, sequence and context counts are of
    the whole replica; context is tokens per sequence.
    """

    # ---- one step, by parts -------------------------------------------------------------

    def token_terms(
        self,
        i: Index,
        tokens: ArrayLike,
        head_tokens: ArrayLike | None = None,
        coverage_tokens: ArrayLike | None = None,
    ) -> dict[str, FloatArray]:
        """The summands of g(T) of a calibrated step, by name, in seconds, with the corrections of
        measured deployments.
        """
        c = self._c
        lane, local, head, hit = self._lanes(i, tokens, head_tokens, coverage_tokens)
        if self.calibrated:
            local = np.maximum(local, 1.0)
        terms = {
            "attention_projections": join(
                self._ce * c["attention_c"][i] * local, self._we * c["attention_m"][i]
            ),
            "dense_ffn": join(self._ce * c["ffn_c"][i] * local, self._we * c["ffn_m"][i]),
            "experts": join(
                self._ce * c["expert_c"][i] * (lane * c["active"][i] + self._tile * hit),
                self._we * c["expert_m"][i] * hit,
            ),
            "head": np.where(
                head > 0,
                join(self._ce * c["head_c"][i] * head, self._we * c["head_m"][i]),
                0.0,
            ),
            "activations": self._we * c["activation_m"][i] * local,
            "communication": c["comm_fixed"][i] + c["comm_slope"][i] * local,
            "overhead": self._overhead_s[i] + 0.0 * local,
        }
        factor = self._step_factor[i]
        measured = {name: factor * term for name, term in terms.items()}
        measured["overhead"] = measured["overhead"] + self._step_extra_s[i]
        return measured

    # ---- decode -------------------------------------------------------------------------

    def token_time_s(
        self,
        i: Index,
        tokens: ArrayLike,
        head_tokens: ArrayLike | None = None,
        coverage_tokens: ArrayLike | None = None,
    ) -> FloatArray:
        """g(T): the part of a step that its `tokens` cause, convex and increasing in them at fixed
        `coverage_tokens` (the tokens that decide how many distinct experts are read; default T).
        `head_tokens` pass the output head, default all.
        """
        if not self.calibrated:
            return _longest(self._token_bound(i, tokens, head_tokens, coverage_tokens))
        total: FloatArray = np.zeros(())
        for term in self.token_terms(i, tokens, head_tokens, coverage_tokens).values():
            total = total + term
        return total

    def sequence_time_s(self, i: Index, context: ArrayLike) -> FloatArray:
        """r(ctx): what one decoding sequence at `context` tokens adds to a step of the replica.

        Concave in the context (windows and top-k cap what is visible), so the mean context gives
        an upper bound on the mean.
        """
        compute, memory, joined = self._core_terms(i, context)
        spread = self._c["groups"][i] * self._c["stages"][i]
        if not self.calibrated:
            return np.maximum(compute, memory) / spread
        return self._step_factor[i] * (joined + self._sequence_overhead_s[i]) / spread

    def decode_step_s(self, i: Index, sequences: ArrayLike, context: ArrayLike) -> FloatArray:
        """One decode step of `sequences` sequences of the replica at mean `context`:
        g(B q) + B r(ctx) + draft, q = draft tokens + 1 under speculation, else 1.
        """
        batch = np.asarray(sequences, dtype=np.float64)
        tokens = batch * self._c["queries"][i]
        draft = self.draft_time_s(i, batch)
        if self.calibrated:
            return self.token_time_s(i, tokens) + batch * self.sequence_time_s(i, context) + draft
        compute, memory, collective = self._token_bound(i, tokens, None, None)
        core_c, core_m, _ = self._core_terms(i, context)
        spread = self._c["groups"][i] * self._c["stages"][i]
        return (
            _longest(
                (compute + batch * core_c / spread, memory + batch * core_m / spread, collective)
            )
            + draft
        )

    def draft_time_s(self, i: Index, sequences: ArrayLike) -> FloatArray:
        """Time of the draft model in one step: for each draft token its bf16 weights are read
        once and every sequence of a lane multiplied; 0 without speculation. The bound counts
        max instead of the joined time.
        """
        batch = np.asarray(sequences, dtype=np.float64) / self._c["stages"][i]
        compute, memory = self._c["draft_c"][i] * batch, self._c["draft_m"][i]
        if self.calibrated:
            joined = join(self._ce * compute, self._we * memory)
            return self._step_factor[i] * (joined + self._draft_overhead_s[i])
        return np.maximum(compute, memory)

    def accepted_per_step(self, i: Index) -> FloatArray:
        """Tokens a step yields per sequence: 1 without speculation."""
        return self._c["accepted"][i]

    def verified_tokens_per_step(self, i: Index) -> FloatArray:
        """Tokens a step computes per sequence: draft tokens + 1 under speculation, else 1."""
        return self._c["queries"][i]

    def prompt_lanes(self, i: Index) -> FloatArray:
        """Prompts a replica works on at once: one per attention group and pipeline stage."""
        return self._c["groups"][i] * self._c["stages"][i]

    def prefill_time_factor(self, i: Index) -> FloatArray:
        """The factor on prefill time of a measured deployment; 1 elsewhere and in the bound."""
        factor: FloatArray = self._prefill_factor[i]
        return factor

    # ---- prefill ------------------------------------------------------------------------

    def mixed_step_s(
        self,
        i: Index,
        sequences: ArrayLike,
        context: ArrayLike,
        tokens: ArrayLike,
        pairs: ArrayLike,
        prompts: ArrayLike = 1.0,
    ) -> FloatArray:
        """One step that decodes `sequences` and prefills `tokens` prompt tokens with `pairs`
        causal query-key pairs; `prompts` of the prompts end in it and need the output head.
        """
        batch = np.asarray(sequences, dtype=np.float64)
        chunk = np.asarray(tokens, dtype=np.float64)
        verified = batch * self._c["queries"][i]
        head = verified + np.asarray(prompts, dtype=np.float64)
        spread = self._c["groups"][i] * self._c["stages"][i]
        own = chunk / spread
        visible = np.asarray(pairs, dtype=np.float64) / np.maximum(chunk, 1e-9)
        end = np.where(chunk > 0, visible + own / 2, 0.0)
        pair_c, pair_m, pair_joined = self._pair_terms(
            i,
            [own * np.minimum(visible, core.cap_tokens[i]) for core in self._cores],
            own * visible,
            [np.minimum(end, core.cap_tokens[i] + own) for core in self._cores],
            end,
            np.where(chunk > 0, 1.0, 0.0),
        )
        if self.calibrated:
            return (
                self.token_time_s(i, verified + chunk, head)
                + batch * self.sequence_time_s(i, context)
                + self._step_factor[i] * pair_joined
            )
        compute, memory, collective = self._token_bound(i, verified + chunk, head, None)
        core_c, core_m, _ = self._core_terms(i, context)
        return _longest(
            (
                compute + batch * core_c / spread + pair_c,
                memory + batch * core_m / spread + pair_m,
                collective,
            )
        )

    def prefill_step_s(self, i: Index, tokens: ArrayLike, pairs: ArrayLike) -> FloatArray:
        """One step of `tokens` prompt tokens with `pairs` causal pairs and nothing else, spread
        evenly over the replica's attention groups and stages; the `prefill_time_factor` of a
        measured deployment is not in it. Windows cap the mean visible context.
        """
        return self.mixed_step_s(i, 0.0, 0.0, tokens, pairs)

    def prefill_time_s(
        self,
        i: Index,
        uncached: ArrayLike,
        cached: ArrayLike,
        chunk_tokens: ArrayLike,
        alone: bool = False,
    ) -> FloatArray:
        """Time to prefill one prompt of `uncached` tokens behind `cached` ones: whole chunks of
        `chunk_tokens` (the budget of one attention group), the rest, the output head once, and
        attention over exact causal pairs.

        Every attention group and every stage works on a prompt of its own. By default the result
        is the share of the replica's time that this prompt takes, on which capacity turns; with
        `alone` it is the time until the prompt's last chunk leaves the last stage, on which TTFT
        turns. The two are equal without attention data parallel and pipeline stages. Both carry
        the `prefill_time_factor` of a measured deployment, neither the engine's `ttft_fixed_s`.
        No uncached token takes no time.
        """
        new = np.asarray(uncached, dtype=np.float64)
        old = np.asarray(cached, dtype=np.float64)
        chunk = np.asarray(chunk_tokens, dtype=np.float64)
        stages = self._c["stages"][i]
        busy = self._prefill_busy_s(i, new, old, chunk)
        if not alone:
            share: FloatArray = busy / (self._c["groups"][i] * stages)
            return share
        if np.all(stages == 1):
            return busy
        # Chunks follow each other through the stages at the pace of the longest, the last full one.
        before = np.maximum(np.floor(new / chunk) - 1, 0.0) * chunk
        longest = self._prefill_busy_s(i, np.minimum(new, chunk), old + before, chunk)
        through: FloatArray = (busy + (stages - 1) * longest) / stages
        return through

    def _prefill_busy_s(
        self, i: Index, new: FloatArray, old: FloatArray, chunk: FloatArray
    ) -> FloatArray:
        """Lane time of a prompt's chunks, all stages together, while every other lane of the
        replica carries a chunk of the same size.
        """
        spread = self._c["groups"][i] * self._c["stages"][i]
        whole = np.floor(new / chunk)
        rest = new - whole * chunk
        some = np.where(rest > 0, 1.0, 0.0)
        steps = whole + some
        # Each chunk reads every key up to its own end, a window at most itself and the chunk.
        all_keys = steps * old + chunk * whole * (whole + 1) / 2 + some * new
        pair_c, pair_m, pair_joined = self._pair_terms(
            i,
            [causal_pairs(new, old, core.cap_tokens[i]) for core in self._cores],
            causal_pairs(new, old, np.inf),
            [
                np.minimum(all_keys, steps * np.minimum(core.cap_tokens[i], 1e12) + new)
                for core in self._cores
            ],
            all_keys,
            steps,
        )
        full, tail, started = chunk * spread, rest * spread, np.where(new > 0, 1.0, 0.0)
        if self.calibrated:
            busy = whole * self.token_time_s(i, full, 0.0) + self._step_factor[i] * pair_joined
            busy = busy + some * self.token_time_s(i, tail, 0.0)
            busy = busy + started * self.token_terms(i, spread, spread)["head"]
            corrected: FloatArray = busy * self._prefill_factor[i]
            return corrected
        c1, m1, n1 = self._token_bound(i, full, 0.0, None)
        c2, m2, n2 = self._token_bound(i, tail, 0.0, None)
        head = started * self._c["head_c"][i], started * self._c["head_m"][i]
        return _longest(
            (
                whole * c1 + some * c2 + head[0] + pair_c,
                whole * m1 + some * m2 + head[1] + pair_m,
                whole * n1 + some * n2,
            )
        )

    def ttft_fixed_s(self, i: Index, prompt: ArrayLike) -> FloatArray:
        """The part of TTFT that no step of the GPU explains: the engine's launches of an uncaptured
        prefill, and tokenizing and checking a prompt of `prompt` tokens; 0 in the bound.
        """
        read_s = self.constants.ttft_token_s * np.asarray(prompt, dtype=np.float64)
        fixed: FloatArray = (self._ttft_launch_s[i] + read_s) * (1.0 if self.calibrated else 0.0)
        return fixed

    def ttft_decode_steps(self, i: Index) -> FloatArray:
        """Decode steps of an aggregated engine that pass, on average, before a first token shows;
        0 in the bound.
        """
        steps = self.constants.ttft_decode_steps if self.calibrated else 0.0
        return np.full_like(self._ttft_launch_s[i], steps)

    def chunk_stall_s(
        self,
        i: Index,
        tokens: ArrayLike,
        sequences: ArrayLike,
        context: ArrayLike,
        pairs_per_token: ArrayLike,
        prompts: ArrayLike = 1.0,
    ) -> FloatArray:
        """What a prefill chunk of `tokens` adds to the decode step of an aggregated engine that
        carries it: S(B, ctx, chunk) - S(B, ctx, 0). `prompts` of the prompts end in the chunk.
        """
        chunk = np.asarray(tokens, dtype=np.float64)
        pairs = chunk * np.asarray(pairs_per_token, dtype=np.float64)
        fused = self.mixed_step_s(i, sequences, context, chunk, pairs, prompts)
        alone = self.decode_step_s(i, sequences, context) - self.draft_time_s(i, sequences)
        return fused - alone

    # ---- for the bill -------------------------------------------------------------------

    def terms(self, i: Index, sequences: ArrayLike, context: ArrayLike) -> dict[str, FloatArray]:
        """A calibrated decode step by named components, in seconds; they add up to
        `decode_step_s`.
        """
        batch = np.asarray(sequences, dtype=np.float64)
        named = self.token_terms(i, batch * self._c["queries"][i])
        spread = self._c["groups"][i] * self._c["stages"][i]
        factor = self._step_factor[i] * batch / spread
        named["attention_kv"] = factor * self._core_terms(i, context)[2]
        named["sequence_overhead"] = factor * self._sequence_overhead_s[i]
        named["draft"] = self.draft_time_s(i, batch)
        return named

    def prefill_terms(self, i: Index, tokens: ArrayLike, pairs: ArrayLike) -> dict[str, FloatArray]:
        """A calibrated prefill step by named components, in seconds; they add up to
        `prefill_step_s`.
        """
        spread = self._c["groups"][i] * self._c["stages"][i]
        named = self.token_terms(i, tokens, np.ones_like(spread))
        total = self.prefill_step_s(i, tokens, pairs)
        rest: FloatArray = np.zeros(())
        for term in named.values():
            rest = rest + term
        named["attention_pairs"] = total - rest
        return named


def _longest(times: Sequence[FloatArray]) -> FloatArray:
    longest = times[0]
    for time in times[1:]:
        longest = np.maximum(longest, time)
    return longest
