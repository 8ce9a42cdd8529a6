"""The tokens of one workload: input, cached part, output, hidden part, and their moments."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planner.workload.distribution import Distribution, Floats, quantile

NO_TOKENS = Distribution.deterministic(0.0)


@dataclass(frozen=True, slots=True, eq=False)
class TokenMix:
    """Points of input and output lengths (tokens); input and output are independent.

    `prompt_tokens`, `cached_tokens` and `prompt_weight` have one shape (P,): the cached tokens are
    those of that prompt. `output_tokens` and `output_weight` are (Q,), hidden tokens included.
    `hidden_tokens` and `hidden_weight` are (H,): the hidden part alone.
    """

    prompt_tokens: Floats
    cached_tokens: Floats
    prompt_weight: Floats
    output_tokens: Floats
    output_weight: Floats
    hidden_tokens: Floats
    hidden_weight: Floats
    max_prompt_tokens: float
    max_output_tokens: float
    max_hidden_tokens: float = 0.0
    assumption: str = ""

    @classmethod
    def of(
        cls,
        prompt: Distribution,
        visible: Distribution,
        hidden: Distribution = NO_TOKENS,
        cached_fraction: float = 0.0,
        cached_request_fraction: float = 1.0,
    ) -> TokenMix:
        """A mix in which `cached_fraction` of all input is cached: the same share of every prompt
        of the `cached_request_fraction` of requests that find anything.
        """
        output = visible if hidden.longest == 0 else visible.plus(hidden)
        notes = [each.assumption for each in (prompt, visible, hidden) if each.assumption]
        plain = cls(
            prompt_tokens=prompt.points,
            cached_tokens=np.zeros_like(prompt.points),
            prompt_weight=prompt.weight,
            output_tokens=output.points,
            output_weight=output.weight,
            hidden_tokens=hidden.points,
            hidden_weight=hidden.weight,
            max_prompt_tokens=prompt.longest,
            max_output_tokens=output.longest,
            max_hidden_tokens=hidden.longest,
            assumption="; ".join(notes),
        )
        return plain.with_hits(cached_fraction, cached_request_fraction)

    def with_hits(self, fraction: float, request_fraction: float = 1.0) -> TokenMix:
        """The same requests with `fraction` of all input cached: the same share of the prompts of
        a share `request_fraction` of the requests, long and short alike; the others find nothing.
        """
        if fraction <= 0.0:
            return replace(self, cached_tokens=np.zeros_like(self.prompt_tokens))
        found = self.prompt_tokens * (fraction / request_fraction)
        if request_fraction >= 1.0:
            return replace(self, cached_tokens=found)
        return replace(
            self,
            prompt_tokens=np.tile(self.prompt_tokens, 2),
            cached_tokens=np.concatenate([found, np.zeros_like(found)]),
            prompt_weight=np.concatenate(
                [
                    self.prompt_weight * request_fraction,
                    self.prompt_weight * (1.0 - request_fraction),
                ]
            ),
        )

    @classmethod
    def deterministic(
        cls, prompt_tokens: float, output_tokens: float, cached_tokens: float = 0.0
    ) -> TokenMix:
        """Every request alike."""
        return cls.of(
            Distribution.deterministic(prompt_tokens),
            Distribution.deterministic(output_tokens),
            cached_fraction=cached_tokens / prompt_tokens,
        )

    @classmethod
    def conversation(
        cls,
        turns: int,
        system_tokens: float,
        user_tokens: float,
        visible: Distribution,
        hidden: Distribution = NO_TOKENS,
        cache_hit_fraction: float = 0.0,
    ) -> TokenMix:
        """Turns of a conversation, each a request, all turns equally frequent.

        Turn t has a prompt of system + t x user + (t - 1) x mean visible output tokens. Found in
        the cache is a share of what turn t - 1 left there at the same place: its prompt and its
        answer. With hidden tokens the answer came after them, so only the prompt counts. The
        first turn finds nothing.
        """
        turn = np.arange(1, turns + 1, dtype=np.float64)
        prompt = system_tokens + turn * user_tokens + (turn - 1) * visible.mean
        left = np.zeros(turns)
        left[1:] = prompt[:-1] + (visible.mean if hidden.longest == 0 else 0.0)
        weight = np.full(turns, 1.0 / turns)
        mix = cls.of(Distribution(prompt, weight, float(prompt[-1])), visible, hidden)
        return replace(mix, cached_tokens=cache_hit_fraction * left)

    @property
    def mean_prompt(self) -> float:
        """Mean input tokens, cached ones included."""
        return float(self.prompt_weight @ self.prompt_tokens)

    @property
    def mean_cached(self) -> float:
        """Mean cached input tokens."""
        return float(self.prompt_weight @ self.cached_tokens)

    @property
    def mean_uncached(self) -> float:
        """Mean input tokens that must be computed."""
        return self.mean_prompt - self.mean_cached

    @property
    def mean_output(self) -> float:
        """Mean output tokens, hidden ones included."""
        return self._output_moment(1)

    @property
    def hidden_tokens_mean(self) -> float:
        """Mean hidden tokens; 0 where there are none."""
        return float(self.hidden_weight @ self.hidden_tokens)

    @property
    def decode_context_mean(self) -> float:
        """Mean context length over decoded tokens: E[I] + E[O^2] / (2 E[O]).

        Token j of an answer sees I + j tokens; long answers count by their length.
        """
        return self.mean_prompt + self._output_moment(2) / (2 * self.mean_output)

    @property
    def decode_context_second_moment(self) -> float:
        """Mean square of the context over decoded tokens:
        E[I^2] + E[I] E[O^2] / E[O] + E[O^3] / (3 E[O]).
        """
        square = float(self.prompt_weight @ self.prompt_tokens**2)
        second, third = self._output_moment(2), self._output_moment(3)
        return square + (self.mean_prompt * second + third / 3) / self.mean_output

    def prompt_quantile(self, p: float) -> float:
        """Input tokens that a share p of requests does not exceed."""
        return quantile(self.prompt_tokens, self.prompt_weight, p, self.max_prompt_tokens)

    def output_quantile(self, p: float) -> float:
        """Output tokens (hidden included) that a share p of requests does not exceed."""
        return quantile(self.output_tokens, self.output_weight, p, self.max_output_tokens)

    def hidden_quantile(self, p: float) -> float:
        """Hidden tokens that a share p of requests does not exceed."""
        return quantile(self.hidden_tokens, self.hidden_weight, p, self.max_hidden_tokens)

    def _output_moment(self, order: int) -> float:
        return float(self.output_weight @ self.output_tokens**order)
