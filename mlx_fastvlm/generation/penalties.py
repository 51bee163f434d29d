"""Logits processors for the options ``logit_bias``, the penalties and ``min_tokens``.

The first two compute what mlx-lm's do, the presence and frequency penalties what OpenAI's API documents.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from .options import GenerationOptions, LogitsProcessor


def make_logits_processors(
    options: GenerationOptions, prompt: int = 0, ends: Iterable[int] = ()
) -> list[LogitsProcessor]:
    """Those that the options ask for, then the caller's own, in the order that they run in.

    Args:
        prompt: how many of the tokens that they will see are the prompt's.
        ends: the tokens that end an answer.
    """
    processors: list[LogitsProcessor] = []
    if options.logit_bias:
        processors.append(_biasing(options.logit_bias))
    if options.repetition_penalty is not None:
        processors.append(_penalising(float(options.repetition_penalty), options.repetition_context_size))
    if options.presence_penalty or options.frequency_penalty:
        processors.append(_counting(float(options.presence_penalty), float(options.frequency_penalty), prompt))
    if options.min_tokens:
        processors.append(_going_on(options.min_tokens + prompt, sorted(ends)))
    return [*processors, *(options.logits_processors or [])]


def _biasing(biases: dict[int, float]) -> LogitsProcessor:
    ids, values = mx.array(list(biases)), mx.array([float(bias) for bias in biases.values()])
    return lambda _, logits: logits.at[:, ids].add(values)


def _penalising(penalty: float, size: int) -> LogitsProcessor:
    """Makes the last ``size`` tokens less likely, whatever the sign of their logits (CTRL, arXiv 1909.05858)."""

    def penalise(tokens: mx.array, logits: mx.array) -> mx.array:
        if not tokens.size:
            return logits
        recent = tokens[max(0, tokens.size - size) :][None]
        return penalised(logits, recent, penalty)

    return penalise


def penalised(logits: mx.array, ids: mx.array, penalty: float) -> mx.array:
    """Logits (rows, vocabulary), those of the ids (rows, any number) less likely, whatever their sign."""
    found = mx.take_along_axis(logits, ids, axis=-1)
    return mx.put_along_axis(logits, ids, mx.where(found < 0, found * penalty, found / penalty), axis=-1)


def _counting(presence: float, frequency: float, prompt: int) -> LogitsProcessor:
    """Takes ``presence`` off the logit of each token that the answer has, and ``frequency`` for each time."""

    def penalise(tokens: mx.array, logits: mx.array) -> mx.array:
        said = tokens[prompt:]
        counts = mx.zeros((logits.shape[-1],), mx.float32).at[said].add(1.0)
        return logits - ((counts > 0) * presence + counts * frequency).astype(logits.dtype)

    return penalise


def _going_on(least: int, ends: list[int]) -> LogitsProcessor:
    """Rules out the tokens that end an answer until there are ``least`` tokens."""

    def rule_out(tokens: mx.array, logits: mx.array) -> mx.array:
        known = [id for id in ends if 0 <= id < logits.shape[-1]]
        if tokens.size >= least or not known:
            return logits
        return logits.at[:, mx.array(known)].add(-mx.inf)

    return rule_out
