"""Whether a simulation kept its books: every request and token once, and Little's law."""

from __future__ import annotations

import itertools

import numpy as np

from planner.simulate.over_time import counted_samples, in_system, over_time
from planner.simulate.records import Bools, ComponentRun, Floats, Outcome, RequestLog
from planner.simulate.summary import Account


def account(run: ComponentRun) -> Account:
    """The books of one component."""
    log = run.requests
    first = run.series[0]
    seconds = run.horizon_s - run.warmup_s
    stay_s = stays_s(log)[log.counted]
    # Requests that were never finished have no stay; their time in the pools is unknown.
    known = np.isfinite(stay_s)
    in_system_mean = over_time(in_system(run), first, counted_samples(run, first))
    by_law = float(stay_s[known].sum()) / seconds
    return Account(
        classes=run.classes,
        requests=int(log.arrival_s.size),
        every_request_once=bool(requests_once(log).all()),
        every_token_once=bool(tokens_once(log).all()),
        in_system_mean=in_system_mean,
        arrivals_times_stay=by_law,
        little_difference_fraction=in_system_mean / by_law - 1 if by_law > 0 else 0.0,
        simulated_s=seconds,
        warmup_s=run.warmup_s,
        steps=run.steps,
    )


def stays_s(log: RequestLog) -> Floats:
    """Time that each request (R,) spent in pools; nan where it did not finish.

    From arrival to the end of its prompt, and from its first token to its last. What lies between,
    a cache on its way and a token on its way to the user, keeps no replica waiting.
    """
    prompt = log.engine_first_token_s - log.arrival_s
    return np.asarray(prompt + (log.finish_s - log.first_token_s))


def requests_once(log: RequestLog) -> Bools:
    """Which requests (R,) have one known end, and moments in the order that time allows."""
    known = np.isin(log.outcome, [int(each) for each in Outcome])
    finished = log.outcome == Outcome.FINISHED
    moments = (
        log.arrival_s,
        log.prefill_start_s,
        log.engine_first_token_s,
        log.first_token_s,
        log.visible_first_token_s,
        log.finish_s,
    )
    in_order = np.ones(log.arrival_s.size, dtype=np.bool_)
    for before, after in itertools.pairwise(moments):
        # A moment that did not come is nan, and a comparison with it false.
        in_order &= ~(after < before - 1e-9 * np.maximum(np.abs(before), 1.0))
    ended = np.isfinite(log.finish_s) == finished
    placed = ~finished | ((log.prefill_pool >= 0) & (log.decode_pool >= 0))
    return np.asarray(known & in_order & ended & placed)


def tokens_once(log: RequestLog) -> Bools:
    """Which requests (R,) have all their tokens if they finished, and never too many."""
    finished = log.outcome == Outcome.FINISHED
    whole = log.generated_tokens == log.output_tokens
    short = (log.generated_tokens >= 0) & (log.generated_tokens <= log.output_tokens)
    return np.asarray(np.where(finished, whole, short))
